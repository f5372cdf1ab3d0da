# SPDX-License-Identifier: Apache-2.0
"""An rsync that does harm to an upload where a trial asks for it, and is rsync itself otherwise.

The harm to be done lies in `harm.json` of our home: how often still, and what. `flip` changes a byte of a file on its
way, `cut` shortens one, `drop` forgets one, `add` brings one too many, `manifest` damages the manifest; `late` changes
a byte in the spool when the upload has arrived.
"""

import json
import os
import shutil
import subprocess
import tempfile
from typing import Any, Optional


def main(home: str, rsync: str, argv: list[str]) -> int:
    folder, where = argv[-2], argv[-1]
    if "--append" in argv or decides_nothing(folder):
        os.execv(rsync, [rsync, *argv])
    harm = claim(os.path.join(home, "harm.json"), os.path.basename(folder.rstrip("/")))
    if harm is None:
        os.execv(rsync, [rsync, *argv])
    if harm["what"] == "late":
        code = subprocess.call([rsync, *argv])
        spoil("flip", os.path.join(harm["spool"], where.rstrip("/").rpartition("/")[2]), harm["pick"])
        return code
    with tempfile.TemporaryDirectory() as beside:
        copy = os.path.join(beside, "result")
        shutil.copytree(folder, copy)
        spoil(harm["what"], copy, harm["pick"])
        return subprocess.call([rsync, *argv[:-2], copy + "/", where])


def decides_nothing(folder: str) -> bool:
    """Whether an upload has only logs, which nobody checks."""
    try:
        with open(os.path.join(folder.rstrip("/"), "..", "manifest", "build.json")) as manifest:
            return json.load(manifest)["status"] in ("Unfit", "Cancelled")
    except (OSError, ValueError, KeyError):
        return False


def claim(path: str, folder: str) -> Optional[dict[str, Any]]:
    """The harm that is to be done to this very upload: a manifest's goes with the manifest, the others with results."""
    try:
        with open(path) as said:
            harm: dict[str, Any] = json.load(said)
        if (harm["what"] == "manifest") != (folder == "manifest") or harm["times"] < 1:
            return None
        with open(path + ".new", "w") as left:
            json.dump({**harm, "times": harm["times"] - 1}, left)
        os.replace(path + ".new", path)
    except (OSError, ValueError):
        return None
    return harm


def spoil(what: str, folder: str, pick: float) -> None:
    names = sorted(os.listdir(folder))
    path = os.path.join(folder, names[int(pick * len(names))])
    if what == "drop":
        os.unlink(path)
    elif what == "add":
        with open(os.path.join(folder, "intruder.rpm"), "wb") as intruder:
            intruder.write(b"not asked for")
    elif what in ("cut", "manifest"):
        os.truncate(path, os.path.getsize(path) // 2)
    else:
        with open(path, "r+b") as stream:
            place = int(pick * 1000) % max(1, os.path.getsize(path))
            stream.seek(place)
            byte = stream.read(1) or b"\0"
            stream.seek(place)
            stream.write(bytes([byte[0] ^ 1]))

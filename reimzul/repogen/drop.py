# SPDX-License-Identifier: Apache-2.0
"""Taking legs out of the store for good: found by walking an area, removed so that nothing half is ever seen."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import attr

from reimzul.core import fs, validators
from reimzul.core.store_paths import MANIFEST, StorePaths, leg_key

log = logging.getLogger(__name__)

_TIMESTAMP = re.compile(r"[0-9]{14}\Z")


@attr.frozen(kw_only=True)
class Lying:
    """A leg as it lies in the store."""

    place: str  #: seen from the store's root
    target: str
    name: str  #: of its package
    timestamp: str
    arch: str

    @property
    def folder(self) -> str:
        """Seen from its target."""
        return self.place.split("/", 2)[2]


@attr.frozen(kw_only=True)
class Told:
    """What a leg's manifest says of it, as far as dropping it asks; of the original's legs, nothing."""

    build_id: str = ""
    attempt: str = ""
    status: str = ""
    submitter: str = ""
    srpm: str = ""
    replaced_by: str = ""  #: the build that is listed in its place
    filed: str = attr.field(default="", eq=False)  #: when it got its place, by this host's clock; as a timestamp


def lying(area: Path, target: str) -> Iterator[Lying]:
    """The legs of a target in `repo/` or `scratch/`, in no order. Nothing of them is read."""
    for name in _folders(area / target):
        if name.startswith((".", "repodata")):
            continue
        for timestamp in _folders(area / target / name):
            if not _TIMESTAMP.match(timestamp):
                continue
            for folder in _folders(area / target / name / timestamp):
                place = f"{area.name}/{target}/{name}/{timestamp}/{folder}"
                arch = folder.rpartition(".")[2]
                yield Lying(place=place, target=target, name=name, timestamp=timestamp, arch=arch)


def targets(area: Path) -> list[str]:
    """The targets that have anything in an area."""
    return sorted(name for name in _folders(area) if not name.startswith("."))


def _folders(path: Path) -> list[str]:
    try:
        with os.scandir(path) as entries:
            return [entry.name for entry in entries if entry.is_dir(follow_symlinks=False)]
    except (FileNotFoundError, NotADirectoryError):
        return []


def told(store: StorePaths, leg: Lying) -> Told:
    """What its manifest says; not checked as an arriving one is, as nothing is made of it but the choice to drop it."""
    folder, filed = store.place(leg.place), ""
    try:
        filed = time.strftime(validators.TIMESTAMP_FORMAT, time.gmtime(folder.stat().st_ctime))
        raw = json.loads((folder / MANIFEST).read_bytes())
        request = raw["request"]
        names = {"build_id": request, "submitter": request, "srpm": request, "attempt": raw, "status": raw}
        return Told(**{name: str(where[name]) for name, where in names.items()}, filed=filed)
    except (OSError, ValueError, KeyError, TypeError):
        return Told(filed=filed)


def size(store: StorePaths, leg: Lying) -> int:
    """Bytes of its files."""
    total = 0
    with contextlib.suppress(OSError), os.scandir(store.place(leg.place)) as entries:
        for entry in entries:
            total += entry.stat(follow_symlinks=False).st_size
    return total


def drop(store: StorePaths, leg: Lying, about: Told) -> None:
    """Remove a leg, its entry in `index/`, and the logs of the attempts at it. Done before, nothing is left to do."""
    if about.build_id:
        name = leg_key(about.build_id, leg.arch)
        _forget(store, name, leg.place)
        for left in store.attempts.glob(f"{name}.*"):
            fs.remove(left)
    folder = store.place(leg.place)
    aside = store.state / "dropped" / leg.place.replace("/", "+")
    aside.parent.mkdir(exist_ok=True)
    fs.remove(aside)
    with contextlib.suppress(FileNotFoundError):
        os.rename(folder, aside)  # whole until now, and not there from now on
        fs.sync(folder.parent)
    for empty in (folder.parent, folder.parent.parent):
        with contextlib.suppress(OSError):  # another build of the package has just come there
            empty.rmdir()
    fs.remove(aside)


def _forget(store: StorePaths, name: str, place: str) -> None:
    entry = store.index / name
    with contextlib.suppress(OSError):
        if os.readlink(entry) == f"../{place}":
            entry.unlink()


def plain(leg: Lying, about: Told, count: int) -> dict[str, Any]:
    """A leg for a program; `count` are its bytes."""
    said = attr.asdict(about, filter=lambda field, _: field.name != "filed")
    return {**attr.asdict(leg), **said, "bytes": count}

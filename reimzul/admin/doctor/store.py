# SPDX-License-Identifier: Apache-2.0
"""bstore's own: the folders of the store, what waits in the spool, createrepo_c, and the hook that runs after it."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from reimzul.admin.doctor.access import ENTER, READ, WRITE, may
from reimzul.admin.doctor.check import Check, Result, fail, ok, warn, worst
from reimzul.admin.doctor.host import BSTORE, Host
from reimzul.admin.doctor.upload import FOLDER
from reimzul.core.errors import ReimzulError
from reimzul.core.store_paths import MANIFEST, StorePaths
from reimzul.store.hook import read_failure

#: Seconds a whole upload may lie in the spool: repogen looks for those nobody asked for once an hour.
WAITS = 2 * 3600
_PATIENCE = 10.0


def checks(host: Host) -> list[Check]:
    """All of bstore's own."""
    if not host.has(BSTORE):
        return []
    store = StorePaths(host.settings.bstore.root)
    return [
        Check(name="createrepo_c", look=lambda: _createrepo(host)),
        Check(name="store", look=lambda: _folders(host, store)),
        Check(name="spool", look=lambda: _spool(store), needs=("store",)),
        Check(name="after_createrepo", look=lambda: hook(host.settings.repogen.after_createrepo, store)),
    ]


def _createrepo(host: Host) -> Result:
    program = host.settings.repogen.createrepo_c
    try:
        said = host.run(program, "--version", timeout=_PATIENCE).strip()
    except ReimzulError as error:
        return fail(str(error), "install createrepo_c (Debian: createrepo-c), or mend [repogen] createrepo_c")
    return ok(said.splitlines()[0] if said else program)


def _folders(host: Host, store: StorePaths) -> Result:
    user = host.entry
    if user is None:
        return fail(f"there is no user {host.user} on this host", "make install ROLE=bstore")
    if not store.root.is_dir():
        return fail(f"{store.root} is not there", f"install -d -o {host.user} {store.root}, or mend [bstore] root")
    there = [folder for folder in store.folders() if folder.is_dir()]
    foreign = [folder for folder in [store.root, *there] if not may(user, folder, READ | WRITE | ENTER)]
    disks = {folder.stat().st_dev for folder in [store.root, *there]}
    if foreign:
        return fail(f"user {host.user} cannot write to {foreign[0]}", f"chown -R {host.user}: {foreign[0]}")
    if len(disks) > 1:
        words = f"the folders in {store.root} lie on several file systems: nothing can be published by one rename"
        return fail(words, "have all of them on one")
    if len(there) < len(store.folders()):
        return ok(f"{store.root}, one file system; repogen makes what is missing")
    return ok(f"{store.root}, one file system")


def _spool(store: StorePaths) -> Result:
    if not store.spool.is_dir():
        return ok("nothing was uploaded yet")
    waiting = sorted(_waiting(store.spool, time.time() - WAITS))
    if waiting:
        words = f"{len(waiting)} whole uploads have waited for over {WAITS // 3600} h, the first is {waiting[0]}"
        return warn(words, "journalctl -u 'reimzul-repogen-worker@*' says why they are not taken")
    return ok("no upload waits for long")


def hook(argv: Sequence[str], store: StorePaths) -> Result:
    """Whether the hook on new repodata is there, and succeeded on each target."""
    if not argv:
        return ok("no program runs after createrepo_c")
    if shutil.which(argv[0]) is None:
        return fail(f"{argv[0]} is not there: no repodata becomes visible", "mend [repogen] after_createrepo")
    now, results = time.time(), []
    for path in sorted(store.state.glob("*.hook")):
        failure = read_failure(path)
        if failure is not None:
            target, often = path.name[: -len(".hook")], "once" if failure.count == 1 else f"{failure.count} times"
            words = f"{target} keeps its old repodata: it failed {often}, last {max(0, int(now - failure.at))} s ago"
            results.append(fail(f"{words}: {failure.reason}", f"mend it, then: reimzul repogen {target}"))
    return worst(results, f"{argv[0]} succeeded last on every target")


def _waiting(spool: Path, before: float) -> Iterator[str]:
    for folder in spool.iterdir():
        try:
            if not folder.name.startswith(FOLDER) and (folder / MANIFEST).lstat().st_ctime < before:
                yield folder.name
        except (FileNotFoundError, NotADirectoryError):
            continue

# SPDX-License-Identifier: Apache-2.0
"""The lasting place of a leg: finding it, and bringing a checked upload there by one rename.

There is no lock. Every step first looks whether it is done, `index/` is written before the rename that it tells of,
and rename(2) never replaces a folder that has something in it: a crash, or another repogen at the same leg, is
answered by looking again.
"""

from __future__ import annotations

import errno
import logging
import os
from collections.abc import Iterator
from datetime import datetime, timedelta
from pathlib import Path
from typing import Callable

import attr

from reimzul.core import fs, validators
from reimzul.core.errors import RetryLater
from reimzul.core.manifest import File, Manifest
from reimzul.core.message import RepogenRequest, Status
from reimzul.core.store_paths import StorePaths, leg_key, spool_name
from reimzul.repogen.check import Mismatch, arrived, check

log = logging.getLogger(__name__)

#: How often we look again when another moves things under our hands, before we leave it for later.
_LOOKS = 20
#: How many builds may have been submitted for one place in one second, and the seconds after it.
_SECONDS = 1000
_LAST = datetime.max.replace(microsecond=0)


@attr.frozen(kw_only=True)
class Ruling:
    """What the rules of its target have decided about a leg."""

    left_out: frozenset[str] = frozenset()  #: file names of packages that are not listed
    refused: str = ""  #: why nothing of it is listed
    notes: str = ""  #: what everybody is told of it


@attr.frozen(kw_only=True)
class Placed:
    """A leg that has its place."""

    manifest: Manifest
    place: str
    ruling: Ruling = Ruling()

    @property
    def rpms(self) -> list[File]:
        """Its packages that are to be listed."""
        return [file for file in self.manifest.rpm_files if file.name not in self.ruling.left_out]

    @property
    def folder(self) -> str:
        """Seen from its target."""
        return self.place.split("/", 2)[2]

    @property
    def timestamp(self) -> str:
        """Of the place, which may be later than the request's."""
        return self.place.split("/")[3]

    @property
    def published(self) -> bool:
        """Whether it is one for the repodata and the signer: built, and not only to see whether it builds."""
        return self.manifest.status == Status.SUCCESS and not self.manifest.request.scratch


class Withdrawn(Exception):
    """It was built, and is to have no place: a person has cancelled it."""

    def __init__(self, manifest: Manifest) -> None:
        super().__init__(manifest.build_id)
        self.manifest = manifest


class _LookAgain(Exception):
    """Another was there between our look and our step."""


def bring_in(
    store: StorePaths, request: RepogenRequest, heed: Callable[[], None], cancelled: Callable[[], bool] = lambda: False
) -> Placed | None:
    """The leg a request names, in its place; None where neither its upload nor its place is there.

    Raises `Mismatch` where the upload is not what it should be, `Withdrawn` where it is `cancelled` (asked right
    before it gets its place, and of a success alone), and leaves it where it is.
    """
    spool = store.spool / spool_name(request.build_id, request.arch, request.attempt)
    for _ in range(_LOOKS):
        try:
            return _step(store, spool, request, heed, cancelled)
        except _LookAgain:
            continue
        except (FileNotFoundError, Mismatch):
            # moved while we looked, or being dropped since another attempt has come to its place meanwhile
            if os.path.lexists(spool) and not _succeeded(settled(store, request.build_id, request.arch)):
                raise
    raise RetryLater(f"{spool.name} is being moved by another")


def _step(
    store: StorePaths, spool: Path, request: RepogenRequest, heed: Callable[[], None], cancelled: Callable[[], bool]
) -> Placed | None:
    there = settled(store, request.build_id, request.arch)
    if _succeeded(there):
        drop(store, spool)
        return there
    manifest = arrived(spool)
    if manifest is None:
        return there
    if there is not None and manifest.status != Status.SUCCESS:
        drop(store, spool)
        return there
    wanted = manifest.status == Status.SUCCESS
    if wanted and cancelled():  # before it is checked too: one that is half filed away already would be found bad
        raise Withdrawn(manifest)
    check(spool, manifest, request, heed)
    if wanted and cancelled():
        raise Withdrawn(manifest)
    if there is not None:
        _retire(store, there)
    return _move_in(store, spool, manifest)


def _succeeded(there: Placed | None) -> bool:
    return there is not None and there.manifest.status == Status.SUCCESS


def settled(store: StorePaths, build_id: str, arch: str) -> Placed | None:
    """The leg in the place that `index/` knows, if it is there and really this leg's."""
    place = _indexed(store, build_id, arch)
    manifest = _manifest_at(store, place) if place else None
    if manifest is None or (manifest.build_id, manifest.arch) != (build_id, arch):
        return None
    return Placed(manifest=manifest, place=place)


def _indexed(store: StorePaths, build_id: str, arch: str) -> str:
    try:
        return validators.place(os.readlink(store.index / leg_key(build_id, arch))[len("../") :])
    except (FileNotFoundError, ValueError):
        return ""


def _manifest_at(store: StorePaths, place: str) -> Manifest | None:
    try:
        return arrived(store.place(place))
    except Mismatch:
        return None  # whatever it is, it is not ours


def _move_in(store: StorePaths, spool: Path, manifest: Manifest) -> Placed:
    place = _free_place(store, manifest)
    folder = store.place(place)
    name = leg_key(manifest.build_id, manifest.arch)
    folder.parent.mkdir(parents=True, exist_ok=True)
    if _indexed(store, manifest.build_id, manifest.arch) != place:
        fs.symlink_atomic(store.index / name, f"../{place}")
    try:
        os.rename(spool, folder)
    except OSError as error:
        if error.errno in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOENT):
            raise _LookAgain from error
        raise
    fs.sync_ancestors_once(folder, folder.parents[2], store.root)  # the target stays
    if place != manifest.place():
        log.warning("%s: %s is another build's, so it goes to %s", name, manifest.place(), place)
    return Placed(manifest=manifest, place=place)


def _free_place(store: StorePaths, manifest: Manifest) -> str:
    """The first place of the leg that nobody has; the one `index/` names before all others."""
    for place in _candidates(store, manifest):
        if not os.path.lexists(store.place(place)):
            return place
        there = _manifest_at(store, place)
        if there and (there.build_id, there.arch) == (manifest.build_id, manifest.arch):
            # ours, and `index/` does not say so: a disk that forgot. Say it, and look again
            fs.symlink_atomic(store.index / leg_key(manifest.build_id, manifest.arch), f"../{place}")
            raise _LookAgain
    raise Mismatch(f"{manifest.place()} and the {_SECONDS} seconds after it are all other builds'")


def _candidates(store: StorePaths, manifest: Manifest) -> Iterator[str]:
    first = manifest.place()
    indexed = _indexed(store, manifest.build_id, manifest.arch)
    if _but_time(indexed) == _but_time(first):  # else an attempt at another version wrote it, and never got there
        yield indexed
    yield first
    moment = datetime.strptime(manifest.request.timestamp, validators.TIMESTAMP_FORMAT)
    for _ in range(_SECONDS):
        if moment >= _LAST:
            return
        moment += timedelta(seconds=1)
        yield manifest.place(f"{moment.year:04d}{moment:%m%d%H%M%S}")


def _but_time(place: str) -> list[str]:
    parts = place.split("/")
    return parts[:3] + parts[4:]


def drop(store: StorePaths, spool: Path) -> None:
    """Take away an upload that decides nothing: its packages go, its logs are kept in `attempts/`."""
    if spool.is_symlink():
        fs.remove(spool)
    try:
        entries = list(os.scandir(spool))
    except (FileNotFoundError, NotADirectoryError):
        return
    for entry in entries:
        if entry.name.endswith(".rpm") or entry.name.startswith("."):  # a package, or the rest of a broken transfer
            fs.remove(Path(entry.path))
    move(spool, store.attempts / spool.name)
    log.info("%s decides nothing: its logs are in attempts/", spool.name)


def _retire(store: StorePaths, failed: Placed) -> None:
    """Make room for a success: what failed was another attempt's bad luck, and somebody was told of the success."""
    manifest = failed.manifest
    name = spool_name(manifest.build_id, manifest.arch, manifest.attempt)
    move(store.place(failed.place), store.attempts / name)
    log.info("%s had failed, another attempt has succeeded: its logs are in attempts/", name)


def move(folder: Path, goal: Path) -> None:
    """Move a folder to where folders are kept; where one of its name is kept already, that one stays."""
    try:
        os.rename(folder, goal)
    except FileNotFoundError:
        return  # another did it
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
            raise
        fs.remove(folder)
    fs.sync(goal.parent)

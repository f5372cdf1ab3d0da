# SPDX-License-Identifier: Apache-2.0
"""What workers of the original upload, made uploads like ours: taken out of their reach, and given a manifest.

They upload to `repo/<target>/<name>/<timestamp>/<version-release>.<arch>/` of the module, which rsyncd shows them
and which is `originals/` in the store: no upload of theirs can replace what is published, or be seen half done. Only
their event says what a folder is. Every step first looks whether it is done, as with any upload.
"""

from __future__ import annotations

import calendar
import contextlib
import logging
import os
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Callable

from reimzul.core import fs, validators
from reimzul.core.errors import InputError, InvalidMessage, ReimzulError
from reimzul.core.manifest import File, Manifest, sha256_of
from reimzul.core.message import ORIGINAL_ATTEMPT_SUFFIX, BuildEvent, BuildRequest, RepogenRequest, Status
from reimzul.core.rpm_header import read_header
from reimzul.core.store_paths import MANIFEST, StorePaths, package_dir, spool_name
from reimzul.repogen.place import settled

log = logging.getLogger(__name__)

#: How rpmbuild names in build.log what mock then leaves beside it.
_WROTE = re.compile(rb"^Wrote: /builddir/build/RPMS/(?:[^/\n]+/)?([^/\n]+\.rpm)\r?$", re.MULTILINE)
#: Of a longer build.log only the end is read, where rpmbuild says that.
_LOG_END = 8 << 20


class NotWhole(ReimzulError):
    """An upload of the original's is not there, or not all of it."""


def adopt(store: StorePaths, event: BuildEvent, heed: Callable[[], None]) -> RepogenRequest:
    """What asks for the leg that a worker of the original announced, once its upload is one like ours.

    Only the target where it lies in `repo/` already, as one does from before there was `originals/`. Raises `NotWhole`,
    and `InvalidMessage` for an event that says too little.
    """
    asked = _asked(event)
    spool = store.spool / spool_name(asked.build_id, asked.arch, asked.attempt)
    folder = asked.place.partition("/")[2]
    lying = store.originals / folder
    there = settled(store, asked.build_id, asked.arch)
    if there is not None and there.manifest.attempt == asked.attempt:
        fs.remove(lying)  # sent once more by another worker of that builder
        return asked
    if not spool.is_dir() and not lying.is_dir():
        if there is not None:
            return asked
        if (store.repo / folder).is_dir():
            return RepogenRequest(target=asked.target)
    if not spool.is_dir():
        _take(lying, spool, event)
    if not (spool / MANIFEST).exists():
        fs.write_atomic(spool / MANIFEST, _manifest(spool, event, asked, heed).to_text())
        log.info("%s was uploaded by a worker of the original, on %s", asked.place, event.builder_fqdn)
    return asked


def _asked(event: BuildEvent) -> RepogenRequest:
    if not event.by_original or event.status not in (Status.SUCCESS, Status.FAILED) or not event.builder_fqdn:
        raise InvalidMessage(f"{event.status} of {event.srpm} is not the result of a worker of the original")
    try:
        return RepogenRequest(
            target=event.target,
            build_id=event.key.partition(".")[0],
            arch=event.arch,
            # always the same: whoever is told of this leg again finds what was begun
            attempt=f"{_seconds(event.timestamp)}{ORIGINAL_ATTEMPT_SUFFIX}",
            place=package_dir(
                event.target, event.pkgname, event.timestamp, event.evr, event.arch, scratch=event.scratch
            ),
            index=event.status == Status.SUCCESS and not event.scratch,
            request=_request(event),
        )  # fmt: skip
    except ValueError as error:
        raise InvalidMessage(f"{event.status} of {event.srpm}, of the original: {error}") from None


def _seconds(timestamp: str) -> int:
    return max(0, calendar.timegm(time.strptime(timestamp, validators.TIMESTAMP_FORMAT)))


def _request(event: BuildEvent) -> BuildRequest:
    """What it answers, as far as that is known; without a build id, the one its events have by their own words."""
    return BuildRequest(
        srpm=event.srpm,
        arch=event.arch,
        target=event.target,
        disttag=event.disttag,
        submitter=event.submitter,
        scratch=event.scratch,
        build_id=event.key.partition(".")[0],
        timestamp=event.timestamp,
        parent=event.parent,
    )


def _take(lying: Path, spool: Path, event: BuildEvent) -> None:
    lacking = _lacks(lying) if event.status == Status.SUCCESS else ""
    if lacking:
        raise NotWhole(f"{lacking}, of {event.srpm} for {event.arch} from {event.builder_fqdn},")
    try:
        fs.remove(lying / MANIFEST)  # whoever sent it: the manifest of such a leg is ours to make
        os.rename(lying, spool)
    except FileNotFoundError:
        raise NotWhole(f"the upload of {event.srpm} for {event.arch} from {event.builder_fqdn}") from None


def _lacks(folder: Path) -> str:
    """What a built leg lacks: it says so itself, in build.log; empty where nothing."""
    there = {path.name for path in folder.glob("*.rpm")} if folder.is_dir() else set()
    if all(validators.is_source_rpm(name) for name in there):
        return "its packages"
    missing = _wrote(folder / "build.log") - there
    if missing:
        return min(missing)
    for name in sorted(there):
        try:
            read_header(folder / name)
        except InputError:
            return f"all of {name}"
    return ""


def _wrote(path: Path) -> set[str]:
    if not _is_plain(path):
        return set()
    with path.open("rb") as stream:
        stream.seek(max(0, path.stat().st_size - _LOG_END))
        return {os.fsdecode(name) for name in _WROTE.findall(stream.read())}


def _is_plain(path: Path) -> bool:
    return path.is_file() and not path.is_symlink()


def _manifest(folder: Path, event: BuildEvent, asked: RepogenRequest, heed: Callable[[], None]) -> Manifest:
    assert asked.request is not None
    return Manifest(
        request=asked.request,
        arch=event.arch,
        attempt=asked.attempt,
        status=event.status,
        pkgname=event.pkgname,
        evr=event.evr,
        builder_fqdn=event.builder_fqdn,
        started=0.0,
        finished=0.0,
        files=tuple(_files(folder, event, heed)),
    )


def _files(folder: Path, event: BuildEvent, heed: Callable[[], None]) -> Iterator[File]:
    """Each file that is kept, hashed; the others are removed."""
    for path in sorted(folder.iterdir()):
        heed()
        if not _kept(path, event):
            fs.remove(path)
            continue
        nevra = read_header(path).nevra if path.name.endswith(".rpm") else ""
        yield File(name=path.name, size=path.stat().st_size, sha256=sha256_of(path), nevra=nevra)


def _kept(path: Path, event: BuildEvent) -> bool:
    """A plain file, named as ours are; no packages of what failed, no source rpm of a leg that followed another."""
    if not _is_plain(path) or not validators.NAME.match(path.name) or len(path.name) > 200 or path.name == MANIFEST:
        return False
    if not path.name.endswith(".rpm"):
        return True
    follower = not event.target.endswith(f".{event.arch}")
    return event.status == Status.SUCCESS and not (follower and validators.is_source_rpm(path.name))


def make_room(store: StorePaths, target: str = "") -> None:
    """A folder for the uploads of a target, or of all there are: the original's rsync makes none of them."""
    for name in [target] if target else [path.name for path in store.repo.iterdir() if path.is_dir()]:
        (store.originals / name).mkdir(exist_ok=True)


def prune(store: StorePaths, before: float) -> int:
    """Remove what nobody asked for since a time, and folders that are empty since then; how many uploads that were."""
    removed = 0
    for leg in store.originals.glob("*/*/*/*"):
        with contextlib.suppress(FileNotFoundError):  # taken up while we look
            if fs.last_change(leg) < before:
                fs.remove(leg)
                removed += 1
    for depth in ("*/*/*", "*/*"):
        for path in store.originals.glob(depth):
            with contextlib.suppress(OSError):  # something is in it
                if path.lstat().st_ctime < before:
                    (path.rmdir if path.is_dir() and not path.is_symlink() else path.unlink)()
    return removed

# SPDX-License-Identifier: Apache-2.0
"""PU"""

from __future__ import annotations

import errno
import logging
import os
import time
from collections.abc import Iterator
from datetime import datetime, timedelta
from pathlib import Path
from typing import Callable

from reimzul.core import fs, validators
from reimzul.core.errors import RetryLater
from reimzul.core.manifest import Manifest
from reimzul.core.message import BuildEvent, RepogenRequest, SignRequest, Status, event_for
from reimzul.core.store_paths import StorePaths, StoreUrls, leg_key, spool_name
from reimzul.repogen.verify import InvalidUpload, read_upload, verify_upload
from reimzul.store.listing import StoredLeg

log = logging.getLogger(__name__)

#: How often we look again when another moves things under our hands, before we leave it for later.
_LOOKS = 20
#: How many builds may have been submitted for one place in one second, and the seconds after it.
_SECONDS = 1000
_LAST = datetime.max.replace(microsecond=0)


class CancelledBeforePublish(Exception):
    """It was built, and is to have no place: a person has cancelled it."""

    def __init__(self, manifest: Manifest) -> None:
        super().__init__(manifest.build_id)
        self.manifest = manifest


class _Conflict(Exception):
    """Another was there between our look and our step."""


def store_upload(
    store: StorePaths, request: RepogenRequest, heed: Callable[[], None], cancelled: Callable[[], bool] = lambda: False
) -> StoredLeg | None:
    """The leg a request names, in its place; None where neither its upload nor its place is there.

    Raises `Mismatch` where the upload is not what it should be, `Withdrawn` where it is `cancelled` (asked right
    before it gets its place, and of a success alone), and leaves it where it is.
    """
    spool = store.spool / spool_name(request.build_id, request.arch, request.attempt)
    for _ in range(_LOOKS):
        try:
            return _try_store_upload(store, spool, request, heed, cancelled)
        except _Conflict:
            continue
        except (FileNotFoundError, InvalidUpload):
            # moved while we looked, or being dropped since another attempt has come to its place meanwhile
            if os.path.lexists(spool) and not _is_success(find_stored(store, request.build_id, request.arch)):
                raise
    raise RetryLater(f"{spool.name} is being moved by another")


def _try_store_upload(
    store: StorePaths, spool: Path, request: RepogenRequest, heed: Callable[[], None], cancelled: Callable[[], bool]
) -> StoredLeg | None:
    there = find_stored(store, request.build_id, request.arch)
    if _is_success(there):
        archive_logs(store, spool)
        return there
    manifest = read_upload(spool)
    if manifest is None:
        return there
    if there is not None and manifest.status != Status.SUCCESS:
        archive_logs(store, spool)
        return there
    wanted = manifest.status == Status.SUCCESS
    if wanted and cancelled():  # before it is checked too: one that is half filed away already would be found bad
        raise CancelledBeforePublish(manifest)
    verify_upload(spool, manifest, request, heed)
    if wanted and cancelled():
        raise CancelledBeforePublish(manifest)
    if there is not None:
        _replace_failed(store, there)
    return _move_to_place(store, spool, manifest)


def _is_success(there: StoredLeg | None) -> bool:
    return there is not None and there.manifest.status == Status.SUCCESS


def find_stored(store: StorePaths, build_id: str, arch: str) -> StoredLeg | None:
    """The leg in the place that `index/` knows, if it is there and really this leg's."""
    place = _read_index(store, build_id, arch)
    manifest = _read_manifest_at(store, place) if place else None
    if manifest is None or (manifest.build_id, manifest.arch) != (build_id, arch):
        return None
    return StoredLeg(manifest=manifest, place=place)


def _read_index(store: StorePaths, build_id: str, arch: str) -> str:
    try:
        return validators.place(os.readlink(store.index / leg_key(build_id, arch))[len("../") :])
    except (FileNotFoundError, ValueError):
        return ""


def _read_manifest_at(store: StorePaths, place: str) -> Manifest | None:
    try:
        return read_upload(store.place(place))
    except InvalidUpload:
        return None  # whatever it is, it is not ours


def _move_to_place(store: StorePaths, spool: Path, manifest: Manifest) -> StoredLeg:
    place = _find_free_place(store, manifest)
    folder = store.place(place)
    name = leg_key(manifest.build_id, manifest.arch)
    folder.parent.mkdir(parents=True, exist_ok=True)
    if _read_index(store, manifest.build_id, manifest.arch) != place:
        fs.symlink_atomic(store.index / name, f"../{place}")
    try:
        os.rename(spool, folder)
    except OSError as error:
        if error.errno in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOENT):
            raise _Conflict from error
        raise
    fs.sync_ancestors_once(folder, folder.parents[2], store.root)  # the target stays
    if place != manifest.place():
        log.warning("%s: %s is another build's, so it goes to %s", name, manifest.place(), place)
    return StoredLeg(manifest=manifest, place=place)


def _find_free_place(store: StorePaths, manifest: Manifest) -> str:
    """The first place of the leg that nobody has; the one `index/` names before all others."""
    for place in _list_candidate_places(store, manifest):
        if not os.path.lexists(store.place(place)):
            return place
        there = _read_manifest_at(store, place)
        if there and (there.build_id, there.arch) == (manifest.build_id, manifest.arch):
            # ours, and `index/` does not say so: a disk that forgot. Say it, and look again
            fs.symlink_atomic(store.index / leg_key(manifest.build_id, manifest.arch), f"../{place}")
            raise _Conflict
    raise InvalidUpload(f"{manifest.place()} and the {_SECONDS} seconds after it are all other builds'")


def _list_candidate_places(store: StorePaths, manifest: Manifest) -> Iterator[str]:
    first = manifest.place()
    indexed = _read_index(store, manifest.build_id, manifest.arch)
    if _without_timestamp(indexed) == _without_timestamp(
        first
    ):  # else an attempt at another version wrote it, and never got there
        yield indexed
    yield first
    moment = datetime.strptime(manifest.request.timestamp, validators.TIMESTAMP_FORMAT)
    for _ in range(_SECONDS):
        if moment >= _LAST:
            return
        moment += timedelta(seconds=1)
        yield manifest.place(f"{moment.year:04d}{moment:%m%d%H%M%S}")


def _without_timestamp(place: str) -> list[str]:
    parts = place.split("/")
    return parts[:3] + parts[4:]


def archive_logs(store: StorePaths, spool: Path) -> None:
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
    move_folder(spool, store.attempts / spool.name)
    log.info("%s decides nothing: its logs are in attempts/", spool.name)


def _replace_failed(store: StorePaths, failed: StoredLeg) -> None:
    """Make room for a success: what failed was another attempt's bad luck, and somebody was told of the success."""
    manifest = failed.manifest
    name = spool_name(manifest.build_id, manifest.arch, manifest.attempt)
    move_folder(store.place(failed.place), store.attempts / name)
    log.info("%s had failed, another attempt has succeeded: its logs are in attempts/", name)


def move_folder(folder: Path, goal: Path) -> None:
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


#: How many packages an event names.
_NAMED = 50


def make_published_event(leg: StoredLeg, urls: StoreUrls) -> BuildEvent:
    """What everybody is told of a leg that is in the repodata."""
    manifest = leg.manifest
    names = [file.name for file in leg.listed_files]
    moved = "" if leg.place == manifest.place() else f"{manifest.place()} is another build's: it is in {leg.place}"
    return event_for(
        manifest.request,
        Status.PUBLISHED,
        arch=manifest.arch,
        timestamp=leg.timestamp,
        builder_fqdn=manifest.builder_fqdn,
        pkgname=manifest.pkgname,
        evr=manifest.evr,
        attempt=manifest.attempt,
        reason=validators.line(500)("; ".join(filter(None, (moved, leg.ruling.notes)))),
        exit_code=manifest.exit_code,
        started=manifest.started,
        finished=manifest.finished,
        place=leg.place,
        url=urls.place(leg.place),
        rpm_count=len(names),
        rpms=names[:_NAMED],
        skipped=dict(manifest.skipped),
    )


def make_sign_request(leg: StoredLeg) -> SignRequest:
    """What the signer is asked."""
    manifest = leg.manifest
    return SignRequest(
        pkgname=manifest.pkgname,
        status=Status.SUCCESS,
        target=manifest.request.target,
        arch=manifest.arch,
        timestamp=leg.timestamp,
        build_id=manifest.build_id,
        place=leg.place,
    )


def archive_upload(store: StorePaths, name: str) -> None:
    """Keep the logs of an attempt; done before, nothing is left to do."""
    archive_logs(store, store.spool / name)


def remove_live_logs(store: StorePaths, name: str) -> None:
    """Remove what was sent of an attempt's logs while they grew: all of it is elsewhere by now."""
    fs.remove(store.live / name)


def archived_manifest(store: StorePaths, request: RepogenRequest) -> Manifest | None:
    """The manifest of an upload that was filed away, where it can be read."""
    try:
        return read_upload(store.attempts / spool_name(request.build_id, request.arch, request.attempt))
    except InvalidUpload:
        return None


def make_cancelled_event(
    request: RepogenRequest, manifest: Manifest | None, why: str, urls: StoreUrls
) -> BuildEvent | None:
    """What everybody is told of a leg that was built and cancelled; None where nothing says what it was."""
    asked = manifest.request if manifest else request.request
    if asked is None:
        return None
    about = {"arch": request.arch, "attempt": request.attempt, "reason": why, "finished": round(time.time(), 3)}
    if manifest:
        about.update(
            builder_fqdn=manifest.builder_fqdn,
            pkgname=manifest.pkgname,
            evr=manifest.evr,
            started=manifest.started,
            finished=manifest.finished,
            exit_code=manifest.exit_code,
            phases=manifest.phases,
        )
    url = urls.attempt(request.build_id, request.arch, request.attempt)
    return event_for(asked, Status.CANCELLED, url=url, **about)

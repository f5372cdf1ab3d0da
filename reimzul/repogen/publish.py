# SPDX-License-Identifier: Apache-2.0
"""Gives the copy of an upload its place by one rename, archives other uploads, and makes the messages about both.

There is no lock. Every step first checks whether it is done, `index/` is written before the rename, and rename(2) never
replaces a folder that is not empty. After a crash, or if another repogen works on the same leg, the steps are repeated.
A leg in its place is not published yet: `daemon.py` announces that once the repodata lists it.

The rename is also the line for a cancel: it is checked right before, and comes too late afterwards.
"""

from __future__ import annotations

import errno
import logging
import os
import time
from collections.abc import Iterator
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any, Callable

from reimzul.core import fs, validators
from reimzul.core.errors import RetryLater
from reimzul.core.manifest import Manifest
from reimzul.core.message import MAX_NAMED_RPMS, BuildEvent, RepogenRequest, SignRequest, Status, event_for
from reimzul.core.retry import CancelToken
from reimzul.core.store_paths import MANIFEST, StorePaths, StoreUrls, leg_key, spool_name
from reimzul.repogen.copier import UploadCopier
from reimzul.repogen.verify import InvalidUpload, read_upload, read_upload_or_none, verify_upload
from reimzul.store.listing import StoredLeg

log = logging.getLogger(__name__)

#: How often the steps are repeated because another process interferes, before the job is left for later.
_MAX_CONFLICTS = 20
#: How many builds may share a place's second; each takes the next free second after it.
_MAX_SECONDS = 1000
_LAST_SECOND = datetime.max.replace(microsecond=0, tzinfo=timezone.utc)


class CancelledBeforePublish(Exception):
    def __init__(self, manifest: Manifest) -> None:
        super().__init__(manifest.build_id)
        self.manifest = manifest


class _Conflict(Exception):
    """Another process acted between a check and the step after it."""


def store_upload(
    copier: UploadCopier,
    request: RepogenRequest,
    cancel: CancelToken,
    is_cancelled: Callable[[], bool] = lambda: False,
) -> StoredLeg | None:
    """Bring a copy of the requested leg's upload to its place; None if neither its upload nor its place exists.

    Raises `InvalidUpload` or, for a success whose build is cancelled, `CancelledBeforePublish`; the upload then stays
    where it is.
    """
    spool = copier.store.spool / spool_name(request.build_id, request.arch, request.attempt)
    for _ in range(_MAX_CONFLICTS):
        try:
            return _try_store_upload(copier, spool, request, cancel, is_cancelled)
        except _Conflict:
            continue
        except (FileNotFoundError, InvalidUpload):
            # Another process may have stored it meanwhile and removed the upload.
            if os.path.lexists(spool) and not _is_success(find_stored(copier.store, request.build_id, request.arch)):
                raise
    raise RetryLater(f"{spool.name} is being stored by another")


def _try_store_upload(
    copier: UploadCopier, spool: Path, request: RepogenRequest, cancel: CancelToken, is_cancelled: Callable[[], bool]
) -> StoredLeg | None:
    stored = find_stored(copier.store, request.build_id, request.arch)
    manifest = None if _is_success(stored) else read_upload(spool)
    if stored is not None and (manifest is None or manifest.status != Status.SUCCESS):
        if stored.manifest.attempt == request.attempt:
            remove_upload(spool)
        else:
            archive_logs(copier, spool)
        return stored
    if manifest is None:
        return None
    if manifest.status == Status.SUCCESS and is_cancelled():
        raise CancelledBeforePublish(manifest)
    with copier.copied(spool, cancel) as folder:
        leg = _publish_copy(copier, folder, request, stored, cancel, is_cancelled)
    remove_upload(spool)
    return leg


def _publish_copy(
    copier: UploadCopier,
    folder: Path,
    request: RepogenRequest,
    stored: StoredLeg | None,
    cancel: CancelToken,
    is_cancelled: Callable[[], bool],
) -> StoredLeg:
    """Verify a copy, and rename it to its place. `stored`: the leg's failed attempt that has the place."""
    store, manifest = copier.store, read_upload(folder)
    if manifest is None:
        raise InvalidUpload(f"{MANIFEST} vanished while it was copied")
    verify_upload(folder, manifest, request, copier.arches, cancel)
    if manifest.status == Status.SUCCESS and is_cancelled():
        raise CancelledBeforePublish(manifest)
    if stored is not None:  # another attempt has failed, but this success was announced too
        name = spool_name(request.build_id, request.arch, stored.manifest.attempt)
        move_folder(store.place(stored.place), store.attempts / name)
        log.info("%s had failed, another attempt has succeeded: its logs are in attempts/", name)
    return _move_to_place(store, folder, manifest)


def remove_upload(spool: Path) -> None:
    """Remove an upload that was copied; if its builder still writes to it, the scan of the spool finds it again."""
    try:
        fs.remove(spool)
    except OSError as error:
        log.warning("%s stays in the spool: %s", spool.name, error)


def _is_success(stored: StoredLeg | None) -> bool:
    return stored is not None and stored.manifest.status == Status.SUCCESS


def find_stored(store: StorePaths, build_id: str, arch: str) -> StoredLeg | None:
    """The leg in the place that `index/` names, if it is really this leg."""
    place = _read_index(store, build_id, arch)
    manifest = read_upload_or_none(store.place(place)) if place else None
    if manifest is None or (manifest.build_id, manifest.arch) != (build_id, arch):
        return None
    return StoredLeg(manifest=manifest, place=place)


def _read_index(store: StorePaths, build_id: str, arch: str) -> str:
    try:
        return validators.place(os.readlink(store.index / leg_key(build_id, arch))[len("../") :])
    except (FileNotFoundError, ValueError):
        return ""


def _move_to_place(store: StorePaths, copy: Path, manifest: Manifest) -> StoredLeg:
    place = _find_free_place(store, manifest)
    folder = store.place(place)
    name = leg_key(manifest.build_id, manifest.arch)
    folder.parent.mkdir(parents=True, exist_ok=True)
    if _read_index(store, manifest.build_id, manifest.arch) != place:
        fs.symlink_atomic(store.index / name, f"../{place}")
    try:
        os.rename(copy, folder)
    except OSError as error:
        if error.errno in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOENT):
            raise _Conflict from error
        raise
    fs.sync_ancestors_once(folder, folder.parents[2], store.root)  # the target stays
    if place != manifest.place():
        log.warning("%s: %s is another build's, so it goes to %s", name, manifest.place(), place)
    return StoredLeg(manifest=manifest, place=place)


def _find_free_place(store: StorePaths, manifest: Manifest) -> str:
    """The leg's first place that no other build has; the place that `index/` names comes first."""
    for place in _list_candidate_places(store, manifest):
        if not os.path.lexists(store.place(place)):
            return place
        found = read_upload_or_none(store.place(place))
        if found and (found.build_id, found.arch) == (manifest.build_id, manifest.arch):
            # The leg is there, but the disk has lost its entry in `index/`.
            fs.symlink_atomic(store.index / leg_key(manifest.build_id, manifest.arch), f"../{place}")
            raise _Conflict
    raise InvalidUpload(f"{manifest.place()} and the {_MAX_SECONDS} seconds after it are all other builds'")


def _list_candidate_places(store: StorePaths, manifest: Manifest) -> Iterator[str]:
    first = manifest.place()
    indexed = _read_index(store, manifest.build_id, manifest.arch)
    # Otherwise an attempt at another version wrote the entry, and never got there.
    if _without_timestamp(indexed) == _without_timestamp(first):
        yield indexed
    yield first
    at = datetime.strptime(manifest.request.timestamp, validators.TIMESTAMP_FORMAT).replace(tzinfo=timezone.utc)
    for _ in range(_MAX_SECONDS):
        if at >= _LAST_SECOND:
            return
        at += timedelta(seconds=1)
        yield manifest.place(f"{at.year:04d}{at:%m%d%H%M%S}")


def _without_timestamp(place: str) -> list[str]:
    parts = place.split("/")
    return parts[:3] + parts[4:]


# --- uploads that are not published


def archive_logs(copier: UploadCopier, spool: Path) -> None:
    """Keep the logs of an upload that decides nothing in `attempts/`, and remove it. Safe to repeat."""
    try:
        with copier.copied_logs(spool) as folder:
            move_folder(folder, copier.store.attempts / spool.name)
    except FileNotFoundError:
        return
    except NotADirectoryError:
        log.warning("%s is no folder", spool.name)
    remove_upload(spool)
    log.info("%s decides nothing: its logs are in attempts/", spool.name)


def move_folder(folder: Path, goal: Path) -> None:
    """Move a folder to where folders are kept, synced; if one of that name is kept already, that one stays."""
    try:
        for path in [*folder.iterdir(), folder]:
            fs.sync(path)
        os.rename(folder, goal)
    except FileNotFoundError:
        return  # another process did it
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
            raise
        fs.remove(folder)
    fs.sync(goal.parent)


# --- messages


def make_published_event(leg: StoredLeg, urls: StoreUrls) -> BuildEvent:
    manifest = leg.manifest
    names = [file.name for file in leg.listed_files]
    moved = "" if leg.place == manifest.place() else f"{manifest.place()} is another build's: it is in {leg.place}"
    return event_for(
        manifest.request,
        Status.PUBLISHED,
        arch=manifest.arch,
        timestamp=leg.timestamp,
        attempt=manifest.attempt,
        reason=validators.line(500)("; ".join(filter(None, (moved, leg.ruling.notes)))),
        place=leg.place,
        url=urls.place(leg.place),
        rpm_count=len(names),
        rpms=names[:MAX_NAMED_RPMS],
        skipped=dict(manifest.skipped),
        **_attempt_fields(manifest),
    )


def _attempt_fields(manifest: Manifest) -> dict[str, Any]:
    names = ("builder_fqdn", "pkgname", "evr", "started", "finished", "exit_code")
    return {name: getattr(manifest, name) for name in names}


def make_sign_request(leg: StoredLeg) -> SignRequest:
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


def make_cancelled_event(
    request: RepogenRequest, manifest: Manifest | None, why: str, urls: StoreUrls
) -> BuildEvent | None:
    """The event for a leg that was built and is cancelled; None if its build request is unknown."""
    build_request = manifest.request if manifest else request.request
    if build_request is None:
        return None
    about = {"arch": request.arch, "attempt": request.attempt, "reason": why, "finished": round(time.time(), 3)}
    if manifest:
        about.update(_attempt_fields(manifest), phases=manifest.phases)
    url = urls.attempt(request.build_id, request.arch, request.attempt)
    return event_for(build_request, Status.CANCELLED, url=url, **about)

# SPDX-License-Identifier: Apache-2.0
"""Rejects uploads: moves them to `rejected/`, and has their build made again or announces that it is given up.

The consequence is written beside the folder before that is moved, so whoever gets the job after a crash completes it.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
from pathlib import Path
from typing import Any

import attr

from reimzul.core import fs, validators
from reimzul.core.arch import Arches
from reimzul.core.beanstalk import CREATEREPO, PRIORITY, Broker, arch_tube
from reimzul.core.control import ControlFlag, requeue_unless_cancelled
from reimzul.core.errors import InvalidMessage
from reimzul.core.event_signature import NO_KEYS, EventKeys
from reimzul.core.message import UPLOAD, BuildRequest, RepogenRequest, Status, event_for
from reimzul.core.retry import CancelToken
from reimzul.core.store_paths import StorePaths, StoreUrls, spool_name
from reimzul.repogen.copier import UploadCopier
from reimzul.repogen.publish import move_folder, remove_upload
from reimzul.repogen.verify import InvalidUpload, read_upload_or_none

log = logging.getLogger(__name__)

#: How often a build is made again because its upload was invalid.
MAX_REBUILDS = 2


@attr.frozen(kw_only=True)
class Rejection:
    reason: str
    requeue: bool  #: whether the build is made again; not if the package itself is at fault
    request: BuildRequest | None = None  #: the request to requeue; None if it cannot be read
    regenerate: bool = False  #: whether it already had its place, so that the repodata may list some of it


def reject_upload(copier: UploadCopier, spool: Path, name: str, rejection: Rejection) -> None:
    """Keep a copy of an upload in `rejected/`, with a note, and remove it; its logs stay readable in `attempts/`.

    Of an upload that exceeds the limits or has more than plain files, the logs alone are kept. Whoever repeats this
    after a crash may find half of the upload removed: the first note and the first copy stay.
    """
    if not _note_path(copier.store, name).exists():
        _write_note(copier.store, name, rejection)
    if not (copier.store.rejected / name).exists():
        _copy_rejected(copier, spool, name)
    remove_upload(spool)


def _copy_rejected(copier: UploadCopier, spool: Path, name: str) -> None:
    try:
        try:
            with copier.copied(spool, CancelToken()) as folder:
                _keep_rejected(copier.store, folder, name)
        except InvalidUpload:
            with copier.copied_logs(spool) as folder:
                _keep_rejected(copier.store, folder, name)
    except FileNotFoundError:
        pass  # another process did it
    except NotADirectoryError:
        log.warning("%s is no folder", name)


def reject_stored(store: StorePaths, folder: Path, name: str, rejection: Rejection) -> None:
    """Move a leg from its place to `rejected/`, with a note; its logs stay readable in `attempts/`."""
    _write_note(store, name, rejection)
    _keep_rejected(store, folder, name)


def _write_note(store: StorePaths, name: str, rejection: Rejection) -> None:
    note = {
        "reason": rejection.reason,
        "again": rejection.requeue,
        "request": rejection.request.to_json() if rejection.request else None,
        "regenerate": rejection.regenerate,
    }
    fs.write_atomic(_note_path(store, name), json.dumps(note, indent=1) + "\n")
    log.error("%s is put aside: %s", name, rejection.reason)


def _keep_rejected(store: StorePaths, folder: Path, name: str) -> None:
    keep_logs(folder, store.attempts / name)
    move_folder(folder, store.rejected / name)


def keep_logs(folder: Path, goal: Path) -> None:
    """Link the logs of an upload into a folder that the http server offers; it offers nothing in `rejected/`."""
    try:
        plain = (entry for entry in os.scandir(folder) if entry.is_file(follow_symlinks=False))
        logs = [entry for entry in plain if not entry.name.endswith(".rpm") and not entry.name.startswith(".")]
    except (FileNotFoundError, NotADirectoryError):
        return
    if not logs or folder.is_symlink():
        return
    goal.mkdir(mode=0o755, exist_ok=True)
    for entry in logs:
        with contextlib.suppress(FileExistsError, FileNotFoundError):
            fs.sync(Path(entry.path))  # before the link: whoever repeats this leaves what is linked as it is
            os.link(entry.path, goal / entry.name, follow_symlinks=False)
        with contextlib.suppress(PermissionError, FileNotFoundError):  # another user's file
            (goal / entry.name).chmod(0o644)
    fs.sync(goal)
    fs.sync(goal.parent)


def read_request(folder: Path, build_id: str) -> BuildRequest | None:
    """The build request of an invalid upload, if its manifest can be read and is of that build."""
    manifest = read_upload_or_none(folder)
    return manifest.request if manifest and manifest.build_id == build_id else None


def read_rejection(store: StorePaths, name: str) -> Rejection | None:
    try:
        raw = json.loads(_note_path(store, name).read_text(encoding="utf-8"))
        return Rejection(
            reason=raw["reason"],
            requeue=bool(raw["again"]),
            request=BuildRequest.from_json(raw["request"]) if raw["request"] else None,
            regenerate=bool(raw.get("regenerate")),
        )
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError, InvalidMessage) as error:
        return Rejection(reason=f"put aside; the note in rejected/ is damaged ({error})", requeue=True)


def _note_path(store: StorePaths, name: str) -> Path:
    return store.rejected / f"{name}.json"


@attr.frozen(kw_only=True)
class RejectionHandler:
    store: StorePaths
    urls: StoreUrls
    arches: Arches
    host: str  #: this host's name, for the request's tries
    event_keys: EventKeys = NO_KEYS

    def handle(self, broker: Broker, message: RepogenRequest, rejection: Rejection) -> None:
        """Do what a rejection asks for. Raises `InvalidMessage` if the build request is unknown."""
        request = rejection.request or message.request
        name = spool_name(message.build_id, message.arch, message.attempt)
        if request is None or request.build_id != message.build_id:
            raise InvalidMessage(f"{name} is put aside, and what was to be built is not known: {rejection.reason}")
        if rejection.regenerate:
            broker.put(CREATEREPO, RepogenRequest(target=message.target), priority=PRIORITY)
        reason = validators.line(400)(rejection.reason)
        about = {"arch": message.arch, "attempt": message.attempt}
        if (self.store.attempts / name).is_dir():
            about["url"] = self.urls.attempt(message.build_id, message.arch, message.attempt)
        # Counted by the reason, since on a small farm a builder may have this host's name.
        rebuilds = len(request.tries) - len(request.builder_faults)
        if rejection.requeue and rebuilds < MAX_REBUILDS and request.arch in self.arches.known:
            where, cancelled = self._requeue(broker, request, reason)
            if cancelled:
                event = event_for(request, Status.CANCELLED, reason=cancelled.cancel_text, **about)
            else:
                event = event_for(request, Status.QUEUED, reason=f"{UPLOAD}{reason}; built again", **about, **where)
        else:
            blamed = f"{UPLOAD}{reason}" if rejection.requeue else reason
            event = self.event_keys.sign(event_for(request, Status.REJECTED, reason=blamed, **about))
        broker.announce(event)

    def _requeue(self, broker: Broker, request: BuildRequest, reason: str) -> tuple[dict[str, Any], ControlFlag | None]:
        """Requeue a build once per round, however many of its legs arrive damaged, and however often this is called."""
        mark = self.store.put_again / f"{request.build_id}.{request.arch}.{len(request.tries)}"
        if os.path.lexists(mark):
            return {}, None
        tube = arch_tube(self.arches.tube_of(request.arch))
        retried = request.with_failed_attempt(self.host, UPLOAD + reason[:280])
        job, cancelled = requeue_unless_cancelled(broker, tube, retried, priority=PRIORITY)
        if not cancelled:
            fs.write_atomic(mark, reason + "\n")
        return {"tube": tube.name, "job": job, "priority": PRIORITY}, cancelled

# SPDX-License-Identifier: Apache-2.0
"""RE"""

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
from reimzul.core.message import UPLOAD, BuildRequest, RepogenRequest, Status, event_for
from reimzul.core.store_paths import StorePaths, StoreUrls, spool_name
from reimzul.repogen.publish import move_folder
from reimzul.repogen.verify import InvalidUpload, read_upload

log = logging.getLogger(__name__)

#: How often a build is made again for a bad upload, before it is given up.
MAX_REBUILDS = 2


@attr.frozen(kw_only=True)
class Rejection:
    """Why an upload was put aside, and what follows."""

    reason: str
    again: bool  #: whether the build is to be made again; not if the package itself is at fault
    request: BuildRequest | None = None  #: what is put again; None where nothing readable says it
    regenerate: bool = False  #: whether it was in its place already, and the repodata may list some of it

    def to_text(self) -> str:
        """As it is kept beside the folder."""
        request = self.request.to_json() if self.request else None
        return json.dumps({**attr.asdict(self, recurse=False), "request": request}, indent=1) + "\n"


def reject(store: StorePaths, folder: Path, name: str, verdict: Rejection) -> None:
    """Move an upload out of the way, with what is to follow from it; its logs stay readable in `attempts/`."""
    fs.write_atomic(_note_path(store, name), verdict.to_text())
    keep_logs(folder, store.attempts / name)
    move_folder(folder, store.rejected / name)
    log.error("%s is put aside: %s", name, verdict.reason)


def keep_logs(folder: Path, kept: Path) -> None:
    """Link the logs of an upload into a folder that the http server offers: it offers none in `rejected/`."""
    try:
        entries = list(os.scandir(folder))
    except (FileNotFoundError, NotADirectoryError):
        return
    logs = [entry for entry in entries if entry.is_file(follow_symlinks=False) and _is_log(entry.name)]
    if not logs or folder.is_symlink():
        return
    kept.mkdir(mode=0o755, exist_ok=True)
    for entry in logs:
        with contextlib.suppress(FileExistsError, FileNotFoundError):
            os.link(entry.path, kept / entry.name, follow_symlinks=False)
        with contextlib.suppress(PermissionError, FileNotFoundError):  # of another user
            (kept / entry.name).chmod(0o644)


def _is_log(name: str) -> bool:
    return not name.endswith(".rpm") and not name.startswith(".")


def read_request(folder: Path, build_id: str) -> BuildRequest | None:
    """What a bad upload answers, where its manifest can be read and is of that build at all."""
    try:
        manifest = read_upload(folder)
    except InvalidUpload:
        return None
    return manifest.request if manifest and manifest.build_id == build_id else None


def read_rejection(store: StorePaths, name: str) -> Rejection | None:
    """What was decided about an upload that was put aside; None where none was."""
    try:
        raw = json.loads(_note_path(store, name).read_text(encoding="utf-8"))
        request = BuildRequest.from_json(raw["request"]) if raw["request"] else None
        decided = {name: bool(raw[name]) for name in ("again", "regenerate") if name in raw}
        return Rejection(reason=raw["reason"], request=request, **decided)
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError, InvalidMessage) as error:
        return Rejection(reason=f"put aside; the note in rejected/ is damaged ({error})", again=True)


def _note_path(store: StorePaths, name: str) -> Path:
    return store.rejected / f"{name}.json"


@attr.frozen(kw_only=True)
class RejectionHandler:
    """Who carries out a verdict: asks for the build again, or says that it is given up."""

    store: StorePaths
    urls: StoreUrls
    arches: Arches
    host: str  #: this host's name, in the request's tries

    def handle(self, broker: Broker, message: RepogenRequest, verdict: Rejection) -> None:
        """Raises `InvalidMessage` where nothing says what was to be built."""
        request = verdict.request or message.request
        if request is None or request.build_id != message.build_id:
            name = spool_name(message.build_id, message.arch, message.attempt)
            raise InvalidMessage(f"{name} is put aside, and what was to be built is not known: {verdict.reason}")
        if verdict.regenerate:
            broker.put(CREATEREPO, RepogenRequest(target=message.target), priority=PRIORITY)
        reason = validators.line(400)(verdict.reason)
        about = {"arch": message.arch, "attempt": message.attempt}
        if (self.store.attempts / spool_name(message.build_id, message.arch, message.attempt)).is_dir():
            about["url"] = self.urls.attempt(message.build_id, message.arch, message.attempt)
        before = len(request.tries) - len(
            request.builder_faults
        )  # by its words: on a small farm the builder has our name
        if verdict.again and before < MAX_REBUILDS and request.arch in self.arches.known:
            where, forbidden = self._requeue(broker, request, reason)
            if forbidden:
                broker.announce(event_for(request, Status.CANCELLED, reason=forbidden.cancel_text, **about))
            else:
                reason = f"{UPLOAD}{reason}; built again"
                broker.announce(event_for(request, Status.QUEUED, reason=reason, **about, **where))
        else:
            blamed = f"{UPLOAD}{reason}" if verdict.again else reason
            broker.announce(event_for(request, Status.REJECTED, reason=blamed, **about))

    def _requeue(self, broker: Broker, request: BuildRequest, reason: str) -> tuple[dict[str, Any], ControlFlag | None]:
        """Once for each round, however many legs of the build arrived damaged, and however often we are told."""
        done = self.store.put_again / f"{request.build_id}.{request.arch}.{len(request.tries)}"
        if os.path.lexists(done):
            return {}, None
        tube = arch_tube(self.arches.tube_of(request.arch))
        again = request.with_failed_attempt(self.host, UPLOAD + reason[:280])
        job, forbidden = requeue_unless_cancelled(broker, tube, again, priority=PRIORITY)
        if not forbidden:
            fs.write_atomic(done, reason + "\n")
        return {"tube": tube.name, "job": job, "priority": PRIORITY}, forbidden

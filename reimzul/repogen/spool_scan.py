# SPDX-License-Identifier: Apache-2.0
"""SC"""

from __future__ import annotations

import contextlib
import logging
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Union

import attr

from reimzul.core import fs, validators
from reimzul.core.manifest import Manifest
from reimzul.core.message import RepogenRequest, Status
from reimzul.core.store_paths import MANIFEST, StorePaths
from reimzul.repogen.verify import InvalidUpload, read_upload

log = logging.getLogger(__name__)

#: Seconds a whole upload may lie there before somebody should have asked for it.
UNREQUESTED_SECONDS = 600


@attr.frozen(kw_only=True)
class UnknownUpload:
    """An upload of which nothing can be made."""

    folder: Path
    reason: str

    @property
    def name(self) -> str:
        """What it is kept under: its own name was any builder's to choose."""
        return re.sub(r"[^A-Za-z0-9._-]", "_", self.folder.name)[:150]


@attr.frozen(kw_only=True)
class IncompleteUpload:
    """An upload that was never completed, by now removed."""

    name: str


Found = Union[RepogenRequest, UnknownUpload, IncompleteUpload]


def scan_spool(store: StorePaths, days: int, now: float) -> Iterator[Found]:
    """What there is to do about the spool; what was abandoned `days` ago is removed here."""
    for folder in sorted(store.spool.iterdir()):
        with contextlib.suppress(FileNotFoundError):  # taken up while we look
            found = _examine(folder, now - UNREQUESTED_SECONDS, now - days * 86400)
            if isinstance(found, IncompleteUpload):
                fs.remove(folder)
            if found is not None:
                yield found


def _examine(folder: Path, unasked: float, abandoned: float) -> Found | None:
    try:
        manifest = read_upload(folder)
        if manifest is None:
            return IncompleteUpload(name=folder.name) if fs.last_change(folder) < abandoned else None
        if fs.last_change(folder / MANIFEST) > unasked:
            return None
        return _make_request(folder.name, manifest)
    except (InvalidUpload, ValueError) as error:
        return UnknownUpload(folder=folder, reason=str(error)) if fs.last_change(folder) < unasked else None


def _make_request(name: str, manifest: Manifest) -> RepogenRequest:
    """What the worker should have asked. Raises `ValueError` where the folder's name is none of ours."""
    parts = name.split(".")
    if len(parts) != 3:
        raise ValueError(f"{validators.quoted(name)} is not called <build id>.<arch>.<attempt>")
    build_id, arch, attempt = parts
    return RepogenRequest(
        target=manifest.request.target,
        build_id=validators.build_id(build_id),
        arch=validators.arch(arch),
        attempt=validators.attempt(attempt),
        place=manifest.place(),
        index=manifest.status == Status.SUCCESS and not manifest.request.scratch,
        logs=manifest.status not in (Status.SUCCESS, Status.FAILED),
    )

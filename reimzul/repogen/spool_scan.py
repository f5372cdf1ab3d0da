# SPDX-License-Identifier: Apache-2.0
"""Looks through the spool for complete uploads that nobody asks for, and for uploads that were never completed."""

from __future__ import annotations

import contextlib
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

#: How long a complete upload may lie in the spool without a request for it.
UNREQUESTED_SECONDS = 600


@attr.frozen(kw_only=True)
class UnknownUpload:
    """An upload that cannot be published, as nothing says what it is."""

    folder: Path
    reason: str

    @property
    def name(self) -> str:
        """The name to keep it under: its own could be chosen by any builder."""
        return re.sub(r"[^A-Za-z0-9._-]", "_", self.folder.name)[:150]


@attr.frozen(kw_only=True)
class IncompleteUpload:
    """An upload that was never completed, and has been removed."""

    name: str


SpoolEntry = Union[RepogenRequest, UnknownUpload, IncompleteUpload]


def scan_spool(store: StorePaths, days: int, now: float) -> Iterator[SpoolEntry]:
    """Find what has to be done about the spool; remove uploads that are incomplete since so many days."""
    for folder in sorted(store.spool.iterdir()):
        with contextlib.suppress(FileNotFoundError):  # taken up meanwhile
            found = _examine(folder, now - UNREQUESTED_SECONDS, now - days * 86400)
            if isinstance(found, IncompleteUpload):
                fs.remove(folder)
            if found is not None:
                yield found


def _examine(folder: Path, unrequested_since: float, incomplete_since: float) -> SpoolEntry | None:
    try:
        manifest = read_upload(folder)
        if manifest is None:
            return IncompleteUpload(name=folder.name) if fs.last_change(folder) < incomplete_since else None
        if fs.last_change(folder / MANIFEST) > unrequested_since:
            return None
        return _make_request(folder.name, manifest)
    except (InvalidUpload, ValueError) as error:
        is_old = fs.last_change(folder) < unrequested_since
        return UnknownUpload(folder=folder, reason=str(error)) if is_old else None


def _make_request(name: str, manifest: Manifest) -> RepogenRequest:
    """The request that the worker has not sent. Raises `ValueError` if the folder's name is wrong."""
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

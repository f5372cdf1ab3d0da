# SPDX-License-Identifier: Apache-2.0
"""A leg as it lies in a target, with what the rules of listing ask of it."""

from __future__ import annotations

import contextlib
import uuid
from collections.abc import Mapping
from pathlib import Path

import attr

from reimzul.core import validators
from reimzul.core.errors import InputError, InvalidMessage
from reimzul.core.manifest import File, Manifest, read_manifest, sha256_of
from reimzul.core.message import NAMESPACE
from reimzul.core.rpm_header import read_header
from reimzul.core.store_paths import StorePaths, leg_key


@attr.frozen(kw_only=True)
class StoredLeg:
    """A leg that lies in its place."""

    place: str
    build_id: str
    arch: str
    parent: str = ""
    srpm_sha256: str = ""
    files: Mapping[str, File] = attr.field(factory=dict)  #: its packages, by file name

    @property
    def name(self) -> str:
        """`<build id>.<arch>`."""
        return leg_key(self.build_id, self.arch)

    def is_sibling_of(self, manifest: Manifest) -> bool:
        """Whether it is another leg of the same build, or of a build that a retry of the same source links to it."""
        request = manifest.request
        if self.arch == manifest.arch:
            return False
        if self.build_id == manifest.build_id:
            return True
        is_linked = bool(request.parent) or self.parent == manifest.build_id
        return is_linked and bool(self.srpm_sha256) and self.srpm_sha256 == request.srpm_sha256


def read_stored_leg(store: StorePaths, place: str) -> StoredLeg | None:
    """The leg in a folder; None where no leg can lie there. A leg of the original's has no manifest, but packages."""
    try:
        validators.place(place)
        folder = store.place(place)
        arch = validators.arch(place.rpartition(".")[2])
    except ValueError:
        return None
    with contextlib.suppress(OSError, InvalidMessage):
        manifest = read_manifest(folder)
        return StoredLeg(
            place=place,
            build_id=manifest.build_id,
            arch=manifest.arch,
            parent=manifest.request.parent,
            srpm_sha256=manifest.request.srpm_sha256,
            files={file.name: file for file in manifest.rpm_files},
        )
    if not folder.is_dir():
        return None
    return StoredLeg(place=place, build_id=uuid.uuid5(NAMESPACE, place).hex, arch=arch, files=_read_packages(folder))


def _read_packages(folder: Path) -> dict[str, File]:
    found = {}
    for path in sorted(folder.glob("*.rpm")):
        with contextlib.suppress(OSError, InputError, ValueError):
            found[path.name] = File(
                name=path.name, size=path.stat().st_size, sha256=sha256_of(path), nevra=read_header(path).nevra
            )
    return found

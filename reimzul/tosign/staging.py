# SPDX-License-Identifier: Apache-2.0
"""Packages laid out for the signer: a whole build by one rename, and never twice.

The packages are copied, not linked: a signer rewrites its files, and what is published must stay as it is listed.
The mark that a build was staged lasts for ever and is written before the rename. So a mark with a folder still in
`.staging` is a rename to be finished, and a mark alone is a build the signer has, or has collected.
"""

from __future__ import annotations

import errno
import hashlib
import logging
import os
import stat
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Callable

import attr

from reimzul.core import fs
from reimzul.core.errors import InvalidMessage
from reimzul.core.manifest import Manifest, read_manifest
from reimzul.core.message import NAMESPACE, SignRequest, Status
from reimzul.core.store_paths import MANIFEST, StorePaths, leg_key
from reimzul.core.unlisted import UnlistedLeg, read_records, replaced_builds

log = logging.getLogger(__name__)

_CHUNK = 1024 * 1024
#: The file beside the packages of a rebuild that names the builds it replaces, one a line.
REPLACES = "replaces"
#: Bytes a folder's name may have (Linux's NAME_MAX).
_NAME_MAX = 255


@attr.frozen(kw_only=True)
class SignableLeg:
    """One build on one arch, as it lies in its place."""

    place: Path
    pkgname: str
    target: str
    arch: str
    build_id: str
    sha256s: dict[str, str | None]  #: each package's; None where nobody has said it
    has_manifest: bool  #: whether a manifest says that these are all

    @property
    def leg(self) -> str:
        """What its mark is called."""
        return leg_key(self.build_id, self.arch)

    @property
    def name(self) -> str:
        """What its folder is called: `<name>-<version-release>.<arch>.<build id>`."""
        return _folder_name(self.stored_at, self.build_id)

    @property
    def stored_at(self) -> str:
        """Its place, seen from the store's root."""
        return "/".join(self.place.parts[-5:])


def _folder_name(place: str, build_id: str) -> str:
    package, _, folder = place.split("/")[2:]
    return f"{package}-{folder}.{build_id}"


def find_signable(store: StorePaths, request: SignRequest) -> list[SignableLeg]:
    """The builds a request means, as far as they are there. Raises `InvalidMessage` where it means none to be signed.

    A place without manifest is of the original's farm; without packages, more is to come.
    """
    found = [_read_leg(folder, request) for folder in _find_places(store, request)]
    return [build for build in found if build.sha256s or build.has_manifest]


def _find_places(store: StorePaths, request: SignRequest) -> list[Path]:
    """One where the request names it; one of the original's, without build id, says only in which folder to look."""
    around = f"repo/{request.target}/{request.pkgname}/{request.timestamp}"
    if request.place:
        if request.place.rpartition("/")[0] != around:
            raise InvalidMessage(f"{request.place} is not a place in {around}")
        folder = store.place(request.place)
        return [folder] if folder.is_dir() else []
    try:
        return sorted(
            Path(entry.path)
            for entry in os.scandir(store.place(around))
            if entry.name.endswith(f".{request.arch}") and entry.is_dir(follow_symlinks=False)
        )
    except (FileNotFoundError, NotADirectoryError):
        return []


def _read_leg(folder: Path, request: SignRequest) -> SignableLeg:
    manifest = _read_manifest(folder)
    if manifest is None and request.build_id:
        raise InvalidMessage(f"{folder} has no {MANIFEST}, so it is not of build {request.build_id}")
    if manifest is not None:
        _check_signable(manifest, request)
        sha256s: dict[str, str | None] = {file.name: file.sha256 for file in manifest.rpm_files}
    else:
        entries = [entry for entry in os.scandir(folder) if entry.name.endswith(".rpm")]
        sha256s = {entry.name: None for entry in entries if entry.is_file(follow_symlinks=False)}
    place = "/".join(folder.parts[-5:])
    build = SignableLeg(
        place=folder,
        pkgname=request.pkgname,
        target=request.target,
        arch=request.arch,
        build_id=manifest.build_id if manifest else uuid.uuid5(NAMESPACE, place).hex,
        sha256s=sha256s,
        has_manifest=manifest is not None,
    )
    if len(build.name) > _NAME_MAX:
        raise InvalidMessage(f"{build.name} is too long for a folder's name")
    return build


def _read_manifest(folder: Path) -> Manifest | None:
    try:
        return read_manifest(folder)
    except FileNotFoundError:
        return None  # of the original's farm


def _check_signable(manifest: Manifest, request: SignRequest) -> None:
    """Raise `InvalidMessage` for what must never get to the signer, whatever the request says."""
    if manifest.status != Status.SUCCESS:
        raise InvalidMessage(f"build {manifest.build_id} for {manifest.arch} has failed: nothing of it is signed")
    if manifest.request.scratch:
        raise InvalidMessage(
            f"build {manifest.build_id} for {manifest.arch} is a scratch build: nothing of it is signed"
        )
    if request.build_id not in ("", manifest.build_id) or request.arch != manifest.arch:
        raise InvalidMessage(f"the place is of build {manifest.build_id} for {manifest.arch}, not the request's")


def stage_leg(store: StorePaths, build: SignableLeg, heed: Callable[[], None]) -> bool:
    """Lay a build out for the signer; false where that was done before. Who calls this holds the lock."""
    records = read_records(store, build.target)
    record = records.get(build.leg, UnlistedLeg(place=build.stored_at))
    replaced = replaced_builds(records, build.build_id, build.arch)
    for leg, old in replaced.items():
        _take_back(store, leg, old.place)
    if record.replaced_by:
        log.info("%s is not staged: build %s has replaced it", build.name, record.replaced_by)
        _take_back(store, build.leg, build.stored_at)
        return False
    staging, mark = store.staging / build.leg, store.staged_marks / build.leg
    if os.path.lexists(mark):
        return staging.is_dir() and _expose(store, build)
    fs.remove(staging)
    packages = {name: sha256 for name, sha256 in build.sha256s.items() if name not in record.left_out}
    if not packages:
        log.info("%s has no packages: nothing to be signed", build.name)
        return False
    _lay_out(build, packages, sorted(replaced), staging, heed)
    fs.sync(store.staging)
    fs.write_atomic(mark, f"{build.target}/{build.name}\n")
    return _expose(store, build)


def _lay_out(
    build: SignableLeg, packages: Mapping[str, str | None], replaced: list[str], staging: Path, heed: Callable[[], None]
) -> None:
    staging.mkdir(parents=True)
    for name, sha256 in sorted(packages.items()):
        _copy(build.place / name, staging / name, sha256, heed)
    if replaced:
        fs.write_atomic(staging / REPLACES, "".join(f"replaces {leg.partition('.')[0]}\n" for leg in replaced))
    fs.sync(staging)


def _take_back(store: StorePaths, leg: str, place: str) -> None:
    """Remove what the signer has not collected of a replaced leg, and its mark; where the signer has it, that stays."""
    staging, mark = store.staging / leg, store.staged_marks / leg
    shown = store.tosign / place.split("/")[1] / _folder_name(place, leg.partition(".")[0])
    if not os.path.lexists(shown) and not os.path.lexists(staging):
        return
    mark.unlink(missing_ok=True)
    fs.sync(store.staged_marks)
    if os.path.lexists(shown):
        fs.remove(staging)
        try:
            os.rename(shown, staging)
        except FileNotFoundError:
            fs.write_atomic(mark, f"{place}\n")  # collected at this moment
    fs.remove(staging)
    log.info("%s: a rebuild has replaced it: taken back, unless it was collected right now", shown.name)


def _expose(store: StorePaths, build: SignableLeg) -> bool:
    final = store.tosign / build.target / build.name
    final.parent.mkdir(exist_ok=True)
    try:
        os.rename(store.staging / build.leg, final)
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise
        # only a disk that lost the mark of a build still to be collected comes here
        fs.remove(store.staging / build.leg)
        return False
    fs.sync_ancestors_once(final, final.parent, store.tosign)
    return True


def _copy(source: Path, goal: Path, sha256: str | None, heed: Callable[[], None]) -> None:
    """Copy a package and check it on its way. Raises `InvalidMessage` where it is not what was published."""
    reckoned = hashlib.sha256()
    with source.open("rb") as original, goal.open("xb") as copy:
        while chunk := original.read(_CHUNK):
            reckoned.update(chunk)
            copy.write(chunk)
            heed()
        copy.flush()
        os.fchmod(copy.fileno(), stat.S_IMODE(os.fstat(original.fileno()).st_mode) | 0o644)
        os.fsync(copy.fileno())
    if sha256 not in (None, reckoned.hexdigest()):
        raise InvalidMessage(f"{source} is not as it was published: its sha256 is {reckoned.hexdigest()}, not {sha256}")

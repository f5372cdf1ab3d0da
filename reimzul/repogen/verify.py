# SPDX-License-Identifier: Apache-2.0
"""Reads uploads, verifies them, and looks through the spool for those that nobody asks for or that never completed.

An upload is verified against its manifest: exactly the named files, each with its size, checksum and NEVRA. All its
packages are for the leg's arch and were built from its source rpm.

A verified copy (`copier.py`) is synced to disk. It contains no text that createrepo_c (0.17 to
1.2) cannot write as XML: that leaves a package out for a control character, and takes bytes that are not UTF-8 for
Latin-1. But libxml2 accepts bytes that only look like UTF-8 (overlong, surrogates, beyond U+10FFFF) and writes them as
they are; then no client can read the metadata of the whole target.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import stat
from collections.abc import Iterator, Mapping
from hashlib import sha256
from pathlib import Path
from typing import Union

import attr

from reimzul.core import fs, validators
from reimzul.core.arch import Arches
from reimzul.core.errors import InputError, InvalidMessage, ReimzulError
from reimzul.core.manifest import File, Manifest, read_manifest
from reimzul.core.message import RepogenRequest, Status
from reimzul.core.retry import CancelToken
from reimzul.core.rpm_header import Header, read_header, read_published_texts
from reimzul.core.store_paths import MANIFEST, StorePaths
from reimzul.core.validators import quoted

log = logging.getLogger(__name__)

#: How long a complete upload may lie in the spool without a request for it.
UNREQUESTED_SECONDS = 600
_CHUNK_BYTES = 1024 * 1024
_CONTROL = re.compile(rb"[\x00-\x08\x0b\x0c\x0e-\x1f]")
_LOOKS_LIKE_UTF8 = re.compile(
    rb"(?:[\x00-\x7f]|[\xc0-\xdf][\x80-\xbf]|[\xe0-\xef][\x80-\xbf]{2}|[\xf0-\xf7][\x80-\xbf]{3})*"
)
_SOURCE_RPM = re.compile(r"(?P<name>.+)-[^-]+-[^-]+\.(?:no)?src\.rpm")
_NO_CHARACTER = re.compile("[\ufffe\uffff]")
#: Bytes quoted on each side of a faulty one.
_CONTEXT_BYTES = 20


class InvalidUpload(ReimzulError):
    """An upload differs from its manifest, or is not the requested one."""


class UnpublishablePackage(InvalidUpload):
    """A package can never be published, whoever builds it."""


def read_upload(folder: Path) -> Manifest | None:
    """Read the manifest of an upload; None if it is not there (yet, or any more). Raises `InvalidUpload`."""
    try:
        if folder.is_symlink() or not stat.S_ISREG((folder / MANIFEST).lstat().st_mode):
            raise InvalidUpload(f"{MANIFEST} is not a plain file in a plain folder")
        return read_manifest(folder)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except InvalidMessage as error:
        raise InvalidUpload(f"{MANIFEST}: {error}") from error


def read_upload_or_none(folder: Path) -> Manifest | None:
    try:
        return read_upload(folder)
    except InvalidUpload:
        return None


def verify_upload(
    folder: Path, manifest: Manifest, request: RepogenRequest, arches: Arches, cancel: CancelToken
) -> None:
    """Raise `InvalidUpload` with the first file that is wrong, and why."""
    verify_identity(manifest, request)
    verify_file_list(folder, manifest)
    headers = {}
    for file in manifest.files:
        verify_checksum(folder / file.name, file, cancel)
        if file.is_rpm:
            try:
                headers[file.name] = verify_nevra(folder / file.name, file, manifest.pkgname)
                if not manifest.request.scratch:
                    verify_texts(folder / file.name, file)
            except InputError as error:
                raise InvalidUpload(str(error).replace(f"{folder}/", "")) from error
    verify_sources(headers, manifest.pkgname)
    verify_arches(headers, manifest.arch, arches)
    fs.sync(folder / MANIFEST)
    fs.sync(folder)


def verify_identity(manifest: Manifest, request: RepogenRequest) -> None:
    found = (manifest.build_id, manifest.arch, manifest.attempt, manifest.request.target)
    wanted = (request.build_id, request.arch, request.attempt, request.target)
    if found != wanted:
        raise InvalidUpload(f"{MANIFEST} is of {' '.join(found)}, not of {' '.join(wanted)}")
    names = {file.name for file in manifest.files}
    if len(names) != len(manifest.files) or MANIFEST in names:
        raise InvalidUpload(f"{MANIFEST} names a file twice, or itself")
    if manifest.status != Status.SUCCESS and manifest.rpm_files:
        raise InvalidUpload(f"{manifest.rpm_files[0].name}: a package of a build that failed")


def verify_file_list(folder: Path, manifest: Manifest) -> None:
    found = set(os.listdir(folder))
    named = {file.name for file in manifest.files} | {MANIFEST}
    if found - named:
        raise InvalidUpload(f"{quoted(min(found - named))} is there and not in {MANIFEST}")
    if named - found:
        raise InvalidUpload(f"{min(named - found)} is not there")


def verify_checksum(path: Path, file: File, cancel: CancelToken) -> None:
    """Raise `InvalidUpload` if a file has another size or checksum; sync it to disk."""
    with path.open("rb", buffering=0) as stream:
        size = os.fstat(stream.fileno()).st_size
        if size != file.size:
            raise InvalidUpload(f"{file.name} has {size} bytes instead of {file.size}")
        digest = sha256()
        while chunk := stream.read(_CHUNK_BYTES):
            digest.update(chunk)
            cancel.raise_if_cancelled()
        if digest.hexdigest() != file.sha256:
            raise InvalidUpload(f"{file.name} has the sha256 {digest.hexdigest()} instead of {file.sha256}")
        os.fsync(stream.fileno())


def verify_nevra(path: Path, file: File, pkgname: str) -> Header:
    """Raise `InvalidUpload` if a package is not what its manifest, its file name and the build say."""
    header = read_header(path)
    nevra = header.nevra
    if nevra != file.nevra:
        raise InvalidUpload(f"{file.name} is {quoted(nevra)} instead of {quoted(file.nevra)}")
    named = re.sub(r"\.nosrc\.rpm\Z", ".src.rpm", file.name)
    if named != f"{_without_epoch(nevra)}.rpm":
        raise InvalidUpload(f"{file.name} is {quoted(nevra)}: it must be called {_without_epoch(nevra)}.rpm")
    if nevra.endswith(".src") and nevra.rsplit("-", 2)[0] != pkgname:
        raise InvalidUpload(f"{file.name} is not the source rpm of {pkgname}")
    return header


def _without_epoch(nevra: str) -> str:
    """name-version-release.arch: rpmbuild leaves the epoch out of file names."""
    return re.sub(r"-\d+:(?=[^-]*-[^-]*\Z)", "-", nevra)


def verify_sources(headers: Mapping[str, Header], pkgname: str) -> None:
    """Raise `InvalidUpload` if a package was not built from the leg's source rpm, of which the first leg has a copy.

    In a leg without a copy all packages name one source rpm of the build's package. Its version and release are not
    known: they may depend on the disttag and on other macros of the buildroot.
    """
    sources = [name for name, header in headers.items() if header.is_source]
    if len(sources) > 1:
        raise InvalidUpload(f"{sources[0]} and {sources[1]} are two source rpms: a build has one")
    expected = sources[0] if sources else ""
    for name, header in headers.items():
        if header.is_source:
            continue
        found = _SOURCE_RPM.fullmatch(header.source_rpm)
        if not (found and found["name"] == pkgname and header.source_rpm == (expected or header.source_rpm)):
            wanted = expected or f"a source rpm of {pkgname}"
            raise InvalidUpload(f"{name} was built from {quoted(header.source_rpm)} (SOURCERPM), not from {wanted}")
        expected = header.source_rpm


def verify_arches(headers: Mapping[str, Header], arch: str, arches: Arches) -> None:
    """Raise `InvalidUpload` if a package is for another arch than its leg."""
    fitting = arches.package_arches(arch)
    for name, header in headers.items():
        if not header.is_source and header.arch not in fitting:
            raise InvalidUpload(
                f"{name} is for {quoted(header.arch)}: a build on {arch} may have packages for {', '.join(fitting)}"
                " (arches.yml)"
            )


def verify_texts(path: Path, file: File) -> None:
    for tag, text in read_published_texts(path):
        flaw = find_xml_flaw(text)
        if flaw:
            raise UnpublishablePackage(f"{file.name} cannot be listed in repodata: its tag {tag} {flaw}")


def find_xml_flaw(text: bytes) -> str:
    """Why a text cannot be part of a repository's metadata; "" if it can."""
    control = _CONTROL.search(text)
    if control:
        return f"has the control character 0x{control[0][0]:02x} in {_quote_around(text, control.start())}"
    try:
        no_character = _NO_CHARACTER.search(text.decode())
    except UnicodeDecodeError as error:
        if _LOOKS_LIKE_UTF8.fullmatch(text):
            return f"has the invalid UTF-8 byte 0x{text[error.start]:02x} in {_quote_around(text, error.start)}"
        return ""
    if no_character:
        at = text.find(no_character[0].encode())
        return f"has U+{ord(no_character[0]):04X}, which is no character, in {_quote_around(text, at)}"
    return ""


def _quote_around(text: bytes, at: int) -> str:
    return repr(text[max(0, at - _CONTEXT_BYTES) : at + _CONTEXT_BYTES])[1:]


# --- uploads in the spool


@attr.frozen(kw_only=True)
class UnknownUpload:
    folder: Path
    reason: str

    @property
    def name(self) -> str:
        """The name to keep it under: its own could be chosen by any builder."""
        return re.sub(r"[^A-Za-z0-9._-]", "_", self.folder.name)[:150]


@attr.frozen(kw_only=True)
class IncompleteUpload:
    name: str  #: of a folder that has been removed


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
        raise ValueError(f"{quoted(name)} is not called <build id>.<arch>.<attempt>")
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

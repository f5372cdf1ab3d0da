# SPDX-License-Identifier: Apache-2.0
"""VE"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import stat
from hashlib import sha256
from pathlib import Path
from typing import Callable

from reimzul.core import fs
from reimzul.core.errors import InputError, InvalidMessage, ReimzulError
from reimzul.core.manifest import File, Manifest, read_manifest
from reimzul.core.message import RepogenRequest, Status
from reimzul.core.rpm_header import read_header, read_published_texts
from reimzul.core.store_paths import MANIFEST
from reimzul.core.validators import quoted

log = logging.getLogger(__name__)

_CHUNK = 1024 * 1024
#: Never wait for a pipe's other end, never follow a link: a builder may have uploaded either.
_OPEN = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


class InvalidUpload(ReimzulError):
    """An upload is not what its manifest says, or not what was asked for."""


class UnpublishablePackage(InvalidUpload):
    """A package can never be published, whoever builds it."""


def read_upload(folder: Path) -> Manifest | None:
    """The manifest of an upload; None where it is not there (yet, or any more). Raises `Mismatch`."""
    try:
        if folder.is_symlink() or not stat.S_ISREG((folder / MANIFEST).lstat().st_mode):
            raise InvalidUpload(f"{MANIFEST} is not a plain file in a plain folder")
        return read_manifest(folder)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except InvalidMessage as error:
        raise InvalidUpload(f"{MANIFEST}: {error}") from error


def verify_upload(folder: Path, manifest: Manifest, request: RepogenRequest, heed: Callable[[], None]) -> None:
    """Raise `Mismatch` with the first file that is wrong, and why; `heed` is called often."""
    verify_identity(manifest, request)
    verify_file_list(folder, manifest)
    for file in manifest.files:
        verify_checksum(folder / file.name, file, heed)
        if file.is_rpm:
            verify_nevra(folder / file.name, file)
            if not manifest.request.scratch:
                verify_texts(folder / file.name, file)
    with contextlib.suppress(PermissionError):  # another user's: what matters is whether it can be read
        folder.chmod(0o755)
    fs.sync(folder / MANIFEST)
    fs.sync(folder)


def verify_identity(manifest: Manifest, request: RepogenRequest) -> None:
    """Raise `Mismatch` where this is the manifest of something else, or speaks of files that cannot be."""
    said = (manifest.build_id, manifest.arch, manifest.attempt, manifest.request.target)
    asked = (request.build_id, request.arch, request.attempt, request.target)
    if said != asked:
        raise InvalidUpload(f"{MANIFEST} is of {' '.join(said)}, not of {' '.join(asked)}")
    names = {file.name for file in manifest.files}
    if len(names) != len(manifest.files) or MANIFEST in names:
        raise InvalidUpload(f"{MANIFEST} names a file twice, or itself")
    if manifest.status != Status.SUCCESS and manifest.rpm_files:
        raise InvalidUpload(f"{manifest.rpm_files[0].name}: a package of a build that failed")


def verify_file_list(folder: Path, manifest: Manifest) -> None:
    """Raise `Mismatch` where a file is missing, or one is there that the manifest does not name."""
    there = set()
    for entry in list(os.scandir(folder)):
        if not entry.is_file(follow_symlinks=False):
            raise InvalidUpload(f"{quoted(entry.name)} is no plain file")
        if entry.name.startswith("."):
            # rsync's own, left by an upload that was cut: no manifest can name such a file
            log.info("%s: %s removed, the rest of a broken transfer", folder.name, quoted(entry.name))
            os.unlink(entry.path)
        else:
            there.add(entry.name)
    named = {file.name for file in manifest.files} | {MANIFEST}
    if there - named:
        raise InvalidUpload(f"{quoted(min(there - named))} is there and not in {MANIFEST}")
    if named - there:
        raise InvalidUpload(f"{min(named - there)} is not there")


def verify_checksum(path: Path, file: File, heed: Callable[[], None]) -> None:
    """Raise `Mismatch` where a file has not the size and checksum it should have; have the disk keep it."""
    with os.fdopen(os.open(path, _OPEN), "rb", buffering=0) as stream:
        size = os.fstat(stream.fileno()).st_size
        if size != file.size:
            raise InvalidUpload(f"{file.name} has {size} bytes instead of {file.size}")
        digest = sha256()
        while chunk := stream.read(_CHUNK):
            digest.update(chunk)
            heed()
        if digest.hexdigest() != file.sha256:
            raise InvalidUpload(f"{file.name} has the sha256 {digest.hexdigest()} instead of {file.sha256}")
        with contextlib.suppress(PermissionError):
            os.fchmod(stream.fileno(), 0o644)
        os.fsync(stream.fileno())


def verify_nevra(path: Path, file: File) -> None:
    """Raise `Mismatch` where a file is not the package its manifest says."""
    try:
        nevra = read_header(path).nevra
    except InputError as error:
        raise InvalidUpload(str(error).replace(f"{path.parent}/", "")) from error
    if nevra != file.nevra:
        raise InvalidUpload(f"{file.name} is {quoted(nevra)} instead of {quoted(file.nevra)}")


def verify_texts(path: Path, file: File) -> None:
    """Raise `Unpublishable` if createrepo_c cannot write a text of the package as XML."""
    try:
        for tag, text in read_published_texts(path):
            flaw = find_xml_flaw(text)
            if flaw:
                raise UnpublishablePackage(f"{file.name} cannot be listed in repodata: its tag {tag} {flaw}")
    except InputError as error:
        raise InvalidUpload(str(error).replace(f"{path.parent}/", "")) from error


_CONTROL = re.compile(rb"[\x00-\x08\x0b\x0c\x0e-\x1f]")
_FORM_OF_UTF8 = re.compile(
    rb"(?:[\x00-\x7f]|[\xc0-\xdf][\x80-\xbf]|[\xe0-\xef][\x80-\xbf]{2}|[\xf0-\xf7][\x80-\xbf]{3})*"
)
_NO_CHARACTER = re.compile("[\ufffe\uffff]")
#: Bytes shown on each side of the one at fault.
_AROUND = 20


def find_xml_flaw(text: bytes) -> str:
    """Say why a text cannot be part of a repository's metadata; "" if it can."""
    control = _CONTROL.search(text)
    if control:
        return f"has the control character 0x{control[0][0]:02x} in {_quote_around(text, control.start())}"
    try:
        no_character = _NO_CHARACTER.search(text.decode())
    except UnicodeDecodeError as error:
        if _FORM_OF_UTF8.fullmatch(text):
            return f"has the invalid UTF-8 byte 0x{text[error.start]:02x} in {_quote_around(text, error.start)}"
        return ""
    if no_character:
        at = text.find(no_character[0].encode())
        return f"has U+{ord(no_character[0]):04X}, which is no character, in {_quote_around(text, at)}"
    return ""


def _quote_around(text: bytes, at: int) -> str:
    return repr(text[max(0, at - _AROUND) : at + _AROUND])[1:]

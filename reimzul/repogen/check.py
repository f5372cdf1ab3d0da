# SPDX-License-Identifier: Apache-2.0
"""An upload held against its manifest: every file there and no other, each with its size, checksum and name.

What passes has also reached the disk, and may be read by the http server.
"""

from __future__ import annotations

import contextlib
import logging
import os
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
from reimzul.repogen.xmltext import find_xml_flaw

log = logging.getLogger(__name__)

_CHUNK = 1024 * 1024
#: Never wait for a pipe's other end, never follow a link: a builder may have uploaded either.
_OPEN = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


class Mismatch(ReimzulError):
    """An upload is not what its manifest says, or not what was asked for."""


class Unpublishable(Mismatch):
    """A package can never be published, whoever builds it."""


def arrived(folder: Path) -> Manifest | None:
    """The manifest of an upload; None where it is not there (yet, or any more). Raises `Mismatch`."""
    try:
        if folder.is_symlink() or not stat.S_ISREG((folder / MANIFEST).lstat().st_mode):
            raise Mismatch(f"{MANIFEST} is not a plain file in a plain folder")
        return read_manifest(folder)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except InvalidMessage as error:
        raise Mismatch(f"{MANIFEST}: {error}") from error


def check(folder: Path, manifest: Manifest, request: RepogenRequest, heed: Callable[[], None]) -> None:
    """Raise `Mismatch` with the first file that is wrong, and why; `heed` is called often."""
    belongs(manifest, request)
    complete(folder, manifest)
    for file in manifest.files:
        whole(folder / file.name, file, heed)
        if file.is_rpm:
            package(folder / file.name, file)
            if not manifest.request.scratch:
                check_texts(folder / file.name, file)
    with contextlib.suppress(PermissionError):  # another user's: what matters is whether it can be read
        folder.chmod(0o755)
    fs.sync(folder / MANIFEST)
    fs.sync(folder)


def belongs(manifest: Manifest, request: RepogenRequest) -> None:
    """Raise `Mismatch` where this is the manifest of something else, or speaks of files that cannot be."""
    said = (manifest.build_id, manifest.arch, manifest.attempt, manifest.request.target)
    asked = (request.build_id, request.arch, request.attempt, request.target)
    if said != asked:
        raise Mismatch(f"{MANIFEST} is of {' '.join(said)}, not of {' '.join(asked)}")
    names = {file.name for file in manifest.files}
    if len(names) != len(manifest.files) or MANIFEST in names:
        raise Mismatch(f"{MANIFEST} names a file twice, or itself")
    if manifest.status != Status.SUCCESS and manifest.rpm_files:
        raise Mismatch(f"{manifest.rpm_files[0].name}: a package of a build that failed")


def complete(folder: Path, manifest: Manifest) -> None:
    """Raise `Mismatch` where a file is missing, or one is there that the manifest does not name."""
    there = set()
    for entry in list(os.scandir(folder)):
        if not entry.is_file(follow_symlinks=False):
            raise Mismatch(f"{quoted(entry.name)} is no plain file")
        if entry.name.startswith("."):
            # rsync's own, left by an upload that was cut: no manifest can name such a file
            log.info("%s: %s removed, the rest of a broken transfer", folder.name, quoted(entry.name))
            os.unlink(entry.path)
        else:
            there.add(entry.name)
    named = {file.name for file in manifest.files} | {MANIFEST}
    if there - named:
        raise Mismatch(f"{quoted(min(there - named))} is there and not in {MANIFEST}")
    if named - there:
        raise Mismatch(f"{min(named - there)} is not there")


def whole(path: Path, file: File, heed: Callable[[], None]) -> None:
    """Raise `Mismatch` where a file has not the size and checksum it should have; have the disk keep it."""
    with os.fdopen(os.open(path, _OPEN), "rb", buffering=0) as stream:
        size = os.fstat(stream.fileno()).st_size
        if size != file.size:
            raise Mismatch(f"{file.name} has {size} bytes instead of {file.size}")
        digest = sha256()
        while chunk := stream.read(_CHUNK):
            digest.update(chunk)
            heed()
        if digest.hexdigest() != file.sha256:
            raise Mismatch(f"{file.name} has the sha256 {digest.hexdigest()} instead of {file.sha256}")
        with contextlib.suppress(PermissionError):
            os.fchmod(stream.fileno(), 0o644)
        os.fsync(stream.fileno())


def package(path: Path, file: File) -> None:
    """Raise `Mismatch` where a file is not the package its manifest says."""
    try:
        nevra = read_header(path).nevra
    except InputError as error:
        raise Mismatch(str(error).replace(f"{path.parent}/", "")) from error
    if nevra != file.nevra:
        raise Mismatch(f"{file.name} is {quoted(nevra)} instead of {quoted(file.nevra)}")


def check_texts(path: Path, file: File) -> None:
    """Raise `Unpublishable` if createrepo_c cannot write a text of the package as XML."""
    try:
        for tag, text in read_published_texts(path):
            flaw = find_xml_flaw(text)
            if flaw:
                raise Unpublishable(f"{file.name} cannot be listed in repodata: its tag {tag} {flaw}")
    except InputError as error:
        raise Mismatch(str(error).replace(f"{path.parent}/", "")) from error

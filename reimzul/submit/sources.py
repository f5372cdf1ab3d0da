# SPDX-License-Identifier: Apache-2.0
"""The source rpms of a submission: finds the files that were named, checks them, and brings them into `incoming/`."""

from __future__ import annotations

import contextlib
import filecmp
import fnmatch
import glob
import os
import re
import shutil
import tempfile
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Callable, TextIO

import attr

from reimzul.core import fs, validators
from reimzul.core.arch import Arches
from reimzul.core.errors import InputError, describe_os_error
from reimzul.core.fs import find_unreadable
from reimzul.core.incoming import mark_source
from reimzul.core.manifest import sha256_of
from reimzul.core.rpm_header import Header, read_source_header

#: What stands for a list on stdin.
STDIN = "-"
#: The characters of a shell's patterns; no source rpm that can be submitted has one in its name.
_PATTERN = re.compile(r"[*?\[]")
#: Prefix of unfinished copies, and the seconds after which one is left over from a killed submission.
_COPY_PREFIX, _STALE_COPY_SECONDS = ".incoming-", 86_400


@attr.frozen(kw_only=True)
class SourceFile:
    """A source rpm that can be built."""

    given: str  #: its name or path as it was given
    path: Path
    header: Header


@attr.frozen(kw_only=True)
class Source:
    """A source rpm in `incoming/`."""

    name: str  #: of the file
    sha256: str
    copied: bool  #: whether this submission copied it there
    header: Header


@attr.frozen(kw_only=True)
class RefusedSource:
    srpm: str  #: as it was given
    message: str  #: in one line


# --- what was given


def read_names(given: Iterable[str], stdin: TextIO) -> list[str]:
    """Return what was given, each once, with the lines of stdin in place of `-`. Raises `InputError` for nothing."""
    names: list[str] = []
    for each in given:
        names += filter(None, map(str.strip, stdin)) if each == STDIN else [each]
    if not names:
        raise InputError("stdin lists no source rpm; it should have one per line")
    return list(dict.fromkeys(names))


def expand_pattern(given: str, incoming: Path) -> list[str]:
    """Return the source rpms that a pattern matches in `incoming/` or in this folder. Raises `InputError`."""
    if not _PATTERN.search(given):
        return [given]
    if "/" in given:
        names, where = glob.glob(given), ""
    else:
        names = [name for folder in (incoming, Path()) for name in fnmatch.filter(_list_folder(folder), given)]
        where = f" in {incoming} or here"
    found = sorted({name for name in names if validators.is_source_rpm(name)})
    if not found:
        raise InputError(f"{validators.quoted(given)}: no source rpm{where} matches it")
    return found


def _list_folder(folder: Path) -> list[str]:
    with contextlib.suppress(OSError):
        return os.listdir(folder)
    return []


def find_source(given: str, incoming: Path) -> Path:
    """The file that is meant: one in `incoming/`, else a path. Raises `InputError` for neither, and for either."""
    if not given.isprintable():
        raise InputError(f"{validators.quoted(given)} is not accepted as a file name: it has unprintable characters")
    inside, path = incoming / given, Path(given)
    if "/" not in given and os.path.isfile(inside):  # Path.is_file raises for a name too long
        if os.path.isfile(path) and not _has_same_content(inside, path):
            raise InputError(
                f"{given}: the file of that name in this folder is not the one in incoming/; "
                f"give ./{given} for the one here, {inside} for the other"
            )
        return inside
    if os.path.isfile(path):
        return path
    if "/" in given:
        raise InputError(f"{given}: no such file")
    raise InputError(f"{given}: not in {incoming}, and no such file here")


def _has_same_content(one: Path, other: Path) -> bool:
    try:
        return os.path.samefile(one, other) or filecmp.cmp(one, other, shallow=False)
    except OSError as error:
        raise InputError(f"{error.filename or other}: {describe_os_error(error)}") from None


# --- checks of each


def check_sources(
    names: Iterable[str], incoming: Path, arches: Sequence[str], known: Arches, warn: Callable[[str], None]
) -> tuple[list[SourceFile], list[RefusedSource]]:
    """Return the source rpms that can be built for all arches, and those that cannot, in the order they were given.

    Calls `warn` for each arch that only mock can decide on.
    """
    found: dict[str, SourceFile] = {}
    refused = []
    for given in names:
        try:
            for name in expand_pattern(given, incoming):
                try:
                    _add_source(found, name, find_source(name, incoming), arches, known, warn)
                except InputError as error:
                    refused.append(refuse_source(name, error))
        except InputError as error:
            refused.append(refuse_source(given, error))
    return list(found.values()), refused


def refuse_source(given: str, error: InputError) -> RefusedSource:
    return RefusedSource(srpm=given, message="; ".join(str(error).splitlines()))


def _add_source(
    found: dict[str, SourceFile],
    given: str,
    path: Path,
    arches: Sequence[str],
    known: Arches,
    warn: Callable[[str], None],
) -> None:
    """Add a source rpm, by its name-version-release, unless the same file is there. Raises `InputError`."""
    header = read_source_header(path)
    package = f"{header.name}-{header.evr}"
    if package in found:
        if _has_same_content(found[package].path, path):
            return
        raise InputError(f"{path}: {package} is given twice, as {found[package].path} too")
    for doubt in check_arches(path.name, header, arches, known):
        warn(doubt)
    found[package] = SourceFile(given=given, path=path, header=header)


def check_arches(name: str, header: Header, arches: Sequence[str], known: Arches) -> list[str]:
    """Raise `InputError` with a line for each arch that the package excludes.

    Returns a warning for each arch that only mock can decide on, because the header has an unexpanded macro.
    """
    reasons = [(arch, known.exclusion_reason(arch, header)) for arch in arches]
    faults = [f"{name} is not built for {arch}: {reason}" for arch, reason in reasons if reason]
    if faults:
        raise InputError("\n".join(faults))
    doubts = [(arch, known.exclusion_doubt(arch, header)) for arch in arches]
    return [f"mock decides whether {name} is built for {arch}: {doubt}, unexpanded" for arch, doubt in doubts if doubt]


# --- into incoming/


def import_sources(files: Iterable[SourceFile], incoming: Path) -> tuple[list[Source], list[RefusedSource]]:
    """Copy each source rpm to `incoming/` that is elsewhere; return those that are there, and those that are not."""
    imported, refused = [], []
    for file in files:
        try:
            imported.append(import_source(file, incoming))
        except InputError as error:
            refused.append(refuse_source(file.given, error))
    return imported, refused


def import_source(file: SourceFile, incoming: Path) -> Source:
    """Copy a source rpm to `incoming/` if it is elsewhere. Raises `InputError`, leaving nothing."""
    path = file.path
    try:
        name = validators.srpm(path.name)
    except ValueError as error:
        raise InputError(f"{path}: {error}") from None
    place = incoming / name
    try:
        if place.exists() and path.resolve() == place.resolve():
            mark_source(place)
            _check_readable(place)
            return Source(name=name, sha256=sha256_of(place), copied=False, header=file.header)
    except OSError as error:  # removed meanwhile
        raise InputError(f"{path}: {describe_os_error(error)}") from error
    try:
        _remove_stale_copies(incoming)
        sha256, copied = _copy_in(path, place)
    except OSError as error:  # the folder cannot be written to, or is full
        reason = describe_os_error(error)
        raise InputError(f"{incoming}: {name} cannot be copied in: {reason}") from error
    return Source(name=name, sha256=sha256, copied=copied, header=file.header)


def _check_readable(place: Path) -> None:
    if bar := find_unreadable(place, place.parent):
        raise InputError(f"no builder can download it: {bar}")


def _remove_stale_copies(incoming: Path) -> None:
    for copy in incoming.glob(f"{_COPY_PREFIX}*"):
        with contextlib.suppress(OSError):
            if time.time() - copy.stat().st_mtime > _STALE_COPY_SECONDS:
                copy.unlink()


def _copy_in(path: Path, place: Path) -> tuple[str, bool]:
    """Copy to a temporary name, then link(2): that never replaces a file, and shows the whole file or none.

    Returns the file's sha256, and whether it was not there yet.
    """
    descriptor, copy = tempfile.mkstemp(prefix=_COPY_PREFIX, dir=place.parent)
    try:
        with open(descriptor, "wb") as sink, path.open("rb") as source:
            shutil.copyfileobj(source, sink)
            os.fchmod(sink.fileno(), 0o644)  # the web server reads it as another user
            sink.flush()
            os.fsync(sink.fileno())
        _check_readable(Path(copy))
        digest = sha256_of(Path(copy))
        copied = _link_in(Path(copy), place, digest)
    finally:
        os.unlink(copy)
    fs.sync(place.parent)  # the request that is put next needs the file after a power cut too
    return digest, copied


def _link_in(copy: Path, place: Path, digest: str) -> bool:
    """Give a copy its name; return False if the same file has it already. Raises `InputError` if another has it."""
    while True:
        try:
            os.link(copy, place)
        except FileExistsError:
            try:
                mark_source(place)
                is_same = sha256_of(place) == digest
            except FileNotFoundError:
                if os.path.lexists(place):  # a link that leads nowhere
                    raise
                continue  # removed meanwhile
            if not is_same:
                raise InputError(
                    f"{place}: a different file of that name is there already; "
                    "submit that one by this path, or give yours another release"
                ) from None
            _check_readable(place)
            return False
        return True

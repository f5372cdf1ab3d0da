# SPDX-License-Identifier: Apache-2.0
"""The source rpms of a submission: finds the files that were named, checks them, and brings them into `incoming/`."""

from __future__ import annotations

import contextlib
import filecmp
import fnmatch
import glob
import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Callable, TextIO

import attr

from reimzul.core import validators
from reimzul.core.arch import Arches
from reimzul.core.errors import InputError, describe_os_error
from reimzul.core.rpm_header import Header, read_source_header
from reimzul.history.incoming import copy_source

#: What stands for a list on stdin.
STDIN = "-"
#: The characters of a shell's patterns; no source rpm that can be submitted has one in its name.
_PATTERN = re.compile(r"[*?\[]")


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
    sha256, copied = copy_source(file.path, incoming)
    return Source(name=file.path.name, sha256=sha256, copied=copied, header=file.header)

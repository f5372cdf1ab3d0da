# SPDX-License-Identifier: Apache-2.0
"""Finds a source rpm in `incoming/`, or copies it there, completely or not at all."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
import time
from pathlib import Path

import attr

from reimzul.core import validators
from reimzul.core.errors import InputError
from reimzul.core.manifest import sha256_of
from reimzul.core.readable import find_unreadable
from reimzul.core.rpm_header import Header, read_source_header

#: Prefix of unfinished copies, and the seconds after which one is left over from a killed submission.
_COPY_PREFIX, _STALE_COPY_SECONDS = ".incoming-", 86_400


@attr.frozen(kw_only=True)
class Source:
    name: str  #: of the file
    sha256: str
    header: Header
    copied: bool  #: whether this submission copied it there


def find_source(given: str, incoming: Path) -> Path:
    """The file that `-s` names: one in `incoming/`, else a path. Raises `InputError` where there is neither."""
    if not given.isprintable():
        raise InputError(f"{validators.quoted(given)} is not accepted as a file name: it has unprintable characters")
    inside = incoming / given
    if "/" not in given and os.path.isfile(inside):  # Path.is_file raises for a name too long
        return inside
    path = Path(given)
    if os.path.isfile(path):
        return path
    if "/" in given:
        raise InputError(f"{given}: no such file")
    raise InputError(f"{given}: not in {incoming}, and no such file here")


def import_source(path: Path, incoming: Path) -> Source:
    """Check a source rpm, and copy it to `incoming/` if it is elsewhere. Raises `InputError`, leaving nothing."""
    try:
        name = validators.srpm(path.name)
    except ValueError as error:
        raise InputError(f"{path}: {error}") from None
    header = read_source_header(path)
    place = incoming / name
    if place.exists() and path.resolve() == place.resolve():
        _check_readable(place)
        return Source(name=name, sha256=sha256_of(place), header=header, copied=False)
    try:
        _remove_stale_copies(incoming)
        return _copy_in(path, place, header)
    except OSError as error:  # the folder cannot be written to, or is full
        reason = (error.strerror or str(error)).lower()
        raise InputError(f"{incoming}: the file cannot be copied in: {reason}") from error


def _check_readable(place: Path) -> None:
    """Raise `InputError` with the fix where the web server may not read a file in `incoming/`."""
    if bar := find_unreadable(place, place.parent):
        raise InputError(f"no builder can download it: {bar}")


def _remove_stale_copies(incoming: Path) -> None:
    for copy in incoming.glob(f"{_COPY_PREFIX}*"):
        with contextlib.suppress(OSError):
            if time.time() - copy.stat().st_mtime > _STALE_COPY_SECONDS:
                copy.unlink()


def _copy_in(path: Path, place: Path, header: Header) -> Source:
    """Copy to a temporary name, then link(2): that never replaces a file, and shows the whole file or none."""
    descriptor, copy = tempfile.mkstemp(prefix=_COPY_PREFIX, dir=place.parent)
    try:
        with open(descriptor, "wb") as sink, path.open("rb") as source:
            shutil.copyfileobj(source, sink)
            os.fchmod(sink.fileno(), 0o644)  # the web server reads it as another user
            sink.flush()
            os.fsync(sink.fileno())
        _check_readable(Path(copy))
        digest = sha256_of(Path(copy))
        try:
            os.link(copy, place)
            copied = True
        except FileExistsError:
            if sha256_of(place) != digest:
                raise InputError(
                    f"{place}: a different file of that name is there already; "
                    "submit that one by its name alone, or give yours another release"
                ) from None
            _check_readable(place)
            copied = False
    finally:
        os.unlink(copy)
    return Source(name=place.name, sha256=digest, header=header, copied=copied)

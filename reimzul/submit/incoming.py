# SPDX-License-Identifier: Apache-2.0
"""`incoming/`: finding a source rpm there, or bringing one in, whole or not at all."""

from __future__ import annotations

import contextlib
import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import attr

from reimzul.core import validators
from reimzul.core.errors import InputError
from reimzul.core.manifest import sha256_of
from reimzul.core.readable import find_unreadable
from reimzul.core.rpm_header import Header, read_source_header

#: How the names of copies begin that are being made, and the seconds after which nobody is making one any more.
_BESIDE, _LEFT = ".incoming-", 86_400


@attr.frozen(kw_only=True)
class Source:
    """A source rpm that lies in `incoming/`."""

    name: str  #: of the file
    sha256: str
    header: Header
    copied: bool  #: whether we brought it in


def find(given: str, incoming: Path) -> Path:
    """The file `-s` names: of `incoming/`, else a path; where it is in neither, an `InputError` says so."""
    if not given.isprintable():
        raise InputError(f"{validators.quoted(given)} is no name of a file we take: it has unprintable characters")
    inside = incoming / given
    if "/" not in given and os.path.isfile(inside):  # Path.is_file raises for a name too long
        return inside
    path = Path(given)
    if os.path.isfile(path):
        return path
    if "/" in given:
        raise InputError(f"{given}: no such file")
    raise InputError(f"{given}: not in {incoming}, and no such file here")


def bring_in(path: Path, incoming: Path) -> Source:
    """Check a source rpm and have it in `incoming/`. Raises `InputError`; nothing is left behind then."""
    try:
        name = validators.srpm(path.name)
    except ValueError as error:
        raise InputError(f"{path}: {error}") from None
    header = read_source_header(path)
    place = incoming / name
    if place.exists() and path.resolve() == place.resolve():
        _check_readable(place)
        return Source(name=name, sha256=sha256_of(place), header=header, copied=False)
    with _told(incoming):
        _sweep(incoming)
        return _copy_in(path, place, header)


def _check_readable(place: Path) -> None:
    """Raise `InputError` with the fix where the web server may not read a file of `incoming/`."""
    if bar := find_unreadable(place, place.parent):
        raise InputError(f"no builder can download it: {bar}")


def _sweep(incoming: Path) -> None:
    """Remove the copies that killed submissions left half-made a day ago or earlier."""
    for left in incoming.glob(f"{_BESIDE}*"):
        with contextlib.suppress(OSError):
            if time.time() - left.stat().st_mtime > _LEFT:
                left.unlink()


def _copy_in(path: Path, place: Path, header: Header) -> Source:
    """Copy beside the place, then link(2) into it: that never replaces, and shows the whole file or none."""
    import tempfile  # the half of the submissions that name a file of incoming/ does without

    descriptor, beside = tempfile.mkstemp(prefix=_BESIDE, dir=place.parent)
    try:
        with open(descriptor, "wb") as sink, path.open("rb") as source:
            shutil.copyfileobj(source, sink)
            os.fchmod(sink.fileno(), 0o644)  # the http server reads it as another user
            sink.flush()
            os.fsync(sink.fileno())
        _check_readable(Path(beside))
        digest = sha256_of(Path(beside))
        try:
            os.link(beside, place)
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
        os.unlink(beside)
    return Source(name=place.name, sha256=digest, header=header, copied=copied)


@contextlib.contextmanager
def _told(incoming: Path) -> Iterator[None]:
    """A folder that cannot be written to, or is full, as one line."""
    try:
        yield
    except OSError as error:
        raise InputError(
            f"{incoming}: the file cannot be copied in: {(error.strerror or str(error)).lower()}"
        ) from error

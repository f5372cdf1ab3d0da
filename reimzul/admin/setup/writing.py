# SPDX-License-Identifier: Apache-2.0
"""Writing this host's files: each appears by one rename, and has its mode and owner from its first byte."""

from __future__ import annotations

import contextlib
import grp
import os
import pwd
import secrets
from collections.abc import Iterable, Iterator
from pathlib import Path

from reimzul.admin.setup.files import Change, Wanted
from reimzul.admin.setup.system import System
from reimzul.admin.setup.written import FILE, checksum, known, text_of
from reimzul.core.errors import ReimzulError


def write(system: System, change: Change) -> str:
    """Make a file what it should be; where what was there is kept, else empty. Raises `ReimzulError`."""
    path = system.at(change.wanted.path)
    kept = change.keeps
    with _told(change.wanted.path):
        path.parent.mkdir(parents=True, exist_ok=True)
        if kept and not system.at(kept).exists():
            _put(system.at(kept), (change.present or "").encode(), change.mode or 0o600, (-1, -1))
        else:
            kept = ""
        there = change.wanted.edited and change.present is not None  # a person's file stays whose it is
        owner = (path.stat().st_uid, path.stat().st_gid) if there else ids(system, change.wanted)
        _put(path, change.wanted.text.encode(), change.wanted.mode, owner)
    return kept


def remember(system: System, changes: Iterable[Change]) -> None:
    """Note what was written, for the next time. Raises `ReimzulError`."""
    wanted = [change.wanted for change in changes if not (change.wanted.secret or change.wanted.edited)]
    if wanted:
        sums = {**known(system), **{one.path: checksum(one.text) for one in wanted}}
        with _told(FILE):
            _put(system.at(FILE), text_of(sums).encode(), 0o644, (-1, -1))


def remove(system: System, path: str) -> None:
    """Take a file away."""
    with _told(path):
        system.at(path).unlink()


def ids(system: System, wanted: Wanted) -> tuple[int, int]:
    """Whom a file belongs to, as numbers; -1 where it stays ours, as in an image."""
    if system.root != Path("/") or os.geteuid():
        return -1, -1
    try:
        user = pwd.getpwnam(wanted.owner)
        return user.pw_uid, grp.getgrnam(wanted.group).gr_gid if wanted.group else user.pw_gid
    except KeyError:
        whom = f"user {wanted.owner} or group {wanted.group or wanted.owner}"
        raise ReimzulError(f"{wanted.path}: there is no {whom}: install what makes it first") from None


def _put(path: Path, content: bytes, mode: int, owner: tuple[int, int]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        with open(os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as sink:
            os.fchown(sink.fileno(), *owner)
            os.fchmod(sink.fileno(), mode)
            sink.write(content)
            sink.flush()
            os.fsync(sink.fileno())
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)


@contextlib.contextmanager
def _told(path: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise ReimzulError(f"{path}: cannot be written: {(error.strerror or str(error)).lower()}") from error

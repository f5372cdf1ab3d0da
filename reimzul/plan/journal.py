# SPDX-License-Identifier: Apache-2.0
"""The journal of a batch, `.batches/<batch>.log` in incoming/: everything that decides its state, a JSON line each.

The state of a batch is its plan and its journal. `reimzul-batch` alone writes the journal, and syncs an entry before
the job that caused it is deleted; others read it while it grows.
"""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import attr

from reimzul.core import fs
from reimzul.core.errors import InputError, InvalidMessage, describe_os_error
from reimzul.core.json_message import encode, parse_json
from reimzul.core.message import BuildEvent


class EntryKind:
    ACCEPTED = "accepted"  #: the plan, by its `plan_sha256`, and the `job` that asked for it: the first entry
    ORDER = "order"  #: a person's order
    PUT = "put"  #: a build of a member was put, held
    PUT_AGAIN = "put again"  #: the job of a member's build was lost; it was put again, held
    EVENT = "event"  #: a build's status changed
    RELEASED = "released"  #: the job of a member's build is released; `stale`: against an old build, and why
    HELD = "held"  #: that job was taken back
    CANCELLING = "cancelling"  #: the control flag that cancels a member's build is set
    ENDED = "ended"  #: a member ended by the batch's own decision, with this status and reason
    PAUSED = "paused"  #: the batch paused itself, and why
    ANNOUNCED = "announced"  #: people were notified of something about the batch, by its `key`
    RESTS = "rests"  #: nothing runs, and members wait behind failed ones
    OVER = "over"


#: What happened: `kind`, and the keys that belong to it (`BatchState.apply`).
Entry = Mapping[str, Any]


def event_entry(event: BuildEvent, at: float) -> Entry:
    return {"kind": EntryKind.EVENT, "at": at, "event": event.to_json()}


@attr.define
class Journal:
    """The writer. It owns the file while it is open."""

    path: Path
    _descriptor: int = attr.field(init=False)

    def __attrs_post_init__(self) -> None:
        is_new = not self.path.exists()
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._descriptor = os.open(self.path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o644)
        if is_new:
            fs.sync(self.path.parent)
        self._drop_partial_line()

    def _drop_partial_line(self) -> None:
        """Cut off what a kill or a full disk has left of the last entry."""
        body = self.path.read_bytes()
        whole = body.rfind(b"\n") + 1
        if whole != len(body):
            os.ftruncate(self._descriptor, whole)

    def append(self, entries: Iterable[Entry], *, sync: bool = True) -> None:
        """Add entries, all or none. Raises `OSError`."""
        block = b"".join(encode(entry) + b"\n" for entry in entries)
        if not block:
            return
        size = os.fstat(self._descriptor).st_size
        try:
            written = os.write(self._descriptor, block)
            if written < len(block):
                raise OSError(errno.ENOSPC, "the disk is full")
            if sync:
                self.sync()
        except OSError:
            os.ftruncate(self._descriptor, size)
            raise

    def sync(self) -> None:
        os.fsync(self._descriptor)

    def close(self) -> None:
        os.close(self._descriptor)


@attr.define
class JournalReader:
    """Reads a journal while it grows."""

    path: Path
    _offset: int = attr.field(default=0, init=False)
    _number: int = attr.field(default=0, init=False)  #: of lines that were read

    def read_new(self) -> Iterator[Entry]:
        """Yield the whole entries since the last call. Raises `InputError` for a file that is no journal."""
        try:
            with self.path.open("rb") as stream:
                stream.seek(self._offset)
                for line in stream:
                    if not line.endswith(b"\n"):
                        return  # its writer is just adding it, or was killed
                    self._offset, self._number = self._offset + len(line), self._number + 1
                    yield _parse_entry(line, self.path, self._number)
        except OSError as error:
            raise InputError(f"{self.path}: {describe_os_error(error)}") from None

    def has_shrunk(self) -> bool:
        """Whether entries that were read are gone: their writer could not sync them, and will write others."""
        try:
            return self.path.stat().st_size < self._offset
        except OSError:
            return False


def read_journal(path: Path) -> Iterator[Entry]:
    """Yield the whole entries of a journal. Raises `InputError` for a file that is no journal."""
    return JournalReader(path).read_new()


def _parse_entry(line: bytes, path: Path, number: int) -> Entry:
    try:
        entry = parse_json(line)
    except InvalidMessage as error:
        raise InputError(f"{path}: line {number}: {error}") from None
    if not isinstance(entry.get("kind"), str):
        raise InputError(f"{path}: line {number}: an entry without a kind: {json.dumps(entry)[:80]}")
    return entry

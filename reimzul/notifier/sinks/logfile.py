# SPDX-License-Identifier: Apache-2.0
"""The log of builds: one line per event, as the original wrote them, in one file for people and grep.

The time in a line is that of the event's announcement, not of writing: after the notifier was down the log still shows
when things happened, and the same event always makes the same line. So a notifier that was killed while writing finds
out what it had written (except for events of the original's worker, which have no time).
"""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path

import attr

from reimzul.core import validators
from reimzul.core.message import BuilderEvent, BuildEvent, Event, Refusal
from reimzul.core.settings import Settings
from reimzul.history.result_rules import Notification
from reimzul.notifier.delivery import Sink, SinkUnavailable

#: How many bytes of the log's end are read to see what was written before a crash: many times one batch.
TAIL_BYTES = 1 << 20


def format_line(event: Event) -> str:
    when = time.asctime(time.localtime(event.at or time.time()))
    if isinstance(event, BuilderEvent):
        text = f"Builder {event.builder} status {event.status}: {event.reason}"
    else:
        text = _refusal(event) if isinstance(event, Refusal) else _build(event)
    return validators.line(2000)(f"[{when}] {text}")


def _is_in(written: Collection[str], event: Event) -> bool:
    """Whether an event was written; a time that was corrected twice may differ by 1 s."""
    return any(format_line(attr.evolve(event, at=max(0.0, event.at + off))) in written for off in (0, -1, 1))


def _build(event: BuildEvent) -> str:
    return (
        f"Build job SRPM {event.srpm} ({event.timestamp}) for arch {event.arch} builder {event.builder_fqdn} "
        f"status {event.status} [{event.evr}] (Scratch job: {event.scratch}) submitted by {event.submitter}"
    )


def _refusal(event: Refusal) -> str:
    by = f" by {event.host}" if event.host else ""
    begins = validators.quoted(event.begins, 200)
    return f"Refused job {event.job} of tube {event.tube}{by}: {event.reason} (it begins {begins})"


class LogSink(Sink):
    name = "log"

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file = -1
        self._is_whole = True  #: whether the file ends with a newline

    @classmethod
    def from_settings(cls, settings: Settings) -> LogSink:
        return cls(settings.logs.logfile)

    def deliver(self, notices: Sequence[Notification]) -> Iterator[Notification]:
        try:
            self._reopen()
            written = self._last_lines() if any(notice.maybe_sent for notice in notices) else frozenset()
            new = [each.event for each in notices if not (each.maybe_sent and _is_in(written, each.event))]
            self._append([format_line(event) for event in new])
        except OSError as error:
            raise SinkUnavailable(f"{self._path}: {error.strerror or error}") from error
        yield from notices

    def close(self) -> None:
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    def _reopen(self) -> None:
        """Open the file of that name: logrotate may have put another there, or none."""
        if self._file >= 0 and not self._is_ours():
            self.close()
        if self._file < 0:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._file = os.open(self._path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o644)
            size = os.fstat(self._file).st_size
            self._is_whole = size == 0 or os.pread(self._file, 1, size - 1) == b"\n"

    def _is_ours(self) -> bool:
        try:
            return os.path.samestat(os.stat(self._path), os.fstat(self._file))
        except FileNotFoundError:
            return False

    def _append(self, lines: Sequence[str]) -> None:
        """Write whole lines or none: if a full disk takes only a part of them, the part is removed again."""
        if not lines:
            return
        block = ("" if self._is_whole else "\n").encode() + "".join(f"{line}\n" for line in lines).encode()
        written = os.write(self._file, block)
        if written < len(block):
            os.ftruncate(self._file, os.fstat(self._file).st_size - written)
            raise OSError(errno.ENOSPC, "the disk is full")
        self._is_whole = True

    def _last_lines(self) -> frozenset[str]:
        size = os.fstat(self._file).st_size
        end = os.pread(self._file, TAIL_BYTES, max(0, size - TAIL_BYTES))
        return frozenset(end.decode("utf-8", "replace").split("\n"))

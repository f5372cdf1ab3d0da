# SPDX-License-Identifier: Apache-2.0
"""The log of builds: one line an event, in the original's words, in one file for people and grep.

The time in front is the one at which the event was announced, not the one of writing: after the notifier was down
the log still says when things happened, and the same event always makes the same line. By that a notifier that was
killed in mid-write knows what it had written (not for an event of the original's worker, which says no time).
"""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path

import attr

from reimzul.core import validators
from reimzul.core.config import Settings
from reimzul.core.message import BuilderEvent, BuildEvent, Event, Refusal
from reimzul.history.result_rules import Notification
from reimzul.notifier.sinks.base import Sink, SinkAway

#: How much of the log's end is read to see what was written before a crash: many times one batch.
TAIL = 1 << 20


def line_of(event: Event) -> str:
    """An event as one line, whatever its fields hold."""
    when = time.asctime(time.localtime(event.at or time.time()))
    if isinstance(event, BuilderEvent):
        words = f"Builder {event.builder} status {event.status}: {event.reason}"
    else:
        words = _refusal(event) if isinstance(event, Refusal) else _build(event)
    return validators.line(2000)(f"[{when}] {words}")


def _is_in(written: Collection[str], event: Event) -> bool:
    """Whether an event was written; where its sender's clock is off, its time is reckoned anew, and may be 1 s off."""
    return any(line_of(attr.evolve(event, at=max(0.0, event.at + off))) in written for off in (0, -1, 1))


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
    """Appends to the log of builds."""

    name = "log"

    def __init__(self, path: Path) -> None:
        self._path = path
        self._open = -1
        self._whole = True  #: whether what is in the file ends with a line's end

    @classmethod
    def of(cls, settings: Settings) -> LogSink:
        """There always is one."""
        return cls(settings.logs.logfile)

    def tell(self, notices: Sequence[Notification]) -> Iterator[Notification]:
        """All in one write."""
        try:
            self._reopen()
            written = self._end() if any(notice.maybe_sent for notice in notices) else frozenset()
            told = [each.event for each in notices if not (each.maybe_sent and _is_in(written, each.event))]
            self._append([line_of(event) for event in told])
        except OSError as error:
            raise SinkAway(f"{self._path}: {error.strerror or error}") from error
        yield from notices

    def close(self) -> None:
        """Close the file."""
        if self._open >= 0:
            os.close(self._open)
            self._open = -1

    def _reopen(self) -> None:
        """Have the file of that name open: logrotate may have put another there, or none."""
        if self._open >= 0 and not self._is_ours():
            self.close()
        if self._open < 0:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._open = os.open(self._path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o644)
            size = os.fstat(self._open).st_size
            self._whole = size == 0 or os.pread(self._open, 1, size - 1) == b"\n"

    def _is_ours(self) -> bool:
        try:
            return os.path.samestat(os.stat(self._path), os.fstat(self._open))
        except FileNotFoundError:
            return False

    def _append(self, lines: Sequence[str]) -> None:
        """Write whole lines or none; a full disk may take a part of them, which is taken out again."""
        if not lines:
            return
        block = ("" if self._whole else "\n").encode() + "".join(f"{line}\n" for line in lines).encode()
        written = os.write(self._open, block)
        if written < len(block):
            os.ftruncate(self._open, os.fstat(self._open).st_size - written)
            raise OSError(errno.ENOSPC, "the disk is full")
        self._whole = True

    def _end(self) -> frozenset[str]:
        size = os.fstat(self._open).st_size
        end = os.pread(self._open, TAIL, max(0, size - TAIL))
        return frozenset(end.decode("utf-8", "replace").split("\n"))

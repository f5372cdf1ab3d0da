# SPDX-License-Identifier: Apache-2.0
"""The log of builds: one line per event, in the original's words, in one file for people and grep.

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
from reimzul.core.batch_event import BatchEvent
from reimzul.core.formatting import format_time
from reimzul.core.message import BuilderEvent, Event, Refusal
from reimzul.core.settings import Settings
from reimzul.history.result_rules import CLAIM, Notification
from reimzul.notifier.delivery import Sink, SinkUnavailable

#: How many bytes of the log's end are read to see what was written before a crash: many times one batch.
TAIL_BYTES = 1 << 20


def format_line(event: Event, *, local_time: bool = False) -> str:
    at = event.at or time.time()
    when = time.asctime(time.localtime(at)) if local_time else format_time(at)
    if isinstance(event, BuilderEvent):
        text = f"Builder {event.builder} status {event.status}: {event.reason}"
    elif isinstance(event, BatchEvent):
        text = f"Batch {event.batch} status {event.status}: {event.text} (submitted by {event.submitter})"
    elif isinstance(event, Refusal):
        by = f" by {event.host}" if event.host else ""
        begins = validators.quoted(event.begins, 200)
        text = f"Refused job {event.job} of tube {event.tube}{by}: {event.reason} (it begins {begins})"
    else:
        claim = f" ({CLAIM})" if event.claimed else ""
        text = (
            f"Build job SRPM {event.srpm} ({event.timestamp}) for arch {event.arch} builder {event.builder_fqdn} "
            f"status {event.status}{claim} [{event.evr}] (Scratch job: {event.scratch}) submitted by {event.submitter}"
        )
    return validators.line(2000)(f"[{when}] {text}")


def _is_in(written: Collection[str], event: Event) -> bool:
    """Whether an event was written, in either form of time; a time that was corrected twice may differ by 1 s."""
    possible = [attr.evolve(event, at=max(0.0, event.at + off)) for off in (0, -1, 1)]
    return any(format_line(each, local_time=local) in written for local in (False, True) for each in possible)


class LogSink(Sink):
    """Opens the file for each batch, since logrotate may have put another there, or none."""

    name = "log"

    def __init__(self, path: Path, *, local_time: bool = False) -> None:
        self._path, self._local_time = path, local_time

    @classmethod
    def from_settings(cls, settings: Settings) -> LogSink:
        return cls(settings.logs.logfile, local_time=settings.logs.local_time)

    def deliver(self, notices: Sequence[Notification]) -> Iterator[Notification]:
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            file = os.open(self._path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o644)
            try:
                written = _last_lines(file) if any(notice.maybe_sent for notice in notices) else frozenset()
                new = [each.event for each in notices if not (each.maybe_sent and _is_in(written, each.event))]
                _append(file, [format_line(event, local_time=self._local_time) for event in new])
            finally:
                os.close(file)
        except OSError as error:
            raise SinkUnavailable(f"{self._path}: {error.strerror or error}") from error
        yield from notices


def _append(file: int, lines: Sequence[str]) -> None:
    """Write whole lines or none: if a full disk takes only a part of them, the part is removed again."""
    if not lines:
        return
    size = os.fstat(file).st_size
    is_whole = size == 0 or os.pread(file, 1, size - 1) == b"\n"
    block = ("" if is_whole else "\n").encode() + "".join(f"{line}\n" for line in lines).encode()
    written = os.write(file, block)
    if written < len(block):
        os.ftruncate(file, os.fstat(file).st_size - written)
        raise OSError(errno.ENOSPC, "the disk is full")


def _last_lines(file: int) -> frozenset[str]:
    end = os.pread(file, TAIL_BYTES, max(0, os.fstat(file).st_size - TAIL_BYTES))
    return frozenset(end.decode("utf-8", "replace").split("\n"))

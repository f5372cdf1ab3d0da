# SPDX-License-Identifier: Apache-2.0
"""Delivers events to the sinks: a thread for each, so that a sink that fails or hangs delays no other.

A new sink is a `Sink` in `reimzul.notifier.sinks`, and an entry in the table there.

The daemon hands new events over in memory. A thread reads the outbox only after a start, after its buffer was full, and
for deliveries that were deferred. A sink gets its events in the order of their arrival; while it is unavailable it is
tried every second, and a delivery that failed by itself is deferred and holds up no other.
"""

from __future__ import annotations

import abc
import logging
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import ClassVar, Optional, TypeVar

from reimzul.core.errors import ReimzulError, RetryLater
from reimzul.core.message import Event
from reimzul.core.retry import LogThrottle
from reimzul.core.settings import Settings
from reimzul.history.result_rules import Notification
from reimzul.notifier.outbox import PAGE, SinkDeliveries

S = TypeVar("S", bound="Sink")
log = logging.getLogger(__name__)

#: Seconds between two attempts to reach a sink that is unavailable.
PAUSE_SECONDS = 1.0
#: How many deliveries a sink's thread holds in memory; beyond that it reads them from the outbox.
BUFFER_LIMIT = 1000
#: Seconds between the starts of two batches, unless a whole batch waits: a commit, and a mail server's greeting, cost
#: more than an event.
BATCH_SECONDS = 0.1
#: Seconds between two records of what a sink has, while it works on a batch.
RECORD_SECONDS = 0.1
#: Seconds a sink has to finish its batch when the notifier stops.
STOP_SECONDS = 0.4


class SinkUnavailable(ReimzulError):
    """A sink takes nothing now: what it does not have yet is delivered later."""


class Sink(abc.ABC):
    """Something that gets events.

    A thread of its own makes its connections and uses them, so it may take its time; but whatever it waits for needs a
    timeout.
    """

    name: ClassVar[str]  #: in the outbox: letters, digits, ._-
    is_urgent: ClassVar[bool] = False  #: its events wait neither for the next commit nor for a batch

    @classmethod
    @abc.abstractmethod
    def from_settings(cls: type[S], settings: Settings) -> Optional[S]:
        """Make the sink; None if it is switched off. Raises `ConfigError`."""

    def accepts(self, event: Event) -> bool:
        """Whether this event is for the sink. Called in the daemon's thread: decide by the event alone."""
        return True

    @abc.abstractmethod
    def deliver(self, notices: Sequence[Notification]) -> Iterator[Notification]:
        """Deliver these, and yield each as soon as it is certain to have arrived; what is not yielded is tried later.

        Raises `SinkUnavailable` if the sink takes no more now, `RetryLater` if the outbox's file cannot be used. Any
        other exception counts as the fault of one notice, and the others are delivered one by one.
        """

    def close(self) -> None:  # noqa: B027  not every sink holds something
        """Release connections and files, quickly."""


class SinkThread:
    """One sink and its thread. `enqueue` and the `stop` methods are for the daemon's thread."""

    def __init__(self, sink: Sink, outbox: Path) -> None:
        self.sink = sink
        self._file = SinkDeliveries(outbox, sink.name)
        self._changed = threading.Condition()
        self._buffer: dict[int, Notification] = {}  #: by seq, in its order
        self._is_behind = True  #: the outbox has deliveries that belong behind those of the buffer
        self._retry_at = float("inf")  #: when the first deferred delivery is due, by the monotonic clock
        self._unrecorded: list[int] = []  #: what the sink has and the outbox does not say yet
        self._recorded_at = self._batch_at = float("-inf")
        self._stop_at = float("inf")  #: when to stop, by the monotonic clock
        self._throttle = LogThrottle(seconds=60.0)
        # a daemon thread: a sink that hangs does not keep the program from ending
        self._thread = threading.Thread(target=self._run, name=sink.name, daemon=True)
        self._thread.start()

    def enqueue(self, notices: Sequence[Notification]) -> None:
        """Hand over what the outbox has got; it has a greater seq than all before."""
        with self._changed:
            if self._is_behind or len(self._buffer) + len(notices) > BUFFER_LIMIT:
                self._is_behind = True
            else:
                self._buffer.update((each.seq, each) for each in notices)
            self._changed.notify()

    def request_stop(self) -> None:
        """End the thread after the event the sink has in hand, and let it finish the batch if that takes little."""
        with self._changed:
            self._stop_at = time.monotonic() + STOP_SECONDS
            self._changed.notify()

    def wait_stopped(self) -> None:
        """Wait for the thread, but not for a sink that hangs."""
        self._thread.join(max(0.0, self._stop_at + STOP_SECONDS / 2 - time.monotonic()))

    @property
    def _is_stopping(self) -> bool:
        return self._stop_at != float("inf")

    def _run(self) -> None:
        try:
            while self._wait_for_work():
                try:
                    self._deliver_batch()
                except Exception as error:  # noqa: BLE001  whatever a sink raises, the thread must go on
                    self._pause(error)
        finally:
            self.sink.close()
            self._file.close()

    def _wait_for_work(self) -> bool:
        """Return True as soon as there is something to do, False if the thread is to end."""
        with self._changed:
            while not self._is_stopping:
                seconds = self._retry_at - time.monotonic()
                if seconds <= 0:
                    self._retry_at, self._is_behind = float("inf"), True
                early = 0.0 if self.sink.is_urgent else self._batch_at + BATCH_SECONDS - time.monotonic()
                if not (self._buffer or self._is_behind or self._unrecorded):
                    self._changed.wait(min(seconds, threading.TIMEOUT_MAX))
                elif early > 0 and len(self._buffer) < PAGE and not self._is_behind:
                    self._changed.wait(early)
                else:
                    self._batch_at = time.monotonic()
                    return True
            return False

    def _deliver_batch(self) -> None:
        self._record()
        batch = self._next_batch()
        begun = self._file.begin(batch) if batch else []
        if begun:
            self._ask_sink(begun)
        self._forget(batch)

    def _next_batch(self) -> list[Notification]:
        """Return the first deliveries of the buffer, which is filled from the outbox if it is empty."""
        with self._changed:
            if self._buffer or not self._is_behind:
                return list(self._buffer.values())[:PAGE]
            self._is_behind = False  # before reading: what is handed over from now on may be missing in the page
        try:
            page, pause = self._file.read_due()
        except RetryLater:
            self._is_behind = True
            raise
        with self._changed:
            self._retry_at = min(self._retry_at, time.monotonic() + pause)
            if len(page) == PAGE:
                self._is_behind, self._buffer = True, {}
            self._buffer = {**{each.seq: each for each in page}, **self._buffer}
            return list(self._buffer.values())[:PAGE]

    def _forget(self, notices: Iterable[Notification]) -> None:
        with self._changed:
            for each in notices:
                self._buffer.pop(each.seq, None)

    def _ask_sink(self, begun: Sequence[Notification]) -> None:
        """Deliver together; if that shows a bug of ours, one by one, so that the bug stops only its own delivery."""
        left = {notice.seq: notice for notice in begun}
        try:
            if not self._deliver(left, begun, f"{len(begun)} events together"):
                for notice in list(left.values()):
                    self._deliver(left, [notice], f"{notice.word} of {notice.event.key}")
        finally:
            self._forget(notice for notice in begun if notice.seq not in left)
            self._record()
        if left and not self._is_stopping:
            self._retry_at = min(self._retry_at, time.monotonic() + self._file.defer(list(left)))
        if self._throttle.reset():
            log.info("%s takes events again", self.sink.name)

    def _deliver(self, left: dict[int, Notification], notices: Sequence[Notification], what: str) -> bool:
        """Deliver notices, and take those that the sink has out of `left`; return False after a bug of ours."""
        try:
            for notice in self.sink.deliver(notices):
                del left[notice.seq]
                self._unrecorded.append(notice.seq)
                now = time.monotonic()
                if now - self._recorded_at > RECORD_SECONDS:
                    self._record()
                if now > self._stop_at:
                    break
        except (SinkUnavailable, RetryLater):
            raise
        except Exception:
            log.exception("%s cannot take %s", self.sink.name, what)
            return False
        return True

    def _record(self) -> None:
        if self._unrecorded:
            self._file.mark_delivered(self._unrecorded)
            self._unrecorded = []
        self._recorded_at = time.monotonic()

    def _pause(self, error: Exception) -> None:
        """Log that the sink, or the outbox, is unavailable, or a bug of ours, and wait."""
        if self._throttle.is_due():
            more = " or more" if self._is_behind else ""
            bug = None if isinstance(error, (SinkUnavailable, RetryLater)) else error
            message = "%s takes no events now (%d%s pending): %s"
            log.warning(message, self.sink.name, len(self._buffer), more, error, exc_info=bug)
        with self._changed:
            self._changed.wait_for(lambda: self._is_stopping, PAUSE_SECONDS)


class SinkPool:
    def __init__(self, sinks: Iterable[Sink], outbox: Path) -> None:
        self._threads = {sink.name: SinkThread(sink, outbox) for sink in sinks}

    def sinks_for(self, event: Event) -> list[str]:
        return [name for name, thread in self._threads.items() if thread.sink.accepts(event)]

    def is_urgent(self, event: Event) -> bool:
        return any(thread.sink.is_urgent and thread.sink.accepts(event) for thread in self._threads.values())

    def enqueue(self, new: Mapping[str, Sequence[Notification]]) -> None:
        for sink, notices in new.items():
            self._threads[sink].enqueue(notices)

    def close(self) -> None:
        """Stop all threads; a sink that hangs is left behind."""
        for thread in self._threads.values():
            thread.request_stop()
        for thread in self._threads.values():
            thread.wait_stopped()

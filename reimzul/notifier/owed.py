# SPDX-License-Identifier: Apache-2.0
"""What is owed to whom, kept beside the history so that `reimzul queues` can show it.

The truth is elsewhere, in `notify` and in the ledger; nothing depends on this. It is written in a thread of its own,
since the history may be the very sink that hangs, and only when it has changed.
"""

from __future__ import annotations

import heapq
import logging
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Optional

from reimzul.core.errors import ReimzulError
from reimzul.history import History, NoHistory, PendingCount, open_history

log = logging.getLogger(__name__)

#: Seconds until a history that took nothing is asked again.
REST = 5.0
#: Seconds the last word may take when we leave.
LAST_PATIENCE = 0.4


class Tries:
    """When what is owed is tried again, as far as this process has put it back."""

    def __init__(self) -> None:
        self._times: dict[str, list[float]] = {}

    def add(self, sinks: Iterable[str], when: float) -> None:
        """Something owed to these is tried then."""
        for sink in sinks:
            heapq.heappush(self._times.setdefault(sink, []), when)

    def next(self, sink: str, now: float) -> Optional[float]:
        """The next of them."""
        times = self._times.get(sink, [])
        while times and times[0] <= now:
            heapq.heappop(times)
        return round(times[0]) if times else None


def summary(owing: Mapping[str, tuple[int, float]], tries: Tries, now: float) -> list[PendingCount]:
    """What the ledger says is owed, and when that is tried again; by sink."""
    return [
        PendingCount(sink=sink, count=count, oldest=round(oldest), next_try=tries.next(sink, now), at=round(now))
        for sink, (count, oldest) in sorted(owing.items())
    ]


class Slate:
    """Where the summary is written. Its methods are for the daemon's thread, and never wait for the history."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._newest: Optional[Sequence[PendingCount]] = None
        self._written: Optional[Sequence[PendingCount]] = None
        self._changed = threading.Condition()
        self._closing = False
        self._thread = threading.Thread(target=self._serve, name="owed", daemon=True)
        self._thread.start()

    def write(self, owed: Sequence[PendingCount]) -> None:
        """Have this written; what was not yet written of before is left out."""
        with self._changed:
            self._newest = owed
            self._changed.notify()

    def close(self) -> None:
        """Leave, the last word written if that is quickly done."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._thread.join(LAST_PATIENCE)

    def _serve(self) -> None:
        rest_until = 0.0
        while (owed := self._next(rest_until)) is not None:
            try:
                self._keep(owed)
            except ReimzulError as error:
                log.debug("what is owed could not be written: %s", error)
                if self._closing:
                    return
                rest_until = time.monotonic() + REST

    def _next(self, rest_until: float) -> Optional[Sequence[PendingCount]]:
        """What is to be written, as soon as there is something and the history has rested; None at the end."""
        with self._changed:
            self._changed.wait_for(lambda: self._closing, max(0.0, rest_until - time.monotonic()))
            self._changed.wait_for(lambda: self._closing or self._newest not in (None, self._written))
            owed = self._newest
            return None if owed == self._written else owed

    def _keep(self, owed: Sequence[PendingCount]) -> None:
        if self._written is None:
            self._written = self._found()
        if owed != self._written:
            history = open_history(self._url)
            try:
                history.save_pending_counts(owed)
            finally:
                history.close()
            self._written = owed

    def _found(self) -> Sequence[PendingCount]:
        """What a notifier before us wrote; no history is made only to say that nothing is owed."""
        try:
            history: History = open_history(self._url, reading=True)
        except NoHistory:
            return []
        try:
            return history.pending_counts()
        finally:
            history.close()

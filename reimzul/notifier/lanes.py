# SPDX-License-Identifier: Apache-2.0
"""A lane a sink: each sink is told in a thread of its own, so that one that fails or hangs delays itself alone.

A batch is handed to all lanes at once, and waited for a little. What a sink has not taken by then is owed to it,
and the daemon goes on. A lane that is slow but moves gets more in hand, up to a limit; one that stands still, or rests
after a failure, gets nothing new. If the sink says yes in the end, that is collected later, and the copy that was owed
finds it told.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from typing import Optional

import attr

from reimzul.core.message import Event
from reimzul.history.result_rules import Notification
from reimzul.notifier.sinks.base import Sink, SinkAway

log = logging.getLogger(__name__)

#: Seconds a batch waits for a sink; for one that was late or failed the last time; for all when told to stop.
PATIENCE, LITTLE_PATIENCE, LAST_PATIENCE = 1.0, 0.1, 0.4
#: Seconds a sink rests after a failure: doubled each time, up to the second.
REST, LONGEST_REST = 1.0, 60.0
#: Seconds between two lines about a sink that keeps failing.
SAY_AGAIN = 60.0
#: How many notices a sink may have in hand; each is owed to it in `notify` as well.
IN_HAND = 1000
#: How often a wait looks whether the daemon was told to stop.
LOOK = 0.05


Name = tuple[str, str]


@attr.define(eq=False)
class Work:
    """What a sink has in hand, and how far it came."""

    notices: Sequence[Notification]
    told: list[Notification] = attr.field(factory=list)  #: grows while the sink is at it
    away: Optional[SinkAway] = None
    skipped: bool = False  #: not even tried, as what was handed out before it failed
    over: threading.Event = attr.field(factory=threading.Event)


class Lane:
    """One sink and its thread. All methods are for the daemon's thread."""

    def __init__(self, sink: Sink) -> None:
        self.sink = sink
        self._works: deque[Work] = deque()  #: handed out and not yet collected, oldest first
        self._in_hand: set[Name] = set()
        self._moved = 0  #: how much of the oldest was told when something was last handed to it
        self._failures = 0
        self._late = False
        self._rests_until = 0.0
        self._said = float("-inf")
        self._door: queue.SimpleQueue[Optional[Work]] = queue.SimpleQueue()
        # a daemon thread: a sink that hangs does not hold the program back from ending
        self._thread = threading.Thread(target=self._serve, name=sink.name, daemon=True)
        self._thread.start()

    @property
    def newest(self) -> Optional[Work]:
        """What was handed out last, while it is not collected."""
        return self._works[-1] if self._works else None

    @property
    def rest(self) -> float:
        """Seconds until it is worth asking again."""
        return max(0.0, self._rests_until - time.monotonic())

    @property
    def patience(self) -> float:
        """Seconds this sink is waited for."""
        return LITTLE_PATIENCE if self._failures or self._late else PATIENCE

    def hand(self, notices: Sequence[Notification]) -> None:
        """Have these told that are not in hand already, unless the sink rests, stands still or has enough to do."""
        fresh = [notice for notice in notices if notice.name not in self._in_hand]
        if fresh and not self.rest and self._takes_more():
            self._works.append(Work(fresh))
            self._in_hand.update(notice.name for notice in fresh)
            self._door.put(self._works[-1])

    def has(self, name: Name) -> bool:
        """Whether this is in hand."""
        return name in self._in_hand

    def collect(self, *, late: bool) -> list[Notification]:
        """What the sink has taken of all it is done with; `late` where that was not in time."""
        if self._works:
            self._late = late
        told: list[Notification] = []
        while self._works and self._works[0].over.is_set():
            work = self._works.popleft()
            self._in_hand.difference_update(notice.name for notice in work.notices)
            self._moved = 0
            self._judge(work)
            told += work.told
        return told

    def _takes_more(self) -> bool:
        if not self._works:
            return True
        moved, before = len(self._works[0].told), self._moved
        self._moved = moved
        return moved > before and len(self._in_hand) < IN_HAND

    def close(self, seconds: float) -> None:
        """Let the sink leave, if it does so in time."""
        self._door.put(None)
        self._thread.join(seconds)

    def _judge(self, work: Work) -> None:
        if work.skipped:
            return
        if work.away is None:
            if self._failures:
                log.info("%s is told again", self.sink.name)
            self._failures, self._said = 0, float("-inf")
            return
        self._failures += 1
        self._rests_until = time.monotonic() + min(REST * 2.0 ** (self._failures - 1), LONGEST_REST)
        if time.monotonic() - self._said >= SAY_AGAIN:
            log.warning("%s is owed %d: %s", self.sink.name, len(work.notices) - len(work.told), work.away)
            self._said = time.monotonic()

    def _serve(self) -> None:
        """The thread: tell what comes through the door until that is closed."""
        resting = False
        for work in iter(self._door.get, None):
            work.skipped = resting
            if not resting:
                try:
                    self._tell(work)
                except SinkAway as away:
                    work.away = away
            resting = (resting or work.away is not None) and not self._door.empty()
            work.over.set()
        self.sink.close()

    def _tell(self, work: Work) -> None:
        """All together; where that shows a bug of ours one by one, so that it stops only its own."""
        try:
            for notice in self.sink.tell(work.notices):
                work.told.append(notice)
        except SinkAway:
            raise
        except Exception:
            log.exception("%s: %d notices together, one by one now", self.sink.name, len(work.notices))
            told = {notice.name for notice in work.told}
            for notice in work.notices:
                if notice.name not in told:
                    self._tell_one(work, notice)

    def _tell_one(self, work: Work, notice: Notification) -> None:
        try:
            work.told.extend(self.sink.tell([notice]))
        except SinkAway:
            raise
        except Exception:
            log.exception("%s cannot be told %s of %s", self.sink.name, notice.word, notice.event.key)


class Lanes:
    """All sinks that are switched on."""

    def __init__(self, sinks: Iterable[Sink], stop: threading.Event) -> None:
        self._lanes = {sink.name: Lane(sink) for sink in sinks}
        self._stop = stop

    def __contains__(self, sink: object) -> bool:
        return sink in self._lanes

    def whom(self, event: Event) -> list[str]:
        """The sinks that an event is for."""
        return [name for name, lane in self._lanes.items() if lane.sink.wants(event)]

    def rest(self, sinks: Iterable[str]) -> float:
        """Seconds until one of these sinks is worth asking again."""
        return min((self._lanes[sink].rest for sink in sinks), default=0.0)

    def tell(self, due: Mapping[str, Sequence[Notification]]) -> dict[str, list[Notification]]:
        """Hand each sink what it is due, wait a little, and give back what each has taken by now."""
        told = self.late()
        began = time.monotonic()
        for sink, notices in due.items():
            taken = {notice.name for notice in told.get(sink, ())}  # since it was asked what is due
            self._lanes[sink].hand([notice for notice in notices if notice.name not in taken])
        for sink in due:
            lane = self._lanes[sink]
            in_time = self._wait(lane, began + lane.patience)
            told[sink] = told.get(sink, []) + lane.collect(late=not in_time)
        return told

    def has(self, sink: str, name: Name) -> bool:
        """Whether a sink is at work on this: that it is not told yet is no failure."""
        return self._lanes[sink].has(name)

    def late(self) -> dict[str, list[Notification]]:
        """What sinks have taken since they were last waited for."""
        taken = {name: lane.collect(late=True) for name, lane in self._lanes.items() if lane.newest is not None}
        return {name: told for name, told in taken.items() if told}

    def close(self) -> None:
        """Let all sinks leave."""
        for lane in self._lanes.values():
            lane.close(LAST_PATIENCE)

    def _wait(self, lane: Lane, until: float) -> bool:
        """Whether the sink was done in time; told to stop, there is little time left."""
        work, stopping = lane.newest, False
        while work is not None and not work.over.wait(max(0.0, min(LOOK, until - time.monotonic()))):
            if self._stop.is_set() and not stopping:
                stopping, until = True, min(until, time.monotonic() + LAST_PATIENCE)
            if time.monotonic() >= until:
                return False
        return True

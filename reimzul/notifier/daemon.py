# SPDX-License-Identifier: Apache-2.0
"""The notifier's daemon: takes events out of `notify`, a batch at a time, and has each sink told what it lacks.

What a sink did not take goes back into `notify` as the same event that names who is owed and for how many tries, with
a growing pause; then the job it came in is deleted. Nothing is owed in memory alone: what a slow sink takes later is
written into the ledger when it does, and the copy that comes back finds it told.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Callable

import attr

from reimzul.core.beanstalk import NOTIFY, NOTIFY_OWED, Broker, ReservedJob, TubeStats
from reimzul.core.daemon import Daemon, Outcome, Stop
from reimzul.core.errors import InvalidMessage, RetryLater
from reimzul.core.message import BuildEvent, Event, NotifyMessage, Refusal, WorkerHeartbeat
from reimzul.history.result_rules import Notification, news_kind, with_implied
from reimzul.notifier.arrival import arrived
from reimzul.notifier.janitor import Janitor
from reimzul.notifier.lanes import Lanes
from reimzul.notifier.ledger import Ledger
from reimzul.notifier.owed import Slate, Tries, summary
from reimzul.notifier.quarantine import Quarantine
from reimzul.notifier.refusals import Refusals
from reimzul.notifier.roll import Roll
from reimzul.notifier.sinks.base import Sink

log = logging.getLogger(__name__)

#: Seconds until what is owed is tried again: doubled with each try, up to the second, for ever.
PAUSE, LONGEST_PAUSE = 2, 300
#: Seconds between two sweeps of the ledger.
SWEEP = 86400.0
#: Seconds between two looks at what is owed.
LOOK = 1.0

Name = tuple[str, str]


class Notifier(Daemon[NotifyMessage]):
    """Tells every event to every sink that wants it, once."""

    batch = 200

    def __init__(
        self,
        connect: Callable[[], Broker],
        host: str,
        ledger: Ledger,
        sinks: Iterable[Sink],
        slate: Slate | None = None,
        roll: Roll | None = None,
        refusals: Refusals | None = None,
        quarantine: Quarantine | None = None,
        stop: Stop | None = None,
    ) -> None:
        super().__init__(connect, [NOTIFY], host, stop)
        self.ledger = ledger
        self.lanes = Lanes(sinks, self.stop.now)
        self.slate = slate
        self.roll = roll
        self.quarantine = quarantine
        self.refusals = refusals
        self.janitor = Janitor(ledger)
        self._tries = Tries()
        self._swept = self._looked = float("-inf")

    def handle(
        self, broker: Broker, claims: list[ReservedJob[NotifyMessage]]
    ) -> Iterator[tuple[ReservedJob[NotifyMessage], Outcome]]:
        """Tell a batch; what is owed of it is in `notify` again before the first job is settled."""
        events, present = [], []
        for claim in claims:
            if isinstance(claim.message, WorkerHeartbeat):
                present.append((claim, claim.message))
            else:
                events.append((claim, arrived(claim, claim.message)))
        untold = self._tell([event for _, event in events])
        outcomes = [(claim, self._owe(broker, event, untold)) for claim, event in events]
        if self.roll is not None:
            self.roll.call(present)
        for _, event in events:
            if self.quarantine is not None and isinstance(event, BuildEvent):
                self.quarantine.hear(event)
        if time.monotonic() - self._looked > LOOK:
            self._sum_up()
        self._tend(broker)
        yield from outcomes
        yield from ((claim, None) for claim, _ in present)

    def do_idle_work(self, broker: Broker) -> None:
        """Write down what slow sinks have taken, and what is owed; once a day drop what is too old."""
        self._note(self.lanes.late())
        if self._sum_up() and _is_empty(broker.tube_stats(NOTIFY.name)):
            log.warning("what was owed is in no job any more: a sink was switched off, or the jobs deleted or lost")
            self.ledger.write_off()
        if time.monotonic() - self._swept > SWEEP:
            self._swept = time.monotonic()
            self.ledger.forget(time.time())
            if self.refusals is not None:
                self.refusals.sweep()
        if self.roll is not None:
            self.roll.sweep()
        self._tend(broker)

    def _tend(self, broker: Broker) -> None:
        """See to the marks: of builds that are cancelled, of builders that are held back."""
        self.janitor.look(broker)
        if self.quarantine is not None:
            self.quarantine.look(broker, self.ledger.came_to)

    def announce_refusal(self, claim: ReservedJob[NotifyMessage], event: Refusal) -> None:
        """A refused job of `notify` itself is told at once: announced in `notify`, it might be refused again."""
        if _is_refusal(claim):  # even telling of it failed: the daemon's log has said so
            return
        untold = self._tell([event])
        fault = self._owe(claim.broker, event, untold)
        if fault is not None:
            raise fault

    def close(self) -> None:
        """Let the sinks leave, and write down what they still took."""
        self.lanes.close()
        self._note(self.lanes.late())
        self._sum_up()
        if self.slate is not None:
            self.slate.close()
        if self.roll is not None:
            self.roll.close()
        if self.quarantine is not None:
            self.quarantine.close()
        self.ledger.close()

    def _tell(self, events: Sequence[Event]) -> dict[Name, set[str]]:
        """Have these told, and say which sinks lack which of them still."""
        due = self.ledger.due(events, self._whom)
        self._note(told := self.lanes.tell(due))
        untold: dict[Name, set[str]] = {}
        for sink, notices in due.items():
            taken = {notice.name for notice in told.get(sink, ())}
            for notice in notices:
                if notice.name not in taken:
                    untold.setdefault(notice.name, set()).add(sink)
        return untold

    def _whom(self, event: Event) -> list[str]:
        """Whom an event is for: all who want it, or those it is owed to. Who was switched off is owed nothing."""
        return [sink for sink in self.lanes.whom(event) if not event.owed or sink in event.owed]

    def _sum_up(self) -> bool:
        """Have what is owed written where a person can ask for it; whether anything is."""
        self._looked = time.monotonic()
        owing = self.ledger.owing()
        if self.slate is not None:
            still_on = {sink: row for sink, row in owing.items() if sink in self.lanes}
            self.slate.write(summary(still_on, self._tries, time.time()))
        return bool(owing)

    def _note(self, told: Mapping[str, Sequence[Notification]]) -> None:
        for sink, notices in told.items():
            self.ledger.told(sink, notices)

    def _owe(self, broker: Broker, event: Event, untold: dict[Name, set[str]]) -> Outcome:
        """Put an event back for those who lack it. Of two copies in one batch the first does it for both."""
        self.ping_watchdog()
        names = [(part.key, news_kind(part)) for part in with_implied(event)]
        sinks = set().union(*(untold.pop(name, set()) for name in names))
        if not sinks:
            return None
        # a sink that is at work on it has not failed: its pause does not grow
        busy = {sink for sink in sinks if any(self.lanes.has(sink, name) for name in names)}
        tries = {sink: max(1, event.owed.get(sink, 0) + (sink not in busy)) for sink in sinks}
        delay = pause(max(tries.values()), self.lanes.rest(sinks))
        try:
            broker.put(NOTIFY, attr.evolve(event, owed=tries), priority=NOTIFY_OWED, delay=delay)
        except InvalidMessage as error:  # too large for one word more; the ledger knows what it lacks all the same
            return RetryLater(f"owed to {', '.join(sorted(sinks))}: {error}", pause=delay)
        finally:
            self._tries.add(sinks, time.time() + delay)
        return None


def pause(tries: int, rest: float) -> int:
    """Seconds until what is owed is tried again; not before its sink is."""
    return max(min(PAUSE << min(tries - 1, 20), LONGEST_PAUSE), int(rest) + 1 if rest else 0)


def _is_empty(tube: TubeStats) -> bool:
    return not (tube.ready or tube.reserved or tube.delayed)


def _is_refusal(claim: ReservedJob[NotifyMessage]) -> bool:
    try:
        return isinstance(claim.message, Refusal)
    except InvalidMessage:
        return False

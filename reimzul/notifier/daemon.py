# SPDX-License-Identifier: Apache-2.0
"""The notifier's daemon: writes the events of `notify` into the outbox, deletes their jobs, and wakes the sinks."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Iterator
from typing import Callable

from reimzul.core.beanstalk import NOTIFY, Broker, ReservedJob
from reimzul.core.daemon import RESERVE_SECONDS, Daemon, Outcome
from reimzul.core.errors import InvalidMessage
from reimzul.core.event_signature import NO_KEYS, EventKeys
from reimzul.core.message import BuildEvent, Event, NotifyMessage, Refusal, WorkerHeartbeat
from reimzul.core.retry import LogThrottle
from reimzul.notifier.delivery import Sink, SinkPool
from reimzul.notifier.housekeeping import CancelReaper, HeartbeatIntake, RefusalCleanup, SourceCleanup, correct_clock
from reimzul.notifier.outbox import Outbox
from reimzul.notifier.package_results import ResultSeed
from reimzul.notifier.quarantine import Quarantine

#: Seconds between two commits, unless a whole batch waits or an event is urgent: under load a commit costs more than
#: an event.
COMMIT_SECONDS = 0.05
log = logging.getLogger(__name__)


class Notifier(Daemon[NotifyMessage]):
    """Delivers every event to every sink that wants it, once."""

    batch = 200

    def __init__(
        self,
        connect: Callable[[], Broker],
        host: str,
        outbox: Outbox,
        sinks: Iterable[Sink],
        heartbeats: HeartbeatIntake,
        cleanups: Iterable[RefusalCleanup | SourceCleanup | ResultSeed],
        quarantine: Quarantine | None,
        event_keys: EventKeys = NO_KEYS,
    ) -> None:
        super().__init__(connect, [NOTIFY], host)
        sinks = list(sinks)
        self.outbox = outbox
        outbox.drop_sinks_except({sink.name for sink in sinks})
        self.sinks = SinkPool(sinks, outbox.path)
        self.heartbeats = heartbeats
        self.quarantine = quarantine
        self.event_keys = event_keys
        self.cleanups = tuple(cleanups)
        self.reaper = CancelReaper(outbox)
        self._committed_at = float("-inf")
        self._purge_due = LogThrottle(seconds=86400.0)
        if outbox.damage:
            self._accept([Refusal(tube=NOTIFY.name, job=0, reason=outbox.damage, host=host, at=round(time.time(), 3))])

    def handle(
        self, broker: Broker, claims: list[ReservedJob[NotifyMessage]]
    ) -> Iterator[tuple[ReservedJob[NotifyMessage], Outcome]]:
        """Record heartbeats, which wait for no commit; then accept the events together."""
        heartbeats: list[tuple[ReservedJob[NotifyMessage], WorkerHeartbeat]] = []
        events: list[tuple[ReservedJob[NotifyMessage], Event]] = []
        for job in claims:
            if isinstance(job.message, WorkerHeartbeat):
                heartbeats.append((job, job.message))
            else:
                events.append((job, self.event_keys.verify(correct_clock(job, job.message), time.time())))
        self.heartbeats.update(heartbeats)
        yield from ((job, None) for job, _ in heartbeats)
        if events:
            self._accept([event for _, event in events])
        for _, event in events:
            if self.quarantine is not None and isinstance(event, BuildEvent):
                self.quarantine.on_event(event)
        self._check_flags(broker)
        yield from ((job, None) for job, _ in events)

    def reserve_jobs(
        self, broker: Broker, wait: int = RESERVE_SECONDS, room: int = 0
    ) -> list[ReservedJob[NotifyMessage]]:
        """Let some events gather after a commit, unless one is urgent."""
        claims = super().reserve_jobs(broker, wait, room)
        early = self._committed_at + COMMIT_SECONDS - time.monotonic()
        left = (room or self.batch) - len(claims)
        if claims and left and early > 0 and not any(map(self._is_urgent, claims)):
            self.stop.now.wait(early)
            claims += super().reserve_jobs(broker, 0, left)
        return claims

    def _is_urgent(self, claim: ReservedJob[NotifyMessage]) -> bool:
        return not isinstance(claim.message, WorkerHeartbeat) and self.sinks.is_urgent(claim.message)

    def do_idle_work(self, broker: Broker) -> None:
        if self._purge_due.is_due():
            self.outbox.purge(time.time())
            for cleanup in self.cleanups:
                cleanup.start()
        self.heartbeats.sweep()
        self._check_flags(broker)

    def announce_refusal(self, claim: ReservedJob[NotifyMessage], event: Refusal) -> None:
        """Accept at once that a job of `notify` was refused: announced in `notify`, it might be refused again."""
        if not _is_refusal(claim):  # else even that failed, and the daemon's log says why
            self._accept([event])

    def close(self) -> None:
        """Let the sinks finish what takes little, and close all files."""
        self.sinks.close()
        self.heartbeats.close()
        if self.quarantine is not None:
            self.quarantine.close()
        self.outbox.close()

    def _accept(self, events: list[Event]) -> None:
        """Write events into the outbox and wake their sinks. Raises `RetryLater`: the jobs have to come again."""
        self.sinks.enqueue(self.outbox.accept(events, self.sinks.sinks_for))
        self._committed_at = time.monotonic()

    def _check_flags(self, broker: Broker) -> None:
        self.reaper.run_if_due(broker)
        if self.quarantine is not None:
            self.quarantine.run_if_due(broker, self.outbox.results_of)


def _is_refusal(job: ReservedJob[NotifyMessage]) -> bool:
    try:
        return isinstance(job.message, Refusal)
    except InvalidMessage:
        return False

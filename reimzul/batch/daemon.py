# SPDX-License-Identifier: Apache-2.0
"""The daemon of held builds: notes what arrives in `batch`, then does what follows from it.

What arrives is written into the journal of its batch and synced before its job is deleted. What is done then follows
from the journals alone (`plan/decisions.py`), so a restart goes on where a kill came.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Callable

from reimzul.batch.actions import ActionRunner, OpenBatch
from reimzul.batch.batches import Batches, entry_of_event, entry_of_order, prepare_order
from reimzul.batch.job_checks import JobChecker
from reimzul.batch.single_builds import SingleBuilds
from reimzul.batch.target_provides import TargetWatcher
from reimzul.batch.throttle import Throttle
from reimzul.core.batch_message import BatchMessage, BatchOrder, BatchRequest
from reimzul.core.beanstalk import BATCH, Broker, ReservedJob
from reimzul.core.daemon import RESERVE_SECONDS, Daemon, Outcome
from reimzul.core.errors import BrokerUnavailable, ReimzulError, RetryLater
from reimzul.core.message import BuildEvent, BuildRequest, Refusal, Status
from reimzul.plan.announcements import announced_entry
from reimzul.plan.decisions import Surroundings, decide
from reimzul.plan.journal import Entry
from reimzul.plan.progress import MemberState

log = logging.getLogger(__name__)

#: Seconds for which decisions are taken before `batch` is looked at again; seconds between two kicks of a job that its
#: builder still holds.
_ADVANCE_SECONDS, _KICK_SECONDS = 0.25, 0.05
Claim = ReservedJob[BatchMessage]


class BatchDaemon(Daemon[BatchMessage]):
    batch = 200

    def __init__(
        self,
        connect: Callable[[], Broker],
        host: str,
        batches: Batches,
        singles: SingleBuilds,
        targets: TargetWatcher,
        throttle: Throttle,
        checker: JobChecker,
    ) -> None:
        super().__init__(connect, [BATCH], host)
        self.batches = batches
        self.singles = singles
        self.targets = targets
        self.throttle = throttle
        self.checker = checker
        self._has_more = True  # whether there is something to do besides what arrives
        self._refused: list[int] = []  # numbers of refused jobs

    def idle_status(self) -> str:
        count = len(self.batches.active())
        return f"waiting for jobs in {BATCH.name}; {count or 'no'} unfinished batch{'' if count == 1 else 'es'}"

    # --- what arrives

    def serve(self, broker: Broker) -> None:
        self.checker.restart()
        self.singles.restart()
        super().serve(broker)

    def reserve_jobs(self, broker: Broker, wait: int = RESERVE_SECONDS, room: int = 0) -> list[Claim]:
        if self.singles.has_urgent_work or any(each.pending_kicks for each in self.batches.active()):
            self.stop.now.wait(_KICK_SECONDS)
            wait = 0
        return super().reserve_jobs(broker, 0 if self._has_more else wait, room)

    def handle(self, broker: Broker, claims: list[Claim]) -> Iterator[tuple[Claim, Outcome]]:
        """Note what arrived, with one sync for each batch."""
        noted: dict[str, tuple[OpenBatch, list[Entry], list[Claim]]] = {}
        for claim in claims:
            try:
                found = self._sort(broker, claim)
            except BrokerUnavailable:
                raise
            except ReimzulError as error:
                yield claim, error
                continue
            if found is None:
                yield claim, None
            else:
                _, entries, sources = noted.setdefault(found[0].id, (found[0], [], []))
                entries.append(found[1])
                sources.append(claim)
        for batch, entries, sources in noted.values():
            outcome: Outcome = None
            try:
                batch.record(entries)
            except RetryLater as error:
                outcome = error
            yield from ((claim, outcome) for claim in sources)

    def _sort(self, broker: Broker, claim: Claim) -> tuple[OpenBatch, Entry] | None:
        """Return the batch and the entry that a message makes; None for one that is done with. Raises its outcome."""
        message = claim.message
        if isinstance(message, BuildEvent):
            return self._sort_event(broker, message)
        if isinstance(message, BatchOrder):
            batch = self.batches.find_for_order(message, claim.stats.releases)
            prepare_order(message, self._runner(broker, batch), self.batches.arches)
            log.info("batch %s: %s by %s", batch.id, message.order, message.by)
            return batch, entry_of_order(message)
        if isinstance(message, BatchRequest):
            self.batches.accept(message, claim.id)
        elif isinstance(message, Refusal):
            self._refused += [message.job] if message.job else []
        elif isinstance(message, BuildRequest):
            self.singles.accept(message, claim.id, claim.stats.priority)
        return None

    def _sort_event(self, broker: Broker, event: BuildEvent) -> tuple[OpenBatch, Entry] | None:
        found = self.batches.find_for_event(event)
        self.singles.take_event(broker, event)
        if event.status == Status.PUBLISHED:
            self.targets.note_publication(event.target)
        if event.claimed:
            return None
        for batch in self.batches.active():
            if batch.state.member_of_build(event) is None and batch.state.find_substituted(event) is not None:
                batch.record([entry_of_event(event)])
        if found is None:
            self.batches.keep_event(event)
            return None
        return found[0], entry_of_event(event)

    # --- what is done

    def settle_all(self, broker: Broker, claims: list[Claim]) -> None:
        super().settle_all(broker, claims)
        if not self.stop.is_requested:
            self.advance(broker)

    def do_idle_work(self, broker: Broker) -> None:
        if self.batches.load_restored():
            self.checker.restart()
        self.advance(broker)
        self._check_jobs(broker)
        self.batches.drop_old()

    def advance(self, broker: Broker) -> None:
        """Do what can be done now, for a moment; `_has_more` says whether there is more."""
        self.singles.advance(broker, self.ping_watchdog)
        deadline = time.monotonic() + _ADVANCE_SECONDS
        self._has_more = True
        while self._has_more and time.monotonic() < deadline:
            self.ping_watchdog()
            self._has_more = self._advance_batches(broker)

    def _advance_batches(self, broker: Broker) -> bool:
        """Take one round of decisions for all batches; return whether any state changed."""
        active = self.batches.active()
        rooms = self.throttle.deal(broker, [each.state for each in active])
        has_changed = False
        for batch, room in zip(active, rooms):
            has_changed |= self._isolate(batch, partial(self._advance_batch, self._runner(broker, batch), room))
        for batch in list(self.batches.open.values()):
            self._isolate(batch, partial(announce_news, broker, batch))
        return has_changed

    def _isolate(self, batch: OpenBatch, work: Callable[[], bool]) -> bool:
        """Work on a batch and return whether it changed; a bug stops that batch alone."""
        try:
            return work()
        except ReimzulError:
            raise
        except Exception as error:
            log.exception("a bug in Reimzul")
            self.batches.set_aside(batch.id, f"a bug in Reimzul: {error!r}")
            return False

    def _advance_batch(self, runner: ActionRunner, room: Mapping[str, int]) -> bool:
        runner.kick_pending()
        runner.delete_pending()
        return runner.run(decide(runner.state, self._look_around(runner.batch, room)))

    def _look_around(self, batch: OpenBatch, room: Mapping[str, int]) -> Surroundings:
        """Find out what the waiting members' targets provide."""
        state, provided, unprovided = batch.state, set(), set()
        waiting = [each for each in state.members.values() if each.state == MemberState.WAITING]
        missing: dict[str, list[str]] = {}
        for each in waiting:
            missing.setdefault(each.member.target, []).extend(each.missing)
        for target, all_missing in missing.items():
            reading = self.targets.read(target, all_missing)
            for each in waiting:
                if reading is None or each.member.target != target:
                    continue
                if reading.provides_to_legs(each.missing_by_leg, each.member.legs, self.batches.arches):
                    provided.add(each.key)
                elif reading.began > max(state.last_published_at, batch.publication_noted_at):
                    unprovided.add(each.key)
        return Surroundings(room=room, provided=provided, unprovided=unprovided)

    def _check_jobs(self, broker: Broker) -> None:
        runners = self._runners(broker, self.batches.active())
        while self._refused:
            self.checker.check_job(runners, self._refused.pop())
        self.checker.check_if_due(runners)

    def _runners(self, broker: Broker, batches: Sequence[OpenBatch]) -> list[ActionRunner]:
        return [self._runner(broker, each) for each in batches]

    def _runner(self, broker: Broker, batch: OpenBatch) -> ActionRunner:
        return ActionRunner(broker, batch, self.ping_watchdog)


def announce_news(broker: Broker, batch: OpenBatch) -> bool:
    """Announce what people are to be notified of, then note that; repeated after a kill, it has the same key."""
    news = batch.find_news()
    for each in news:
        broker.announce(each.event)
    batch.record([announced_entry(each, time.time()) for each in news])
    return bool(news)

# SPDX-License-Identifier: Apache-2.0
"""How many builds may be released ahead of the builders, over all batches.

Twice as many as workers take jobs of the tube: enough that no worker waits for this daemon, and few enough that a
pause, a raise or a cancellation acts at once and single builds get their turn.
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from reimzul.core.beanstalk import Broker
from reimzul.core.errors import ReimzulError
from reimzul.core.message import WorkerState
from reimzul.history.workers import WorkerStore, drop_disconnected, list_live
from reimzul.plan.state import BatchState

log = logging.getLogger(__name__)

#: Builds released ahead for each worker that takes jobs.
_AHEAD_PER_WORKER = 2
#: Seconds for which the number of workers is used again.
_COUNT_SECONDS = 5.0


class Throttle:
    def __init__(self, presence: Path) -> None:
        """`presence` is the notifier's file of heartbeats."""
        self._workers = WorkerStore(presence)
        self._counts: Mapping[str, int] = {}
        self._counted_at = float("-inf")

    def deal(self, broker: Broker, states: Sequence[BatchState]) -> list[Counter[str]]:
        """Return how many builds each batch may release in each tube.

        The batch that has the fewest ahead gets the next place, so that a small batch does not wait for a large one.
        """
        ahead = [Counter(state.released_ahead) for state in states]
        dealt: list[Counter[str]] = [Counter() for _ in states]
        wanted = [_count_candidates(state) for state in states]
        for tube in {tube for each in wanted for tube in each}:
            free = self._limit(broker, tube) - sum(each[tube] for each in ahead)
            for _ in range(free):
                takers = [index for index, each in enumerate(wanted) if dealt[index][tube] < each[tube]]
                if not takers:
                    break
                dealt[min(takers, key=lambda index: ahead[index][tube] + dealt[index][tube])][tube] += 1
        return dealt

    def _limit(self, broker: Broker, tube: str) -> int:
        if time.monotonic() - self._counted_at > _COUNT_SECONDS:
            self._counts, self._counted_at = self._count_workers(broker), time.monotonic()
        return _AHEAD_PER_WORKER * max(1, self._counts.get(tube, 0))

    def _count_workers(self, broker: Broker) -> Mapping[str, int]:
        """Count the workers that take jobs, by tube; those without heartbeats are not known."""
        try:
            workers = drop_disconnected(broker, list_live(self._workers.load_workers()))
        except ReimzulError as error:
            log.warning("the workers are not counted, one is assumed for each tube: %s", error)
            return {}
        heartbeats = [each.heartbeat for each in workers if each.heartbeat.state in WorkerState.TAKING_JOBS]
        return Counter(tube for each in heartbeats for tube in each.arches)


def _count_candidates(state: BatchState) -> Counter[str]:
    """Count the members that can be released, or may be within this round, by tube."""
    keys: Iterable[str] = {*state.ready, *(each.key for each in state.members.values() if each.missing)}
    return Counter(state.members[key].member.tube for key in keys)

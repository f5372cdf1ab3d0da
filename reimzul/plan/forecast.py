# SPDX-License-Identifier: Apache-2.0
"""When the members of a batch are expected to be built, with the builders there are and nothing else to do."""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Collection, Iterable, Sequence

import attr

from reimzul.plan.document import Member


@attr.frozen
class Span:
    """Seconds from the batch's start."""

    start: float
    end: float


def forecast_members(members: Sequence[Member], builders: Iterable[Collection[str]]) -> dict[str, Span]:
    """Return when each member is built; none of those that no builder can build, or that need such a member.

    `builders`: the tubes that each one watches.
    """
    return _Schedule(members, Counter(frozenset(each) for each in builders)).run()


class _Schedule:
    def __init__(self, members: Sequence[Member], idle: Counter[frozenset[str]]) -> None:
        self._members = {member.key: member for member in members}
        self._idle = idle
        self._unmet = {member.key: len(member.needs) for member in members}
        self._dependents: dict[str, list[str]] = {}
        for member in members:
            for need in member.needs:
                self._dependents.setdefault(need, []).append(member.key)
        self._ready: dict[str, list[tuple[int, float, str]]] = {}
        self._running: list[tuple[float, str, frozenset[str]]] = []
        self._spans: dict[str, Span] = {}

    def run(self) -> dict[str, Span]:
        for key, count in self._unmet.items():
            if not count:
                self._add_ready(key)
        self._start_builds(0.0)
        while self._running:
            now = self._running[0][0]
            while self._running and self._running[0][0] <= now:
                _, key, tubes = heapq.heappop(self._running)
                self._idle[tubes] += 1
                for dependent in self._dependents.get(key, ()):
                    self._unmet[dependent] -= 1
                    if not self._unmet[dependent]:
                        self._add_ready(dependent)
            self._start_builds(now)
        return self._spans

    def _add_ready(self, key: str) -> None:
        member = self._members[key]
        heapq.heappush(self._ready.setdefault(member.tube, []), (member.rank, -member.chain, key))

    def _start_builds(self, now: float) -> None:
        for tubes in sorted(self._idle, key=lambda each: (len(each), sorted(each))):
            while self._idle[tubes]:
                waiting = [self._ready[tube] for tube in tubes if self._ready.get(tube)]
                if not waiting:
                    break
                _, _, key = heapq.heappop(min(waiting, key=lambda each: each[0]))
                self._idle[tubes] -= 1
                end = now + self._members[key].seconds
                self._spans[key] = Span(now, end)
                heapq.heappush(self._running, (end, key, tubes))

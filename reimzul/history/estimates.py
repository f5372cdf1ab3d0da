# SPDX-License-Identifier: Apache-2.0
"""How long builds usually take, and when a waiting build is expected to start.

Durations are those of earlier successful builds; for a package never built on an arch, of that arch's other packages.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Optional

import attr

from reimzul.core.formatting import format_duration, pluralize
from reimzul.history import BuildFilter, History
from reimzul.history.build_record import BuildRecord, BuildState

#: How many earlier builds of a package, and of an arch, the durations are taken from.
PACKAGE_SAMPLE, ARCH_SAMPLE = 20, 300
#: With fewer builds than this the range is taken to be from half to twice the median.
_MIN_FOR_RANGE = 3
#: The same of a package in a plan, which may have thousands.
_PLAN_SAMPLE = 5
#: How long a build is taken to last where nothing was built on its arch yet.
DEFAULT_SECONDS = 300.0


@attr.frozen(kw_only=True)
class DurationStats:
    """How long something took, in seconds."""

    low: float  #: 10 % were shorter
    median: float
    high: float  #: 10 % were longer
    mean: float
    count: int  #: of builds
    own: bool = True  #: they are builds of the package itself, not of others on the arch


def quantile(ordered: Sequence[float], part: float) -> float:
    """Return the value below which that part of some ordered numbers lies, interpolated linearly."""
    where = part * (len(ordered) - 1)
    below, above = ordered[math.floor(where)], ordered[math.ceil(where)]
    return below + (above - below) * (where - math.floor(where))


def duration_stats(durations: Iterable[Optional[float]], *, own: bool = True) -> DurationStats | None:
    """Summarize durations; unknown ones are skipped. None if none is known."""
    ordered = sorted(each for each in durations if each is not None)
    if not ordered:
        return None
    low, median, high = (quantile(ordered, part) for part in (0.1, 0.5, 0.9))
    if len(ordered) < _MIN_FOR_RANGE:
        low, high = median / 2, median * 2
    return DurationStats(
        low=low, median=median, high=high, mean=sum(ordered) / len(ordered), count=len(ordered), own=own
    )


class ArchStats:
    def __init__(self, records: Iterable[BuildRecord]) -> None:
        by_package: dict[str, list[Optional[float]]] = {}
        for record in records:
            by_package.setdefault(record.pkgname, []).append(record.duration)
        self._packages = {name: duration_stats(each) for name, each in by_package.items()}
        self._all = duration_stats((took for each in by_package.values() for took in each), own=False)

    def stats_for(self, package: str) -> DurationStats | None:
        """Return a package's figures, else those of the whole arch; None if nothing was built on it yet."""
        return self._packages.get(package) or self._all


@attr.frozen
class UsualSeconds:
    """How long packages usually take on an arch."""

    seconds: Mapping[str, float]
    measured: Collection[str]  #: the packages that were built there before; the others' seconds are a guess

    @classmethod
    def guess(cls, packages: Iterable[str]) -> UsualSeconds:
        return cls(dict.fromkeys(packages, DEFAULT_SECONDS), ())


def find_usual_seconds(history: History, packages: Iterable[str], arch: str) -> UsualSeconds:
    states = (BuildState.BUILT, BuildState.PUBLISHED)
    others = duration_stats(
        each.duration for each in history.find_builds(BuildFilter(arch=arch, states=states), ARCH_SAMPLE)
    )
    found, measured = {}, set()
    for name in packages:
        own = duration_stats(each.duration for each in history.recent_successes(name, arch, _PLAN_SAMPLE))
        usual = own or others
        found[name] = usual.median if usual else DEFAULT_SECONDS
        measured |= {name} if own else set()
    return UsualSeconds(found, measured)


@attr.frozen(kw_only=True)
class Forecast:
    """When something is expected, in seconds from now; with 80 % probability between `low` and `high`."""

    low: float
    likely: float
    high: float


#: For a worker that is free now.
IDLE = Forecast(low=0.0, likely=0.0, high=0.0)


def estimate_start(ahead: Sequence[DurationStats | None], free_in: Sequence[Forecast]) -> Forecast | None:
    """Estimate when the next build after those ahead starts; `free_in`: how long each suitable worker is still busy.

    None without a suitable worker, or if the duration of a build ahead is unknown. Short and long builds among many
    ahead cancel out, so the uncertainty grows with the square root of their number only.
    """
    known = [each for each in ahead if each is not None]
    if not free_in or len(known) < len(ahead):
        return None
    workers = [each.likely for each in free_in]
    heapq.heapify(workers)
    for each in known:
        heapq.heapreplace(workers, workers[0] + each.mean)
    likely = workers[0]
    spread = math.hypot(*((each.high - each.low) / 2 for each in known)) / len(free_in)
    soonest = min(free_in, key=lambda each: each.likely)
    low = max(0.0, likely - spread - (soonest.likely - soonest.low))
    return Forecast(low=low, likely=likely, high=likely + spread + (soonest.high - soonest.likely))


def estimate_rest(takes: DurationStats, spent: float) -> Forecast:
    """Return how much longer something takes; after more than its 90 % quantile, as long as it has taken already."""
    if spent >= takes.high:
        return Forecast(low=0.0, likely=spent / 2, high=spent * 2)
    low, likely, high = (max(0.0, each - spent) for each in (takes.low, takes.median, takes.high))
    return Forecast(low=low, likely=likely, high=high)


def duration_text(takes: DurationStats) -> str:
    how = f"median of {pluralize(takes.count, 'build')}, {range_text(takes.low, takes.high)}"
    subject = "This package takes" if takes.own else "This package was not built on that arch before; others take"
    return f"{subject} {format_duration(takes.median)} ({how})."


def range_text(low: float, high: float) -> str:
    return f"80 %: {' to '.join(dict.fromkeys(map(format_duration, (low, high))))}"

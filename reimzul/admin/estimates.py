# SPDX-License-Identifier: Apache-2.0
"""How long builds usually take, and when a waiting build is expected to start and end.

A duration is a median of earlier successful builds, with the range that 80 % of them were in. For a package that was
never built on an arch, the other packages of that arch are used.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterable, Sequence
from typing import Optional

import attr

from reimzul.admin.output import format_duration, pluralize
from reimzul.history import BuildRecord

#: How many earlier builds of a package, and of an arch, are used.
PACKAGE_SAMPLE, ARCH_SAMPLE = 20, 300
#: With fewer builds than this the range is taken to be from half to twice the median.
_MIN_FOR_RANGE = 3
#: Standard deviations between the median and the 10 % or 90 % quantile of a normal distribution.
_DEVIATIONS_TO_QUANTILE = 1.28


@attr.frozen(kw_only=True)
class DurationStats:
    """How long something took, in seconds."""

    low: float  #: 10 % were shorter
    median: float
    high: float  #: 10 % were longer
    mean: float
    count: int  #: of builds
    own: bool = True  #: they are builds of the package itself, not of others on the arch

    @property
    def deviation(self) -> float:
        return (self.high - self.low) / (2 * _DEVIATIONS_TO_QUANTILE)


#: For a worker that is free now.
IDLE = DurationStats(low=0.0, median=0.0, high=0.0, mean=0.0, count=0)


@attr.frozen(kw_only=True)
class Forecast:
    """When something is expected, in seconds from now; with 80 % probability between `low` and `high`."""

    low: float
    likely: float
    high: float


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
    mean = sum(ordered) / len(ordered)
    return DurationStats(low=low, median=median, high=high, mean=mean, count=len(ordered), own=own)


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


def estimate_start(ahead: Sequence[DurationStats | None], free_in: Sequence[DurationStats]) -> Forecast | None:
    """Estimate when the next build after those ahead starts; `free_in`: how long each suitable worker is still busy.

    None without a suitable worker, or if the duration of a build ahead is unknown. Short and long builds among many
    ahead cancel out, so the uncertainty grows with the square root of their number only.
    """
    known = [each for each in ahead if each is not None]
    if not free_in or len(known) < len(ahead):
        return None
    workers = [each.median for each in free_in]
    heapq.heapify(workers)
    for each in known:
        heapq.heapreplace(workers, workers[0] + each.mean)
    likely = workers[0]
    spread = math.sqrt(sum(each.deviation**2 for each in known)) / len(free_in) * _DEVIATIONS_TO_QUANTILE
    soonest = min(free_in, key=lambda each: each.median)
    low = max(0.0, likely - spread - (soonest.median - soonest.low))
    return Forecast(low=low, likely=likely, high=likely + spread + (soonest.high - soonest.median))


def remaining(takes: DurationStats, spent: float) -> DurationStats:
    """Return how much longer something takes; after more than its 90 % quantile, as long as it has taken already."""
    if spent >= takes.high:
        return attr.evolve(takes, low=0.0, median=spent / 2, high=spent * 2, mean=spent / 2)
    low, median, high, mean = (max(0.0, each - spent) for each in (takes.low, takes.median, takes.high, takes.mean))
    return attr.evolve(takes, low=low, median=median, high=high, mean=mean)


def estimate_end(takes: DurationStats, spent: float) -> Forecast:
    rest = remaining(takes, spent)
    return Forecast(low=rest.low, likely=rest.median, high=rest.high)


def typical_duration_text(takes: DurationStats | None) -> str:
    if takes is None:
        return ""
    how = f"median of {pluralize(takes.count, 'build')}, {range_text(takes.low, takes.high)}"
    if takes.own:
        return f"This package takes {format_duration(takes.median)} ({how})."
    return f"This package was not built on that arch before; others take {format_duration(takes.median)} ({how})."


def range_text(low: float, high: float) -> str:
    return f"80 %: {format_duration(low)}" + (
        "" if format_duration(low) == format_duration(high) else f" to {format_duration(high)}"
    )

# SPDX-License-Identifier: Apache-2.0
"""How long builds usually take, from those that succeeded before, and when one that waits is likely to start. Pure.

A figure is a median, and the range that leaves out a tenth of the builds at each end. Of a
package that was never built on an arch, the arch's other packages have to serve, and it is said.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import attr

#: Past builds of one package, and of one arch, that are looked at.
PACKAGE_SAMPLE, ARCH_SAMPLE = 20, 300


#: Of fewer builds than this the spread says nothing: then anything from half to twice as long is taken for likely.
_FEW = 3
#: How many standard deviations lie between the median and the tenth at each end, where chance is normal.
_TENTH = 1.28


@attr.frozen(kw_only=True)
class DurationStats:
    """How long something took, in seconds."""

    low: float  #: one in ten was shorter
    median: float
    high: float  #: one in ten was longer
    mean: float
    count: int  #: of past builds
    own: bool = True  #: of the package itself, not of the arch's others

    @property
    def deviation(self) -> float:
        """How far one is off the mean, roughly."""
        return (self.high - self.low) / (2 * _TENTH)


def quantile(ordered: Sequence[float], part: float) -> float:
    """The value below which that part of some ordered numbers is, between neighbours in a straight line."""
    where = part * (len(ordered) - 1)
    below, above = ordered[math.floor(where)], ordered[math.ceil(where)]
    return below + (above - below) * (where - math.floor(where))


def duration_stats(durations: Iterable[float], *, own: bool = True) -> DurationStats | None:
    """The figures of some durations; None of none."""
    ordered = sorted(durations)
    if not ordered:
        return None
    low, median, high = (quantile(ordered, part) for part in (0.1, 0.5, 0.9))
    if len(ordered) < _FEW:
        low, high = median / 2, median * 2
    mean = sum(ordered) / len(ordered)
    return DurationStats(low=low, median=median, high=high, mean=mean, count=len(ordered), own=own)


def duration(document: Mapping[str, Any]) -> float | None:
    """Seconds that a leg took its builder; None where that is not known, or its clock was off, and perhaps set."""
    if document.get("skew"):
        return None
    started, finished = document.get("started") or 0.0, document.get("finished") or 0.0
    return finished - started if 0 < started <= finished else None


def durations(documents: Iterable[Mapping[str, Any]]) -> list[float]:
    """Those that are known."""
    return [took for document in documents if (took := duration(document)) is not None]


class ArchStats:
    """The builds of an arch, package by package."""

    def __init__(self, documents: Iterable[Mapping[str, Any]]) -> None:
        self._packages: dict[str, list[float]] = {}
        for document in documents:
            took = duration(document)
            if took is not None:
                self._packages.setdefault(document.get("pkgname") or "", []).append(took)
        self._all = duration_stats((took for each in self._packages.values() for took in each), own=False)
        self._known: dict[str, DurationStats | None] = {}

    def stats_for(self, package: str) -> DurationStats | None:
        """A package's figures, else the arch's; None where the arch has built nothing yet."""
        if package not in self._known:
            self._known[package] = duration_stats(self._packages.get(package, ())) or self._all
        return self._known[package]


@attr.frozen(kw_only=True)
class Forecast:
    """When something is likely, in seconds from now."""

    low: float
    likely: float
    high: float


def estimate_start(ahead: Sequence[DurationStats | None], free_in: Sequence[DurationStats]) -> Forecast | None:
    """When the next after those ahead starts; `free_in` is how long each worker that could take it is still busy.

    None where no worker could, or of one ahead nothing is known: then nothing can be said. Long and short ones among
    many ahead make up for each other, so the doubt grows with the root of their number only.
    """
    known = [each for each in ahead if each is not None]
    if not free_in or len(known) < len(ahead):
        return None
    workers = [each.median for each in free_in]
    heapq.heapify(workers)
    for each in known:
        heapq.heapreplace(workers, workers[0] + each.mean)
    likely = workers[0]
    doubt = math.sqrt(sum(each.deviation**2 for each in known)) / len(free_in) * _TENTH
    soonest = min(free_in, key=lambda each: each.median)
    return Forecast(
        low=max(0.0, likely - doubt - (soonest.median - soonest.low)),
        likely=likely,
        high=likely + doubt + (soonest.high - soonest.median),
    )


def remaining(takes: DurationStats, spent: float) -> DurationStats:
    """How much longer something takes that has taken that long already.

    Of what takes longer than nine in ten did, its past says nothing any more: it may take as long again.
    """
    if spent >= takes.high:
        return attr.evolve(takes, low=0.0, median=spent / 2, high=spent * 2, mean=spent / 2)
    low, median, high, mean = (max(0.0, each - spent) for each in (takes.low, takes.median, takes.high, takes.mean))
    return attr.evolve(takes, low=low, median=median, high=high, mean=mean)


def estimate_end(takes: DurationStats, spent: float) -> Forecast:
    """When something ends that takes that long, and has taken some of it."""
    rest = remaining(takes, spent)
    return Forecast(low=rest.low, likely=rest.median, high=rest.high)


IDLE = DurationStats(low=0.0, median=0.0, high=0.0, mean=0.0, count=0)  #: of a worker that is free now

# SPDX-License-Identifier: Apache-2.0
"""What became of many builds, in figures: counts, causes, and how long they waited and took. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

import attr

from reimzul.admin.tally import AttemptCounter, AttemptCounts
from reimzul.admin.usual import duration, quantile
from reimzul.core.message import Status
from reimzul.history import Document

#: What a build can have come to, in the order it is shown.
RESULTS = ("published", "built", "failed", "rejected", "cancelled", "override", "building", "queued")


@attr.frozen(kw_only=True)
class TimeStats:
    """How long something took, in seconds."""

    count: int
    median: float
    p95: float  #: one in twenty took longer
    total: float


def time_stats(seconds: Iterable[float]) -> TimeStats | None:
    """The figures of some spans; None of none."""
    ordered = sorted(seconds)
    if not ordered:
        return None
    median, p95 = quantile(ordered, 0.5), quantile(ordered, 0.95)
    return TimeStats(count=len(ordered), median=median, p95=p95, total=sum(ordered))


@attr.define
class StatsGroup:
    """The builds that have something in common: an arch, a package, a builder."""

    results: Counter[str] = attr.field(factory=Counter)
    waits: list[float] = attr.field(factory=list)
    builds: list[float] = attr.field(factory=list)

    def add(self, document: Document) -> None:
        """Count one in."""
        self.results[result(document)] += 1
        waited, took = wait(document), duration(document)
        if waited is not None:
            self.waits.append(waited)
        if took is not None:
            self.builds.append(took)

    @property
    def failure_count(self) -> int:
        """How many came to nothing, though nobody wanted that."""
        return self.results["failed"] + self.results["rejected"]

    def to_dict(self) -> dict[str, Any]:
        """For a program."""
        return {
            "results": {name: self.results[name] for name in RESULTS if self.results[name]},
            "wait": _plain(time_stats(self.waits)),
            "build": _plain(time_stats(self.builds)),
        }


@attr.define
class BuildStats:
    """All of them."""

    every: StatsGroup = attr.field(factory=StatsGroup)
    arches: dict[str, StatsGroup] = attr.field(factory=dict)
    packages: dict[str, StatsGroup] = attr.field(factory=dict)
    builders: dict[str, StatsGroup] = attr.field(factory=dict)
    causes: Counter[str] = attr.field(factory=Counter)
    attempts: Mapping[str, AttemptCounts] = attr.field(factory=dict)


def compute_stats(documents: Iterable[Document]) -> BuildStats:
    """The figures of builds; each leg counts as one."""
    found, tallies = BuildStats(), AttemptCounter()
    for document in documents:
        name = document.get("pkgname") or document["srpm"].rsplit("-", 2)[0]
        groups = [found.every, found.arches.setdefault(document["arch"], StatsGroup())]
        groups.append(found.packages.setdefault(name, StatsGroup()))
        if document.get("builder_fqdn"):
            groups.append(found.builders.setdefault(document["builder_fqdn"], StatsGroup()))
        for group in groups:
            group.add(document)
        if result(document) in ("failed", "rejected"):
            found.causes[failure_cause(document)] += 1
        tallies.add(document)
    found.attempts = tallies.counts()
    return found


def result(document: Mapping[str, Any]) -> str:
    """What a leg came to, in one word."""
    status: str = document["status"]
    if status == Status.SUCCESS and document.get("published"):
        return "published"
    return "built" if status == Status.SUCCESS else status.lower()


def failure_cause(document: Mapping[str, Any]) -> str:
    """Why a leg came to nothing, without what is this one's alone: the part of its reason before a colon."""
    reason = str(document.get("reason") or "").partition(":")[0].strip()
    return reason or "no reason was given"


def wait(document: Mapping[str, Any]) -> float | None:
    """Seconds from its submission to its first attempt; None where one of them is not known.

    The two ends are told by two hosts' clocks: less than nothing is nothing, and a clock that is off says nothing.
    """
    first: Mapping[str, Any] = next((each for each in document.get("attempts") or () if each.get("started")), {})
    began, queued = first.get("started") or 0.0, document.get("queued_at") or 0.0
    return max(0.0, began - queued) if began and queued and not first.get("skew") else None


def _plain(found: TimeStats | None) -> dict[str, Any] | None:
    return None if found is None else attr.asdict(found)

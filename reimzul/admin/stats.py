# SPDX-License-Identifier: Apache-2.0
"""`reimzul stats`: how many builds there were, their results, causes of failure, and how long they waited and took.

`reimzul metrics` and `reimzul builders` use the same figures.
"""

from __future__ import annotations

import sys
import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Optional

import attr
import click

from reimzul.admin import lookup, options
from reimzul.admin.estimates import quantile
from reimzul.admin.output import format_duration, format_time, print_json, print_table
from reimzul.core.cli import EXIT_CODES, load_settings, shared_options
from reimzul.core.message import Status
from reimzul.history import BuildFilter, BuildRecord
from reimzul.history.build_record import BuildState, RecordedAttempt

_HEADS = ("BUILDS", "FAILED", "WAITED", "95 %", "TOOK", "95 %", "IN ALL")


@click.command("stats", epilog=EXIT_CODES)
@click.option(
    "--since",
    "begin",
    callback=options.parse_since_option,
    default="7d",
    show_default=True,
    metavar="WHEN",
    help="Of builds submitted since: 12h, 7d, 2026-11-22.",
)
@click.option("--target", metavar="TARGET", help="With its arch, as c7.1708.u.x86_64.")
@click.option("--top", type=click.IntRange(0, 100_000), default=10, show_default=True, metavar="COUNT",
              help="How many packages are shown: those that took most time in all.")  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="An object, with all packages. docs/json.md has its keys.")
@shared_options
def command(config: Path | None, verbose: bool, begin: float, target: str | None, top: int, as_json: bool) -> None:
    """Count builds and their results by arch, package and builder, with how long they waited and took.

    Each arch of a build counts as one. Times are the median, and the time that 5 % exceeded. FAULTS are attempts that
    failed through the builder's own fault, of all its attempts.

    \b
    Examples:
      reimzul stats
      reimzul stats --since 24h --target c7.1708.u.x86_64
      reimzul stats --since 2026-11-01 --json
    """
    settings = load_settings(config, verbose)
    with lookup.reading_history(settings.history.url) as history:
        stats = compute_stats(history.iterate_builds(BuildFilter(since=options.build_timestamp(begin), target=target)))
    if as_json:
        print_json(to_dict(stats, begin))
        return
    is_terminal = sys.stdout.isatty()
    if is_terminal:
        click.echo(f"since {format_time(begin)}")
    for name, heads, rows in _tables(stats, top):
        if is_terminal:
            click.echo()
        print_table(heads, rows if is_terminal else [[name, *row] for row in rows])


# --- figures


@attr.frozen(kw_only=True)
class TimeStats:
    """How long something took, in seconds."""

    count: int
    median: float
    p95: float  #: 5 % took longer
    total: float


def time_stats(seconds: Iterable[float]) -> TimeStats | None:
    """Summarize times; None if there are none."""
    ordered = sorted(seconds)
    if not ordered:
        return None
    median, p95 = quantile(ordered, 0.5), quantile(ordered, 0.95)
    return TimeStats(count=len(ordered), median=median, p95=p95, total=sum(ordered))


@attr.define
class StatsGroup:
    results: Counter[str] = attr.field(factory=Counter)  #: by `BuildState`
    waits: list[float] = attr.field(factory=list)
    builds: list[float] = attr.field(factory=list)

    def add(self, state: str, wait: Optional[float], duration: Optional[float]) -> None:
        self.results[state] += 1
        if wait is not None:
            self.waits.append(wait)
        if duration is not None:
            self.builds.append(duration)

    @property
    def failure_count(self) -> int:
        return self.results[BuildState.FAILED] + self.results[BuildState.REJECTED]

    def to_dict(self) -> dict[str, Any]:
        waited, took = time_stats(self.waits), time_stats(self.builds)
        return {
            "results": {state: self.results[state] for state in BuildState.ALL if self.results[state]},
            "wait": attr.asdict(waited) if waited else None,
            "build": attr.asdict(took) if took else None,
        }


@attr.define
class AttemptCounts:
    attempts: int = 0  #: that have ended
    faults: int = 0  #: that failed through the builder's own fault
    last: Optional[RecordedAttempt] = None  #: the one that ended last
    last_srpm: str = ""  #: and what it was an attempt at
    last_arch: str = ""


class AttemptCounter:
    """Counts attempts by builder. An attempt at several legs counts once, and as a fault if one of them was a fault."""

    def __init__(self) -> None:
        self._faulty: dict[tuple[str, str, str], bool] = {}
        self._counts: dict[str, AttemptCounts] = {}

    def add(self, record: BuildRecord) -> None:
        for attempt in record.attempts:
            if not attempt.is_over:
                continue
            builder = attempt.builder_fqdn
            key = (builder, record.build_id, attempt.attempt)
            self._faulty[key] = self._faulty.get(key, False) or attempt.status == Status.UNFIT
            counts = self._counts.setdefault(builder, AttemptCounts())
            if counts.last is None or attempt.ended_at >= counts.last.ended_at:
                counts.last, counts.last_srpm, counts.last_arch = attempt, record.srpm, record.arch

    def counts(self) -> dict[str, AttemptCounts]:
        """Return the counts by builder. To be called once, at the end."""
        for (builder, _, _), is_fault in self._faulty.items():
            self._counts[builder].attempts += 1
            self._counts[builder].faults += is_fault
        return self._counts


@attr.define
class BuildStats:
    every: StatsGroup = attr.field(factory=StatsGroup)
    arches: dict[str, StatsGroup] = attr.field(factory=lambda: defaultdict(StatsGroup))
    packages: dict[str, StatsGroup] = attr.field(factory=lambda: defaultdict(StatsGroup))
    builders: dict[str, StatsGroup] = attr.field(factory=lambda: defaultdict(StatsGroup))
    causes: Counter[str] = attr.field(factory=Counter)
    attempts: Mapping[str, AttemptCounts] = attr.field(factory=dict)

    def by_builder(self) -> Iterator[tuple[str, StatsGroup, AttemptCounts]]:
        for name in sorted({*self.builders, *self.attempts}):
            yield name, self.builders.get(name, StatsGroup()), self.attempts.get(name, AttemptCounts())


def compute_stats(records: Iterable[BuildRecord]) -> BuildStats:
    """Compute the figures of builds; each arch counts as one."""
    stats, counter = BuildStats(), AttemptCounter()
    for record in records:
        state, wait, duration = record.state, record.wait, record.duration
        groups = [stats.every, stats.arches[record.arch], stats.packages[record.package]]
        if record.builder_fqdn:
            groups.append(stats.builders[record.builder_fqdn])
        for group in groups:
            group.add(state, wait, duration)
        if state in (BuildState.FAILED, BuildState.REJECTED):
            stats.causes[failure_cause(record)] += 1
        counter.add(record)
    stats.attempts = counter.counts()
    return stats


def failure_cause(record: BuildRecord) -> str:
    """Return the reason of a failure up to its first colon: details of this one build follow that."""
    return record.reason.partition(":")[0].strip() or "no reason was given"


# --- output


def to_dict(stats: BuildStats, begin: float) -> dict[str, Any]:
    return {
        "since": begin,
        "until": time.time(),
        **stats.every.to_dict(),
        "causes": dict(stats.causes),
        "arches": {name: group.to_dict() for name, group in stats.arches.items()},
        "packages": {name: group.to_dict() for name, group in stats.packages.items()},
        "builders": {
            name: {**group.to_dict(), "attempts": counts.attempts, "faults": counts.faults}
            for name, group, counts in stats.by_builder()
        },
    }


def _tables(stats: BuildStats, top: int) -> Iterator[tuple[str, Sequence[str], list[list[str]]]]:
    """Yield each table: its name in a pipe, its column heads on a terminal, and its rows."""
    results = stats.every.results
    yield "result", ("RESULT", "BUILDS"), [[name, str(results[name])] for name in BuildState.ALL if results[name]]
    if stats.causes:
        yield "cause", ("CAUSE OF FAILURE", "BUILDS"), [[why, str(n)] for why, n in stats.causes.most_common(top)]
    yield "arch", ("ARCH", *_HEADS), [[name, *_cells(group)] for name, group in stats.arches.items()]
    longest = sorted(stats.packages.items(), key=lambda item: -sum(item[1].builds))[:top]
    yield "package", ("PACKAGE", *_HEADS), [[name, *_cells(group)] for name, group in longest]
    builders = [
        [name, *_cells(group), f"{counts.faults} of {counts.attempts}"] for name, group, counts in stats.by_builder()
    ]
    yield "builder", ("BUILDER", *_HEADS, "FAULTS"), builders


def _cells(group: StatsGroup) -> list[str]:
    waited, took = time_stats(group.waits), time_stats(group.builds)
    return [
        str(sum(group.results.values())),
        str(group.failure_count),
        *([format_duration(waited.median), format_duration(waited.p95)] if waited else ["-", "-"]),
        *(
            [format_duration(took.median), format_duration(took.p95), format_duration(took.total)]
            if took
            else ["-", "-", "-"]
        ),
    ]

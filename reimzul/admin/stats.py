# SPDX-License-Identifier: Apache-2.0
"""`reimzul stats`: how many builds there were, their results, reasons of failure, and how long they waited and took.

`reimzul metrics`, `builders`, `explain` and `watch` use the same figures.
"""

from __future__ import annotations

import sys
import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Optional

import attr
import click

from reimzul.admin import lookup, output
from reimzul.admin.target_option import expand_option, refuse_unknown, target_option
from reimzul.core.cli import EXIT_CODES
from reimzul.core.formatting import format_duration, format_rfc3339, format_time
from reimzul.core.message import Status
from reimzul.core.option_types import WholeNumber
from reimzul.core.settings import Settings
from reimzul.history import BuildFilter, BuildRecord, History, NoHistory
from reimzul.history.build_record import BuildState, RecordedAttempt
from reimzul.history.estimates import quantile

_HEADS = ("BUILDS", "FAILED", "WAITED", "95 %", "TOOK", "95 %", "IN ALL")


@click.command("stats", epilog=EXIT_CODES)
@output.period_options("Count builds")
@target_option()
@click.option("--top", type=WholeNumber(0, 100_000), default=10, show_default=True, metavar="COUNT",
              help="How many packages are shown: those that took most time in all.")  # fmt: skip
@output.json_option("an object, with all packages")
@output.pass_settings
def command(settings: Settings, begin: float, end: float | None, target: str | None, top: int, as_json: bool) -> None:
    """Count builds and their results by arch, package and builder, with how long they waited and took.

    Each arch of a build counts as one. Times are the median, and the time that 5 % exceeded. FAULTS are attempts that
    failed through the builder's own fault, of all its attempts.

    \b
    Examples:
      reimzul stats
      reimzul stats --since 24h --target c9s
      reimzul stats --since 2026-11-01 --json
    """
    if as_json:
        output.refuse_ignored("with --json", "top")
    stats, reason = BuildStats(), ""
    try:
        with lookup.reading_history(settings.history.url) as history:
            stats = compute_stats_between(history, begin, end, expand_option(settings, target))
            if not stats.count:
                refuse_unknown(settings, history, target=target)
    except NoHistory as error:
        reason = str(error)
    if reason or not (stats.count or as_json):
        output.print_none_found("build", reason, as_json=as_json)
    if as_json:
        output.print_json(to_dict(stats, begin, end or time.time()))
    elif stats.count:
        _print_tables(stats, top, f"since {format_time(begin)}{f', until {format_time(end)}' if end else ''}")


def _print_tables(stats: BuildStats, top: int, title: str) -> None:
    is_terminal = sys.stdout.isatty()
    if is_terminal:
        click.echo(title)
    for name, heads, rows in _tables(stats, top):
        if is_terminal:
            click.echo()
        if is_terminal:
            output.print_table(output.Table(heads), rows)
        else:
            output.print_table(output.Table(("TABLE", *heads)), [[name, *row] for row in rows])


# --- figures of many builds


@attr.frozen(kw_only=True)
class TimeStats:
    """How long something took, in seconds, as `reimzul stats` shows it."""

    count: int
    median: float
    p95: float  #: 5 % took longer
    total: float


def time_stats(seconds: Iterable[Optional[float]]) -> TimeStats | None:
    """Summarize times; unknown ones are skipped. None if none is known."""
    ordered = sorted(each for each in seconds if each is not None)
    if not ordered:
        return None
    return TimeStats(count=len(ordered), median=quantile(ordered, 0.5), p95=quantile(ordered, 0.95), total=sum(ordered))


@attr.define
class StatsGroup:
    results: Counter[str] = attr.field(factory=Counter)  #: by `BuildState`
    waits: list[Optional[float]] = attr.field(factory=list)
    builds: list[Optional[float]] = attr.field(factory=list)

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
    """A builder's attempts that have ended. One at several legs counts once, and as a fault if it was one at any."""

    faulty: dict[tuple[str, str], bool] = attr.field(factory=dict)  #: by build id and token: the builder's own fault?
    last: Optional[RecordedAttempt] = None  #: the one that ended last
    last_srpm: str = ""  #: and what it was an attempt at
    last_arch: str = ""

    @property
    def attempts(self) -> int:
        return len(self.faulty)

    @property
    def faults(self) -> int:
        return sum(self.faulty.values())

    def add(self, record: BuildRecord, attempt: RecordedAttempt) -> None:
        key = (record.build_id, attempt.attempt)
        self.faulty[key] = self.faulty.get(key, False) or attempt.status == Status.UNFIT
        if self.last is None or attempt.ended_at >= self.last.ended_at:
            self.last, self.last_srpm, self.last_arch = attempt, record.srpm, record.arch


@attr.define
class BuildStats:
    every: StatsGroup = attr.field(factory=StatsGroup)
    arches: dict[str, StatsGroup] = attr.field(factory=lambda: defaultdict(StatsGroup))
    packages: dict[str, StatsGroup] = attr.field(factory=lambda: defaultdict(StatsGroup))
    builders: dict[str, StatsGroup] = attr.field(factory=lambda: defaultdict(StatsGroup))
    reasons: Counter[str] = attr.field(factory=Counter)
    attempts: dict[str, AttemptCounts] = attr.field(factory=lambda: defaultdict(AttemptCounts))  #: by builder

    @property
    def count(self) -> int:
        """The number of builds."""
        return sum(self.every.results.values())

    def by_builder(self) -> Iterator[tuple[str, StatsGroup, AttemptCounts]]:
        for name in sorted({*self.builders, *self.attempts}):
            yield name, self.builders.get(name, StatsGroup()), self.attempts.get(name, AttemptCounts())


def compute_stats_between(
    history: History, begin: float, end: float | None = None, targets: Sequence[str] | None = None
) -> BuildStats:
    """Compute the figures of the builds that were submitted between two moments, in seconds since 1970."""
    return compute_stats(history.iterate_builds(BuildFilter(**output.period_filter(begin, end), targets=targets)))


def compute_stats(records: Iterable[BuildRecord]) -> BuildStats:
    """Compute the figures of builds; each arch counts as one."""
    stats = BuildStats()
    for record in records:
        state, wait, duration = record.state, record.wait, record.duration
        groups = [stats.every, stats.arches[record.arch], stats.packages[record.package]]
        if record.builder_fqdn:
            groups.append(stats.builders[record.builder_fqdn])
        for group in groups:
            group.results[state] += 1
            group.waits.append(wait)
            group.builds.append(duration)
        if state in (BuildState.FAILED, BuildState.REJECTED):
            stats.reasons[failure_reason(record)] += 1
        for attempt in record.attempts:
            if attempt.is_over:
                stats.attempts[attempt.builder_fqdn].add(record, attempt)
    return stats


def failure_reason(record: BuildRecord) -> str:
    """Return the reason of a failure up to its first colon: details of this one build follow that."""
    return record.reason.partition(":")[0].strip() or "no reason was given"


# --- output


def to_dict(stats: BuildStats, begin: float, end: float) -> dict[str, Any]:
    return {
        "since": format_rfc3339(max(0.0, begin)),  # 0 is a time here, and not an unknown one
        "until": end,
        **stats.every.to_dict(),
        "reasons": dict(stats.reasons),
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
    if stats.reasons:
        yield "reason", ("REASON OF FAILURE", "BUILDS"), [[why, str(n)] for why, n in stats.reasons.most_common(top)]
    yield "arch", ("ARCH", *_HEADS), [[name, *_cells(group)] for name, group in stats.arches.items()]
    longest = sorted(stats.packages.items(), key=lambda item: -sum(filter(None, item[1].builds)))[:top]
    yield "package", ("PACKAGE", *_HEADS), [[name, *_cells(group)] for name, group in longest]
    builders = [
        [name, *_cells(group), f"{counts.faults} of {counts.attempts}"] for name, group, counts in stats.by_builder()
    ]
    yield "builder", ("BUILDER", *_HEADS, "FAULTS"), builders


def _cells(group: StatsGroup) -> list[str]:
    waited, took = time_stats(group.waits), time_stats(group.builds)
    counts = [str(sum(group.results.values())), str(group.failure_count)]
    wait = [format_duration(waited.median), format_duration(waited.p95)] if waited else ["-", "-"]
    build = [format_duration(each) for each in (took.median, took.p95, took.total)] if took else ["-", "-", "-"]
    return [*counts, *wait, *build]

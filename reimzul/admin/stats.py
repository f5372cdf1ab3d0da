# SPDX-License-Identifier: Apache-2.0
"""`reimzul stats`: builds, failures and times since a while ago."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from reimzul.admin import reading, since
from reimzul.admin.figures import RESULTS, BuildStats, StatsGroup, compute_stats, time_stats
from reimzul.admin.table import show, show_json, when
from reimzul.admin.tally import AttemptCounts
from reimzul.admin.words import span
from reimzul.core.cli import EXIT_CODES, load_settings, shared_options
from reimzul.history import BuildFilter

_HEADS = ("BUILDS", "FAILED", "WAITED", "95 %", "TOOK", "95 %", "IN ALL")


@click.command("stats", epilog=EXIT_CODES)
@click.option(
    "--since",
    "begin",
    callback=since.moment,
    default="7d",
    show_default=True,
    metavar="WHEN",
    help="Of builds submitted since: 12h, 7d, 2026-11-22.",
)
@click.option("--target", metavar="TARGET", help="With its arch, as c7.1708.u.x86_64.")
@click.option("--top", type=click.IntRange(0, 100_000), default=10, show_default=True, metavar="COUNT",
              help="Packages that are shown: those that took most time in all.")  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="An object, with all packages. docs/json.md has its keys.")
@shared_options
def command(config: Path | None, verbose: bool, begin: float, target: str | None, top: int, as_json: bool) -> None:
    """Count builds and what became of them, by arch, package and builder; how long they waited, and how long they took.

    A build of an arch counts as one; times are the median, and what one in twenty exceeded. A builder's faults are
    attempts that were its own fault, of all its attempts.

    \b
    Examples:
      reimzul stats
      reimzul stats --since 24h --target c7.1708.u.x86_64
      reimzul stats --since 2026-11-01 --json
    """
    settings = load_settings(config, verbose)
    with reading.reading_history(settings.history.url) as history:
        found = compute_stats(history.iterate_builds(BuildFilter(since=since.timestamp(begin), target=target)))
    if as_json:
        show_json(as_object(found, begin))
    else:
        _show(found, begin, top)


def _show(found: BuildStats, begin: float, top: int) -> None:
    """Tables; in a pipe lines that begin with what they are about."""
    terminal = sys.stdout.isatty()
    if terminal:
        click.echo(f"since {when(begin)}")
    for name, heads, rows in sections(found, top):
        if terminal:
            click.echo()
            show(heads, rows)
        else:
            show(heads, [[name, *row] for row in rows])


def sections(found: BuildStats, top: int) -> Iterator[tuple[str, Sequence[str], list[list[str]]]]:
    """What is shown: its name in a pipe, the heads of its columns on a terminal, and its rows."""
    results = [[name, str(found.every.results[name])] for name in RESULTS if found.every.results[name]]
    yield "result", ("RESULT", "BUILDS"), results
    if found.causes:
        causes = [[why, str(count)] for why, count in found.causes.most_common(top)]
        yield "cause", ("CAUSE OF FAILURE", "BUILDS"), causes
    yield "arch", ("ARCH", *_HEADS), _rows(found.arches)
    longest = sorted(found.packages.items(), key=lambda item: -sum(item[1].builds))[:top]
    yield "package", ("PACKAGE", *_HEADS), _rows(dict(longest))
    yield "builder", ("BUILDER", *_HEADS, "FAULTS"), _builders(found)


def _rows(groups: Mapping[str, StatsGroup]) -> list[list[str]]:
    return [[name, *_cells(group)] for name, group in groups.items()]


def _builders(found: BuildStats) -> list[list[str]]:
    rows = []
    for name in sorted({*found.builders, *found.attempts}):
        tally = found.attempts.get(name, AttemptCounts())
        rows.append([name, *_cells(found.builders.get(name, StatsGroup())), f"{tally.faults} of {tally.attempts}"])
    return rows


def _cells(group: StatsGroup) -> list[str]:
    waited, took = time_stats(group.waits), time_stats(group.builds)
    return [
        str(sum(group.results.values())),
        str(group.failure_count),
        *([span(waited.median), span(waited.p95)] if waited else ["-", "-"]),
        *([span(took.median), span(took.p95), span(took.total)] if took else ["-", "-", "-"]),
    ]


def as_object(found: BuildStats, begin: float) -> dict[str, Any]:
    """The same for a program."""
    builders = {}
    for name in sorted({*found.builders, *found.attempts}):
        tally = found.attempts.get(name, AttemptCounts())
        own = found.builders.get(name, StatsGroup()).to_dict()
        builders[name] = {**own, "attempts": tally.attempts, "faults": tally.faults}
    return {
        "since": begin,
        "until": time.time(),
        **found.every.to_dict(),
        "causes": dict(found.causes),
        "arches": {name: group.to_dict() for name, group in found.arches.items()},
        "packages": {name: group.to_dict() for name, group in found.packages.items()},
        "builders": builders,
    }

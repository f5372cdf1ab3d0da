# SPDX-License-Identifier: Apache-2.0
"""`reimzul builders`: who is there, doing what, since when, and how well."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from reimzul.admin import lookup, since
from reimzul.admin.stats import AttemptCounts, compute_stats
from reimzul.admin.table import show, show_json
from reimzul.admin.words import size, skewed, span
from reimzul.core import control
from reimzul.core.beanstalk import Broker, drain_tube
from reimzul.core.cli import EXIT_CODES, load_settings, print_error, shared_options
from reimzul.core.config import Settings
from reimzul.core.errors import EXIT_BROKER, BrokerUnavailable
from reimzul.history import BuildFilter, NoHistory
from reimzul.history.workers import WorkerRecord, drop_disconnected, shared_names

_HEADS = ("BUILDER", "WORKER", "STATE", "FOR", "DOES", "LAST RESULT", "FAULTS", "FREE", "LOAD", "HEARD", "VERSION")
_NEEDED = 5


@click.command("builders", epilog=EXIT_CODES)
@click.option(
    "--since",
    "begin",
    callback=since.moment,
    default="7d",
    show_default=True,
    metavar="WHEN",
    help="Count faults and results of builds submitted since: 12h, 7d, 2026-11-22.",
)
@click.option("--json", "as_json", is_flag=True, help="A list of workers. docs/json.md has its keys.")
@shared_options
def command(config: Path | None, verbose: bool, begin: float, as_json: bool) -> int:
    """Show every worker: what it does and for how long, what came of its last build, how often it was at fault.

    FAULTS are attempts that were the builder's own fault, of all its attempts. A worker that has said nothing for two
    minutes is `silent`. One that is `draining` ends what it does and takes nothing after that; `drained`, `unfit` and
    `quarantined` ones take nothing, and DOES says why. It also says of a builder that its clock is off, or that another
    host goes by its name. A worker that has ended, or whose connection has, is left out.

    \b
    Examples:
      reimzul builders
      reimzul builders --since 24h --json
    """
    settings = load_settings(config, verbose)
    seen = lookup.load_workers(settings)
    tallies = _tallies(settings, begin)
    marks, away = {}, ""
    try:
        with Broker(settings.beanstalkd.host, settings.beanstalkd.port) as broker:
            seen = drop_disconnected(broker, seen)
            marks = _marks(broker, [each.heartbeat.host for each in seen])
    except BrokerUnavailable as error:  # what the workers said last is on this host
        away = f"{error}; which workers have ended, and which builders are to take nothing cannot be told"
    now, shared = time.time(), shared_names(seen)
    if as_json:
        show_json([as_object(each, tallies, marks, shared, now) for each in seen])
    elif seen:
        show(_HEADS, [_row(each, tallies, marks, shared, now) for each in seen], needed=_NEEDED)
    else:
        click.echo("No worker has said that it is there.", err=True)
    if away:
        print_error(command, away)
    return EXIT_BROKER if away else 0


def _tallies(settings: Settings, begin: float) -> dict[str, AttemptCounts]:
    try:
        with lookup.reading_history(settings.history.url) as history:
            return dict(compute_stats(history.iterate_builds(BuildFilter(since=since.timestamp(begin)))).attempts)
    except NoHistory:
        return {}


def _marks(broker: Broker, hosts: Sequence[str]) -> dict[str, control.ControlFlag]:
    """The marks of those builders that are to take nothing."""
    tubes = set(broker.list_tubes())
    found = {host: control.drain_flag(broker, host) for host in set(hosts) if drain_tube(host) in tubes}
    return {host: each for host, each in found.items() if each is not None}


def state(seen: WorkerRecord, now: float) -> str:
    """What a worker does, in a word."""
    return seen.state_at(now)


def _row(
    seen: WorkerRecord,
    tallies: Mapping[str, AttemptCounts],
    marks: Mapping[str, control.ControlFlag],
    shared: Mapping[str, str],
    now: float,
) -> list[str]:
    there = seen.heartbeat
    tally = tallies.get(there.host, AttemptCounts())
    return [
        there.host,
        there.instance,
        state(seen, now),
        span(seen.seconds_since(there.build.started, now)) if there.build else "-",
        _does(seen, marks, shared),
        _last(tally, now),
        f"{tally.faults} of {tally.attempts}",
        size(there.free_mib * 1024**2),
        f"{there.load:.2f}",
        f"{span(now - seen.last_seen)} ago",
        there.version or "-",
    ]


def _does(seen: WorkerRecord, marks: Mapping[str, control.ControlFlag], shared: Mapping[str, str]) -> str:
    there = seen.heartbeat
    found = marks.get(there.host)
    phase = f" ({there.build.phase})" if there.build and there.build.phase else ""
    words = [
        f"{there.build.srpm} for {there.build.target}{phase}" if there.build else "",
        found.drain_text if found else there.why,
        shared.get(there.host, ""),
        f"its clock is {skewed(seen.skew)}" if seen.skew else "",
    ]
    return "; ".join(filter(None, words)) or "-"


def _last(tally: AttemptCounts, now: float) -> str:
    if not tally.last:
        return "-"
    return f"{tally.last.status} {tally.last_srpm}, {span(now - tally.last.ended_at)} ago"


def as_object(
    seen: WorkerRecord,
    tallies: Mapping[str, AttemptCounts],
    marks: Mapping[str, control.ControlFlag],
    shared: Mapping[str, str],
    now: float,
) -> dict[str, Any]:
    """The same for a program."""
    tally = tallies.get(seen.heartbeat.host, AttemptCounts())
    found = marks.get(seen.heartbeat.host)
    last = None
    if tally.last is not None:
        last = {**tally.last.to_document(), "srpm": tally.last_srpm, "arch": tally.last_arch}
    return {
        **seen.to_dict(),
        "state": state(seen, now),
        "heard": seen.last_seen,
        "skew": seen.skew,
        "name_shared": shared.get(seen.heartbeat.host, ""),
        "drain": None if found is None else {"by": found.by, "at": found.at, "why": found.why, "reason": found.reason},
        "attempts": tally.attempts,
        "faults": tally.faults,
        "last": last,
    }

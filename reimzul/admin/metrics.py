# SPDX-License-Identifier: Apache-2.0
"""`reimzul metrics`: the farm's figures as OpenMetrics text, for Prometheus and node_exporter's textfile collector.

The format: https://github.com/prometheus/OpenMetrics/blob/main/specification/OpenMetrics.md. All metrics are gauges:
they show the present, or the last day. Writing the text takes thirty lines, so no library is needed.
"""

from __future__ import annotations

import math
import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Optional

import attr
import click

from reimzul.admin import lookup
from reimzul.admin.held import count_held, separate_held
from reimzul.admin.output import pass_settings
from reimzul.admin.queues import all_tubes
from reimzul.admin.stats import BuildStats, compute_stats_between, time_stats
from reimzul.core import fs
from reimzul.core.beanstalk import Broker, is_control_tube
from reimzul.core.beanstalk_stats import TubeStats
from reimzul.core.cli import EXIT_CODES
from reimzul.core.errors import EXIT_FAILED, BrokerUnavailable, InputError, describe_os_error
from reimzul.core.message import WorkerState
from reimzul.core.pending import OutboxUnreadable, PendingDeliveries, read_pending
from reimzul.core.settings import Settings
from reimzul.history import BuildRecord, HistoryUnavailable, NoHistory
from reimzul.history.workers import SILENT, WorkerRecord, WorkersUnavailable

_DAY_SECONDS = 86400
#: Packages that have time series of their own.
_MAX_PACKAGES = 50


@click.command("metrics", epilog=EXIT_CODES)
@click.option(
    "--output",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    help="Replace this file in one step: node_exporter's textfile collector reads *.prom of a folder.",
)
@pass_settings
def command(settings: Settings, output: Path | None) -> int:
    """Print the farm's figures as OpenMetrics text: tubes, workers, and the builds of the last day.

    A part of the farm that does not answer is left out; `reimzul_part_up` is 0 for it, and the exit code is 1. The
    unit reimzul-metrics.timer runs this every minute.

    \b
    Examples:
      reimzul metrics
      reimzul metrics --output /var/lib/reimzul-metrics/reimzul.prom
    """
    collected, faults = collect_metrics(settings)
    text = format_openmetrics(build_gauges(collected))
    if output is None:
        click.echo(text, nl=False)
    else:
        try:
            fs.write_atomic(output, text)
        except OSError as error:
            raise InputError(f"{output}: {describe_os_error(error)}") from error
    for fault in faults:
        click.echo(f"reimzul: {fault}", err=True)
    return EXIT_FAILED if faults else 0


@attr.define(kw_only=True)
class MetricsInput:
    """The figures to show; None for a part of the farm that did not answer."""

    now: float
    tubes: Optional[Sequence[TubeStats]] = None
    workers: Optional[Sequence[WorkerRecord]] = None
    day: Optional[BuildStats] = None  #: of the builds submitted in the last 24 hours
    waiting: Sequence[BuildRecord] = ()
    pending: Sequence[PendingDeliveries] = ()


def collect_metrics(settings: Settings) -> tuple[MetricsInput, list[str]]:
    """Return the figures, and the faults of the parts that did not answer."""
    found, faults = MetricsInput(now=time.time()), []
    try:
        with Broker.from_settings(settings.beanstalkd) as broker:
            names = [name for name in all_tubes(broker, settings) if name != "default" and not is_control_tube(name)]
            found.tubes = [broker.tube_stats(name) for name in names]
    except BrokerUnavailable as error:
        faults.append(str(error))
    try:
        found.workers = lookup.load_workers(settings)
    except WorkersUnavailable as error:
        faults.append(str(error))
    try:
        with lookup.reading_history(settings.history.url) as history:
            found.day = compute_stats_between(history, found.now - _DAY_SECONDS)
            found.waiting = history.find_unfinished()
    except (HistoryUnavailable, NoHistory) as error:
        faults.append(str(error))
    if found.tubes is not None:
        found.tubes = separate_held(found.tubes, count_held(found.waiting))
    try:
        found.pending = read_pending(settings.notifier.ledger)
    except OutboxUnreadable as error:
        faults.append(str(error))
    return found, faults


# --- the metrics


@attr.frozen
class Gauge:
    name: str
    help: str
    samples: Sequence[tuple[float, Mapping[str, str]]]  #: values, with their labels


def build_gauges(collected: MetricsInput) -> Iterator[Gauge]:
    now, pending = collected.now, collected.pending
    parts = {"beanstalkd": collected.tubes, "workers": collected.workers, "history": collected.day}
    yield _gauge_by(
        "part", "reimzul_part_up", "Whether a part of the farm answered when these figures were made.",
        ((name, float(part is not None)) for name, part in parts.items()),
    )  # fmt: skip
    yield Gauge("reimzul_made_timestamp_seconds", "When these figures were made.", [(now, {})])
    yield from _tube_gauges(collected)
    yield from _worker_gauges(collected)
    if collected.day is not None:
        yield from _day_gauges(collected.day)
        yield from _time_gauges(collected.day)
    yield _gauge_by(
        "sink", "reimzul_owed_events", "Events that a sink of the notifier has still to deliver.",
        ((each.sink, each.count) for each in pending),
    )  # fmt: skip
    yield _gauge_by(
        "sink", "reimzul_owed_oldest_seconds", "The age of the oldest of these.",
        ((each.sink, max(0.0, now - each.oldest)) for each in pending),
    )  # fmt: skip


def _gauge_by(label: str, name: str, text: str, values: Iterable[tuple[str, float]]) -> Gauge:
    """A gauge with a sample for each value of a label."""
    return Gauge(name, text, [(value, {label: each}) for each, value in values])


def _tube_gauges(collected: MetricsInput) -> Sequence[Gauge]:
    tubes, states = collected.tubes or (), ("ready", "reserved", "delayed", "held", "buried")
    first: dict[str, float] = {}
    for leg in collected.waiting:
        if leg.tube and leg.waits_since and not leg.is_held:
            first[leg.tube] = min(first.get(leg.tube, collected.now), leg.waits_since)
    return (
        Gauge(
            "reimzul_tube_jobs", "Jobs in a tube of beanstalkd, by their state.",
            [(getattr(tube, state), {"tube": tube.name, "state": state}) for tube in tubes for state in states],
        ),
        _gauge_by(
            "tube", "reimzul_tube_watchers", "Connections that take jobs from a tube.",
            ((tube.name, tube.watchers) for tube in tubes),
        ),
        _gauge_by(
            "tube", "reimzul_tube_oldest_wait_seconds", "How long the oldest build of a tube has waited.",
            ((name, max(0.0, collected.now - queued_at)) for name, queued_at in sorted(first.items())),
        ),
    )  # fmt: skip


def _worker_gauges(collected: MetricsInput) -> Sequence[Gauge]:
    counts: defaultdict[str, Counter[str]] = defaultdict(Counter)
    newest: dict[str, WorkerRecord] = {}
    for worker in sorted(collected.workers or (), key=lambda each: (each.heartbeat.host, each.last_seen)):
        counts[worker.heartbeat.host][worker.state_at(collected.now)] += 1
        newest[worker.heartbeat.host] = worker
    states = (*WorkerState.ALL, SILENT)
    return (
        Gauge(
            "reimzul_workers", "Workers of a builder by state; silent: no heartbeat for two minutes.",
            [(count[state], {"builder": host, "state": state}) for host, count in counts.items() for state in states],
        ),
        _gauge_by(
            "builder", "reimzul_builder_load", "A builder's load of the last minute, from its latest heartbeat.",
            ((host, each.heartbeat.load) for host, each in newest.items()),
        ),
        _gauge_by(
            "builder", "reimzul_builder_free_bytes", "Free space on the builder's fullest disk.",
            ((host, each.heartbeat.free_mib * 1024**2) for host, each in newest.items()),
        ),
    )  # fmt: skip


def _day_gauges(day: BuildStats) -> Sequence[Gauge]:
    arches, builders = sorted(day.arches.items()), sorted(day.attempts)
    return (
        Gauge(
            "reimzul_day_builds", "Builds submitted in the last 24 hours, per arch and result.",
            [
                (count, {"arch": arch, "result": result})
                for arch, group in arches
                for result, count in sorted(group.results.items())
            ],
        ),
        _gauge_by(
            "reason", "reimzul_day_failures", "Of these, those that failed or were rejected, by reason.",
            sorted(day.reasons.items()),
        ),
        _gauge_by(
            "builder", "reimzul_day_attempts", "Attempts of a builder at them.",
            ((host, day.attempts[host].attempts) for host in builders),
        ),
        _gauge_by(
            "builder", "reimzul_day_faults", "Of these, those that failed through the builder's own fault.",
            ((host, day.attempts[host].faults) for host in builders),
        ),
    )  # fmt: skip


def _time_gauges(day: BuildStats) -> Iterator[Gauge]:
    # each package is a time series of its own in the monitoring system, so only those built most often are shown
    by_count = sorted(day.packages.items(), key=lambda each: (-sum(each[1].results.values()), each[0]))
    kinds = (
        ("", "arch", day.arches),
        ("builder_", "builder", day.builders),
        ("package_", "package", dict(by_count[:_MAX_PACKAGES])),
    )
    for infix, label, groups in kinds:
        by = f" By {label}." if infix else ""
        waits = _quantiles(label, {name: group.waits for name, group in groups.items()})
        yield Gauge(f"reimzul_day_{infix}wait_seconds", f"How long they waited for their first attempt.{by}", waits)
        builds = _quantiles(label, {name: group.builds for name, group in groups.items()})
        yield Gauge(f"reimzul_day_{infix}build_seconds", f"How long they took.{by}", builds)


def _quantiles(label: str, times: Mapping[str, Sequence[Optional[float]]]) -> list[tuple[float, Mapping[str, str]]]:
    return [
        (value, {label: name, "quantile": part})
        for name, seconds in sorted(times.items())
        if (found := time_stats(seconds))
        for value, part in ((found.median, "0.5"), (found.p95, "0.95"))
    ]


# --- the text


def format_openmetrics(gauges: Iterable[Gauge]) -> str:
    """Return the text; a metric without values is left out."""
    lines = (line for gauge in gauges if gauge.samples for line in _format_gauge(gauge))
    return "".join(f"{line}\n" for line in (*lines, "# EOF"))


def _format_gauge(gauge: Gauge) -> Iterator[str]:
    yield f"# TYPE {gauge.name} gauge"
    unit = gauge.name.rpartition("_")[2]
    if unit in ("seconds", "bytes"):
        yield f"# UNIT {gauge.name} {unit}"
    yield f"# HELP {gauge.name} {_escape(gauge.help)}"
    for value, labels in gauge.samples:
        listed = ",".join(f'{name}="{_escape(text)}"' for name, text in labels.items())
        yield f"{gauge.name}{{{listed}}} {_format_number(value)}" if listed else f"{gauge.name} {_format_number(value)}"


def _escape(text: str) -> str:
    return text.replace("\\", "\\\\").replace("\n", "\\n").replace('"', '\\"')


def _format_number(value: float) -> str:
    if math.isfinite(value) and value == int(value):
        return str(int(value))
    return repr(round(value, 3))

# SPDX-License-Identifier: Apache-2.0
"""The figures of `reimzul metrics`, from what others have asked of beanstalkd, the history and the workers. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Optional

import attr

from reimzul.admin.facts import is_silent
from reimzul.admin.figures import Figures, Group, times
from reimzul.admin.openmetrics import Gauge
from reimzul.core.beanstalk import TubeStats
from reimzul.core.message import WorkerState
from reimzul.core.pending import PendingDeliveries
from reimzul.history import Document
from reimzul.history.presence import Seen

#: Packages that are told of by name.
_PACKAGES = 50


@attr.frozen(kw_only=True)
class Sight:
    """What there is to be told; None of a part that did not answer."""

    now: float
    tubes: Optional[Sequence[TubeStats]] = None
    workers: Optional[Sequence[Seen]] = None
    day: Optional[Figures] = None  #: of the builds submitted in the last 24 hours
    waiting: Sequence[Document] = ()
    owed: Sequence[PendingDeliveries] = ()


def gauges(sight: Sight) -> Iterator[Gauge]:
    """All of them."""
    up = Gauge("reimzul_part_up", "Whether a part of the farm answered when these figures were made.")
    for name, part in (("beanstalkd", sight.tubes), ("workers", sight.workers), ("history", sight.day)):
        up.set(float(part is not None), part=name)
    yield up
    made = Gauge("reimzul_made_timestamp_seconds", "When these figures were made.", "seconds")
    made.set(sight.now)
    yield made
    yield from _tubes(sight)
    yield from _workers(sight)
    if sight.day is not None:
        yield from _day(sight.day)
    yield from _owed(sight)


def _tubes(sight: Sight) -> Iterator[Gauge]:
    jobs = Gauge("reimzul_tube_jobs", "Jobs in a tube of beanstalkd, by their state.")
    watchers = Gauge("reimzul_tube_watchers", "Connections that take jobs from a tube.")
    oldest = Gauge("reimzul_tube_oldest_wait_seconds", "How long the oldest build of a tube has waited.", "seconds")
    for tube in sight.tubes or ():
        for state in ("ready", "reserved", "delayed", "buried"):
            jobs.set(getattr(tube, state), tube=tube.name, state=state)
        watchers.set(tube.watchers, tube=tube.name)
    since: dict[str, float] = {}
    for leg in sight.waiting:
        if leg.get("tube") and leg.get("queued_at"):
            since[leg["tube"]] = min(since.get(leg["tube"], sight.now), leg["queued_at"])
    for name, moment in sorted(since.items()):
        oldest.set(max(0.0, sight.now - moment), tube=name)
    yield from (jobs, watchers, oldest)


def _workers(sight: Sight) -> Iterator[Gauge]:
    states = Gauge("reimzul_workers", "Workers of a builder, by what they do; a silent one has not spoken for long.")
    load = Gauge("reimzul_builder_load", "A builder's load of the last minute, as it said last.")
    free = Gauge("reimzul_builder_free_bytes", "Room on the builder's disk that has least of it.", "bytes")
    counts: dict[str, Counter[str]] = {}
    newest: dict[str, Seen] = {}
    for seen in sight.workers or ():
        host = seen.presence.host
        state = "silent" if is_silent(seen, sight.now) else seen.presence.state
        counts.setdefault(host, Counter())[state] += 1
        newest[host] = max(newest.get(host, seen), seen, key=lambda each: each.heard)
    for host in sorted(counts):
        for state in (*WorkerState.ALL, "silent"):
            states.set(counts[host][state], builder=host, state=state)
        load.set(newest[host].presence.load, builder=host)
        free.set(newest[host].presence.free_mib * 1024**2, builder=host)
    yield from (states, load, free)


def _day(day: Figures) -> Iterator[Gauge]:
    builds = Gauge("reimzul_day_builds", "Builds submitted in the last 24 hours, a leg each, by what became of them.")
    causes = Gauge("reimzul_day_failures", "Of these, those that came to nothing, by cause.")
    attempts = Gauge("reimzul_day_attempts", "Attempts of a builder at them.")
    faults = Gauge("reimzul_day_faults", "Of these, those that were the builder's own fault.")
    for arch, group in sorted(day.arches.items()):
        for result, count in sorted(group.results.items()):
            builds.set(count, arch=arch, result=result)
    for cause, count in sorted(day.causes.items()):
        causes.set(count, cause=cause)
    for host, tally in sorted(day.attempts.items()):
        attempts.set(tally.attempts, builder=host)
        faults.set(tally.faults, builder=host)
    yield from (builds, causes, attempts, faults)
    kinds = (("", "arch", day.arches), ("builder_", "builder", day.builders), ("package_", "package", _most(day)))
    for infix, label, groups in kinds:
        of = f" By {label}." if infix else ""
        waited = f"How long they waited for their first attempt.{of}"
        yield _quantiles(Gauge(f"reimzul_day_{infix}wait_seconds", waited, "seconds"), label, groups, "waits")
        took = f"How long they took their builder.{of}"
        yield _quantiles(Gauge(f"reimzul_day_{infix}build_seconds", took, "seconds"), label, groups, "builds")


def _most(day: Figures) -> Mapping[str, Group]:
    """The packages that were built most often: each name is a time series of its own in who collects these."""
    ordered = sorted(day.packages.items(), key=lambda each: (-sum(each[1].results.values()), each[0]))
    return dict(ordered[:_PACKAGES])


def _quantiles(gauge: Gauge, label: str, groups: Mapping[str, Group], name: str) -> Gauge:
    for each, group in sorted(groups.items()):
        found = times(getattr(group, name))
        if found is not None:
            gauge.set(found.median, **{label: each}, quantile="0.5")
            gauge.set(found.p95, **{label: each}, quantile="0.95")
    return gauge


def _owed(sight: Sight) -> Iterator[Gauge]:
    owed = Gauge("reimzul_owed_events", "Events that a sink of the notifier has still to be told.")
    oldest = Gauge("reimzul_owed_oldest_seconds", "How long the oldest of these is owed.", "seconds")
    for each in sight.owed:
        owed.set(each.count, sink=each.sink)
        oldest.set(max(0.0, sight.now - each.oldest), sink=each.sink)
    yield from (owed, oldest)

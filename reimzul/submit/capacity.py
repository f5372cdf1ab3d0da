# SPDX-License-Identifier: Apache-2.0
"""The builders there are, and when the next build of each arch is expected to start."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence

import attr

from reimzul.core.arch import Arches
from reimzul.core.beanstalk import PRIORITY
from reimzul.core.message import WorkerState
from reimzul.history import BuildFilter, BuildRecord, History
from reimzul.history.build_record import BuildState
from reimzul.history.estimates import ARCH_SAMPLE, IDLE, ArchStats, Forecast, estimate_rest, estimate_start
from reimzul.history.workers import WorkerRecord


@attr.frozen(kw_only=True)
class Capacity:
    builders: Sequence[frozenset[str]] = ()  #: the tubes that each worker watches, of those that take jobs
    #: arch -> seconds until its first build starts, behind what waits already; none where that cannot be estimated
    starts: Mapping[str, float] = attr.field(factory=dict)


def measure_capacity(
    history: History | None, workers: Iterable[WorkerRecord], arches: Iterable[str], known: Arches, priority: int
) -> Capacity:
    """Estimate when builds that are submitted now start. Without a history, as if no build waited."""
    able = [each for each in workers if each.heartbeat.state in WorkerState.TAKING_JOBS]
    unfinished = history.find_unfinished() if history else []
    starts: dict[str, float] = {}
    for arch in arches:
        tube = known.tube_of(arch)
        serving = [each for each in able if tube in each.heartbeat.arches]
        ahead = {each.build_id: each for each in unfinished if _is_ahead(each, tube, priority)}
        usual = _read_usual(history, arch)
        busy = [each for each in (_busy_time(worker, usual) for worker in serving) if each is not None]
        start = estimate_start([usual.stats_for(each.package) for each in ahead.values()], busy)
        if start is not None:
            starts[arch] = start.likely
    return Capacity(builders=[frozenset(each.heartbeat.arches) for each in able], starts=starts)


def _is_ahead(record: BuildRecord, tube: str, priority: int) -> bool:
    """Whether a build waits in a tube, and is reserved before one of this priority."""
    put_with = PRIORITY if record.priority is None else record.priority
    return record.is_queued and record.tube == tube and put_with <= priority and record.due <= time.time()


def _read_usual(history: History | None, arch: str) -> ArchStats:
    states = (BuildState.BUILT, BuildState.PUBLISHED)
    return ArchStats(history.find_builds(BuildFilter(arch=arch, states=states), ARCH_SAMPLE) if history else ())


def _busy_time(worker: WorkerRecord, usual: ArchStats) -> Forecast | None:
    """How long a worker is still busy; None if unknown."""
    build = worker.heartbeat.build
    if build is None:
        return IDLE
    takes = usual.stats_for(BuildRecord(srpm=build.srpm).package)
    return None if takes is None else estimate_rest(takes, worker.seconds_since(build.started, time.time()))

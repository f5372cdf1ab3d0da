# SPDX-License-Identifier: Apache-2.0
"""What `reimzul explain` knows of a build: from the history, beanstalkd and the heartbeats; and what it expects."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Optional

import attr

from reimzul.admin import batch_lookup, lookup
from reimzul.core import control
from reimzul.core.arch import read_arches
from reimzul.core.beanstalk import CREATEREPO, NOTIFY, TOSIGN, Broker, heartbeat_tube
from reimzul.core.beanstalk_stats import TubeStats
from reimzul.core.fs import find_unreadable
from reimzul.core.message import Status, WorkerState
from reimzul.core.retry import compute_backoff
from reimzul.core.settings import Settings
from reimzul.history import BuildFilter, BuildRecord, History, estimates
from reimzul.history.build_record import BuildState
from reimzul.history.workers import Processes, WorkerRecord, WorkersUnavailable
from reimzul.plan.state import BatchState


@attr.frozen(kw_only=True)
class BuildFacts:
    now: float
    leg: BuildRecord  #: that is explained
    job: str = lookup.UNKNOWN  #: the state of its job: ready, reserved, delayed, buried, `HELD`, `GONE` or `UNKNOWN`
    tube: TubeStats  #: where it waits, or waited
    createrepo: TubeStats
    tosign: TubeStats
    backlog: int = 0  #: events that the notifier has not read yet
    ahead: Sequence[BuildRecord] = ()  #: builds before it in its tube
    ahead_elsewhere: Sequence[BuildRecord] = ()  #: and in other tubes of the same workers
    workers: Optional[Sequence[WorkerRecord]] = ()  #: that watch its tube; None if unknown
    own_stats: Optional[estimates.DurationStats] = None  #: of this package
    arch_stats: estimates.ArchStats = attr.field(factory=lambda: estimates.ArchStats(()))
    cancel: Optional[control.ControlFlag] = None
    source_problem: str = ""  #: why the web server cannot read its source rpm, as far as this host knows
    stuck: Optional[control.ControlFlag] = None  #: why its target's new repodata is not made visible
    drained: Mapping[str, str] = attr.field(factory=dict)  #: host -> why it takes no jobs, by the latest flag
    backoffs: Mapping[str, float] = attr.field(factory=dict)  #: host -> seconds it still leaves this build to others
    processes: Processes = attr.field(factory=Processes)  #: all of the farm
    batch: Optional[BatchState] = None  #: that it is a member's build of

    @property
    def duration(self) -> estimates.DurationStats | None:
        """How long it usually takes: its package, else the packages of its arch."""
        return self.own_stats or self.arch_stats.stats_for("")

    @property
    def is_held(self) -> bool:
        """Whether its job is held; the history may not know yet what beanstalkd does."""
        is_held = self.job == lookup.HELD or (self.job == lookup.UNKNOWN and self.leg.held)
        return is_held and self.leg.is_unfinished

    @property
    def pause(self) -> float:
        """Seconds until beanstalkd gives its job to a worker."""
        return max(0.0, self.leg.due - self.now) if self.job in ("delayed", lookup.UNKNOWN) else 0.0

    @property
    def able_workers(self) -> list[WorkerRecord]:
        """The workers that take this build now, or when their current build has ended."""
        return [worker for worker in self._healthy_workers if worker.heartbeat.host not in self.backoffs]

    @property
    def waiting_workers(self) -> list[WorkerRecord]:
        """The workers that were at fault for this build, and leave it to others for a while."""
        return [worker for worker in self._healthy_workers if worker.heartbeat.host in self.backoffs]

    @property
    def _healthy_workers(self) -> list[WorkerRecord]:
        states = WorkerState.TAKING_JOBS if self.tube.watchers else ()
        return [
            worker
            for worker in self.workers or ()
            if worker.state_at(self.now) in states
            and worker.heartbeat.host not in self.drained
            and not worker.is_overdue(self.now)
        ]


def collect_facts(
    settings: Settings, history: History, broker: Broker, leg: BuildRecord, unfinished: Sequence[BuildRecord]
) -> BuildFacts:
    """Collect the facts of a leg; `unfinished`: all builds that wait or run, if it waits."""
    now = time.time()
    tube = leg.tube or _default_tube(settings, leg)
    processes = _find_processes(settings, broker)
    workers = None if processes is None else _find_workers(processes, tube, now)
    flags = lookup.read_drain_flags(broker, {worker.heartbeat.host for worker in workers or ()})
    shared = {name for worker in workers or () for name in worker.heartbeat.arches}
    ahead, ahead_elsewhere = lookup.builds_ahead(leg, unfinished, tube, shared, now) if leg.is_queued else ([], [])
    tubes = {name: broker.tube_stats(name) for name in (tube, CREATEREPO.name, TOSIGN.name, NOTIFY.name)}
    past = history.recent_successes(leg.pkgname, leg.arch, estimates.PACKAGE_SAMPLE) if leg.pkgname else []
    successes = (BuildState.BUILT, BuildState.PUBLISHED)
    of_arch = history.find_builds(BuildFilter(arch=leg.arch, states=successes), estimates.ARCH_SAMPLE)
    incoming = settings.incoming.folder
    may_lack_source = leg.is_queued and leg.waits_for and (incoming / leg.srpm).exists()  # on the controller alone
    return BuildFacts(
        now=now,
        leg=leg,
        job=lookup.job_state(broker, leg),
        tube=tubes[tube],
        createrepo=tubes[CREATEREPO.name],
        tosign=tubes[TOSIGN.name],
        backlog=tubes[NOTIFY.name].ready + tubes[NOTIFY.name].delayed,
        ahead=ahead,
        ahead_elsewhere=ahead_elsewhere,
        workers=workers,
        own_stats=estimates.duration_stats(each.duration for each in past),
        arch_stats=estimates.ArchStats([*of_arch, *past]),
        cancel=control.cancel_flag(broker, leg.build_id),
        source_problem=find_unreadable(incoming / leg.srpm, incoming) if may_lack_source else "",
        stuck=control.stuck_flag(broker, leg.target) if leg.status == Status.SUCCESS else None,
        drained={host: flag.drain_text for host, flag in flags.items()},
        backoffs=_find_backoffs(settings, broker, leg, tubes[tube], now) if leg.is_queued else {},
        processes=processes or Processes(),
        batch=batch_lookup.find_state_of_build(settings, leg.batch) if leg.batch else None,
    )


def _default_tube(settings: Settings, leg: BuildRecord) -> str:
    """The tube of a leg's request where the history does not have it: that of the arch its target names."""
    known = read_arches(settings.farm.arches).known
    arch = known.get(leg.target.rpartition(".")[2]) or known.get(leg.arch)
    return arch.tube if arch else leg.arch


def _find_processes(settings: Settings, broker: Broker) -> Processes | None:
    try:
        return Processes.find(broker, lookup.load_processes(settings))
    except WorkersUnavailable:
        return None


def _find_workers(processes: Processes, tube: str, now: float) -> list[WorkerRecord]:
    """Return the connected workers that watch a tube: free ones first, silent ones last."""
    found = [each for each in processes.workers if tube in each.heartbeat.arches]
    return sorted(found, key=lambda each: (each.is_silent(now), each.heartbeat.build is not None))


def _find_backoffs(
    settings: Settings, broker: Broker, leg: BuildRecord, tube: TubeStats, now: float
) -> dict[str, float]:
    """Return the hosts that leave a build to others since they could not build it, as their workers decide that."""
    faults = [each for each in leg.attempts if each.status == Status.UNFIT]
    if not faults or len(faults) >= settings.worker.tries:
        return {}
    last = {each.builder_fqdn: each.ended_at for each in faults}
    failed = sum(broker.tube_stats(heartbeat_tube(host)).watchers for host in last)
    left = {host: compute_backoff(max(0.0, now - at), tube.watchers, failed) for host, at in last.items()}
    return {host: seconds for host, seconds in left.items() if seconds > 0}


# --- forecasts


def estimate_start_and_end(facts: BuildFacts) -> tuple[estimates.Forecast | None, estimates.Forecast | None]:
    """Estimate when a build that waits starts and ends; None where nothing is known to estimate from."""
    ahead = [facts.arch_stats.stats_for(each.pkgname) for each in (*facts.ahead, *facts.ahead_elsewhere)]
    busy = (_busy_time(worker, facts) for worker in (*facts.able_workers, *facts.waiting_workers))
    start, takes = estimates.estimate_start(ahead, [each for each in busy if each is not None]), facts.duration
    if start is None:
        return None, None
    low, likely, high = (max(each, facts.pause) for each in (start.low, start.likely, start.high))
    start = estimates.Forecast(low=low, likely=likely, high=high)
    if takes is None:
        return start, None
    return start, estimates.Forecast(low=low + takes.low, likely=likely + takes.median, high=high + takes.high)


def _busy_time(worker: WorkerRecord, facts: BuildFacts) -> estimates.Forecast | None:
    """Return how long a worker does not take this build; None if unknown."""
    build, rest = worker.heartbeat.build, estimates.IDLE
    if build is not None:
        takes = facts.arch_stats.stats_for(BuildRecord(srpm=build.srpm).package)
        if takes is None:
            return None
        rest = estimates.estimate_rest(takes, worker.seconds_since(build.started, facts.now))
    left = facts.backoffs.get(worker.heartbeat.host, 0.0)
    low, likely, high = (max(each, left) for each in (rest.low, rest.likely, rest.high))
    return estimates.Forecast(low=low, likely=likely, high=high)

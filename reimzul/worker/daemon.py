# SPDX-License-Identifier: Apache-2.0
"""The worker: takes one request at a time from its tubes, builds it, and decides what happens to its job.

A request that was built or failed is deleted; one that this builder could not build is requeued with its tries, for
another builder; when the worker is stopped, it is released.
"""

from __future__ import annotations

import calendar
import contextlib
import logging
import os
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Callable

import attr

from reimzul.core import control, validators
from reimzul.core.beanstalk import HELD_SECONDS, Broker, ReservedJob, Tube, arch_tube, canary_tube, heartbeat_tube
from reimzul.core.clock import MAX_SKEW_SECONDS
from reimzul.core.control import ControlFlag
from reimzul.core.daemon import Daemon, Outcome
from reimzul.core.error_extractor import FirstError
from reimzul.core.errors import (
    BrokerUnavailable,
    InvalidMessage,
    JobSettled,
    ReimzulError,
    ReservationLost,
    RetryLater,
    ShutdownRequested,
)
from reimzul.core.fs import FreeSpace
from reimzul.core.heartbeat import HeartbeatSender
from reimzul.core.message import (
    NO_BUILDER,
    NOBODY,
    BuildRequest,
    FailedAttempt,
    Status,
    WorkerState,
    event_for,
    new_attempt,
)
from reimzul.core.mock_config import find_missing_configs, find_missing_mock
from reimzul.core.retry import SAME_BUILDER_BACKOFF_SECONDS, Backoff, CancelToken, compute_backoff
from reimzul.worker.build import (
    BuildAttempt,
    BuildCancelled,
    BuildEnvironment,
    RequirementsMissing,
    TransientFailure,
    parse_srpm_name,
)
from reimzul.worker.download import SourceDelayed
from reimzul.worker.job_session import ControlPoller, JobSession
from reimzul.worker.mock_config import ConfigPuller, MockConfigRepo
from reimzul.worker.model import AttemptSpec, BuilderFault, Workspace
from reimzul.worker.roots import RootCleanup
from reimzul.worker.unmet import describe_missing

log = logging.getLogger(__name__)

#: Workers that may die under a job before it is buried, and again so many after it was buried and kicked. Cut links
#: count too, so the limit is generous.
MAX_WORKER_DEATHS = 10
#: The step of a build that failed by this builder's fault, among the errors that heartbeats carry.
BUILD_STEP = "build"
#: Seconds for which a builder releases each time a request that it leaves to others.
RELEASE_DELAY_SECONDS = 5
#: Seconds before a request that a builder could not build is tried again: so many for each try.
RETRY_PAUSE_SECONDS = 10
#: Pauses after attempts that were nobody's fault, one after the other.
TRANSIENT_BACKOFF = Backoff(10, 300)


@attr.define(kw_only=True)
class HealthCheck:
    """Checks this builder against its limits, and logs when it fails them and when it meets them again."""

    folders: tuple[Path, ...]  #: where builds need space
    free_mib: int
    free_inodes: int
    max_load: int  #: of the last minute; 0 for any
    mock: str = ""  #: the program; empty: it is not checked
    configs: MockConfigRepo | None = None
    problem: str = attr.field(default="", init=False)  #: why no job is taken now
    _problem_kinds: tuple[str, ...] = attr.field(default=(), init=False)

    def is_healthy(self) -> bool:
        problems = tuple(self._find_problems())
        kinds = tuple(problem.split(":")[0] for problem in problems)
        self.problem = f"this builder takes no jobs now: {'; '.join(problems)}" if problems else ""
        if kinds != self._problem_kinds:
            level = logging.ERROR if problems else logging.INFO
            log.log(level, "%s", self.problem or "this builder takes jobs again")
        self._problem_kinds = kinds
        return not problems

    def _find_problems(self) -> Iterator[str]:
        """Why no job may be taken, each as `<what>: <how much>`."""
        for folder in self.folders:
            try:
                yield from FreeSpace.measure(folder).shortfalls(self.free_mib, self.free_inodes)
            except OSError as error:
                yield f"{folder}: {error.strerror}"
        load = os.getloadavg()[0]
        if self.max_load and load > self.max_load:
            yield f"load: {load:.1f}, {self.max_load} is the most"
        if self.mock and (problem := find_missing_mock(self.mock)):
            yield problem
        if self.configs and (problem := find_missing_configs(self.configs.checkout)):
            yield problem


class Worker(Daemon[BuildRequest]):
    heartbeat: HeartbeatSender

    def __init__(
        self,
        connect: Callable[[], Broker],
        tubes: Sequence[Tube[BuildRequest]],
        host: str,
        environment: BuildEnvironment,
        workspace: Workspace,
        health: HealthCheck,
        tries: int,
        heartbeat: HeartbeatSender,
        root_cleanup: RootCleanup,
        config_puller: ConfigPuller,
    ) -> None:
        super().__init__(connect, [*tubes, arch_tube(heartbeat_tube(host))], host, heartbeat=heartbeat)
        self.health = health
        self.environment = environment
        self.workspace = workspace
        self.tries = tries
        self.root_cleanup = root_cleanup
        self.config_puller = config_puller
        self._drain_flag: ControlFlag | None = None
        self._build_tubes = self.tubes
        canary = arch_tube(canary_tube(host))
        self._canary_tubes = {canary.name: canary}

    def check(self, message: BuildRequest) -> None:
        known = self.environment.arches.known
        if message.arch not in known:
            raise InvalidMessage(f"arch {message.arch!r} is not known; {', '.join(known)} are")

    def can_accept_job(self, broker: Broker) -> bool:
        """Whether this builder has what a build needs, and is not drained.

        In quarantine it looks for a canary, and for nothing else.
        """
        before, flag = self._drain_flag, control.drain_flag(broker, self.host)
        self._drain_flag = flag
        if (before is None) != (flag is None):
            log.info("%s", flag.drain_text if flag else "not drained any more")
        is_quarantined = flag is not None and flag.is_quarantine
        tubes = self._canary_tubes if is_quarantined else self._build_tubes
        if tubes is not self.tubes:
            self.tubes = tubes
            self.watch_tubes(broker)
        return self.health.is_healthy() and (flag is None or is_quarantined)

    def idle_status(self) -> str:
        drained = self._drain_flag.drain_text if self._drain_flag else ""
        return drained or self.health.problem or super().idle_status()

    def do_idle_work(self, broker: Broker) -> None:
        flag = self._drain_flag
        if flag is not None:
            state = WorkerState.QUARANTINED if flag.is_quarantine else WorkerState.DRAINED
        else:
            state = WorkerState.UNFIT if self.health.problem else WorkerState.IDLE
        why = flag.drain_text if flag else self.health.problem
        self.heartbeat.send(broker, state, why)
        self.config_puller.pull_if_due(broker)

        def check_progress() -> None:  # a removal may take long
            self.ping_watchdog()
            if self.stop.is_requested:
                raise ShutdownRequested("the daemon is stopping")
            self.heartbeat.send(broker, state, why)

        with contextlib.suppress(ShutdownRequested):
            self.root_cleanup.clean_one(CancelToken(check_progress))

    def handle(
        self, broker: Broker, claims: list[ReservedJob[BuildRequest]]
    ) -> Iterable[tuple[ReservedJob[BuildRequest], Outcome]]:
        for claim in claims:  # there is never more than one
            yield claim, self._handle_request(broker, claim)

    def _handle_request(self, broker: Broker, claim: ReservedJob[BuildRequest]) -> Outcome:
        request = claim.message
        drained = control.drain_flag(broker, self.host)  # it may have been set while we waited for this job
        if drained and not (drained.is_quarantine and claim.stats.tube in self._canary_tubes):
            return ShutdownRequested()
        if not request.has_id:
            self.requeue_with_id(broker, claim)
            return None
        if flag := control.cancel_flag(broker, request.build_id):
            self.announce_cancelled(claim, flag, self.started_arches(claim))
            return None
        if claim.stats.deaths > MAX_WORKER_DEATHS * (1 + claim.stats.buries):
            return InvalidMessage(
                f"{claim.stats.deaths} workers died under it, or lost their connection; find the cause, then kick it"
            )
        self.raise_if_left_to_others(broker, claim)
        session = JobSession(self.reconnect, claim, self.stop, new_attempt(), self.service, self.ping_watchdog)
        return self._build_and_settle(request, session)

    def _build_and_settle(self, request: BuildRequest, session: JobSession) -> Outcome:
        """Build a request, and requeue or release its job where the attempt did not decide it."""
        try:
            self._build(request, session)
            self.heartbeat.errors.clear(BUILD_STEP)
        except BrokerUnavailable:
            raise
        except (ReimzulError, OSError) as error:  # all that a build touches of this host by itself is its disk
            if session.reservation_lost:
                return ReservationLost(f"ended while another worker has it: {error}")
            if isinstance(error, (BuilderFault, OSError)):
                return self.requeue_after_builder_fault(session, error)
            if isinstance(error, TransientFailure):
                return self.release_after_transient_failure(session, str(error))
            if isinstance(error, RequirementsMissing):
                return self.hold(session, error)
            if isinstance(error, SourceDelayed):
                return self.requeue_without_source(session, error)
            return None if isinstance(error, BuildCancelled) else error
        return ReservationLost("another worker has it; ours is uploaded") if session.reservation_lost else None

    def _build(self, request: BuildRequest, session: JobSession) -> None:
        faults = request.builder_faults
        final_failure_reason = summarize_faults(faults) if len(faults) >= self.tries else ""
        with self.workspace.create_attempt_folder(f"{request.build_id}.{session.token}") as folder:
            attempt = AttemptSpec(
                request=request,
                token=session.token,
                host=self.host,
                folder=folder,
                started_arches=self.started_arches(session.claim),
            )
            log.info("%r: %s for %s, build %s", session.claim, request.srpm, request.target, request.build_id)
            self.service.set_status(f"building {request.srpm} for {request.target}")
            build = BuildAttempt(attempt, self.environment, final_failure_reason)
            session.run_build(build, ControlPoller(build, self.host, self.heartbeat))

    def requeue_with_id(self, broker: Broker, claim: ReservedJob[BuildRequest]) -> None:
        """Requeue an old client's request with the build id it lacks; the old job is deleted after."""
        stats = claim.stats
        completed = claim.message.with_id(claim.id, stats.tube, claim.body, time.time() - stats.age)
        job = broker.put(claim.tube, completed, priority=stats.priority, ttr=stats.ttr)
        log.info("%r: of an old client, requeued as build %s", claim, completed.build_id)
        about = {"reason": f"job {job} of tube {stats.tube}", "tube": stats.tube, "priority": stats.priority}
        broker.announce(event_for(completed, Status.QUEUED, job=job, **about))

    def requeue_after_builder_fault(self, session: JobSession, fault: BuilderFault | OSError) -> Outcome:
        """Requeue a request that this builder could not build, for another; the old job is deleted after."""
        reason, first = str(fault), fault.first_error if isinstance(fault, BuilderFault) else FirstError()
        request = session.claim.message.with_failed_attempt(self.host, reason, first.text, first.line)
        self.heartbeat.errors.add(BUILD_STEP, f"{request.srpm}: {reason}", keep=SAME_BUILDER_BACKOFF_SECONDS)
        pause = RETRY_PAUSE_SECONDS * len(request.tries)
        log.error("%r: this builder could not build it: %s; requeued, due in %d s", session.claim, reason, pause)
        job = self._requeue(session, request, pause)
        if job:
            why = f"{self.host} could not build it: {reason}; tried again in {pause} s"
            self._announce_retry(session, request, job, why, pause)
        return None

    def release_after_transient_failure(self, session: JobSession, reason: str) -> Outcome:
        """Release a request whose attempt was nobody's fault: no try is counted, and the reason is announced."""
        claim = session.claim
        pause = int(TRANSIENT_BACKOFF.pause_after(claim.stats.releases + 1))
        why = f"{NOBODY}{reason}; tried again in {pause} s"
        self._announce_retry(session, claim.message, claim.id, why, pause)
        return RetryLater(reason, pause=pause)

    def hold(self, session: JobSession, waiting: RequirementsMissing) -> Outcome:
        """Hold the job of a request whose requirements nobody provides yet, until somebody releases it.

        The job keeps its number, so it is announced first: if this worker dies in between, the job comes again. The
        cancel flag is read before and after: `reimzul cancel` sets it, then deletes the job unless it is reserved.
        """
        claim, request = session.claim, session.claim.message
        self._announce_held(session, waiting, claim.id)
        if flag := control.cancel_flag(claim.broker, request.build_id):
            self.announce_cancelled(claim, flag, session.unfinished_arches())
            return None
        job = self._retry_until_settled(claim, lambda: claim.release(HELD_SECONDS))
        if job != claim.id:
            self._announce_held(session, waiting, job)
        if flag := control.cancel_flag(claim.broker, request.build_id):
            with contextlib.suppress(ReservationLost):  # deleted, or released to a worker that reads the flag itself
                claim.broker.delete(job)
                self.announce_cancelled(claim, flag, session.unfinished_arches())
        return JobSettled(f"held: {waiting}")

    def _announce_held(self, session: JobSession, waiting: RequirementsMissing, job: int) -> None:
        """Announce that each leg without a result is held, and what that leg lacks."""
        request = session.claim.message
        for arch, missing in waiting.missing.items():
            text = describe_missing(missing)
            about = {"held": True, "missing": missing, "waits_for": text, "arches": [arch]}
            self._announce_retry(session, request, job, f"waits for {text}", HELD_SECONDS, **about)

    def requeue_without_source(self, session: JobSession, delayed: SourceDelayed) -> Outcome:
        """Requeue a request whose source cannot be downloaded now; no try is counted."""
        message = session.claim.message
        request = attr.evolve(message, source_rounds=message.source_rounds + 1)
        log.warning("%r: %s; requeued, due in %d s", session.claim, delayed, delayed.pause)
        job = self._requeue(session, request, delayed.pause)
        if job:
            waits_for = f"its source: {delayed}, on {self.host}"
            about = {"reason": f"waits for {waits_for}", "waits_for": waits_for}
            self._announce_queued(session, request, job, delayed.pause, **about)
        return None

    def _requeue(self, session: JobSession, request: BuildRequest, pause: int) -> int:
        """Put a request again: the number of its job, or 0 where it was cancelled, which is announced then."""
        claim, stats = session.claim, session.claim.stats
        job, flag = control.requeue_unless_cancelled(
            claim.broker, claim.tube, request, priority=stats.priority, delay=pause, ttr=stats.ttr
        )
        if flag:
            self.announce_cancelled(claim, flag, session.unfinished_arches())
        return job

    def _announce_retry(
        self, session: JobSession, request: BuildRequest, job: int, reason: str, pause: int, **about: Any
    ) -> None:
        by: dict[str, Any] = {"builder_fqdn": self.host, "attempt": session.token, "finished": round(time.time(), 3)}
        self._announce_queued(session, request, job, pause, reason=reason, **by, **about)

    @staticmethod
    def _announce_queued(
        session: JobSession, request: BuildRequest, job: int, pause: int, arches: Sequence[str] = (), **about: Any
    ) -> None:
        """Announce that a request is queued again for these arches, or else for each leg without a result."""
        stats, due = session.claim.stats, round(time.time()) + pause
        where = {"tube": stats.tube, "job": job, "priority": stats.priority, "due": due}
        for arch in arches or session.unfinished_arches():
            fields = {"arch": arch, **session.describe_logs(arch), **about, **where}
            session.claim.broker.announce(event_for(request, Status.QUEUED, **fields))

    def announce_cancelled(self, claim: ReservedJob[BuildRequest], flag: ControlFlag, arches: Iterable[str]) -> None:
        log.info("%r: %s", claim, flag.cancel_text)
        for arch in arches:
            claim.broker.announce(event_for(claim.message, Status.CANCELLED, arch=arch, reason=flag.cancel_text))

    def started_arches(self, claim: ReservedJob[BuildRequest]) -> Sequence[str]:
        """The legs of a request that may have started: all of them, if it was reserved before."""
        request = claim.message
        if not request.legs and (claim.stats.reserves > 1 or request.tries):
            return self.environment.arches.legs_of(request.arch, parse_srpm_name(request.srpm)[0])
        return request.announced_arches

    def raise_if_left_to_others(self, broker: Broker, claim: ReservedJob[BuildRequest]) -> None:
        """Raise `RetryLater` for a request this builder could not build, as long as others watch its tube."""
        faults = claim.message.builder_faults
        own_faults = [fault.when for fault in faults if fault.builder == self.host]
        if not own_faults or len(faults) >= self.tries:
            return
        elapsed = seconds_since_fault(claim.message.timestamp, max(own_faults), time.time(), claim.stats.age)
        if elapsed > SAME_BUILDER_BACKOFF_SECONDS:
            return
        watchers = broker.tube_stats(claim.stats.tube).watchers
        failed = sum(broker.tube_stats(heartbeat_tube(host)).watchers for host in {fault.builder for fault in faults})
        if compute_backoff(elapsed, watchers, failed) > 0:
            others = "those that have not tried" if watchers > failed else "others"
            raise RetryLater(f"this builder could not build it; left to {others}", pause=RELEASE_DELAY_SECONDS)

    def reconnect(self) -> Broker:
        broker = self.connect()
        self.watch_tubes(broker)
        self.broker = broker
        return broker


def summarize_faults(faults: Sequence[FailedAttempt]) -> str:
    """Why no builder could build a request: each reason once, with the builders that gave it."""
    builders: dict[str, list[str]] = {}
    for fault in faults:
        hosts = builders.setdefault(fault.words, [])
        if fault.builder not in hosts:
            hosts.append(fault.builder)
    reasons = (f"{', '.join(hosts)}: {reason}" for reason, hosts in builders.items())
    return f"{NO_BUILDER}{'; '.join(reasons)}"


def seconds_since_fault(submitted: str, fault: float, now: float, age: float) -> float:
    """Seconds since this builder was at fault for a request whose job was put `age` seconds ago.

    Our clock may have been set since then. Each fault requeues the request, so at least its age has passed; and no
    fault comes before the submission. Where our clock contradicts that, the age alone counts.
    """
    elapsed = now - fault
    most = now - calendar.timegm(time.strptime(submitted, validators.TIMESTAMP_FORMAT)) + MAX_SKEW_SECONDS
    return elapsed if age - MAX_SKEW_SECONDS <= elapsed <= most else age

# SPDX-License-Identifier: Apache-2.0
"""The worker: one request at a time, from its tube to its uploaded legs.

What ends a request is decided here: built or failed, it is deleted; this builder's fault, it is put again with its
tries, for another builder; told to stop, it is given back.
"""

from __future__ import annotations

import calendar
import contextlib
import logging
import time
from collections.abc import Iterable, Sequence
from typing import Callable

import attr

from reimzul.core import control, validators
from reimzul.core.beanstalk import Broker, ReservedJob, Tube, arch_tube, canary_tube, heartbeat_tube, session_tube
from reimzul.core.clock import MAX_SKEW_SECONDS
from reimzul.core.control import ControlFlag
from reimzul.core.daemon import Daemon, Outcome
from reimzul.core.errors import (
    BrokerUnavailable,
    InvalidMessage,
    ReimzulError,
    ReservationLost,
    RetryLater,
    ShutdownRequested,
)
from reimzul.core.message import NOBODY, BuildRequest, FailedAttempt, Status, event_for, new_attempt
from reimzul.core.refused import Overflow
from reimzul.worker.build import (
    NO_BUILDER_PREFIX,
    BuildAttempt,
    BuildCancelled,
    BuildEnvironment,
    BuilderFault,
    TransientFailure,
    parse_srpm_name,
)
from reimzul.worker.download import SourceDelayed
from reimzul.worker.error_extractor import FirstError
from reimzul.worker.health import HealthCheck
from reimzul.worker.heartbeat import HeartbeatSender, idle_state
from reimzul.worker.job_session import JobSession
from reimzul.worker.model import AttemptSpec
from reimzul.worker.root_cleanup import RootCleanup
from reimzul.worker.watch import ControlPoller
from reimzul.worker.workspace import Workspace

log = logging.getLogger(__name__)

#: Workers that may die under a job before it is buried, and again so many after each kick. Cut links count too, so
#: it is generous.
MAX_WORKER_DEATHS = 10
#: Seconds a builder that could not build a request leaves it to others before it tries it again itself: to those that
#: have not tried it, which may be busy for long, or drained for longer; and to those that could not build it either.
SAME_BUILDER_BACKOFF_SECONDS, SAME_BUILDER_BACKOFF_ALL_FAILED_SECONDS = 3600, 60
#: How long it looks away each time, in seconds.
RELEASE_DELAY_SECONDS = 5
#: Pause, in seconds, before the next try of a request that a builder could not build: the first, and each after it.
RETRY_PAUSE = 10
#: Pause, in seconds, after an attempt that was nobody's fault: the first; it doubles with each, up to the longest.
BLAMELESS_PAUSE, BLAMELESS_PAUSE_LONGEST = 10, 300


class Worker(Daemon[BuildRequest]):
    """A builder's daemon."""

    def __init__(
        self,
        connect: Callable[[], Broker],
        tubes: Sequence[Tube[BuildRequest]],
        host: str,
        tools: BuildEnvironment,
        workspace: Workspace,
        fitness: HealthCheck,
        tries: int,
        voice: HeartbeatSender,
        tidying: RootCleanup,
        overflow: Overflow | None = None,
    ) -> None:
        own = arch_tube(session_tube(voice.identity.session))
        super().__init__(connect, [*tubes, arch_tube(heartbeat_tube(host)), own], host, overflow=overflow)
        self.health = fitness
        self.environment = tools
        self.workspace = workspace
        self.tries = tries
        self.heartbeat = voice
        self.root_cleanup = tidying
        self._drain_flag: ControlFlag | None = None
        self._own = self.tubes
        canary = arch_tube(canary_tube(host))
        self._canary = {canary.name: canary, own.name: own}

    def check(self, message: BuildRequest) -> None:
        """Refuse a request for an arch that is not in the table."""
        if message.arch not in self.environment.arches.known:
            raise InvalidMessage(f"arch {message.arch!r} is not known; {', '.join(self.environment.arches.known)} are")

    def can_accept_job(self, broker: Broker) -> bool:
        """Whether this builder has what a build needs, and nobody wants it to take nothing.

        In quarantine it looks for a canary, and for nothing else.
        """
        before, held = self._drain_flag, control.drain_flag(broker, self.host)
        self._drain_flag = held
        if (before is None) != (held is None):
            log.info("%s", held.drain_text if held else "not drained any more")
        probed = held is not None and held.is_quarantine
        tubes = self._canary if probed else self._own
        if tubes is not self.tubes:
            self.tubes = tubes
            broker.watch(tubes)
        return self.health.is_healthy() and (held is None or probed)

    def idle_status(self) -> str:
        """What it waits for: jobs, or what it needs to take one."""
        return (self._drain_flag.drain_text if self._drain_flag else "") or self.health.problem or super().idle_status()

    def do_idle_work(self, broker: Broker) -> None:
        """Say that we are here, and remove a root that nobody builds in any more."""
        held = self._drain_flag
        state = idle_state(
            quarantined=held is not None and held.is_quarantine,
            drained=held is not None,
            unfit=bool(self.health.problem),
        )
        self.heartbeat.send(broker, state, held.drain_text if held else self.health.problem)
        with contextlib.suppress(ShutdownRequested):
            self.root_cleanup.clean_one(self._heed_stop)

    def _heed_stop(self) -> None:
        """Raise `ShutdownRequested` where this worker is to end; else it is alive, however long a removal takes."""
        self.ping_watchdog()
        if self.stop.requested:
            raise ShutdownRequested("told to stop")

    def serve(self, broker: Broker) -> None:
        """Serve until told to stop, and then say that we leave."""
        super().serve(broker)
        self.heartbeat.send_leaving(self.broker or broker)

    def handle(
        self, broker: Broker, claims: list[ReservedJob[BuildRequest]]
    ) -> Iterable[tuple[ReservedJob[BuildRequest], Outcome]]:
        """Build each; there is never more than one."""
        for claim in claims:
            yield claim, self.build_request(broker, claim)

    def build_request(self, broker: Broker, claim: ReservedJob[BuildRequest]) -> Outcome:
        """Build one request; what became of its job."""
        request = claim.message
        if self.must_release(broker, claim):
            return ShutdownRequested()
        if not request.has_id:
            self.requeue_with_id(broker, claim)
            return None
        if forbidden := control.cancel_flag(broker, request.build_id):
            self.announce_cancelled(claim, forbidden, self.started_arches(claim))
            return None
        if claim.stats.deaths > MAX_WORKER_DEATHS * (1 + claim.stats.kicks):
            return InvalidMessage(
                f"{claim.stats.deaths} workers died under it, or lost their link; a person has to look"
            )
        self.retry_later_if_failed_here(broker, claim)
        desk = JobSession(self.reconnect, claim, self.stop, new_attempt(), self.service, self.ping_watchdog)
        try:
            self.attempt_build(request, desk)
        except BuilderFault as error:
            return self.requeue_after_builder_fault(desk, str(error), error.first_error)
        except OSError as error:  # all that a build touches of this host by itself is its disk
            return self.requeue_after_builder_fault(desk, str(error), FirstError())
        except TransientFailure as error:
            return self.release_after_transient_failure(desk, str(error))
        except BuildCancelled as error:
            return ReservationLost(f"{error}; another has it") if desk.reservation_lost else None
        except BrokerUnavailable:
            raise
        except SourceDelayed as error:
            return self.requeue_without_source(desk, error)
        except ReimzulError as error:
            return ReservationLost(f"ended while another has it: {error}") if desk.reservation_lost else error
        return ReservationLost("another has it; ours is uploaded") if desk.reservation_lost else None

    def must_release(self, broker: Broker, claim: ReservedJob[BuildRequest]) -> bool:
        """Whether this builder is to take nothing, as a person said while we waited for this job."""
        held = control.drain_flag(broker, self.host)
        return held is not None and not (held.is_quarantine and claim.stats.tube in self._canary)

    def attempt_build(self, request: BuildRequest, desk: JobSession) -> None:
        """Attempt a request in a folder of its own, which is gone afterwards."""
        last_words = summarize_faults(request.builder_faults) if len(request.builder_faults) >= self.tries else ""
        with self.workspace.create_attempt_folder(f"{request.build_id}.{desk.token}") as folder:
            attempt = AttemptSpec(request=request, token=desk.token, host=self.host, folder=folder)
            log.info("%r: %s for %s, build %s", desk.claim, request.srpm, request.target, request.build_id)
            self.service.set_status(f"building {request.srpm} for {request.target}")
            build = BuildAttempt(attempt, self.environment, last_words)
            desk.run_build(build, ControlPoller(build, self.host, self.heartbeat))

    def requeue_with_id(self, broker: Broker, claim: ReservedJob[BuildRequest]) -> None:
        """Put an old client's request again with the build id it lacks; the old job is deleted after."""
        facts = claim.stats
        completed = claim.message.with_id(claim.id, facts.tube, claim.body, time.time() - facts.age)
        job = broker.put(claim.tube, completed, priority=facts.priority, ttr=facts.ttr)
        log.info("%r: of an old client, put again as build %s", claim, completed.build_id)
        where = {"tube": facts.tube, "job": job, "priority": facts.priority}
        broker.announce(event_for(completed, Status.QUEUED, reason=f"job {job} of tube {facts.tube}", **where))

    def requeue_after_builder_fault(self, desk: JobSession, words: str, first: FirstError) -> Outcome:
        """Put a request again that this builder could not build, for another; the old job is deleted after."""
        if desk.reservation_lost:
            return ReservationLost(f"another has it; here: {words}")
        claim, facts = desk.claim, desk.claim.stats
        again = claim.message.with_failed_attempt(self.host, words, first.text, first.line)
        pause = RETRY_PAUSE * len(again.tries)
        log.error("%r: this builder could not build it: %s; put again, in %d s", claim, words, pause)
        job, forbidden = control.requeue_unless_cancelled(
            claim.broker, claim.tube, again, priority=facts.priority, delay=pause, ttr=facts.ttr
        )
        arches = desk.unfinished_arches() or again.announced_arches
        if forbidden:
            self.announce_cancelled(claim, forbidden, arches)
            return None
        reason = f"{self.host} could not build it: {words}; tried again in {pause} s"
        self._announce_requeue(desk, again, arches, job, reason, pause)
        return None

    def release_after_transient_failure(self, desk: JobSession, words: str) -> Outcome:
        """Release a request whose attempt was nobody's fault: no try is counted, and the reason is announced."""
        if desk.reservation_lost:
            return ReservationLost(f"another has it; here: {words}")
        claim = desk.claim
        pause = min(BLAMELESS_PAUSE_LONGEST, BLAMELESS_PAUSE * 2 ** min(claim.stats.releases, 10))
        reason = f"{NOBODY}{words}; tried again in {pause} s"
        self._announce_requeue(
            desk, claim.message, desk.unfinished_arches() or claim.message.announced_arches, claim.id, reason, pause
        )
        return RetryLater(words, pause=pause)

    def _announce_requeue(
        self, desk: JobSession, request: BuildRequest, arches: Iterable[str], job: int, reason: str, pause: int
    ) -> None:
        """Announce for each of these legs that it waits for another attempt, and why."""
        facts = desk.claim.stats
        where = {"tube": facts.tube, "job": job, "priority": facts.priority, "due": round(time.time()) + pause}
        by = {"builder_fqdn": self.host, "attempt": desk.token, "finished": round(time.time(), 3)}
        for arch in arches:
            about = {"arch": arch, "url": desk.kept_logs_url(arch), "reason": reason, "error_log": desk.error_log(arch)}
            desk.claim.broker.announce(event_for(request, Status.QUEUED, **{**about, **by, **where}))

    def requeue_without_source(self, desk: JobSession, away: SourceDelayed) -> Outcome:
        """Put a request again whose source cannot be downloaded now, for whoever is free then; no strike."""
        if desk.reservation_lost:
            return ReservationLost(f"another has it; here: {away}")
        claim, facts = desk.claim, desk.claim.stats
        again = attr.evolve(claim.message, source_rounds=claim.message.source_rounds + 1)
        log.warning("%r: %s; put again, in %d s", claim, away, away.pause)
        job, forbidden = control.requeue_unless_cancelled(
            claim.broker, claim.tube, again, priority=facts.priority, delay=away.pause, ttr=facts.ttr
        )
        if forbidden:
            self.announce_cancelled(claim, forbidden, again.announced_arches)
            return None
        where = {"tube": facts.tube, "job": job, "priority": facts.priority, "due": round(time.time()) + away.pause}
        waits_for = f"its source: {away}, on {self.host}"
        for arch in again.announced_arches:
            about = {"arch": arch, "reason": f"waits for {waits_for}", "waits_for": waits_for}
            claim.broker.announce(event_for(again, Status.QUEUED, **about, **where))
        return None

    def announce_cancelled(
        self, claim: ReservedJob[BuildRequest], forbidden: ControlFlag, arches: Iterable[str]
    ) -> None:
        """Say that a build is cancelled, of these of its legs; its job is deleted after."""
        log.info("%r: %s", claim, forbidden.cancel_text)
        for arch in arches:
            claim.broker.announce(event_for(claim.message, Status.CANCELLED, arch=arch, reason=forbidden.cancel_text))

    def started_arches(self, claim: ReservedJob[BuildRequest]) -> Sequence[str]:
        """The legs of a request that somebody may have begun: all of them, where it was in anybody's hands before."""
        request = claim.message
        if not request.legs and (claim.stats.reserves > 1 or request.tries):
            return self.environment.arches.legs_of(request.arch, parse_srpm_name(request.srpm)[0])
        return request.announced_arches

    def retry_later_if_failed_here(self, broker: Broker, claim: ReservedJob[BuildRequest]) -> None:
        """Raise `RetryLater` for a request this builder could not build, as long as others watch its tube.

        The broken builder is always the idle one: without this it would take the job straight back, and use up all
        tries while a sound one is busy.
        """
        faults = claim.message.builder_faults
        ours = [tried.when for tried in faults if tried.builder == self.host]
        if not ours or len(faults) >= self.tries:
            return
        rested = seconds_since_fault(claim.message.timestamp, max(ours), time.time(), claim.stats.age)
        if rested > SAME_BUILDER_BACKOFF_SECONDS:
            return
        watchers = broker.tube_stats(claim.stats.tube).watchers
        tried = sum(broker.tube_stats(heartbeat_tube(host)).watchers for host in {fault.builder for fault in faults})
        if watchers > tried:
            raise RetryLater(
                "this builder could not build it; left to those that have not tried", pause=RELEASE_DELAY_SECONDS
            )
        if watchers > 1 and rested <= SAME_BUILDER_BACKOFF_ALL_FAILED_SECONDS:
            raise RetryLater("this builder could not build it before; left to others", pause=RELEASE_DELAY_SECONDS)

    def reconnect(self) -> Broker:
        """A new connection in the place of one that broke under a build."""
        broker = self.connect()
        broker.watch(self.tubes)
        self.broker = broker
        return broker


def summarize_faults(faults: Sequence[FailedAttempt]) -> str:
    """Why no builder could build a request: each reason once, with the builders that gave it."""
    builders: dict[str, list[str]] = {}
    for tried in faults:
        known = builders.setdefault(tried.words, [])
        if tried.builder not in known:
            known.append(tried.builder)
    reasons = (f"{', '.join(hosts)}: {words}" for words, hosts in builders.items())
    return f"{NO_BUILDER_PREFIX}{'; '.join(reasons)}"


def seconds_since_fault(submitted: str, fault: float, now: float, age: float) -> float:
    """Seconds since this builder was at fault for a request whose job was put `age` seconds ago.

    Our clock may have been set since then. Each fault puts the request again, so no less than its age has passed; and
    no fault comes before the submission. Where our clock says otherwise, the age alone counts.
    """
    spent = now - fault
    most = now - calendar.timegm(time.strptime(submitted, validators.TIMESTAMP_FORMAT)) + MAX_SKEW_SECONDS
    return spent if age - MAX_SKEW_SECONDS <= spent <= most else age

# SPDX-License-Identifier: Apache-2.0
"""Where a running build meets beanstalkd: the one thread that holds the claim, and puts what the build says.

A lost connection is not a lost claim (architecture.md, promise 6): the build goes on, we connect anew and reserve our
own job by its number. If another worker has it by then, the build is finished and uploaded all the same, and
nothing is announced of it: whoever has the job announces.
"""

from __future__ import annotations

import logging
import queue
import time
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Callable

import attr

from reimzul.core.beanstalk import CREATEREPO, PRIORITY, Broker, ReservedJob
from reimzul.core.daemon import Stop, describe_outage
from reimzul.core.errors import BrokerUnavailable, ReservationLost, RetryLater
from reimzul.core.message import BuildEvent, BuildRequest
from reimzul.core.sdnotify import SdNotify
from reimzul.worker.build import BuildAttempt, Outgoing
from reimzul.worker.watch import ControlPoller

log = logging.getLogger(__name__)

#: Seconds one look at the outbox waits; a message that comes meanwhile is put at once.
LOOK = 0.2
#: Seconds between attempts to reach a beanstalkd that is away, and how often it is said.
RECONNECT, SAY_AGAIN = 1.0, 60.0


class JobSession:
    """The claim on one build's job, for as long as the build runs."""

    def __init__(
        self,
        connect: Callable[[], Broker],
        claim: ReservedJob[BuildRequest],
        stop: Stop,
        token: str,
        service: SdNotify,
        alive: Callable[[], None],
    ) -> None:
        """`alive` is called each time round, for the watchdog: a build may take days, this loop may not hang."""
        self.connect = connect
        self.claim = claim
        self.stop = stop
        self.service, self.alive = service, alive
        self.token = token  #: of this attempt
        self.build: BuildAttempt | None = None  #: once it is attended
        self.reservation_lost = False  #: the job is another's: announce nothing
        self._gone_since: float | None = None
        self._tried = self._said = 0.0

    def run_build(self, build: BuildAttempt, watch: ControlPoller) -> None:
        """Run the build in a thread of its own and serve it until it has ended and all it said is in tubes.

        Raises what the build raised. A stop ends the build first.
        """
        self.build = build
        with ThreadPoolExecutor(1, "build") as pool:
            future = pool.submit(build.run)
            future.add_done_callback(lambda _: build.outbox.put(None))  # wakes us, who wait for what it says
            try:
                self._pump(build, watch, future)
            except BaseException:
                build.stop()  # else leaving the pool would wait for all of a build that nobody serves
                raise
        future.result()

    def _pump(self, build: BuildAttempt, watch: ControlPoller, future: Future[None]) -> None:
        waiting: Outgoing | None = None
        while waiting is not None or not future.done() or not build.outbox.empty():
            self.alive()
            if self.stop.now.is_set():
                self.service.set_status("told to stop: ends the build and cleans its root up")
                build.stop()
                if future.done() and self._gone_since is not None:
                    break  # beanstalkd is away and we have to go: the job is put to others by our absence
            waiting = waiting or self._next_message(build, future)
            if self._keep_reserved() and waiting is not None and self._publish(waiting):
                waiting = None
            self._poll_flags(watch)

    def unfinished_arches(self) -> list[str]:
        """The arches of the legs that came to nothing, as far as they are known."""
        build = self.build
        return [leg.arch for leg in build.legs if leg.arch not in build.announced] if build else []

    def kept_logs_url(self, arch: str) -> str:
        """Where the logs are of an attempt that came to nothing: of this leg, or of another of it."""
        kept = self.build.kept_logs if self.build else {}
        return kept.get(arch) or next(iter(kept.values()), "")

    def error_log(self, arch: str) -> str:
        """Which log of an attempt that came to nothing has the cause: of this leg, or of another of it."""
        logs = self.build.error_logs if self.build else {}
        return logs.get(arch) or next(iter(logs.values()), "")

    def _next_message(self, build: BuildAttempt, future: Future[None]) -> Outgoing | None:
        try:
            return build.outbox.get(timeout=0.01 if future.done() else LOOK)
        except queue.Empty:
            return None

    def _keep_reserved(self) -> bool:
        """Touch the claim where it is due, and reconnect where that is; whether we are connected."""
        try:
            if self._gone_since is not None:
                self._reconnect()
            elif not self.reservation_lost:
                self._touch_job()
        except BrokerUnavailable as error:
            self._note_outage(error)
        return self._gone_since is None

    def _touch_job(self) -> None:
        try:
            self.claim.touch_if_due()
        except ReservationLost:
            self._re_reserve()

    def _poll_flags(self, watch: ControlPoller) -> None:
        """See to what else is wanted of this builder, where we are connected."""
        if self._gone_since is not None:
            return
        try:
            watch.poll(self.claim.broker, last=self.stop.requested)
        except BrokerUnavailable as error:
            self._note_outage(error)
        except RetryLater:  # beanstalkd takes nothing now: it is looked again
            return

    def _publish(self, said: Outgoing) -> bool:
        """Put one message; whether it is out."""
        broker = self.claim.broker
        try:
            if not isinstance(said, BuildEvent):
                broker.put(CREATEREPO, said, priority=PRIORITY)
            elif not self.reservation_lost:
                broker.announce(attr.evolve(said, at=round(time.time(), 3)))  # it may have waited for beanstalkd
            return True
        except BrokerUnavailable as error:
            self._note_outage(error)
        except RetryLater as error:  # beanstalkd is full: the message waits, and so does the build's end
            self._say(str(error))
            self.stop.now.wait(RECONNECT)
        return False

    def _note_outage(self, error: BrokerUnavailable) -> None:
        if self._gone_since is None:
            self._gone_since = time.monotonic()
            self.service.set_note(beanstalkd=describe_outage(error))
        self._say(f"{error}; the build goes on")

    def _say(self, what: str) -> None:
        if not self._said or time.monotonic() - self._said > SAY_AGAIN:
            log.warning("%s", what)
            self._said = time.monotonic()

    def _reconnect(self) -> None:
        """Connect anew, at most once a second, and take our own job back."""
        if time.monotonic() - self._tried < RECONNECT:
            time.sleep(LOOK)
            return
        self._tried = time.monotonic()
        self.claim.broker = self.connect()
        self._gone_since, self._said = None, 0.0
        self.service.set_note(beanstalkd="")
        log.info("beanstalkd is back")
        self._re_reserve()

    def _re_reserve(self) -> None:
        """Reserve our job by its number; where that is refused it is another's, or was."""
        if self.reservation_lost:
            return
        try:
            self.claim.broker.re_reserve(self.claim)
        except ReservationLost:
            log.warning("%r is not ours any more: this build is finished and announces nothing", self.claim)
            self.reservation_lost = True

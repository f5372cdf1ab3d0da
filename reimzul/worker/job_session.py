# SPDX-License-Identifier: Apache-2.0
"""Owns the beanstalkd connection while a build runs: keeps the job reserved, publishes the build's messages, polls for
a person's cancel and drain flags, and sends the worker's heartbeats.

A lost connection is not a lost reservation: the build goes on, the session reconnects and reserves the job again by its
number. If another worker has it by then, the build is finished and uploaded all the same, but nothing is announced of
it: the worker that has the job announces.
"""

from __future__ import annotations

import logging
import queue
import time
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Callable

import attr

from reimzul.core import control
from reimzul.core.beanstalk import CREATEREPO, PRIORITY, Broker, ReservedJob
from reimzul.core.daemon import SdNotify, Stop, describe_outage
from reimzul.core.errors import BrokerUnavailable, ReservationLost, RetryLater
from reimzul.core.heartbeat import HeartbeatSender
from reimzul.core.message import BuildEvent, BuildRequest, CurrentBuild, WorkerState
from reimzul.core.retry import LogThrottle
from reimzul.worker.build import BuildAttempt, Outgoing

log = logging.getLogger(__name__)

#: Seconds the session waits for a message of the build; a message that arrives meanwhile is published at once.
OUTBOX_WAIT_SECONDS = 0.2
#: Seconds between reconnection attempts; seconds between log lines about them.
RECONNECT_SECONDS, LOG_AGAIN_SECONDS = 1.0, 60.0
#: Seconds between two looks for a flag that cancels the build, and for one that drains this builder.
CANCEL_POLL_SECONDS, DRAIN_POLL_SECONDS = 1.0, 10.0


class ControlPoller:
    """Polls beanstalkd for the flags that concern one build, and sends the worker's heartbeat."""

    def __init__(self, build: BuildAttempt, host: str, heartbeat: HeartbeatSender) -> None:
        self.build, self.host, self.heartbeat = build, host, heartbeat
        self._cancel_polled = self._drain_polled = float("-inf")
        self._drain_flag: control.ControlFlag | None = None
        self._is_cancelled = False

    def poll(self, broker: Broker, *, last: bool) -> None:
        """Look for the flags that are due; `last`: the worker ends after this build. Raises `BrokerUnavailable`."""
        now = time.monotonic()
        if now - self._cancel_polled < CANCEL_POLL_SECONDS:
            return
        self._cancel_polled = now
        build_id = self.build.attempt.request.build_id
        if not self._is_cancelled and (flag := control.cancel_flag(broker, build_id)):
            self._is_cancelled = True
            self.build.cancel(flag.cancel_text)
        if now - self._drain_polled >= DRAIN_POLL_SECONDS:
            self._drain_polled = now
            self._drain_flag = control.drain_flag(broker, self.host)
        why = self._drain_flag.drain_text if self._drain_flag else ""
        self.heartbeat.send(broker, self._state(last), why, self._current_build())

    def _state(self, last: bool) -> str:
        if self._drain_flag is not None and self._drain_flag.is_quarantine:
            return WorkerState.QUARANTINED
        return WorkerState.DRAINING if last or self._drain_flag is not None else WorkerState.BUILDING

    def _current_build(self) -> CurrentBuild:
        attempt = self.build.attempt
        arch, phase = self.build.progress.current_phase(attempt.request.arch)
        return CurrentBuild(
            build_id=attempt.request.build_id,
            srpm=attempt.request.srpm,
            target=attempt.request.target,
            arch=arch,
            attempt=attempt.token,
            phase=phase.name,
            since=phase.start,
            started=round(attempt.started, 3),
        )


@attr.define
class JobSession:
    """The reservation of one build's job, for as long as the build runs."""

    connect: Callable[[], Broker]
    claim: ReservedJob[BuildRequest]
    stop: Stop
    token: str  #: of this attempt
    service: SdNotify
    ping_watchdog: Callable[[], None]  #: called each time round: a build may take days, but this loop may not hang
    build: BuildAttempt | None = attr.field(default=None, init=False)  #: once it runs
    reservation_lost: bool = attr.field(default=False, init=False)  #: another worker has the job: announce nothing
    _is_cut_off: bool = attr.field(default=False, init=False)  #: beanstalkd cannot be reached
    _last_connect: float = attr.field(default=0.0, init=False)
    _throttle: LogThrottle = attr.field(factory=lambda: LogThrottle(LOG_AGAIN_SECONDS), init=False)

    def run_build(self, build: BuildAttempt, poller: ControlPoller) -> None:
        """Run the build in a thread of its own until it has ended and all its messages are published.

        Raises what the build raised. A stop ends the build first.
        """
        self.build = build
        with ThreadPoolExecutor(1, "build") as pool:
            future = pool.submit(build.run)
            future.add_done_callback(lambda _: build.outbox.put(None))  # wakes `_next_message`
            try:
                self._pump(build, poller, future)
            except BaseException:
                build.stop()  # else leaving the pool would wait for the whole build, which nobody serves
                raise
        future.result()

    def _pump(self, build: BuildAttempt, poller: ControlPoller, future: Future[None]) -> None:
        pending: Outgoing | None = None
        while pending is not None or not future.done() or not build.outbox.empty():
            self.ping_watchdog()
            if self.stop.now.is_set():
                self.service.set_status("stopping: ending the build and removing its root")
                build.stop()
                if future.done() and self._is_cut_off:
                    break  # beanstalkd gives the job to others then
            pending = pending or self._next_message(build, future)
            if self._keep_reserved() and pending is not None and self._publish(pending):
                pending = None
            if not self._is_cut_off:
                self._poll_flags(poller)

    def unfinished_arches(self) -> Sequence[str]:
        """The legs without result, or those that `Queued` is announced for where none is known."""
        build = self.build
        unfinished = [leg.arch for leg in build.legs if leg.arch not in build.announced] if build else []
        return unfinished or self.claim.message.announced_arches

    def describe_logs(self, arch: str) -> dict[str, str]:
        """The event fields about the logs of an attempt without result: of this leg's, or of another leg's of it."""
        fields = {"url": self.build.kept_logs, "error_log": self.build.error_logs} if self.build else {}
        return {name: logs.get(arch) or next(iter(logs.values()), "") for name, logs in fields.items()}

    def _next_message(self, build: BuildAttempt, future: Future[None]) -> Outgoing | None:
        try:
            return build.outbox.get(timeout=0.01 if future.done() else OUTBOX_WAIT_SECONDS)
        except queue.Empty:
            return None

    def _keep_reserved(self) -> bool:
        """Touch the job where that is due, and reconnect where that is; whether we are connected."""
        try:
            if self._is_cut_off:
                self._reconnect()
            elif not self.reservation_lost:
                try:
                    self.claim.touch_if_due()
                except ReservationLost:
                    self._re_reserve()
        except BrokerUnavailable as error:
            self._note_outage(error)
        return not self._is_cut_off

    def _poll_flags(self, poller: ControlPoller) -> None:
        try:
            poller.poll(self.claim.broker, last=self.stop.is_requested)
        except BrokerUnavailable as error:
            self._note_outage(error)
        except RetryLater:
            pass  # beanstalkd takes nothing now: the next poll tries again

    def _publish(self, message: Outgoing) -> bool:
        """Put one message; whether it is out."""
        broker = self.claim.broker
        try:
            if not isinstance(message, BuildEvent):
                broker.put(CREATEREPO, message, priority=PRIORITY)
            elif not self.reservation_lost:
                broker.announce(attr.evolve(message, at=round(time.time(), 3)))  # it may have waited for beanstalkd
            return True
        except BrokerUnavailable as error:
            self._note_outage(error)
        except RetryLater as error:  # beanstalkd is full: the message waits, and so does the build's end
            self._log_throttled(str(error))
            self.stop.now.wait(RECONNECT_SECONDS)
        return False

    def _note_outage(self, error: BrokerUnavailable) -> None:
        if not self._is_cut_off:
            self._is_cut_off = True
            self.service.set_note(beanstalkd=describe_outage(error))
        self._log_throttled(f"{error}; the build goes on")

    def _log_throttled(self, message: str) -> None:
        if self._throttle.is_due():
            log.warning("%s", message)

    def _reconnect(self) -> None:
        """Reconnect, at most once a second, and reserve our job again."""
        if time.monotonic() - self._last_connect < RECONNECT_SECONDS:
            time.sleep(OUTBOX_WAIT_SECONDS)
            return
        self._last_connect = time.monotonic()
        self.claim.broker = self.connect()
        self._is_cut_off = False
        self._throttle.reset()
        self.service.set_note(beanstalkd="")
        log.info("beanstalkd is back")
        self._re_reserve()

    def _re_reserve(self) -> None:
        """Reserve our job by its number; where that is refused, another worker has it, or had it."""
        if self.reservation_lost:
            return
        try:
            self.claim.broker.re_reserve(self.claim)
        except ReservationLost:
            log.warning("%r is not ours any more: this build is finished and announces nothing", self.claim)
            self.reservation_lost = True

# SPDX-License-Identifier: Apache-2.0
"""The loop of all daemons: claim, handle, settle; reconnect; stop when told to.

A handler says what became of each claim; only the loop deletes, releases or buries. What a handler puts into other
tubes is put before its claim is settled, so a crash repeats work and never loses it: every handler is safe to run
twice on one job.
"""

from __future__ import annotations

import contextlib
import logging
import signal
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Callable, Generic, Optional, TypeVar

from reimzul.core.beanstalk import Broker, ReservedJob, Tube, is_control_tube
from reimzul.core.errors import (
    BrokerUnavailable,
    InvalidMessage,
    ReimzulError,
    ReservationLost,
    RetryLater,
    ShutdownRequested,
)
from reimzul.core.message import Refusal, first_bytes
from reimzul.core.sdnotify import SdNotify

log = logging.getLogger(__name__)
M = TypeVar("M")

#: Seconds one reserve waits. A signal's flag does not wake a blocked read, so this is how late a stop is seen.
RESERVE_SECONDS = 1
#: Seconds between attempts to reach beanstalkd, and how often its absence is said.
RECONNECT_SECONDS, LOG_AGAIN_SECONDS = 1.0, 60.0

#: Seconds a job may wait for what it needs to be there.
MAX_WAIT_SECONDS = 3600

#: What became of one claim: None where all its effects are out, else why it is not so.
Outcome = Optional[Exception]


class Stop:
    """Whether, and how, the daemon was told to stop. Signal handlers set it; everything else reads it."""

    def __init__(self) -> None:
        self.now = threading.Event()  #: SIGTERM, SIGINT: give back what is in hand
        self.drain = threading.Event()  #: SIGUSR1: finish what is in hand, take nothing

    @property
    def requested(self) -> bool:
        """Whether nothing more is to be taken."""
        return self.now.is_set() or self.drain.is_set()

    def raise_if_stopping(self) -> None:
        """Raise `ShutdownRequested` where what is in hand is to be given back."""
        if self.now.is_set():
            raise ShutdownRequested("told to stop")


@contextlib.contextmanager
def handle_signals(stop: Stop) -> Iterator[None]:
    """SIGTERM and SIGINT stop, SIGUSR1 drains; a handler sets its flag and nothing else."""
    flags = {signal.SIGTERM: stop.now, signal.SIGINT: stop.now, signal.SIGUSR1: stop.drain}
    before = {number: signal.signal(number, lambda n, _: flags[signal.Signals(n)].set()) for number in flags}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class Daemon(Generic[M]):
    """One program that claims from tubes and handles what it claims."""

    #: How many claims are handled together at the most.
    batch = 1

    def __init__(
        self,
        connect: Callable[[], Broker],
        tubes: Sequence[Tube[M]],
        host: str,
        stop: Stop | None = None,
    ) -> None:
        self.connect = connect
        self.tubes = {tube.name: tube for tube in tubes}
        self.host = host
        self.stop = stop or Stop()
        self.service = SdNotify()
        self.broker: Broker | None = None

    def handle(self, broker: Broker, claims: list[ReservedJob[M]]) -> Iterable[tuple[ReservedJob[M], Outcome]]:
        """Do what the messages ask, and say of each claim as it is decided what became of it.

        What it claims itself meanwhile it adds to `claims`. A handler that takes long calls `broker.keep()` and
        `alive()` often, and both from this thread alone. What it raises holds for all claims it has not yet decided.
        """
        raise TypeError(f"{type(self).__name__} does not handle anything")

    def can_accept_job(self, broker: Broker) -> bool:
        """Whether a job may be taken now; asked before each reserve."""
        return True

    def do_idle_work(self, broker: Broker) -> None:
        """What there is to do when no job waits; called about once a second then."""

    def ping_watchdog(self) -> None:
        """Tell systemd's watchdog that the loop goes round; what hangs between two calls is ended and started anew."""
        if self.stop.drain.is_set():
            self.service.set_note(drain="takes nothing more, and ends then")
        self.service.ping()

    def idle_status(self) -> str:
        """What this daemon does when it does nothing, for `systemctl status`."""
        return f"waiting for jobs in {', '.join(name for name in self.tubes if not is_control_tube(name))}"

    def run(self) -> None:
        """Serve until told to stop; beanstalkd away is waited out.

        To systemd the daemon is ready before beanstalkd is reached: it waits for it as long as it takes.
        """
        said = 0.0
        with handle_signals(self.stop):
            self.service.announce_ready("connecting to beanstalkd")
            while not self.stop.requested:
                try:
                    self.ping_watchdog()
                    self.broker = self.connect()
                    self.service.set_note(beanstalkd="")
                    if said:
                        log.info("beanstalkd is back")
                    said = 0.0
                    self.serve(self.broker)
                except (
                    BrokerUnavailable,
                    RetryLater,
                ) as error:  # away, or refusing what has to go out: closing gives claims back
                    said = self._log_unavailable(error, said)
                finally:
                    if self.broker is not None:
                        self.broker.close()
        self.service.announce_stop()
        log.info("stopped")

    def _log_unavailable(self, error: ReimzulError, said: float) -> float:
        """Say it once a minute, and wait a little; the seconds since it was last said."""
        if said == 0.0:
            self.service.set_note(beanstalkd=describe_outage(error))
        if said == 0.0 or said > LOG_AGAIN_SECONDS:
            log.warning("%s; trying again every %g s", error, RECONNECT_SECONDS)
            said = 0.0
        self.stop.now.wait(RECONNECT_SECONDS)
        return said + RECONNECT_SECONDS

    def serve(self, broker: Broker) -> None:
        """Claim, handle and settle on one connection."""
        broker.watch(self.tubes)
        log.info("%s", self.idle_status())
        self.service.set_status(self.idle_status())
        while not self.stop.requested:
            self.ping_watchdog()
            claims = self._release_if_stopping(self.reserve_jobs(broker))
            if claims:
                self.service.set_status(f"at work on {claims[0]!r}" + (f", of {len(claims)}" if claims[1:] else ""))
                self.settle_all(broker, claims)
                broker = self.broker or broker  # a handler may have had to reconnect
            else:
                self.service.set_status(self.idle_status())
                self.do_idle_work(broker)

    def _release_if_stopping(self, claims: list[ReservedJob[M]]) -> list[ReservedJob[M]]:
        """What is begun now: nothing where we are to end. A signal wakes no reserve, and what that brings goes back."""
        if not self.stop.requested:
            return claims
        for claim in claims:
            self.settle(claim, ShutdownRequested())
        return []

    def reserve_jobs(self, broker: Broker, wait: int = RESERVE_SECONDS, room: int = 0) -> list[ReservedJob[M]]:
        """What waits, at most a batch (or `room`), each decoded; what cannot be decoded is refused here.

        It waits at most `wait` seconds for the first.
        """
        if not self.can_accept_job(broker):
            self.stop.now.wait(RESERVE_SECONDS)
            return []
        claims: list[ReservedJob[M]] = []
        while len(claims) < (room or self.batch):
            claim = broker.reserve(self.tubes, 0 if claims else wait)
            if claim is None:
                break
            try:
                self.check(claim.message)
            except InvalidMessage as error:
                self.settle(claim, error)
            else:
                claims.append(claim)
        return claims

    def check(self, message: M) -> None:
        """Raise `InvalidMessage` for a message that is well formed and still nothing for this farm."""

    def settle_all(self, broker: Broker, claims: list[ReservedJob[M]]) -> None:
        """Handle claims together; where that shows a bug of ours, one by one, so that it stops only its own."""
        settled: set[int] = set()
        try:
            for claim, outcome in self.handle(broker, claims):
                self.settle(claim, outcome)
                settled.add(claim.id)  # not before: what could not be settled is left, and given back below
        except BrokerUnavailable:
            raise
        except Exception as error:
            left = [claim for claim in claims if claim.id not in settled]
            if len(left) > 1 and not isinstance(error, ReimzulError):
                log.exception("%d jobs together: one by one now", len(left))
                for claim in left:
                    self.settle_all(broker, [claim])
                return
            for claim in left:
                self.settle(claim, error)

    def settle(self, claim: ReservedJob[M], outcome: Outcome) -> None:
        """Delete, give back or bury one job."""
        self.ping_watchdog()
        try:
            if outcome is None:
                claim.delete()
            elif isinstance(outcome, ReservationLost):
                log.warning("%r: %s", claim, outcome)
                claim.broker.untrack(claim)
            elif isinstance(outcome, ShutdownRequested):
                claim.release(0)
            elif isinstance(outcome, RetryLater):
                pause = outcome.pause
                log.warning("%r: %s; again in %d s", claim, outcome, pause)
                self._retry_until_settled(claim, lambda: claim.release(pause))
            elif isinstance(outcome, BrokerUnavailable):
                raise outcome
            else:
                self.refuse(claim, outcome)
        except ReservationLost as error:
            log.warning("%r: could not be settled: %s", claim, error)
            claim.broker.untrack(claim)

    def refuse(self, claim: ReservedJob[M], error: Exception) -> None:
        """Announce that a job is no message of ours, or more than we can do, and put it aside."""
        if isinstance(error, ReimzulError):
            reason = str(error)
            log.error("%r refused: %s", claim, reason)
        else:
            reason = f"a bug of reimzul: {error!r}"
            log.error("%r buried", claim, exc_info=error)
        self.announce_refusal(claim, make_refusal(claim, reason, self.host))
        self._retry_until_settled(claim, claim.bury)

    def _retry_until_settled(self, claim: ReservedJob[M], let_go: Callable[[], None]) -> None:
        """Give a job back or bury it; one that a full beanstalkd has lost hold of, as often as it takes."""
        said = False
        while True:
            try:
                let_go()
                return
            except RetryLater as error:
                if not claim.is_orphaned or self.stop.now.is_set():
                    raise
                if not said:
                    log.error("%r: %s; it is put anew as soon as there is room", claim, error)
                said = True
            self.stop.now.wait(RECONNECT_SECONDS)
            self.ping_watchdog()
            claim.broker.touch_all_if_due(lost=claim.broker.untrack)

    def announce_refusal(self, claim: ReservedJob[M], event: Refusal) -> None:
        """Announce that a job was refused; the notifier tells its sinks itself."""
        claim.broker.announce(event)


def describe_outage(error: ReimzulError) -> str:
    """That beanstalkd cannot be used, and since when, for `systemctl status`."""
    return f"since {time.strftime('%Y-%m-%d %H:%M:%S', time.gmtime())} UTC: {error}"


def retry_or_give_up(claim: ReservedJob[Any], what: str) -> ReimzulError:
    """Wait for something that should exist: `RetryLater` with growing pauses, then `InvalidMessage`."""
    age = claim.stats.age
    if age > MAX_WAIT_SECONDS:
        return InvalidMessage(f"{what} is not there, and was not for {age} s")
    return RetryLater(f"{what} is not there", pause=min(300, max(2, age // 2)))


def make_refusal(claim: ReservedJob[Any], reason: str, host: str) -> Refusal:
    """The event that tells of a refused job."""
    return Refusal(
        tube=claim.stats.tube,
        job=claim.id,
        reason=reason,
        begins=first_bytes(claim.body),
        host=host,
        at=round(time.time(), 3),
    )

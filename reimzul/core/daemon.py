# SPDX-License-Identifier: Apache-2.0
"""The loop of all daemons: reserve jobs, handle them, settle them; reconnect; stop on a signal; tell systemd.

A handler returns the outcome of each job; only the loop deletes, releases or buries jobs. A handler puts its messages
into other tubes before its job is settled, so a crash repeats work and loses none: handling a job twice must be safe.
"""

from __future__ import annotations

import contextlib
import faulthandler
import logging
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Callable, Generic, Optional, TypeVar

from reimzul.core.beanstalk import Broker, ReservedJob, Tube, is_control_tube, session_tube
from reimzul.core.errors import (
    BrokerUnavailable,
    InvalidMessage,
    JobSettled,
    ReimzulError,
    ReservationLost,
    RetryLater,
    ShutdownRequested,
)
from reimzul.core.formatting import format_time
from reimzul.core.heartbeat import HeartbeatSender
from reimzul.core.message import Refusal, first_bytes
from reimzul.core.retry import LogThrottle

log = logging.getLogger(__name__)
M = TypeVar("M")
T = TypeVar("T")

#: Seconds that one reserve waits. A signal does not interrupt it, so a stop is noticed this late.
RESERVE_SECONDS = 1
#: Seconds between reconnection attempts; seconds between log lines about it.
RECONNECT_SECONDS, LOG_AGAIN_SECONDS = 1.0, 60.0

#: Seconds that a job may wait for something that it needs.
MAX_WAIT_SECONDS = 3600

#: The outcome of a job: None if all its effects are out, otherwise why not.
Outcome = Optional[Exception]


class Stop:
    """Whether and how the daemon is to stop. Signal handlers set it, everything else reads it."""

    def __init__(self) -> None:
        self.now = threading.Event()  #: SIGTERM, SIGINT: release the jobs in hand
        self.drain = threading.Event()  #: SIGUSR1: finish the jobs in hand, take no more

    @property
    def is_requested(self) -> bool:
        return self.now.is_set() or self.drain.is_set()

    def raise_if_stopping(self) -> None:
        if self.now.is_set():
            raise ShutdownRequested("the daemon is stopping")


@contextlib.contextmanager
def handle_signals(stop: Stop) -> Iterator[None]:
    """Let SIGTERM and SIGINT stop and SIGUSR1 drain; a signal handler only sets a flag."""
    flags = {signal.SIGTERM: stop.now, signal.SIGINT: stop.now, signal.SIGUSR1: stop.drain}
    before = {number: signal.signal(number, lambda n, _: flags[signal.Signals(n)].set()) for number in flags}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class Daemon(Generic[M]):
    #: How many jobs are handled together, at most.
    batch = 1

    def __init__(
        self,
        connect: Callable[[], Broker],
        tubes: Sequence[Tube[M]],
        host: str,
        stop: Stop | None = None,
        heartbeat: HeartbeatSender | None = None,
    ) -> None:
        self.connect = connect
        self.heartbeat = heartbeat
        self.tubes = {tube.name: tube for tube in tubes}
        self.host = host
        self.stop = stop or Stop()
        self.service = SdNotify()
        self.broker: Broker | None = None

    def handle(self, broker: Broker, claims: list[ReservedJob[M]]) -> Iterable[tuple[ReservedJob[M], Outcome]]:
        """Do what the messages ask; yield the outcome of each job as soon as it is known.

        A handler adds the jobs that it reserves itself to `claims`. One that takes long calls
        `broker.touch_all_if_due()` and `ping_watchdog()` often, from this thread only. An error that it raises is the
        outcome of all jobs without one.
        """
        raise TypeError(f"{type(self).__name__} does not handle anything")

    def can_accept_job(self, broker: Broker) -> bool:
        """Whether a job may be reserved now; asked before each reserve."""
        return True

    def do_idle_work(self, broker: Broker) -> None:
        """Work to do while no job waits; called about once a second."""

    def ping_watchdog(self) -> None:
        """Ping systemd's watchdog, which restarts a daemon that hangs between two calls."""
        if self.stop.drain.is_set():
            self.service.set_note(drain="takes no more jobs, then ends")
        self.service.ping()

    def idle_status(self) -> str:
        return f"waiting for jobs in {', '.join(name for name in self.tubes if not is_control_tube(name))}"

    def run(self) -> None:
        """Serve until a signal stops the daemon, reconnecting to beanstalkd for as long as it takes.

        For systemd the daemon is ready before it has reached beanstalkd.
        """
        throttle = LogThrottle(LOG_AGAIN_SECONDS)
        with handle_signals(self.stop):
            self.service.announce_ready("connecting to beanstalkd")
            while not self.stop.is_requested:
                try:
                    self.ping_watchdog()
                    self.broker = self.connect()
                    self.service.set_note(beanstalkd="")
                    if throttle.reset():
                        log.info("beanstalkd is back")
                    self.serve(self.broker)
                except (BrokerUnavailable, RetryLater) as error:  # closing the connection releases our jobs
                    self._wait_to_reconnect(error, throttle)
                finally:
                    if self.broker is not None:
                        self.broker.close()
        self.service.announce_stop()
        log.info("stopped")

    def _wait_to_reconnect(self, error: ReimzulError, throttle: LogThrottle) -> None:
        if not throttle.is_running:
            self.service.set_note(beanstalkd=describe_outage(error))
        if throttle.is_due():
            log.warning("%s; trying again every %g s", error, RECONNECT_SECONDS)
        self.stop.now.wait(RECONNECT_SECONDS)

    def send_heartbeat(self, broker: Broker, state: str) -> None:
        """Send the heartbeat if it is due; call it often while jobs are handled. Raises `BrokerUnavailable`."""
        if self.heartbeat is not None:
            self.heartbeat.send(broker, state)

    def watch_tubes(self, broker: Broker) -> None:
        """Watch the tubes, and the one that shows that this process is connected."""
        session = [session_tube(self.heartbeat.identity.session)] if self.heartbeat else []
        broker.watch([*self.tubes, *session])

    def serve(self, broker: Broker) -> None:
        self.watch_tubes(broker)
        log.info("%s", self.idle_status())
        self.service.set_status(self.idle_status())
        while not self.stop.is_requested:
            self.ping_watchdog()
            claims = self._release_if_stopping(self.reserve_jobs(broker))
            if claims:
                self.service.set_status(
                    f"handling {claims[0]!r}" + (f" and {len(claims) - 1} more" if claims[1:] else "")
                )
                self.settle_all(broker, claims)
                broker = self.broker or broker  # a handler may have had to reconnect
            else:
                self.service.set_status(self.idle_status())
                self.do_idle_work(broker)
        if self.heartbeat is not None:
            self.heartbeat.send_leaving(self.broker or broker)

    def _release_if_stopping(self, claims: list[ReservedJob[M]]) -> list[ReservedJob[M]]:
        """When stopping, release the jobs just reserved: a signal does not interrupt `reserve`."""
        if not self.stop.is_requested:
            return claims
        for claim in claims:
            self.settle(claim, ShutdownRequested())
        return []

    def reserve_jobs(self, broker: Broker, wait: int = RESERVE_SECONDS, room: int = 0) -> list[ReservedJob[M]]:
        """Reserve a batch of jobs, or at most `room`, waiting `wait` seconds for the first; refuse invalid ones."""
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
        """Raise `InvalidMessage` for a well-formed message that this farm cannot handle."""

    def settle_all(self, broker: Broker, claims: list[ReservedJob[M]]) -> None:
        """Handle jobs together; after a bug one by one, so that it stops only the job that causes it."""
        settled: set[int] = set()
        try:
            for claim, outcome in self.handle(broker, claims):
                self.settle(claim, outcome)
                settled.add(claim.id)  # not before: a job that could not be settled is released below
        except BrokerUnavailable:
            raise
        except Exception as error:
            left = [claim for claim in claims if claim.id not in settled]
            if len(left) > 1 and not isinstance(error, ReimzulError):
                log.exception("handling %d jobs together failed; handling them one by one", len(left))
                for claim in left:
                    self.settle_all(broker, [claim])
                return
            for claim in left:
                self.settle(claim, error)

    def settle(self, claim: ReservedJob[M], outcome: Outcome) -> None:
        self.ping_watchdog()
        try:
            if outcome is None:
                claim.delete()
            elif isinstance(outcome, JobSettled):
                log.info("%r: %s", claim, outcome)
            elif isinstance(outcome, ReservationLost):
                log.warning("%r: %s", claim, outcome)
                claim.broker.untrack(claim)
            elif isinstance(outcome, ShutdownRequested):
                claim.release(0)
            elif isinstance(outcome, RetryLater):
                pause = outcome.pause
                log.warning("%r: %s; trying again in %d s", claim, outcome, pause)
                self._retry_until_settled(claim, lambda: claim.release(pause))
            elif isinstance(outcome, BrokerUnavailable):
                raise outcome
            else:
                self.refuse(claim, outcome)
        except ReservationLost as error:
            log.warning("%r: could not be settled: %s", claim, error)
            claim.broker.untrack(claim)

    def refuse(self, claim: ReservedJob[M], error: Exception) -> None:
        if isinstance(error, ReimzulError):
            reason = str(error)
            log.error("%r refused: %s", claim, reason)
        else:
            reason = f"a bug in Reimzul: {error!r}"
            log.error("%r buried", claim, exc_info=error)
        self.announce_refusal(claim, make_refusal(claim, reason, self.host))
        self._retry_until_settled(claim, claim.bury)

    def _retry_until_settled(self, claim: ReservedJob[M], give_up: Callable[[], T]) -> T:
        """Release or bury a job; if a full beanstalkd has orphaned it, try until it accepts the job."""
        throttle = LogThrottle(LOG_AGAIN_SECONDS)
        while True:
            try:
                return give_up()
            except RetryLater as error:
                if not claim.is_orphaned or self.stop.now.is_set():
                    raise
                if throttle.is_due():
                    log.error("%r: %s; it is put again as soon as beanstalkd accepts it", claim, error)
            self.stop.now.wait(RECONNECT_SECONDS)
            self.ping_watchdog()
            claim.broker.touch_all_if_due(lost=claim.broker.untrack)

    def announce_refusal(self, claim: ReservedJob[M], event: Refusal) -> None:
        """Announce that a job was refused; the notifier passes it to its sinks directly."""
        claim.broker.announce(event)


def describe_outage(error: ReimzulError) -> str:
    """Why and since when beanstalkd cannot be used, for `systemctl status`."""
    return f"since {format_time(time.time())}: {error}"


def retry_or_give_up(claim: ReservedJob[Any], what: str) -> ReimzulError:
    """Wait for something that should exist: `RetryLater` with growing pauses, then `InvalidMessage`."""
    age = claim.stats.age
    if age > MAX_WAIT_SECONDS:
        return InvalidMessage(f"{what} does not exist, and did not for {age} s")
    return RetryLater(f"{what} does not exist yet", pause=min(300, max(2, age // 2)))


def make_refusal(claim: ReservedJob[Any], reason: str, host: str) -> Refusal:
    return Refusal(
        tube=claim.stats.tube,
        job=claim.id,
        reason=reason,
        begins=first_bytes(claim.body),
        host=host,
        at=round(time.time(), 3),
    )


# --- systemd --------------------------------------------------------------------------------------------------------

#: Pings are sent at this share of the watchdog's interval: one may be lost, and one may be late.
PING_SHARE = 1 / 4
#: Seconds that systemd may take to receive the first and the last message. Others are not waited for: a busy systemd
#: must not delay the loop, and the message is sent again in the next round.
SEND_TIMEOUT_SECONDS = 5.0
#: Characters of a status; `systemctl status` shows one line.
MAX_STATUS_CHARACTERS = 300


class SdNotify:
    """sd_notify(3): tells systemd that a daemon is ready, what it is doing, that its loop is alive, and that it stops.

    Used by the thread of the daemon's loop only. Does nothing without $NOTIFY_SOCKET. Programs that a daemon runs do
    not get that variable (`core/process.py`), so they cannot answer for it. With a watchdog, a daemon that systemd
    aborts prints the stacks of all its threads.
    """

    def __init__(self, environment: Mapping[str, str] | None = None) -> None:
        variables = os.environ if environment is None else environment
        self._address = _socket_address(variables.get("NOTIFY_SOCKET", ""))
        self._every = _ping_interval(variables)
        self._due = 0.0 if self._every else float("inf")
        self._doing = self._status = self._said = ""
        self._remarks: dict[str, str] = {}
        if self._address and self._every:
            faulthandler.enable(sys.__stderr__ or 2)

    def announce_ready(self, doing: str) -> None:
        """The settings are checked and signals are handled."""
        self._doing = doing
        self._update_status()
        self._said = self._status
        self._send(f"READY=1\nSTATUS={self._said}", SEND_TIMEOUT_SECONDS)
        self.ping()

    def ping(self) -> None:
        """The loop is alive: call this often, and only from the loop."""
        now = time.monotonic()
        if now >= self._due and self._send("WATCHDOG=1"):
            self._due = now + self._every
        self._send_status()

    def set_status(self, words: str) -> None:
        if words != self._doing:
            self._doing = words
            self._update_status()
        self._send_status()

    def set_note(self, **remarks: str) -> None:
        """Add a note per subject to the status; an empty one removes it."""
        self._remarks.update(remarks)
        self._update_status()
        self._send_status()

    def announce_stop(self) -> None:
        self._send("STOPPING=1\nSTATUS=stopping", SEND_TIMEOUT_SECONDS)

    def _send_status(self) -> None:
        if self._status != self._said and self._send(f"STATUS={self._status}"):
            self._said = self._status

    def _update_status(self) -> None:
        words = "; ".join(words for words in (self._doing, *self._remarks.values()) if words)
        self._status = " ".join(words.split())[:MAX_STATUS_CHARACTERS]

    def _send(self, words: str, patience: float = 0.0) -> bool:
        """Send a datagram; return whether systemd received it or does not want any."""
        if not self._address:
            return True
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as end:
                end.settimeout(patience)
                end.sendto(words.encode("utf-8", "replace"), self._address)
        except OSError as error:
            log.debug("systemd did not receive %r: %s", words, error)
            return False
        return True


def _socket_address(name: str) -> str:
    """A path or, with a leading `@`, an abstract name; anything else is ignored."""
    if name.startswith("@"):
        return f"\0{name[1:]}"
    return name if name.startswith("/") else ""


def _ping_interval(variables: Mapping[str, str]) -> float:
    """Seconds between pings; 0 without a watchdog."""
    try:
        allowed = int(variables["WATCHDOG_USEC"]) / 1_000_000
        ours = int(variables.get("WATCHDOG_PID", os.getpid())) == os.getpid()
    except (KeyError, ValueError):
        return 0.0
    return allowed * PING_SHARE if ours and allowed > 0 else 0.0

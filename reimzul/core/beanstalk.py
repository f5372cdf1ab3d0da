# SPDX-License-Identifier: Apache-2.0
"""beanstalkd: one connection, the tubes and what travels in each, and the claim on a reserved job.

The one place that imports greenstalk. Its traps are dealt with here (style.md, "Manners decided"): it decodes
nothing for us, every put and release names its priority, the socket has a timeout, and a stream that may be out of
step is closed. Only the connection that reserved a job may touch it, so a `Broker` belongs to one thread.
"""

from __future__ import annotations

import contextlib
import select
import socket
import time
from collections.abc import Iterable, Iterator
from typing import Any, Callable, Generic, TypeVar

import attr
import greenstalk

from reimzul.core import validators
from reimzul.core.errors import BrokerUnavailable, InvalidMessage, ReservationLost, RetryLater
from reimzul.core.message import (
    BuildRequest,
    NotifyMessage,
    RepogenRequest,
    SignRequest,
    Status,
    decode_event,
)

M = TypeVar("M")

#: Seconds a single answer of beanstalkd may take, above what we asked it to wait.
REPLY_TIMEOUT_SECONDS = 15.0
#: Seconds beanstalkd waits for word of a claim; liveness is the connection, this is only a net below it.
TTR_SECONDS = 120

#: The original's priorities of a request, by whether it was submitted with --now.
PRIORITY_NOW, PRIORITY = 1024, 8192
#: Priorities in `notify` (architecture.md, section 3).
NOTIFY_RESULT, NOTIFY_PROGRESS, NOTIFY_PRESENCE = 1024, 4096, 65536
_PROGRESS = (Status.QUEUED, Status.BUILDING)


@attr.frozen
class Tube(Generic[M]):
    """A tube and the one kind of message that travels in it."""

    name: str
    decode: Callable[[bytes], M]


NOTIFY: Tube[NotifyMessage] = Tube("notify", decode_event)
CREATEREPO: Tube[RepogenRequest] = Tube("createrepo", RepogenRequest.decode)
TOSIGN: Tube[SignRequest] = Tube("tosign", SignRequest.decode)


def arch_tube(name: str) -> Tube[BuildRequest]:
    """The tube that carries an arch's requests (`Arches.tube` names it)."""
    return Tube(name, BuildRequest.decode)


#: How the names of the tubes begin that hold a mark instead of work (mark.py), or nothing: watched to be counted.
_CANCEL, _WORKER, _HOST, _TARGET, _SESSION = "cancel.", "worker.", "host.", "target.", "session."


def cancel_tube(build_id: str) -> str:
    """Where a mark says that a build is to end."""
    return _CANCEL + build_id


def drain_tube(host: str) -> str:
    """Where a mark says that a builder is to take nothing; beanstalkd's names have at most 200 characters."""
    return (_WORKER + host)[:200]


def target_tube(target: str) -> str:
    """Where a mark says why a target's new repodata does not become visible."""
    return (_TARGET + target)[:200]


def build_of_cancel_tube(tube: str) -> str:
    """The build that a tube's mark is about; nothing where the tube is none of those."""
    build_id = tube[len(_CANCEL) :] if tube.startswith(_CANCEL) else ""
    with contextlib.suppress(ValueError):
        return validators.build_id(build_id)
    return ""


def canary_tube(host: str) -> str:
    """Where a builder in quarantine finds what it is probed with, and nothing else."""
    return f"canary.{host}"[:200]


def heartbeat_tube(host: str) -> str:
    """What all workers of a builder watch: beanstalkd tells by it how many of an arch's watchers are that builder's."""
    return (_HOST + host)[:200]


def is_heartbeat_tube(name: str) -> bool:
    """Whether a tube is one that the workers of a builder watch to be counted."""
    return name.startswith(_HOST)


def session_tube(session: str) -> str:
    """What one worker alone watches: where nobody does, its connection has ended."""
    return _SESSION + session


def builder_of_drain_tube(tube: str) -> str:
    """The builder that a tube's mark is about; nothing where the tube is none of those."""
    return tube[len(_WORKER) :] if tube.startswith(_WORKER) else ""


def is_control_tube(name: str) -> bool:
    """Whether a tube holds no work: that nobody watches it, or that nothing is in it, is as it should be."""
    return name.startswith((_CANCEL, _WORKER, _HOST, _TARGET, _SESSION))


def notify_priority(news: NotifyMessage) -> int:
    """The priority of news in `notify`: results before progress, and who is there last of all."""
    if news.status == Status.PRESENCE:
        return NOTIFY_PRESENCE
    return NOTIFY_PROGRESS if news.status in _PROGRESS else NOTIFY_RESULT


@attr.frozen
class JobStats:
    """What beanstalkd knows of a job (stats-job)."""

    tube: str
    priority: int
    ttr: int  #: seconds
    age: int  #: seconds since it was put
    reserves: int
    releases: int
    timeouts: int
    kicks: int
    state: str = ""  #: ready, reserved, delayed or buried

    @property
    def deaths(self) -> int:
        """How often whoever reserved it before went without a word; a cut link looks the same."""
        return self.reserves - 1 - self.releases - self.timeouts


@attr.frozen
class TubeStats:
    """What beanstalkd knows of a tube."""

    name: str
    ready: int = 0
    reserved: int = 0
    delayed: int = 0
    buried: int = 0
    watchers: int = 0


@attr.frozen(kw_only=True)
class ServerStats:
    """What beanstalkd knows of itself."""

    version: str
    draining: bool  #: it takes no job, until it is started anew
    binlog_records: int  #: written to its binlog since it started; stays 0 where it has none


#: beanstalkd is there and takes nothing now: keep what we have, try later.
_BUSY = (greenstalk.OutOfMemoryError, greenstalk.InternalError, greenstalk.DrainingError, greenstalk.BuriedError)


@contextlib.contextmanager
def translating_errors(broker: Broker) -> Iterator[None]:
    """What greenstalk and the socket say, in our own words; a stream that may be out of step is closed."""
    try:
        yield
    except _BUSY as error:
        raise RetryLater(f"beanstalkd takes nothing now ({type(error).__name__})") from error
    except greenstalk.JobTooBigError as error:
        raise InvalidMessage("the message is larger than beanstalkd takes (its -z)") from error
    except greenstalk.NotFoundError as error:
        raise ReservationLost("the job is not ours any more") from error
    except OSError as error:
        broker.close()
        raise BrokerUnavailable(f"beanstalkd at {broker.address}: {error.strerror or error}") from error
    except (greenstalk.Error, AssertionError, ValueError, KeyError) as error:
        broker.close()
        raise BrokerUnavailable(f"beanstalkd at {broker.address} answered out of step: {error!r}") from error


class Broker:
    """One connection to beanstalkd."""

    def __init__(self, host: str, port: int, answer: float = REPLY_TIMEOUT_SECONDS) -> None:
        """Connect; an answer may take `answer` seconds. Raises `BrokerUnavailable` where nobody answers."""
        self.address = f"{host}:{port}"
        self._client: greenstalk.Client[bytes] | None = None
        self._used = greenstalk.DEFAULT_TUBE
        self._claims: dict[int, ReservedJob[Any]] = {}
        self._socket: socket.socket | None = None
        with translating_errors(self):
            self._socket = socket.create_connection((host, port), answer)
            self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            self._client = greenstalk.Client(self._socket, encoding=None)
            # stunnel accepts before its far end does: only an answer shows that beanstalkd is there
            self._client.using()

    def __enter__(self) -> Broker:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Leave; what was reserved here is ready for others at once."""
        for end in (self._client, self._socket):
            if end is not None:
                with contextlib.suppress(OSError):
                    end.close()
        self._client = self._socket = None
        self._claims.clear()

    @property
    def client(self) -> greenstalk.Client[bytes]:
        """The connection. Raises `BrokerUnavailable` once it is closed."""
        if self._client is None:
            raise BrokerUnavailable(f"beanstalkd at {self.address}: the connection is closed")
        return self._client

    def watch(self, tubes: Iterable[str]) -> None:
        """Claim from these tubes, and from no others."""
        with translating_errors(self):
            wanted = set(tubes)
            for tube in sorted(wanted):
                self.client.watch(tube)
            for tube in set(self.client.watching()) - wanted:
                self.client.ignore(tube)

    def put(self, tube: Tube[M], message: M, *, priority: int, delay: int = 0, ttr: int = TTR_SECONDS) -> int:
        """Put a message into its tube; the job's number."""
        body: bytes = message.encode()  # type: ignore[attr-defined]
        return self.put_raw(tube.name, body, priority=priority, delay=delay, ttr=ttr)

    def put_raw(self, tube: str, body: bytes, *, priority: int, delay: int = 0, ttr: int = TTR_SECONDS) -> int:
        """Put bytes into a tube: a mark, or a job as it was."""
        with translating_errors(self):
            self._use_tube(tube)
            return self.client.put(body, priority=priority, delay=delay, ttr=ttr)

    def announce(self, news: NotifyMessage) -> None:
        """Put an event, or a presence, into `notify`."""
        self.put(NOTIFY, news, priority=notify_priority(news))

    def reserve(self, tubes: dict[str, Tube[M]], wait: int) -> ReservedJob[M] | None:
        """Reserve a job of the watched tubes, waiting at most `wait` seconds; None where there is none."""
        with translating_errors(self):
            try:
                job = self.client.reserve(wait)
            except greenstalk.TimedOutError:
                return None
            except greenstalk.DeadlineSoonError:
                self.touch_all_if_due(now=True, lost=self.untrack)
                return None
        # one tube needs no question which; facts are fetched when somebody asks for them
        claim: ReservedJob[M] = ReservedJob(self, job.id, job.body, next(iter(tubes.values())))
        if len(tubes) > 1:
            try:
                claim.tube = tubes[claim.stats.tube]
            except ReservationLost:  # its ttr was shorter than the way to us
                return None
        self._claims[job.id] = claim
        return claim

    def check(self) -> None:
        """Raise `BrokerUnavailable` where the other end closed the connection: nothing comes between answers."""
        if self._socket is None:
            raise BrokerUnavailable(f"beanstalkd at {self.address}: the connection is closed")
        with translating_errors(self):
            readable, _, _ = select.select([self._socket], [], [], 0)
            if readable:
                raise ConnectionError("closed by the other end")

    def touch_all_if_due(self, *, now: bool = False, lost: Callable[[ReservedJob[Any]], None] | None = None) -> None:
        """Touch every claim of this connection that is due: call it often.

        Who holds many gives `lost`, which is told of each that is not ours any more; else that is raised.
        """
        for claim in list(self._claims.values()):
            try:
                claim.touch_if_due(now=now)
            except ReservationLost:
                if lost is None:
                    raise
                lost(claim)

    def untrack(self, claim: ReservedJob[Any]) -> None:
        """Touch this one no more."""
        self._claims.pop(claim.id, None)

    def re_reserve(self, claim: ReservedJob[Any]) -> None:
        """Reserve by its number a job that another connection of ours lost. Raises `ReservationLost`."""
        with translating_errors(self):
            self.client.reserve_job(claim.id)
        claim.broker = self
        self._claims[claim.id] = claim

    def job_stats(self, number: int) -> JobStats:
        """What beanstalkd knows of a job, whoever has it. Raises `ReservationLost` where there is no such job."""
        with translating_errors(self):
            raw = self.client.stats_job(number)
            return JobStats(
                tube=raw["tube"],
                priority=raw["pri"],
                ttr=raw["ttr"],
                age=raw["age"],
                reserves=raw["reserves"],
                releases=raw["releases"],
                timeouts=raw["timeouts"],
                kicks=raw["kicks"],
                state=raw["state"],
            )

    def peek(self, number: int) -> bytes:
        """A job's body, whoever has it. Raises `ReservationLost` where there is no such job."""
        with translating_errors(self):
            return self.client.peek(number).body

    def first_buried(self, tube: str) -> tuple[int, bytes] | None:
        """The number and body of the job that was buried first in a tube; beanstalkd shows no other."""
        try:
            with translating_errors(self):
                self._use_tube(tube)
                job = self.client.peek_buried()
                return job.id, job.body
        except ReservationLost:
            return None

    def first_ready(self, tube: str) -> tuple[int, bytes] | None:
        """The number and body of the job that would be given out next, which stays: how a mark is read."""
        try:
            with translating_errors(self):
                self._use_tube(tube)
                job = self.client.peek_ready()
                return job.id, job.body
        except ReservationLost:
            return None

    def kick(self, number: int) -> None:
        """Make a buried job ready again (a delayed one too: ask its state first). Raises `ReservationLost`."""
        with translating_errors(self):
            self.client.kick_job(number)

    def delete(self, number: int) -> None:
        """Delete a job that nobody has reserved (whatever its state: ask that first). Raises `ReservationLost`."""
        with translating_errors(self):
            self.client.delete(number)

    def _use_tube(self, tube: str) -> None:
        if self._used != tube:
            self.client.use(tube)
            self._used = tube

    def list_tubes(self) -> list[str]:
        """The tubes there are."""
        with translating_errors(self):
            return sorted(self.client.tubes())

    def server_stats(self) -> ServerStats:
        """What beanstalkd knows of itself."""
        with translating_errors(self):
            raw = self.client.stats()
            return ServerStats(
                version=str(raw["version"]),
                draining=raw["draining"] == "true",
                binlog_records=raw["binlog-records-written"],
            )

    def tube_stats(self, tube: str) -> TubeStats:
        """What is in a tube; one that does not exist is empty."""
        try:
            with translating_errors(self):
                raw = self.client.stats_tube(tube)
                return TubeStats(
                    tube,
                    ready=raw["current-jobs-ready"],
                    reserved=raw["current-jobs-reserved"],
                    delayed=raw["current-jobs-delayed"],
                    buried=raw["current-jobs-buried"],
                    watchers=raw["current-watching"],
                )
        except ReservationLost:
            return TubeStats(tube)


class ReservedJob(Generic[M]):
    """A reserved job: ours until it is settled, or until we are silent for too long."""

    def __init__(self, broker: Broker, number: int, body: bytes, tube: Tube[M]) -> None:
        self.broker = broker
        self.id = number
        self.body = body
        self.tube = tube
        self._touched = time.monotonic()
        self._job = greenstalk.Job(number, body)
        self._facts: JobStats | None = None
        self._message: M | None = None
        #: Refused by a full beanstalkd, which has let go of it all the same: nobody gets it, whoever asks, until
        #: beanstalkd starts again (1.12 takes it from its holder before it looks for room in the binlog). Its body
        #: is in our hands, and has to be put anew; should both come, the second finds all done.
        self.adrift = False

    def __repr__(self) -> str:
        return f"job {self.id} of {self.tube.name}"

    @property
    def message(self) -> M:
        """What the job says. Raises `InvalidMessage` where that is no message of its tube."""
        if self._message is None:
            self._message = self.tube.decode(self.body)
        return self._message

    @property
    def stats(self) -> JobStats:
        """What beanstalkd knew of the job when it was first asked."""
        if self._facts is None:
            self._facts = self.broker.job_stats(self.id)
        return self._facts

    def touch_if_due(self, *, now: bool = False) -> None:
        """Touch the job where a third of its time is over. Raises `ReservationLost`, `BrokerUnavailable`."""
        self.broker.check()
        if now or time.monotonic() - self._touched > self.stats.ttr / 3:
            with translating_errors(self.broker):
                self.broker.client.touch(self._job)
            self._touched = time.monotonic()

    def delete(self) -> None:
        """Its effects are out: delete it."""
        with self._settling():
            self.broker.client.delete(self.id)

    def release(self, pause: int) -> None:
        """Release it for later, at its own priority. Raises `RetryLater` where beanstalkd is full (`adrift`)."""
        facts = self.stats
        with self._giving_up():
            if self.adrift:
                self.broker.put_raw(facts.tube, self.body, priority=facts.priority, delay=pause, ttr=facts.ttr)
            else:
                self.broker.client.release(self._job, priority=facts.priority, delay=pause)

    def bury(self) -> None:
        """Put it aside for a person. Raises `RetryLater` as `again` does; then it has to come again first."""
        if self.adrift:
            self.release(0)
            return
        facts = self.stats
        with self._giving_up():
            self.broker.client.bury(self._job, priority=facts.priority)

    @contextlib.contextmanager
    def _giving_up(self) -> Iterator[None]:
        try:
            with self._settling():
                yield
        except RetryLater:
            self.adrift = True
            self.broker.untrack(self)
            raise

    @contextlib.contextmanager
    def _settling(self) -> Iterator[None]:
        with translating_errors(self.broker):
            yield
        self.broker.untrack(self)

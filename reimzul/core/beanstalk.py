# SPDX-License-Identifier: Apache-2.0
"""beanstalkd: the connection, the tubes with the message type of each, and reserved jobs.

Only this module imports greenstalk. greenstalk decodes nothing for us, every put and release names its priority, the
socket has a timeout, and a stream that may be out of step is closed. beanstalkd lets only the connection that reserved
a job touch it, so a `Broker` belongs to one thread.
"""

from __future__ import annotations

import contextlib
import functools
import select
import socket
import time
from collections.abc import Iterable, Iterator
from typing import Any, Callable, Generic, TypeVar, cast

import attr
import greenstalk

from reimzul.core import validators
from reimzul.core.batch_message import BatchMessage, decode_batch_message
from reimzul.core.beanstalk_stats import JobStats, ServerStats, TubeStats
from reimzul.core.errors import (
    BrokerUnavailable,
    ErrorTranslation,
    InvalidMessage,
    ReservationLost,
    RetryLater,
    translate_errors,
)
from reimzul.core.message import (
    BuildRequest,
    NotifyMessage,
    RepogenRequest,
    SignRequest,
    Status,
    decode_event,
)
from reimzul.core.settings import BeanstalkdSettings

M = TypeVar("M")
F = TypeVar("F", bound=Callable[..., Any])

#: Seconds beanstalkd may take to answer, in addition to the time it was asked to wait.
REPLY_TIMEOUT_SECONDS = 15.0
#: Seconds after which beanstalkd gives an untouched job to another. A closed connection does so at once.
TTR_SECONDS = 120

#: The original's priorities of a request, by whether it was submitted with --now.
PRIORITY_NOW, PRIORITY = 1024, 8192
#: Seconds of the delay of a held job, ten years: nobody reserves it until it is kicked. A shorter delay is a pause.
HELD_SECONDS = 10 * 365 * 86_400
#: The first priority of batches submitted with --background.
PRIORITY_BACKGROUND = 16_384
#: Priorities in `batch`: a person's orders, then results, then requests.
BATCH_ORDER, BATCH_RESULT, BATCH_REQUEST = 1024, 2048, 8192
#: Priorities in `notify` (docs/wire.md, "Tubes").
NOTIFY_RESULT, NOTIFY_PROGRESS, NOTIFY_PRESENCE = 1024, 4096, 65536
_PROGRESS = (Status.QUEUED, Status.BUILDING)


@attr.frozen
class Tube(Generic[M]):
    name: str
    decode: Callable[[bytes], M]


NOTIFY: Tube[NotifyMessage] = Tube("notify", decode_event)
CREATEREPO: Tube[RepogenRequest] = Tube("createrepo", RepogenRequest.decode)
TOSIGN: Tube[SignRequest] = Tube("tosign", SignRequest.decode)
BATCH: Tube[BatchMessage] = Tube("batch", decode_batch_message)


def arch_tube(name: str) -> Tube[BuildRequest]:
    """The tube of an arch's build requests; `Arches.tube_of` names it."""
    return Tube(name, BuildRequest.decode)


#: The tube of the flag that lets idle workers pull their mock configurations.
REFRESH_TUBE = "refresh.targets"
#: Prefixes of tubes that hold a control flag (control.py), or nothing: their watchers are counted.
_CANCEL, _WORKER, _HOST, _TARGET, _SESSION = "cancel.", "worker.", "host.", "target.", "session."


def cancel_tube(build_id: str) -> str:
    return _CANCEL + build_id


def drain_tube(host: str) -> str:
    """The tube of the flag that drains a builder. beanstalkd allows 200 characters."""
    return (_WORKER + host)[:200]


def target_tube(target: str) -> str:
    """The tube of the flag that says why a target's new repodata is not published."""
    return (_TARGET + target)[:200]


def build_of_cancel_tube(tube: str) -> str:
    """The build that a cancel tube belongs to; empty for any other tube."""
    build_id = tube[len(_CANCEL) :] if tube.startswith(_CANCEL) else ""
    with contextlib.suppress(ValueError):
        return validators.build_id(build_id)
    return ""


def canary_tube(host: str) -> str:
    return f"canary.{host}"[:200]


def heartbeat_tube(host: str) -> str:
    """The tube that all workers of a builder watch, so that beanstalkd counts them."""
    return (_HOST + host)[:200]


def is_heartbeat_tube(name: str) -> bool:
    return name.startswith(_HOST)


def session_tube(session: str) -> str:
    """The tube that one worker alone watches: without a watcher, that worker's connection has ended."""
    return _SESSION + session


def builder_of_drain_tube(tube: str) -> str:
    """The builder that a drain tube belongs to; empty for any other tube."""
    return tube[len(_WORKER) :] if tube.startswith(_WORKER) else ""


def is_control_tube(name: str) -> bool:
    """Whether a tube never holds work, so that an empty or unwatched one is no fault."""
    return name == REFRESH_TUBE or name.startswith((_CANCEL, _WORKER, _HOST, _TARGET, _SESSION))


def notify_priority(news: NotifyMessage) -> int:
    """The priority of a message in `notify`: results before progress, heartbeats last."""
    if news.status == Status.PRESENCE:
        return NOTIFY_PRESENCE
    return NOTIFY_PROGRESS if news.status in _PROGRESS else NOTIFY_RESULT


#: beanstalkd answers but accepts nothing now.
_BUSY = (greenstalk.OutOfMemoryError, greenstalk.InternalError, greenstalk.DrainingError, greenstalk.BuriedError)
#: What greenstalk raises for an answer that it does not expect.
_OUT_OF_STEP = (greenstalk.Error, AssertionError, ValueError, KeyError)


def _translate_errors(broker: Broker) -> ErrorTranslation:
    """Raise our errors for greenstalk's and the socket's; close a stream that may be out of step."""

    def close(reason: str) -> BrokerUnavailable:
        broker.close()
        return BrokerUnavailable(f"beanstalkd at {broker.address}{reason}")

    return translate_errors(
        {
            _BUSY: lambda error: RetryLater(f"beanstalkd takes nothing now ({type(error).__name__})"),
            greenstalk.JobTooBigError: lambda _: InvalidMessage("the message is larger than beanstalkd takes (its -z)"),
            greenstalk.NotFoundError: lambda _: ReservationLost("the job is not ours any more"),
            OSError: lambda error: close(f": {error.strerror or error}"),
            _OUT_OF_STEP: lambda error: close(f" answered out of step: {error!r}"),
        }
    )


def _translated(method: F) -> F:
    """Let a method of `Broker` raise our errors."""

    @functools.wraps(method)
    def call(broker: Broker, *arguments: Any, **options: Any) -> Any:
        with broker.translating:
            return method(broker, *arguments, **options)

    return cast(F, call)


class Broker:
    def __init__(self, host: str, port: int, answer: float = REPLY_TIMEOUT_SECONDS) -> None:
        """Connect; an answer may take `answer` seconds. Raises `BrokerUnavailable`."""
        self.address = f"{host}:{port}"
        self._client: greenstalk.Client[bytes] | None = None
        self._used = greenstalk.DEFAULT_TUBE
        self._claims: dict[int, ReservedJob[Any]] = {}
        self._socket: socket.socket | None = None
        self.translating = _translate_errors(self)
        with self.translating:
            self._socket = socket.create_connection((host, port), answer)
            self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            self._client = greenstalk.Client(self._socket, encoding=None)
            # stunnel accepts a connection before its far end does: only an answer shows that beanstalkd is reached
            self._client.using()

    @classmethod
    def from_settings(cls, settings: BeanstalkdSettings, answer: float = REPLY_TIMEOUT_SECONDS) -> Broker:
        return cls(settings.host, settings.port, answer)

    def __enter__(self) -> Broker:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Disconnect; beanstalkd makes the jobs reserved here ready for others at once."""
        for end in (self._client, self._socket):
            if end is not None:
                with contextlib.suppress(OSError):
                    end.close()
        self._client = self._socket = None
        self._claims.clear()

    @property
    def client(self) -> greenstalk.Client[bytes]:
        """The open connection. Raises `BrokerUnavailable` once it is closed."""
        if self._client is None:
            raise BrokerUnavailable(f"beanstalkd at {self.address}: the connection is closed")
        return self._client

    @_translated
    def watch(self, tubes: Iterable[str]) -> None:
        wanted = set(tubes)
        for tube in sorted(wanted):
            self.client.watch(tube)
        for tube in set(self.client.watching()) - wanted:
            self.client.ignore(tube)

    def put(self, tube: Tube[M], message: M, *, priority: int, delay: int = 0, ttr: int = TTR_SECONDS) -> int:
        body: bytes = message.encode()  # type: ignore[attr-defined]
        return self.put_raw(tube.name, body, priority=priority, delay=delay, ttr=ttr)

    @_translated
    def put_raw(self, tube: str, body: bytes, *, priority: int, delay: int = 0, ttr: int = TTR_SECONDS) -> int:
        self._use_tube(tube)
        return self.client.put(body, priority=priority, delay=delay, ttr=ttr)

    def announce(self, news: NotifyMessage) -> None:
        self.put(NOTIFY, news, priority=notify_priority(news))

    def reserve(self, tubes: dict[str, Tube[M]], wait: int) -> ReservedJob[M] | None:
        """Reserve a job of the watched tubes; return None if none comes within `wait` seconds."""
        with self.translating:
            try:
                job = self.client.reserve(wait)
            except greenstalk.TimedOutError:
                return None
            except greenstalk.DeadlineSoonError:
                self.touch_all_if_due(now=True, lost=self.untrack)
                return None
        # with one tube there is no need to ask which; statistics are fetched when they are needed
        claim: ReservedJob[M] = ReservedJob(self, job.id, job.body, next(iter(tubes.values())))
        if len(tubes) > 1:
            try:
                claim.tube = tubes[claim.stats.tube]
            except ReservationLost:  # its ttr ran out before the answer arrived
                return None
        self._claims[job.id] = claim
        return claim

    @_translated
    def check(self) -> None:
        """Raise `BrokerUnavailable` if the other end closed the connection."""
        if self._socket is None:
            raise BrokerUnavailable(f"beanstalkd at {self.address}: the connection is closed")
        readable, _, _ = select.select([self._socket], [], [], 0)
        if readable:  # between answers only a close makes it so
            raise ConnectionError("closed by the other end")

    def touch_all_if_due(self, *, now: bool = False, lost: Callable[[ReservedJob[Any]], None] | None = None) -> None:
        """Touch every reserved job that is due; call it often.

        `lost` is called with each job that is reserved no more; without it `ReservationLost` is raised.
        """
        for claim in list(self._claims.values()):
            try:
                claim.touch_if_due(now=now)
            except ReservationLost:
                if lost is None:
                    raise
                lost(claim)

    def untrack(self, claim: ReservedJob[Any]) -> None:
        self._claims.pop(claim.id, None)

    @_translated
    def re_reserve(self, claim: ReservedJob[Any]) -> None:
        """Reserve again, by its number, a job that an earlier connection lost. Raises `ReservationLost`."""
        self.client.reserve_job(claim.id)
        claim.broker = self
        self._claims[claim.id] = claim

    @_translated
    def reserve_job(self, number: int, tube: Tube[M]) -> ReservedJob[M]:
        """Reserve a job by its number. Raises `ReservationLost` if it does not exist, or is reserved or buried."""
        job = self.client.reserve_job(number)
        claim = self._claims[number] = ReservedJob(self, job.id, job.body, tube)
        return claim

    @_translated
    def job_stats(self, number: int) -> JobStats:
        """Statistics of any job. Raises `ReservationLost` if it does not exist."""
        return JobStats.from_answer(self.client.stats_job(number))

    @_translated
    def peek(self, number: int) -> bytes:
        """The body of any job. Raises `ReservationLost` if it does not exist."""
        return self.client.peek(number).body

    def first_buried(self, tube: str) -> tuple[int, bytes] | None:
        """The number and body of the job that was buried first in a tube; beanstalkd shows no other."""
        return self._peek_first(tube, greenstalk.Client.peek_buried)

    def first_ready(self, tube: str) -> tuple[int, bytes] | None:
        """The number and body of the job that would be reserved next; it stays in the tube."""
        return self._peek_first(tube, greenstalk.Client.peek_ready)

    @_translated
    def _peek_first(
        self, tube: str, peek: Callable[[greenstalk.Client[bytes]], greenstalk.Job[bytes]]
    ) -> tuple[int, bytes] | None:
        self._use_tube(tube)
        try:
            job = peek(self.client)
        except greenstalk.NotFoundError:
            return None
        return job.id, job.body

    @_translated
    def kick(self, number: int) -> None:
        """Make a buried or delayed job ready. Raises `ReservationLost` if it does not exist."""
        self.client.kick_job(number)

    @_translated
    def delete(self, number: int) -> None:
        """Delete a job. Raises `ReservationLost` if it does not exist or somebody else has reserved it."""
        self.client.delete(number)

    def _use_tube(self, tube: str) -> None:
        if self._used != tube:
            self.client.use(tube)
            self._used = tube

    @_translated
    def list_tubes(self) -> list[str]:
        return sorted(self.client.tubes())

    @_translated
    def server_stats(self) -> ServerStats:
        return ServerStats.from_answer(self.client.stats())

    @_translated
    def tube_stats(self, tube: str) -> TubeStats:
        """Statistics of a tube; one that does not exist is empty."""
        try:
            return TubeStats.from_answer(tube, self.client.stats_tube(tube))
        except greenstalk.NotFoundError:
            return TubeStats(tube)


class ReservedJob(Generic[M]):
    """A job that only we hold, until it is settled, its ttr runs out or the connection closes."""

    def __init__(self, broker: Broker, number: int, body: bytes, tube: Tube[M]) -> None:
        self.broker = broker
        self.id = number
        self.body = body
        self.tube = tube
        self._touched = time.monotonic()
        self._job = greenstalk.Job(number, body)
        self._facts: JobStats | None = None
        self._message: M | None = None
        #: beanstalkd 1.12 loses track of a job when release or bury fails for lack of binlog space: nobody can reserve
        #: it until a restart. We hold the body and must put it again; whoever gets the second copy finds all done.
        self.is_orphaned = False

    def __repr__(self) -> str:
        return f"job {self.id} of {self.tube.name}"

    @property
    def message(self) -> M:
        """The decoded body. Raises `InvalidMessage`."""
        if self._message is None:
            self._message = self.tube.decode(self.body)
        return self._message

    @property
    def stats(self) -> JobStats:
        """Statistics of the job, fetched once."""
        if self._facts is None:
            self._facts = self.broker.job_stats(self.id)
        return self._facts

    def touch_if_due(self, *, now: bool = False) -> None:
        """Touch the job once a third of its ttr is over. Raises `ReservationLost`, `BrokerUnavailable`."""
        self.broker.check()
        if now or time.monotonic() - self._touched > self.stats.ttr / 3:
            with self.broker.translating:
                self.broker.client.touch(self._job)
            self._touched = time.monotonic()

    def delete(self) -> None:
        """Delete the job: all its effects are out."""
        self.broker.delete(self.id)
        self.broker.untrack(self)

    def release(self, pause: int, priority: int | None = None) -> int:
        """Give the job back; return its number, which is a new one if it is orphaned. Raises `RetryLater`."""
        facts = self.stats
        priority = facts.priority if priority is None else priority
        with self._giving_up():
            if self.is_orphaned:
                return self.broker.put_raw(facts.tube, self.body, priority=priority, delay=pause, ttr=facts.ttr)
            self.broker.client.release(self._job, priority=priority, delay=pause)
        return self.id

    def bury(self) -> None:
        """Put the job aside for a person; an orphaned one is put again. Raises `RetryLater` if beanstalkd is full."""
        if self.is_orphaned:
            self.release(0)
            return
        facts = self.stats
        with self._giving_up():
            self.broker.client.bury(self._job, priority=facts.priority)

    @contextlib.contextmanager
    def _giving_up(self) -> Iterator[None]:
        try:
            with self.broker.translating:
                yield
        except RetryLater:
            self.is_orphaned = True
            self.broker.untrack(self)
            raise
        self.broker.untrack(self)

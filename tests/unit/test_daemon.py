# SPDX-License-Identifier: Apache-2.0
"""The loop of all daemons: what becomes of a job for each thing a handler may say, with a broker of the test's own."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterable, Sequence
from typing import Any, Callable

import attr
import pytest

from reimzul.core import daemon as daemons
from reimzul.core.beanstalk import Tube
from reimzul.core.beanstalk_stats import JobStats, TubeStats
from reimzul.core.daemon import Daemon, Outcome, Stop, make_refusal, retry_or_give_up
from reimzul.core.errors import (
    BrokerUnavailable,
    ConfigError,
    InputError,
    InvalidMessage,
    ReservationLost,
    RetryLater,
    ShutdownRequested,
)
from reimzul.core.message import Refusal, RepogenRequest

TUBE = Tube("createrepo", RepogenRequest.decode)


@attr.define(eq=False)
class FakeClaim:
    """A reserved job that notes how it was settled."""

    id: int
    broker: FakeBroker
    body: bytes = b'{"target": "c7.x86_64"}'
    age: int = 0
    fails: Exception | None = None  #: what settling it meets
    settled: list[str] = attr.field(factory=list)

    @property
    def message(self) -> RepogenRequest:
        return TUBE.decode(self.body)

    @property
    def stats(self) -> JobStats:
        return JobStats("createrepo", 8192, 120, self.age, 1, 0, 0, 0)

    def delete(self) -> None:
        self._settle("done")

    def release(self, pause: int) -> None:
        self._settle(f"again {pause}")

    def bury(self) -> None:
        self._settle("buried")

    def _settle(self, how: str) -> None:
        if self.fails:
            raise self.fails
        self.settled.append(how)
        self.broker.log.append(f"{self.id} {how}")


class FakeBroker:
    """Hands out claims, then has the daemon drain."""

    def __init__(self, stop: Stop) -> None:
        self.stop = stop
        self.waiting: list[FakeClaim | Exception] = []
        self.waits: list[int] = []
        self.forgotten: list[FakeClaim] = []
        self.told: list[Refusal] = []
        self.log: list[str] = []
        self.busy: list[Exception] = []  #: what announcing meets first
        self.buried = 0
        self.closed = 0

    def watch(self, tubes: Iterable[str]) -> None:
        self.watched = list(tubes)

    def reserve(self, tubes: Any, wait: int) -> FakeClaim | None:
        self.waits.append(wait)
        if not self.waiting:
            if wait:
                self.stop.drain.set()
            return None
        claim = self.waiting.pop(0)
        if isinstance(claim, Exception):
            raise claim
        return claim

    def announce(self, event: Refusal) -> None:
        if self.busy:
            raise self.busy.pop(0)
        self.told.append(event)
        self.log.append("told")

    def tube_stats(self, tube: str) -> TubeStats:
        return TubeStats(tube, buried=self.buried)

    def untrack(self, claim: FakeClaim) -> None:
        self.forgotten.append(claim)

    def close(self) -> None:
        self.closed += 1


Handle = Callable[[Sequence[Any]], Iterable["tuple[Any, Outcome]"]]


class Handler(Daemon[RepogenRequest]):
    """A daemon that handles as the test says."""

    def __init__(self, broker: FakeBroker, handle: Handle, batch: int = 1) -> None:
        super().__init__(lambda: broker, [TUBE], "b1", broker.stop)  # type: ignore[arg-type, return-value]
        self.says = handle
        self.batch = batch
        self.handled: list[list[int]] = []
        self.idled = 0

    def handle(self, broker: Any, claims: Sequence[Any]) -> Iterable[tuple[Any, Outcome]]:
        self.handled.append([claim.id for claim in claims])
        yield from self.says(claims)

    def do_idle_work(self, broker: Any) -> None:
        self.idled += 1


@pytest.fixture(autouse=True)
def hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    """Beanstalkd comes back soon."""
    monkeypatch.setattr(daemons, "RECONNECT_SECONDS", 0.001)


@pytest.fixture
def broker() -> FakeBroker:
    return FakeBroker(Stop())


def jobs(broker: FakeBroker, count: int = 1, **given: Any) -> list[FakeClaim]:
    """So many jobs wait."""
    claims = [FakeClaim(number, broker, **given) for number in range(1, count + 1)]
    broker.waiting += claims
    return claims


def answer_all(outcome: Outcome) -> Handle:
    return lambda claims: [(claim, outcome) for claim in claims]


def raising(error: Exception) -> Handle:
    def handle(claims: Sequence[Any]) -> Iterable[tuple[Any, Outcome]]:
        raise error

    return handle


# --- settling, one by one

RULES: list[tuple[Exception, list[str]]] = [
    (ShutdownRequested("told to stop"), ["again 0"]),
    (RetryLater("not yet", pause=7), ["again 7"]),
    (ReservationLost("another has it"), []),
    (InvalidMessage("no request"), ["buried"]),
    (InputError("not an rpm"), ["buried"]),
    (ConfigError("nonsense"), ["buried"]),
    (KeyError("a bug"), ["buried"]),
]


def test_a_job_that_comes_while_it_is_told_to_drain_is_given_back(
    broker: FakeBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    (job,) = jobs(broker)
    daemon = Handler(broker, answer_all(None))
    reserve_jobs = daemon.reserve_jobs

    def drain_first(*words: Any) -> list[Any]:
        broker.stop.drain.set()
        return list(reserve_jobs(*words))

    monkeypatch.setattr(daemon, "reserve_jobs", drain_first)
    daemon.run()
    assert job.settled == ["again 0"]
    assert not daemon.handled


def test_what_is_done_is_deleted(broker: FakeBroker) -> None:
    (job,) = jobs(broker)
    Handler(broker, answer_all(None)).run()
    assert job.settled == ["done"]
    assert not broker.told


@pytest.mark.parametrize("how", [answer_all, raising])
@pytest.mark.parametrize(("outcome", "settled"), RULES, ids=lambda value: type(value).__name__)
def test_each_outcome_has_its_settling(
    broker: FakeBroker, how: Callable[[Exception], Handle], outcome: Exception, settled: list[str]
) -> None:
    job, after = jobs(broker, 2)
    handler = Handler(broker, how(outcome))
    handler.run()
    assert job.settled == after.settled == settled
    assert handler.handled == [[1], [2]], "the daemon goes on"
    assert broker.forgotten == ([job, after] if isinstance(outcome, ReservationLost) else [])
    assert len(broker.told) == (2 if settled == ["buried"] else 0)


@pytest.mark.parametrize("how", [answer_all, raising])
def test_a_broker_that_went_settles_nothing_and_is_reached_anew(
    broker: FakeBroker, how: Callable[[Exception], Handle]
) -> None:
    (job,) = jobs(broker)
    Handler(broker, how(BrokerUnavailable("gone"))).run()
    assert job.settled == []
    assert not broker.told
    assert broker.closed == 2, "the broken connection, and the one after it"


def test_a_refusal_is_told_before_the_job_is_buried(broker: FakeBroker) -> None:
    jobs(broker, body=b"\xff{]")
    Handler(broker, answer_all(None)).run()
    assert broker.log == ["told", "1 buried"]
    (event,) = broker.told
    assert (event.tube, event.job, event.host, event.begins) == ("createrepo", 1, "b1", "\ufffd{]")
    assert event.reason.startswith("not JSON")
    assert event.at > 0


def test_a_bug_is_told_as_one(broker: FakeBroker) -> None:
    jobs(broker)
    Handler(broker, answer_all(KeyError("arch"))).run()
    assert broker.told[0].reason == "a bug in Reimzul: KeyError('arch')"


def test_a_refusal_shows_the_first_kb(broker: FakeBroker) -> None:
    claim: Any = FakeClaim(1, broker, body=b"a" * 60_000)
    event = make_refusal(claim, "noise", "b1")
    assert event.begins == "a" * 1024
    assert len(event.encode()) < 2000


def test_what_cannot_be_decoded_reaches_no_handler(broker: FakeBroker) -> None:
    bad, good = FakeClaim(1, broker, body=b"17"), FakeClaim(2, broker)
    broker.waiting += [bad, good]
    handler = Handler(broker, answer_all(None))
    handler.run()
    assert handler.handled == [[2]]
    assert (bad.settled, good.settled) == (["buried"], ["done"])


def test_what_the_daemon_itself_refuses_reaches_no_handler(broker: FakeBroker) -> None:
    class Picky(Handler):
        def check(self, message: RepogenRequest) -> None:
            raise InvalidMessage(f"{message.target} is none of ours")

    (job,) = jobs(broker)
    handler = Picky(broker, answer_all(None))
    handler.run()
    assert handler.handled == []
    assert job.settled == ["buried"]
    assert broker.told[0].reason == "c7.x86_64 is none of ours"


# --- what settling may meet


@pytest.mark.parametrize(
    "outcome", [None, RetryLater("not yet"), ShutdownRequested("stop"), InvalidMessage("none"), KeyError("bug")]
)
def test_a_job_lost_while_it_is_settled_stops_nothing(broker: FakeBroker, outcome: Outcome) -> None:
    lost, after = FakeClaim(1, broker, fails=ReservationLost("not ours")), FakeClaim(2, broker)
    broker.waiting += [lost, after]
    Handler(broker, answer_all(outcome)).run()
    assert broker.forgotten[0] is lost
    assert len(after.settled) == 1
    assert broker.closed == 1, "no new connection was needed"


def test_noise_that_is_lost_while_it_is_refused_stops_nothing(broker: FakeBroker) -> None:
    lost, after = FakeClaim(1, broker, body=b"17", fails=ReservationLost("not ours")), FakeClaim(2, broker)
    broker.waiting += [lost, after]
    Handler(broker, answer_all(None)).run()
    assert broker.forgotten == [lost]
    assert after.settled == ["done"]


def test_a_refusal_that_cannot_be_told_now_gives_the_job_back(broker: FakeBroker) -> None:
    broker.busy = [RetryLater("beanstalkd takes nothing now")]
    (job,) = jobs(broker)
    Handler(broker, answer_all(InvalidMessage("none"))).run()
    assert job.settled == ["again 10"]
    assert not broker.told


def test_noise_whose_refusal_cannot_be_told_now_is_left_to_a_new_connection(broker: FakeBroker) -> None:
    broker.busy = [RetryLater("beanstalkd takes nothing now")]
    (job,) = jobs(broker, body=b"17")
    Handler(broker, answer_all(None)).run()
    assert job.settled == []
    assert broker.closed == 2, "closing the connection gives it back"


# --- several together


def test_a_batch_is_what_waits_and_no_more(broker: FakeBroker) -> None:
    jobs(broker, 5)
    handler = Handler(broker, answer_all(None), batch=3)
    handler.run()
    assert handler.handled == [[1, 2, 3], [4, 5]]
    assert broker.waits == [1, 0, 0, 1, 0, 0, 1], "only the first of a batch is waited for"


def test_a_bug_in_a_batch_buries_its_own_job_alone(broker: FakeBroker) -> None:
    claims = jobs(broker, 4)

    def handle(together: Sequence[Any]) -> Iterable[tuple[Any, Outcome]]:
        for claim in together:
            if claim.id == 3:
                raise ValueError("poison")
            yield claim, None

    handler = Handler(broker, handle, batch=4)
    handler.run()
    assert [claim.settled for claim in claims] == [["done"], ["done"], ["buried"], ["done"]]
    assert handler.handled == [[1, 2, 3, 4], [3], [4]]


def test_what_is_decided_stays_so_when_the_rest_has_to_wait(broker: FakeBroker) -> None:
    claims = jobs(broker, 3)

    def handle(together: Sequence[Any]) -> Iterable[tuple[Any, Outcome]]:
        yield together[1], None
        raise RetryLater("the disk is full", pause=5)

    Handler(broker, handle, batch=3).run()
    assert [claim.settled for claim in claims] == [["again 5"], ["done"], ["again 5"]]


# --- the loop


def test_no_job_is_taken_while_the_daemon_is_not_ready(broker: FakeBroker, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(daemons, "RESERVE_SECONDS", 0.001)
    (job,) = jobs(broker)
    looks = [False, False, True]

    class Ill(Handler):
        def can_accept_job(self, _: Any) -> bool:
            assert looks[0] or not broker.waits
            return looks.pop(0) if len(looks) > 1 else True

    handler = Ill(broker, answer_all(None))
    handler.run()
    assert job.settled == ["done"]
    assert handler.idled >= 2


def test_beanstalkd_away_is_waited_out_and_said_once(broker: FakeBroker, caplog: pytest.LogCaptureFixture) -> None:
    tries = iter([BrokerUnavailable("nobody answers")] * 5)

    def connect() -> Any:
        for error in tries:
            raise error
        return broker

    (job,) = jobs(broker)
    handler = Handler(broker, answer_all(None))
    handler.connect = connect
    with caplog.at_level("INFO"):
        handler.run()
    assert job.settled == ["done"]
    assert caplog.text.count("nobody answers") == 1
    assert "beanstalkd is back" in caplog.text


def test_a_stop_is_heeded_while_beanstalkd_is_away(broker: FakeBroker, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(daemons, "RECONNECT_SECONDS", 600)

    def connect() -> Any:
        os.kill(os.getpid(), signal.SIGTERM)
        raise BrokerUnavailable("nobody answers")

    handler = Handler(broker, answer_all(None))
    handler.connect = connect
    handler.run()
    assert broker.stop.now.is_set()


@pytest.mark.parametrize(
    ("number", "settled"), [(signal.SIGTERM, "again 0"), (signal.SIGINT, "again 0"), (signal.SIGUSR1, "done")]
)
def test_a_signal_stops_or_drains_and_takes_no_other_job(
    broker: FakeBroker, number: signal.Signals, settled: str
) -> None:
    job, other = jobs(broker, 2)

    def handle(claims: Sequence[Any]) -> Iterable[tuple[Any, Outcome]]:
        os.kill(os.getpid(), number)
        broker.stop.raise_if_stopping()
        yield claims[0], None

    before = signal.getsignal(number)
    Handler(broker, handle).run()
    assert (job.settled, other.settled) == ([settled], [])
    assert broker.closed == 1
    assert signal.getsignal(number) is before


# --- patience


@pytest.mark.parametrize(("age", "pause"), [(0, 2), (10, 5), (60, 30), (3600, 300)])
def test_patience_grows_with_a_jobs_age(broker: FakeBroker, age: int, pause: int) -> None:
    claim: Any = FakeClaim(1, broker, age=age)
    error = retry_or_give_up(claim, "the place")
    assert isinstance(error, RetryLater)
    assert error.pause == pause


def test_patience_ends(broker: FakeBroker) -> None:
    claim: Any = FakeClaim(1, broker, age=3601)
    error = retry_or_give_up(claim, "the place")
    assert isinstance(error, InvalidMessage)
    assert "3601 s" in str(error)

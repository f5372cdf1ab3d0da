# SPDX-License-Identifier: Apache-2.0
"""A build and its job session: what goes wrong in one does not end the other silently, and what a worker sends."""

from __future__ import annotations

import os
import queue
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Callable

import attr
import pytest

from reimzul.core import beanstalk, fs, heartbeat
from reimzul.core.beanstalk_stats import TubeStats
from reimzul.core.control import QUARANTINED, ControlFlag
from reimzul.core.daemon import SdNotify, Stop
from reimzul.core.errors import BrokerUnavailable, InvalidMessage, ReservationLost, RetryLater
from reimzul.core.heartbeat import HeartbeatSender, ProcessIdentity
from reimzul.core.message import BuildRequest, Phase, RepogenRequest
from reimzul.worker import job_session
from reimzul.worker.job_session import ControlPoller, JobSession
from tests.events import ATTEMPT, build_id, event

HOST = "builder1.example.org"
REQUEST = BuildRequest(
    srpm="time-1.7-45.el7.src.rpm", arch="x86_64", target="c7.x86_64", disttag=".el7", submitter="johnny",
    build_id=build_id(1), timestamp="20251122000000", legs=("x86_64", "i386"),
)  # fmt: skip
IDENTITY = ProcessIdentity(host=HOST, instance="1", arches=("x86_64",), folders=(), boot="b" * 16, session="5" * 16)
FULL, AWAY = RetryLater("out of memory"), BrokerUnavailable("reset")


class Clock:
    """The module's clock, which the test moves; whoever sleeps moves it too."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now

    def time(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(job_session, "time", clock)
    monkeypatch.setattr(heartbeat, "time", clock)
    return clock


class Broker:
    """A connection that records what is put; it raises `error`, if that is set."""

    def __init__(self) -> None:
        self.ready = 0  #: jobs in `notify`
        self.flags: dict[str, ControlFlag] = {}
        self.error: Exception | None = None
        self.news: list[Any] = []
        self.requests: list[tuple[str, Any, int]] = []

    def tube_stats(self, name: str) -> TubeStats:
        self.check()
        return TubeStats(name, ready=self.ready)

    def first_ready(self, tube: str) -> tuple[int, bytes] | None:
        self.check()
        return (1, self.flags[tube].encode()) if tube in self.flags else None

    def announce(self, news: Any) -> None:
        self.check()
        self.news.append(news)

    def put(self, tube: beanstalk.Tube[Any], message: Any, *, priority: int) -> None:
        self.check()
        self.requests.append((tube.name, message, priority))

    def check(self) -> None:
        if self.error:
            raise self.error


class Build:
    """It lasts until it is stopped."""

    def __init__(self) -> None:
        self.outbox: queue.Queue[Any] = queue.Queue()
        self.over = threading.Event()
        self.attempt = SimpleNamespace(request=REQUEST, token=ATTEMPT, started=900.12345)
        self.progress = SimpleNamespace(current_phase=lambda main: (main, Phase(name="rpmbuild", start=950.0)))
        self.cancelled: list[str] = []
        self.legs = [SimpleNamespace(arch="x86_64"), SimpleNamespace(arch="i386")]
        self.announced: set[str] = set()
        self.kept_logs: dict[str, str] = {}
        self.error_logs: dict[str, str] = {}

    def run(self) -> None:
        assert self.over.wait(20), "nobody ended it"

    def stop(self) -> None:
        self.over.set()

    def cancel(self, why: str) -> None:
        self.cancelled.append(why)


@attr.define
class Claim:
    """A claim that meets something, and is its own broker if it is given none."""

    touch_if_due: Callable[[], None] = lambda: None
    re_reserve: Callable[[Any], None] = lambda claim: None
    broker: Any = attr.field(default=attr.Factory(lambda self: self, takes_self=True))
    message: BuildRequest = REQUEST


class Poller:
    """It counts its calls, raises `error` if that is set, and then ends the build where it is to."""

    def __init__(self, ends: Build | None = None, error: Exception | None = None) -> None:
        self.ends, self.calls, self.error = ends, 0, error

    def poll(self, broker: Any, *, last: bool) -> None:
        self.calls += 1
        if self.ends and self.calls > 2:
            self.ends.over.set()
        if self.error:
            raise self.error


def raising(error: Exception) -> Callable[..., None]:
    def meet(*_: object) -> None:
        raise error

    return meet


def session_of(claim: Claim, connect: Callable[[], Any] | None = None) -> JobSession:
    given: Any = claim
    service = SdNotify({})
    return JobSession(connect or (lambda: given), given, Stop(), "t", service, service.ping)


def run(session: JobSession, build: Build, poller: Any) -> None:
    session.run_build(build, poller)  # type: ignore[arg-type]


def heartbeats(interval: int = 60) -> tuple[HeartbeatSender, Any]:
    return HeartbeatSender(IDENTITY, interval), Broker()


# --- the job


def test_a_connection_that_breaks_while_the_job_is_taken_back_is_only_away() -> None:
    session = session_of(Claim(raising(ReservationLost("its time ran out")), raising(BrokerUnavailable("reset"))))
    assert not session._keep_reserved()
    assert not session.reservation_lost


def test_what_nobody_expected_ends_the_build_too() -> None:
    build, poller = Build(), object()
    with pytest.raises(InvalidMessage, match="too long"):
        run(session_of(Claim(raising(InvalidMessage("too long")))), build, poller)
    assert build.over.is_set()


def test_a_build_runs_until_all_its_messages_are_out_in_order(clock: Clock) -> None:
    clock.now = 1000.12345
    build, broker = Build(), Broker()
    request = RepogenRequest(target="c7.x86_64")
    for message in (event("Building"), event("Success"), request):
        build.outbox.put(message)
    poller, pings = Poller(ends=build), iter(range(1000))
    session = session_of(Claim(broker=broker))
    session.ping_watchdog = lambda: None if next(pings) < 100 else pytest.fail("it never ends")
    run(session, build, poller)
    assert [each.status for each in broker.news] == ["Building", "Success"]
    assert {each.at for each in broker.news} == {1000.123}, "the time at which they leave"
    assert broker.requests == [("createrepo", request, beanstalk.PRIORITY)]
    assert poller.calls
    assert next(pings) >= 3, "each time round"
    assert session.build is build  # type: ignore[comparison-overlap]


def test_what_ended_the_build_is_raised(clock: Clock) -> None:
    build = Build()
    build.run = raising(RetryLater("no network"))  # type: ignore[method-assign]
    with pytest.raises(RetryLater, match="no network"):
        run(session_of(Claim(broker=Broker())), build, Poller())


def test_a_stop_ends_the_build_and_still_publishes_what_it_left(clock: Clock) -> None:
    build, broker = Build(), Broker()

    def work() -> None:
        assert build.over.wait(20), "nobody stopped it"
        for message in (event("Success"), event("Failed", 2), event("Failed", 3)):
            build.outbox.put(message)

    build.run = work  # type: ignore[method-assign]
    session = session_of(Claim(broker=broker))
    session.stop.now.set()
    run(session, build, Poller())
    assert [each.status for each in broker.news] == ["Success", "Failed", "Failed"]
    assert session.service._doing.startswith("stopping")


def test_a_stop_without_beanstalkd_waits_for_no_message(clock: Clock) -> None:
    build = Build()
    build.outbox.put(event("Success"))
    session = session_of(Claim(raising(AWAY), broker=Broker()), connect=raising(AWAY))
    session.stop.now.set()
    run(session, build, Poller())


def test_a_full_beanstalkd_holds_a_message_and_the_builds_end(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(job_session, "RECONNECT_SECONDS", 0.01)
    build, broker = Build(), Broker()
    build.outbox.put(event("Success"))
    build.over.set()
    broker.error, pings = FULL, iter(range(1000))
    session = session_of(Claim(broker=broker))

    def count() -> None:
        if next(pings) == 5:
            broker.error = None

    session.ping_watchdog = count
    run(session, build, Poller())
    assert [each.status for each in broker.news] == ["Success"]


def test_a_job_of_another_worker_is_announced_by_that_one(clock: Clock) -> None:
    broker, lost = Broker(), raising(ReservationLost("deleted"))
    broker.re_reserve = lost  # type: ignore[attr-defined]
    touched: list[int] = []
    session = session_of(Claim(lambda: (touched.append(1), lost()), broker=broker))  # type: ignore[arg-type,func-returns-value]
    assert session._keep_reserved()
    assert session.reservation_lost
    assert session._keep_reserved()
    assert touched == [1], "it is not touched any more"
    assert session._publish(event("Success"))
    assert session._publish(RepogenRequest(target="c7.x86_64"))
    assert (broker.news, len(broker.requests)) == ([], 1), "the upload is published all the same"


def test_a_job_whose_time_ran_out_is_reserved_again() -> None:
    took: list[Any] = []
    claim = Claim(raising(ReservationLost("its time ran out")), took.append)
    session = session_of(claim)
    assert session._keep_reserved()
    assert took == [claim]
    assert not session.reservation_lost


def test_a_connection_that_is_back_reserves_the_job_again_by_its_number(clock: Clock) -> None:
    took: list[Any] = []
    again = Claim(re_reserve=took.append)
    claim = Claim(raising(AWAY), broker=Broker())
    connects = iter([AWAY, again])

    def connect() -> Any:
        found = next(connects)
        if isinstance(found, Exception):
            raise found
        return found

    session = session_of(claim, connect)
    assert not session._keep_reserved()
    assert "beanstalkd" in session.service._remarks
    assert not session._keep_reserved(), "away at the first attempt"
    attempted = clock.now
    while not session._keep_reserved():
        assert clock.now < attempted + 10
    assert attempted + 1 <= clock.now < attempted + 1.5, "once a second"
    assert claim.broker is again
    assert took == [claim]
    assert session.service._remarks == {"beanstalkd": ""}


def test_a_job_that_was_lost_is_not_reserved_again_after_an_outage(clock: Clock) -> None:
    claim = Claim(re_reserve=lambda _: pytest.fail("another worker has it"))
    session = session_of(claim)
    session.reservation_lost = session._is_cut_off = True
    assert session._keep_reserved()


@pytest.mark.parametrize("error", [AWAY, FULL])
def test_flags_that_cannot_be_read_end_no_build(error: Exception) -> None:
    session, poller = session_of(Claim()), Poller(error=error)
    session._poll_flags(poller)  # type: ignore[arg-type]
    assert session._is_cut_off == (error is AWAY)


def test_a_message_that_meets_an_outage_waits_for_its_end() -> None:
    broker = Broker()
    broker.error = AWAY
    session = session_of(Claim(broker=broker))
    assert not session._publish(event("Success"))
    assert session._is_cut_off


def test_flags_are_not_polled_without_a_connection(clock: Clock) -> None:
    build, poller = Build(), Poller()
    build.over.set()
    run(session_of(Claim(raising(AWAY), broker=Broker())), build, poller)
    assert poller.calls == 0


def test_the_legs_without_result_are_those_that_were_not_announced() -> None:
    session = session_of(Claim())
    assert session.unfinished_arches() == ("x86_64", "i386"), "of the request, before the build has any"
    assert session.describe_logs("i386") == {}
    build: Any = Build()
    session.build = build
    build.announced.add("x86_64")
    assert list(session.unfinished_arches()) == ["i386"]
    build.announced.add("i386")
    assert session.unfinished_arches() == ("x86_64", "i386")
    build.kept_logs = {"i386": "https://example.org/i386"}
    assert session.describe_logs("i386") == {"url": "https://example.org/i386", "error_log": ""}
    assert session.describe_logs("x86_64")["url"] == "https://example.org/i386", "another leg's, for want of its own"


# --- flags


def poller_of(build: Build, interval: int = 60) -> tuple[ControlPoller, Broker]:
    sender, broker = heartbeats(interval)
    given: Any = build
    return ControlPoller(given, HOST, sender), broker


def poll(poller: ControlPoller, broker: Any, *, last: bool = False) -> None:
    poller.poll(broker, last=last)


def test_a_cancel_reaches_the_build_once_and_within_a_second(clock: Clock) -> None:
    build = Build()
    poller, broker = poller_of(build)
    poll(poller, broker)
    broker.flags[beanstalk.cancel_tube(REQUEST.build_id)] = ControlFlag(by="johnny", why="a typo")
    clock.now += 0.9
    poll(poller, broker)
    assert build.cancelled == [], "beanstalkd is asked once a second"
    clock.now += 0.1
    poll(poller, broker)
    clock.now += 5
    poll(poller, broker)
    assert build.cancelled == ["cancelled by johnny: a typo"]


def test_a_heartbeat_shows_the_build_and_what_drains_the_builder(clock: Clock) -> None:
    build = Build()
    poller, broker = poller_of(build)
    poll(poller, broker)
    (first,) = broker.news
    assert (first.state, first.why, first.build.arch, first.build.phase) == ("building", "", "x86_64", "rpmbuild")
    assert (first.build.since, first.build.started, first.build.attempt) == (950.0, 900.123, ATTEMPT)
    broker.flags[beanstalk.drain_tube(HOST)] = ControlFlag(by="johnny", why="a new disk")
    clock.now += 9.9
    poll(poller, broker)
    assert len(broker.news) == 1, "this flag is read every ten seconds"
    clock.now += 1
    poll(poller, broker)
    assert (broker.news[-1].state, broker.news[-1].why) == ("draining", "drained by johnny: a new disk")
    broker.flags[beanstalk.drain_tube(HOST)] = ControlFlag(reason=QUARANTINED)
    clock.now += 10
    poll(poller, broker, last=True)
    assert broker.news[-1].state == "quarantined"
    broker.flags.clear()
    clock.now += 10
    poll(poller, broker, last=True)
    assert broker.news[-1].state == "draining", "the worker ends after this build"


# --- heartbeats


def test_a_change_is_sent_at_once_and_the_same_again_after_the_interval(clock: Clock) -> None:
    sender, broker = heartbeats(60)
    sent: list[float] = []
    for _ in range(130):
        sender.send(broker, "idle" if clock.now < 1062 else "drained")
        sent += [clock.now - 1000] * (len(broker.news) - len(sent))
        clock.now += 1
    assert sent == [0, 60, 65, 125], "never two within five seconds"


@pytest.mark.parametrize(("interval", "ready", "count"), [(0, 0, 0), (60, 10_000, 1), (60, 10_001, 0)])
def test_no_heartbeat_without_an_interval_or_with_a_long_backlog(
    clock: Clock, interval: int, ready: int, count: int
) -> None:
    sender, broker = heartbeats(interval)
    broker.ready = ready
    sender.send(broker, "idle")
    assert len(broker.news) == count


def test_a_heartbeat_that_a_full_beanstalkd_refuses_is_nobodys_worry(clock: Clock) -> None:
    sender, broker = heartbeats()
    broker.error = FULL
    sender.send(broker, "idle")
    broker.error = AWAY
    clock.now += 60
    with pytest.raises(BrokerUnavailable):
        sender.send(broker, "idle")


def test_a_worker_that_ends_announces_that_if_it_was_seen(clock: Clock) -> None:
    sender, broker = heartbeats()
    sender.send_leaving(broker)
    assert broker.news == [], "nobody knows it"
    sender.send(broker, "idle")
    assert not broker.news[-1].leaving
    sender.send_leaving(broker)
    assert (broker.news[-1].leaving, broker.news[-1].state) == (True, "drained")
    broker.error = AWAY
    sender.send_leaving(broker)


def test_a_heartbeat_shows_the_fullest_disk(monkeypatch: pytest.MonkeyPatch, clock: Clock) -> None:
    spaces = {"/a": (10, 500), "/b": (20, 40), "/c": (30, None)}

    def measure(path: Path) -> fs.FreeSpace:  # a test cannot make disks
        mib, inodes = spaces[str(path)]
        return fs.FreeSpace(folder=path, mib=mib, inodes=inodes)

    monkeypatch.setattr(fs.FreeSpace, "measure", measure)
    assert heartbeat._least_free([Path(each) for each in spaces]) == (10, 40)
    assert heartbeat._least_free([]) == (0, 0)
    monkeypatch.setattr(fs.FreeSpace, "measure", raising(OSError("stale NFS handle")))
    assert heartbeat._least_free([Path("/a")]) == (0, 0)
    monkeypatch.setattr(os, "getloadavg", lambda: (1.2345, 9.0, 9.0))
    sender, broker = heartbeats()
    clock.now = 1000.12345
    sender.send(broker, "idle")
    assert (broker.news[0].load, broker.news[0].at, broker.news[0].session) == (1.23, 1000.123, "5" * 16)


# --- who sends them


def test_an_instance_is_named_by_systemd_or_by_its_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(heartbeat.INSTANCE_VARIABLE, raising=False)
    assert heartbeat.own_instance() == str(os.getpid())
    monkeypatch.setenv(heartbeat.INSTANCE_VARIABLE, "7")
    assert heartbeat.own_instance() == "7"


def test_a_boot_token_differs_by_boot_machine_and_container_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = {"_BOOT_ID": tmp_path / "boot", "_MACHINE_ID": tmp_path / "machine", "_PID_NAMESPACE": tmp_path / "pid"}
    for name, path in paths.items():
        monkeypatch.setattr(heartbeat, name, path)
    assert heartbeat.boot_token() == "", "no boot id, no token"
    paths["_BOOT_ID"].write_text("boot 1\n")
    tokens = [heartbeat.boot_token()]
    paths["_MACHINE_ID"].write_text("machine 1\n")
    tokens.append(heartbeat.boot_token())
    paths["_PID_NAMESPACE"].symlink_to("pid:[1]")
    tokens.append(heartbeat.boot_token())
    assert heartbeat.boot_token() == tokens[-1]
    paths["_BOOT_ID"].write_text("boot 2\n")
    tokens.append(heartbeat.boot_token())
    assert len(set(tokens)) == 4
    assert all(len(token) == 16 and "boot" not in token for token in tokens)
    one, other = (ProcessIdentity(host=HOST, instance="1", arches=(), folders=()) for _ in range(2))
    assert one.boot == other.boot == tokens[-1]
    assert one.session != other.session
    assert len(one.session) == 16

# SPDX-License-Identifier: Apache-2.0
"""What the daemons rely on of beanstalkd, of the real one and of the simulator's: the same cases."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any, Callable

import greenstalk
import pytest

from tests.conftest import Beanstalkd, empty
from tests.simulate.beanstalkd import Client, Server
from tests.waiting import until


class Clock:
    """A clock that goes when somebody waits."""

    now = 0.0

    def wait_for_change(self, until: float) -> None:
        self.now = until

    def changed(self) -> None:
        """Nobody waits while another works."""


class Simulated:
    def __init__(self) -> None:
        self.clock = Clock()
        self.server = Server(self.clock)

    def connect(self) -> Any:
        return Client(self.server.connect())

    def wait(self, seconds: float) -> None:
        self.clock.now += seconds

    def restart(self) -> None:
        self.server.stop()
        self.server.start()


class Real:
    def __init__(self, beanstalkd: Beanstalkd) -> None:
        self.beanstalkd = beanstalkd

    def connect(self) -> Any:
        return greenstalk.Client((self.beanstalkd.host, self.beanstalkd.port), encoding=None)

    def wait(self, seconds: float) -> None:
        time.sleep(seconds)  # beanstalkd's own clock has to go on

    def restart(self) -> None:
        self.beanstalkd.kill()
        self.beanstalkd.start()


@pytest.fixture(params=["simulated", "real"])
def server(request: pytest.FixtureRequest) -> Iterator[Simulated | Real]:
    if request.param == "simulated":
        yield Simulated()
        return
    beanstalkd = request.getfixturevalue("beanstalkd")
    empty(beanstalkd)
    yield Real(beanstalkd)
    empty(beanstalkd)


@pytest.fixture
def connect(server: Simulated | Real) -> Iterator[Callable[[], Any]]:
    """Connect; each client uses and watches the tube t."""
    made = []

    def connect() -> Any:
        client = server.connect()
        client.use("t")
        client.watch("t")
        client.ignore("default")
        made.append(client)
        return client

    yield connect
    for client in made:
        client.close()


Connect = Callable[[], Any]


def counts(client: Any, number: int) -> dict[str, Any]:
    stats = client.stats_job(number)
    return {name: stats[name] for name in ("state", "pri", "reserves", "timeouts", "releases", "buries", "kicks")}


def test_a_job_is_held_by_a_long_delay_and_taken_by_its_number(connect: Connect) -> None:
    client, year = connect(), 365 * 86_400
    job = client.put(b"held", priority=9, delay=10 * year)
    assert 9 * year < client.stats_job(job)["time-left"] <= 10 * year
    claim = client.reserve_job(job)
    assert 0 < client.stats_job(job)["time-left"] <= 60
    client.release(claim, priority=5, delay=10 * year)
    stats = client.stats_job(job)
    assert (stats["state"], stats["pri"], stats["time-left"] > 9 * year) == ("delayed", 5, True)
    client.kick_job(job)
    assert (client.stats_job(job)["state"], client.stats_job(job)["time-left"]) == ("ready", 0)


def test_the_most_urgent_job_comes_first_and_of_equals_the_oldest(connect: Connect) -> None:
    client = connect()
    for body, priority in ((b"late", 9), (b"first", 5), (b"second", 5)):
        client.put(body, priority=priority)
    assert client.peek_ready().body == b"first"
    assert [client.reserve(0).body for _ in range(3)] == [b"first", b"second", b"late"]
    with pytest.raises(greenstalk.TimedOutError):
        client.reserve(0)


def test_the_most_urgent_job_comes_first_of_several_tubes(connect: Connect) -> None:
    client = connect()
    client.put(b"late", priority=9)
    client.use("other")
    client.put(b"unwatched", priority=1)
    client.watch("u")
    client.use("u")
    client.put(b"first", priority=5)
    assert [client.reserve(0).body for _ in range(2)] == [b"first", b"late"]
    with pytest.raises(greenstalk.TimedOutError):
        client.reserve(0)
    client.use("other")
    client.delete(client.peek_ready())


def test_a_reserved_job_is_nobody_elses(connect: Connect) -> None:
    one, other = connect(), connect()
    number = one.put(b"x")
    job = one.reserve(0)
    commands: list[Callable[[], Any]] = [
        lambda: other.delete(number),
        lambda: other.touch(job),
        lambda: other.release(job),
        lambda: other.bury(job),
        lambda: other.reserve_job(number),
        lambda: other.kick_job(number),
        lambda: one.reserve_job(number),
    ]
    for command in commands:
        with pytest.raises(greenstalk.NotFoundError):
            command()
    assert other.peek(number).body == b"x"
    one.delete(number)
    with pytest.raises(greenstalk.NotFoundError):
        one.peek(number)


def test_a_closed_connection_gives_its_jobs_back_at_once(connect: Connect) -> None:
    one, other = connect(), connect()
    number = one.put(b"x")
    one.reserve(0)
    one.close()
    assert other.reserve(1).id == number
    assert counts(other, number) == {
        "state": "reserved", "pri": 65536, "reserves": 2, "timeouts": 0, "releases": 0, "buries": 0, "kicks": 0
    }  # fmt: skip


def test_a_job_whose_time_is_up_is_ready_again_and_its_holder_is_warned(
    server: Simulated | Real, connect: Connect
) -> None:
    one, other = connect(), connect()
    number = one.put(b"x", ttr=4)
    job = one.reserve(0)
    with pytest.raises(greenstalk.DeadlineSoonError):
        one.reserve(5)
    one.touch(job)
    with pytest.raises(greenstalk.TimedOutError):
        one.reserve(0)
    server.wait(4.2)
    # beanstalkd 1.12 may forget a connection's timer until its next command (docs/wire.md)
    one.using()
    until(lambda: counts(other, number)["state"] == "ready", 30, "its time is up")
    assert counts(other, number)["timeouts"] == 1
    with pytest.raises(greenstalk.NotFoundError):
        one.delete(number) if other.reserve(0) else None
    with pytest.raises(greenstalk.NotFoundError):
        one.touch(job)


def test_a_delayed_job_waits_and_a_client_waits_for_it(connect: Connect) -> None:
    client = connect()
    number = client.put(b"x", delay=1)
    assert counts(client, number)["state"] == "delayed"
    assert client.peek_delayed().id == number
    with pytest.raises(greenstalk.NotFoundError):
        client.peek_ready()
    with pytest.raises(greenstalk.TimedOutError):
        client.reserve(0)
    assert client.reserve(3).id == number
    client.delete(number)
    number = client.put(b"x", delay=100)
    client.kick_job(number)
    assert client.reserve(0).id == number
    client.delete(number)
    number = client.put(b"x", delay=100)
    assert client.reserve_job(number).body == b"x"


def test_a_released_job_has_its_new_priority_and_delay(connect: Connect) -> None:
    client = connect()
    number = client.put(b"x", priority=3)
    client.release(client.reserve(0), priority=7, delay=100)
    assert counts(client, number) == {
        "state": "delayed", "pri": 7, "reserves": 1, "timeouts": 0, "releases": 1, "buries": 0, "kicks": 0
    }  # fmt: skip
    client.delete(number)


def test_buried_jobs_lie_until_they_are_kicked(connect: Connect) -> None:
    client = connect()
    for body in (b"a", b"b"):
        client.put(body)
    jobs = [client.reserve(0) for _ in range(2)]
    for job in reversed(jobs):
        client.bury(job, priority=2)
    assert client.peek_buried().body == b"b"
    with pytest.raises(greenstalk.TimedOutError):
        client.reserve(0)
    client.kick_job(jobs[0].id)
    assert client.reserve(0).body == b"a"
    assert counts(client, jobs[0].id)["kicks"] == 1
    with pytest.raises(greenstalk.NotFoundError):
        client.kick_job(jobs[0].id)
    assert client.reserve_job(jobs[1].id).body == b"b"


def test_tubes_exist_while_they_have_jobs_or_clients(connect: Connect) -> None:
    one, other = connect(), connect()
    other.watch("seen")
    assert {"default", "t", "seen"} <= set(one.tubes())
    assert sorted(other.watching()) == ["seen", "t"]
    stats = one.stats_tube("t")
    assert stats["current-watching"] == 2
    one.put(b"x", delay=100)
    assert one.stats_tube("t")["current-jobs-delayed"] == 1
    one.delete(one.peek_delayed())
    other.ignore("seen")
    assert "seen" not in one.tubes()
    with pytest.raises(greenstalk.NotFoundError):
        one.stats_tube("seen")
    with pytest.raises(greenstalk.NotIgnoredError):
        other.ignore("t")


def test_a_body_that_is_too_big_is_refused(connect: Connect) -> None:
    client = connect()
    client.delete(client.put(b"x" * 65_537))
    with pytest.raises(greenstalk.JobTooBigError):
        client.put(b"x" * 70_000)  # the -z of the real one grows with each start


def test_a_restart_keeps_all_jobs_and_ends_all_connections(server: Simulated | Real, connect: Connect) -> None:
    client = connect()
    held, buried, delayed = (client.put(body, priority=1) for body in (b"held", b"buried", b"delayed"))
    client.reserve_job(held)
    client.bury(client.reserve(0), priority=1)
    client.release(client.reserve(0), priority=1, delay=100)
    server.restart()
    with pytest.raises((ConnectionError, OSError)):
        client.reserve(0)
    client = connect()
    assert [counts(client, number)["state"] for number in (held, buried, delayed)] == ["ready", "buried", "delayed"]
    assert [counts(client, number)["reserves"] for number in (held, buried, delayed)] == [0, 1, 1]
    for number in (held, buried, delayed):
        client.delete(number)

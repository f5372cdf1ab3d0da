# SPDX-License-Identifier: Apache-2.0
"""The connection to a real beanstalkd: claims and how they are settled, lost and taken back, and broken links."""

from __future__ import annotations

import contextlib
import select
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Callable
from unittest.mock import Mock

import greenstalk
import pytest

from reimzul.core import beanstalk as tubes
from reimzul.core.beanstalk import CREATEREPO, NOTIFY, TOSIGN, Broker, ReservedJob, Tube, arch_tube
from reimzul.core.beanstalk_stats import TubeStats
from reimzul.core.errors import BrokerUnavailable, InvalidMessage, ReservationLost, RetryLater
from reimzul.core.message import BuildRequest, RepogenRequest, Status, event_for
from reimzul.core.settings import BeanstalkdSettings
from tests.conftest import Beanstalkd, free_port
from tests.waiting import until

WATCHED = {CREATEREPO.name: CREATEREPO}
REQUEST = RepogenRequest(target="c7.x86_64")


def reserve_job(broker: Broker, watched: dict[str, Tube[Any]] = WATCHED) -> ReservedJob[Any]:
    """A job that waits."""
    broker.watch(watched)
    claim = broker.reserve(watched, 5)
    assert claim is not None
    return claim


# --- putting and claiming


def test_what_is_put_is_claimed_with_its_facts(broker: Broker) -> None:
    number = broker.put(CREATEREPO, REQUEST, priority=77, ttr=200)
    claim = reserve_job(broker)
    assert (claim.id, claim.message) == (number, REQUEST)
    facts = claim.stats
    assert (facts.tube, facts.priority, facts.ttr, facts.reserves) == ("createrepo", 77, 200, 1)
    assert (facts.releases, facts.timeouts, facts.deaths) == (0, 0, 0)


def test_the_most_urgent_comes_first(broker: Broker) -> None:
    for priority in (8192, 1024, 4096):
        broker.put(CREATEREPO, RepogenRequest(target=f"p{priority}"), priority=priority)
    assert [reserve_job(broker).message.target for _ in range(3)] == ["p1024", "p4096", "p8192"]


def test_a_job_is_decoded_as_its_tube_says(broker: Broker) -> None:
    watched: dict[str, Tube[Any]] = {tube.name: tube for tube in (NOTIFY, CREATEREPO, TOSIGN, arch_tube("x86_64"))}
    request = BuildRequest(srpm="a-1-1.src.rpm", arch="x86_64", target="c7.x86_64", disttag=".el7", submitter="johnny")
    broker.put(watched["x86_64"], request, priority=1)
    broker.put(CREATEREPO, REQUEST, priority=2)
    assert reserve_job(broker, watched).message == request
    assert reserve_job(broker, watched).message == REQUEST


@pytest.mark.parametrize(
    ("status", "priority"),
    [(Status.QUEUED, 4096), (Status.BUILDING, 4096), (Status.SUCCESS, 1024), (Status.FAILED, 1024)],
)
def test_results_are_told_before_progress(broker: Broker, status: str, priority: int) -> None:
    request = BuildRequest(srpm="a-1-1.src.rpm", arch="x86_64", target="c7.x86_64", disttag=".el7", submitter="johnny")
    broker.announce(event_for(request, status))
    assert reserve_job(broker, {NOTIFY.name: NOTIFY}).stats.priority == priority


def test_only_watched_tubes_are_claimed_from(broker: Broker) -> None:
    broker.put_raw(TOSIGN.name, REQUEST.encode(), priority=1)
    broker.watch(["tosign"])
    broker.watch(["createrepo"])
    assert broker.reserve(WATCHED, 0) is None


def test_a_tube_nobody_ever_used_is_empty(broker: Broker) -> None:
    assert broker.tube_stats("no-such-tube") == TubeStats("no-such-tube")
    assert "no-such-tube" not in broker.list_tubes()


def test_a_tube_is_counted(broker: Broker) -> None:
    for delay in (0, 0, 0, 600):
        broker.put(CREATEREPO, REQUEST, priority=1, delay=delay)
    reserve_job(broker).bury()
    reserve_job(broker)
    stats = broker.tube_stats("createrepo")
    assert (stats.ready, stats.reserved, stats.delayed, stats.buried, stats.watchers) == (1, 1, 1, 1, 1)


def test_a_job_is_ready_as_soon_as_it_is_put(broker: Broker) -> None:
    numbers = [broker.put(CREATEREPO, REQUEST, priority=1), broker.put_raw("createrepo", b"{}", priority=1)]
    assert [broker.job_stats(number).state for number in numbers] == ["ready", "ready"]
    assert broker.first_ready("createrepo") == (numbers[0], REQUEST.encode())


def test_two_tubes_are_told_apart_and_one_costs_no_question(broker: Broker) -> None:
    broker.put(CREATEREPO, REQUEST, priority=1)
    both: dict[str, Tube[Any]] = {TOSIGN.name: TOSIGN, **WATCHED}
    assert reserve_job(broker, both).tube is CREATEREPO
    claim = reserved_after_put(broker)
    assert claim._facts is None
    assert repr(claim) == f"job {claim.id} of createrepo"


def test_a_server_is_asked_for_its_state(broker: Broker) -> None:
    stats = broker.server_stats()
    assert stats.version
    assert not stats.draining
    broker.put(CREATEREPO, REQUEST, priority=1)
    assert {"createrepo", "default"} <= set(broker.list_tubes())


# --- settling


@pytest.mark.parametrize("settle", [lambda claim: claim.release(0), lambda claim: claim.bury()], ids=["again", "bury"])
def test_a_job_that_comes_back_keeps_its_priority(broker: Broker, settle: Callable[[ReservedJob[Any]], None]) -> None:
    number = broker.put(CREATEREPO, REQUEST, priority=77)
    settle(reserve_job(broker))
    assert broker.client.stats_job(number)["pri"] == 77


def test_a_pause_is_kept(broker: Broker) -> None:
    number = broker.put(CREATEREPO, REQUEST, priority=77)
    reserve_job(broker).release(600)
    stats = broker.client.stats_job(number)
    assert (stats["state"], stats["delay"]) == ("delayed", 600)


def test_what_is_done_is_gone(broker: Broker) -> None:
    claim = reserved_after_put(broker)
    claim.delete()
    with pytest.raises(ReservationLost):
        claim.delete()
    assert broker.tube_stats("createrepo").reserved == 0


def reserved_after_put(broker: Broker, **given: Any) -> ReservedJob[Any]:
    broker.put(CREATEREPO, REQUEST, **{"priority": 77, **given})
    return reserve_job(broker)


def test_a_claim_is_kept_beyond_its_time_by_touching(broker: Broker) -> None:
    claim = reserved_after_put(broker, ttr=2)
    kept_for = time.monotonic() + 2.5
    while time.monotonic() < kept_for:
        broker.touch_all_if_due()
    claim.delete()


def test_a_claim_about_to_be_lost_is_touched_while_others_are_waited_for(broker: Broker) -> None:
    claim = reserved_after_put(broker, ttr=2)
    kept_for = time.monotonic() + 2.5
    while time.monotonic() < kept_for:
        assert broker.reserve(WATCHED, 1) is None  # beanstalkd answers DEADLINE_SOON, at once
    claim.delete()


def test_a_claim_that_is_settled_is_touched_no_more(broker: Broker) -> None:
    reserved_after_put(broker).delete()
    broker.touch_all_if_due(now=True)


def test_a_claim_that_is_given_back_is_touched_no_more(broker: Broker) -> None:
    reserved_after_put(broker).release(600)
    broker.touch_all_if_due(now=True)


def test_a_claim_is_touched_after_a_third_of_its_time_and_not_before(
    broker: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    claim = reserved_after_put(broker, ttr=120)
    touched: list[object] = []
    monkeypatch.setattr(broker.client, "touch", touched.append)
    for age, count in ((0, 0), (35, 0), (6, 1)):
        claim._touched -= age
        broker.touch_all_if_due()
        claim.touch_if_due()
        assert len(touched) == count, f"{age} seconds later"


def test_keeping_a_claim_waits_for_nothing(broker: Broker, monkeypatch: pytest.MonkeyPatch) -> None:
    spy = Mock(return_value=([], [], []))
    monkeypatch.setattr(select, "select", spy)
    broker.check()
    assert spy.call_args.args[3] == 0


def test_a_closed_connection_holds_no_claims(beanstalkd: Beanstalkd) -> None:
    with beanstalkd.connect() as broker:
        reserved_after_put(broker)
        link = broker._socket
        assert link
    assert link.fileno() == -1
    broker.touch_all_if_due(now=True)
    with pytest.raises(BrokerUnavailable, match="the connection is closed"):
        broker.check()


def test_a_connection_sends_at_once_and_notices_a_host_that_is_gone(beanstalkd: Beanstalkd) -> None:
    with Broker.from_settings(BeanstalkdSettings(host="127.0.0.1", port=beanstalkd.port)) as broker:
        assert broker._socket
        assert broker._socket.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        assert broker._socket.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)


def test_one_lost_claim_does_not_stop_the_others_being_kept(broker: Broker) -> None:
    first, second = reserved_after_put(broker), reserved_after_put(broker)
    broker.client.delete(first.id)
    lost: list[ReservedJob[Any]] = []
    broker.touch_all_if_due(now=True, lost=lost.append)
    assert lost == [first]
    with pytest.raises(ReservationLost):
        broker.touch_all_if_due(now=True)
    broker.untrack(first)
    broker.touch_all_if_due(now=True)
    second.delete()


def test_a_buried_job_can_be_looked_at_kicked_and_deleted(broker: Broker) -> None:
    assert broker.first_buried("createrepo") is None
    number = broker.put_raw("createrepo", b"\xff", priority=5)
    reserve_job(broker).bury()
    assert broker.first_buried("createrepo") == (number, b"\xff")
    assert (broker.peek(number), broker.job_stats(number).state) == (b"\xff", "buried")
    broker.kick(number)
    assert (broker.job_stats(number).state, broker.job_stats(number).buries) == ("ready", 1)
    broker.delete(number)
    for gone in (broker.job_stats, broker.peek, broker.kick, broker.delete):
        with pytest.raises(ReservationLost):
            gone(number)


# --- lost and taken back


def test_a_closed_connection_gives_its_jobs_to_others_at_once(beanstalkd: Beanstalkd, broker: Broker) -> None:
    with beanstalkd.connect() as dying:
        claim = reserved_after_put(dying)
    assert reserve_job(broker).id == claim.id
    assert broker.client.stats_job(claim.id)["reserves"] == 2


def test_a_job_is_taken_back_after_a_lost_connection(beanstalkd: Beanstalkd, broker: Broker) -> None:
    with beanstalkd.connect() as lost:
        claim = reserved_after_put(lost)
    broker.re_reserve(claim)
    assert broker.tube_stats("createrepo").reserved == 1
    claim.delete()
    assert broker.tube_stats("createrepo").reserved == 0


def test_a_job_taken_back_is_touched_again(beanstalkd: Beanstalkd, broker: Broker) -> None:
    with beanstalkd.connect() as lost:
        claim = reserved_after_put(lost)
    broker.re_reserve(claim)
    broker.client.delete(claim.id)
    with pytest.raises(ReservationLost):
        broker.touch_all_if_due(now=True)


def test_a_job_another_took_is_not_taken_back(beanstalkd: Beanstalkd, broker: Broker) -> None:
    with beanstalkd.connect() as lost:
        claim = reserved_after_put(lost)
    other = reserve_job(broker)
    with beanstalkd.connect() as again:
        with pytest.raises(ReservationLost):
            again.re_reserve(claim)
        again.check()  # the connection is as good as before
    other.delete()


def test_a_lost_claim_is_settled_by_nobody(beanstalkd: Beanstalkd, broker: Broker) -> None:
    with beanstalkd.connect() as lost:
        claim = reserved_after_put(lost)
    with pytest.raises(BrokerUnavailable):
        claim.delete()
    assert broker.tube_stats("createrepo").ready == 1


def test_a_short_lived_job_lost_on_its_way_to_us_is_no_claim(broker: Broker, monkeypatch: pytest.MonkeyPatch) -> None:
    broker.put(CREATEREPO, REQUEST, priority=1)
    stats_job = broker.client.stats_job

    def deleted_meanwhile(number: int) -> Any:
        broker.client.delete(number)
        return stats_job(number)

    monkeypatch.setattr(broker.client, "stats_job", deleted_meanwhile)
    both: dict[str, Tube[Any]] = {**WATCHED, TOSIGN.name: TOSIGN}
    broker.watch(both)
    assert broker.reserve(both, 5) is None


# --- bodies


def test_a_body_that_is_not_utf8_is_a_claim_that_can_be_buried(broker: Broker) -> None:
    broker.put_raw("createrepo", b"\xff\xfe{\r\n", priority=1)
    claim = reserve_job(broker)
    assert claim.body == b"\xff\xfe{\r\n"
    with pytest.raises(InvalidMessage):
        _ = claim.message
    claim.bury()
    assert broker.tube_stats("createrepo").buried == 1


def test_the_largest_body_passes_and_a_larger_one_is_refused(broker: Broker) -> None:
    largest = broker.server_stats().max_job_bytes
    broker.put_raw("createrepo", b"a" * largest, priority=1)
    with pytest.raises(InvalidMessage, match="larger than beanstalkd takes"):
        broker.put_raw("createrepo", b"a" * (largest + 1), priority=1)
    assert len(reserve_job(broker).body) == largest, "the connection goes on"


# --- broken links


@pytest.fixture
def doomed(tmp_path: Path) -> Iterator[Beanstalkd]:
    """A beanstalkd that the test may kill."""
    server = Beanstalkd(tmp_path)
    server.start()
    yield server
    server.kill()


def test_beanstalkd_killed_while_we_wait_for_a_job(doomed: Beanstalkd) -> None:
    def kill_when_waited_for() -> None:
        with doomed.connect() as spy:
            until(lambda: spy.client.stats()["current-waiting"] == 1, 10, "somebody waits for a job")
        doomed.kill()

    with doomed.connect() as broker:
        broker.watch(WATCHED)
        killer = threading.Thread(target=kill_when_waited_for)
        killer.start()
        with pytest.raises(BrokerUnavailable, match=f"127.0.0.1:{doomed.port}"):
            broker.reserve(WATCHED, 12)
        killer.join()


def test_a_connection_closed_under_a_claim_is_noticed_while_it_is_kept(doomed: Beanstalkd) -> None:
    with doomed.connect() as broker:
        claim = reserved_after_put(broker)
        claim.touch_if_due()
        doomed.kill()
        with pytest.raises(BrokerUnavailable, match="closed by the other end"):
            until(claim.touch_if_due, 10, "the end of the connection is seen")  # keep() returns None: not due
        with pytest.raises(BrokerUnavailable, match="the connection is closed"):
            broker.put(CREATEREPO, REQUEST, priority=1)


def test_nobody_listens() -> None:
    with pytest.raises(BrokerUnavailable, match="[Cc]onnection refused"):
        Broker("127.0.0.1", free_port())


def test_a_name_that_is_none() -> None:
    with pytest.raises(BrokerUnavailable):
        Broker("no-such-host.invalid", 11300)


class Impostor:
    """A server that takes a command and answers what the test says, by the command's first word."""

    def __init__(self, answers: dict[str, bytes]) -> None:
        self.answers = {"list-tube-used": b"USING default\r\n", **answers}
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self.listener.getsockname()[1])
        self.thread = threading.Thread(target=self._serve)

    def __enter__(self) -> Impostor:
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.listener.shutdown(socket.SHUT_RDWR)
        self.thread.join()
        self.listener.close()

    def _serve(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self.listener.accept()
                with connection, connection.makefile("rb") as commands:
                    for line in commands:
                        words = line.split()
                        connection.sendall(self.answers.get(words[0].decode() if words else "", b""))


@pytest.mark.parametrize(
    "answer",
    [
        b"INSERTED 1\r\n",
        b"TIMED_OUT\r\n",
        b"DEADLINE_SOON\r\n",
        b"WATCHING 2\r\n",
        b"\r\n",
        b"USING\r\n",
        b"no line",
        b"OK x\r\n",
        b"OK 5\r\n---\n",
        b"OK 11\r\n---\npri: 7\n\r\n",
        b"UNKNOWN_COMMAND\r\n",
        b"HTTP/1.1 400 Bad Request\r\n",
    ],
)
def test_an_answer_out_of_step_closes_the_connection(answer: bytes) -> None:
    with Impostor({"stats-tube": answer}) as impostor, Broker("127.0.0.1", impostor.port, answer=0.3) as broker:
        with pytest.raises(BrokerUnavailable):
            broker.tube_stats("createrepo")
        with pytest.raises(BrokerUnavailable, match="the connection is closed"):
            broker.tube_stats("createrepo")


@contextlib.contextmanager
def connect_to_impostor(timeout: float = tubes.REPLY_TIMEOUT_SECONDS, **answers: bytes) -> Iterator[Broker]:
    replies = {"use": b"USING createrepo\r\n", **answers}
    with Impostor(replies) as impostor, Broker("127.0.0.1", impostor.port, answer=timeout) as broker:
        yield broker


@pytest.mark.parametrize("answer", [b"TIMED_OUT\r\n", b"DEADLINE_SOON\r\n", b"RESERVED 1 2\r\n{}\r\n"])
def test_an_answer_to_another_question_is_out_of_step(answer: bytes) -> None:
    with connect_to_impostor(put=answer) as broker, pytest.raises(BrokerUnavailable, match="out of step"):
        broker.put(CREATEREPO, REQUEST, priority=1)


@pytest.mark.parametrize("answer", [b"OUT_OF_MEMORY\r\n", b"INTERNAL_ERROR\r\n", b"DRAINING\r\n", b"BURIED 7\r\n"])
def test_a_beanstalkd_that_takes_nothing_now_is_tried_later(answer: bytes) -> None:
    with connect_to_impostor(put=answer) as broker:
        for _ in range(2):  # the connection stays
            with pytest.raises(RetryLater):
                broker.put(CREATEREPO, REQUEST, priority=1)


def test_an_answer_that_never_comes_is_not_waited_for_for_ever() -> None:
    with connect_to_impostor(timeout=0.2) as broker, pytest.raises(BrokerUnavailable, match="timed out"):
        broker.reserve(WATCHED, 0)


def test_a_door_nobody_stands_behind_is_no_beanstalkd() -> None:
    with Impostor({"list-tube-used": b""}) as stunnel, pytest.raises(BrokerUnavailable, match="timed out"):
        Broker("127.0.0.1", stunnel.port, answer=0.2)


@pytest.mark.parametrize("refused", ["release", "bury"])
def test_a_job_that_a_full_beanstalkd_let_go_of_is_put_anew(
    broker: Broker, monkeypatch: pytest.MonkeyPatch, refused: str
) -> None:
    number = broker.put(CREATEREPO, RepogenRequest(target="c9.x86_64"), priority=77, ttr=33)
    broker.watch([CREATEREPO.name])
    claim = broker.reserve({CREATEREPO.name: CREATEREPO}, 1)
    assert claim

    def raise_out_of_memory(*_: object, **__: object) -> None:
        client.delete(number)  # nobody can get at it any more; to delete it is as near as a test comes to that
        raise greenstalk.OutOfMemoryError(b"")

    client = broker.client
    monkeypatch.setattr(client, refused, raise_out_of_memory)
    with pytest.raises(RetryLater):
        claim.release(5) if refused == "release" else claim.bury()
    assert claim.is_orphaned
    broker.touch_all_if_due(now=True)  # it is touched no more
    claim.release(5) if refused == "release" else claim.bury()
    stats = broker.tube_stats(CREATEREPO.name)
    assert (stats.delayed, stats.ready) == ((1, 0) if refused == "release" else (0, 1))
    client.use(CREATEREPO.name)
    anew = client.peek_delayed() if refused == "release" else client.peek_ready()
    facts = broker.job_stats(anew.id)
    assert (anew.body, facts.priority, facts.ttr) == (claim.body, 77, 33)

# SPDX-License-Identifier: Apache-2.0
"""Marks on a real beanstalkd: they hold for all, across its restart, and a request put anew heeds them either way."""

from __future__ import annotations

from typing import Any

import pytest

from reimzul.core import mark
from reimzul.core.mark import QUARANTINED, Mark
from reimzul.core.message import BuildRequest, new_build_id
from reimzul.core.tube import (
    PRIORITY,
    Broker,
    arch_tube,
    cancel_tube,
    cancelled_build,
    holds_no_work,
    worker_tube,
)
from tests.conftest import Beanstalkd

TUBE = arch_tube("x86_64")


def request() -> BuildRequest:
    return BuildRequest(
        srpm="time-1.7-45.el7.src.rpm", arch="x86_64", target="c7.1708.u.x86_64", disttag=".el7", submitter="johnny",
        build_id=new_build_id(), timestamp="20261122120000",
    )  # fmt: skip


def test_a_mark_is_read_by_all_and_stays(broker: Broker, beanstalkd: Beanstalkd) -> None:
    build_id = new_build_id()
    assert mark.cancelled(broker, build_id) is None
    put = mark.put(broker, cancel_tube(build_id), mark.mark("johnny", "wrong disttag"))
    with beanstalkd.connect() as other:
        for _ in range(2):
            assert mark.cancelled(broker, build_id) == mark.cancelled(other, build_id) == put
    assert put.cancels == "cancelled by johnny: wrong disttag"
    assert mark.cancelled(broker, new_build_id()) is None


def test_a_second_mark_changes_nothing(broker: Broker) -> None:
    tube = cancel_tube(new_build_id())
    first = mark.put(broker, tube, mark.mark("johnny"))
    assert mark.put(broker, tube, mark.mark("karanbir")) == first
    assert broker.stats(tube).ready == 1


def test_a_mark_is_lifted_with_all_there_are(broker: Broker) -> None:
    tube = worker_tube("b1.example.org")
    for _ in range(3):
        broker.put_raw(tube, b"{}", priority=PRIORITY)
    assert mark.lift(broker, tube)
    assert not mark.lift(broker, tube) and mark.drained(broker, "b1.example.org") is None


@pytest.mark.parametrize("body", [b"", b"\xff", b"[]", b'{"at": "yesterday"}', b'{"by": "x", "colour": 1}'])
def test_a_mark_that_cannot_be_read_is_heeded_too(broker: Broker, body: bytes) -> None:
    broker.put_raw(worker_tube("b1.example.org"), body, priority=0)
    assert mark.drained(broker, "b1.example.org")
    mark.lift(broker, worker_tube("b1.example.org"))


def test_a_mark_that_says_it_is_none_is_none(broker: Broker) -> None:
    mark.put(broker, worker_tube("b1.example.org"), Mark(drain=False))
    assert mark.drained(broker, "b1.example.org") is None
    mark.lift(broker, worker_tube("b1.example.org"))


def test_a_quarantine_is_known_from_a_drain(broker: Broker) -> None:
    assert not mark.mark("johnny", "new memory").quarantined
    put = mark.mark("notifier", "7 faults", reason=QUARANTINED)
    assert put.quarantined and put.drains == "quarantined by notifier: 7 faults"


def test_tubes_of_marks_are_known_by_their_names() -> None:
    build_id = new_build_id()
    assert cancelled_build(cancel_tube(build_id)) == build_id
    assert [cancelled_build(name) for name in ("cancel.x", "cancel.", "x86_64", worker_tube("b1"))] == [""] * 4
    assert holds_no_work(cancel_tube(build_id)) and holds_no_work(worker_tube("b1")) and not holds_no_work("x86_64")


def test_a_request_is_put_anew_where_nobody_has_cancelled_it(broker: Broker) -> None:
    job, forbidden = mark.put_unless_cancelled(broker, TUBE, request(), priority=7, delay=60)
    assert forbidden is None
    assert (broker.facts(job).priority, broker.facts(job).state) == (7, "delayed")
    broker.delete(job)


def test_a_request_is_not_put_under_a_mark(broker: Broker) -> None:
    wanted = request()
    mark.put(broker, cancel_tube(wanted.build_id), mark.mark("johnny"))
    job, forbidden = mark.put_unless_cancelled(broker, TUBE, wanted, priority=7)
    assert (job, forbidden and forbidden.by) == (0, "johnny")
    assert broker.stats(TUBE.name).ready == 0


def test_who_cancels_between_the_look_and_the_put_is_heeded(broker: Broker, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = request()
    put = Broker.put

    def cancelled_first(self: Broker, *words: Any, **more: Any) -> int:
        mark.put(self, cancel_tube(wanted.build_id), mark.mark("johnny"))
        return put(self, *words, **more)

    monkeypatch.setattr(Broker, "put", cancelled_first)
    job, forbidden = mark.put_unless_cancelled(broker, TUBE, wanted, priority=7)
    assert (job, forbidden and forbidden.by) == (0, "johnny")
    assert broker.stats(TUBE.name).ready == 0

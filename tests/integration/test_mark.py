# SPDX-License-Identifier: Apache-2.0
"""Control flags on a real beanstalkd: everybody sees them, also after its restart, and requeued requests obey."""

from __future__ import annotations

from typing import Any

import pytest

from reimzul.core import control
from reimzul.core.beanstalk import (
    PRIORITY,
    Broker,
    arch_tube,
    build_of_cancel_tube,
    cancel_tube,
    drain_tube,
    is_control_tube,
)
from reimzul.core.control import QUARANTINED, ControlFlag
from reimzul.core.message import BuildRequest, new_build_id
from tests.conftest import Beanstalkd

TUBE = arch_tube("x86_64")


def request() -> BuildRequest:
    return BuildRequest(
        srpm="time-1.7-45.el7.src.rpm", arch="x86_64", target="c7.1708.u.x86_64", disttag=".el7", submitter="johnny",
        build_id=new_build_id(), timestamp="20261122120000",
    )  # fmt: skip


def test_a_mark_is_read_by_all_and_stays(broker: Broker, beanstalkd: Beanstalkd) -> None:
    build_id = new_build_id()
    assert control.cancel_flag(broker, build_id) is None
    put = control.set_flag(broker, cancel_tube(build_id), control.new_flag("johnny", "wrong disttag"))
    with beanstalkd.connect() as other:
        for _ in range(2):
            assert control.cancel_flag(broker, build_id) == control.cancel_flag(other, build_id) == put
    assert put.cancel_text == "cancelled by johnny: wrong disttag"
    assert control.cancel_flag(broker, new_build_id()) is None


def test_a_second_mark_changes_nothing(broker: Broker) -> None:
    tube = cancel_tube(new_build_id())
    first = control.set_flag(broker, tube, control.new_flag("johnny"))
    assert control.set_flag(broker, tube, control.new_flag("karanbir")) == first
    assert broker.tube_stats(tube).ready == 1


def test_a_mark_is_lifted_with_all_there_are(broker: Broker) -> None:
    tube = drain_tube("b1.example.org")
    for _ in range(3):
        broker.put_raw(tube, b"{}", priority=PRIORITY)
    assert control.clear_flag(broker, tube)
    assert not control.clear_flag(broker, tube)
    assert control.drain_flag(broker, "b1.example.org") is None


@pytest.mark.parametrize("body", [b"", b"\xff", b"[]", b'{"at": "yesterday"}', b'{"by": "x", "colour": 1}'])
def test_a_mark_that_cannot_be_read_is_heeded_too(broker: Broker, body: bytes) -> None:
    broker.put_raw(drain_tube("b1.example.org"), body, priority=0)
    assert control.drain_flag(broker, "b1.example.org")
    control.clear_flag(broker, drain_tube("b1.example.org"))


def test_a_mark_that_says_it_is_none_is_none(broker: Broker) -> None:
    control.set_flag(broker, drain_tube("b1.example.org"), ControlFlag(drain=False))
    assert control.drain_flag(broker, "b1.example.org") is None
    control.clear_flag(broker, drain_tube("b1.example.org"))


def test_a_quarantine_is_known_from_a_drain(broker: Broker) -> None:
    assert not control.new_flag("johnny", "new memory").is_quarantine
    put = control.new_flag("notifier", "7 faults", reason=QUARANTINED)
    assert put.is_quarantine
    assert put.drain_text == "quarantined by notifier: 7 faults"


def test_tubes_of_marks_are_known_by_their_names() -> None:
    build_id = new_build_id()
    assert build_of_cancel_tube(cancel_tube(build_id)) == build_id
    assert [build_of_cancel_tube(name) for name in ("cancel.x", "cancel.", "x86_64", drain_tube("b1"))] == [""] * 4
    assert is_control_tube(cancel_tube(build_id))
    assert is_control_tube(drain_tube("b1"))
    assert not is_control_tube("x86_64")


def test_a_request_is_put_anew_where_nobody_has_cancelled_it(broker: Broker) -> None:
    job, forbidden = control.requeue_unless_cancelled(broker, TUBE, request(), priority=7, delay=60)
    assert forbidden is None
    assert (broker.job_stats(job).priority, broker.job_stats(job).state) == (7, "delayed")
    broker.delete(job)


def test_a_request_is_not_put_under_a_mark(broker: Broker) -> None:
    wanted = request()
    control.set_flag(broker, cancel_tube(wanted.build_id), control.new_flag("johnny"))
    job, forbidden = control.requeue_unless_cancelled(broker, TUBE, wanted, priority=7)
    assert (job, forbidden and forbidden.by) == (0, "johnny")
    assert broker.tube_stats(TUBE.name).ready == 0


def test_who_cancels_between_the_look_and_the_put_is_heeded(broker: Broker, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = request()
    put = Broker.put

    def cancelled_first(self: Broker, *words: Any, **more: Any) -> int:
        control.set_flag(self, cancel_tube(wanted.build_id), control.new_flag("johnny"))
        return put(self, *words, **more)

    monkeypatch.setattr(Broker, "put", cancelled_first)
    job, forbidden = control.requeue_unless_cancelled(broker, TUBE, wanted, priority=7)
    assert (job, forbidden and forbidden.by) == (0, "johnny")
    assert broker.tube_stats(TUBE.name).ready == 0

# SPDX-License-Identifier: Apache-2.0
"""Cancels that were left half-done, and marks that nobody needs any more."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import attr
import pytest

from reimzul.core import control
from reimzul.core.beanstalk import NOTIFY, PRIORITY, Broker, arch_tube, cancel_tube
from reimzul.core.message import BuildEvent, BuildRequest, Status, decode_event, event_for, new_build_id
from reimzul.history.result_rules import news_kind
from reimzul.notifier import housekeeping as module
from reimzul.notifier.housekeeping import CancelReaper
from reimzul.notifier.outbox import Outbox
from tests.conftest import Beanstalkd
from tests.events import ATTEMPT

TUBE = arch_tube("x86_64")


@pytest.fixture
def outbox(tmp_path: Path) -> Iterator[Outbox]:
    opened = Outbox(tmp_path / "ledger.sqlite")
    yield opened
    opened.close()


@pytest.fixture
def reaper(outbox: Outbox, monkeypatch: pytest.MonkeyPatch) -> CancelReaper:
    """One that comes round whenever it is asked, to marks that were put just now."""
    monkeypatch.setattr(module, "ROUND_SECONDS", 0.0)
    return CancelReaper(outbox, grace=0)


def request() -> BuildRequest:
    return BuildRequest(
        srpm="time-1.7-45.el7.src.rpm", arch="x86_64", target="c7.1708.u.x86_64", disttag=".el7", submitter="johnny",
        build_id=new_build_id(), timestamp="20261122120000",
    )  # fmt: skip


def queue_request(broker: Broker, outbox: Outbox, wanted: BuildRequest) -> int:
    """Put a request, and have the notifier accept its event."""
    job = broker.put(TUBE, wanted, priority=PRIORITY)
    accept_events(outbox, event_for(wanted, Status.QUEUED, tube=TUBE.name, job=job))
    return job


def accept_events(outbox: Outbox, *events: BuildEvent) -> None:
    outbox.accept(events, lambda _: ["log"])


def take_announcements(broker: Broker) -> list[tuple[str, str]]:
    """Take the messages in `notify`: status and build of each."""
    broker.watch([NOTIFY.name])
    said = []
    while claim := broker.reserve({NOTIFY.name: NOTIFY}, 0):
        assert isinstance(claim.message, BuildEvent)
        said.append((claim.message.status, claim.message.build_id))
        claim.delete()
    return said


def cancel(broker: Broker, wanted: BuildRequest) -> None:
    control.set_flag(broker, cancel_tube(wanted.build_id), control.new_flag("johnny"))


def test_a_job_that_waits_under_a_mark_is_deleted_and_said_to_be_cancelled(
    broker: Broker, outbox: Outbox, reaper: CancelReaper
) -> None:
    wanted, other = request(), request()
    queue_request(broker, outbox, wanted)
    queue_request(broker, outbox, other)
    cancel(broker, wanted)
    reaper.run_if_due(broker)
    assert broker.tube_stats(TUBE.name).ready == 1, "the other's"
    assert take_announcements(broker) == [("Cancelled", wanted.build_id)]
    assert control.cancel_flag(broker, wanted.build_id)


def test_a_job_that_a_worker_has_is_the_workers(
    broker: Broker, outbox: Outbox, reaper: CancelReaper, beanstalkd: Beanstalkd
) -> None:
    wanted = request()
    queue_request(broker, outbox, wanted)
    with beanstalkd.connect() as worker:
        worker.watch([TUBE.name])
        assert worker.reserve({TUBE.name: TUBE}, 1)
        cancel(broker, wanted)
        reaper.run_if_due(broker)
        assert take_announcements(broker) == []
        assert broker.tube_stats(TUBE.name).reserved == 1


def test_who_cancelled_and_died_before_saying_so_is_spoken_for(
    broker: Broker, outbox: Outbox, reaper: CancelReaper
) -> None:
    wanted = request()
    job = queue_request(broker, outbox, wanted)
    cancel(broker, wanted)
    broker.delete(job)
    reaper.run_if_due(broker)
    assert take_announcements(broker) == [("Cancelled", wanted.build_id)]
    accept_events(outbox, event_for(wanted, Status.CANCELLED))
    reaper.run_if_due(broker)
    assert take_announcements(broker) == [], "it is known by now"


def test_an_arch_that_follows_another_is_cancelled_with_it(
    broker: Broker, outbox: Outbox, reaper: CancelReaper
) -> None:
    """It had begun when its worker lost the job: nobody else announces how it ended."""
    wanted = request()
    queue_request(broker, outbox, wanted)
    accept_events(
        outbox, *(event_for(wanted, Status.BUILDING, arch=arch, attempt=ATTEMPT) for arch in ("x86_64", "i386"))
    )
    cancel(broker, wanted)
    reaper.run_if_due(broker)
    broker.watch([NOTIFY.name])
    claims = [broker.reserve({NOTIFY.name: NOTIFY}, 0) for _ in range(2)]
    events = [claim.message for claim in claims if claim and isinstance(claim.message, BuildEvent)]
    assert [(each.status, each.arch) for each in events] == [("Cancelled", "i386"), ("Cancelled", "x86_64")]
    accept_events(outbox, *events)
    reaper.run_if_due(broker)
    assert take_announcements(broker) == [], "it is known by now"


def test_an_arch_is_cancelled_though_the_one_that_follows_it_has_its_result(
    broker: Broker, outbox: Outbox, reaper: CancelReaper
) -> None:
    wanted = request()
    queue_request(broker, outbox, wanted)
    accept_events(outbox, event_for(wanted, Status.FAILED, arch="i386"))
    cancel(broker, wanted)
    reaper.run_if_due(broker)
    assert broker.tube_stats(TUBE.name).ready == 0
    assert take_announcements(broker) == [("Cancelled", wanted.build_id)]


def test_a_number_that_is_another_builds_by_now_is_left_alone(
    broker: Broker, outbox: Outbox, reaper: CancelReaper
) -> None:
    wanted, other = request(), request()
    job = broker.put(TUBE, other, priority=PRIORITY)
    accept_events(outbox, event_for(wanted, Status.QUEUED, tube=TUBE.name, job=job))
    cancel(broker, wanted)
    reaper.run_if_due(broker)
    assert broker.tube_stats(TUBE.name).ready == 1


def test_the_job_it_was_put_again_as_is_found(broker: Broker, outbox: Outbox, reaper: CancelReaper) -> None:
    wanted = request()
    first = queue_request(broker, outbox, wanted)
    broker.delete(first)
    queue_request(broker, outbox, wanted.with_failed_attempt("b1.example.org", "no space left"))
    cancel(broker, wanted)
    reaper.run_if_due(broker)
    assert broker.tube_stats(TUBE.name).ready == 0
    assert take_announcements(broker) == [("Cancelled", wanted.build_id)]


@pytest.mark.parametrize("final", ["Cancelled", "Published", "Failed"])
def test_a_mark_goes_some_time_after_its_build_is_over(
    broker: Broker, outbox: Outbox, reaper: CancelReaper, monkeypatch: pytest.MonkeyPatch, final: str
) -> None:
    wanted = request()
    cancel(broker, wanted)
    accept_events(outbox, event_for(wanted, final))
    reaper.run_if_due(broker)
    assert control.cancel_flag(broker, wanted.build_id), "a worker that lost its link may be at it still"
    monkeypatch.setattr(module, "KEEP_FLAG_SECONDS", -1)
    reaper.run_if_due(broker)
    assert control.cancel_flag(broker, wanted.build_id) is None


def test_a_mark_that_was_put_just_now_is_left_to_those_it_is_for(broker: Broker, outbox: Outbox) -> None:
    wanted = request()
    queue_request(broker, outbox, wanted)
    cancel(broker, wanted)
    CancelReaper(outbox).run_if_due(broker)
    assert broker.tube_stats(TUBE.name).ready == 1


def test_it_comes_round_now_and_then(broker: Broker, outbox: Outbox) -> None:
    wanted = request()
    queue_request(broker, outbox, wanted)
    often = CancelReaper(outbox, grace=0)
    often.run_if_due(broker)
    cancel(broker, wanted)
    often.run_if_due(broker)
    assert broker.tube_stats(TUBE.name).ready == 1


def test_a_held_job_of_a_worker_that_was_killed_before_it_saw_the_mark_is_deleted(
    broker: Broker, outbox: Outbox, reaper: CancelReaper
) -> None:
    wanted = request()
    job = queue_request(broker, outbox, wanted)
    control.hold_job(broker, TUBE, job)
    where = {"tube": TUBE.name, "job": job, "held": True, "missing": ("b-devel",)}
    accept_events(outbox, event_for(wanted, Status.QUEUED, attempt=ATTEMPT, **where))
    cancel(broker, wanted)
    reaper.run_if_due(broker)
    assert broker.tube_stats(TUBE.name).delayed == 0
    found = broker.first_ready("notify")
    assert found
    cancelled = decode_event(found[1])
    assert isinstance(cancelled, BuildEvent)
    assert (cancelled.held, cancelled.missing) == (None, ())
    assert take_announcements(broker) == [("Cancelled", wanted.build_id)]
    assert news_kind(cancelled) == "Cancelled", "a worker's is the same news"
    assert news_kind(attr.evolve(cancelled, held=True)) == "Cancelled"

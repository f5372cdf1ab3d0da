# SPDX-License-Identifier: Apache-2.0
"""What the notifier passes on to the tube `batch`, and how soon."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from reimzul.core.batch_message import decode_batch_message
from reimzul.core.beanstalk import BATCH, BATCH_RESULT, Broker
from reimzul.core.message import BuildEvent, Refusal
from reimzul.core.settings import BeanstalkdSettings
from reimzul.notifier import daemon
from reimzul.notifier.daemon import Notifier
from reimzul.notifier.housekeeping import HeartbeatIntake
from reimzul.notifier.outbox import Outbox
from reimzul.notifier.sinks.batch import BatchSink, shorten
from tests.conftest import Beanstalkd
from tests.events import event, refusal
from tests.notifier import Running
from tests.waiting import until


@pytest.fixture
def notifier(tmp_path: Path, beanstalkd: Beanstalkd, broker: Broker) -> Iterator[Running]:
    running = Running(tmp_path, beanstalkd)
    running.settings["batch"] = {"enabled": "true"}
    running.start()
    yield running
    running.signal(signal.SIGKILL)


def passed_on(broker: Broker) -> list[BuildEvent | Refusal]:
    """Take what is in `batch`."""
    found: list[BuildEvent | Refusal] = []
    while claim := broker.reserve({BATCH.name: BATCH}, 0):
        message = decode_batch_message(claim.body)
        assert isinstance(message, (BuildEvent, Refusal))
        assert claim.stats.priority == BATCH_RESULT
        found.append(message)
        claim.delete()
    return found


def test_members_events_and_all_results_are_passed_on_once(notifier: Running, broker: Broker) -> None:
    member = {"batch": "5f0c12ab", "job": 17}
    # times by a right clock: those of a wrong one are corrected by each job's age, and tell held and held again apart
    now = time.time()
    story: list[BuildEvent | Refusal] = [
        event("Queued", 1, held=True, at=now - 2, **member),
        event("Queued", 1, held=False, at=now - 1, **member),
        event("Building", 1, **member),
        event("Queued", 2, job=18),
        event("Failed", 2, build_log="x" * 20_000),
        event("Published", 1, **member),
        refusal(3),
        refusal(4, tube="notify"),
    ]
    for each in [*story, *story]:
        broker.announce(each)
    until(notifier.is_done(broker), 20, "all is delivered")
    broker.watch([BATCH.name])
    found = passed_on(broker)
    assert sorted((each.status, str(getattr(each, "held", None))) for each in found) == [
        ("Building", "None"), ("Failed", "None"), ("Published", "None"), ("Queued", "False"), ("Queued", "True"),
        ("Refused", "None"), ("Success", "None"),
    ]  # fmt: skip
    assert not any(getattr(each, "build_log", "") for each in found)


def test_what_is_passed_on_is_small() -> None:
    long = event(
        "Failed", 1, build_log="x" * 9_000, root_log="x" * 9_000, first_error="x" * 4_000, batch="5f0c12ab",
        reason="%build failed: " + "x" * 60, error_line="y" * 100,
        place="repo/c9s.x86_64/hello/20261130000000/1-1.x86_64",
    )  # fmt: skip
    assert len(shorten(long).encode()) < 1000


@pytest.mark.parametrize(("batch", "is_urgent"), [("5f0c12ab", True), ("", False)])
def test_an_event_for_batch_waits_for_no_commit(
    tmp_path: Path,
    beanstalkd: Beanstalkd,
    broker: Broker,
    monkeypatch: pytest.MonkeyPatch,
    batch: str,
    is_urgent: bool,
) -> None:
    sink = BatchSink(BeanstalkdSettings(port=beanstalkd.port), ["x86_64"])
    presence = HeartbeatIntake(tmp_path / "presence.sqlite")
    notifier = Notifier(beanstalkd.connect, "ctl", Outbox(tmp_path / "outbox.sqlite"), [sink], presence, [], None)
    with beanstalkd.connect() as own:
        notifier.watch_tubes(own)
        broker.announce(event("Success", 1))
        notifier.settle_all(own, notifier.reserve_jobs(own))
        waits: list[float | None] = []
        monkeypatch.setattr(daemon, "COMMIT_SECONDS", 1000.0)
        monkeypatch.setattr(notifier.stop.now, "wait", waits.append)
        broker.announce(event("Building", 2, batch=batch))
        (claim,) = notifier.reserve_jobs(own)
        assert bool(waits) is not is_urgent
        notifier.settle_all(own, [claim])
    notifier.close()

# SPDX-License-Identifier: Apache-2.0
"""The threads that deliver to the sinks: order, failures, what is deferred, and the end."""

from __future__ import annotations

import logging
import sqlite3
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from reimzul.core.message import BuildEvent
from reimzul.core.pending import read_pending
from reimzul.core.settings import Settings
from reimzul.history.result_rules import Notification
from reimzul.notifier import delivery, outbox
from reimzul.notifier.delivery import Sink, SinkPool, SinkUnavailable
from reimzul.notifier.outbox import Outbox
from tests.events import event
from tests.waiting import until


class Listener(Sink):
    """A sink that does as the test wants."""

    name = "listener"

    @classmethod
    def from_settings(cls, settings: Settings) -> Listener:
        """It is always switched on."""
        return cls()

    def __init__(self, name: str = "listener") -> None:
        self.name = name  # type: ignore[misc]
        self.heard: list[str] = []  #: timestamps
        self.doubts: list[bool] = []
        self.asked: list[float] = []
        self.open = threading.Event()
        self.open.set()
        self.away = False
        self.poison = "poison"
        self.pause = 0.0

    def deliver(self, notices: Sequence[Notification]) -> Iterator[Notification]:
        """Hear them."""
        self.asked.append(time.monotonic())
        self.open.wait(30)
        for each in notices:
            if self.away:
                raise SinkUnavailable("not at home")
            assert isinstance(each.event, BuildEvent)
            if each.event.reason == self.poison:
                raise RuntimeError("a bug")
            if each.event.reason == "greylisted" and not each.maybe_sent:
                continue
            time.sleep(self.pause)
            self.heard.append(each.event.timestamp[-4:])
            self.doubts.append(each.maybe_sent)
            yield each


class Farm:
    """An outbox and the threads of its sinks."""

    def __init__(self, path: Path, *sinks: Sink) -> None:
        self.outbox = Outbox(path)
        self.pool = SinkPool(sinks, path)

    def announce(self, *events: BuildEvent) -> None:
        self.pool.enqueue(self.outbox.accept(events, self.pool.sinks_for))

    def is_done(self) -> bool:
        return not read_pending(self.outbox.path)

    def close(self) -> None:
        self.pool.close()
        self.outbox.close()


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """Shorter times than a farm's."""
    monkeypatch.setattr(delivery, "PAUSE_SECONDS", 0.2)
    monkeypatch.setattr(delivery, "BATCH_SECONDS", 0.02)
    caplog.set_level(logging.INFO)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "outbox.sqlite"


def numbers(first: int, last: int) -> list[str]:
    return [each.timestamp[-4:] for each in successes(first, last)]


def successes(first: int, last: int) -> list[BuildEvent]:
    return [event("Success", number) for number in range(first, last)]


def test_a_sink_that_hangs_delays_itself_alone(path: Path) -> None:
    good, bad = Listener("good"), Listener("bad")
    bad.open.clear()
    farm = Farm(path, good, bad)
    farm.announce(*successes(0, 2))
    until(lambda: len(good.heard) == 2, 5, "one has them")
    farm.announce(*successes(2, 4))
    until(lambda: len(good.heard) == 4, 5, "and those that follow")
    until(lambda: [(each.sink, each.count) for each in read_pending(path)] == [("bad", 4)], 5, "one lacks all")
    bad.open.set()
    until(farm.is_done, 5, "the other has them too")
    assert bad.heard == good.heard == numbers(0, 4)
    farm.close()


def test_a_sink_that_is_away_is_asked_every_time_after_the_same_pause(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    sink = Listener()
    sink.away = True
    farm = Farm(path, sink)
    farm.announce(*successes(0, 3))
    until(lambda: len(sink.asked) == 6, 5, "it is asked again and again")
    assert sink.asked[5] - sink.asked[4] < 0.4, "the pause does not grow"
    assert caplog.text.count("listener takes no events now (3 pending): not at home") == 1, "once a minute"
    farm.announce(*successes(3, 5))
    sink.away = False
    until(farm.is_done, 5, "it has all")
    assert sink.heard == numbers(0, 5)
    assert sink.doubts == [True] * 3 + [False] * 2
    until(lambda: "listener takes events again" in caplog.text, 5, "that is logged")
    farm.close()


def test_more_than_fits_into_memory_is_delivered_in_order(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(delivery, "BUFFER_LIMIT", 30)
    monkeypatch.setattr(delivery, "PAGE", 20)
    monkeypatch.setattr(outbox, "PAGE", 20)
    sink = Listener()
    sink.open.clear()
    farm = Farm(path, sink)
    for first in range(0, 150, 10):
        farm.announce(*successes(first, first + 10))
    sink.open.set()
    sink.pause = 0.002
    for first in range(150, 300, 10):
        farm.announce(*successes(first, first + 10))
        time.sleep(0.01)
    until(farm.is_done, 10, "it has all")
    assert sink.heard == numbers(0, 300)
    farm.close()


def test_a_start_delivers_what_is_pending_before_what_is_new(path: Path) -> None:
    sink = Listener()
    sink.away = True
    farm = Farm(path, sink)
    farm.announce(*successes(0, 3))
    until(lambda: sink.asked, 5, "it was asked")
    farm.close()
    sink = Listener()
    farm = Farm(path, sink)
    farm.announce(*successes(3, 5))
    until(farm.is_done, 5, "it has all")
    assert sink.heard == numbers(0, 5)
    assert sink.doubts[:3] == [True] * 3
    farm.close()


def test_one_event_that_a_sink_cannot_take_stops_no_other(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    sink = Listener()
    farm = Farm(path, sink)
    farm.announce(event("Success", 1), event("Failed", 2, reason="poison"), event("Success", 3))
    until(lambda: len(sink.heard) == 2, 5, "it has the others")
    assert sink.heard == ["0001", "0003"]
    assert "listener cannot take Failed" in caplog.text
    until(lambda: all(each.next_try for each in read_pending(path)), 5, "the one is deferred")
    farm.announce(event("Success", 4))
    until(lambda: len(sink.heard) == 3, 5, "it goes on")
    sink.poison = ""
    until(farm.is_done, 10, "the one is tried again")
    assert sink.heard[-1] == "0002"
    farm.close()


def test_what_a_sink_puts_off_is_tried_later_and_holds_up_nothing(path: Path) -> None:
    sink = Listener()
    farm = Farm(path, sink)
    began = time.monotonic()
    farm.announce(event("Failed", 1, reason="greylisted"), event("Success", 2))
    until(farm.is_done, 10, "it has both")
    assert sink.heard == ["0002", "0001"]
    assert 1.5 < time.monotonic() - began < 6
    farm.close()


@pytest.mark.usefixtures("impatient")
def test_nobody_is_asked_while_that_cannot_be_written(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    sink = Listener()
    farm = Farm(path, sink)
    until(lambda: not farm.pool._threads["listener"]._is_behind, 5, "it has looked for old ones")
    new = farm.outbox.accept(successes(0, 3), farm.pool.sinks_for)
    lock = sqlite3.connect(path, isolation_level=None)
    lock.execute("BEGIN IMMEDIATE")
    farm.pool.enqueue(new)
    until(lambda: "listener takes no events now" in caplog.text, 15, "it has tried")
    assert sink.asked == []
    lock.execute("ROLLBACK")
    lock.close()
    until(farm.is_done, 15, "it has all")
    assert sink.heard == numbers(0, 3)
    assert sink.doubts == [False] * 3
    farm.close()


@pytest.mark.usefixtures("impatient")
def test_what_was_delivered_is_not_delivered_again_though_that_could_not_be_written(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    sink = Listener()
    sink.open.clear()
    farm = Farm(path, sink)
    farm.announce(*successes(0, 3))
    until(lambda: sink.asked, 5, "it is asked")
    lock = sqlite3.connect(path, isolation_level=None)
    lock.execute("BEGIN IMMEDIATE")
    sink.open.set()
    until(lambda: sink.heard, 5, "it has some")
    until(lambda: "listener takes no events now" in caplog.text, 15, "it could not record them")
    lock.execute("ROLLBACK")
    lock.close()
    until(farm.is_done, 15, "all is recorded")
    assert sink.heard == numbers(0, 3)
    farm.close()


def test_a_stop_waits_for_what_takes_little_and_for_no_sink_that_hangs(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(delivery, "STOP_SECONDS", 2.0)  # a busy machine
    quick, slow, hanging = Listener("quick"), Listener("slow"), Listener("hanging")
    quick.pause, slow.pause = 0.005, 0.5
    hanging.open.clear()
    farm = Farm(path, quick, slow, hanging)
    farm.announce(*successes(0, 20))
    until(lambda: quick.heard and slow.heard and hanging.asked, 5, "all are at work")
    began = time.monotonic()
    farm.pool.close()
    assert time.monotonic() - began < 5
    lacking = {each.sink: each.count for each in read_pending(path)}
    assert lacking == {"slow": 20 - len(slow.heard), "hanging": 20}
    farm.outbox.close()
    hanging.open.set()


def test_an_urgent_sink_waits_for_no_batch(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(delivery, "BATCH_SECONDS", 600.0)
    sink = Listener()
    sink.is_urgent = True  # type: ignore[misc]
    farm = Farm(path, sink)
    farm.announce(*successes(0, 1))
    until(lambda: len(sink.heard) == 1, 5, "it is delivered at once")
    farm.announce(*successes(1, 2))
    until(lambda: len(sink.heard) == 2, 5, "so is the next")
    farm.close()

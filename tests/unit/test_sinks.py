# SPDX-License-Identifier: Apache-2.0
"""The sinks one by one, and the lanes they are told in."""

from __future__ import annotations

import json
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reimzul.core.config import Settings, parse_settings
from reimzul.core.errors import ConfigError
from reimzul.core.message import BuilderEvent, BuildEvent, Event
from reimzul.history.result_rules import Notification, news_kind
from reimzul.notifier import lanes
from reimzul.notifier.daemon import LONGEST_PAUSE, pause
from reimzul.notifier.sinks import SINKS, wanted
from reimzul.notifier.sinks.base import Sink, SinkAway
from reimzul.notifier.sinks.logfile import LogSink, line_of
from reimzul.notifier.sinks.mqtt import messages
from tests.events import build_id, event, refusal
from tests.waiting import until


def notice(told: Event, *, doubtful: bool = False) -> Notification:
    """An event on its way."""
    return Notification(told, news_kind(told), doubtful)


def all_told(sink: Sink, *notices: Notification) -> list[Notification]:
    """What the sink takes of these."""
    return list(sink.tell(notices))


# --- the table


def test_the_table_knows_each_sink_by_its_name() -> None:
    assert list(SINKS) == ["log", "history", "mail", "mqtt", "originals"]
    assert [sink.name for sink in wanted(Settings())] == ["log", "history"], "mail and MQTT are off unless they are set"
    on = parse_settings("[mail]\nnotifications = true\n[mqtt]\nnotifications = true\nca_cert = /etc/ca.pem\n", "here")
    assert [sink.name for sink in wanted(on)] == ["log", "history", "mail", "mqtt"]


# --- log


@pytest.fixture
def log(tmp_path: Path) -> Iterator[LogSink]:
    """One into a folder that is not there yet."""
    sink = LogSink(tmp_path / "reimzul" / "reimzul.log")
    yield sink
    sink.close()


@pytest.fixture
def lines(tmp_path: Path) -> Callable[[], list[str]]:
    """What is in it."""
    return lambda: (tmp_path / "reimzul" / "reimzul.log").read_text().splitlines()


def test_a_line_has_what_the_originals_had() -> None:
    told = event("Success", scratch=True)
    assert line_of(told) == (
        f"[{time.asctime(time.localtime(told.at))}] Build job SRPM time-1.7-45.el7.src.rpm (20251122000001) "
        "for arch x86_64 builder builder1.example.org status Success [1.7-45.el7] (Scratch job: True) "
        "submitted by johnny"
    )


def test_a_refusal_has_a_line_of_its_own() -> None:
    line = line_of(refusal(7, host="builder1.example.org", begins="{\n\x1b[2J" + "x" * 900))
    assert "Refused job 7 of tube x86_64 by builder1.example.org: not JSON" in line
    assert line.isprintable()
    assert len(line) < 400


@given(st.text(max_size=200), st.text(max_size=200))
def test_no_field_breaks_a_line(reason: str, begins: str) -> None:
    line = line_of(refusal(reason=reason, begins=begins))
    assert len(line.splitlines()) == 1


def test_lines_are_appended_in_the_order_of_events(log: LogSink, lines: Callable[[], list[str]]) -> None:
    notices = [notice(event("Queued")), notice(event("Success"))]
    assert all_told(log, *notices) == notices
    all_told(log, notice(event("Published")))
    assert [line.split("status ")[1].split()[0] for line in lines()] == ["Queued", "Success", "Published"]


def test_a_rotated_log_is_left_for_the_new_one(log: LogSink, lines: Callable[[], list[str]], tmp_path: Path) -> None:
    all_told(log, notice(event("Queued")))
    (tmp_path / "reimzul" / "reimzul.log").rename(tmp_path / "reimzul" / "reimzul.log.1")
    all_told(log, notice(event("Success")))
    assert len(lines()) == 1
    (tmp_path / "reimzul" / "reimzul.log").unlink()
    (tmp_path / "reimzul" / "reimzul.log").touch()
    all_told(log, notice(event("Published")))
    assert [line.split("status ")[1].split()[0] for line in lines()] == ["Published"]


def test_what_was_written_before_a_crash_is_not_written_again(
    log: LogSink, lines: Callable[[], list[str]], tmp_path: Path
) -> None:
    written, missing = event("Queued"), event("Success")
    all_told(log, notice(written))
    log.close()
    path = tmp_path / "reimzul" / "reimzul.log"
    path.write_text(path.read_text() + line_of(missing)[:30])  # a power cut left a part of the next
    doubtful = [notice(written, doubtful=True), notice(missing, doubtful=True)]
    assert all_told(LogSink(path), *doubtful) == doubtful
    assert [line for line in lines() if "status" in line] == [line_of(written), line_of(missing)]


def test_a_log_that_cannot_be_written_is_away(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    with pytest.raises(SinkAway, match="directory"):
        all_told(LogSink(tmp_path / "folder"), notice(event("Success")))


def test_a_full_disk_leaves_no_part_of_a_line(log: LogSink, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import os

    all_told(log, notice(event("Queued")))
    path = tmp_path / "reimzul" / "reimzul.log"
    before, write = path.read_text(), os.write
    monkeypatch.setattr(os, "write", lambda file, block: write(file, block[:17]))
    with pytest.raises(SinkAway, match="full"):
        all_told(log, notice(event("Success")))
    assert path.read_text() == before


# --- mqtt


def test_a_result_is_published_with_the_originals_keys_and_ours() -> None:
    told = event("Failed", reason="it does not build")
    (events, everything), (results, result) = messages("reimzul", notice(told))
    assert (events, results) == ("reimzul/builds/events", "reimzul/builds/results")
    said = json.loads(result)
    assert {"srpm", "status", "target", "arch", "timestamp", "submitter"} <= said.keys()
    assert (said["schema"], said["status"], said["reason"]) == (1, "Failed", "it does not build")
    assert said["id"] == json.loads(everything)["id"] == f"{build_id(1)}.x86_64/Failed"


@pytest.mark.parametrize(
    "told",
    [event("Queued"), event("Building"), event("Published"), event("Success", scratch=True), refusal()],
    ids=lambda told: told.status,
)
def test_everything_else_is_an_event_and_no_result(told: Event) -> None:
    ((topic, payload),) = messages("farm", notice(told))
    assert topic == "farm/builds/events"
    assert json.loads(payload)["status"] == told.status


def test_what_is_owed_is_nobodys_business() -> None:
    (_, payload), *_ = messages("farm", notice(event("Queued", owed={"mqtt": 3}, extra={"colour": "red"})))
    assert "owed" not in json.loads(payload)
    assert json.loads(payload)["colour"] == "red"


# --- lanes


class Listener(Sink):
    """A sink that does as it is told to."""

    name = "listener"

    @classmethod
    def of(cls, settings: Settings) -> Listener:
        """Always there."""
        return cls()

    def __init__(self, name: str = "listener") -> None:
        self.name = name  # type: ignore[misc]
        self.heard: list[str] = []
        self.open = threading.Event()
        self.open.set()
        self.away = False
        self.pause = 0.0
        self.count = 0

    def tell(self, notices: Sequence[Notification]) -> Iterator[Notification]:
        """Hear them."""
        self.open.wait(30)
        for each in notices:
            if self.away:
                raise SinkAway("not at home")
            if isinstance(each.event, BuildEvent) and each.event.reason == "poison":
                raise RuntimeError("a bug")
            time.sleep(self.pause)
            self.heard.append(each.word)
            self.count += 1
            yield each


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shorter times than a farm's."""
    monkeypatch.setattr(lanes, "PATIENCE", 0.3)
    monkeypatch.setattr(lanes, "REST", 0.2)


def test_a_sink_that_hangs_delays_itself_alone() -> None:
    good, bad = Listener("good"), Listener("bad")
    bad.open.clear()
    both = lanes.Lanes([good, bad], threading.Event())
    first, second = [notice(event("Queued"))], [notice(event("Success"))]
    assert both.tell({"good": first, "bad": first}) == {"good": first, "bad": []}
    began = time.monotonic()
    assert both.tell({"good": second, "bad": second})["good"] == second
    assert time.monotonic() - began < 0.25, "one that hangs is not waited for again"
    bad.open.set()
    assert until(both.late, 5, "what it took late is known") == {"bad": first}
    assert bad.heard == ["Queued"], "the second was never handed to it: it is owed"
    assert both.tell({"bad": second})["bad"] == second
    both.close()


def settled(all_lanes: lanes.Lanes, last: Notification) -> Callable[[], bool]:
    """Whether nothing is in hand any more, up to this one."""

    def look() -> bool:
        all_lanes.late()
        return not all_lanes.has("listener", last.name)

    return look


def test_a_sink_that_is_slow_but_moves_has_more_in_hand() -> None:
    sink = Listener()
    sink.pause = 0.1
    alone = lanes.Lanes([sink], threading.Event())
    batches = [[notice(event("Success", number + 10 * batch)) for number in range(10)] for batch in range(3)]
    assert alone.tell({"listener": batches[0]})["listener"] == [], "half a second's work is not waited for"
    for batch in batches[1:]:
        alone.tell({"listener": batch})
    assert alone.has("listener", batches[2][9].name), "all three were taken, though the first was not yet done"
    alone.tell({"listener": batches[1]})  # what is in hand stays so: handing it over again tells it no second time
    until(settled(alone, batches[2][9]), 10, "all is told")
    assert sink.count == 30, "each once"
    alone.close()


def test_what_was_taken_late_is_not_told_again_by_the_copy_that_was_owed() -> None:
    sink = Listener()
    sink.open.clear()
    alone = lanes.Lanes([sink], threading.Event())
    news = [notice(event("Success"))]
    assert alone.tell({"listener": news}) == {"listener": []}
    sink.open.set()
    until(lambda: sink.heard, 5, "it has taken it")
    time.sleep(0.05)  # and said so; nobody has collected that when the copy comes
    assert alone.tell({"listener": news}) == {"listener": news}
    assert sink.heard == ["Success"]
    alone.close()


def test_what_waits_behind_a_failure_is_not_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    sink = Listener()
    sink.pause = 0.05
    alone = lanes.Lanes([sink], threading.Event())
    batches = [[notice(event("Success", number + 10 * batch)) for number in range(10)] for batch in range(2)]
    for batch in batches:
        alone.tell({"listener": batch})
    sink.away = True
    until(settled(alone, batches[1][0]), 5, "all are given back")
    assert sink.count < 20
    assert 0 < alone.rest(["listener"]) <= 0.2, "it failed once, not twice"
    alone.close()


def test_a_sink_that_is_away_rests_a_little_longer_each_time() -> None:
    sink = Listener()
    sink.away = True
    alone = lanes.Lanes([sink], threading.Event())
    news = [notice(event("Queued"))]
    alone.tell({"listener": news})
    rest = alone.rest(["listener"])
    assert 0 < rest <= 0.2
    until(lambda: not alone.rest(["listener"]), 5, "it has rested")
    alone.tell({"listener": news})
    assert 0.2 < alone.rest(["listener"]) <= 0.4
    sink.away = False
    until(lambda: not alone.rest(["listener"]), 5, "it has rested")
    assert alone.tell({"listener": news}) == {"listener": news}
    alone.close()


def test_one_event_that_a_sink_cannot_take_stops_no_other(caplog: pytest.LogCaptureFixture) -> None:
    sink = Listener()
    alone = lanes.Lanes([sink], threading.Event())
    fine, poison, after = notice(event("Queued")), notice(event("Failed", reason="poison")), notice(event("Success"))
    assert alone.tell({"listener": [fine, poison, after]}) == {"listener": [fine, after]}
    assert sink.heard == ["Queued", "Success"]
    assert "cannot be told Failed" in caplog.text
    alone.close()


def test_told_to_stop_nobody_is_waited_for_long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lanes, "PATIENCE", 60)
    sink, stop = Listener(), threading.Event()
    sink.open.clear()
    alone = lanes.Lanes([sink], stop)
    stop.set()
    began = time.monotonic()
    assert alone.tell({"listener": [notice(event("Queued"))]}) == {"listener": []}
    assert time.monotonic() - began < 1
    sink.open.set()
    alone.close()


def test_pauses_grow_from_seconds_to_minutes() -> None:
    assert [pause(tries, 0.0) for tries in (1, 2, 3, 8, 9, 1_000_000)] == [2, 4, 8, 256, LONGEST_PAUSE, LONGEST_PAUSE]
    assert pause(1, 59.5) == 60, "not before the sink is asked again"


# --- what is not installed


def test_a_library_that_is_missing_is_named_with_the_extra_that_brings_it(monkeypatch: pytest.MonkeyPatch) -> None:
    import reimzul.history
    import reimzul.notifier.sinks

    for package, module, library in (
        (reimzul.notifier.sinks, "mqtt_link", "paho.mqtt.client"),
        (reimzul.history, "mongo", "pymongo"),
    ):
        monkeypatch.delattr(package, module, raising=False)
        monkeypatch.delitem(sys.modules, f"{package.__name__}.{module}", raising=False)
        monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(ConfigError, match=r"\[mqtt\] notifications: paho-mqtt .*reimzul\[controller\]"):
        wanted(parse_settings("[mqtt]\nnotifications = true\nca_cert = /etc/ca.pem\n", "here"))
    with pytest.raises(ConfigError, match=r"\[history\] url: MongoDB needs pymongo.*reimzul\[controller\]"):
        wanted(parse_settings("[history]\nurl = mongodb://localhost/\n", "here"))
    assert len(wanted(Settings())) == 2, "the defaults need neither"


def test_what_becomes_of_a_builder_is_a_line_and_an_event(tmp_path: Path) -> None:
    told = BuilderEvent(builder="b1.example.org", status="Quarantined", reason="6 faults", arches=("x86_64",), at=5.0)
    assert line_of(told).endswith("] Builder b1.example.org status Quarantined: 6 faults")
    ((topic, payload),) = messages("reimzul", notice(told))
    assert topic == "reimzul/builds/events"
    assert json.loads(payload)["builder"] == "b1.example.org"

# SPDX-License-Identifier: Apache-2.0
"""The sinks one by one."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reimzul.core.config import parse_settings
from reimzul.core.errors import ConfigError
from reimzul.core.links import LinkRoots
from reimzul.core.message import BuilderEvent, BuildEvent, Event
from reimzul.core.settings import BeanstalkdSettings, Settings
from reimzul.history.result_rules import Notification, news_kind
from reimzul.notifier.delivery import Sink, SinkUnavailable
from reimzul.notifier.sinks import SINKS, enabled_sinks
from reimzul.notifier.sinks.batch import BatchSink, shorten
from reimzul.notifier.sinks.logfile import LogSink, format_line
from reimzul.notifier.sinks.mqtt import messages
from tests.conftest import free_port
from tests.events import batch_event, build_id, event, refusal
from tests.schemas import check


def notice(told: Event, *, doubtful: bool = False) -> Notification:
    """An event on its way."""
    return Notification(told, news_kind(told), doubtful)


def all_told(sink: Sink, *notices: Notification) -> list[Notification]:
    """What the sink takes of these."""
    return list(sink.deliver(notices))


# --- the table


def test_the_table_knows_each_sink_by_its_name() -> None:
    assert list(SINKS) == ["log", "history", "mail", "mqtt", "batch"]
    assert [sink.name for sink in enabled_sinks(Settings())] == ["log", "history"], (
        "mail and MQTT are off unless they are set"
    )
    switches = "[mail]\nnotifications = true\n[mqtt]\nnotifications = true\nca_cert = /etc/ca.pem\n"
    on = parse_settings(f"{switches}[batch]\nenabled = true\n", "here")
    assert [sink.name for sink in enabled_sinks(on)] == ["log", "history", "mail", "mqtt", "batch"]


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
    text = (
        "Build job SRPM time-1.7-45.el7.src.rpm (20251122000001) for arch x86_64 builder builder1.example.org status "
        "Success [1.7-45.el7] (Scratch job: True) submitted by johnny"
    )
    assert format_line(told) == f"[2025-11-22 08:26:41Z] {text}"
    assert format_line(told, local_time=True) == f"[{time.asctime(time.localtime(told.at))}] {text}"


def test_times_are_local_where_that_is_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "reimzul.log"
    monkeypatch.setenv("TZ", "Asia/Tokyo")
    time.tzset()
    try:
        for text in ("", "local_time = true\n"):
            sink = LogSink.from_settings(parse_settings(f"[logs]\nlogfile = {path}\n{text}", "here"))
            all_told(sink, notice(event("Success")))
        # what a notifier wrote before it was killed is not written again in the other form
        assert all_told(sink, notice(event("Success"), doubtful=True))
    finally:
        monkeypatch.undo()
        time.tzset()
    assert [line.partition("]")[0] for line in path.read_text().splitlines()] == [
        "[2025-11-22 08:26:41Z", "[Sat Nov 22 17:26:41 2025",
    ]  # fmt: skip


def test_a_refusal_has_a_format_line_its_own() -> None:
    line = format_line(refusal(7, host="builder1.example.org", begins="{\n\x1b[2J" + "x" * 900))
    assert "Refused job 7 of tube x86_64 by builder1.example.org: not JSON" in line
    assert line.isprintable()
    assert len(line) < 400


@given(st.text(max_size=200), st.text(max_size=200))
def test_no_field_breaks_a_line(reason: str, begins: str) -> None:
    line = format_line(refusal(reason=reason, begins=begins))
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
    path.write_text(path.read_text() + format_line(missing)[:30])  # a power cut left a part of the next
    doubtful = [notice(written, doubtful=True), notice(missing, doubtful=True)]
    assert all_told(LogSink(path), *doubtful) == doubtful
    assert [line for line in lines() if "status" in line] == [format_line(written), format_line(missing)]


def test_a_log_that_cannot_be_written_is_away(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    with pytest.raises(SinkUnavailable, match="directory"):
        all_told(LogSink(tmp_path / "folder"), notice(event("Success")))


def test_a_full_disk_leaves_no_part_of_a_line(log: LogSink, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import os

    all_told(log, notice(event("Queued")))
    path = tmp_path / "reimzul" / "reimzul.log"
    before, write = path.read_text(), os.write
    monkeypatch.setattr(os, "write", lambda file, block: write(file, block[:17]))
    with pytest.raises(SinkUnavailable, match="full"):
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


def test_a_result_has_its_cause_and_how_it_differs_from_the_previous_one() -> None:
    known: dict[str, Any] = {
        "cause": "5f0c12ab", "cause_text": "%build failed: no", "newly_failing": True, "previous_build": build_id(7),
        "previous_evr": "1.7-44.el7",
    }  # fmt: skip
    (_, everything), (topic, result) = messages("reimzul", notice(event("Failed", cause_version=1, **known)))
    for payload in (json.loads(everything), json.loads(result)):
        assert {name: payload.get(name) for name in known} == known
        assert "fixed" not in payload
    check(topic, json.loads(result))
    _, (_, result) = messages("reimzul", notice(event("Success", fixed=False, previous_build=build_id(7))))
    assert (json.loads(result)["fixed"], "newly_failing" in json.loads(result)) == (False, False)
    _, (topic, result) = messages("reimzul", notice(event("Success")))
    assert json.loads(result).keys().isdisjoint(("newly_failing", "fixed")), "unknown"
    check(topic, json.loads(result))


@pytest.mark.parametrize(
    "told",
    [event("Queued"), event("Building"), event("Published"), event("Success", scratch=True), refusal()],
    ids=lambda told: told.status,
)
def test_everything_else_is_an_event_and_no_result(told: Event) -> None:
    ((topic, payload),) = messages("farm", notice(told))
    assert topic == "farm/builds/events"
    assert json.loads(payload)["status"] == told.status


def test_a_published_link_is_the_public_one() -> None:
    place = "repo/c7.1708.u.x86_64/time/20251122000001/1.7-45.el7.x86_64"
    told = event("Failed", place=place, url=f"http://localhost:11081/bstore/{place}/")
    for root, url in (("http://bstore.example.org/", f"http://bstore.example.org/{place}/"), ("", "")):
        published = [json.loads(payload) for _, payload in messages("reimzul", notice(told), LinkRoots(store=root))]
        assert [(each.get("url", ""), each["place"]) for each in published] == [(url, place), (url, place)]
        assert "localhost" not in json.dumps(published)


def test_with_pages_what_is_published_has_the_link_to_the_builds_page() -> None:
    roots = LinkRoots(pages="http://farm.example.org/")
    for _, payload in messages("reimzul", notice(event("Failed")), roots):
        assert json.loads(payload)["page"] == f"http://farm.example.org/builds/{build_id(1)[:2]}/{build_id(1)}.html"
    for _, payload in messages("reimzul", notice(refusal()), roots):
        assert "page" not in json.loads(payload)


def test_what_is_owed_is_nobodys_business() -> None:
    (_, payload), *_ = messages("farm", notice(event("Queued", owed={"mqtt": 3}, extra={"colour": "red"})))
    assert "owed" not in json.loads(payload)
    assert json.loads(payload)["colour"] == "red"


# --- what is not installed


def test_a_library_that_is_missing_is_named_with_the_extra_that_brings_it(monkeypatch: pytest.MonkeyPatch) -> None:
    import reimzul.core
    import reimzul.history

    for package, module, library in (
        (reimzul.core, "mqtt", "paho.mqtt.client"),
        (reimzul.history, "mongo", "pymongo"),
    ):
        monkeypatch.delattr(package, module, raising=False)
        monkeypatch.delitem(sys.modules, f"{package.__name__}.{module}", raising=False)
        monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(ConfigError, match=r"\[mqtt\] notifications: paho-mqtt .*reimzul\[controller\]"):
        enabled_sinks(parse_settings("[mqtt]\nnotifications = true\nca_cert = /etc/ca.pem\n", "here"))
    with pytest.raises(ConfigError, match=r"\[history\] url: MongoDB needs pymongo.*reimzul\[controller\]"):
        enabled_sinks(parse_settings("[history]\nurl = mongodb://localhost/\n", "here"))
    assert len(enabled_sinks(Settings())) == 2, "the defaults need neither"


def test_what_becomes_of_a_builder_is_a_line_and_an_event(tmp_path: Path) -> None:
    told = BuilderEvent(builder="b1.example.org", status="Quarantined", reason="6 faults", arches=("x86_64",), at=5.0)
    assert format_line(told).endswith("] Builder b1.example.org status Quarantined: 6 faults")
    ((topic, payload),) = messages("reimzul", notice(told))
    assert topic == "reimzul/builds/events"
    assert json.loads(payload)["builder"] == "b1.example.org"


def test_what_concerns_a_batch_is_a_line_and_an_event_on_two_topics() -> None:
    told = batch_event()
    text = "Batch 5f0c12ab for c9s rests: 2 members behind 1 failed (submitted by johnny)"
    assert format_line(told).endswith(f"] Batch 5f0c12ab status Resting: {text}")
    published = dict(messages("reimzul", notice(told)))
    assert list(published) == ["reimzul/builds/events", "reimzul/builds/batches"]
    assert json.loads(published["reimzul/builds/batches"])["counts"] == {"published": 37, "failed": 1, "held": 2}


def test_a_result_names_the_batch_of_its_build() -> None:
    published = dict(messages("reimzul", notice(event("Failed", batch="5f0c12ab"))))
    assert json.loads(published["reimzul/builds/results"])["batch"] == "5f0c12ab"


# --- batch


def batch_sink(port: int = 9) -> BatchSink:
    return BatchSink(BeanstalkdSettings(port=port), ["x86_64", "i386"])


@pytest.mark.parametrize(
    ("told", "is_accepted"),
    [
        (event("Queued", batch="5f0c12ab"), True),
        (event("Building", batch="5f0c12ab"), True),
        (event("Queued", held=True, missing=("b-devel",)), True),
        (event("Queued", held=False), True),
        *((event(status), True) for status in ("Success", "Failed", "Cancelled", "Published", "Rejected")),
        (event("Published", claimed=False), True),
        (event("Published", claimed=True, batch="5f0c12ab"), False),
        (event("Queued"), False),
        (event("Building"), False),
        (event("Override"), False),
        (refusal(tube="i386"), True),
        (refusal(tube="notify"), False),
        (BuilderEvent(status="Quarantined", builder="b1.example.org"), False),
    ],
)
def test_batch_gets_what_it_decides_by(told: Event, is_accepted: bool) -> None:
    assert batch_sink().accepts(told) is is_accepted


def test_what_batch_gets_is_short() -> None:
    place = "repo/c7.1708.u.x86_64/time/20251122000001/1.7-45.el7.x86_64"
    known: dict[str, Any] = {
        "batch": "5f0c12ab", "parent": build_id(2), "place": place, "reason": "%build failed", "job": 17,
        "cause": "5f0c12ab", "cause_text": "%build failed: a.c:1:1: error: no", "cause_version": 1,
        "skipped": {"i386": "a noarch package is built once"},
    }  # fmt: skip
    told = event("Failed", root_log="x" * 8000, build_log="y" * 24000, first_error="z" * 4000, exit_code=1, **known)
    short = shorten(told)
    assert isinstance(short, BuildEvent)
    assert len(short.encode()) < 1000
    assert short.exit_code is None
    assert {name: getattr(short, name) for name in known} == known
    assert (short.key, short.status, short.attempt, short.at) == (told.key, "Failed", told.attempt, told.at)
    waits = shorten(event("Queued", held=True, missing=("b-devel >= 2",), due=2e9, attempt="1763800001-0000000a"))
    assert isinstance(waits, BuildEvent)
    assert (waits.held, waits.missing, waits.due) == (True, ("b-devel >= 2",), 2e9)
    assert shorten(refusal(begins="{" * 1000)) == refusal(begins="")


def test_a_beanstalkd_that_is_away_gets_it_later() -> None:
    sink = batch_sink(port=free_port())
    with pytest.raises(SinkUnavailable, match="beanstalkd at"):
        all_told(sink, notice(event("Success")))
    sink.close()

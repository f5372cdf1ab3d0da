# SPDX-License-Identifier: Apache-2.0
"""reimzul-notifier as a process, on a real beanstalkd, with a real mosquitto behind TLS."""

from __future__ import annotations

import collections
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from reimzul.core.beanstalk import NOTIFY, Broker
from reimzul.core.failure_cause import find_cause
from reimzul.core.message import WorkerHeartbeat
from reimzul.history.workers import WorkerStore
from tests.conftest import Beanstalkd, free_port
from tests.events import build_id, event
from tests.mongo import mongo_or_say_so
from tests.mosquitto import Authority, Mosquitto, Watcher
from tests.notifier import EVENTS, RESULTS, Running, ids, is_taken
from tests.waiting import until


@pytest.fixture
def watcher(tmp_path: Path, mosquitto: Mosquitto) -> Iterator[Watcher]:
    """Somebody who hears all."""
    listening = Watcher(mosquitto, tmp_path)
    yield listening
    listening.close()


@pytest.fixture
def notifier(tmp_path: Path, beanstalkd: Beanstalkd, broker: Broker) -> Iterator[Running]:
    """One that is not started yet."""
    running = Running(tmp_path, beanstalkd)
    yield running
    if running.process and running.process.poll() is None:
        running.signal(signal.SIGKILL)


def test_every_sink_is_told_of_every_event_once(
    notifier: Running, broker: Broker, mosquitto: Mosquitto, watcher: Watcher
) -> None:
    notifier.with_mqtt(mosquitto)
    notifier.start()
    story = [event(status) for status in ("Queued", "Building", "Success", "Published")]
    for told in [*story, event("Failed", 2), event("Failed", 3, scratch=True), *story]:
        broker.announce(told)
    until(lambda: len(watcher.heard(EVENTS)) >= 6, 15, "all is published")
    until(notifier.is_done(broker), 10, "all jobs are done")
    assert len(notifier.lines()) == len(set(notifier.lines())) == 6
    assert sorted(job["status"] for job in notifier.builds()) == ["Failed", "Failed", "Success"]
    assert len(set(ids(watcher.heard(EVENTS)))) == len(watcher.heard(EVENTS)) == 6
    assert [(job["status"], job["timestamp"][-2:]) for job in watcher.heard(RESULTS)] == [
        ("Success", "01"),
        ("Failed", "02"),
    ]


def test_a_failure_is_announced_and_recorded_with_its_cause_and_as_newly_failing(
    notifier: Running, broker: Broker, mosquitto: Mosquitto, watcher: Watcher
) -> None:
    notifier.with_mqtt(mosquitto)
    notifier.start()
    broker.announce(event("Success", 1))
    lie: dict[str, Any] = {"newly_failing": False, "fixed": True, "previous_build": build_id(9)}
    for told in (event("Failed", 2, reason="%build failed", **lie), event("Failed", 3), event("Published", 4)):
        broker.announce(told)
    until(lambda: len(watcher.heard(RESULTS)) >= 4, 15, "all is published")
    until(notifier.is_done(broker), 10, "all jobs are done")
    newly, again, fixed = watcher.heard(RESULTS)[1:4]
    cause = find_cause("%build failed", "")
    assert (newly["cause"], newly["cause_text"]) == (cause.id, cause.text)
    assert (newly["newly_failing"], newly["previous_build"], "fixed" in newly) == (True, build_id(1), False)
    assert (again["newly_failing"], again["previous_build"]) == (False, build_id(2))
    assert (fixed["fixed"], fixed["previous_build"]) == (True, build_id(3))
    records = {each["build_id"]: each for each in notifier.builds()}
    for number, heard in ((2, newly), (3, again), (4, fixed)):
        names = ("cause", "cause_text", "previous_build", "previous_evr")
        assert [records[build_id(number)][name] for name in names] == [heard[name] for name in names]
    assert (records[build_id(2)]["newly_failing"], records[build_id(4)]["fixed"]) == (True, True)
    notifier.signal(signal.SIGKILL)
    notifier.start()
    broker.announce(event("Published", 5))
    until(notifier.is_done(broker), 10, "all jobs are done")
    assert notifier.builds()[0]["fixed"] is False


def test_what_comes_late_changes_nothing(notifier: Running, broker: Broker) -> None:
    notifier.start()
    for told in (event("Success"), event("Published")):
        broker.announce(told)
    until(lambda: len(notifier.lines()) == 2, 10, "both are logged")
    for told in (event("Building"), event("Failed", attempt="1763800009-0000000c"), event("Queued")):
        broker.announce(told)
    until(notifier.is_done(broker), 10, "all jobs are done")
    assert [line.split(" status ")[1].split()[0] for line in notifier.lines()] == [
        "Success",
        "Published",
        "Building",
        "Queued",
    ]
    assert [job["status"] for job in notifier.builds()] == ["Success"]
    assert "Published holds" in notifier.said()


def test_garbage_is_logged_and_put_aside_and_announced_to_nobody_else(
    notifier: Running, broker: Broker, mosquitto: Mosquitto, watcher: Watcher
) -> None:
    notifier.with_mqtt(mosquitto)
    notifier.start()
    for body in (b"\xff\x00", b"17", b"{}", b'{"status": "Refused"}', b"x" * 60_000):
        broker.put_raw(NOTIFY.name, body, priority=1024)
    broker.announce(event("Success"))
    until(lambda: any("status Success" in line for line in notifier.lines()), 15, "the good one is told")
    until(notifier.is_done(broker), 10, "all jobs are done")
    assert broker.tube_stats(NOTIFY.name).buried == 5
    refused = [line for line in notifier.lines() if "Refused job" in line]
    assert len(refused) == 5
    assert [payload["tube"] for payload in watcher.heard(EVENTS) if payload["status"] == "Refused"] == ["notify"] * 5


def test_a_broker_that_was_away_is_told_all_of_it_once_and_the_others_meanwhile(
    notifier: Running, broker: Broker, mosquitto: Mosquitto, watcher: Watcher
) -> None:
    notifier.with_mqtt(mosquitto)
    notifier.start()
    broker.announce(event("Success", 0))
    until(lambda: len(watcher.heard(RESULTS)) == 1, 15, "the first is published")
    mosquitto.stop()
    for number in range(1, 41):
        broker.announce(event("Success", number))
    until(lambda: len(notifier.lines()) == 41, 3, "the log lags by nothing")
    until(lambda: len(notifier.builds()) == 41, 3, "nor does the history")
    until(lambda: [each.count for each in notifier.pending()] == [40], 5, "they are pending for the broker")
    mosquitto.start()
    until(lambda: len(watcher.heard(RESULTS)) >= 41, 60, "all is published")
    until(notifier.is_done(broker), 30, "all jobs are done")
    assert len(set(ids(watcher.heard(RESULTS)))) == len(watcher.heard(RESULTS)) == 41
    assert len(notifier.lines()) == 41


def test_a_broker_that_hangs_is_told_all_of_it_once_when_it_goes_on(
    notifier: Running, broker: Broker, mosquitto: Mosquitto, watcher: Watcher
) -> None:
    notifier.with_mqtt(mosquitto)
    notifier.start()
    broker.announce(event("Success", 0))
    until(lambda: len(watcher.heard(RESULTS)) == 1, 15, "the first is published")
    mosquitto.signal(signal.SIGSTOP)
    for number in range(1, 21):
        broker.announce(event("Success", number))
    until(lambda: len(notifier.lines()) == 21, 30, "the log waits for nobody")
    until(lambda: [each.count for each in notifier.pending()] == [20], 10, "what it does not take is pending")
    broker.announce(event("Success", 21))
    until(lambda: len(notifier.lines()) == 22, 30, "it is not waited for again")
    until(lambda: [each.count for each in notifier.pending()] == [21], 10, "it is still away")
    mosquitto.signal(signal.SIGCONT)
    until(lambda: len(watcher.heard(RESULTS)) >= 22, 60, "all is published")
    until(notifier.is_done(broker), 30, "all jobs are done")
    assert len(set(ids(watcher.heard(RESULTS)))) == len(watcher.heard(RESULTS)) == 22


def test_what_is_pending_can_be_seen_and_survives_a_kill(
    notifier: Running, broker: Broker, mosquitto: Mosquitto
) -> None:
    notifier.with_mqtt(mosquitto)
    mosquitto.stop()
    notifier.start()
    began = time.time()
    for number in range(5):
        broker.announce(event("Success", number))
    until(lambda: [(each.sink, each.count) for each in notifier.pending()] == [("mqtt", 5)], 10, "all are pending")
    (pending,) = notifier.pending()
    assert pending.oldest == pytest.approx(began, abs=10)
    until(lambda: is_taken(broker), 5, "the jobs do not wait for it")
    assert notifier.signal(signal.SIGKILL) < 5
    assert [each.count for each in notifier.pending()] == [5]
    mosquitto.start()
    notifier.start()
    until(lambda: notifier.pending() == [], 10, "nothing is pending")


def test_a_sink_that_recovers_has_all_in_order(
    notifier: Running, broker: Broker, mosquitto: Mosquitto, watcher: Watcher
) -> None:
    notifier.with_mqtt(mosquitto)
    notifier.start()
    broker.announce(event("Success", 0))
    until(lambda: len(watcher.heard(RESULTS)) == 1, 15, "the first is published")
    mosquitto.stop()
    for number in range(1, 1201):  # more than a sink's thread keeps in memory
        broker.announce(event("Success", number))
    until(lambda: len(notifier.lines()) == 1201, 60, "the log has all")
    until(lambda: [each.count for each in notifier.pending()] == [1200], 10, "it lacks all since")
    mosquitto.start()
    until(lambda: notifier.pending() == [], 30, "it has all")
    until(lambda: len(watcher.heard(RESULTS)) == 1201, 30, "all are published")
    assert [payload["timestamp"] for payload in watcher.heard(RESULTS)] == [
        event("Success", number).timestamp for number in range(1201)
    ], "in the order they arrived in"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_told_to_stop_it_ends_at_once_even_where_a_sink_hangs(
    notifier: Running, broker: Broker, mosquitto: Mosquitto, watcher: Watcher, number: int
) -> None:
    notifier.with_mqtt(mosquitto)
    notifier.start()
    broker.announce(event("Success", 0))
    until(lambda: len(watcher.heard(RESULTS)) == 1, 15, "the first is published")
    mosquitto.signal(signal.SIGSTOP)
    broker.announce(event("Success", 1))
    until(lambda: len(notifier.lines()) == 2, 5, "it is at work")
    assert notifier.signal(number) < 8, "it waits for the sink"
    assert notifier.process
    assert notifier.process.returncode == 0
    mosquitto.signal(signal.SIGCONT)
    notifier.start()
    until(lambda: len(set(ids(watcher.heard(RESULTS)))) == 2, 15, "what was pending is delivered")
    assert len(notifier.lines()) == 2


def test_killed_in_mid_stream_it_loses_nothing_and_logs_everything_once(
    notifier: Running, broker: Broker, mosquitto: Mosquitto, watcher: Watcher
) -> None:
    notifier.with_mqtt(mosquitto)
    notifier.start()
    for number in range(500):
        broker.announce(event("Success" if number % 3 else "Failed", number))
        if number in (120, 300):
            until(lambda at=number: len(notifier.lines()) > at - 60, 10, "it is in the midst of it")  # type: ignore[misc]
            notifier.signal(signal.SIGKILL)
            notifier.start()
    until(lambda: len(set(ids(watcher.heard(RESULTS)))) == 500, 30, "all is published")
    until(notifier.is_done(broker), 15, "all jobs are done")
    assert len(set(notifier.lines())) == len(notifier.lines()) == 500
    assert len(notifier.builds()) == 500
    # what the broker had just acknowledged when we were killed is published again, under the same id
    again = [name for name, times in collections.Counter(ids(watcher.heard(RESULTS))).items() if times > 1]
    assert len(again) <= 2 * 200


def test_a_broker_under_another_name_is_not_told_unless_that_is_allowed(
    notifier: Running, broker: Broker, tmp_path: Path, authority: Authority
) -> None:
    (tmp_path / "other").mkdir()
    other = Mosquitto(tmp_path / "other", authority, name="other.example.org")
    other.start()
    try:
        notifier.with_mqtt(other, tls_insecure="False")
        notifier.start()
        broker.announce(event("Success"))
        until(lambda: "match" in notifier.said(), 15, "the wrong name is said")
        assert len(notifier.lines()) == 1
        notifier.signal(signal.SIGTERM)
        notifier.with_mqtt(other, tls_insecure="True")
        notifier.start()
        until(notifier.is_done(broker), 30, "it is told after all")
    finally:
        other.stop()


def test_a_broker_whose_certificate_has_expired_is_not_told(
    notifier: Running, broker: Broker, tmp_path: Path, authority: Authority
) -> None:
    (tmp_path / "expired").mkdir()
    expired = Mosquitto(tmp_path / "expired", authority, days=-1)
    expired.start()
    try:
        notifier.with_mqtt(expired)
        notifier.start()
        broker.announce(event("Success"))
        until(lambda: "certificate has expired" in notifier.said(), 15, "it is said")
        assert len(notifier.lines()) == 1
    finally:
        expired.stop()


def test_a_certificate_the_broker_does_not_know_is_said(
    notifier: Running, broker: Broker, tmp_path: Path, mosquitto: Mosquitto
) -> None:
    notifier.with_mqtt(mosquitto, by=Authority(tmp_path / "stranger"))
    notifier.start()
    broker.announce(event("Success"))
    until(lambda: "certificate" in notifier.said(), 15, "it is said")
    assert "mqtt takes no events now (1 pending)" in notifier.said()


def test_a_history_that_was_away_has_all_of_it_when_it_is_back(notifier: Running, broker: Broker) -> None:
    mongo = mongo_or_say_so()
    notifier.settings["history"]["url"] = mongo.url
    notifier.start()
    for number in range(5):
        broker.announce(event("Success", number))
    until(lambda: len(notifier.lines()) == 5, 5, "the log lags by nothing")
    until(lambda: "history takes no events now" in notifier.said(), 10, "it is said")
    mongo.start()
    try:
        until(notifier.is_done(broker), 60, "nothing is pending")
        assert len(notifier.builds()) == 5
        assert len(notifier.lines()) == 5
    finally:
        mongo.stop()


def test_a_sink_that_is_switched_off_loses_what_is_pending(
    notifier: Running, broker: Broker, mosquitto: Mosquitto
) -> None:
    notifier.with_mqtt(mosquitto)
    mosquitto.stop()
    notifier.start()
    for number in range(3):
        broker.announce(event("Success", number))
    until(lambda: notifier.pending() and is_taken(broker), 10, "they are pending")
    notifier.signal(signal.SIGTERM)
    del notifier.settings["mqtt"]
    notifier.start()
    until(lambda: notifier.pending() == [], 10, "nothing is pending")
    assert "mqtt is switched off: 3 events for it are dropped" in notifier.said()


def test_what_an_earlier_version_put_back_is_taken_in_for_those_sinks_alone(notifier: Running, broker: Broker) -> None:
    broker.put(NOTIFY, event("Success", owed={"mqtt": 3, "pigeon": 1}), priority=8192)
    broker.put(NOTIFY, event("Success", 2, owed={"log": 3}), priority=8192)
    notifier.start()
    until(lambda: len(notifier.lines()) == 1, 10, "it is logged")
    until(notifier.is_done(broker), 10, "nothing is pending")
    assert "20251122000002" in notifier.lines()[0], "the log had the first already"
    assert not (notifier.folder / "history.sqlite").exists()


def test_a_damaged_outbox_is_put_aside_and_announced(
    notifier: Running, broker: Broker, mosquitto: Mosquitto, watcher: Watcher
) -> None:
    (notifier.folder / "ledger.sqlite").write_text("this is no database\n" * 1000)
    notifier.with_mqtt(mosquitto)
    notifier.start()
    broker.announce(event("Success"))
    until(lambda: len(watcher.heard(EVENTS)) == 2, 15, "both are published")
    (damaged,) = notifier.folder.glob("outbox.corrupt-*")
    assert "no database" in damaged.read_text()
    assert "was damaged" in watcher.heard(EVENTS)[0]["reason"]
    assert "was damaged" in notifier.said()


def test_a_damaged_history_is_put_aside_and_events_are_recorded(notifier: Running, broker: Broker) -> None:
    (notifier.folder / "history.sqlite").write_text("this is no database\n" * 1000)
    notifier.start()
    broker.announce(event("Success"))
    until(lambda: "was damaged" in notifier.said(), 15, "the damage is said")
    until(notifier.builds, 15, "the event is recorded")
    (damaged,) = notifier.folder.glob("history.corrupt-*")
    assert "no database" in damaged.read_text()


def test_what_cannot_start_says_why_in_one_line(notifier: Running) -> None:
    notifier.settings["notifier"]["ledger"] = "/proc/nowhere/ledger.sqlite"
    notifier.start()
    assert notifier.process
    assert notifier.process.wait(10) == 1
    assert "cannot be used as the outbox" in notifier.said()
    assert "Traceback" not in notifier.said()


def test_a_beanstalkd_that_is_away_is_waited_out(notifier: Running) -> None:
    notifier.settings["beanstalkd"]["port"] = free_port()
    notifier.start()
    until(lambda: "trying again" in notifier.said(), 10, "it is said")
    assert notifier.signal(signal.SIGTERM) < 2


def test_who_is_there_is_kept_and_told_to_nobody(
    notifier: Running, broker: Broker, mosquitto: Mosquitto, watcher: Watcher
) -> None:
    notifier.with_mqtt(mosquitto)
    notifier.start()
    for load in (1.0, 2.0):
        broker.announce(WorkerHeartbeat(host="b1.example.org", instance="1", state="idle", load=load, at=5.0))
    broker.announce(WorkerHeartbeat(host="b1.example.org", instance="2", state="drained", why="drained by johnny"))
    broker.announce(event("Success"))
    file = WorkerStore(notifier.folder / "presence.sqlite")
    until(lambda: len(file.load_all()) == 2, 15, "both workers are known")
    first, second = file.load_all()
    assert (first.heartbeat.load, second.heartbeat.state, second.heartbeat.why) == (2.0, "drained", "drained by johnny")
    assert abs(first.last_seen - time.time()) < 60, "by the notifier's own clock"
    until(notifier.is_done(broker), 10, "all jobs are done")
    assert len(notifier.lines()) == len(notifier.builds()) == len(watcher.heard(EVENTS)) == 1


def test_who_is_there_comes_behind_all_that_is_told(notifier: Running, broker: Broker) -> None:
    for number in range(300):
        broker.announce(WorkerHeartbeat(host=f"b{number}.example.org", instance="1", state="idle"))
    broker.announce(event("Success"))
    broker.watch([NOTIFY.name])
    claim = broker.reserve({NOTIFY.name: NOTIFY}, 0)
    assert claim
    assert claim.message == event("Success")
    claim.release(0)
    notifier.start()
    until(lambda: len(WorkerStore(notifier.folder / "presence.sqlite").load_all()) == 300, 15, "all are known")


def test_who_is_there_may_not_be_written_and_all_else_goes_on(notifier: Running, broker: Broker) -> None:
    notifier.settings["notifier"]["presence"] = "/proc/nowhere/presence.sqlite"
    notifier.start()
    broker.announce(WorkerHeartbeat(host="b1.example.org", instance="1", state="idle"))
    broker.announce(event("Success"))
    until(notifier.is_done(broker), 15, "all jobs are done")
    assert len(notifier.builds()) == 1
    assert "the workers' heartbeats cannot be read or written" in notifier.said()

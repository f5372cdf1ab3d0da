# SPDX-License-Identifier: Apache-2.0
"""reimzul-notifier as a process, on a real beanstalkd, with a real mosquitto behind TLS."""

from __future__ import annotations

import collections
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from reimzul.core.beanstalk import NOTIFY, NOTIFY_OWED, Broker
from reimzul.core.message import WorkerHeartbeat
from reimzul.history.workers import WorkerStore
from tests.conftest import Beanstalkd, empty, free_port
from tests.events import event
from tests.mongo import mongo_or_say_so
from tests.mosquitto import Authority, Mosquitto, Watcher
from tests.notifier import EVENTS, RESULTS, Running, ids, is_done
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
    until(is_done(broker), 10, "all jobs are done")
    assert len(notifier.lines()) == len(set(notifier.lines())) == 6
    assert sorted(job["status"] for job in notifier.builds()) == ["Failed", "Failed", "Success"]
    assert len(set(ids(watcher.heard(EVENTS)))) == len(watcher.heard(EVENTS)) == 6
    assert [(job["status"], job["timestamp"][-2:]) for job in watcher.heard(RESULTS)] == [
        ("Success", "01"),
        ("Failed", "02"),
    ]


def test_what_comes_late_changes_nothing(notifier: Running, broker: Broker) -> None:
    notifier.start()
    for told in (event("Success"), event("Published")):
        broker.announce(told)
    until(lambda: len(notifier.lines()) == 2, 10, "both are logged")
    for told in (event("Building"), event("Failed", attempt="1763800009-0000000c"), event("Queued")):
        broker.announce(told)
    until(is_done(broker), 10, "all jobs are done")
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
    until(is_done(broker), 10, "all jobs are done")
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
    until(lambda: broker.tube_stats(NOTIFY.name).delayed > 0, 5, "it is owed in the tube")
    mosquitto.start()
    until(lambda: len(watcher.heard(RESULTS)) >= 41, 60, "all is published")
    until(is_done(broker), 30, "all jobs are done")
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
    until(lambda: len(notifier.lines()) == 21, 3, "the log lags by nothing")
    until(lambda: broker.tube_stats(NOTIFY.name).delayed > 0, 10, "what it does not take is owed")
    broker.announce(event("Success", 21))
    until(lambda: len(notifier.lines()) == 22, 3, "it is not waited for again")
    mosquitto.signal(signal.SIGCONT)
    until(lambda: len(watcher.heard(RESULTS)) >= 22, 60, "all is published")
    until(is_done(broker), 30, "all jobs are done")
    assert len(set(ids(watcher.heard(RESULTS)))) == len(watcher.heard(RESULTS)) == 22


def test_what_is_owed_can_be_seen_and_is_gone_when_it_is_told(
    notifier: Running, broker: Broker, mosquitto: Mosquitto
) -> None:
    notifier.with_mqtt(mosquitto)
    mosquitto.stop()
    notifier.start()
    began = time.time()
    for number in range(5):
        broker.announce(event("Success", number))
    (owed,) = until(lambda: [each for each in notifier.owed() if each.count == 5], 10, "all are owed")
    assert owed.sink == "mqtt"
    assert owed.oldest == pytest.approx(began, abs=10)
    until(lambda: any(each.next_try for each in notifier.owed()), 10, "it is known when that is tried again")
    assert notifier.signal(signal.SIGKILL) < 5
    assert [each.count for each in notifier.owed()] == [5]
    mosquitto.start()
    notifier.start()
    until(lambda: notifier.owed() == [], 60, "nothing is owed")
    assert is_done(broker)()


def test_what_is_owed_in_jobs_that_somebody_deleted_is_written_off(
    notifier: Running, broker: Broker, mosquitto: Mosquitto
) -> None:
    notifier.with_mqtt(mosquitto)
    mosquitto.stop()
    notifier.start()
    broker.announce(event("Building"))
    until(lambda: notifier.owed() and broker.tube_stats(NOTIFY.name).delayed, 10, "it is owed")
    notifier.signal(signal.SIGTERM)
    empty(notifier.beanstalkd)
    notifier.start()
    until(lambda: notifier.owed() == [], 10, "nothing is owed")
    assert "in no job any more" in notifier.said()


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
    assert notifier.signal(number) < 2.5
    assert notifier.process and notifier.process.returncode == 0
    mosquitto.signal(signal.SIGCONT)
    notifier.start()
    until(lambda: len(set(ids(watcher.heard(RESULTS)))) == 2, 15, "what was owed is told")
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
    until(is_done(broker), 15, "all jobs are done")
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
        until(is_done(broker), 30, "it is told after all")
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
    assert "mqtt is owed 1" in notifier.said()


def test_a_history_that_was_away_has_all_of_it_when_it_is_back(notifier: Running, broker: Broker) -> None:
    mongo = mongo_or_say_so()
    notifier.settings["history"]["url"] = mongo.url
    notifier.start()
    for number in range(5):
        broker.announce(event("Success", number))
    until(lambda: len(notifier.lines()) == 5, 5, "the log lags by nothing")
    until(lambda: "history is owed 5" in notifier.said(), 10, "it is said")
    mongo.start()
    try:
        until(is_done(broker), 60, "nothing is owed")
        assert len(notifier.builds()) == 5
        assert len(notifier.lines()) == 5
    finally:
        mongo.stop()


def test_a_sink_that_was_switched_off_is_owed_nothing(notifier: Running, broker: Broker) -> None:
    owed = event("Success", owed={"mqtt": 3, "pigeon": 1})
    broker.put(NOTIFY, owed, priority=NOTIFY_OWED)
    notifier.start()
    until(is_done(broker), 10, "it is done")
    assert notifier.lines() == [], "the log is not owed anything"


def test_only_those_who_are_owed_are_told(notifier: Running, broker: Broker) -> None:
    broker.put(NOTIFY, event("Success", owed={"log": 3}), priority=NOTIFY_OWED)
    notifier.start()
    until(is_done(broker), 10, "it is done")
    assert len(notifier.lines()) == 1
    assert not (notifier.folder / "history.sqlite").exists()


def test_what_cannot_start_says_why_in_one_line(notifier: Running) -> None:
    notifier.settings["notifier"]["ledger"] = "/proc/nowhere/ledger.sqlite"
    notifier.start()
    assert notifier.process
    assert notifier.process.wait(10) == 1
    assert "cannot be used as the ledger" in notifier.said()
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
    until(is_done(broker), 10, "all jobs are done")
    assert len(notifier.lines()) == len(notifier.builds()) == len(watcher.heard(EVENTS)) == 1


def test_who_is_there_comes_behind_all_that_is_told(notifier: Running, broker: Broker) -> None:
    for number in range(300):
        broker.announce(WorkerHeartbeat(host=f"b{number}.example.org", instance="1", state="idle"))
    broker.announce(event("Success"))
    broker.watch([NOTIFY.name])
    claim = broker.reserve({NOTIFY.name: NOTIFY}, 0)
    assert claim and claim.message == event("Success")
    claim.release(0)
    notifier.start()
    until(lambda: len(WorkerStore(notifier.folder / "presence.sqlite").load_all()) == 300, 15, "all are known")


def test_who_is_there_may_not_be_written_and_all_else_goes_on(notifier: Running, broker: Broker) -> None:
    notifier.settings["notifier"]["presence"] = "/proc/nowhere/presence.sqlite"
    notifier.start()
    broker.announce(WorkerHeartbeat(host="b1.example.org", instance="1", state="idle"))
    broker.announce(event("Success"))
    until(is_done(broker), 15, "all jobs are done")
    assert len(notifier.builds()) == 1
    assert "the workers' heartbeats cannot be read or written" in notifier.said()

# SPDX-License-Identifier: Apache-2.0
"""The workers' heartbeats: the file that the notifier writes, and how heartbeats spare the tube."""

from __future__ import annotations

import contextlib
import os
import sqlite3
import time
from pathlib import Path
from typing import Any, cast

import pytest

from reimzul import __version__
from reimzul.admin.doctor.farm import judge_hosts
from reimzul.core import heartbeat as voice_module
from reimzul.core.beanstalk import Broker, ReservedJob
from reimzul.core.errors import ReservationLost, RetryLater
from reimzul.core.heartbeat import NOTIFY_BACKLOG_LIMIT, HeartbeatSender, ProcessIdentity
from reimzul.core.message import WorkerHeartbeat, WorkerState
from reimzul.history.workers import (
    Processes,
    WorkerRecord,
    WorkerStore,
    WorkersUnavailable,
    drop_replaced,
    shared_names,
)
from reimzul.notifier import housekeeping
from reimzul.notifier.housekeeping import HeartbeatIntake
from tests.heartbeat_stand import Clock, Listener


def word(host: str = "b1.example.org", instance: str = "1", **more: Any) -> WorkerHeartbeat:
    return WorkerHeartbeat(**{"host": host, "instance": instance, "state": WorkerState.IDLE, "at": 5.0, **more})


def make_record(heard: float, *given: str, **more: Any) -> WorkerRecord:
    return WorkerRecord(heartbeat=word(*given, **more), last_seen=heard)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "notifier" / "presence.sqlite"


# --- the file


def test_the_latest_word_of_each_is_kept(path: Path) -> None:
    file = WorkerStore(path)
    file.save([make_record(10, load=1.0), make_record(10, "b1.example.org", "2"), make_record(10, "a1.example.org")])
    file.save([make_record(40, load=2.0)])
    found = WorkerStore(path).load_all()
    assert [(each.heartbeat.host, each.heartbeat.instance) for each in found] == [
        ("a1.example.org", "1"), ("b1.example.org", "1"), ("b1.example.org", "2"),
    ]  # fmt: skip
    assert (found[1].last_seen, found[1].heartbeat.load) == (40, 2.0)
    file.close()
    assert WorkerStore(path).load_all() == found, "nobody has it open"


def test_an_older_word_takes_no_newer_one_away(path: Path) -> None:
    file = WorkerStore(path)
    file.save([make_record(40, load=2.0)])
    file.save([make_record(10, load=1.0)])
    assert file.load_all()[0].heartbeat.load == 2.0
    file.close()


def test_who_is_silent_for_long_is_forgotten(path: Path) -> None:
    file = WorkerStore(path)
    file.save([make_record(10), make_record(50, "b2.example.org")])
    file.purge(40)
    assert [each.heartbeat.host for each in file.load_all()] == ["b2.example.org"]
    file.close()


def test_a_file_that_is_not_there_has_nobody_in_it(path: Path) -> None:
    assert WorkerStore(path).load_all() == []


def test_an_empty_file_and_a_strange_row_are_no_fault(path: Path) -> None:
    file = WorkerStore(path)
    file.save([make_record(10)])
    file.close()
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as db:
        db.execute("INSERT INTO workers VALUES ('x', '1', '', 1, 1, '{\"colour\": 1}')")
    assert [each.heartbeat.host for each in WorkerStore(path).load_all()] == ["b1.example.org"]
    path.unlink()
    path.touch()
    assert WorkerStore(path).load_all() == []


def test_a_file_that_is_none_is_said_in_one_line(path: Path) -> None:
    path.parent.mkdir()
    path.write_text("this is no database" * 100)
    with pytest.raises(WorkersUnavailable, match=r"presence\.sqlite: the workers' heartbeats cannot be read"):
        WorkerStore(path).load_all()


# --- what the notifier hears


class OfAge:
    """A claim on a job that was put some seconds ago."""

    def __init__(self, age: int) -> None:
        self.age = age

    @property
    def stats(self) -> OfAge:
        if self.age < 0:
            raise ReservationLost("gone")
        return self


def make_claims(*words: tuple[int, WorkerHeartbeat]) -> list[tuple[ReservedJob[Any], WorkerHeartbeat]]:
    return [(cast("ReservedJob[Any]", OfAge(age)), said) for age, said in words]


def test_what_is_stale_is_dropped(path: Path) -> None:
    intake = HeartbeatIntake(path)
    intake.update(
        make_claims((housekeeping.STALE_SECONDS + 1, word()), (3, word("b2.example.org")), (-1, word("b3.example.org")))
    )
    assert [each.heartbeat.host for each in WorkerStore(path).load_all()] == ["b2.example.org"]
    intake.close()


def test_of_several_words_the_last_said_is_kept(path: Path) -> None:
    intake = HeartbeatIntake(path)
    intake.update(make_claims((20, word(load=1.0)), (9, word(load=2.0))))
    assert WorkerStore(path).load_all()[0].heartbeat.load == 2.0
    intake.close()


def test_a_file_that_cannot_be_written_holds_up_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    intake = HeartbeatIntake(Path("/proc/nowhere/presence.sqlite"))
    for _ in range(3):
        intake.update(make_claims((1, word())))
    assert len(caplog.records) == 1


# --- a worker's voice


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    stopped = Clock()
    monkeypatch.setattr(voice_module, "time", stopped)
    return stopped


def voice(tmp_path: Path, every: int = 30) -> HeartbeatSender:
    return HeartbeatSender(
        ProcessIdentity(host="b1.example.org", instance="1", arches=("x86_64",), folders=(tmp_path,)), every
    )


def say(speaker: HeartbeatSender, listener: Listener, state: str = WorkerState.IDLE, why: str = "") -> int:
    speaker.send(cast("Broker", listener), state, why)
    return len(listener.heard)


def test_a_word_is_said_every_so_often_and_soon_after_a_change(tmp_path: Path, clock: Clock) -> None:
    speaker, listener = voice(tmp_path), Listener()
    assert say(speaker, listener) == 1
    clock.now += 10
    assert say(speaker, listener) == 1, "nothing has changed"
    assert say(speaker, listener, WorkerState.UNFIT, "disk") == 2
    clock.now += 1
    assert say(speaker, listener) == 2, "a breath is drawn first"
    clock.now += 5
    assert say(speaker, listener) == 3
    clock.now += 31
    assert say(speaker, listener) == 4
    assert (listener.heard[1].state, listener.heard[1].why) == ("unfit", "disk")
    free = os.statvfs(tmp_path)
    assert listener.heard[0].free_mib == pytest.approx(free.f_bavail * free.f_frsize // 2**20, abs=2000)


def test_nobody_speaks_into_a_crowd(tmp_path: Path, clock: Clock) -> None:
    speaker, listener = voice(tmp_path), Listener(ready=NOTIFY_BACKLOG_LIMIT + 1)
    assert say(speaker, listener) == 0
    listener.ready = NOTIFY_BACKLOG_LIMIT
    assert say(speaker, listener) == 0, "not before it is due again"
    clock.now += 31
    assert say(speaker, listener) == 1


def test_a_beanstalkd_that_takes_nothing_is_no_fault(tmp_path: Path, clock: Clock) -> None:
    speaker, listener = voice(tmp_path), Listener()
    listener.error = RetryLater("beanstalkd takes nothing now")
    assert say(speaker, listener) == 0


def test_who_is_to_be_silent_is(tmp_path: Path) -> None:
    assert say(voice(tmp_path, every=0), Listener()) == 0


def test_who_ends_says_so_once_it_has_said_anything(tmp_path: Path, clock: Clock) -> None:
    speaker, listener = voice(tmp_path), Listener()
    speaker.send_leaving(cast("Broker", listener))
    assert not listener.heard
    say(speaker, listener)
    speaker.send_leaving(cast("Broker", listener))
    assert [each.leaving for each in listener.heard] == [False, True]
    listener.error = RetryLater("beanstalkd takes nothing now")
    speaker.send_leaving(cast("Broker", listener))
    first, last = listener.heard
    assert (first.session, first.boot) == (last.session, last.boot)
    assert len(first.session) == 16
    assert first.session != voice(tmp_path).identity.session, "of each process its own"
    assert first.boot == voice(tmp_path).identity.boot == voice_module.boot_token(), "of this host one"


def test_no_id_of_the_host_leaves_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    boot, machine, namespace = (tmp_path / name for name in ("boot_id", "machine-id", "pid"))
    for name, path in (("_BOOT_ID", boot), ("_MACHINE_ID", machine), ("_PID_NAMESPACE", namespace)):
        monkeypatch.setattr(voice_module, name, path)
    assert voice_module.boot_token() == "", "nothing is known"
    tokens = set()
    for words in (("b1", "m1", "n1"), ("b2", "m1", "n1"), ("b1", "m2", "n1"), ("b1", "m1", "n2")):
        boot.write_text(words[0])
        machine.write_text(words[1])
        namespace.unlink(missing_ok=True)
        namespace.symlink_to(words[2])
        tokens.add(voice_module.boot_token())
    assert len(tokens) == 4, "a restart, a clone and a container are hosts of their own"
    assert not any(word in token for token in tokens for word in ("b1", "m1"))


# --- restarts, and hosts of one name

A, B, C = "a" * 16, "b" * 16, "c" * 16
BOOT, OTHER_BOOT = "1" * 16, "2" * 16


def process(session: str, first: float, heard: float, boot: str = BOOT, instance: str = "1") -> WorkerRecord:
    return WorkerRecord(
        heartbeat=word(instance=instance, session=session, boot=boot), first_seen=first, last_seen=heard
    )


def list_remaining(*words: WorkerRecord) -> list[str]:
    return [each.heartbeat.session for each in drop_replaced(words)]


def test_a_new_process_of_an_instance_replaces_the_earlier_at_once() -> None:
    assert list_remaining(process(A, 0, 100), process(B, 100, 100)) == [B]
    assert list_remaining(process(A, 0, 101), process(B, 100, 100)) == [B], "of one second, in whichever order"
    assert list_remaining(process("", 0, 100, ""), process(B, 100, 100)) == [B], "it was upgraded"
    assert list_remaining(process(A, 0, 100), process(B, 100, 100, instance="2")) == [A, B], "another worker"


def test_a_restarted_host_replaces_all_its_workers_at_once_and_is_no_second_one() -> None:
    before = [process(A, 0, 100), process(B, 0, 99, instance="2")]
    restarted = process(C, 130, 130, OTHER_BOOT)
    assert list_remaining(*before, restarted) == [C]
    assert shared_names(drop_replaced([*before, restarted])) == {}
    assert list_remaining(process("", 0, 100, "", "2"), restarted) == ["", C], "of an old worker nobody knows the host"


def test_two_hosts_that_both_go_on_speaking_are_said() -> None:
    for instance in ("1", "4711"):
        both = [process(A, 0, 160), process(B, 130, 161, OTHER_BOOT, instance)]
        assert drop_replaced(both) == both
        assert shared_names(both) == {"b1.example.org": "more than one host calls itself b1.example.org"}
    restarts = process(C, 170, 170)  # a worker of the first: its host was there before
    assert list_remaining(*both, restarts) == [B, C]
    twice = [process(A, 0, 160), process(B, 130, 161)]
    assert shared_names(twice) == {"b1.example.org": "more than one process calls itself worker 1 of b1.example.org"}
    assert (
        shared_names([process(A, 0, 160), process(B, 0, 160, instance="2"), make_record(160, "b2.example.org")]) == {}
    )


def test_the_file_knows_sessions_and_forgets_who_left(path: Path) -> None:
    file = WorkerStore(path)
    now = time.time()
    file.save([make_record(now - 300, session=A, boot=BOOT)])
    file.save([make_record(now - 250, session=B, boot=OTHER_BOOT)])
    assert [each.heartbeat.session for each in file.load_all()] == [B]
    file.save([make_record(now - 30, session=B, boot=OTHER_BOOT)])
    with contextlib.closing(sqlite3.connect(path)) as db:
        assert db.execute("SELECT session, first FROM workers").fetchall() == [(B, pytest.approx(now - 250))]
    file.save([make_record(now, session=B, boot=OTHER_BOOT, leaving=True)])
    assert file.load_all() == []
    file.close()


def test_the_file_of_an_earlier_version_is_taken_over(path: Path) -> None:
    path.parent.mkdir()
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as db:
        db.execute("CREATE TABLE presence (host, instance, heard, document, PRIMARY KEY (host, instance))")
    assert WorkerStore(path).load_all() == []
    file = WorkerStore(path)
    file.save([make_record(10)])
    assert len(file.load_all()) == 1
    file.close()


def test_a_clock_of_the_controllers_that_was_put_back_hides_nobody(path: Path) -> None:
    file, now = WorkerStore(path), time.time()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(time, "time", lambda: now + 9000)
        file.save([make_record(now + 9000, session=A), make_record(now + 9000, "b2.example.org", session=A)])
    file.save([make_record(now, session=B)])
    assert {each.heartbeat.host: each.heartbeat.session for each in file.load_all()} == {
        "b1.example.org": B, "b2.example.org": A,
    }  # fmt: skip
    assert max(each.last_seen for each in file.load_all()) == now
    file.save([make_record(now + 1, "b2.example.org", session=A, load=2.0)])
    assert file.load_all()[1].heartbeat.load == 2.0
    file.close()
    assert make_record(now + 9000).is_silent(now), "heard in the future is not heard now"


def test_the_doctor_says_what_is_wrong_with_builders() -> None:
    good = [make_record(5.0, version=__version__), make_record(5.0, "b2.example.org", version=__version__)]
    assert [each.level for each in judge_hosts(Processes(connected=good), 6.0).values()] == ["ok", "ok"]
    shared = [process(A, 0, 160), process(B, 130, 161, OTHER_BOOT)]
    (both,) = judge_hosts(Processes(connected=shared), 161.0).values()
    assert both.level == "warn"
    assert "more than one host calls itself b1.example.org" in both.message
    assert "[worker] fqdn" in both.hint
    (late,) = judge_hosts(Processes(connected=[make_record(7205.0, version=__version__)]), 7206.0).values()
    assert late.message == "its clock is 2 h 00 min behind the controller's"

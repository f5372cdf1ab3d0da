# SPDX-License-Identifier: Apache-2.0
"""What heartbeats say of a host's health, and what doctor, explain and watch make of it."""

from __future__ import annotations

import os
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import attr
import pytest

from reimzul import __version__
from reimzul.admin.build_facts import BuildFacts
from reimzul.admin.doctor import FAIL, OK, WARN, Result
from reimzul.admin.doctor.farm import judge_hosts
from reimzul.admin.explain import explain
from reimzul.admin.watch import find_obstacle, make_row
from reimzul.core import heartbeat
from reimzul.core.beanstalk import Broker
from reimzul.core.beanstalk_stats import TubeStats
from reimzul.core.heartbeat import ErrorLog, HeartbeatSender, ProcessIdentity, own_instance
from reimzul.core.message import MAX_ERRORS, RecentError, Role, WorkerHeartbeat
from reimzul.core.retry import compute_backoff
from reimzul.history import BuildRecord
from reimzul.history.build_record import apply_events
from reimzul.history.workers import Processes, WorkerRecord, WorkerStore
from reimzul.notifier.housekeeping import STALE_SECONDS, HeartbeatIntake
from tests.events import BEGINNING, build_id, event

NOW = BEGINNING + 1000
TARGET = "c7.1708.u.x86_64"


def process(host: str = "b1", role: str = Role.WORKER, heard: float = NOW, **more: Any) -> WorkerRecord:
    given: dict[str, Any] = {
        "host": f"{host}.example.org", "instance": f"{role}-1" if role else "1", "role": role, "state": "idle",
        "arches": () if role else ("x86_64",), "version": __version__, "free_mib": 50_000, "interval": 30, "at": heard,
    }  # fmt: skip
    return WorkerRecord(heartbeat=WorkerHeartbeat(**{**given, **more}), last_seen=heard)


def error(what: str, message: str = "it is broken", count: int = 3, **more: Any) -> RecentError:
    return RecentError(what=what, message=message, since=NOW - 120, at=NOW - 5, count=count, **more)


# --- the log of errors


def test_an_error_counts_until_the_step_succeeds() -> None:
    log = ErrorLog()
    log.add("upload", "code 12", build_id=build_id(1), arch="x86_64", target=TARGET)
    log.add("indexing", "code 1", target=TARGET)
    log.add("upload", "code 10", build_id=build_id(1), arch="x86_64", target=TARGET)
    last, other = log.list_latest()
    assert (last.what, last.count, last.message, other.what, other.count) == ("upload", 2, "code 10", "indexing", 1)
    assert last.since <= last.at
    log.clear("upload", build_id=build_id(1), arch="x86_64")
    log.clear("indexing", target="c9.x86_64")
    assert [each.what for each in log.list_latest()] == ["indexing"]
    log.clear("indexing", target=TARGET)
    assert log.list_latest() == ()


def test_an_error_that_does_not_come_again_is_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(heartbeat, "time", SimpleNamespace(monotonic=lambda: now[0], time=lambda: NOW + now[0]))
    log = ErrorLog()
    log.add("indexing", "code 1", target=TARGET)
    log.add("build", "no space", keep=3600)
    now[0] = heartbeat.ERROR_RETENTION_SECONDS + 1
    assert [each.what for each in log.list_latest()] == ["build"]


def test_a_heartbeat_has_the_latest_errors_alone() -> None:
    log = ErrorLog()
    for number in range(MAX_ERRORS + 3):
        log.add("indexing", "code 1", target=f"t{number}.x86_64")
    assert [each.target for each in log.list_latest()][:2] == [f"t{MAX_ERRORS + 2}.x86_64", f"t{MAX_ERRORS + 1}.x86_64"]
    assert len(log.list_latest()) == MAX_ERRORS


# --- what is sent


class _Listener:
    def __init__(self) -> None:
        self.heard: list[WorkerHeartbeat] = []

    def tube_stats(self, tube: str) -> TubeStats:
        return TubeStats(tube)

    def announce(self, sent: WorkerHeartbeat) -> None:
        self.heard.append(sent)


def test_a_new_error_is_sent_soon_and_health_costs_few_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(heartbeat, "time", SimpleNamespace(monotonic=lambda: now[0], time=lambda: NOW + now[0]))
    mock = tmp_path / "mock"
    identity = ProcessIdentity(host="b1", instance="1", arches=("x86_64",), folders=(tmp_path,), mock=str(mock))
    sender, listener = HeartbeatSender(identity, 30), _Listener()
    broker = cast("Broker", listener)
    sender.send(broker, "idle")
    sender.errors.add("upload", "code 12", build_id=build_id(1), arch="x86_64")
    now[0] = 6
    sender.send(broker, "idle")
    assert [len(each.errors) for each in listener.heard] == [0, 1]
    assert [each.mock for each in listener.heard] == [False, False]
    mock.write_text("#!/bin/sh\n")
    mock.chmod(0o755)
    now[0] = 40
    sender.send(broker, "idle")
    assert listener.heard[-1].mock
    healthy = listener.heard[0]
    before = attr.evolve(healthy, interval=0, mock=None)
    assert len(healthy.encode()) - len(before.encode()) <= 30


def test_repogen_is_no_worker_of_its_instance_for_any_notifier(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(heartbeat.INSTANCE_VARIABLE, "1")
    assert (own_instance(), own_instance(Role.REPOGEN)) == ("1", "repogen-1")
    sender = HeartbeatSender(ProcessIdentity(host="s", instance="repogen-1", role=Role.REPOGEN, folders=()), 30)
    listener = _Listener()
    sender.send(cast("Broker", listener), "idle")
    (sent,) = listener.heard
    assert (sent.role, sent.arches, sent.features, sent.mock) == ("repogen", (), (), None)


def test_a_unit_that_hides_the_load_sends_heartbeats(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> None:
        raise OSError("ProcSubset=pid hides /proc/loadavg")

    monkeypatch.setattr(os, "getloadavg", refuse)
    listener = _Listener()
    HeartbeatSender(ProcessIdentity(host="s", instance="1", folders=()), 30).send(cast("Broker", listener), "idle")
    assert listener.heard[0].load == 0


# --- what is kept


def _job(age: float) -> Any:
    return SimpleNamespace(stats=SimpleNamespace(age=age))


def test_a_late_message_of_one_that_left_counts(tmp_path: Path) -> None:
    intake, store = HeartbeatIntake(tmp_path / "p.sqlite"), WorkerStore(tmp_path / "p.sqlite")
    sent = process(session="a" * 16, at=time.time()).heartbeat
    intake.update([(_job(STALE_SECONDS - 10), sent)])
    assert len(store.load_all()) == 1
    intake.update([(_job(STALE_SECONDS + 10), attr.evolve(sent, leaving=True))])
    assert store.load_all() == []
    intake.close()


@pytest.mark.parametrize("boot", ["", "2" * 16])
def test_what_a_process_replaced_does_not_come_back_when_it_leaves(tmp_path: Path, boot: str) -> None:
    store, now = WorkerStore(tmp_path / "p.sqlite"), time.time()
    old = process(session="a" * 16, boot="1" * 16 if boot else "", heard=now - 60, instance="2" if boot else "1")
    new = process(session="b" * 16, boot=boot, heard=now)
    store.save([old])
    store.save([new])
    assert [each.heartbeat.session for each in store.load_all()] == ["b" * 16]
    store.save([attr.evolve(new, heartbeat=attr.evolve(new.heartbeat, leaving=True))])
    assert store.load_all() == []
    store.close()


def test_states_of_processes() -> None:
    assert process().state_at(NOW) == "idle"
    assert process(state="building").state_at(NOW) == "building"
    assert process(role=Role.REPOGEN, state="building").state_at(NOW) == "busy"
    assert process(role=Role.REPOGEN, heard=NOW - 500).state_at(NOW) == "silent"
    late = process(heard=NOW - 45)
    assert (late.is_overdue(NOW), late.is_silent(NOW)) == (True, False)
    assert not process(heard=NOW - 35).is_overdue(NOW)
    assert not process(heard=NOW - 45, interval=0).is_overdue(NOW), "its interval is unknown"


# --- doctor


def judge(*connected: WorkerRecord, vanished: tuple[WorkerRecord, ...] = (), now: float = NOW) -> Result:
    (result,) = judge_hosts(Processes(connected=list(connected), vanished=list(vanished)), now).values()
    return result


@pytest.mark.parametrize(
    ("about", "level", "words", "remedy"),
    [
        ({}, OK, "1 worker (1 idle), 48.8 GiB free", ""),
        ({"role": Role.REPOGEN}, OK, "1 repogen (1 idle)", ""),
        ({"state": "drained", "why": "drained by root"}, OK, "1 drained", ""),
        ({"mock": False}, FAIL, "worker 1 has no mock", "install mock"),
        ({"state": "unfit", "why": "no jobs now: disk under /r: 3 MiB free"}, FAIL, "3 MiB free", "reimzul doctor"),
        ({"state": "unfit", "why": "no jobs now: load: 9, 4 is the most"}, WARN, "load: 9", "reimzul doctor"),
        ({"state": "quarantined", "why": "quarantined"}, WARN, "quarantined", "reimzul resume b1.example.org"),
        ({"version": "0.0.9"}, WARN, f"version 0.0.9, the controller has {__version__}", "docs/upgrading.md"),
        ({"at": NOW + 600}, WARN, "its clock is 10 min 00 s ahead", "timedatectl"),
        ({"heard": NOW - 300}, WARN, "no heartbeat for 5 min 00 s", "journalctl -u reimzul-worker@1"),
        ({"role": Role.REPOGEN, "free_mib": 100}, FAIL, "its disk has 100.0 MiB free", "reimzul prune"),
        ({"role": Role.REPOGEN, "free_mib": 0}, FAIL, "its disk has 0 bytes free", "reimzul prune"),
        ({"role": Role.TOSIGN, "free_mib": 1000}, WARN, "its disk has 1000.0 MiB free", "reimzul prune"),
        ({"role": Role.TOSIGN, "free_inodes": 10}, FAIL, "its disk has 10 inodes free", "reimzul prune"),
        ({"errors": (error("upload", build_id=build_id(1), arch="i386"),)}, WARN, "i386 failed 3 times", "an upload"),
        ({"role": Role.REPOGEN, "errors": (error("indexing", target=TARGET),)}, FAIL,
         f"indexing {TARGET} failed 3 times in a row, for 2 min 00 s: it is broken", f"createrepo/{TARGET}.log"),
        ({"role": Role.REPOGEN, "errors": (error("indexing", target=TARGET, count=1),)}, WARN, "2 min 00 s ago", "log"),
    ],
)  # fmt: skip
def test_a_host_with_a_problem_has_a_finding_with_a_remedy(
    about: dict[str, Any], level: str, words: str, remedy: str
) -> None:
    result = judge(process(**about))
    assert (result.level, words in result.message, remedy in result.hint) == (level, True, True), result


def test_what_vanished_a_minute_ago_is_a_failure_unless_others_of_its_kind_are_there() -> None:
    gone, here = process(instance="2", session="a" * 16), process(instance="1", session="b" * 16)
    assert judge(vanished=(gone,), now=NOW + 10).level == WARN
    alone = judge(vanished=(gone,), now=NOW + 100)
    assert (alone.level, "its worker vanished, last heard of 1 min 40 s ago" in alone.message) == (FAIL, True)
    assert "reimzul builders --forget b1.example.org" in alone.hint
    result = judge(here, vanished=(gone,), now=NOW + 100)
    assert (result.level, "worker 2 vanished" in result.message) == (WARN, True)
    mixed = judge(here, vanished=(process(role=Role.REPOGEN),), now=NOW + 100)
    assert (mixed.level, "its repogen vanished" in mixed.message) == (FAIL, True)


# --- explain


def leg(*statuses: str, **more: Any) -> BuildRecord:
    events = [event(status, at=BEGINNING + second, **more) for second, status in enumerate(statuses)]
    (found,) = apply_events({}, events).values()
    return found


def explain_text(document: BuildRecord, **more: Any) -> str:
    given: dict[str, Any] = {
        "now": NOW, "leg": document, "job": "ready", "tube": TubeStats("x86_64", ready=1, watchers=2),
        "createrepo": TubeStats("createrepo", watchers=1), "tosign": TubeStats("tosign"),
    }  # fmt: skip
    return "\n".join(explain(BuildFacts(**{**given, **more})).sentences)


def test_an_overdue_worker_is_not_called_usable() -> None:
    text = explain_text(leg("Queued"), workers=[process(heard=NOW - 45)])
    assert "may be gone: its last heartbeat came 45 s ago, and one is due every 30 s" in text
    assert "could take it" not in text
    assert "No worker takes it now." in text


def test_a_worker_that_leaves_the_build_to_others_delays_its_start() -> None:
    workers = [process("b1"), process("b2")]
    text = explain_text(leg("Queued"), workers=workers, backoffs={"b1.example.org": 2000.0})
    assert "1 worker could take it." in text
    assert "b1.example.org is free, but could not build it, and leaves it to others for 33 min 20 s more" in text
    both = explain_text(leg("Queued"), workers=workers, backoffs={"b1.example.org": 50.0, "b2.example.org": 40.0})
    assert "No worker takes it now." in both
    assert "Expected start: in 40 s" in both


def test_a_drained_worker_is_not_called_usable_before_its_next_heartbeat() -> None:
    text = explain_text(leg("Queued"), workers=[process()], drained={"b1.example.org": "drained by root: new disk"})
    assert "takes no jobs (drained by root: new disk)" in text
    assert "could take it" not in text


def test_what_fails_in_the_store_is_explained_for_the_builds_concerned() -> None:
    built = leg("Queued", "Building", "Success")
    repogen = process("s1", Role.REPOGEN, errors=(error("indexing", target=TARGET),), free_mib=20)
    text = explain_text(built, processes=Processes(connected=[repogen]))
    assert "repogen on s1.example.org: indexing failed 3 times in a row, for 2 min 00 s: it is broken." in text
    assert "s1.example.org: its disk has 20.0 MiB free." in text
    other = process("s1", Role.REPOGEN, errors=(error("indexing", target="c9.x86_64"),))
    assert "it is broken" not in explain_text(built, processes=Processes(connected=[other]))
    unstaged = process("s1", Role.TOSIGN, errors=(error("staging", build_id=build_id(1), arch="x86_64"),))
    assert "it is broken" in explain_text(leg("Success", "Published"), processes=Processes(connected=[unstaged]))


@pytest.mark.parametrize(
    ("elapsed", "watchers", "failed", "left"),
    [(10, 4, 2, 3590), (4000, 4, 2, 0), (10, 2, 2, 50), (61, 2, 2, 0), (10, 1, 1, 0)],
)
def test_how_long_a_builder_leaves_a_build_to_others(elapsed: float, watchers: int, failed: int, left: float) -> None:
    assert compute_backoff(elapsed, watchers, failed) == left


# --- watch


def test_a_watch_says_what_holds_a_leg_up() -> None:
    waits = apply_events({}, [event("Queued", tube="x86_64", job=7)]).popitem()[1]
    assert find_obstacle(waits, {"createrepo"}, []) == ""
    obstacle = find_obstacle(waits, {"x86_64"}, [])
    assert make_row(waits, NOW, 0, None, None, obstacle).message == "queued: nobody watches tube x86_64"
    built = leg("Success")
    assert make_row(built, NOW, 0, None, None, find_obstacle(built, {"createrepo"}, [])).message == (
        "built, to be published; nobody watches tube createrepo"
    )
    heard = time.time()
    failing = process("s1", Role.REPOGEN, heard, errors=(error("indexing", target=TARGET),))
    assert find_obstacle(built, (), [failing]) == "indexing fails on s1.example.org: it is broken"
    uploads = process("b1", heard=heard, errors=(error("upload", build_id=build_id(1), arch="x86_64"),))
    running = leg("Building")
    assert find_obstacle(running, (), [failing, uploads]) == "upload fails on b1.example.org: it is broken"
    assert find_obstacle(leg("Published"), ("createrepo",), [failing, uploads]) == ""
    same = (make_row(running, NOW, None, None, None).line_key, make_row(running, NOW, None, None, None, "x").line_key)
    assert same[0] != same[1], "it is worth a line"

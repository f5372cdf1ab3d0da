# SPDX-License-Identifier: Apache-2.0
"""Workers that end, vanish, start again or go by another's name, and builders whose clock is wrong.

beanstalkd, the notifier, the workers and the commands are real; where two hosts are needed, the test is the second.
"""

from __future__ import annotations

import contextlib
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Callable

import pytest

from reimzul.admin.doctor import Finding
from reimzul.admin.doctor.farm import check_hosts
from reimzul.core import control
from reimzul.core.beanstalk import Broker, drain_tube, session_tube
from reimzul.core.clock import MAX_SKEW_SECONDS
from reimzul.core.config import load_file
from reimzul.core.message import CurrentBuild, WorkerHeartbeat, new_attempt
from reimzul.history.workers import WorkerRecord, WorkerStore, drop_disconnected
from tests.builder import Host, is_settled, put, request
from tests.conftest import Beanstalkd
from tests.events import build_id, event
from tests.integration.test_operator_acts import run, run_json
from tests.notifier import Running
from tests.waiting import until

NAME = "b1.example.org"
#: Seconds within which a worker has to leave the list when its connection has ended.
MINUTE = 60


@pytest.fixture
def controller(
    tmp_path: Path, beanstalkd: Beanstalkd, broker: Broker, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Running]:
    """A notifier that runs, and whose settings hold."""
    monkeypatch.setenv("REIMZUL_CONFIG", str(tmp_path / "reimzul.ini"))
    running = Running(tmp_path, beanstalkd)
    running.start()
    yield running
    running.signal(signal.SIGTERM)


class Other:
    """A worker of another host, as far as it speaks."""

    def __init__(self, beanstalkd: Beanstalkd, session: str, boot: str, host: str = NAME, instance: str = "1") -> None:
        self.about: dict[str, Any] = {
            "host": host, "instance": instance, "session": session * 16, "boot": boot * 16, "arches": ("x86_64",),
        }  # fmt: skip
        self.broker = beanstalkd.connect()
        self.broker.watch(["x86_64", session_tube(session * 16)])

    def say(self, *, clock: float = 0.0, **more: Any) -> None:
        """Say that it is there; its clock is that many seconds ahead."""
        self.broker.announce(WorkerHeartbeat(**{"state": "idle", "at": time.time() + clock, **self.about, **more}))


Others = Callable[..., Other]


@pytest.fixture
def other_workers(beanstalkd: Beanstalkd) -> Iterator[Others]:
    """Makes workers of other hosts, which stay connected to the end."""
    with contextlib.ExitStack() as at_the_end:

        def make(*about: str, **more: str) -> Other:
            made = Other(beanstalkd, *about, **more)
            at_the_end.callback(made.broker.close)
            return made

        yield make


def workers() -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = run_json("builders")
    return found


def sessions() -> list[str]:
    return [each["session"][:1] for each in workers()]


def are(*wanted: str) -> None:
    until(lambda: sessions() == list(wanted), 30, f"these are there: {wanted}")


def hand(number: int = 9) -> CurrentBuild:
    return CurrentBuild(
        build_id=build_id(number),
        srpm="time-1.7-45.el7.src.rpm",
        target="c7.u.x86_64",
        arch="x86_64",
        attempt=new_attempt(),
        started=time.time() - 60,
    )


# --- real workers


def wait_for_workers(count: int) -> None:
    until(lambda: len(workers()) == count, 30, f"{count} are there")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_worker_that_ended_leaves_the_list(host: Host, controller: Running, number: signal.Signals) -> None:
    worker = host.start("b1")
    wait_for_workers(1)
    worker.send_signal(number)
    worker.wait(20)
    began = time.monotonic()
    until(lambda: not workers(), MINUTE, "it is gone")
    assert time.monotonic() - began < MINUTE
    assert "no worker found" in run("builders").stderr


def test_one_that_was_told_to_end_says_so(host: Host, controller: Running) -> None:
    worker = host.start("b1")
    wait_for_workers(1)
    file = WorkerStore(controller.folder / "presence.sqlite")
    worker.terminate()
    worker.wait(20)
    until(lambda: not file.load_all(), 20, "the notifier has heard it")


def test_a_worker_that_starts_again_is_there_once(
    host: Host, controller: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REIMZUL_INSTANCE", "1")
    worker = host.start("b1")
    wait_for_workers(1)
    (before,) = workers()
    worker.kill()
    worker.wait(20)
    host.start("b1")
    until(lambda: [each["session"] for each in workers()] not in ([], [before["session"]]), 30, "it is there again")
    (now,) = workers()
    assert (now["instance"], now["boot"], now["name_shared"]) == ("1", before["boot"], None)


def test_a_worker_in_quarantine_is_there(host: Host, controller: Running, broker: Broker) -> None:
    control.set_flag(broker, drain_tube(NAME), control.new_flag("x", "it fails", reason=control.QUARANTINED))
    host.start("b1")
    until(lambda: [each["state"] for each in workers()] == ["quarantined"], 30, "it is there")
    control.clear_flag(broker, drain_tube(NAME))


def test_two_processes_of_one_name_are_said(
    host: Host, controller: Running, other_workers: Others, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REIMZUL_INSTANCE", "1")
    host.start("b1", presence=5)
    wait_for_workers(1)
    second = other_workers("a", "1")
    second.about["boot"] = workers()[0]["boot"]
    second.say()
    until(lambda: len([each for each in workers() if each["name_shared"]]) == 2, 60, "it is said")
    assert f"more than one process calls itself worker 1 of {NAME}" in run("builders").stdout


@pytest.mark.parametrize("clock", [0, 4_070_908_800])
def test_a_builder_with_a_clock_in_1970_or_2099_builds(
    host: Host, controller: Running, broker: Broker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, clock: int
) -> None:
    """As one that boots without a battery."""
    (tmp_path / "clock").mkdir()
    begun = f"import time\nreal, begun = time.time, time.time()\ntime.time = lambda: real() - begun + {clock + 30}\n"
    (tmp_path / "clock" / "sitecustomize.py").write_text(begun)
    with monkeypatch.context() as patch:
        patch.setenv("PYTHONPATH", str(tmp_path / "clock"))
        host.start("b1")
    wait_for_workers(1)
    (shown,) = workers()
    assert shown["skew"] == pytest.approx(clock - time.time(), abs=300)
    asked = request("plain", build_id="", timestamp="")  # of a client of the original: the builder completes it
    put(broker, asked)
    put(broker, request("hello"))
    until(lambda: len(host.spool()) >= 3 and is_settled(broker), 60, "both are built")
    until(lambda: {leg["status"] for leg in controller.builds()} == {"Success"}, 30, "the history knows")
    for leg in controller.builds():
        assert abs(leg["at"] - time.time()) < 300
        assert leg["skew"]
        (attempt,) = leg["attempts"]
        assert abs(attempt["heard"] - time.time()) < 300
    stats = run_json("stats", "--since", "1970-01-01")
    assert sum(stats["results"].values()) == len(controller.builds())
    assert (stats["wait"], stats["build"]) == (None, None)
    assert not (broker.tube_stats("x86_64").buried)
    assert not (broker.tube_stats("notify").buried)
    words = "behind" if not clock else "ahead of"
    assert f"{words} the controller's" in run("builders").stdout


# --- hosts


def test_a_restarted_host_replaces_its_earlier_self_at_once(controller: Running, other_workers: Others) -> None:
    """Though the connections of the earlier one still stand: it lost its power, and nobody has noticed."""
    before = [other_workers("a", "1"), other_workers("b", "1", instance="2")]
    for each in before:
        each.say(state="building", build=hand())
    are("a", "b")
    other_workers("c", "2").say()
    are("c")
    assert workers()[0]["name_shared"] is None
    assert run_json("drain", "b1")["building"] == []
    run_json("resume", "b1")


def test_two_hosts_of_one_name_are_said_by_builders_and_doctor(controller: Running, other_workers: Others) -> None:
    one, other = other_workers("a", "1"), other_workers("b", "2", instance="4711")
    settings = load_file(controller.folder / "reimzul.ini")

    def look() -> Finding:
        return list(check_hosts(settings, show_all=True))[-1]

    assert look().level == "ok"
    one.say()
    are("a")
    other.say()
    are("b")
    assert look().level == "ok", "it may have been restarted"

    def are_both_there() -> bool:
        one.say()
        return sessions() == ["a", "b"]

    until(are_both_there, 30, "the first goes on speaking")
    words = f"more than one host calls itself {NAME}"
    assert [each["name_shared"] for each in workers()] == [words, words]
    assert run("builders").stdout.count(words) == 2
    assert (look().level, words in look().message) == ("warn", True)
    one.broker.close()
    until(lambda: [each["state"] for each in workers()] == ["gone", "idle"], 30, "one is gone")
    assert [each["name_shared"] for each in workers()] == [None, None]
    assert look().level == "warn", "one process of that name has vanished"
    assert "worker 1 vanished" in look().message
    for file in controller.folder.glob("presence.sqlite*"):
        file.unlink()
    (controller.folder / "presence.sqlite").write_text("no database" * 100)
    assert look().level == "warn", "the farm works without it"


def test_the_gone_are_not_counted(controller: Running, other_workers: Others, broker: Broker) -> None:
    gone, here = other_workers("a", "1"), other_workers("b", "2", host="b2.example.org")
    gone.say(state="building", build=hand())
    here.say()
    are("a", "b")
    number = put(broker, request("plain", build_id=build_id(1)))
    broker.announce(event("Queued", 1, tube="x86_64", job=number, priority=8192, at=time.time()))
    until(controller.builds, 20, "the history knows")
    assert "2 workers could take it." in run("explain", build_id(1)[:8]).stdout
    assert run_json("drain", "b1")["building"] == ["time-1.7-45.el7.src.rpm"]
    gone.broker.close()
    said = run("explain", build_id(1)[:8]).stdout
    assert "1 worker could take it." in said
    assert NAME not in said
    assert run_json("drain", "b1")["building"] == [], "its name is known still"
    run_json("resume", "b1")
    seen = WorkerStore(controller.folder / "presence.sqlite").load_all()
    assert len(seen) == 2
    assert [each.heartbeat.host for each in drop_disconnected(broker, seen)] == ["b2.example.org"]


def test_a_worker_of_an_earlier_version_is_shown_as_before(controller: Running, other_workers: Others) -> None:
    old = other_workers("a", "1")
    old.about.update(session="", boot="")
    old.say()
    until(lambda: [each["session"] for each in workers()] == [None], 30, "it is there")
    assert drop_disconnected(
        old.broker, [WorkerRecord(heartbeat=WorkerHeartbeat(**{"state": "idle", **old.about}), last_seen=1.0)]
    )


# --- clocks


def test_a_clock_that_is_far_off_is_said(controller: Running, other_workers: Others) -> None:
    other_workers("a", "1").say(clock=7200)
    other_workers("b", "2", host="b2.example.org").say(clock=-MAX_SKEW_SECONDS / 2)
    other_workers("c", "3", host="b3.example.org").say(clock=-600, state="building", build=hand())
    are("a", "b", "c")
    ahead, right, behind = workers()
    assert ahead["skew"] == pytest.approx(7200, abs=3)
    assert behind["skew"] == pytest.approx(-600, abs=3)
    assert right["skew"] == 0
    said = {line.split("\t")[0]: line for line in run("builders").stdout.splitlines()}
    assert "its clock is 2 h 00 min ahead of the controller's" in said[NAME] or "1 h 59 min" in said[NAME]
    assert "clock" not in said["b2.example.org"]
    assert "behind the controller's" in said["b3.example.org"]


@pytest.mark.parametrize("clock", [60.0, 4_070_908_800.0])
def test_a_build_that_such_a_builder_puts_again_is_found(controller: Running, broker: Broker, clock: float) -> None:
    first = put(broker, request("plain", build_id=build_id(1)))
    where = {"tube": "x86_64", "priority": 8192}
    broker.announce(event("Queued", 1, job=first, at=time.time(), **where))
    until(controller.builds, 20, "the history knows")
    broker.delete(first)
    second = put(broker, request("plain", build_id=build_id(1)))
    about = {"attempt": "60-0000000a", "builder_fqdn": NAME, "reason": "no space left"}
    broker.announce(event("Queued", 1, job=second, at=clock, due=clock + 10, **about, **where))
    until(lambda: controller.builds()[0]["job"] == second, 20, "the last put holds")
    (leg,) = controller.builds()
    assert abs(leg["due"] - 10 - time.time()) < 60
    assert run_json("cancel", build_id(1)[:8])[0]["outcome"] == "cancelled"
    assert is_settled(broker)

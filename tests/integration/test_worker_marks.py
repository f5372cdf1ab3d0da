# SPDX-License-Identifier: Apache-2.0
"""What a worker heeds while it waits and while it builds, what it says of itself, and the logs it keeps and sends."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest

from reimzul.core import control
from reimzul.core.beanstalk import Broker, arch_tube, cancel_tube, drain_tube
from reimzul.core.manifest import read_manifest
from reimzul.core.message import WorkerHeartbeat
from tests.builder import Ears, Host, is_settled, processes, put, request
from tests.waiting import until


def cancel(broker: Broker, build_id: str) -> None:
    """As an operator does it."""
    control.set_flag(broker, cancel_tube(build_id), control.new_flag("johnny", "wrong disttag"))


def results(host: Host, arch: str) -> Path:
    """Where mock leaves what it makes, of the one build under way."""
    (folder,) = host.folder.glob(f"results/builds/*/{arch}/result")
    return folder


def says(ears: Ears, state: str) -> bool:
    """Whether a worker has sent this in a heartbeat."""
    ears.listen()
    return any(said["state"] == state for said in ears.present)


# --- cancel


def test_a_cancelled_build_that_waits_is_not_begun(host: Host, broker: Broker, ears: Ears) -> None:
    wanted, other = request(), request("plain")
    cancel(broker, wanted.build_id)
    put(broker, wanted)
    put(broker, other)
    host.start()
    ears.wait(1, "Success")
    (event,) = ears.events("Cancelled")
    assert (event["build_id"], event["arch"]) == (wanted.build_id, "x86_64")
    assert event["reason"] == "cancelled by johnny: wrong disttag"
    until(lambda: is_settled(broker), 5, "both jobs are deleted")
    assert len(host.mock.builds()) == 1, "the other's"
    assert control.cancel_flag(broker, wanted.build_id), "another worker may be at it still, its link cut"


def test_a_cancel_ends_a_running_build_and_nothing_of_it_is_left(host: Host, broker: Broker, ears: Ears) -> None:
    for target in ("c9.x86_64", "c9.i386"):
        host.mock.plan(target, seconds=600)
    host.start()
    wanted = request()
    put(broker, wanted)
    until(lambda: host.mock.started("c9.x86_64") and host.mock.started("c9.i386"), 20, "both legs are built")
    cancel(broker, wanted.build_id)
    events = ears.wait(2, "Cancelled")
    assert {event["arch"] for event in events} == {"x86_64", "i386"}
    assert {event["reason"] for event in events} == {"cancelled by johnny: wrong disttag"}
    assert all(event["attempt"] and event["finished"] > event["started"] for event in events)
    until(lambda: is_settled(broker), 30, "the job is deleted")
    assert not processes(str(host.mock.path))
    assert [call for call in host.mock.calls() if "--clean" in call], "its roots are removed"
    assert not list(host.folder.glob("results/builds/*"))
    assert not ears.events("Success", "Failed", "Queued")


def test_the_logs_of_a_cancelled_build_are_kept_and_its_packages_are_not(
    host: Host, broker: Broker, ears: Ears, packages: dict[str, Path]
) -> None:
    (host.configs / "c9.i386.cfg").unlink()
    host.mock.plan("c9.x86_64", seconds=600)
    host.start()
    wanted = request()
    put(broker, wanted)
    until(lambda: host.mock.started("c9.x86_64"), 20, "it is built")
    (results(host, "x86_64") / "early.rpm").write_bytes(packages["plain.noarch"].read_bytes())
    cancel(broker, wanted.build_id)
    (event,) = ears.wait(1, "Cancelled")
    until(lambda: is_settled(broker), 30, "the job is deleted")
    (folder,) = host.spool().values()
    manifest = read_manifest(folder)
    assert (manifest.status, manifest.rpm_files) == ("Cancelled", [])
    assert {"build.log", "root.log", "state.log"} <= {file.name for file in manifest.files}
    (asked,) = ears.requests()
    assert (asked["logs"], asked["index"], asked["attempt"]) == (True, False, event["attempt"])
    assert event["url"].endswith(f"/bstore/attempts/{folder.name}/")
    assert [phase["name"] for phase in event["phases"]][:2] == ["source", "chroot init"]


def test_who_cancels_while_the_source_is_fetched_waits_for_no_link(host: Host, broker: Broker, ears: Ears) -> None:
    host.http.shutdown()
    host.start()
    wanted = request()
    put(broker, wanted)
    until(lambda: says(ears, "building"), 30, "it is begun")
    cancel(broker, wanted.build_id)
    ears.wait(1, "Cancelled")
    until(lambda: is_settled(broker), 10, "the job is deleted")


def test_a_cancel_before_the_source_ends_every_arch_that_a_killed_worker_may_have_begun(
    host: Host, broker: Broker, ears: Ears
) -> None:
    host.http.shutdown()
    wanted = request()
    put(broker, wanted)
    with host.beanstalkd.connect() as killed:
        killed.watch(["x86_64"])
        assert killed.reserve({"x86_64": arch_tube("x86_64")}, 5), "its connection ends, and the job is back"
    host.start()
    until(lambda: says(ears, "building"), 30, "it is begun again")
    cancel(broker, wanted.build_id)
    ears.wait(2, "Cancelled")
    assert {event["arch"] for event in ears.events("Cancelled")} == {"x86_64", "i386"}


def test_a_builders_fault_under_a_cancelled_build_is_not_tried_again(host: Host, broker: Broker, ears: Ears) -> None:
    (host.configs / "c9.i386.cfg").unlink()
    host.mock.plan("c9.x86_64", code=30, logs="repogone")
    wanted = request()
    broker.put_raw("default", b"", priority=0)  # the tube of another is in use: the mark's own has to be chosen
    cancelled_at = host.folder / "mock" / "cancel"
    host.mock.plan("c9.x86_64", code=30, logs="repogone", until=[cancelled_at.name])
    host.start(presence=0)
    put(broker, wanted)
    until(lambda: host.mock.started("c9.x86_64"), 20, "it is built")
    cancel(broker, wanted.build_id)
    host.mock.let_go(cancelled_at.name)
    ears.wait(1, "Cancelled")
    until(lambda: is_settled(broker), 30, "the job is deleted, and no other is there")
    assert not ears.events("Queued")


# --- drain


def test_a_drained_builder_takes_nothing_until_it_is_resumed(host: Host, broker: Broker, ears: Ears) -> None:
    control.set_flag(broker, drain_tube("b1.example.org"), control.new_flag("johnny", "new memory"))
    host.start("b1")
    put(broker, request("plain"))
    until(lambda: says(ears, "drained"), 20, "it says so")
    assert ears.present[-1]["why"] == "drained by johnny: new memory"
    assert broker.tube_stats("x86_64").ready == 1
    assert control.clear_flag(broker, drain_tube("b1.example.org"))
    ears.wait(1, "Success")
    assert not control.clear_flag(broker, drain_tube("b1.example.org"))


def test_a_job_that_comes_right_after_a_drain_is_not_begun(host: Host, broker: Broker, ears: Ears) -> None:
    host.start("b1")
    for _ in range(3):  # the worker looks for the mark before each reserve, which lasts a second
        until(lambda: says(ears, "idle"), 20, "it waits for a job")
        control.set_flag(broker, drain_tube("b1.example.org"), control.new_flag("johnny"))
        put(broker, request("plain"))
        until(lambda: says(ears, "drained"), 20, "it says so")
        assert not ears.events("Building")
        broker.client.use("x86_64")
        broker.client.delete(broker.client.peek_ready())
        ears.present.clear()
        assert control.clear_flag(broker, drain_tube("b1.example.org"))


def test_a_drain_lets_the_build_in_hand_end(host: Host, broker: Broker, ears: Ears, packages: dict[str, Path]) -> None:
    host.mock.plan("c9.x86_64", rpms=[packages["plain.noarch"]], until=["go"])
    host.start("b1")
    put(broker, request("plain"))
    until(lambda: host.mock.started("c9.x86_64"), 20, "it is built")
    put(broker, request("plain"))
    control.set_flag(broker, drain_tube("b1.example.org"), control.new_flag("johnny"))
    until(lambda: says(ears, "draining"), 60, "it says so")
    host.mock.let_go("go")
    ears.wait(1, "Success")
    until(lambda: ears.listen() and ears.present[-1]["state"] == "drained", 60, "it takes nothing more")
    assert broker.tube_stats("x86_64").ready == 1
    host.start("b2")
    ears.wait(2, "Success")


# --- presence


def test_a_worker_says_what_it_does(
    host: Host, broker: Broker, ears: Ears, monkeypatch: pytest.MonkeyPatch, packages: dict[str, Path]
) -> None:
    monkeypatch.setenv("REIMZUL_INSTANCE", "7")
    host.mock.plan("c9.x86_64", rpms=[packages["plain.noarch"]], until=["go"], logs="term")
    began = time.time()
    host.start("b1")
    until(lambda: bool(ears.listen() or ears.present), 20, "it is there")
    idle = WorkerHeartbeat.from_json(ears.present[0])
    assert (idle.host, idle.instance, idle.state, idle.build) == ("b1.example.org", "7", "idle", None)
    assert idle.arches == ("x86_64", "i386", "noarch")
    assert idle.free_mib > 0
    assert began - 1 <= idle.at <= time.time() + 1
    wanted = request("plain")
    put(broker, wanted)

    def at_rpmbuild() -> bool:
        ears.listen()
        return str(ears.present[-1].get("build", {}).get("phase", "")).startswith("rpmbuild")

    until(at_rpmbuild, 60, "it says what it builds")
    hand = WorkerHeartbeat.from_json(ears.present[-1]).build
    assert hand
    assert (hand.build_id, hand.srpm, hand.arch) == (wanted.build_id, "plain-1.0-1.src.rpm", "x86_64")
    assert hand.attempt.startswith(str(int(hand.started))[:8])
    host.mock.let_go("go")
    (event,) = ears.wait(1, "Success")
    assert [phase["name"] for phase in event["phases"]] == [
        "source", "chroot init", "build setup", "rpmbuild", "upload",
    ]  # fmt: skip
    assert event["phases"][0]["start"] <= event["phases"][0]["end"] <= event["phases"][4]["start"]
    until(lambda: ears.listen() and "build" not in ears.present[-1], 60, "it is idle again")


def test_a_worker_may_be_silent(host: Host, broker: Broker, ears: Ears) -> None:
    host.start(presence=0)
    put(broker, request("plain"))
    ears.wait(1, "Success")
    assert not ears.present


# --- logs


def test_logs_can_be_read_while_they_grow(host: Host, broker: Broker, ears: Ears, packages: dict[str, Path]) -> None:
    host.mock.plan("c9.x86_64", rpms=[packages["plain.noarch"]], until=["go"])
    host.start(live_logs=1)
    wanted = request("plain")
    put(broker, wanted)
    until(lambda: host.mock.started("c9.x86_64"), 20, "it is built")

    def live(name: str) -> str:
        found = list(host.store.glob(f"live/{wanted.build_id}.x86_64.*/{name}"))
        return found[0].read_text() if found else ""

    grows = results(host, "x86_64") / "build.log"
    until(lambda: grows.exists() and live("build.log") == grows.read_text() != "", 30, "what there is")
    for line in ("one more\n", "and another\n"):
        with grows.open("a") as log:
            log.write(line)
        until(lambda: live("build.log").endswith(line), 30, "what has been added")  # noqa: B023
    assert live("build.log") == grows.read_text()
    assert live("state.log")
    assert live("root.log")
    host.mock.let_go("go")
    ears.wait(1, "Success")


def test_growing_logs_get_through_when_the_store_is_back(
    host: Host, broker: Broker, ears: Ears, packages: dict[str, Path]
) -> None:
    host.mock.plan("c9.x86_64", rpms=[packages["plain.noarch"]], until=["go"])
    host.stop_rsync()
    host.start(live_logs=1)
    put(broker, request("plain"))
    until(lambda: bool(list(host.folder.glob("results/builds/*/x86_64/live.log"))), 30, "it was tried")
    host.start_rsync()
    until(lambda: bool(list(host.store.glob("live/*/build.log"))), 60, "it is there")
    host.mock.let_go("go")
    ears.wait(1, "Success")


def test_the_logs_of_a_builders_fault_are_kept(host: Host, broker: Broker, ears: Ears) -> None:
    (host.configs / "c9.i386.cfg").unlink()
    host.mock.plan("c9.x86_64", code=30, logs="repogone")
    host.start("b1", tries=2)
    wanted = request()
    put(broker, wanted)
    (again,) = ears.wait(1, "Queued")
    assert again["due"] > time.time() - 60
    assert broker.job_stats(again["job"]).tube == again["tube"] == "x86_64"
    assert again["priority"] == broker.job_stats(again["job"]).priority
    (asked,) = ears.requests()
    folder = host.spool()[f"{wanted.build_id}.x86_64"]
    assert (asked["logs"], asked["attempt"]) == (True, again["attempt"])
    assert again["url"].endswith(f"/attempts/{folder.name}/")
    manifest = read_manifest(folder)
    assert (manifest.status, manifest.exit_code) == ("Unfit", 30)
    assert "Failed to download metadata" in (folder / "root.log").read_text()


def test_a_store_that_is_away_keeps_no_fault_from_being_told(host: Host, broker: Broker, ears: Ears) -> None:
    host.mock.plan("c9.x86_64", code=30, logs="repogone")
    host.stop_rsync()
    host.start("b1")
    put(broker, request("plain"))
    (again,) = ears.wait(1, "Queued", seconds=60)
    assert again.get("url", "") == ""
    assert "its logs are not kept" in (host.folder / "b1.log").read_text()


def test_an_old_clients_request_is_told_of_when_it_is_put_again(host: Host, broker: Broker, ears: Ears) -> None:
    old: dict[str, Any] = {"srpm": "plain-1.0-1.src.rpm", "arch": "x86_64", "target": "c9.x86_64", "disttag": ".el9"}
    first = put(broker, request("plain", build_id="", timestamp="", **{k: old[k] for k in ("disttag",)}))
    host.start()
    (queued,) = ears.wait(1, "Queued")
    (built,) = ears.wait(1, "Success")
    assert queued["build_id"] == built["build_id"]
    assert queued["tube"] == "x86_64"
    assert queued["job"] > first

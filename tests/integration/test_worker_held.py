# SPDX-License-Identifier: Apache-2.0
"""A worker holds a request whose requirements nobody provides: on the real beanstalkd, at every kill point."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from devfarm.mockstub import PROGRAM
from reimzul.core import control
from reimzul.core.beanstalk import HELD_SECONDS, PRIORITY_NOW, Broker, arch_tube, cancel_tube
from reimzul.core.message import BuildRequest, FailedAttempt
from tests import srpms
from tests.builder import Ears, Host, is_settled, put, request
from tests.conftest import Beanstalkd
from tests.gate import Action, Gate
from tests.scripted import SAMPLES
from tests.waiting import until

BATCH = "5f0c12ab"
#: What the sample of a missing BuildRequires lacks.
MISSING = "no-such-devel >= 3"
SETUP = "2026-11-22 08:50:12,974 - Start: build setup for hello-1.0-1.src.rpm\n"
SONAME = (
    "Error: \n Problem: package bar-devel-1-1.x86_64 requires libfoo.so.1, but none of the providers can be installed\n"
    "  - cannot install both libfoo-2-1.x86_64 from target and libfoo-1-1.x86_64 from base\n  - conflicting requests\n"
)


@pytest.fixture
def gate(beanstalkd: Beanstalkd) -> Iterator[Gate]:
    opened = Gate(beanstalkd.port)
    yield opened
    opened.close()


@pytest.fixture
def main_only(host: Host) -> Host:
    """A builder without i386, whose mock misses a BuildRequires."""
    (host.configs / "c9.i386.cfg").unlink()
    host.mock.plan("c9.x86_64", code=30, logs="missingbr")
    return host


def wait_held(broker: Broker, number: int) -> None:
    until(lambda: broker.job_stats(number).is_held, 20, "the job is held")


def release(broker: Broker, host: Host, packages: dict[str, Path], config: str = "c9.x86_64") -> None:
    """Let mock find everything, and kick the held job as `reimzul-batch` does."""
    host.mock.plan(config, rpms=[packages["plain.noarch"]])
    broker.client.use("x86_64")
    broker.kick(broker.client.peek_delayed().id)


@pytest.mark.parametrize("more", [{"batch": BATCH}, {"dep_wait": 3600}], ids=["member", "single"])
def test_a_build_waits_for_what_nobody_provides(
    main_only: Host, broker: Broker, ears: Ears, packages: dict[str, Path], more: dict[str, Any]
) -> None:
    main_only.start()
    tries = (FailedAttempt(builder="b7.example.org", when=1.0, words="a full disk"),)
    wanted = request(tries=tries, **more)
    number = broker.put(arch_tube("x86_64"), wanted, priority=PRIORITY_NOW, ttr=77)
    wait_held(broker, number)
    (event,) = ears.wait(1, "Queued")
    assert (event["held"], event["missing"], event["job"]) == (True, [MISSING], number)
    assert (event["builder_fqdn"], event["priority"]) == ("b1.example.org", PRIORITY_NOW)
    assert event["waits_for"] == f"{MISSING}, which nobody provides"
    assert event["reason"] == f"waits for {MISSING}, which nobody provides"
    assert event.get("batch", "") == wanted.batch
    assert abs(event["due"] - time.time() - HELD_SECONDS) < 60
    stats = broker.job_stats(number)
    assert (stats.priority, stats.ttr, stats.buries) == (PRIORITY_NOW, 77, 0)
    assert BuildRequest.decode(broker.peek(number)) == wanted, "no try is counted"
    (kept,) = ears.requests()
    assert (kept["logs"], kept["attempt"]) == (True, event["attempt"])
    assert event["url"].endswith(f"/attempts/{wanted.build_id}.x86_64.{event['attempt']}/")
    assert event["error_log"] == "root.log"
    release(broker, main_only, packages)
    (built,) = ears.wait(1, "Success")
    assert built["attempt"] != event["attempt"]
    until(lambda: is_settled(broker), 5, "the job is deleted")
    assert not ears.events("Failed", "Cancelled")


def test_a_build_outside_a_batch_fails_at_once(main_only: Host, broker: Broker, ears: Ears) -> None:
    main_only.start()
    put(broker, request())
    (failed,) = ears.wait(1, "Failed")
    assert failed["reason"] == f"BuildRequires that nobody provides: {MISSING}"
    assert not ears.events("Queued")


@pytest.mark.parametrize(("more", "status"), [({"batch": BATCH}, "Queued"), ({"dep_wait": 3600}, "Failed")])
def test_only_a_member_waits_for_packages_that_cannot_be_installed(
    main_only: Host, broker: Broker, ears: Ears, more: dict[str, Any], status: str
) -> None:
    logs = main_only.folder / "logs" / "soname"
    logs.mkdir(parents=True)
    (logs / "state.log").write_text(SETUP)
    (logs / "root.log").write_text(SONAME)
    main_only.mock.samples(logs.parent)
    main_only.mock.plan("c9.x86_64", code=30, logs="soname")
    main_only.start()
    put(broker, request(**more))
    (event,) = ears.wait(1, "Queued", "Failed")
    assert event["status"] == status
    if status == "Queued":
        assert event["missing"] == ["conflict: bar-devel", "conflict: libfoo"]
        assert event["waits_for"] == "a new build of bar-devel or libfoo, which cannot be installed"


def test_a_follower_waits_while_its_main_leg_is_built(
    host: Host, broker: Broker, ears: Ears, packages: dict[str, Path]
) -> None:
    host.mock.plan("c9.i386", code=30, logs="missingbr")
    host.start()
    wanted = request(batch=BATCH)
    wait_held(broker, put(broker, wanted))
    (built,) = ears.wait(1, "Success")
    (event,) = ears.wait(1, "Queued")
    assert (built["arch"], event["arch"]) == ("x86_64", "i386")
    leg = f"{wanted.build_id}.x86_64"
    (host.store / "index" / leg).symlink_to(host.spool()[leg])  # as repogen does
    release(broker, host, packages, "c9.i386")
    until(lambda: {each["arch"] for each in ears.events("Success")} == {"x86_64", "i386"}, 20, "both are built")
    until(lambda: is_settled(broker), 5, "the job is deleted")
    builds = [call for call in host.mock.builds() if any(word.endswith("/c9.x86_64") for word in call)]
    assert len(builds) == 1, "the main leg is found in the store"


def test_a_follower_of_a_failed_main_leg_fails_too(host: Host, broker: Broker, ears: Ears) -> None:
    """Nobody would release its job: the member has failed."""
    host.mock.plan("c9.x86_64", code=1, logs="failbuild")
    host.mock.plan("c9.i386", code=30, logs="missingbr")
    host.start()
    wanted = request(batch=BATCH)
    put(broker, wanted)
    failed = {each["arch"]: each["reason"] for each in ears.wait(2, "Failed")}
    assert failed == {"x86_64": "%build failed", "i386": f"BuildRequires that nobody provides: {MISSING}"}
    until(lambda: is_settled(broker), 5, "the job is deleted")
    assert set(host.spool()) == {f"{wanted.build_id}.{arch}" for arch in failed}
    assert not ears.events("Queued")


def test_each_leg_announces_what_it_lacks_itself(host: Host, broker: Broker, ears: Ears) -> None:
    samples = host.folder / "logs"
    for name, lacking in (("main", "no-such-devel"), ("follower", "no-such-library")):
        shutil.copytree(SAMPLES / "missingbr", samples / name)
        root_log = samples / name / "root.log"
        root_log.write_text(root_log.read_text().replace("no-such-devel", lacking))
    host.mock.samples(samples)
    host.mock.plan("c9.x86_64", code=30, logs="main")
    host.mock.plan("c9.i386", code=30, logs="follower")
    host.start()
    wait_held(broker, put(broker, request(batch=BATCH)))
    events = ears.wait(2, "Queued")
    other = MISSING.replace("devel", "library")
    assert {each["arch"]: each["missing"] for each in events} == {"x86_64": [MISSING], "i386": [other]}
    assert {each["arch"]: each["reason"] for each in events} == {
        "x86_64": f"waits for {MISSING}, which nobody provides",
        "i386": f"waits for {other}, which nobody provides",
    }
    assert len([each for each in ears.requests() if each["logs"]]) == 2


@pytest.mark.parametrize(
    ("code", "logs", "prefix"),
    [(30, "repogone", "b1.example.org could not build it: "), (60, "hello", "nobody's fault: ")],
    ids=["builder", "nobody"],
)
def test_a_fault_goes_before_waiting(host: Host, broker: Broker, ears: Ears, code: int, logs: str, prefix: str) -> None:
    host.mock.plan("c9.x86_64", code=30, logs="missingbr")
    host.mock.plan("c9.i386", code=code, logs=logs)
    host.start()
    put(broker, request(batch=BATCH))
    for event in ears.wait(2, "Queued"):
        assert event["reason"].startswith(prefix)
        assert "held" not in event
    until(lambda: broker.tube_stats("x86_64").delayed == 1, 20, "it comes again")
    broker.client.use("x86_64")
    assert not broker.job_stats(broker.client.peek_delayed().id).is_held


def test_build_conditions_are_given_to_mock(host: Host, broker: Broker, ears: Ears) -> None:
    host.start()
    put(broker, request("plain", batch=BATCH, bconds=("bootstrap", "no_docs")))
    ears.wait(1, "Success")
    (call,) = host.mock.builds()
    given = [call[place + 1] for place, word in enumerate(call) if word == "--with"]
    assert given == ["bootstrap", "no_docs"]


def test_build_conditions_reach_rpmbuild(host: Host, broker: Broker, ears: Ears) -> None:
    needs = "%bcond_with bootstrap\n%{!?with_bootstrap:BuildRequires: no-such-devel}\n"
    spec = srpms.noarch("seeded").replace("BuildArch:", f"{needs}BuildArch:")
    assert needs in spec
    made = srpms.make_srpm(host.folder / "made", "seeded", spec)
    (host.incoming / made.name).write_bytes(made.read_bytes())
    host.mock.path = PROGRAM
    host.start()
    wait_held(broker, put(broker, request("seeded", batch=BATCH)))
    put(broker, request("seeded", batch=BATCH, bconds=("bootstrap",)))
    ears.wait(1, "Success", seconds=60)


def test_heartbeats_say_that_a_worker_can_hold(host: Host, broker: Broker, ears: Ears) -> None:
    host.start()
    until(lambda: ears.listen() is not None and bool(ears.present), 20, "a heartbeat")
    assert "batch" in ears.present[0]["features"]


# --- kill points


def test_a_worker_killed_between_announcement_and_release_loses_nothing(
    main_only: Host, broker: Broker, ears: Ears, gate: Gate
) -> None:
    victim = main_only.start("b1", port=gate.port)

    def kill() -> bool:
        victim.kill()
        victim.wait()
        return True

    gate.before[b"release "] = kill
    number = put(broker, request(batch=BATCH))
    ears.wait(1, "Queued")
    until(lambda: broker.job_stats(number).state == "ready", 20, "the job comes again")
    main_only.start("b2")
    wait_held(broker, number)
    first, second = ears.wait(2, "Queued")
    assert first["attempt"] != second["attempt"]
    assert [each["job"] for each in (first, second)] == [number, number]
    assert broker.tube_stats("x86_64").delayed == 1
    assert not ears.events("Failed", "Cancelled", "Success")


@pytest.mark.parametrize(
    "when", [("before", b'"held":true'), ("before", b"release "), ("after", b"RELEASED")],
    ids=["before the announcement", "before the release", "after the release"],
)  # fmt: skip
def test_a_cancel_at_any_moment_is_obeyed(
    main_only: Host, broker: Broker, beanstalkd: Beanstalkd, ears: Ears, gate: Gate, when: tuple[str, bytes]
) -> None:
    wanted = request(batch=BATCH)

    def set_flag() -> bool:
        with beanstalkd.connect() as other:
            control.set_flag(other, cancel_tube(wanted.build_id), control.new_flag("johnny"))
        return False

    moment, word = when
    actions: dict[bytes, Action] = getattr(gate, moment)
    actions[word] = set_flag
    main_only.start(port=gate.port)
    number = put(broker, wanted)
    (event,) = ears.wait(1, "Cancelled")
    assert event["reason"] == "cancelled by johnny"
    until(lambda: is_settled(broker), 5, "the job is deleted")
    assert not actions, "the flag was set when it was to be"
    assert [each["job"] for each in ears.events("Queued")] == [number]


def test_kicks_of_a_held_job_allow_no_more_deaths(
    main_only: Host, broker: Broker, beanstalkd: Beanstalkd, ears: Ears
) -> None:
    """A worker counts how many died under a job; a person's kick of a buried one starts that count again."""
    number = broker.put(arch_tube("x86_64"), request(batch=BATCH), priority=1, delay=HELD_SECONDS)
    for _ in range(3):
        broker.kick(number)
        with beanstalkd.connect() as holder:
            claim = holder.client.reserve_job(number)
            holder.client.release(claim, priority=1, delay=HELD_SECONDS)
    broker.kick(number)
    for _ in range(11):
        with beanstalkd.connect() as dying:
            dying.client.reserve_job(number)
    main_only.start()
    (refusal,) = ears.wait(1, "Refused")
    assert refusal["reason"].startswith("11 workers died under it")
    assert json.loads(broker.peek(number))["batch"] == BATCH

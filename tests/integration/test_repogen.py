# SPDX-License-Identifier: Apache-2.0
"""Publishing on a real beanstalkd, with real packages and createrepo_c; killed at every step, and at any moment."""

from __future__ import annotations

import contextlib
import gzip
import json
import logging
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Callable

import attr
import pytest

from reimzul.core import process
from reimzul.core.beanstalk import CREATEREPO, NOTIFY, PRIORITY, TOSIGN, Broker, arch_tube
from reimzul.core.fs import file_lock
from reimzul.core.message import BuildEvent, Refusal, RepogenRequest, SignRequest, Status, new_build_id
from reimzul.core.retry import Backoff
from reimzul.core.rpm_header import read_header
from reimzul.core.settings import Settings
from reimzul.core.store_paths import StorePaths, leg_key
from reimzul.notifier.quarantine import is_fault
from reimzul.repogen import daemon as repogen_daemon
from reimzul.repogen.cli import make_daemon
from reimzul.repogen.daemon import Repogen
from reimzul.store import createrepo
from reimzul.store import listing as listing_module
from tests import uploads
from tests.repogen import NAME, Rpms, as_rpms, ask, list_packages, take_messages, work
from tests.srpms import compiled, lacking_source, make_rpm, make_rpms, noarch, with_subpackage
from tests.uploads import TARGET, tree
from tests.waiting import until

pytestmark = pytest.mark.usefixtures("no_rest")


def statuses(broker: Broker) -> list[tuple[str, str]]:
    return [(event.arch, event.status) for event in take_messages(broker, NOTIFY)]


def test_a_leg_is_placed_indexed_announced_and_given_to_the_signer(
    broker: Broker, daemon: Repogen, store: StorePaths, rpms: Rpms
) -> None:
    asked = uploads.upload(store, rpms)
    ask(broker, asked)
    work(daemon)
    assert list_packages(store) == {f"hello/20240102030405/1-1.x86_64/{NAME}"}
    (event,) = take_messages(broker, NOTIFY)
    assert isinstance(event, BuildEvent)
    assert event.status == Status.PUBLISHED
    assert event.attempt == asked.attempt
    assert event.url == f"http://localhost:11081/bstore/{asked.place}/"
    assert event.rpms == (NAME,)
    (sign,) = take_messages(broker, TOSIGN)
    assert isinstance(sign, SignRequest)
    assert sign.place == asked.place
    assert sign.build_id == asked.build_id
    assert broker.tube_stats("createrepo").ready == 0
    assert tree(store.spool) == set()


def test_an_event_of_the_originals_worker_only_regenerates_its_target(
    broker: Broker, daemon: Repogen, store: StorePaths, rpms: Rpms
) -> None:
    place = store.target(TARGET) / "hello" / "20180410120000" / "1.0-1.x86_64"
    place.mkdir(parents=True)
    (place / NAME).write_bytes(rpms[NAME][0])
    event = {
        "srpm": "hello-1.0-1.src.rpm", "arch": "x86_64", "target": TARGET, "disttag": ".el7", "scratch": False,
        "submitter": "arrfab", "status": "Success", "builder_fqdn": "old1.example.org", "evr": "1.0-1",
        "pkgname": "hello", "timestamp": "20180410120000",
    }  # fmt: skip
    broker.put_raw(CREATEREPO.name, json.dumps(event).encode(), priority=PRIORITY)
    work(daemon)
    assert list_packages(store) == {f"hello/20180410120000/1.0-1.x86_64/{NAME}"}
    assert tree(place) == {NAME}
    assert take_messages(broker, NOTIFY) == take_messages(broker, TOSIGN) == []


def test_a_hundred_legs_are_one_run(
    broker: Broker, daemon: Repogen, store: StorePaths, rpms: Rpms, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs: list[Any] = []
    run = process.run

    def count_run(argv: Any, **more: Any) -> Any:
        runs.append(argv)
        return run(argv, **more)

    monkeypatch.setattr(createrepo, "run", count_run)
    requests = [uploads.request(timestamp=f"202401020304{second:02}") for second in range(50)] * 2
    legs = [uploads.upload(store, rpms, of=uploads.request(timestamp=of.timestamp)) for of in requests]
    ask(broker, *legs)
    work(daemon)
    assert len(runs) == 1
    assert statuses(broker) == [("x86_64", "Published")] * 100
    assert len({sign.place for sign in take_messages(broker, TOSIGN)}) == len(list_packages(store)) == 100
    ask(broker, *legs)
    work(daemon)
    assert len(runs) == 1
    assert len(take_messages(broker, NOTIFY)) == 100


def test_of_what_ends_shortly_after_another_one_run_comes_at_once_and_the_next_waits(
    broker: Broker, daemon: Repogen, store: StorePaths, rpms: Rpms, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(createrepo.RunRecord, "rest", property(lambda run: 3600.0 if run.row > 1 else 0.0))
    ask(broker, uploads.upload(store, rpms))
    work(daemon)
    ask(broker, uploads.upload(store, rpms, of=uploads.request(timestamp="20250102030404")))
    work(daemon)  # as the second leg of a build
    assert len(list_packages(store)) == 2
    late = uploads.upload(store, rpms, of=uploads.request(timestamp="20250102030405"))
    ask(broker, late)
    with ThreadPoolExecutor(1) as pool:
        done = pool.submit(work, daemon)
        try:
            until((store.place(late.place) / NAME).exists, 20, "it is in its place")
            later = uploads.upload(store, rpms, of=uploads.request(timestamp="20250102030406"))
            other = uploads.upload(store, rpms, of=uploads.request(target="other.1.x86_64"))
            ask(broker, later, other)
            until(lambda: any(other.target in path.name for path in store.cache.iterdir()), 20, "another is free")
            until((store.place(later.place) / NAME).exists, 20, "what comes meanwhile is taken in")
            assert len(list_packages(store)) == 2
            assert not done.done()
        finally:
            monkeypatch.setattr(createrepo.RunRecord, "rest", 0.0)
        done.result(20)
    assert len(list_packages(store)) == 4


def test_a_clock_that_was_put_back_keeps_nothing_waiting(
    broker: Broker, daemon: Repogen, store: StorePaths, rpms: Rpms, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(createrepo.RunRecord, "rest", 60.0)
    tomorrow = time.time() + 86400
    for second in range(3):
        createrepo.write_run(store.runs(TARGET), createrepo.RunRecord(start=tomorrow - 1, end=tomorrow, row=second + 1))
        ask(broker, uploads.upload(store, rpms, of=uploads.request(timestamp=f"2025010203040{second}")))
        work(daemon)
    assert len(list_packages(store)) == 3


def test_failed_and_scratch_legs_get_their_place_and_are_not_listed(
    broker: Broker, daemon: Repogen, store: StorePaths, rpms: Rpms
) -> None:
    failed = uploads.upload(store, {}, status=Status.FAILED)
    scratch = uploads.upload(store, rpms, of=uploads.request(scratch=True))
    lying = [attr.evolve(one, index=True) for one in (failed, scratch)]
    ask(broker, *lying)
    work(daemon)
    assert (store.place(failed.place) / "build.log").exists()
    assert (store.place(scratch.place) / NAME).exists()
    assert list_packages(store) == set(), "the next build for the target finds repodata"
    assert take_messages(broker, NOTIFY) == []
    assert take_messages(broker, TOSIGN) == []
    assert broker.tube_stats("createrepo").ready == 0


def test_a_bare_request_regenerates_and_makes_a_target_that_never_was(
    broker: Broker, daemon: Repogen, store: StorePaths, rpms: Rpms
) -> None:
    ask(broker, RepogenRequest(target="c9.00.x86_64"))
    work(daemon)
    assert list_packages(store, "c9.00.x86_64") == set()
    place = store.target("c9.00.x86_64") / "by-hand"
    place.mkdir()
    (place / NAME).write_bytes(rpms[NAME][0])
    broker.put_raw("createrepo", b'{"target": "c9.00.x86_64"}', priority=PRIORITY)
    work(daemon)
    assert list_packages(store, "c9.00.x86_64") == {f"by-hand/{NAME}"}


def test_a_bad_upload_is_put_aside_and_built_again_twice_at_most(
    broker: Broker, daemon: Repogen, store: StorePaths, rpms: Rpms
) -> None:
    of = uploads.request()
    good = uploads.upload(store, rpms, of=uploads.request(timestamp="20250102030405"))
    for status in (Status.QUEUED, Status.QUEUED, Status.REJECTED):
        bad = uploads.upload(store, rpms, of=of)
        (uploads.spool_of(store, bad) / NAME).write_bytes(rpms[NAME][0][:-1] + b"?")
        ask(broker, bad, good)
        work(daemon)
        told = [event for event in take_messages(broker, NOTIFY) if event.build_id == of.build_id]
        assert [event.status for event in told] == [status]
        assert f"{NAME} has the sha256" in told[0].reason
        assert (store.rejected / uploads.spool_of(store, bad).name / NAME).exists()
        again = take_messages(broker, arch_tube("x86_64"))
        assert len(again) == (status == Status.QUEUED)
        of = again[0] if again else of
    assert list_packages(store) == {f"hello/20250102030405/1-1.x86_64/{NAME}"}
    assert not store.place(bad.place).exists()


LEGITIMATE_SPECS = {
    "its release has the disttag": noarch("hello"),
    "its source rpm has no sources": lacking_source("hello"),
    "it has an epoch": noarch("hello").replace("Version:", "Epoch: 3\nVersion:", 1),
    "its subpackage has a version of its own": with_subpackage(noarch("hello"), "aa-lib", "Epoch: 2\nVersion: 7\n"),
    "it makes no package of its own name": with_subpackage(noarch("hello").replace("%files\n", "%files -n hello-x\n")
        .replace("%prep\n", "%package -n hello-x\nSummary: x\n%description -n hello-x\n%prep\n", 1), "hello-y"),
    "it is compiled": compiled("hello"),
}  # fmt: skip


@pytest.mark.parametrize("spec", LEGITIMATE_SPECS)
@pytest.mark.parametrize("is_main", [True, False])
def test_what_rpmbuild_makes_of_a_spec_is_published(
    broker: Broker, daemon: Repogen, store: StorePaths, tmp_path: Path, spec: str, is_main: bool
) -> None:
    made = make_rpms(tmp_path, "hello", LEGITIMATE_SPECS[spec], stage="-ba", dist=".el7")
    legs = [path for path in made if is_main or not path.name.endswith("src.rpm")]
    rpms = {path.name: (path.read_bytes(), read_header(path).nevra) for path in legs}
    ask(broker, uploads.upload(store, rpms, of=uploads.request(arch="x86_64"), evr="1.0-1"))
    work(daemon)
    assert [(event.status, event.reason) for event in take_messages(broker, NOTIFY)] == [("Published", "")]
    assert {path.rpartition("/")[2] for path in list_packages(store)} == set(rpms)


def test_a_package_of_another_source_is_rejected_and_built_again(
    broker: Broker, daemon: Repogen, store: StorePaths, rpms: Rpms, tmp_path: Path
) -> None:
    glibc = as_rpms(make_rpm(tmp_path, "glibc", noarch("glibc")))
    ask(broker, uploads.upload(store, {**rpms, **glibc}))
    work(daemon)
    (event,) = take_messages(broker, NOTIFY)
    assert event.status == Status.QUEUED
    assert event.reason.startswith("upload: ")
    assert "was built from 'glibc-1.0-1.src.rpm' (SOURCERPM), not from" in event.reason
    assert not store.target(TARGET).exists()


def test_packages_are_held_against_the_farms_own_table_of_arches(
    broker: Broker, settings: Settings, store: StorePaths, tmp_path: Path
) -> None:
    table = tmp_path / "arches.yml"
    table.write_text("arches: {z80: {accepts: [x86_64]}, x86_64: {}}\n")
    of = uploads.request(arch="z80", target="c7.z80")
    rpms = as_rpms(make_rpm(tmp_path, "hello", compiled("hello")))
    for arches, status in ((table, Status.PUBLISHED), (None, Status.REJECTED)):
        daemon = make_daemon(attr.evolve(settings, farm=attr.evolve(settings.farm, arches=arches)))
        of = attr.evolve(of, build_id=new_build_id())
        ask(broker, uploads.upload(store, rpms, of=of, arch="z80"))
        work(daemon)
        assert [event.status for event in take_messages(broker, NOTIFY)] == [status]


def test_a_package_that_is_none_is_a_bad_upload(broker: Broker, daemon: Repogen, store: StorePaths, rpms: Rpms) -> None:
    whole = rpms[NAME][0]
    for content, nevra in (
        (b"not a package", "hello-1.0-1.noarch"),
        (whole[:3000], "hello-1.0-1.noarch"),
        (whole, "x"),
    ):
        ask(broker, uploads.upload(store, {NAME: (content, nevra)}))
        work(daemon)
        (event,) = take_messages(broker, NOTIFY)
        assert event.status == Status.QUEUED
        assert event.reason.startswith(f"upload: {NAME}")


def test_an_unreadable_manifest_is_refused_unless_the_message_says_what_to_build(
    broker: Broker, daemon: Repogen, store: StorePaths
) -> None:
    of = uploads.request()
    for request, tube in ((None, "createrepo"), (of, "x86_64")):
        asked = attr.evolve(uploads.upload(store, {}, of=of), request=request)
        (uploads.spool_of(store, asked) / "build.json").write_text("{")
        ask(broker, asked)
        work(daemon)
        (event,) = take_messages(broker, NOTIFY)
        assert isinstance(event, Refusal if request is None else BuildEvent)
        assert "build.json: " in event.reason
        stats = broker.tube_stats(tube)
        assert (stats.buried, stats.ready) == ((1, 0) if request is None else (0, 1))
    assert len([path for path in store.rejected.iterdir() if path.is_dir()]) == 2


def test_an_upload_that_is_not_there_is_waited_for_then_refused(
    broker: Broker, daemon: Repogen, store: StorePaths, rpms: Rpms, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = uploads.upload(store, rpms)
    uploads.spool_of(store, asked).rename(store.root / "late")
    ask(broker, asked)
    work(daemon)
    assert broker.tube_stats("createrepo").delayed == 1
    monkeypatch.setattr("reimzul.core.daemon.MAX_WAIT_SECONDS", -1)
    broker.client.use("createrepo")
    broker._used = "createrepo"
    broker.client.kick(1)
    work(daemon)
    (event,) = take_messages(broker, NOTIFY)
    assert isinstance(event, Refusal)
    assert "does not exist" in event.reason
    assert broker.tube_stats("createrepo").buried == 1


def test_hostile_messages_are_buried_and_the_others_go_on(
    broker: Broker, daemon: Repogen, store: StorePaths, rpms: Rpms
) -> None:
    bodies = [
        b"",
        b"7",
        b"\xff" * 100,
        b'{"target": "../x"}',
        b'{"target": "x; touch y"}',
        b'{"target": "a", "arch": "x"}',
    ]
    for body in bodies:
        broker.put_raw("createrepo", body, priority=0)
    ask(broker, uploads.upload(store, rpms))
    work(daemon)
    assert broker.tube_stats("createrepo").buried == len(bodies)
    assert sorted(event.status for event in take_messages(broker, NOTIFY)) == ["Published"] + ["Refused"] * len(bodies)


def test_a_target_in_anothers_hands_is_waited_for_while_others_go_on(
    broker: Broker, daemon: Repogen, store: StorePaths, rpms: Rpms
) -> None:
    for target in ("a.x86_64", "b.x86_64"):
        ask(broker, uploads.upload(store, rpms, of=uploads.request(target=target)))
    with file_lock(store.lock("a.x86_64")), daemon.connect() as own:
        own.watch(daemon.tubes)
        claims = {claim.message.target: claim for claim in daemon.reserve_jobs(own)}
        outcomes = iter(daemon.handle(own, list(claims.values())))
        assert next(outcomes) == (claims["b.x86_64"], None)
        daemon.stop.now.set()
        with pytest.raises(Exception, match="the daemon is stopping"):
            next(outcomes)


def test_createrepo_c_that_fails_is_tried_again_with_growing_pauses(
    broker: Broker, settings: Settings, store: StorePaths, rpms: Rpms, tmp_path: Path
) -> None:
    program = tmp_path / "createrepo_c"
    program.write_text(
        "#!/bin/sh\necho the disk is on fire\ncase $* in *a.x86_64) exit 1 ;; esac\nexec createrepo_c $*\n"
    )
    program.chmod(0o755)
    daemon = make_daemon(attr.evolve(settings, repogen=attr.evolve(settings.repogen, createrepo_c=str(program))))
    for target in ("a.x86_64", "b.x86_64"):
        ask(broker, uploads.upload(store, rpms, of=uploads.request(target=target)))
    with daemon.connect() as own:
        own.watch(daemon.tubes)
        claims = daemon.reserve_jobs(own)
        for pause in (5, 10):
            outcomes = {claim.message.target: outcome for claim, outcome in daemon.handle(own, claims)}
            assert outcomes["b.x86_64"] is None
            failed: Any = outcomes["a.x86_64"]
            assert failed.pause == pause
            assert "exited with 1 for a.x86_64: the disk is on fire" in str(failed)


def test_a_createrepo_c_that_lists_nothing_and_is_content_is_believed_nothing(
    broker: Broker, daemon: Repogen, settings: Settings, store: StorePaths, rpms: Rpms, tmp_path: Path
) -> None:
    ask(broker, uploads.upload(store, rpms))
    work(daemon)
    before = list_packages(store)
    assert before
    take_messages(broker, NOTIFY)
    program = script(tmp_path / "createrepo_c", 'exec createrepo_c "$@" --excludes "*"')
    daemon = make_daemon(attr.evolve(settings, repogen=attr.evolve(settings.repogen, createrepo_c=program)))
    late = uploads.upload(store, rpms, of=uploads.request(timestamp="20250102030405"))
    for asked in (late, RepogenRequest(target=TARGET)):
        number = broker.put(CREATEREPO, asked, priority=PRIORITY)
        work(daemon)
        assert broker.job_stats(number).state == "delayed", "it is tried again, and the leg has no fault of it"
    assert list_packages(store) == before, "what is published stays so"
    assert take_messages(broker, NOTIFY) == []


def script(path: Path, *lines: str) -> str:
    """A program."""
    path.write_text("\n".join(["#!/bin/sh", *lines, ""]))
    path.chmod(0o755)
    return str(path)


@pytest.mark.parametrize("slow", ["createrepo_c", "after_createrepo", "the lock"])
def test_jobs_stay_reserved_while_their_target_takes_long(
    broker: Broker, settings: Settings, store: StorePaths, rpms: Rpms, tmp_path: Path, slow: str
) -> None:
    start_repogen, go = tmp_path / "started", tmp_path / "go"
    waits = [f"touch {start_repogen}", f"while [ ! -e {go} ]; do sleep 0.02; done"]
    changes: dict[str, Any] = {
        "createrepo_c": {"createrepo_c": script(tmp_path / "slow", *waits, 'exec createrepo_c "$@"')},
        "after_createrepo": {"after_createrepo": (script(tmp_path / "hook", *waits),)},
    }
    changed = attr.evolve(settings.repogen, **changes.get(slow, {}))
    daemon = make_daemon(attr.evolve(settings, repogen=changed))
    asked = uploads.upload(store, rpms)
    broker.put(CREATEREPO, asked, priority=PRIORITY, ttr=4)
    with contextlib.ExitStack() as others, ThreadPoolExecutor(1) as pool:
        if slow == "the lock":
            others.enter_context(file_lock(store.lock(TARGET)))
            start_repogen = store.place(asked.place)
        done = pool.submit(work, daemon)
        try:
            until(start_repogen.exists, 20, "it waits")
            daemon.stop.drain.set()  # else it reserves more meanwhile, and beanstalkd reminds it
            before = touches(broker)
            until(lambda: touches(broker) > before, 10, "its job is touched")
        finally:
            go.touch()
            others.close()
        done.result(20)
    assert set(statuses(broker)) == {("x86_64", "Published")}


def touches(broker: Broker) -> int:
    return int(broker.client.stats()["cmd-touch"])


def test_a_disk_that_does_not_take_a_leg_is_waited_for(
    broker: Broker, daemon: Repogen, store: StorePaths, rpms: Rpms
) -> None:
    asked = uploads.upload(store, rpms)
    other = uploads.upload(store, rpms, of=uploads.request(target="other.1.x86_64"))
    in_the_way = store.target(TARGET) / "hello"
    in_the_way.parent.mkdir()
    in_the_way.touch()
    number = broker.put(CREATEREPO, asked, priority=PRIORITY)
    ask(broker, other)
    work(daemon)
    assert [event.build_id for event in take_messages(broker, NOTIFY)] == [other.build_id]
    stats = broker.job_stats(number)
    assert (stats.state, stats.releases) == ("delayed", 1)
    in_the_way.unlink()
    broker.kick(number)
    work(daemon)
    assert [event.build_id for event in take_messages(broker, NOTIFY)] == [asked.build_id]


def test_a_lock_that_the_disk_does_not_take_is_waited_for(
    broker: Broker, daemon: Repogen, store: StorePaths, rpms: Rpms
) -> None:
    asked = uploads.upload(store, rpms)
    store.lock(TARGET).mkdir()
    number = broker.put(CREATEREPO, asked, priority=PRIORITY)
    work(daemon)
    stats = broker.job_stats(number)
    assert (stats.state, stats.releases) == ("delayed", 1)
    store.lock(TARGET).rmdir()
    broker.kick(number)
    work(daemon)
    assert [event.build_id for event in take_messages(broker, NOTIFY)] == [asked.build_id]


def test_a_leg_createrepo_c_leaves_out_is_given_up_and_taken_out(
    broker: Broker, daemon: Repogen, store: StorePaths, rpms: Rpms, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(repogen_daemon, "LEFT_OUT_BACKOFF", Backoff(0, 0))
    # what createrepo_c cannot read and our own reader can does not exist; so ours is made blind
    monkeypatch.setattr("reimzul.repogen.verify.verify_nevra", lambda *_: None)
    monkeypatch.setattr("reimzul.repogen.verify.verify_sources", lambda *_: None)
    monkeypatch.setattr("reimzul.repogen.verify.verify_arches", lambda *_: None)
    monkeypatch.setattr("reimzul.repogen.verify.verify_texts", lambda path, file: None)
    bad = uploads.upload(store, {NAME: rpms[NAME], "z-1-1.noarch.rpm": (b"junk", "z-1-1.noarch")})
    good = uploads.upload(store, rpms, of=uploads.request(timestamp="20250102030405"))
    ask(broker, bad, good)
    work(daemon)
    assert sorted(statuses(broker)) == [("x86_64", "Published"), ("x86_64", "Rejected")]
    assert [sign.build_id for sign in take_messages(broker, TOSIGN)] == [good.build_id]
    assert list_packages(store) == {f"hello/20250102030405/1-1.x86_64/{NAME}"}
    assert (store.rejected / uploads.spool_of(store, bad).name / NAME).exists()


FORBIDDEN = "%{lua:print(string.char(27))}"


@pytest.fixture(scope="session")
def forbidden(tmp_path_factory: pytest.TempPathFactory) -> Rpms:
    """A package whose changelog has an escape character, which XML cannot hold."""
    spec = noarch("hello") + f"%changelog\n* Mon Jan 01 2024 A <a@example.org> 1.0-1\n- colours {FORBIDDEN}[1m\n"
    path = make_rpm(tmp_path_factory.mktemp("forbidden"), "hello", spec)
    return as_rpms(path)


def test_a_text_that_xml_cannot_hold_is_rejected_before_the_run_and_not_built_again(
    broker: Broker, daemon: Repogen, store: StorePaths, forbidden: Rpms
) -> None:
    asked = uploads.upload(store, forbidden)
    ask(broker, asked)
    work(daemon)
    (event,) = take_messages(broker, NOTIFY)
    assert event.status == Status.REJECTED
    assert is_fault(event) is None
    assert NAME in event.reason
    assert "CHANGELOGTEXT has the control character 0x1b" in event.reason
    assert "upload" not in event.reason
    attempt = uploads.spool_of(store, asked).name
    assert event.url.endswith(f"/attempts/{attempt}/")
    assert {path.name for path in (store.attempts / attempt).iterdir()} == {*uploads.LOGS, "build.json"}
    assert take_messages(broker, arch_tube("x86_64")) == []
    assert not store.target(TARGET).exists()


def test_what_createrepo_c_refuses_is_rejected_at_once_with_its_line_and_the_others_are_published(
    broker: Broker, daemon: Repogen, store: StorePaths, forbidden: Rpms, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("reimzul.repogen.verify.verify_texts", lambda path, file: None)
    leaf = make_rpm(tmp_path, "leaf", noarch("leaf"))
    rpms = {leaf.name: (leaf.read_bytes(), "leaf-1.0-1.noarch")}
    bad = uploads.upload(store, forbidden)
    good = uploads.upload(store, rpms, of=uploads.request(timestamp="20250102030405"), pkgname="leaf")
    ask(broker, bad, good)
    work(daemon)
    events = {event.status: event for event in take_messages(broker, NOTIFY)}
    assert set(events) == {"Published", "Rejected"}
    assert broker.tube_stats("createrepo").delayed == 0
    reason = events["Rejected"].reason
    assert reason == (
        f"createrepo_c refuses {NAME}: Cannot dump XML for hello: "
        "Forbidden control chars found (ASCII values <32 except 9, 10 and 13)."
    )
    assert list_packages(store) == {f"leaf/20250102030405/1-1.x86_64/{leaf.name}"}


def test_a_package_createrepo_c_crashes_on_is_rejected_and_the_others_are_published(
    broker: Broker, settings: Settings, store: StorePaths, rpms: Rpms, tmp_path: Path
) -> None:
    program = tmp_path / "createrepo_c"
    program.write_text(
        "#!/bin/sh\n"
        # the last word is the folder; a list of packages is among the words of a whole run
        "for word; do case $last in --pkglist) list=$word;; esac; last=$word; done\n"
        'if [ -n "$list" ]; then grep -q crashing/ "$list" && kill -SEGV $$; fi\n'
        "case $last in */crashing/*) kill -SEGV $$;; esac\n"
        'exec createrepo_c "$@"\n'
    )
    program.chmod(0o755)
    daemon = make_daemon(attr.evolve(settings, repogen=attr.evolve(settings.repogen, createrepo_c=str(program))))
    crashing = as_rpms(make_rpm(tmp_path, "crashing", noarch("crashing")))
    bad = uploads.upload(store, crashing, pkgname="crashing")
    good = uploads.upload(store, rpms, of=uploads.request(timestamp="20250102030405"))
    ask(broker, bad, good)
    work(daemon)
    events = {event.status: event for event in take_messages(broker, NOTIFY)}
    assert set(events) == {"Published", "Rejected"}
    assert broker.tube_stats("createrepo").delayed == 0
    assert events["Rejected"].build_id == bad.build_id
    assert "ended by signal 11" in events["Rejected"].reason
    assert list_packages(store) == {f"hello/20250102030405/1-1.x86_64/{NAME}"}


@pytest.mark.parametrize("spoilt", ["cache", "repodata"])
def test_a_wrong_checksum_is_reckoned_anew(
    broker: Broker, daemon: Repogen, store: StorePaths, rpms: Rpms, spoilt: str, caplog: pytest.LogCaptureFixture
) -> None:
    asked = uploads.upload(store, rpms)
    ask(broker, asked)
    work(daemon)
    take_messages(broker, NOTIFY)
    if spoilt == "cache":
        shutil.rmtree(store.target(TARGET) / "repodata")
        shutil.rmtree(store.output(TARGET))
        (cached,) = (store.cache / TARGET).iterdir()
        cached.write_text("00" * 32)
    if spoilt == "repodata":
        spoil(store.target(TARGET) / "repodata", asked, rpms)
    daemon.indexer.listings = listing_module.ListingCache(store)
    ask(broker, asked)
    with caplog.at_level(logging.WARNING):
        work(daemon)
    assert statuses(broker) == [("x86_64", "Published")]
    assert "made again, from the packages alone" in caplog.text


def spoil(folder: Path, asked: RepogenRequest, rpms: Rpms) -> None:
    """Have the repodata say a wrong checksum."""
    (primary,) = folder.glob("*primary.xml.gz")
    text = gzip.decompress(primary.read_bytes())
    (sha256,) = listing_module.read_listing(folder).values()
    primary.write_bytes(gzip.compress(text.replace(sha256.encode(), b"0" * 64)))


def test_what_nobody_asks_for_is_taken_up_at_start(
    broker: Broker, daemon: Repogen, store: StorePaths, rpms: Rpms, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("reimzul.repogen.verify.UNREQUESTED_SECONDS", -1)
    uploads.upload(store, rpms)
    strange = uploads.spool_of(store, uploads.upload(store, rpms)).rename(store.spool / ("x" * 250))
    daemon.do_idle_work(broker)
    daemon.do_idle_work(broker)
    work(daemon)
    assert [event.status for event in take_messages(broker, NOTIFY)] == ["Refused", "Published"]
    assert not strange.exists()
    assert (store.rejected / ("x" * 150) / NAME).exists()


def test_a_lost_claim_takes_no_other_with_it(broker: Broker, daemon: Repogen, store: StorePaths, rpms: Rpms) -> None:
    ask(broker, *(uploads.upload(store, rpms, of=uploads.request(target=f"t{n}.x86_64")) for n in range(3)))
    with daemon.connect() as own:
        own.watch(daemon.tubes)
        claims = daemon.reserve_jobs(own)
        own.client.delete(claims[1].id)
        daemon.settle_all(own, claims)
    assert broker.tube_stats("createrepo").ready == 0
    assert len(statuses(broker)) == 3  # the lost one's effects are out all the same, and may be out twice


class Scene:
    """One leg, fresh for each death: its store, its request, its daemon."""

    def __init__(
        self, broker: Broker, settings: Settings, root: Path, harm: Callable[[StorePaths, RepogenRequest], None]
    ):
        self.store = uploads.make_store(root)
        settings = attr.evolve(settings, bstore=attr.evolve(settings.bstore, root=root))
        self.daemon = make_daemon(settings)
        of = uploads.request()
        content = {NAME: (CONTENT[0], "hello-1.0-1.noarch")}
        self.asked = uploads.upload(self.store, content, of=of)
        harm(self.store, self.asked)
        ask(broker, self.asked)


CONTENT: list[bytes] = []


def unharmed(store: StorePaths, asked: RepogenRequest) -> None:
    """Nothing is wrong with it."""


def short(store: StorePaths, asked: RepogenRequest) -> None:
    """Cut short on its way."""
    (uploads.spool_of(store, asked) / "root.log").write_bytes(b"")


@pytest.mark.slow
@pytest.mark.parametrize("harm", [unharmed, short])
def test_dying_at_any_step_loses_nothing_and_doubles_nothing(
    broker: Broker,
    settings: Settings,
    rpms: Rpms,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    harm: Callable[[StorePaths, RepogenRequest], None],
) -> None:
    CONTENT[:] = [rpms[NAME][0]]
    steps, rounds = uploads.Steps(monkeypatch), iter(range(1000))

    def scene() -> Scene:
        at, steps.die_at = steps.die_at, -1
        made = Scene(broker, settings, tmp_path / str(next(rounds)), harm)
        steps.count, steps.die_at = 0, at
        return made

    def run_to_the_end() -> None:
        work(scene().daemon)

    for step in steps.deaths(run_to_the_end):
        at, steps.die_at = steps.die_at, -1
        for tube in (NOTIFY, TOSIGN, CREATEREPO, arch_tube("x86_64")):
            take_messages(broker, tube)
        steps.die_at = at
        play = scene()
        with pytest.raises(uploads.Died):
            work(play.daemon)
        steps.live()
        work(play.daemon)
        check_scene(broker, play, harm is unharmed, step)


def check_scene(broker: Broker, play: Scene, good: bool, step: int) -> None:
    store, asked = play.store, play.asked
    stats = broker.tube_stats("createrepo")
    assert (stats.ready, stats.reserved, stats.delayed, stats.buried) == (0, 0, 0, 0), step
    assert tree(store.spool) == set()
    name = uploads.spool_of(store, asked).name  # of what was put aside, the logs can be read
    assert tree(store.attempts) == (set() if good else {f"{name}/{log}" for log in (*uploads.LOGS, "build.json")})
    events = {(event.build_id, event.status) for event in take_messages(broker, NOTIFY)}
    assert events == {(asked.build_id, Status.PUBLISHED if good else Status.QUEUED)}
    signs, again = take_messages(broker, TOSIGN), take_messages(broker, arch_tube("x86_64"))
    assert {sign.place for sign in signs} == ({asked.place} if good else set())
    assert {(one.build_id, len(one.tries)) for one in again} == (set() if good else {(asked.build_id, 1)})
    kept = store.rejected / uploads.spool_of(store, asked).name
    assert kept.exists() == (not good)
    assert store.place(asked.place).exists() == good
    if good:
        assert list_packages(store) == {f"hello/20240102030405/1-1.x86_64/{NAME}"}
        assert (store.index / leg_key(asked.build_id, "x86_64") / NAME).exists()


class Process:
    """`reimzul-repogen` as a program."""

    def __init__(self, ini: Path, log: Path) -> None:
        self.log = log
        with log.open("ab") as output:
            self.process = subprocess.Popen(
                [sys.executable, "-c", "from reimzul.repogen.cli import main; main()", "--config", str(ini)],
                stderr=output,
                stdout=output,
            )

    def end(self, number: int = signal.SIGKILL) -> int:
        self.process.send_signal(number)
        return self.process.wait(20)


@pytest.fixture
def start_repogen(tmp_path: Path) -> Iterator[Callable[[], Process]]:
    """Starts a repogen; all end with the test."""
    running: list[Process] = []

    def start() -> Process:
        running.append(Process(tmp_path / "reimzul.ini", tmp_path / "repogen.log"))
        return running[-1]

    yield start
    for one in running:
        if one.process.poll() is None:
            one.end()


def many(store: StorePaths, rpms: Rpms, count: int, targets: int = 1) -> list[RepogenRequest]:
    """Uploads of as many builds, each of a second of its own."""
    times = [f"20240102{n // 3600:02}{n // 60 % 60:02}{n % 60:02}" for n in range(count)]
    requests = [uploads.request(timestamp=time, target=f"t{n % targets}.x86_64") for n, time in enumerate(times)]
    return [uploads.upload(store, rpms, of=of) for of in requests]


def is_settled(broker: Broker) -> bool:
    stats = broker.tube_stats("createrepo")
    return not (stats.ready or stats.reserved or stats.delayed)


def check_all_published(broker: Broker, store: StorePaths, legs: list[RepogenRequest]) -> None:
    """Every leg is listed, announced and given to the signer; nothing lies about."""
    events = take_messages(broker, NOTIFY)
    assert {event.status for event in events} == {"Published"}
    assert {event.build_id for event in events} == {leg.build_id for leg in legs}
    assert {sign.place for sign in take_messages(broker, TOSIGN)} == {leg.place for leg in legs}
    for target in {leg.target for leg in legs}:
        places = {leg.place for leg in legs if leg.target == target}
        assert {f"repo/{target}/{path}".rpartition("/")[0] for path in list_packages(store, target)} == places
        assert not [path for path in store.target(target).iterdir() if path.name.startswith((".repodata", "repodata."))]
    assert tree(store.spool) == tree(store.attempts) == tree(store.rejected) == set()
    assert broker.tube_stats("createrepo").buried == 0


@pytest.mark.slow
def test_three_on_one_target_lose_and_double_nothing(
    broker: Broker, store: StorePaths, rpms: Rpms, settings: Settings, start_repogen: Callable[[], Process]
) -> None:
    processes = [start_repogen() for _ in range(3)]
    legs = many(store, rpms, 100)
    for leg in legs:
        ask(broker, leg)
    until(lambda: is_settled(broker), 60, "all is published")
    check_all_published(broker, store, legs)
    until(lambda: broker.tube_stats("createrepo").watchers == 3, 20, "all are up, and handle signals")
    assert [one.end(signal.SIGTERM) for one in processes] == [0, 0, 0]


@pytest.mark.slow
def test_killed_at_any_moment_it_loses_nothing(
    broker: Broker, store: StorePaths, rpms: Rpms, settings: Settings, start_repogen: Callable[[], Process]
) -> None:
    chance = random.Random(7)
    legs = many(store, rpms, 60, targets=3)
    processes = [start_repogen(), start_repogen()]
    for number, leg in enumerate(legs):
        ask(broker, leg)
        if number % 6 == 5:
            with contextlib.suppress(AssertionError):
                until(lambda: is_settled(broker), chance.uniform(0.0, 0.8), "a moment passes")
            victim = processes.pop(0)
            victim.end()
            processes.append(start_repogen())
    until(lambda: is_settled(broker), 60, "all is published")
    check_all_published(broker, store, legs)


def test_it_stops_within_seconds_while_createrepo_c_runs(
    broker: Broker,
    store: StorePaths,
    rpms: Rpms,
    settings: Settings,
    tmp_path: Path,
    start_repogen: Callable[[], Process],
) -> None:
    slow = tmp_path / "createrepo_c"
    slow.write_text(f"#!/bin/sh\ntouch {tmp_path}/runs\nexec sleep 600\n")
    slow.chmod(0o755)
    with (tmp_path / "reimzul.ini").open("a") as ini:
        ini.write(f"[repogen]\ncreaterepo_c = {slow}\n")
    process = start_repogen()
    ask(broker, uploads.upload(store, rpms))
    until((tmp_path / "runs").exists, 20, "createrepo_c runs")
    with file_lock(store.lock(TARGET)) as lock:
        assert lock is None
    assert process.end(signal.SIGTERM) == 0
    assert broker.tube_stats("createrepo").ready == 1
    with file_lock(store.lock(TARGET)) as lock:
        assert lock is not None


def test_a_killed_one_leaves_the_lock_to_its_createrepo_c(
    broker: Broker,
    store: StorePaths,
    rpms: Rpms,
    settings: Settings,
    tmp_path: Path,
    start_repogen: Callable[[], Process],
) -> None:
    slow = tmp_path / "createrepo_c"
    flag = tmp_path / "go"
    slow.write_text(
        f'#!/bin/sh\ntouch {tmp_path}/runs\nwhile [ ! -e {flag} ]; do sleep 0.02; done\nexec createrepo_c "$@"\n'
    )
    slow.chmod(0o755)
    with (tmp_path / "reimzul.ini").open("a") as ini:
        ini.write(f"[repogen]\ncreaterepo_c = {slow}\n")
    process = start_repogen()
    ask(broker, uploads.upload(store, rpms))
    until((tmp_path / "runs").exists, 20, "createrepo_c runs")
    process.end()
    with file_lock(store.lock(TARGET)) as lock:
        assert lock is None
    flag.touch()

    def free() -> bool:
        with file_lock(store.lock(TARGET)) as lock:
            return lock is not None

    until(free, 20, "createrepo_c has ended")
    start_repogen()
    until(lambda: broker.tube_stats("tosign").ready == 1, 20, "the next one publishes")


def test_a_store_that_cannot_be_written_is_one_clear_line(settings: Settings, tmp_path: Path) -> None:
    (tmp_path / "bstore").write_text("not a folder")
    process = Process(tmp_path / "reimzul.ini", tmp_path / "repogen.log")
    assert process.process.wait(20) == 3
    (line,) = (tmp_path / "repogen.log").read_text().splitlines()
    assert line == f"reimzul-repogen: [bstore] root: {tmp_path}/bstore/repo: not a directory"


def test_once_an_hour_what_was_kept_long_enough_is_removed(
    broker: Broker,
    settings: Settings,
    store: StorePaths,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    for folder in (store.attempts, store.rejected):
        (folder / "1.x86_64.2").mkdir()
    later = time.time() + 91 * 86400
    monkeypatch.setattr(time, "time", lambda: later)
    make_daemon(settings).do_idle_work(broker)
    assert not list(store.attempts.iterdir())
    assert [path.name for path in store.rejected.iterdir()] == ["1.x86_64.2"]
    assert "the logs of 1 attempts, 0 uploads put aside" in caplog.text

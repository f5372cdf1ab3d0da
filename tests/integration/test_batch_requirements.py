# SPDX-License-Identifier: Apache-2.0
"""reimzul-batch where builds wait: for what a target provides, for other builds, and for jobs that were lost."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import attr
import pytest

from reimzul.batch import cli as batch_cli
from reimzul.batch import job_checks, jobs, target_provides
from reimzul.core.beanstalk import BATCH, HELD_SECONDS, NOTIFY, PRIORITY, Broker, arch_tube
from reimzul.core.capability import Provide
from reimzul.core.config import load_file
from reimzul.core.control import new_flag, set_flag
from reimzul.core.http_client import HttpSession
from reimzul.core.listed_packages import iterate_provides
from reimzul.core.message import BuildRequest, Status, event_for
from reimzul.core.store_paths import StoreUrls
from reimzul.history import BuildFilter, open_history
from reimzul.plan.document import Member
from reimzul.plan.progress import MemberProgress
from tests import srpms, webserver
from tests.batch import ARCH, TARGET, FakeFarm, Stand, held_names, list_jobs, make_plan, member
from tests.conftest import Beanstalkd
from tests.waiting import until

BUILD_ID, OTHER_ID = "1" * 32, "2" * 32


class Store:
    """A target's repository over HTTP."""

    def __init__(self, folder: Path) -> None:
        self.repo = folder / "store" / "repo"
        self.target = self.repo / f"{TARGET}.{ARCH}"
        self.repo.mkdir(parents=True)
        self.server = webserver.serve(folder / "store")
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}/repo/"

    def publish(self, name: str, version: str = "1.0", arch: str = "noarch") -> None:
        spec = srpms.noarch(name, version=version).replace("BuildArch: noarch\n", "")
        srpms.make_rpm(self.target, name, spec, arch)
        subprocess.run(["createrepo_c", "--quiet", "--update", self.target], check=True)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    made = Store(tmp_path)
    yield made
    webserver.close(made.server)


@pytest.fixture
def stand(tmp_path: Path, beanstalkd: Beanstalkd, broker: Broker, store: Store) -> Iterator[Stand]:
    """A controller whose reimzul-batch is not started yet."""
    made = Stand(tmp_path, beanstalkd, store.url)
    yield made
    made.kill()


@pytest.fixture
def hasty(stand: Stand, monkeypatch: pytest.MonkeyPatch) -> Iterator[Stand]:
    """reimzul-batch in a thread of the test, which checks its jobs often."""
    monkeypatch.setattr(job_checks, "CHECK_SECONDS", 0.3)
    stand.incoming.joinpath(".batches").mkdir()
    daemon = batch_cli.make_daemon(load_file(stand.ini))

    def serve() -> None:
        with stand.beanstalkd.connect() as broker:
            daemon.serve(broker)

    thread = threading.Thread(target=serve)
    (stand.folder / "batch.log").write_text("")
    thread.start()
    yield stand
    daemon.stop.now.set()
    thread.join(15)
    assert not thread.is_alive()


def request(name: str = "single", build_id: str = BUILD_ID, **more: object) -> BuildRequest:
    given: dict[str, object] = {
        "srpm": f"{name}-1-1.src.rpm", "arch": ARCH, "target": f"{TARGET}.{ARCH}", "disttag": ".el9",
        "submitter": "johnny", "build_id": build_id, "timestamp": "20261130000000",
    }  # fmt: skip
    return BuildRequest(**{**given, **more})  # type: ignore[arg-type]


# --- what a target provides


def test_what_createrepo_lists_is_read_with_versions_and_files(store: Store) -> None:
    spec = srpms.noarch("tool").replace("BuildArch: noarch", "BuildArch: noarch\nProvides: pkgconfig(tool) = 2:1.5")
    spec = spec.replace("/usr/share/tool", "/usr/bin/tool")
    srpms.make_rpm(store.target, "tool", spec)
    subprocess.run(["createrepo_c", "--quiet", store.target], check=True)
    with HttpSession() as session:
        found = set(iterate_provides(session, f"{store.url}{TARGET}.{ARCH}/"))
    assert ("noarch", Provide("pkgconfig(tool)", "EQ", "2:1.5")) in found
    assert ("noarch", Provide("tool", "EQ", "0:1.0-1")) in found
    assert any(each.name.startswith("/usr/bin/tool") and not each.version for _, each in found)


def test_a_target_is_read_again_only_when_it_has_changed(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    store.publish("library")
    url, names = f"{store.url}{TARGET}.{ARCH}/", frozenset({"library"})
    reads = []

    def read(session: HttpSession, url: str) -> Iterator[tuple[str, Provide]]:
        reads.append(url)
        return iterate_provides(session, url)

    monkeypatch.setattr(target_provides, "iterate_provides", read)
    with HttpSession() as session:
        first = target_provides.read_target(session, url, names, None)
        second = target_provides.read_target(session, url, names, first)
        assert len(reads) == 1
        assert first.began <= second.began
        assert second.provides == first.provides
        more = target_provides.read_target(session, url, names | {"other"}, second)
        assert len(reads) == 2, "it was not read for this name"
        assert more.provides_all(["library >= 1.0"])
        assert not more.provides_all(["other"])
        assert not more.provides_all(["library", "conflict: glibc"])


def test_a_target_is_read_again_at_once_after_a_publication(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    readings: list[float] = []

    def read(*given: Any) -> target_provides.TargetReading:
        readings.append(time.monotonic())
        return read_target(*given)

    read_target = target_provides.read_target
    monkeypatch.setattr(target_provides, "read_target", read)
    store.publish("library")
    watcher = target_provides.TargetWatcher(StoreUrls.from_settings(store.url, "rsync://localhost/store/"))
    target = f"{TARGET}.{ARCH}"
    until(lambda: watcher.read(target, ["library"]), 10, "the target is read")
    watcher.note_publication(target)
    until(lambda: watcher.read(target, ["library"]) and len(readings) > 1, 5, "it is read again before its time")
    assert readings[1] - readings[0] < target_provides.POLL_SECONDS


def test_a_target_that_changes_twice_within_a_second_is_read_again(store: Store) -> None:
    """Both states have the same Last-Modified."""
    url, names = f"{store.url}{TARGET}.{ARCH}/", frozenset({"library"})
    within = time.time() + 60
    reading = None
    with HttpSession() as session:
        for version in ("1.0", "2.0"):
            store.publish("library", version)
            os.utime(store.target / "repodata" / "repomd.xml", (within, within))
            reading = target_provides.read_target(session, url, names, reading)
    assert reading is not None
    assert reading.provides_all(["library >= 2.0"])


def test_a_file_that_primary_xml_does_not_have_is_found_in_the_list_of_files(store: Store) -> None:
    store.publish("library")
    names = frozenset({"/usr/share/library/greeting", "/usr/share/library/nothing"})
    with HttpSession() as session:
        found = target_provides.read_target(session, f"{store.url}{TARGET}.{ARCH}/", names, None)
    assert found.provides_all(["/usr/share/library/greeting"])
    assert not found.provides_all(["/usr/share/library/nothing"])


def test_a_member_is_released_once_the_target_provides_the_version_it_misses(
    stand: Stand, broker: Broker, store: Store
) -> None:
    store.publish("library", "1.0")
    stand.start()
    with FakeFarm(stand, {"user": [["library >= 2.0"]]}) as farm:
        farm.is_building.clear()
        stand.submit(broker, make_plan(member("user"), member("slow", rank=1)))
        stand.wait_for({"user": "released", "slow": "released"})
        stand.order(broker, "pause")
        stand.wait_for({"slow": "held"})
        stand.order(broker, "release", "user")
        farm.is_building.set()
        stand.wait_for({"user": "waiting"})
        store.publish("library", "2.0")
        stand.order(broker, "resume")
        stand.wait_for({"slow": "published"})
        stand.wait_for({"user": "published"}, 30)
    assert farm.started.count("user") == 2


def test_a_member_that_misses_what_nobody_could_provide_ends_as_failed(stand: Stand, broker: Broker) -> None:
    """A store without any repodata answers too: it provides nothing."""
    stand.start()
    with FakeFarm(stand, {"user": [["libary-devel"]]}) as farm:
        stand.submit(broker, make_plan(member("user"), member("other")))
        stand.wait_until_over(40)
        until(lambda: farm.of("user", Status.FAILED), 10, "the end is announced")
    assert stand.states() == {"user": "failed", "other": "published"}
    failed = farm.of("user", Status.FAILED)
    assert [event.reason for event in failed] == [
        "nobody provides libary-devel; nothing left in the batch could",
    ]
    assert failed[0].attempt
    assert not list(list_jobs(broker))


def test_a_member_waits_while_the_store_does_not_answer(stand: Stand, broker: Broker, store: Store) -> None:
    repomd = store.target / "repodata" / "repomd.xml"
    repomd.parent.mkdir(parents=True)
    status = repomd.with_name("repomd.xml.status")
    status.write_text("503")
    stand.start()
    with FakeFarm(stand, {"user": [["libary-devel"]]}) as farm:
        stand.submit(broker, make_plan(member("user")))
        until(lambda: "is unknown" in stand.log, 20, "the store has been asked")
        assert stand.states() == {"user": "waiting"}
        status.unlink()
        stand.wait_until_over(40)
        assert farm.started == ["user"]
    assert stand.states() == {"user": "failed"}


def test_a_member_that_misses_again_what_is_listed_is_not_built_for_ever(
    stand: Stand, broker: Broker, store: Store
) -> None:
    store.publish("library")
    stand.start()
    with FakeFarm(stand, {"user": [["library"]] * 9}) as farm:
        stand.submit(broker, make_plan(member("user")))
        stand.wait_until_over(60)
    assert stand.states() == {"user": "failed"}
    assert 3 <= len(farm.started) <= 5


# --- followers


def nobodys_member() -> Member:
    """A member that no builder takes: while it is released, others may still come to what they wait for."""
    return member("nobodys", arch="aarch64", tube="aarch64", target=f"{TARGET}.aarch64", legs=("aarch64",))


def followers_of(stand: Stand, name: str) -> dict[str, str]:
    return stand.state().members[f"{name}.{ARCH}"].followers


def test_a_follower_is_released_once_the_target_provides_what_it_misses_for_its_arch(
    stand: Stand, broker: Broker, store: Store
) -> None:
    """The builders' clocks are ahead, and the history has the release all the same."""
    stand.start()
    outcomes: dict[str, list[Any]] = {
        "user": [{ARCH: Status.PUBLISHED, "i386": ["library"]}, {"i386": Status.PUBLISHED}],
        "top": [["library"]],
    }
    with FakeFarm(stand, outcomes) as farm:
        farm.clock_ahead = 30
        stand.submit(broker, make_plan(member("user"), member("top", "user"), nobodys_member()))
        stand.wait_for({"user": "waiting", "top": "waiting"})
        store.publish("library", arch=ARCH)
        stand.wait_for({"top": "published"})
        assert stand.states()["user"] == "waiting", "the package does not fit its arch"
        store.publish("library", arch="i686")
        stand.wait_for({"user": "published"})
        until(lambda: len(farm.of("user", Status.PUBLISHED)) == 2, 10, "both legs are published")
        released = [each for each in farm.of("user", Status.QUEUED) if each.held is False and each.arch == "i386"]
        held = [each for each in farm.of("user", Status.QUEUED) if each.missing]
        assert [each.at > held[0].at for each in released] == [True]
        until(lambda: followers_of(stand, "user") == {"i386": "published"}, 10, "reimzul-batch knows")
    assert farm.started.count("user") == 2
    assert not list(list_jobs(broker))


def test_a_follower_that_misses_what_nobody_provides_ends_alone_as_failed(stand: Stand, broker: Broker) -> None:
    stand.start()
    with FakeFarm(stand, {"user": [{ARCH: Status.PUBLISHED, "i386": ["libary"]}]}) as farm:
        stand.submit(broker, make_plan(member("user")))
        stand.wait_until_over(40)
        until(lambda: farm.of("user", Status.FAILED), 10, "the end is announced")
    failed = farm.of("user", Status.FAILED)
    assert [(each.arch, each.reason) for each in failed] == [
        ("i386", "nobody provides libary; nothing left in the batch could"),
    ]
    assert stand.states() == {"user": "published"}
    assert not list(list_jobs(broker))


def test_a_follower_whose_job_is_lost_does_not_keep_its_batch_open(hasty: Stand, broker: Broker) -> None:
    with FakeFarm(hasty, {"user": [{ARCH: Status.PUBLISHED, "i386": ["library"]}]}) as farm:
        hasty.submit(broker, make_plan(member("user")))
        hasty.wait_for({"user": "waiting"})
        job = hasty.state().members[f"user.{ARCH}"].job
        until(lambda: broker.job_stats(job).is_held, 5, "its builder holds it")
        farm.is_building.clear()
        broker.delete(job)
        hasty.order(broker, "release", "user")
        hasty.wait_until_over()
        until(lambda: farm.of("user", Status.FAILED), 10, "its end is announced")
    assert (hasty.states(), followers_of(hasty, "user")) == ({"user": "published"}, {"i386": "failed"})
    reason = f"its job {job} is gone, and has left no result"
    assert hasty.state().members[f"user.{ARCH}"].reason == reason
    (failed,) = farm.of("user", Status.FAILED)
    with contextlib.closing(open_history(hasty.history_url, reading=True)) as history:
        records = {each.arch: each for each in history.find_builds(BuildFilter(build_id=failed.build_id), 10)}
    assert {arch: each.state for arch, each in records.items()} == {ARCH: "published", "i386": "failed"}
    assert records["i386"].reason == reason


def test_a_single_build_whose_follower_waits_is_not_forgotten(stand: Stand, broker: Broker, store: Store) -> None:
    stand.start()
    outcomes = {"single": [{ARCH: Status.PUBLISHED, "i386": ["library"]}, {"i386": Status.PUBLISHED}]}
    with FakeFarm(stand, outcomes) as farm:
        broker.put(arch_tube(ARCH), request(dep_wait=3600), priority=PRIORITY)
        until(lambda: held_names(broker) == ["single"], 10, "it is held")
        store.publish("library", arch=ARCH)
        store.publish("library", arch="i686")
        until(lambda: len(farm.of("single", Status.PUBLISHED)) == 2, 30, "both legs are published")
        until(lambda: stand.single_log.read_text().count('"state":"over"'), 10, "it is over")


# --- lost jobs


def release_base(stand: Stand, broker: Broker, farm: FakeFarm) -> MemberProgress:
    """Submit two members to builders that take no jobs yet, and wait until the first can be reserved."""
    farm.is_building.clear()
    stand.submit(broker, make_plan(member("base"), member("app", "base")))
    stand.wait_for({"base": "released"})
    progress = stand.state().members[f"base.{ARCH}"]
    until(lambda: broker.job_stats(progress.job).state == "ready", 5, "it is kicked")
    return progress


def test_a_lost_job_is_put_again_with_its_build_id(hasty: Stand, broker: Broker) -> None:
    with FakeFarm(hasty) as farm:
        progress = release_base(hasty, broker, farm)
        broker.delete(progress.job)
        until(lambda: hasty.count_entries("put again"), 15, "it is put again")
        farm.is_building.set()
        hasty.wait_until_over()
    assert farm.of("base", Status.PUBLISHED)[0].build_id == progress.build_id


def test_a_result_that_never_arrived_is_read_from_the_history(hasty: Stand, broker: Broker) -> None:
    with FakeFarm(hasty) as farm:
        progress = release_base(hasty, broker, farm)
        made = BuildRequest.decode(broker.peek(progress.job))
        farm.record([event_for(made, status) for status in (Status.SUCCESS, Status.PUBLISHED)])
        broker.delete(progress.job)
        hasty.wait_for({"base": "published"})
        assert farm.started == []


def test_a_kick_that_was_lost_is_repeated(hasty: Stand, broker: Broker) -> None:
    with FakeFarm(hasty) as farm:
        farm.is_building.clear()
        hasty.submit(broker, make_plan(member("base"), member("app", "base")))
        hasty.wait_for({"base": "released"})
        job = hasty.state().members[f"base.{ARCH}"].job
        until(lambda: broker.job_stats(job).state == "ready", 5, "it is kicked")
        with hasty.beanstalkd.connect() as other:
            other.reserve_job(job, arch_tube(ARCH)).release(HELD_SECONDS)
        until(lambda: broker.job_stats(job).state == "ready", 10, "it is kicked again")


# --- single builds


def test_only_a_job_that_a_builder_may_reserve_is_that_of_a_build(broker: Broker) -> None:
    asked = request()
    numbers = [
        broker.put(BATCH, attr.evolve(asked, after=(OTHER_ID,)), priority=PRIORITY),
        broker.put(NOTIFY, event_for(asked, Status.QUEUED, held=True), priority=PRIORITY),
        broker.put(BATCH, event_for(asked, Status.PUBLISHED), priority=PRIORITY),
        broker.put(arch_tube(ARCH), asked, priority=PRIORITY, delay=HELD_SECONDS),
    ]
    assert [jobs.find_job(broker, each, BUILD_ID) is not None for each in numbers] == [False, False, False, True]
    found = jobs.find_jobs(broker, range(numbers[0], numbers[-1] + 1), [BUILD_ID], lambda: None)
    assert list(found) == numbers[-1:]


def test_a_build_with_after_is_built_once_the_others_are_published(stand: Stand, broker: Broker) -> None:
    stand.start()
    with FakeFarm(stand) as farm:
        broker.put(BATCH, request(after=(OTHER_ID,)), priority=PRIORITY)
        until(lambda: held_names(broker) == ["single"], 10, "it is held")
        until(lambda: farm.of("", Status.QUEUED), 10, "that is announced")
        held = farm.of("", Status.QUEUED)[0]
        assert (held.held, held.waits_for) == (True, f"waits for {OTHER_ID[:8]}")
        broker.put(arch_tube(ARCH), request("other", OTHER_ID), priority=PRIORITY)
        until(lambda: "single" in farm.published, 15, "it is built")
    assert farm.started == ["other", "single"]


def test_a_build_with_after_survives_kills_and_is_built_once(stand: Stand, broker: Broker) -> None:
    with FakeFarm(stand) as farm:
        broker.put(BATCH, request(after=(OTHER_ID,)), priority=PRIORITY)
        stand.start()
        until(lambda: stand.single_log.exists() and BUILD_ID in stand.single_log.read_text(), 10, "it is accepted")
        stand.kill()
        stand.start()
        until(lambda: held_names(broker) == ["single"], 10, "it is held once")
        stand.kill()
        broker.put(arch_tube(ARCH), request("other", OTHER_ID), priority=PRIORITY)
        until(lambda: "other" in farm.published, 10, "the other is published while nobody is here to notice")
        stand.start()
        until(lambda: "single" in farm.published, 15, "it is built")
        until(lambda: '"state":"over"' in stand.single_log.read_text(), 10, "its end is noted")
        stand.kill()
        stand.start()
        until(lambda: stand.single_log.read_text() == "", 10, "nothing of it is left")
    assert farm.started == ["other", "single"]


def test_a_build_with_after_fails_and_names_the_build_that_failed(stand: Stand, broker: Broker) -> None:
    stand.start()
    with FakeFarm(stand, {"other": [Status.FAILED]}) as farm:
        broker.put(BATCH, request(after=(OTHER_ID,)), priority=PRIORITY)
        broker.put(arch_tube(ARCH), request("other", OTHER_ID), priority=PRIORITY)
        until(lambda: [e for e in farm.events if e.build_id == BUILD_ID and e.status == Status.FAILED], 15, "it fails")
        failed = next(each for each in farm.events if each.build_id == BUILD_ID and each.status == Status.FAILED)
        assert failed.reason == "it was to be built after 22222222 (other-1-1.src.rpm) failed"
        until(lambda: not list(list_jobs(broker)), 5, "its job is gone")
    assert farm.started == ["other"]


def test_a_build_with_after_that_is_cancelled_before_it_is_put_is_not_put(stand: Stand, broker: Broker) -> None:
    set_flag(broker, f"cancel.{BUILD_ID}", new_flag("johnny"))
    broker.put(BATCH, request(after=(OTHER_ID,)), priority=PRIORITY)
    stand.start()
    with FakeFarm(stand) as farm:
        until(lambda: [each for each in farm.events if each.status == Status.CANCELLED], 10, "that is announced")
        assert not list(list_jobs(broker))


def test_a_single_build_waits_for_what_it_misses_as_long_as_it_may(stand: Stand, broker: Broker, store: Store) -> None:
    stand.start()
    with FakeFarm(stand, {"single": [["library"]], "hasty": [["nothing"]]}) as farm:
        broker.put(arch_tube(ARCH), request(dep_wait=3600), priority=PRIORITY)
        broker.put(arch_tube(ARCH), request("hasty", OTHER_ID, dep_wait=1), priority=PRIORITY)
        until(lambda: [e for e in farm.events if e.build_id == OTHER_ID and e.status == Status.FAILED], 20, "it fails")
        failed = next(each for each in farm.events if each.status == Status.FAILED)
        assert failed.reason.startswith("nobody provides nothing; nor did anybody within 1")
        assert held_names(broker) == ["single"]
        store.publish("library")
        until(lambda: "single" in farm.published, 30, "it is built")
    assert farm.started.count("single") == 2


def test_held_builds_of_a_damaged_file_stop_the_daemon_with_one_line(stand: Stand, broker: Broker) -> None:
    stand.single_log.parent.mkdir(exist_ok=True)
    stand.single_log.write_text(json.dumps({"kind": "single", "build": {"state": "?"}}) + "\n")
    stand.start()
    assert stand.process
    assert stand.process.wait(15) == 4
    assert "Traceback" not in stand.log

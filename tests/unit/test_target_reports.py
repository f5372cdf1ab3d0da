# SPDX-License-Identifier: Apache-2.0
"""Workers report their targets: which configurations count, what a heartbeat carries, and what the notifier keeps."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any, cast

import pytest

from reimzul.core import control
from reimzul.core import heartbeat as heartbeat_module
from reimzul.core.arch import read_arches
from reimzul.core.beanstalk import Broker, ReservedJob
from reimzul.core.control import ControlFlag
from reimzul.core.errors import BrokerUnavailable, InputError
from reimzul.core.heartbeat import LIST_INTERVAL_SECONDS, ErrorLog, HeartbeatSender, ProcessIdentity
from reimzul.core.json_message import MAX_BYTES
from reimzul.core.message import CurrentBuild, Feature, WorkerHeartbeat, WorkerState
from reimzul.core.targets import TargetList, UnknownTarget, find_one_target, find_targets, split_arch
from reimzul.history.workers import WorkerRecord, WorkerStore, WorkersUnavailable
from reimzul.notifier.housekeeping import HeartbeatIntake
from reimzul.worker import mock_config
from reimzul.worker.mock_config import FLAG_POLL_SECONDS, PULL_INTERVAL_SECONDS, ConfigPuller, read_targets
from tests.heartbeat_stand import Clock, Listener
from tests.waiting import until

ARCHES = read_arches()
LIST = TargetList.from_names(["c9s.x86_64", "c9s.i386"])


# --- which configurations are targets


def test_a_targets_configuration_is_one_of_an_arch_that_this_worker_builds(tmp_path: Path) -> None:
    for name in (
        "c9s.x86_64.cfg", "c9s.i386.cfg", "epel-9-next.x86_64.cfg", "centos-stream-10.x86_64.cfg", "c9s.aarch64.cfg",
        "time-1.7-45.el7.x86_64.cfg", "python3.11-3.11.2-1.el9.i386.cfg", "site-defaults.cfg", "logging.ini",
        "c9s.x86_64.cfg.orig", ".x86_64.cfg", "a b.x86_64.cfg", "centos-7-1708.x86_64.cfg", "c-7-1708.u.x86_64.cfg",
        "kernel-6.1-0.rc2.3.module+el9_4.x86_64.cfg",
    ):  # fmt: skip
        (tmp_path / name).touch()
    (tmp_path / "folder.x86_64.cfg").mkdir()
    found = read_targets(tmp_path, ARCHES, ARCHES.tubes_of_machine("x86_64"))
    assert found.names == (
        "c-7-1708.u.x86_64", "c9s.i386", "c9s.x86_64", "centos-7-1708.x86_64", "centos-stream-10.x86_64",
        "epel-9-next.x86_64",
    )  # fmt: skip


def test_a_checkout_that_is_missing_has_no_targets(tmp_path: Path) -> None:
    assert read_targets(tmp_path / "mock", ARCHES, ["x86_64"]) == TargetList(())


def test_lists_differ_by_their_fingerprint() -> None:
    lists = [LIST, TargetList(()), TargetList(("c9s.x86_64",)), TargetList(("c9s.x86_64",), 1)]
    assert len({each.fingerprint for each in lists}) == 4
    assert TargetList.from_names(["b.i386", "a.i386"]).fingerprint == TargetList(("a.i386", "b.i386")).fingerprint


def test_a_heartbeat_with_the_longest_list_fits_into_a_job() -> None:
    found = TargetList.from_names(f"{number:04}{'t' * 113}.aarch64" for number in range(5000))
    assert 0 < len(found.names) < 5000
    assert len(found.names) + found.left_out == 5000
    sent = WorkerHeartbeat(
        host="h" * 253, instance="i" * 200, state=WorkerState.BUILDING, why="\u00fc" * 300, at=time.time(),
        arches=tuple(f"{'a' * 30}{number:02}" for number in range(40)), version="v" * 60, features=Feature.ALL,
        build=CurrentBuild(
            build_id="0" * 32, srpm=f"{'s' * 190}.src.rpm", target="t" * 128, arch="a" * 32, attempt="1-00000000",
        ),
        targets=found.names, targets_left_out=found.left_out, targets_fingerprint=found.fingerprint,
    )  # fmt: skip
    assert WorkerHeartbeat.decode(sent.encode()) == sent
    assert len(sent.encode()) < MAX_BYTES - 8_000, "there is room for other fields"


# --- the target that a person means


KNOWN = ("c9s.x86_64", "c9s.aarch64", "c9s-extras.x86_64", "odd", "a[b].x86_64")


@pytest.mark.parametrize(
    ("given", "found"),
    [
        ("c9s", ["c9s.aarch64", "c9s.x86_64"]), ("c9s.x86_64", ["c9s.x86_64"]), ("odd", ["odd"]),
        ("c9*", ["c9s-extras.x86_64", "c9s.aarch64", "c9s.x86_64"]), ("c9?", ["c9s.aarch64", "c9s.x86_64"]),
        ("*.aarch64", ["c9s.aarch64"]), ("a[b]", ["a[b].x86_64"]),
    ],
)  # fmt: skip
def test_a_target_is_named_with_its_arch_without_or_by_a_pattern(given: str, found: list[str]) -> None:
    assert find_targets(given, KNOWN, ARCHES) == found


@pytest.mark.parametrize(
    ("given", "known", "fault"),
    [
        ("c9x", KNOWN, "there is no target 'c9x'; is c9s meant?"),
        ("c9s.x86_46", KNOWN, "there is no target 'c9s.x86_46'; is c9s.x86_64 meant?"),
        ("zz*", KNOWN, "there is no target 'zz*'; there are a[b], c9s, c9s-extras, odd"),
        ("a[bc]", KNOWN, "there is no target 'a[bc]'; is a[b] meant?"),
        ("c9s", (), "there is no target 'c9s'; no target is known yet"),
    ],
)
def test_an_unknown_target_is_refused_with_the_nearest(given: str, known: tuple[str, ...], fault: str) -> None:
    for find in (find_targets, find_one_target):
        with pytest.raises(UnknownTarget) as refused:
            find(given, known, ARCHES)
        assert str(refused.value) == fault


def test_a_command_for_one_target_takes_no_name_of_several() -> None:
    assert find_one_target("c9s-*", KNOWN, ARCHES) == "c9s-extras.x86_64"
    with pytest.raises(InputError, match="^more than one target is called 'c9s': c9s.aarch64, c9s.x86_64$"):
        find_one_target("c9s", KNOWN, ARCHES)


def test_an_arch_is_split_off_only_if_it_is_one() -> None:
    names = ("c7.1708.u.x86_64", "c7.1708.u", "x86_64", "a.b")
    assert [split_arch(name, ARCHES) for name in names] == [
        ("c7.1708.u", "x86_64"), ("c7.1708.u", ""), ("x86_64", ""), ("a.b", ""),
    ]  # fmt: skip


# --- what a heartbeat carries


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    stopped = Clock()
    monkeypatch.setattr(heartbeat_module, "time", stopped)
    monkeypatch.setattr(mock_config, "time", stopped)
    return stopped


class Reporter:
    """A worker whose list of targets can be changed."""

    def __init__(self, clock: Clock) -> None:
        self.clock, self.targets, self.listener = clock, LIST, Listener()
        identity = ProcessIdentity(host="b1.example.org", instance="1", arches=("x86_64",), folders=())
        self.sender = HeartbeatSender(identity, 30, ErrorLog(), lambda: self.targets)

    def beat(self, after: float) -> tuple[tuple[str, ...], str] | None:
        """Send a heartbeat that is due after some seconds; the list and the fingerprint in it, None if none is sent."""
        self.clock.now += after
        before = len(self.listener.heard)
        self.sender.send(cast("Broker", self.listener), WorkerState.IDLE)
        sent = self.listener.heard[before:]
        return (sent[0].targets, sent[0].targets_fingerprint) if sent else None


def test_the_list_is_sent_at_the_start_on_change_and_every_ten_minutes(clock: Clock) -> None:
    worker = Reporter(clock)
    assert worker.beat(0) == (LIST.names, LIST.fingerprint)
    assert worker.beat(31) == ((), LIST.fingerprint), "nothing has changed"
    worker.targets = TargetList(("c10s.x86_64",), 3)
    assert worker.beat(6) == (worker.targets.names, worker.targets.fingerprint), "a change is sent soon"
    assert worker.listener.heard[-1].targets_left_out == 3
    assert worker.beat(31) == ((), worker.targets.fingerprint)
    assert worker.beat(LIST_INTERVAL_SECONDS) == (worker.targets.names, worker.targets.fingerprint)


def test_a_list_that_did_not_get_out_is_sent_with_the_next_heartbeat(clock: Clock) -> None:
    worker = Reporter(clock)
    worker.listener.error = BrokerUnavailable("gone")
    with pytest.raises(BrokerUnavailable):
        worker.beat(0)
    worker.listener.error = None
    assert worker.beat(31) == (LIST.names, LIST.fingerprint)


def test_a_worker_without_targets_says_so(clock: Clock) -> None:
    worker = Reporter(clock)
    worker.targets = TargetList(())
    assert worker.beat(0) == ((), TargetList(()).fingerprint)


# --- what the notifier keeps


def heartbeat(instance: str, targets: TargetList | None = LIST, *, whole: bool = True, **more: Any) -> WorkerHeartbeat:
    listed = {"targets": targets.names, "targets_left_out": targets.left_out} if targets and whole else {}
    marked = {"targets_fingerprint": targets.fingerprint} if targets else {}
    about = {"host": "b1.example.org", "instance": instance, "state": WorkerState.IDLE}
    return WorkerHeartbeat(**{**about, **listed, **marked, **more})


class Age:
    """A claim on a job that was put some seconds ago."""

    def __init__(self, age: int) -> None:
        self.age = age

    @property
    def stats(self) -> Age:
        return self


def take_in(intake: HeartbeatIntake, *heartbeats: WorkerHeartbeat) -> None:
    ages = range(len(heartbeats), 0, -1)
    intake.update([(cast("ReservedJob[Any]", Age(age)), each) for age, each in zip(ages, heartbeats)])


def read_targets_of(path: Path) -> dict[str, TargetList | None]:
    return {each.heartbeat.instance: each.targets for each in WorkerStore(path).load_all()}


def test_a_heartbeat_without_the_list_has_the_stored_list_of_its_fingerprint(tmp_path: Path) -> None:
    path = tmp_path / "presence.sqlite"
    intake = HeartbeatIntake(path)
    take_in(intake, heartbeat("1"), heartbeat("2", whole=False), heartbeat("3", TargetList(("x.i386",)), whole=False))
    assert read_targets_of(path) == {"1": LIST, "2": LIST, "3": None}, "two workers with the same list need it once"
    take_in(intake, heartbeat("1", whole=False, load=2.0))
    record = WorkerStore(path).load_all()[0]
    assert (record.targets, record.heartbeat.load) == (LIST, 2.0)
    assert not {"targets", "targets_fingerprint", "targets_left_out"} & record.to_output(time.time()).keys()
    intake.close()


def test_a_list_is_kept_where_a_later_heartbeat_came_with_it(tmp_path: Path) -> None:
    path = tmp_path / "presence.sqlite"
    intake = HeartbeatIntake(path)
    take_in(
        intake, heartbeat("1", whole=False, load=1.0), heartbeat("1", load=2.0), heartbeat("1", whole=False, load=3.0)
    )
    record = WorkerStore(path).load_all()[0]
    assert (record.targets, record.heartbeat.load) == (LIST, 3.0)
    take_in(intake, heartbeat("1", whole=False, load=4.0), heartbeat("1", TargetList(("new.i386",)), load=5.0))
    record = WorkerStore(path).load_all()[0]
    assert (record.targets, record.heartbeat.load) == (TargetList(("new.i386",)), 5.0)
    intake.close()


def test_a_worker_that_has_none_has_reported_that(tmp_path: Path) -> None:
    path = tmp_path / "presence.sqlite"
    intake = HeartbeatIntake(path)
    take_in(intake, heartbeat("1", TargetList(())), heartbeat("2", None))
    assert read_targets_of(path) == {"1": TargetList(()), "2": None}
    intake.close()


def test_a_list_under_another_lists_fingerprint_is_not_stored(tmp_path: Path) -> None:
    path = tmp_path / "presence.sqlite"
    intake = HeartbeatIntake(path)
    take_in(intake, heartbeat("1"), heartbeat("2", TargetList(("evil.i386",)), targets_fingerprint=LIST.fingerprint))
    assert read_targets_of(path) == {"1": LIST, "2": LIST}
    intake.close()


def test_a_file_that_may_not_be_looked_for_is_unavailable(tmp_path: Path) -> None:
    with pytest.raises(WorkersUnavailable, match="the workers' heartbeats cannot be read"):
        WorkerStore(tmp_path / ("x" * 300) / "presence.sqlite").load_all()


def test_a_list_that_nobody_reports_any_more_is_forgotten(tmp_path: Path) -> None:
    store = WorkerStore(tmp_path / "presence.sqlite")
    store.save([WorkerRecord(heartbeat=heartbeat("1"), last_seen=10.0)])
    store.purge(20.0)
    store.save([WorkerRecord(heartbeat=heartbeat("1", whole=False), last_seen=30.0)])
    assert [each.targets for each in store.load_all()] == [None]
    store.close()


# --- pulling


class Configs:
    """Counts its pulls."""

    checkout = Path("/checkout")

    def __init__(self) -> None:
        self.pulls = 0

    def pull(self) -> None:
        self.pulls += 1


def test_an_idle_worker_pulls_every_few_minutes_and_once_for_each_refresh(
    clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    flag: list[ControlFlag | None] = [None]
    monkeypatch.setattr(control, "refresh_flag", lambda _: flag[0])
    configs = Configs()
    puller = ConfigPuller(cast("Any", configs))

    def pulls_after(seconds: float) -> int:
        clock.now += seconds
        puller.pull_if_due(cast("Broker", None))
        until(lambda: puller._thread is None or not puller._thread.is_alive(), 10, "the pull has ended")
        return configs.pulls

    assert pulls_after(0) == 1
    assert pulls_after(FLAG_POLL_SECONDS + 1) == 1
    flag[0] = ControlFlag(by="jdoe", at=1.0)
    assert [pulls_after(FLAG_POLL_SECONDS + 1) for _ in range(2)] == [2, 2], "each flag once"
    flag[0] = None
    assert pulls_after(FLAG_POLL_SECONDS + 1) == 2
    flag[0] = ControlFlag(by="jdoe", at=2.0)
    assert pulls_after(FLAG_POLL_SECONDS + 1) == 3
    assert pulls_after(PULL_INTERVAL_SECONDS + 1) == 4

# SPDX-License-Identifier: Apache-2.0
"""Staging for the signer on a real beanstalkd: which requests are staged, and nothing twice under kills."""

from __future__ import annotations

import contextlib
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import attr
import pytest

from reimzul.core.beanstalk import NOTIFY, PRIORITY, TOSIGN, Broker
from reimzul.core.config import parse_settings
from reimzul.core.errors import RetryLater, ShutdownRequested
from reimzul.core.fs import file_lock
from reimzul.core.message import Refusal, SignRequest, Status
from reimzul.core.retry import CancelToken
from reimzul.core.settings import Settings
from reimzul.core.store_paths import StorePaths
from reimzul.store.listing import ListingCache
from reimzul.tosign.cli import make_daemon
from reimzul.tosign.daemon import SignableLeg, Tosign, stage_leg
from tests import uploads
from tests.conftest import Beanstalkd
from tests.uploads import TARGET, tree
from tests.waiting import until

RPMS = {
    f"{name}-1-1.x86_64.rpm": (name.encode() * 100_000, f"{name}-1-1.x86_64") for name in ("hello", "hello-devel")
}  # fmt: skip


@pytest.fixture
def settings(tmp_path: Path, beanstalkd: Beanstalkd) -> Settings:
    ini = f"[beanstalkd]\nhost = 127.0.0.1\nport = {beanstalkd.port}\n[bstore]\nroot = {tmp_path / 'bstore'}\n"
    (tmp_path / "reimzul.ini").write_text(ini)
    return parse_settings(ini, "test")


@pytest.fixture
def daemon(settings: Settings) -> Tosign:
    return make_daemon(settings)


@pytest.fixture
def store(settings: Settings) -> StorePaths:
    return uploads.make_store(settings.bstore.root)


def publish_leg(store: StorePaths, **changed: Any) -> SignRequest:
    """A leg in its place, and the request to sign it."""
    of = uploads.request(**changed)
    asked = uploads.upload(store, RPMS, of=of)
    store.place(asked.place).parent.mkdir(parents=True, exist_ok=True)
    uploads.spool_of(store, asked).rename(store.place(asked.place))
    uploads.list_all(store, of.target)
    return SignRequest(
        pkgname="hello", status=Status.SUCCESS, target=of.target, arch="x86_64", timestamp=of.timestamp,
        build_id=of.build_id, place=asked.place,
    )  # fmt: skip


def ask(broker: Broker, request: SignRequest) -> None:
    broker.put(TOSIGN, request, priority=PRIORITY)


def work(daemon: Tosign) -> None:
    """Handle what waits now."""
    with daemon.connect() as broker:
        broker.watch(daemon.tubes)
        while broker.tube_stats("tosign").ready:
            daemon.settle_all(broker, daemon.reserve_jobs(broker))


def list_staged(store: StorePaths, target: str = TARGET) -> list[str]:
    return sorted(path.name for path in (store.tosign / target).glob("*"))


def test_a_build_is_staged_once(broker: Broker, daemon: Tosign, store: StorePaths) -> None:
    request = publish_leg(store)
    for _ in range(3):
        ask(broker, request)
    work(daemon)
    assert list_staged(store) == [f"hello-1-1.x86_64.{request.build_id}"]
    assert tree(store.tosign / TARGET / list_staged(store)[0]) == set(RPMS)
    assert broker.tube_stats("tosign").buried == 0


@pytest.mark.parametrize("status", [Status.FAILED, Status.BUILDING, Status.CANCELLED, Status.PUBLISHED])
def test_only_a_success_is_staged(broker: Broker, daemon: Tosign, store: StorePaths, status: str) -> None:
    ask(broker, attr.evolve(publish_leg(store), status=status))
    work(daemon)
    assert list_staged(store) == []
    assert broker.tube_stats("tosign").buried == 0


def test_a_place_that_is_not_there_is_waited_for_then_refused(
    broker: Broker, daemon: Tosign, store: StorePaths, monkeypatch: pytest.MonkeyPatch
) -> None:
    request = publish_leg(store)
    shutil.rmtree(store.repo / TARGET)
    ask(broker, request)
    work(daemon)
    assert broker.tube_stats("tosign").delayed == 1
    monkeypatch.setattr("reimzul.core.daemon.MAX_WAIT_SECONDS", -1)
    ask(broker, request)
    work(daemon)
    assert broker.tube_stats("tosign").buried == 1
    claim = first_event(broker)
    assert isinstance(claim, Refusal)
    assert "does not exist" in claim.reason


def first_event(broker: Broker) -> Any:
    broker.watch([NOTIFY.name])
    claim = broker.reserve({NOTIFY.name: NOTIFY}, 0)
    assert claim
    return claim.message


def test_a_package_that_is_gone_is_waited_for(broker: Broker, daemon: Tosign, store: StorePaths) -> None:
    request = publish_leg(store)
    (store.place(request.place) / "hello-1-1.x86_64.rpm").unlink()
    ask(broker, request)
    work(daemon)
    assert broker.tube_stats("tosign").delayed == 1
    assert list_staged(store) == []


def test_a_contradiction_is_refused_and_the_next_goes_on(broker: Broker, daemon: Tosign, store: StorePaths) -> None:
    good, scratch = publish_leg(store), publish_leg(store, scratch=True)
    ask(broker, scratch)
    broker.put_raw("tosign", b'{"pkgname": "../x"}', priority=0)
    ask(broker, good)
    work(daemon)
    assert broker.tube_stats("tosign").buried == 2
    assert list_staged(store) == [f"hello-1-1.x86_64.{good.build_id}"]


def test_a_request_of_the_original_is_staged(broker: Broker, daemon: Tosign, store: StorePaths) -> None:
    request = publish_leg(store)
    (store.place(request.place) / "build.json").unlink()
    words = f'"pkgname": "hello", "status": "Success", "target": "{TARGET}", "timestamp": "{request.timestamp}"'
    broker.put_raw("tosign", f'{{{words}, "arch": "x86_64"}}'.encode(), priority=PRIORITY)
    broker.put_raw("tosign", f'{{{words}, "arch": "i386"}}'.encode(), priority=PRIORITY)
    work(daemon)
    assert len(list_staged(store)) == 1
    assert broker.tube_stats("tosign").delayed == 1


def test_another_that_stages_is_waited_for(broker: Broker, daemon: Tosign, store: StorePaths) -> None:
    ask(broker, publish_leg(store))
    with file_lock(store.lock(".tosign")), daemon.connect() as own:
        own.watch(daemon.tubes)
        claims = daemon.reserve_jobs(own)
        daemon.stop.now.set()
        with pytest.raises(ShutdownRequested):
            list(daemon.handle(own, claims))


@pytest.mark.parametrize("slow", ["copying", "the lock"])
def test_a_job_stays_reserved_while_its_staging_takes_long(
    broker: Broker, daemon: Tosign, store: StorePaths, monkeypatch: pytest.MonkeyPatch, slow: str
) -> None:
    request, may_end = publish_leg(store), threading.Event()

    def stage_slowly(listings: ListingCache, leg: SignableLeg, cancel: CancelToken) -> bool:
        while not may_end.is_set():
            cancel.wait(0.05)
        return stage_leg(listings, leg, cancel)

    broker.put(TOSIGN, request, priority=PRIORITY, ttr=4)
    with contextlib.ExitStack() as others, ThreadPoolExecutor(1) as pool:
        if slow == "copying":
            monkeypatch.setattr("reimzul.tosign.daemon.stage_leg", stage_slowly)
        else:
            others.enter_context(file_lock(store.lock(".tosign")))
        before = touches(broker)
        done = pool.submit(work, daemon)
        try:
            until(lambda: touches(broker) > before, 10, "its job is touched")
            assert list_staged(store) == []
        finally:
            may_end.set()
            others.close()
        done.result(20)
    assert list_staged(store) == [f"hello-1-1.x86_64.{request.build_id}"]


def touches(broker: Broker) -> int:
    return int(broker.client.stats()["cmd-touch"])


def test_a_disk_that_fails_is_waited_for(
    broker: Broker, daemon: Tosign, store: StorePaths, monkeypatch: pytest.MonkeyPatch
) -> None:
    ask(broker, publish_leg(store))
    monkeypatch.setattr(
        "reimzul.tosign.daemon.stage_leg", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left"))
    )
    with daemon.connect() as own:
        own.watch(daemon.tubes)
        ((_, outcome),) = daemon.handle(own, daemon.reserve_jobs(own))
        assert isinstance(outcome, RetryLater)
        assert "No space left" in str(outcome)


@pytest.mark.slow
def test_killed_at_any_moment_it_stages_each_once(
    broker: Broker, store: StorePaths, settings: Settings, tmp_path: Path
) -> None:
    chance, seen = random.Random(11), Counter[str]()
    requests = [publish_leg(store, timestamp=f"202401020304{n:02}") for n in range(60)]

    def start() -> subprocess.Popen[bytes]:
        program = "from reimzul.tosign.cli import main; main()"
        argv: list[str | Path] = [sys.executable, "-c", program, "--config", tmp_path / "reimzul.ini"]
        return subprocess.Popen(argv, stderr=subprocess.DEVNULL)

    def collect() -> None:
        """The signer takes away what is there, whole."""
        for name in list_staged(store):
            assert tree(store.tosign / TARGET / name) == set(RPMS)
            (store.tosign / TARGET / name).rename(tmp_path / f"{name}.{seen[name]}")
            seen[name] += 1

    def idle() -> bool:
        collect()
        stats = broker.tube_stats("tosign")
        return not (stats.ready or stats.reserved)

    running = [start(), start()]
    try:
        for number, request in enumerate(requests):
            ask(broker, request)
            if number % 5 == 4:
                pause(idle, chance.uniform(0.0, 0.4))
                victim = running.pop(0)
                victim.kill()
                victim.wait()
                running.append(start())
        until(idle, 30, "all is staged")
        until(lambda: broker.tube_stats("tosign").watchers == 2, 20, "both are up, and handle signals")
    finally:
        for one in running:
            one.send_signal(signal.SIGTERM)
    assert [one.wait(20) for one in running] == [0, 0]
    collect()
    assert seen == Counter(f"hello-1-1.x86_64.{request.build_id}" for request in requests)
    assert tree(store.staging) == set()
    assert broker.tube_stats("tosign").buried == 0


def pause(meanwhile: Any, seconds: float) -> None:
    """A moment of chosen length, in which the signer comes by."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        meanwhile()

# SPDX-License-Identifier: Apache-2.0
"""The installed daemons as services: what they report to systemd while their work, or beanstalkd, takes long."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Callable

import pytest

from reimzul.core.beanstalk import CREATEREPO, NOTIFY, PRIORITY, TOSIGN, Broker
from reimzul.core.fs import file_lock
from reimzul.core.message import RepogenRequest, SignRequest, Status
from reimzul.core.store_paths import StorePaths
from tests import srpms, uploads
from tests.builder import Host, put, request
from tests.conftest import Beanstalkd
from tests.events import event
from tests.manager import Manager
from tests.uploads import TARGET
from tests.waiting import until

BIN = Path(sys.executable).parent
Start = Callable[..., "subprocess.Popen[bytes]"]


@pytest.fixture
def manager(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Manager]:
    """What is started is a service with a watchdog that would have a ping every 0.1 s: as often as it goes round."""
    listening = Manager.make_in(tmp_path)
    for name, text in listening.environment().items():
        monkeypatch.setenv(name, text)
    yield listening
    listening.close()


@pytest.fixture
def queue(tmp_path: Path) -> Iterator[Beanstalkd]:
    """A beanstalkd of the test's own, not started yet."""
    (tmp_path / "binlog").mkdir()
    server = Beanstalkd(tmp_path / "binlog")
    yield server
    if server.process:
        server.kill()


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Start a daemon with these sections of settings."""
    started: list[subprocess.Popen[bytes]] = []

    def begin(program: str, beanstalkd: Beanstalkd, sections: str = "") -> subprocess.Popen[bytes]:
        ini = tmp_path / "reimzul.ini"
        ini.write_text(f"[beanstalkd]\nhost = 127.0.0.1\nport = {beanstalkd.port}\n{sections}")
        with (tmp_path / f"{program}.log").open("wb") as log:
            started.append(subprocess.Popen([BIN / program, "--config", ini], stdout=log, stderr=log))
        return started[-1]

    yield begin
    for process in started:
        process.kill()
        process.wait()


@pytest.fixture
def builder(tmp_path: Path, queue: Beanstalkd) -> Iterator[Host]:
    """A builder with one source and one target."""
    host = Host(tmp_path / "host", queue)
    srpms.make_srpm(host.incoming, "hello", srpms.compiled("hello"))
    host.target("c9.x86_64")
    yield host
    host.close()


def test_a_daemon_is_ready_before_beanstalkd_is_there(manager: Manager, builder: Host, queue: Beanstalkd) -> None:
    builder.start()
    until(lambda: "READY=1" in manager.listen(), 30, "it is ready")
    manager.wait_for("connecting to beanstalkd; since 20")
    manager.wait_for(f"beanstalkd at 127.0.0.1:{queue.port}: Connection refused")
    manager.wait_for_pings()
    queue.start()
    until(lambda: manager.status == "waiting for jobs in x86_64, i386, noarch", 30, "it waits for jobs")
    manager.wait_for_pings()


def test_a_long_build_is_no_stuck_loop_whatever_becomes_of_beanstalkd(
    manager: Manager, builder: Host, queue: Beanstalkd
) -> None:
    builder.mock.plan("c9.x86_64", until=["never"])
    queue.start()
    worker = builder.start()
    with queue.connect() as broker:
        put(broker, request())
    manager.wait_for("building hello-1.0-1.src.rpm for c9.x86_64")
    until(lambda: builder.mock.started("c9.x86_64"), 30, "mock runs")
    manager.wait_for_pings()
    queue.kill()
    manager.wait_for("building hello-1.0-1.src.rpm for c9.x86_64; since 20")
    manager.wait_for_pings()
    queue.start()
    until(lambda: manager.status == "building hello-1.0-1.src.rpm for c9.x86_64", 30, "it is back")
    worker.send_signal(signal.SIGUSR1)
    manager.wait_for("building hello-1.0-1.src.rpm for c9.x86_64; takes no more jobs, then ends")
    manager.wait_for_pings()
    worker.terminate()
    assert worker.wait(30) == 0
    assert [line for line in manager.listen() if line != "WATCHDOG=1"][-2:] == ["STOPPING=1", "STATUS=stopping"]


def test_an_upload_that_does_not_get_through_is_no_stuck_loop(
    manager: Manager, builder: Host, queue: Beanstalkd, tmp_path: Path
) -> None:
    builder.mock.plan("c9.x86_64", rpms=[srpms.make_rpm(tmp_path, "plain", srpms.noarch("plain"))])
    queue.start()
    builder.stop_rsync()
    builder.start()
    with queue.connect() as broker:
        put(broker, request())
    until(lambda: "is not uploaded yet" in (builder.folder / "b1.log").read_text(), 60, "it tries to upload")
    manager.wait_for_pings()


def test_a_builder_that_takes_no_jobs_says_why(manager: Manager, builder: Host, queue: Beanstalkd) -> None:
    queue.start()
    builder.start(min_free_mib=1_000_000_000)
    manager.wait_for("this builder takes no jobs now: disk under")
    manager.wait_for_pings()


def test_waiting_for_a_targets_lock_and_for_createrepo_c_is_no_stuck_loop(
    manager: Manager, start: Start, broker: Broker, beanstalkd: Beanstalkd, tmp_path: Path
) -> None:
    program = tmp_path / "createrepo_c"
    # ends by itself where we die before it may: whoever is killed with -9 leaves it behind
    wait = 'for i in $(seq 600); do [ -e "$0.go" ] && break; sleep 0.1; done'
    program.write_text(f'#!/bin/sh\ntouch "$0.began"\n{wait}\n')
    program.chmod(0o755)
    store = uploads.make_store(tmp_path / "bstore")
    broker.put(CREATEREPO, RepogenRequest(target=TARGET), priority=PRIORITY)
    with file_lock(store.lock(TARGET)) as lock:
        assert lock is not None
        start("reimzul-repogen", beanstalkd, f"[bstore]\nroot = {store.root}\n[repogen]\ncreaterepo_c = {program}\n")
        manager.wait_for("handling job")
        manager.wait_for_pings()
    until(Path(f"{program}.began").exists, 30, "createrepo_c runs")
    manager.wait_for(f"indexing {TARGET} for 1 jobs")
    manager.wait_for_pings()
    Path(f"{program}.go").touch()


def test_waiting_to_stage_is_no_stuck_loop(
    manager: Manager, start: Start, broker: Broker, beanstalkd: Beanstalkd, tmp_path: Path
) -> None:
    store = uploads.make_store(tmp_path / "bstore")
    asked = publish_leg(store)
    broker.put(TOSIGN, asked, priority=PRIORITY)
    with file_lock(store.lock(".tosign")) as lock:
        assert lock is not None
        start("reimzul-tosign", beanstalkd, f"[bstore]\nroot = {store.root}\n")
        manager.wait_for(f"staging {TARGET}/hello-1-1.x86_64.")
        manager.wait_for_pings()


def publish_leg(store: StorePaths) -> SignRequest:
    """A leg in its place, and the request to sign it."""
    rpms = {"hello-1-1.x86_64.rpm": (b"hello", "hello-1-1.x86_64")}
    of = uploads.request()
    asked = uploads.upload(store, rpms, of=of)
    store.place(asked.place).parent.mkdir(parents=True)
    uploads.spool_of(store, asked).rename(store.place(asked.place))
    return SignRequest(
        pkgname="hello", status=Status.SUCCESS, target=TARGET, arch="x86_64", timestamp=of.timestamp,
        build_id=asked.build_id, place=asked.place,
    )  # fmt: skip


def test_a_sink_that_does_not_answer_is_no_stuck_loop(
    manager: Manager, start: Start, broker: Broker, beanstalkd: Beanstalkd, tmp_path: Path
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        start("reimzul-notifier", beanstalkd, notifier(tmp_path, silent.getsockname()[1]))
        told: Any = event("Failed", 1)
        broker.put(NOTIFY, told, priority=PRIORITY)
        silent.settimeout(30)
        spoken_to, _ = silent.accept()
        with spoken_to:
            manager.wait_for_pings()


def notifier(folder: Path, port: int) -> str:
    """Settings of a notifier that mails to a server here."""
    return (
        f"[notifier]\nledger = {folder}/ledger.sqlite\n[history]\nurl = sqlite:///{folder}/history.sqlite\n"
        f"[logs]\nlogfile = {folder}/reimzul.log\n"
        f"[mail]\nnotifications = true\nmail_from = farm@example.org\nsmtp_host = 127.0.0.1\nsmtp_port = {port}\n"
        "[mail_rcpts]\nx86_64 = me@example.org\n"
    )


HANG = """
import os, signal, threading
from reimzul.core.daemon import SdNotify
service = SdNotify()
service.announce_ready("waiting")
def stuck_here():
    threading.Event().wait(60)
stuck_here()
"""


def test_a_daemon_that_systemd_aborts_says_where_it_hung(manager: Manager) -> None:
    with subprocess.Popen([sys.executable, "-c", HANG], stderr=subprocess.PIPE, text=True) as hanging:
        until(lambda: manager.pings == 1, 30, "it is ready")
        hanging.send_signal(signal.SIGABRT)  # as systemd does
        _, said = hanging.communicate(timeout=30)
    assert hanging.returncode == -signal.SIGABRT
    assert "stuck_here" in said

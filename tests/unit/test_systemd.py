# SPDX-License-Identifier: Apache-2.0
"""What is reported to systemd, on a real socket, and above all when no ping is sent."""

from __future__ import annotations

import os
import queue
import threading
import uuid
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Callable

import pytest

from reimzul.core.daemon import MAX_STATUS_CHARACTERS, Outcome, SdNotify, Stop
from reimzul.core.process import environment
from reimzul.worker.job_session import JobSession
from tests.manager import Manager
from tests.unit.test_daemon import FakeBroker, FakeClaim, Handler

#: Seconds: four pings are due in it.
WATCHDOG = 0.1


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[Manager]:
    listening = Manager.make_in(tmp_path)
    yield listening
    listening.close()


@pytest.fixture
def under_systemd(manager: Manager, monkeypatch: pytest.MonkeyPatch) -> Manager:
    """This process is a service with a watchdog."""
    for name, text in manager.environment(WATCHDOG).items():
        monkeypatch.setenv(name, text)
    return manager


def test_readiness_comes_with_a_status(manager: Manager) -> None:
    SdNotify({"NOTIFY_SOCKET": manager.address}).announce_ready("waiting")
    assert manager.listen() == ["READY=1", "STATUS=waiting"]


def test_an_abstract_socket_is_reached_too() -> None:
    manager = Manager(f"@reimzul-{uuid.uuid4().hex}")
    SdNotify({"NOTIFY_SOCKET": manager.address}).announce_ready("waiting")
    assert manager.listen() == ["READY=1", "STATUS=waiting"]
    manager.close()


def test_nothing_is_said_where_nobody_asked(tmp_path: Path) -> None:
    for told in ({}, {"NOTIFY_SOCKET": ""}, {"NOTIFY_SOCKET": "vsock:2:1234"}, {"WATCHDOG_USEC": "1"}):
        service = SdNotify(told)
        service.announce_ready("waiting")
        service.ping()
        service.announce_stop()


def test_a_manager_that_is_gone_harms_nobody_and_is_told_again(manager: Manager, tmp_path: Path) -> None:
    service = SdNotify(manager.environment(WATCHDOG))
    service.announce_ready("waiting")
    manager.close()
    os.unlink(manager.address)
    service.set_status("building")
    service.ping()
    again = Manager.make_in(tmp_path)
    service.ping()
    assert again.status == "building"
    again.close()


def test_a_status_is_one_line_and_said_when_it_changes(manager: Manager) -> None:
    service = SdNotify({"NOTIFY_SOCKET": manager.address})
    service.announce_ready("waiting")
    service.set_status("waiting")
    service.set_status("building a\nREADY=1 b")
    service.set_note(beanstalkd="since noon: away")
    service.set_note(beanstalkd="since noon: away", drain="ends then")
    service.set_note(beanstalkd="")
    service.set_status("x" * 1000)
    assert manager.listen() == [
        "READY=1",
        "STATUS=waiting",
        "STATUS=building a READY=1 b",
        "STATUS=building a READY=1 b; since noon: away",
        "STATUS=building a READY=1 b; since noon: away; ends then",
        "STATUS=building a READY=1 b; ends then",
        f"STATUS={'x' * MAX_STATUS_CHARACTERS}",
    ]


def test_a_ping_is_sent_when_it_is_due_and_not_before(manager: Manager) -> None:
    service = SdNotify(manager.environment(watchdog=3600))
    for _ in range(100):
        service.ping()
    assert manager.pings == 1
    service = SdNotify(manager.environment(watchdog=0.000_004))
    for number in range(100):
        service.ping()
        assert manager.pings == number + 2


def test_a_manager_that_does_not_listen_holds_nobody_up(manager: Manager) -> None:
    service = SdNotify(manager.environment(watchdog=0.000_004))
    for _ in range(10_000):  # far more than a socket has room for
        service.ping()
    service.set_status("building")
    assert 0 < manager.pings < 10_000
    status = manager.status
    assert not status
    service.ping()
    assert manager.status == "building"


@pytest.mark.parametrize("told", [{}, {"WATCHDOG_USEC": "0"}, {"WATCHDOG_USEC": "soon"}, {"WATCHDOG_PID": "1"}])
def test_no_ping_where_no_watchdog_is_ours(manager: Manager, told: dict[str, str]) -> None:
    usec = {"WATCHDOG_USEC": "1000"} if "WATCHDOG_PID" in told else {}
    SdNotify({"NOTIFY_SOCKET": manager.address, **usec, **told}).ping()
    assert manager.pings == 0


def test_what_a_daemon_runs_does_not_get_systemds_socket(under_systemd: Manager) -> None:
    assert not {"NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID"} & environment().keys()


# --- loops


def hang(manager: Manager) -> int:
    """Do nothing for many watchdogs; how many pings came meanwhile."""
    before = manager.pings
    threading.Event().wait(10 * WATCHDOG)
    return manager.pings - before


def serve(handle: Callable[[Sequence[Any]], Iterable[tuple[Any, Outcome]]], *jobs: int) -> None:
    """Run a daemon until it has handled these."""
    broker = FakeBroker(Stop())
    broker.waiting = [FakeClaim(number, broker) for number in jobs]
    Handler(broker, handle).run()


def test_a_daemon_says_that_it_is_set_up_what_it_does_and_that_it_ends(under_systemd: Manager) -> None:
    serve(lambda claims: [(claim, None) for claim in claims], 17)
    heard = [line for line in under_systemd.listen() if line != "WATCHDOG=1"]
    assert heard[:2] == ["READY=1", "STATUS=connecting to beanstalkd"]
    assert heard[2] == "STATUS=waiting for jobs in createrepo"
    assert heard[3].startswith("STATUS=handling ")
    assert heard[-2:] == ["STOPPING=1", "STATUS=stopping"]


def test_a_handler_that_hangs_is_not_called_alive(under_systemd: Manager) -> None:
    came: list[int] = []

    def handle(claims: Sequence[Any]) -> Iterable[tuple[Any, Outcome]]:
        came.append(hang(under_systemd))
        return [(claim, None) for claim in claims]

    serve(handle, 1)
    assert came == [0]


class EndlessBuild:
    """A build whose thread goes on and on."""

    def __init__(self) -> None:
        self.outbox: queue.Queue[Any] = queue.Queue()
        self.over = threading.Event()

    def run(self) -> None:
        self.over.wait(60)


class Stuck:
    """The claim of a worker whose loop keeps it a few times, and then hangs in that."""

    broker = None

    def __init__(self, manager: Manager, build: EndlessBuild) -> None:
        self.manager, self.build = manager, build
        self.kept = 0
        self.came: list[int] = []  #: pings in each hang

    def touch_if_due(self) -> None:
        self.kept += 1
        if self.manager.pings >= 5 and not self.came:
            self.came.append(hang(self.manager))
            self.build.over.set()


class Blind:
    """A poller that finds nothing."""

    def poll(self, broker: object, *, last: bool) -> None:
        """Nothing is wanted."""


def test_a_worker_is_alive_while_it_builds_and_not_when_its_loop_hangs(under_systemd: Manager) -> None:
    build = EndlessBuild()
    claim: Any = Stuck(under_systemd, build)
    service = SdNotify()
    session = JobSession(lambda: claim, claim, Stop(), "t", service, service.ping)
    session.run_build(build, Blind())  # type: ignore[arg-type]
    assert claim.came == [0]
    assert claim.kept >= 5

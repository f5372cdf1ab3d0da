# SPDX-License-Identifier: Apache-2.0
"""What all tests share: a beanstalkd of the session's own, and waiting for a condition with a bound."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import greenstalk
import pytest

from devfarm.configs import beanstalkd_command
from reimzul.core.beanstalk import Broker
from tests import parallel
from tests.waiting import until

# files in incoming/ have to be readable by others, as on a host with a usual umask
os.umask(0o022)

# A shell that starts us in the background has us ignore Ctrl-C, and with us all that we start: a test that presses it
# would wait for ever.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


_NETWORKS = parallel.Networks()


def pytest_configure(config: pytest.Config) -> None:
    if hasattr(config, "workerinput"):
        _NETWORKS.enter_own()
    elif config.getoption("numprocesses", None):
        config.pluginmanager.register(parallel.Stopwatch())


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: Any) -> None:
    """Give all processes the same figures, which another run may replace meanwhile."""
    node.workerinput["seconds"] = parallel.read_seconds()


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if hasattr(config, "workerinput"):
        parallel.order_files(items, config.workerinput["seconds"])


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: object) -> object:
    return parallel.make_scheduler(config, log)


@pytest.fixture(scope="module")
def internet() -> Iterator[None]:
    """For modules whose programs download packages."""
    with _NETWORKS.first():
        yield


@pytest.fixture
def own_network() -> Iterator[None]:
    """For a test of such a module that connects to the session's beanstalkd."""
    with _NETWORKS.own():
        yield


_given_ports: set[int] = set()


def free_port() -> int:
    """A port of the loopback nobody listens on now, and that this process was not given before."""
    while True:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = int(probe.getsockname()[1])
        if port not in _given_ports:
            _given_ports.add(port)
            return port


class Beanstalkd:
    """A real beanstalkd on a free port; it can be stopped and started again with what its binlog has."""

    host = "127.0.0.1"

    def __init__(self, binlog: Path) -> None:
        self.binlog = binlog
        self.port = free_port()
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it, and wait until it answers."""
        self.process = subprocess.Popen(beanstalkd_command(self.binlog, self.port, sync_ms=0))
        until(self.answers, 10, "beanstalkd answers")

    def answers(self) -> bool:
        """Whether somebody listens."""
        with socket.socket() as probe:
            return probe.connect_ex((self.host, self.port)) == 0

    def kill(self) -> None:
        """End it without a word."""
        assert self.process
        self.process.kill()
        self.process.wait()

    def connect(self) -> Broker:
        """A connection."""
        return Broker(self.host, self.port)


@pytest.fixture(scope="session")
def beanstalkd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Beanstalkd]:
    """One for the whole session."""
    server = Beanstalkd(tmp_path_factory.mktemp("binlog"))
    with _NETWORKS.own():  # whichever module is the first to ask for it
        server.start()
    yield server
    server.kill()


@pytest.fixture
def broker(beanstalkd: Beanstalkd) -> Iterator[Broker]:
    """A connection to it, every tube empty."""
    empty(beanstalkd)
    with beanstalkd.connect() as connection:
        yield connection
    empty(beanstalkd)


def empty(beanstalkd: Beanstalkd) -> None:
    """Delete every job that nobody holds."""
    with beanstalkd.connect() as sweeper:
        client = sweeper.client
        for tube in sweeper.list_tubes():
            client.use(tube)
            client.kick(100_000)  # buried ones first, then
            client.kick(100_000)  # delayed ones
        sweeper.watch(sweeper.list_tubes())
        with contextlib.suppress(greenstalk.TimedOutError):
            while True:
                client.delete(client.reserve(0))

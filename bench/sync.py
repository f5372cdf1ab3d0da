# SPDX-License-Identifier: Apache-2.0
"""What it costs that beanstalkd syncs its binlog at every change (-f0), or every so many ms: `python -m bench.sync`.

First beanstalkd alone, with a client that puts, and one that has a job's whole life; then a whole farm, through which
builds go that take mock no time. The binlog lies in the current folder, so that the disk is a real one.
"""

from __future__ import annotations

import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import click

from bench.report import Figure, tell
from devfarm.farm import Farm
from reimzul.core.beanstalk import Broker
from reimzul.core.errors import BrokerUnavailable
from reimzul.core.process import output_of
from reimzul.history import BuildFilter, open_history
from reimzul.history.build_record import BuildState
from tests import srpms
from tests.conftest import free_port
from tests.scripted import ScriptedMock
from tests.waiting import until

_BODY = b"x" * 1000
_TUBE = "bench"


@contextmanager
def beanstalkd(folder: Path, sync_ms: int) -> Iterator[Broker]:
    """One of its own, and a connection."""
    port = free_port()
    argv = ["beanstalkd", "-l", "127.0.0.1", "-p", str(port), "-b", str(folder), f"-f{sync_ms}"]
    with subprocess.Popen(argv) as process:
        try:
            with until(lambda: _connection(port), 10, "beanstalkd answers") as broker:
                yield broker
        finally:
            process.kill()


def _connection(port: int) -> Broker | None:
    try:
        return Broker("127.0.0.1", port)
    except BrokerUnavailable:
        return None


def puts(broker: Broker, count: int) -> float:
    """Puts a second."""
    began = time.monotonic()
    for _ in range(count):
        broker.put_raw(_TUBE, _BODY, priority=1)
    return count / (time.monotonic() - began)


def lives(broker: Broker, count: int) -> float:
    """Jobs a second that are put, reserved and deleted."""
    broker.watch([_TUBE])
    began = time.monotonic()
    for _ in range(count):
        broker.put_raw(_TUBE, _BODY, priority=1)
        broker.client.delete(broker.client.reserve(1))
    return count / (time.monotonic() - began)


def builds(folder: Path, sync_ms: int, count: int) -> float:
    """Builds a second through a farm, from the first submission to the last publication."""
    mock = ScriptedMock(folder / "mock")
    with Farm(folder / "farm", workers=2, sync_ms=sync_ms, mock=str(mock.path), targets=("bench.1",)) as farm:
        source = srpms.make_srpm(folder, "plain", srpms.noarch("plain"))
        package = srpms.make_rpm(folder, "plain", srpms.noarch("plain"))
        mock.plan(f"bench.1.{farm.arch}", rpms=[package])
        submit = farm.submit_command(source, "bench.1", "--json")
        farm.hold("stunnel-builder1")
        farm.hold("stunnel-builder2")  # all wait before the first is taken
        for _ in range(count):
            output_of(submit)
        farm.release("stunnel-builder1")
        farm.release("stunnel-builder2")
        began = time.monotonic()
        until(lambda: count_published(farm) == count, 600, "all are published")
        return count / (time.monotonic() - began)


def count_published(farm: Farm) -> int:
    """How many the history knows of."""
    history = open_history(f"sqlite:///{farm.layout.history}", reading=True)
    try:
        return len(history.find_builds(BuildFilter(states=[BuildState.PUBLISHED]), 10_000))
    finally:
        history.close()


@click.command("sync")
@click.option("--count", default=1000, show_default=True, help="Jobs in each run on beanstalkd alone.")
@click.option("--builds", "build_count", default=40, show_default=True, help="Builds in each run on a farm.")
@click.option("--runs", default=3, show_default=True, help="Runs of each; the median is shown.")
def command(count: int, build_count: int, runs: int) -> None:
    """beanstalkd's -f0 against -f50."""
    figures = []
    for sync_ms in (0, 50):
        rows = [_run(sync_ms, count, build_count) for _ in range(runs)]
        for unit, values in zip(("puts/s", "jobs/s", "builds/s"), zip(*rows)):
            figures.append(Figure(what=f"-f{sync_ms}", unit=unit, values=values))
    tell("sync", figures)


def _run(sync_ms: int, count: int, build_count: int) -> tuple[float, float, float]:
    with tempfile.TemporaryDirectory(prefix=".bench-", dir=".") as name:
        folder = Path(name).absolute()
        (folder / "binlog").mkdir()
        with beanstalkd(folder / "binlog", sync_ms) as broker:
            alone = puts(broker, count), lives(broker, count)
        return (*alone, builds(folder, sync_ms, build_count))


if __name__ == "__main__":
    command()

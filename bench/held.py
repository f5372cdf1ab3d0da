# SPDX-License-Identifier: Apache-2.0
"""What very many held jobs cost beanstalkd: `python -m bench.held`.

They are put, looked at one by one as reimzul-batch does when it starts, kept through a kill and a restart, and released
by their numbers. The binlog is synced at every change, and lies in the current folder, so that the disk is a real one.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import click

from bench.report import Figure, progress, resident, tell
from reimzul.core.beanstalk import HELD_SECONDS, Broker, arch_tube
from reimzul.core.message import BuildRequest, new_build_id
from tests.conftest import Beanstalkd

_ARCH = "x86_64"


def put_all(broker: Broker, count: int) -> list[int]:
    tube = arch_tube(_ARCH)
    return [broker.put(tube, make_request(number), priority=8192, delay=HELD_SECONDS) for number in range(count)]


def make_request(number: int) -> BuildRequest:
    return BuildRequest(
        srpm=f"a-package-of-usual-length-{number}-1.2.3-45.el9.src.rpm", arch=_ARCH, target=f"c9s.{_ARCH}",
        disttag=".el9", submitter="johnny", build_id=new_build_id(), timestamp="20261130000000", batch="5f0c12ab",
        srpm_sha256="0" * 64,
    )  # fmt: skip


def look_at_all(broker: Broker, jobs: list[int]) -> None:
    for each in jobs:
        BuildRequest.decode(broker.peek(each))
        assert broker.job_stats(each).is_held


def timed(work: Callable[[], object]) -> float:
    began = time.monotonic()
    work()
    return time.monotonic() - began


def restart(server: Beanstalkd) -> Broker:
    """Start it again, and wait for its first answer."""
    server.start()
    broker = server.connect()
    broker.tube_stats(_ARCH)
    return broker


def measure(folder: Path, count: int) -> list[Figure]:
    server = Beanstalkd(folder)
    server.start()
    try:
        found: list[tuple[str, str, float, str]] = []
        with server.connect() as broker:
            progress(f"{count} are put")
            began = time.monotonic()
            jobs = put_all(broker, count)
            found.append(("put", "s", time.monotonic() - began, ""))
            found.append(("memory", "MiB", resident(_pid(server)), "200"))
            progress("are looked at")
            found.append(("peek and stats of each", "s", timed(lambda: look_at_all(broker, jobs)), ""))
        server.kill()
        progress("are read again")
        began = time.monotonic()
        with restart(server) as broker:
            found.append(("kill -9 to the first answer", "s", time.monotonic() - began, "10"))
            held = broker.tube_stats(_ARCH).delayed
            found.append(("lost", "", float(count - held), "0"))
            found.append(("memory after the restart", "MiB", resident(_pid(server)), "200"))
            progress("are released")
            found.append(("release of each", "s", timed(lambda: [broker.kick(each) for each in jobs]), ""))
        size = sum(path.stat().st_size for path in folder.iterdir()) / (1 << 20)
        found.append(("binlog", "MiB", size, ""))
    finally:
        server.kill()
    return [Figure(what=what, unit=unit, values=[value], goal=goal) for what, unit, value, goal in found]


def _pid(server: Beanstalkd) -> int:
    assert server.process
    return server.process.pid


@click.command("bench.held")
@click.option("--jobs", default=100_000, show_default=True)
def command(jobs: int) -> None:
    """Hold jobs, and tell what that costs."""
    with tempfile.TemporaryDirectory(prefix=".bench-held-", dir=".") as folder:
        tell("held", measure(Path(folder), jobs), {"jobs": jobs})


if __name__ == "__main__":
    command()

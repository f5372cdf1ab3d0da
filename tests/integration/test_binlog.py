# SPDX-License-Identifier: Apache-2.0
"""A real beanstalkd that is started again: the largest job it takes costs no others."""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import greenstalk
import pytest

from devfarm.configs import beanstalkd_command
from tests.conftest import free_port
from tests.waiting import until

_LONGEST_TUBE = "t" * 200


@contextlib.contextmanager
def _start_beanstalkd(argv: Sequence[str], port: int) -> Iterator[Any]:
    """A beanstalkd, killed afterwards, and a connection to it."""

    def try_connect() -> Any:
        with contextlib.suppress(OSError):
            return greenstalk.Client(("127.0.0.1", port), use=_LONGEST_TUBE, encoding=None)
        return None

    with subprocess.Popen(argv) as process:
        try:
            with until(try_connect, 10, "beanstalkd answers") as client:
                yield client
        finally:
            process.kill()


def _put_largest(client: Any) -> int:
    """Put jobs of the largest sizes that are taken, and a small one behind each; how many were put."""
    size = int(client.stats()["max-job-size"])
    for number in (size - 2, size - 1, size):
        client.put(b"x" * number)
        client.put(b"another's")
    with pytest.raises(greenstalk.JobTooBigError):
        client.put(b"x" * (size + 1))
    return 6


def _ready(client: Any) -> int:
    return int(client.stats()["current-jobs-ready"])


@pytest.mark.parametrize("size", [[], ["-z", "61000"]], ids=["default", "smaller"])
def test_with_a_fixed_size_the_largest_job_costs_those_behind_it(tmp_path: Path, size: list[str]) -> None:
    """beanstalkd 1.12; if this fails, beanstalkd is corrected, and its service file needs no shell any more."""
    port = free_port()
    argv = ["beanstalkd", "-l", "127.0.0.1", "-p", str(port), "-b", str(tmp_path), "-f0", *size]
    with _start_beanstalkd(argv, port) as client:
        _put_largest(client)
    with _start_beanstalkd(argv, port) as client:
        assert _ready(client) == 2


def test_as_its_unit_starts_it_no_job_costs_another(tmp_path: Path) -> None:
    port, count = free_port(), 0
    folder = tmp_path / "it's a binlog"
    folder.mkdir()
    for _ in range(12):  # so that two digits follow one: binlog.9 is behind binlog.10 by name
        with _start_beanstalkd(beanstalkd_command(folder, port, sync_ms=0), port) as client:
            assert _ready(client) == count
            count += _put_largest(client)


def test_a_held_job_stays_held_with_its_number_and_priority(tmp_path: Path) -> None:
    """Also one that a worker has released held, or whose priority was changed: both are in the binlog."""
    port, held = free_port(), 10 * 365 * 86_400
    argv = beanstalkd_command(tmp_path, port, sync_ms=0)
    with _start_beanstalkd(argv, port) as client:
        put = client.put(b"put held", priority=9, delay=held)
        released = client.put(b"released held", priority=9)
        client.release(client.reserve_job(released), priority=5, delay=held)
        kicked = client.put(b"kicked", priority=9, delay=held)
        client.kick_job(kicked)
    with _start_beanstalkd(argv, port) as client:
        for number, priority, state in ((put, 9, "delayed"), (released, 5, "delayed"), (kicked, 9, "ready")):
            stats = client.stats_job(number)
            assert (stats["pri"], stats["state"]) == (priority, state)
            assert (stats["time-left"] > held - 60) is (state == "delayed")


def test_a_held_job_does_not_keep_the_files_behind_it(tmp_path: Path) -> None:
    """beanstalkd moves what lives in its oldest file once there are more files than that is worth."""
    port, held, size = free_port(), 10 * 365 * 86_400, 60_000
    with _start_beanstalkd(beanstalkd_command(tmp_path, port, sync_ms=0), port) as client:
        number = client.put(b"held", priority=9, delay=held)
        for _ in range(1_000):
            client.delete(client.put(b"x" * size))
        written, kept = 1_000 * size, sum(path.stat().st_size for path in tmp_path.glob("binlog.*"))
        assert kept < written * 0.6
    with _start_beanstalkd(beanstalkd_command(tmp_path, port, sync_ms=0), port) as client:
        assert client.peek(number).body == b"held"

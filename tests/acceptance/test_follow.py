# SPDX-License-Identifier: Apache-2.0
"""Following on a farm that lives: a log while it grows, from one attempt to the next; a table while builds go on."""

from __future__ import annotations

import json
import os
import pty
import re
import signal
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Callable

import pytest

from devfarm.farm import Farm
from devfarm.processes import own_program
from reimzul.core.message import Status
from tests import srpms
from tests.acceptance.conftest import TARGET, Witness, submit
from tests.schemas import check_line
from tests.waiting import until

Package = Callable[[str, str], Path]


class Reader:
    """A command, and what it has printed so far."""

    def __init__(self, farm: Farm, *words: str) -> None:
        environment = {**os.environ, "REIMZUL_CONFIG": str(farm.ini())}
        self.process = subprocess.Popen(
            [own_program("reimzul"), *words], env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        self.said, self.notes = b"", b""
        self.threads = [threading.Thread(target=self._read, args=[name]) for name in ("stdout", "stderr")]
        for thread in self.threads:
            thread.start()

    def _read(self, name: str) -> None:
        stream = getattr(self.process, name)
        while part := os.read(stream.fileno(), 65536):
            if name == "stdout":
                self.said += part
            else:
                self.notes += part

    def __enter__(self) -> Reader:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.end()

    def end(self, seconds: float = 120) -> int:
        """Wait for its end; its exit code."""
        code = self.process.wait(seconds)
        for thread in self.threads:
            thread.join()
        for stream in (self.process.stdout, self.process.stderr):
            assert stream
            stream.close()
        return code


def run(farm: Farm, *words: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "REIMZUL_CONFIG": str(farm.ini())}
    done = subprocess.run(
        [own_program("reimzul"), *words], env=environment, capture_output=True, text=True, timeout=60, check=False
    )
    check_line(words, done.stdout)
    return done


def submit_build(farm: Farm, srpm: Path, *more: str) -> str:
    """Submit it; its build id."""
    done = submit(farm, srpm, *more, "--json")
    assert done.returncode == 0, done.stderr
    (build,) = json.loads(done.stdout)["builds"]
    build_id: str = build["build_id"]
    until(lambda: run(farm, "show", build_id).returncode == 0, 20, "the history knows it")
    return build_id


@pytest.fixture
def ticking(farm: Farm, package: Package, request: pytest.FixtureRequest) -> Iterator[str]:
    """A build that says something each second, for long; cancelled in the end."""
    name = re.sub("[^a-z]", "", request.node.name)[-20:]
    build_id = submit_build(farm, package(name, srpms.slow(name, 600)))
    yield build_id
    run(farm, "cancel", build_id)


@pytest.mark.slow
def test_a_log_is_read_while_it_grows_and_ends_with_its_build(farm: Farm, ticking: str) -> None:
    with Reader(farm, "log", ticking[:10], "-f") as reader:
        until(lambda: b"tick 3\n" in reader.said, 60, "it has come to the third tick")
        seen = reader.said
        until(lambda: len(reader.said) > len(seen) + 20, 30, "it goes on")
        assert run(farm, "cancel", ticking).returncode == 0
        assert reader.end() == 0
    kept = run(farm, "log", ticking)
    assert kept.stdout.encode() == reader.said, "as it was read growing, nothing twice and nothing left out"
    ticks = [int(each) for each in re.findall(r"^tick (\d+)$", kept.stdout, re.MULTILINE)]
    assert ticks == list(range(1, len(ticks) + 1))
    assert "Finish: chroot init" in run(farm, "log", ticking, "state").stdout
    assert run(farm, "log", ticking, "root", "--attempt", "1").stdout


@pytest.mark.slow
def test_a_log_goes_on_with_the_attempt_of_another_worker(farm: Farm, witness: Witness, ticking: str) -> None:
    with Reader(farm, "log", ticking, "-f") as reader:
        until(lambda: b"tick 2\n" in reader.said, 60, "the first attempt is at work")
        host = json.loads(run(farm, "show", ticking, "--json").stdout)["arches"][0]["builder"].split(".")[0]
        farm.kill(f"worker-{host}-1", signal.SIGTERM)
        until(lambda: len(re.findall(rb"^tick 2$", reader.said, re.MULTILINE)) == 2, 90, "the second is at work")
        assert re.search(rb"^--- attempt 2 on builder\d\.farm\.test$", reader.notes, re.MULTILINE)
        run(farm, "cancel", ticking)
        assert reader.end() == 0
    last = run(farm, "log", ticking).stdout.encode()
    assert reader.said.endswith(last)
    assert len(reader.said) > len(last)


@pytest.mark.slow
def test_a_table_is_kept_up_to_date_and_ends_with_the_exit_code_of_its_builds(
    farm: Farm, witness: Witness, package: Package
) -> None:
    srpm = package("tabled", srpms.compiled("tabled").replace("%build\n", "%build\nsleep 4\n", 1))
    ours, its = pty.openpty()
    argv = [*farm.submit_command(srpm, TARGET), "--wait"]
    environment = {**os.environ, "COLUMNS": "160", "LINES": "40"}
    with subprocess.Popen(argv, env=environment, stdin=its, stdout=its, stderr=its) as process:
        os.close(its)
        shown = b""
        try:
            while part := os.read(ours, 65536):
                shown += part
        except OSError:  # Linux says so when the other end is closed and all is read
            pass
        assert process.wait(60) == 0
    os.close(ours)
    witness.published(srpm.name, "x86_64", "i386")
    tables = re.split(rb"\x1b\[\d+A", shown)
    assert len(tables) > 2, "it was drawn again and again"
    last = tables[-1].decode()
    assert last.count("published") == 2
    assert "TIME" in last
    assert "builder" in last
    assert not [event for event in witness.of(srpm.name) if event.status == Status.FAILED]

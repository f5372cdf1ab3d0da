# SPDX-License-Identifier: Apache-2.0
"""A command whose output nobody takes: a reader that has ended, a full disk, a stream that was closed."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from reimzul.history import open_history
from tests.events import event

PROGRAM = str(Path(sys.executable).parent / "reimzul")
#: Commands of little and of much output, which is written at their end, at once, or while it is made.
COMMANDS = (("builds",), ("builds", "--json"), ("causes",), ("stats",), ("config", "sample"), ("--help",))
each_command = pytest.mark.parametrize("words", COMMANDS, ids=" ".join)


@pytest.fixture(autouse=True)
def ini(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "reimzul.ini"
    path.write_text(f"[history]\nurl = sqlite:///{tmp_path}/history.sqlite\n")
    monkeypatch.setenv("REIMZUL_CONFIG", str(path))
    history = open_history(f"sqlite:///{tmp_path}/history.sqlite")
    history.record([event("Failed", 1), event("Published", 2)])
    history.close()


@each_command
def test_a_reader_that_has_ended_is_no_failure(words: tuple[str, ...]) -> None:
    ours, its = os.pipe()
    os.close(ours)
    done = subprocess.run(
        [PROGRAM, *words, *_period_options(words)], stdout=its, stderr=subprocess.PIPE, check=False, timeout=60
    )
    os.close(its)
    assert (done.returncode, done.stderr) == (0, b"")


@each_command
def test_a_full_disk_is_one_line(words: tuple[str, ...]) -> None:
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [PROGRAM, *words, *_period_options(words)], stdout=full, stderr=subprocess.PIPE, check=False, timeout=60
        )
    fault = b"reimzul: the output cannot be written: no space left on device\n"
    assert (done.returncode, done.stderr) == (1, fault)


@each_command
@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_a_stream_that_is_closed_drops_what_is_written_to_it(words: tuple[str, ...], closed: str) -> None:
    script = f'exec "$@" {closed}'
    done = subprocess.run(
        ["sh", "-c", script, "sh", PROGRAM, *words, *_period_options(words)],
        capture_output=True,
        check=False,
        timeout=60,
    )
    assert (done.returncode, done.stderr) == (0, b"")
    assert bool(done.stdout) == (closed in ("<&-", "2>&-"))


def _period_options(words: tuple[str, ...]) -> tuple[str, ...]:
    """The builds of the test are old."""
    return ("--since", "2025-01-01") if words[0] in ("causes", "stats") else ()

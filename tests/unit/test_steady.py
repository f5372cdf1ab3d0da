# SPDX-License-Identifier: Apache-2.0
"""tools/test runs failed tests again only if that can tell an unsteady test, and never hides one."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from tests import steady
from tests.steady import run_steadily


@pytest.fixture(autouse=True)
def this_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "build/unsteady.txt"
    monkeypatch.setattr(steady, "_THIS_RUN", path)
    return path


class Pytest:
    """Returns these exit codes, one for each run, and remembers its arguments."""

    def __init__(self, *codes: int) -> None:
        self.codes: Iterator[int] = iter(codes)
        self.calls: list[Sequence[str]] = []

    def __call__(self, arguments: Sequence[str]) -> int:
        self.calls.append(arguments)
        return next(self.codes)


@pytest.mark.parametrize("code", [2, 3, 4, 5, -9, 137])
def test_a_run_that_did_not_end_by_itself_is_not_repeated(code: int, tmp_path: Path) -> None:
    program = Pytest(code)
    assert run_steadily([], tmp_path / "runs", program, lambda: ["a::b"]) == code
    assert len(program.calls) == 1


def test_many_failures_are_final(tmp_path: Path) -> None:
    program = Pytest(1)
    assert run_steadily([], tmp_path / "runs", program, lambda: list("abcd")) == 1
    assert len(program.calls) == 1


def test_a_failure_that_nothing_names_is_final(tmp_path: Path) -> None:
    assert run_steadily([], tmp_path / "runs", Pytest(1), list) == 1


def test_what_fails_again_is_a_failure(tmp_path: Path) -> None:
    assert run_steadily([], tmp_path / "runs", Pytest(1, 1), lambda: ["a::b"]) == 1


def test_an_unsteady_test_is_named_and_fails_the_second_time(tmp_path: Path, this_run: Path) -> None:
    runs = tmp_path / "deep/runs"
    assert run_steadily([], runs, Pytest(1, 0), lambda: ["a::b"]) == 0
    assert this_run.read_text() == "unsteady: a::b: in 1 of the last 1 runs\n"
    for _ in range(8):
        assert run_steadily([], runs, Pytest(0), list) == 0
    assert this_run.read_text() == ""
    assert run_steadily([], runs, Pytest(1, 0), lambda: ["a::b"]) == 1
    assert this_run.read_text() == "unsteady: a::b: in 2 of the last 10 runs\n"


def test_two_unsteady_runs_far_apart_are_forgiven(tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    assert run_steadily([], runs, Pytest(1, 0), lambda: ["a::b"]) == 0
    for _ in range(9):
        assert run_steadily([], runs, Pytest(0), list) == 0
    assert run_steadily([], runs, Pytest(1, 0), lambda: ["a::b"]) == 0

# SPDX-License-Identifier: Apache-2.0
"""tools/test runs files side by side, repeats failed tests only if that can show an unsteady one, and names it."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests import parallel, steady
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


@pytest.mark.skipif(not find_spec("xdist"), reason="other Pythons run unit tests in one process")
def test_files_run_side_by_side_and_the_tests_of_one_in_one_process(tmp_path: Path) -> None:
    """Else each process would make what a file's tests share: the programs of an installation, a farm."""
    text = "import os\nimport pytest\n@pytest.mark.parametrize('x', range(4))\ndef test_it(x):\n"
    text += "    print(__name__, os.environ['PYTEST_XDIST_WORKER'], file=open('ran', 'a'))\n"
    for number in range(4):
        (tmp_path / f"test_{number}.py").write_text(text)
    hook = "def pytest_xdist_make_scheduler(config, log):\n    return parallel.make_scheduler(config, log)\n"
    (tmp_path / "conftest.py").write_text(f"from tests import parallel\n{hook}")
    argv = [sys.executable, "-m", "pytest", "-q", "-n", "2", "-p", "no:cacheprovider", "--rootdir", str(tmp_path)]
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run(argv, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    ran = [line.split() for line in (tmp_path / "ran").read_text().splitlines()]
    assert len(ran) == 16
    assert len({worker for _, worker in ran}) == 2
    assert all(len({worker for file, worker in ran if file == f"test_{number}"}) == 1 for number in range(4))


def test_the_longest_groups_begin_first_and_others_by_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A group left alone at the end keeps one of two cores idle."""
    names = ["unit/test_a.py", "integration/test_long.py", "acceptance/test_farm.py", "acceptance/test_b.py"]
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    items: Any = [SimpleNamespace(path=tmp_path / name, nodeid=f"tests/{name}::test_it") for name in names]
    monkeypatch.setattr(parallel, "RECORD", tmp_path / "deep/seconds.json")
    parallel.order_files(items, parallel.read_seconds())
    assert [item.path.name for item in items] == ["test_b.py", "test_farm.py", "test_a.py", "test_long.py"]
    parallel.record_seconds({"tests/integration/test_long.py": 30.0, "farm": 60.02, "tests/unit/test_a.py": 3.0})
    parallel.order_files(items, parallel.read_seconds())
    assert [item.path.name for item in items] == ["test_farm.py", "test_long.py", "test_b.py", "test_a.py"]
    parallel.RECORD.write_text("{")
    assert parallel.read_seconds() == {}

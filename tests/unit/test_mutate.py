# SPDX-License-Identifier: Apache-2.0
"""The mutants that tools/mutate.py makes, and its lists."""

from __future__ import annotations

import ast
import itertools
import threading
from pathlib import Path

import pytest

from tests.waiting import until
from tools import mutate

SOURCE = """\
TIMEOUT = 30
def f(x):
    '''Words.'''
    log.info('%s', 1)
    if not x == 1 and g(x):
        h()
        raise ValueError
    return x
"""


def test_each_spot_is_changed_alone() -> None:
    tree = ast.parse(SOURCE)
    mutants = list(mutate.find_mutants(tree))
    assert [each.name for each in mutants] == [
        "f: not x == 1 and g(x) -> not x == 1 or g(x)",
        "f: not x == 1 -> x == 1",
        "f: x == 1 -> x != 1",
        "f: 1 -> 2",
        "f: h() -> pass",
        "f: raise ValueError -> pass",
        "f: return x -> return None",
    ]
    whole = ast.unparse(ast.parse(SOURCE)).splitlines()
    for mutant in mutants:
        changed = mutant.source.splitlines()
        assert len([1 for before, after in zip(whole, changed) if before != after]) == 1
        assert len(changed) == len(whole)
    assert ast.unparse(tree) == "\n".join(whole)


def test_two_equal_spots_of_a_function_have_two_names() -> None:
    names = [each.name for each in mutate.find_mutants(ast.parse("def f():\n    g()\n    g()\n"))]
    assert names == ["f: g() -> pass", "f: g() -> pass (2)"]


SKIPPED = """\
LIMIT = 1024 * 1024
def f(x):
    if x == 1:
        log.info('%s', x)
    return ''
"""


def test_what_is_only_logged_and_what_is_false_already_has_no_mutants() -> None:
    assert list(mutate.find_mutants(ast.parse(SKIPPED))) == []


def test_a_mutant_is_for_the_tests_that_run_its_statement() -> None:
    lines = {each.name: list(each.lines) for each in mutate.find_mutants(ast.parse(SOURCE))}
    assert lines["f: x == 1 -> x != 1"] == [5, 6, 7]
    assert lines["f: h() -> pass"] == [6]


SLOW_TEST = """\
import pathlib, subprocess, time
def test_slow():
    pathlib.Path("child").write_text(str(subprocess.Popen(["sleep", "60"]).pid))
    time.sleep(60)
"""


def test_a_stop_ends_all_that_the_tests_have_started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "test_slow.py").write_text(SLOW_TEST)
    child = tmp_path / "child"

    class Stopping:
        """Set as soon as the test has started its child."""

        def is_set(self) -> bool:
            return child.exists() and bool(child.read_text())

        def wait(self, seconds: float) -> bool:
            return threading.Event().wait(seconds) or self.is_set()

    monkeypatch.setattr(mutate, "_STOPPING", Stopping())
    with pytest.raises(SystemExit):
        mutate.tests_pass(tmp_path, ["test_slow.py"], 60)
    stat = Path(f"/proc/{child.read_text()}/stat")
    until(lambda: not stat.exists() or ") Z " in stat.read_text(), 10, "the child has ended")


@pytest.mark.sources
def test_every_listed_file_exists_and_every_equivalent_is_a_mutant_with_a_reason() -> None:
    for module, tests in mutate.TESTS.items():
        assert (mutate.ROOT / module).is_file()
        assert [name for name in tests.split() if not (mutate.ROOT / f"tests/{name}.py").is_file()] == []
    for module, lines in itertools.groupby(
        mutate.EQUIVALENTS.read_text().splitlines()[1:], key=lambda line: line.split(" | ")[0]
    ):
        tree = ast.parse((mutate.ROOT / module).read_text())
        names = {each.name for each in mutate.find_mutants(tree, with_source=False)}
        for line in lines:
            _, name, reason = line.split(" | ")
            assert name in names, line
            assert reason

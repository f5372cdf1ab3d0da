# SPDX-License-Identifier: Apache-2.0
"""No log keeps a worker busy for long: every pattern over logs is linear, whatever a line holds.

The attacks are made from each pattern itself: every beginning of it repeated, and every beginning followed by a long
run of what may come next. What is bounded is the growth of the work: four times the input may take eight times the
processor time, where a quadratic pattern takes sixteen times as much.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import re
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, Callable

import pytest

from reimzul.core import error_extractor, error_patterns, log_reader
from reimzul.core.error_extractor import find_first_error
from reimzul.core.log_reader import LINE_LIMIT, cut_lines, read_end
from reimzul.core.retry import CancelToken
from reimzul.worker import mock, mock_config, mock_result, unmet, upload
from reimzul.worker.mock_result import classify, read_failures

#: The modules that read what a build has written.
MODULES = (error_extractor, error_patterns, log_reader, mock, mock_config, mock_result, unmet, upload)
#: Characters of the shorter input; the longer one has four times as many.
SHORT = 1_024
#: Seconds of processor time that no quadratic pattern stays under with the longer input.
NEGLIGIBLE_SECONDS = 0.002
#: Between 4, which is linear, and 16, which is quadratic.
MAX_GROWTH = 8.0


def patterns_in(value: Any) -> Iterator[re.Pattern[str]]:
    if isinstance(value, re.Pattern):
        if isinstance(value.pattern, str):
            yield value
    elif isinstance(value, error_patterns.ErrorPattern):
        yield value.pattern
    elif isinstance(value, (tuple, list)):
        for each in value:
            yield from patterns_in(each)


PATTERNS = {
    (each.pattern, each.flags): each
    for module in MODULES
    for value in vars(module).values()
    for each in patterns_in(value)
}


# --- inputs, made from a pattern


def parser() -> Any:
    """`re`'s own parser, which Python 3.11 renamed."""
    return getattr(re, "_parser", None) or importlib.import_module("sre_parse")


def expand(items: Iterable[Any]) -> list[list[Any]]:
    """The sequences without alternatives that a parsed pattern may be: one for each alternative of each place."""
    paths: list[list[Any]] = [[]]
    for kind, value in items:
        name = str(kind)
        if name == "BRANCH":
            ways = [way for branch in value[1] for way in expand(branch)]
        elif name == "SUBPATTERN":
            ways = expand(value[-1])
        elif name in ("AT", "ASSERT", "ASSERT_NOT"):
            ways = [[]]
        else:
            ways = [[(kind, value)]]
        paths = [[*path, *ways[0]] for path in paths] + [[*paths[0], *way] for way in ways[1:]]
    return paths


def looked_for(items: Iterable[Any]) -> Iterator[str]:
    """What a pattern must not find further on, unless it is looked for at every character (`match_until`)."""
    for kind, value in items:
        if str(kind) == "ASSERT_NOT":
            yield from ("".join(sample(*each) for each in path) for path in expand(value[1]))
        elif str(kind) == "SUBPATTERN":
            yield from looked_for(value[-1])
        elif str(kind) == "BRANCH":
            for branch in value[1]:
                yield from looked_for(branch)


def sample(kind: Any, value: Any) -> str:
    """A text that one item of a parsed pattern matches."""
    name = str(kind)
    if name == "LITERAL":
        return chr(value)
    if name in ("MAX_REPEAT", "MIN_REPEAT", "POSSESSIVE_REPEAT"):
        low, _, body = value
        return "".join(sample(*each) for each in expand(body)[0]) * max(1, int(low))
    if name == "NOT_LITERAL":
        return "x" if chr(value) != "x" else "y"
    if name == "IN":
        return sample_of_class(value)
    return "x"


def sample_of_class(value: Any) -> str:
    kinds = [str(each[0]) for each in value]
    if kinds[0] != "NEGATE":
        kind, first = value[0]
        if kinds[0] == "LITERAL":
            return chr(first)
        if kinds[0] == "RANGE":
            return chr(first[0])
        return {"CATEGORY_SPACE": " ", "CATEGORY_DIGIT": "1"}.get(str(first), "x")
    return "x"


def attacks(pattern: re.Pattern[str]) -> Iterator[Callable[[int], str]]:
    """Functions that make an input of a length."""
    units = ["x", " ", "\t", "\n", " \n", "x ", "x: ", "/", ".", "1", "1.", "'", '"', "(", "error:\n", "::", "a.py:1: "]
    parsed = parser().parse(pattern.pattern, pattern.flags)
    ends = {"", *looked_for(parsed)}
    runs: set[tuple[str, str]] = {("", unit) for unit in units}
    for path in expand(parsed):
        begin = ""
        for item in path:
            one = sample(*item)
            runs |= {(begin, one), (begin, " "), (begin, "x"), ("", begin + one), ("", f"{begin}{one}\n")}
            begin += one
    for begin, unit in sorted(runs):
        for end in sorted(ends):
            yield lambda size, begin=begin, unit=unit, end=end: (begin + unit * (size // len(unit)))[:size] + end  # type: ignore[misc]


# --- the work


def cost(work: Callable[[str], object], text: str) -> float:
    began = time.thread_time()
    work(text)
    return time.thread_time() - began


def grows_too_fast(work: Callable[[str], object], make: Callable[[int], str]) -> bool:
    """Whether the work grows more than linearly: the least of several measurements, since other programs only add."""
    short, long = make(SHORT), make(4 * SHORT)
    lengthy, brief = cost(work, long), float("inf")
    for _ in range(5):
        if lengthy < NEGLIGIBLE_SECONDS:
            return False
        brief = min(brief, *(cost(work, short) for _ in range(3)))
        if lengthy < MAX_GROWTH * brief:
            return False
        lengthy = min(lengthy, cost(work, long))
    return True


def test_the_measurement_finds_what_is_quadratic() -> None:
    for quadratic in (r"\S+: Cannot download, .*", r"requires '?([^'\n]+)'?, but", r"^not ok \d+(?!.*TODO)", r"\s+x$"):
        pattern = re.compile(quadratic, re.MULTILINE)
        assert any(grows_too_fast(pattern.findall, make) for make in attacks(pattern)), quadratic


@pytest.mark.parametrize("pattern", PATTERNS.values(), ids=lambda each: each.pattern[:40])
def test_every_pattern_is_linear(pattern: re.Pattern[str]) -> None:
    for make in attacks(pattern):
        assert not grows_too_fast(pattern.findall, make), (pattern.pattern, make(200))


@pytest.mark.parametrize("module", MODULES)
def test_no_pattern_is_hidden_from_this_test(module: ModuleType) -> None:
    """A pattern over logs belongs to the module, where it is found, not into a function."""
    for node in ast.walk(ast.parse(inspect.getsource(module))):
        if isinstance(node, (ast.FunctionDef, ast.Lambda)):
            for call in ast.walk(node):
                hidden = isinstance(call, ast.Attribute) and isinstance(call.value, ast.Name) and call.value.id == "re"
                annotates = hidden and isinstance(call, ast.Attribute) and call.attr in ("Match", "Pattern", "escape")
                allowed = annotates or getattr(node, "name", "") == "_pattern"
                assert not hidden or allowed, f"{module.__name__}: {ast.unparse(node)[:80]}"


def test_there_are_patterns() -> None:
    assert len(PATTERNS) > 90
    assert {each.pattern.pattern for each in error_patterns.BUILD_LOG} <= {text for text, _ in PATTERNS}


LINES = ("\n", "error:\n", "error:\n\n", "package x ", "x", "Error: ", "No such file ", "nothing provides ",
         "ERROR: Permission denied\n", "Executing command: ['bin/dnf", "requires x", "\x1b[1m", "é")  # fmt: skip


@pytest.mark.parametrize("text", LINES)
@pytest.mark.parametrize("code", [0, 1, 30])
def test_a_log_of_any_shape_is_classified_in_linear_time(tmp_path: Path, text: str, code: int) -> None:
    setup = "2026-11-22 08:50:12,974 - Start: build setup for d-1-1.src.rpm\n"

    def work(log: str) -> None:
        (tmp_path / "state.log").write_text(setup)
        (tmp_path / "root.log").write_text(log)
        (tmp_path / "build.log").write_text(f"Executing command: ['rpmbuild -bs x']\n{log}")
        classify(code, tmp_path)
        find_first_error(tmp_path / "build.log", tmp_path / "root.log")
        read_failures(log)

    for unit in {text, text * (LINE_LIMIT // len(text)) + "\n"}:
        assert not grows_too_fast(work, lambda size, unit=unit: (unit * (size // len(unit) + 1))[:size]), unit[:80]  # type: ignore[misc]


@pytest.mark.parametrize("text", LINES)
def test_of_four_megabytes_in_a_line_little_is_read(tmp_path: Path, text: str) -> None:
    path = tmp_path / "build.log"
    path.write_text(text.replace("\n", " ") * (4_000_000 // len(text)))
    assert len(read_end(path, 4_000_000)) <= LINE_LIMIT


def test_lines_are_cut_and_no_more() -> None:
    longest = "x" * LINE_LIMIT
    assert cut_lines(f"{longest}y\nz\n\n{longest}") == f"{longest}\nz\n\n{longest}"


# --- the end of a worker that reads a log of 500 MB


class Ended(Exception):
    """What a token raises in a worker that got SIGTERM."""


@pytest.mark.parametrize("line", [b"error:\n", b"Permission denied\n", b"x" * 9_000, b"\n"])
def test_a_worker_that_is_ended_reads_no_further(tmp_path: Path, line: bytes) -> None:
    """The token is asked with each block: a log of 500 MB has 500, this one a few."""
    path = tmp_path / "build.log"
    with path.open("wb") as stream:
        stream.write(line * (4 * log_reader.BLOCK_BYTES // len(line)))
    looks = []

    def check() -> None:
        looks.append(1)
        raise Ended

    with pytest.raises(Ended):
        find_first_error(path, path, CancelToken(check))
    assert looks == [1]


def test_the_end_of_a_large_log_is_all_that_is_read(tmp_path: Path) -> None:
    path = tmp_path / "root.log"
    with path.open("wb") as stream:
        stream.truncate(500_000_000)
    assert len(read_end(path, 4_000_000)) <= LINE_LIMIT

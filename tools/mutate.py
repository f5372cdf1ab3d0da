# SPDX-License-Identifier: Apache-2.0
"""Mutation testing of the modules that hold promises: `make mutate`, or `python -m tools.mutate MODULE…`.

Each mutant is one small change of a module: a comparison, a condition, a number, a call or raise left out. The tests
that run the changed statement must fail on it, in a copy of the checkout. Which tests run which line is recorded first:
this module is a pytest plugin then. Mutants that no test can notice are listed with the reason in
tests/mutation-equivalents.txt and do not count; those equivalent by kind (of a log, of a false result) are not made.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import copy
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import pytest

ROOT = Path(__file__).parent.parent
EQUIVALENTS, SCORES = ROOT / "tests/mutation-equivalents.txt", ROOT / "tests/mutation-scores.txt"
#: Percent of a module's mutants that the tests must kill.
GOAL = 90
#: The tests that run each module in their own process.
TESTS = {
    "reimzul/repogen/publish.py": "unit/test_repogen_publish unit/test_repogen_copier",
    "reimzul/tosign/daemon.py": "unit/test_tosign_staging integration/test_tosign",
    "reimzul/notifier/outbox.py": "unit/test_outbox unit/test_delivery",
    "reimzul/worker/job_session.py": "unit/test_job_session",
    "reimzul/worker/mock_result.py": "unit/test_mock_result unit/test_mock_logs unit/test_repo_failures",
    "reimzul/core/beanstalk.py": "unit/test_tubes integration/test_core_tube",
    "reimzul/plan/graph.py": "unit/test_plan_graph",
    "reimzul/plan/edges.py": "unit/test_plan_edges",
    "reimzul/plan/arrangement.py": "unit/test_plan_edges unit/test_plan_maker",
}
_OPPOSITE: dict[type[ast.AST], Any] = {
    ast.Eq: ast.NotEq, ast.NotEq: ast.Eq, ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt,
    ast.Is: ast.IsNot, ast.IsNot: ast.Is, ast.In: ast.NotIn, ast.NotIn: ast.In, ast.And: ast.Or, ast.Or: ast.And,
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.FloorDiv,
}  # fmt: skip
#: Fields of nodes that change nothing the tests could see.
_SKIPPED_FIELDS = ("annotation", "returns", "decorator_list", "type_params")
_NOT_COPIED = shutil.ignore_patterns(".*", "build", "dist", "__pycache__")
#: The environment variables of a run that records: the module, and the file for the records.
_WATCHED, _RECORD = "REIMZUL_MUTATE_WATCHED", "REIMZUL_MUTATE_RECORD"
_STOPPING = threading.Event()


class Mutant(NamedTuple):
    name: str  #: by which equivalents are listed
    source: str  #: of the module
    lines: range  #: of the changed statement in the unchanged module


class Test(NamedTuple):
    name: str
    seconds: float
    lines: Sequence[int]  #: of the module that it runs


def mutate_node(node: ast.AST) -> ast.AST | None:
    """Return the mutant of a node; None if it has none."""
    mutant = copy.deepcopy(node)
    if isinstance(mutant, ast.Compare):
        mutant.ops[0] = _OPPOSITE[type(mutant.ops[0])]()
    elif isinstance(mutant, (ast.BoolOp, ast.BinOp, ast.AugAssign)) and type(mutant.op) in _OPPOSITE:
        mutant.op = _OPPOSITE[type(mutant.op)]()
    elif isinstance(mutant, ast.UnaryOp) and isinstance(mutant.op, ast.Not):
        return mutant.operand
    elif isinstance(mutant, ast.Constant) and isinstance(mutant.value, (bool, int)):
        mutant.value = not mutant.value if isinstance(mutant.value, bool) else mutant.value + 1
    elif isinstance(mutant, ast.Raise) or (isinstance(mutant, ast.Expr) and isinstance(mutant.value, ast.Call)):
        return ast.Pass()
    elif isinstance(mutant, ast.Return) and mutant.value and getattr(mutant.value, "value", True):
        mutant.value = ast.Constant(None)
    elif isinstance(mutant, ast.If) and isinstance(mutant.test, (ast.Name, ast.Attribute, ast.Call, ast.NamedExpr)):
        mutant.test = ast.UnaryOp(ast.Not(), mutant.test)
    else:
        return None
    return mutant


def is_skipped(node: ast.AST, where: str) -> bool:
    """Whether nothing in a node is mutated: what is only logged, and timeouts, sizes and types of the module itself."""
    if isinstance(node, ast.If):
        return not node.orelse and all(is_skipped(each, where) for each in node.body)
    if isinstance(node, ast.keyword):
        return node.arg in ("init", "kw_only")  # attrs: who would pass it
    if isinstance(node, ast.Expr):
        return show(node).startswith(("log.", "self._log_throttled", "self._throttle"))
    return not where and isinstance(node, (ast.Assign, ast.AnnAssign))


def find_mutants(tree: ast.Module, *, with_source: bool = True) -> Iterator[Mutant]:
    seen: Counter[str] = Counter()

    def visit(node: ast.AST, where: str, lines: range) -> Iterator[Mutant]:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            where = f"{where}.{node.name}".lstrip(".")
        for field, value in ast.iter_fields(node):
            if field in _SKIPPED_FIELDS:
                continue
            for number, child in enumerate(value if isinstance(value, list) else [value]):
                if not isinstance(child, ast.AST) or is_skipped(child, where):
                    continue
                inner = range(child.lineno, (child.end_lineno or 0) + 1) if isinstance(child, ast.stmt) else lines
                if mutant := mutate_node(child):
                    replaced = [*value[:number], mutant, *value[number + 1 :]] if isinstance(value, list) else mutant
                    setattr(node, field, replaced)
                    source = ast.unparse(ast.fix_missing_locations(tree)) if with_source else ""
                    setattr(node, field, value)
                    name = f"{where}: {show(child)} -> {show(mutant)}"
                    seen[name] += 1
                    yield Mutant(name if seen[name] == 1 else f"{name} ({seen[name]})", source, inner)
                yield from visit(child, where, inner)

    yield from visit(tree, "", range(0))


def show(node: ast.AST) -> str:
    return ast.unparse(node).splitlines()[0][:100]


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    """Record how long a test takes, and which lines of the module it runs."""
    lines: set[int] = set()

    def trace(frame: Any, _kind: str, _argument: object) -> Any:
        if not frame.f_code.co_filename.endswith(os.environ[_WATCHED]):
            return None
        lines.add(frame.f_lineno)
        return trace

    began = time.monotonic()
    threading.settrace(trace)
    sys.settrace(trace)
    yield
    sys.settrace(None)
    threading.settrace(None)
    with open(os.environ[_RECORD], "a") as record:
        record.write(json.dumps(Test(item.nodeid, time.monotonic() - began, sorted(lines))) + "\n")


def tests_pass(checkout: Path, argv: Sequence[str], timeout: float, **environment: str) -> bool:
    """Run tests, and end whatever they have started."""
    argv = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *argv]
    environment = {**os.environ, "PYTHONPATH": str(checkout), "TMPDIR": str(checkout.parent), **environment}
    quiet, end = subprocess.DEVNULL, time.monotonic() + timeout
    with subprocess.Popen(
        argv, cwd=checkout, env=environment, stdin=quiet, stdout=quiet, stderr=quiet, start_new_session=True
    ) as run:
        while run.poll() is None and time.monotonic() < end and not _STOPPING.wait(0.02):
            pass
        passed = run.poll() == 0  # where it hangs, the tests noticed
        with contextlib.suppress(ProcessLookupError):
            os.killpg(run.pid, signal.SIGKILL)
    if _STOPPING.is_set():
        raise SystemExit("stopped")
    return passed


def record_tests(checkout: Path, module: str) -> list[Test]:
    """Run a module's tests on the unchanged module; the fastest first."""
    record, files = checkout / "record.jsonl", [f"tests/{name}.py" for name in TESTS[module].split()]
    environment = {_WATCHED: module, _RECORD: str(record)}
    if not tests_pass(checkout, ["-p", "tools.mutate", *files], 1200, **environment):
        raise SystemExit(f"{module}: its tests fail without any mutation: {' '.join(files)}")
    return sorted((Test(*json.loads(line)) for line in record.open()), key=lambda test: test.seconds)


def find_survivors(checkout: Path, module: str, tests: Sequence[Test], mutants: Sequence[Mutant]) -> list[Mutant]:
    survivors = []
    for mutant in mutants:
        (checkout / module).write_text(mutant.source)
        # a statement that only the import runs is every test's
        chosen = [test for test in tests if not set(mutant.lines).isdisjoint(test.lines)] or tests
        bound = 20 + 3 * sum(test.seconds for test in chosen)
        # a mutant's bytecode would be taken for that of the next one, written within the same second
        if tests_pass(checkout, [test.name for test in chosen], bound, PYTHONDONTWRITEBYTECODE="1"):
            survivors.append(mutant)
            print(f"survived: {module} | {mutant.name}", flush=True)
    return survivors


def score(module: str, jobs: int, sample: int, seed: int) -> bool:
    """Test a module's mutants, print those that survive, and write down its score; whether it reaches the goal."""
    rows = [line.split(" | ") for line in EQUIVALENTS.read_text().splitlines()]
    equivalent = {row[1] for row in rows if row[0] == module}
    mutants = [each for each in find_mutants(ast.parse((ROOT / module).read_text())) if each.name not in equivalent]
    if 0 < sample < len(mutants):
        mutants = random.Random(seed).sample(mutants, sample)
    # in memory, since the tests sync what they write
    memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    with tempfile.TemporaryDirectory(prefix="mutate-", dir=memory) as top, ThreadPoolExecutor(jobs) as pool:
        first = Path(shutil.copytree(ROOT, f"{top}/first", ignore=_NOT_COPIED))
        tests = record_tests(first, module)
        runs = [
            pool.submit(find_survivors, shutil.copytree(first, Path(top, str(job))), module, tests, mutants[job::jobs])
            for job in range(jobs)
        ]
        killed = len(mutants) - sum(len(run.result()) for run in runs)
    percent = 100 * killed / len(mutants)
    command = f"python -m tools.mutate {module}" + (f" --sample {sample} --seed {seed}" if sample else "")
    line = f"{module} | {len(mutants)} | {killed} | {percent:.1f} % | {time.strftime('%Y-%m-%d')} | {command}"
    print(line, flush=True)
    kept = [each for each in SCORES.read_text().splitlines() if not each.startswith(f"{module} |")]
    SCORES.write_text("\n".join([*kept, line]) + "\n")
    return percent >= GOAL


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tools.mutate", description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "modules", nargs="*", choices=[[], *TESTS], metavar="MODULE", help=f"default: {' '.join(TESTS)}"
    )
    parser.add_argument("--jobs", type=int, default=len(os.sched_getaffinity(0)), help="mutants tested side by side")
    parser.add_argument("--sample", type=int, default=0, help="test only so many mutants, chosen by --seed")
    parser.add_argument("--seed", type=int, default=1)
    words = parser.parse_args()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: _STOPPING.set())
    results = [score(module, words.jobs, words.sample, words.seed) for module in words.modules or TESTS]
    sys.exit(0 if all(results) else 1)


if __name__ == "__main__":
    main()

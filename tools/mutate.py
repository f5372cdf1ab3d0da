# SPDX-License-Identifier: Apache-2.0
"""Mutation testing of the modules that hold promises: `make mutate`, or `python -m tools.mutate MODULE…`.

Each mutant is one small change of a module: a comparison, a condition, a number, a call or raise left out. The tests of
that module must fail on it. A tool of our own, since the daemons that tests start have to run the mutant as well: each
runs in a copy of the checkout, which comes first on PYTHONPATH. Mutants that no test can notice are listed with the
reason in tests/mutation-equivalents.txt and do not count.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import copy
import os
import queue
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
EQUIVALENTS, SCORES = ROOT / "tests/mutation-equivalents.txt", ROOT / "tests/mutation-scores.txt"
#: Percent of a module's mutants that the tests must kill.
GOAL = 90
#: The tests of each module, the fast ones first.
TESTS = {
    "reimzul/repogen/publish.py": "unit/test_repogen_publish unit/test_repogen_copier integration/test_repogen_cancel"
    " integration/test_repogen",
    "reimzul/tosign/daemon.py": "unit/test_tosign_staging integration/test_tosign",
    "reimzul/notifier/outbox.py": "unit/test_outbox unit/test_delivery",
    "reimzul/worker/job_session.py": "unit/test_job_session integration/test_worker",
    "reimzul/worker/mock_result.py": "unit/test_mock_result unit/test_mock_logs unit/test_repo_failures",
    "reimzul/core/beanstalk.py": "integration/test_core_tube integration/test_gone_workers integration/test_worker",
}
_OPPOSITE: dict[type[ast.AST], Any] = {
    ast.Eq: ast.NotEq, ast.NotEq: ast.Eq, ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt,
    ast.Is: ast.IsNot, ast.IsNot: ast.Is, ast.In: ast.NotIn, ast.NotIn: ast.In, ast.And: ast.Or, ast.Or: ast.And,
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.FloorDiv,
}  # fmt: skip
#: Fields of nodes that change nothing the tests could see.
_SKIPPED_FIELDS = ("annotation", "returns", "decorator_list", "type_params")
_NOT_COPIED = shutil.ignore_patterns(".*", "build", "dist", "__pycache__")


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
    elif isinstance(mutant, ast.Return) and ast.unparse(mutant) not in ("return", "return None"):
        mutant.value = ast.Constant(None)
    elif isinstance(mutant, ast.If) and isinstance(mutant.test, (ast.Name, ast.Attribute, ast.Call, ast.NamedExpr)):
        mutant.test = ast.UnaryOp(ast.Not(), mutant.test)
    else:
        return None
    return mutant


def find_mutants(tree: ast.Module) -> Iterator[tuple[str, str]]:
    """Yield each mutant: its description, by which equivalents are listed, and the source of the module."""

    seen: Counter[str] = Counter()

    def visit(node: ast.AST, where: str) -> Iterator[tuple[str, str]]:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            where = f"{where}.{node.name}".lstrip(".")
        for field, value in ast.iter_fields(node):
            if field in _SKIPPED_FIELDS:
                continue
            for number, child in enumerate(value if isinstance(value, list) else [value]):
                if not isinstance(child, ast.AST) or (isinstance(child, ast.Expr) and show(child).startswith("log.")):
                    continue
                # numbers of the module itself are timeouts and sizes: no test should repeat them
                if (mutant := mutate_node(child)) and (where or not isinstance(child, ast.Constant)):
                    replaced = [*value[:number], mutant, *value[number + 1 :]] if isinstance(value, list) else mutant
                    setattr(node, field, replaced)
                    source = ast.unparse(ast.fix_missing_locations(tree))
                    setattr(node, field, value)
                    name = f"{where}: {show(child)} -> {show(mutant)}"
                    seen[name] += 1
                    yield name if seen[name] == 1 else f"{name} ({seen[name]})", source
                yield from visit(child, where)

    yield from visit(tree, "")


def show(node: ast.AST) -> str:
    return ast.unparse(node).splitlines()[0][:100]


def file_passes(checkout: Path, name: str, timeout: float) -> bool:
    """Run a file of tests, and end whatever it has started."""
    argv = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", f"tests/{name}.py"]
    environment = {**os.environ, "PYTHONPATH": str(checkout), "PYTHONDONTWRITEBYTECODE": "1"}
    quiet = subprocess.DEVNULL
    with subprocess.Popen(
        argv, cwd=checkout, env=environment, stdin=quiet, stdout=quiet, stderr=quiet, start_new_session=True
    ) as run:
        try:
            return run.wait(timeout) == 0
        except subprocess.TimeoutExpired:
            return False  # it hangs: the tests noticed
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(run.pid, signal.SIGKILL)


def measure_bounds(checkout: Path, module: str) -> dict[str, float]:
    """Run a module's tests on the unchanged module: how long each file may take on a mutant."""
    bounds = {}
    for name in TESTS[module].split():
        began = time.monotonic()
        if not file_passes(checkout, name, 1200):
            raise SystemExit(f"{module}: tests/{name}.py fails without any mutation")
        bounds[name] = 20 + 3 * (time.monotonic() - began)
    return bounds


def score(module: str, jobs: int, sample: int, seed: int) -> bool:
    """Test a module's mutants, print those that survive, and write down its score; whether it reaches the goal."""
    rows = [line.split(" | ") for line in EQUIVALENTS.read_text().splitlines() if not line.startswith("#")]
    equivalent = {row[1] for row in rows if row[0] == module}
    mutants = [each for each in find_mutants(ast.parse((ROOT / module).read_text())) if each[0] not in equivalent]
    if 0 < sample < len(mutants):
        mutants = random.Random(seed).sample(mutants, sample)
    with tempfile.TemporaryDirectory(prefix="mutate-") as top, ThreadPoolExecutor(jobs) as pool:
        checkouts: queue.Queue[Path] = queue.Queue()
        for number in range(jobs):
            checkouts.put(Path(shutil.copytree(ROOT, f"{top}/{number}", ignore=_NOT_COPIED)))
        bounds = measure_bounds(checkouts.queue[0], module)

        def is_killed(mutant: tuple[str, str]) -> bool:
            checkout = checkouts.get()
            (checkout / module).write_text(mutant[1])
            killed = not all(file_passes(checkout, name, bound) for name, bound in bounds.items())
            checkouts.put(checkout)
            if not killed:
                print(f"survived: {module} | {mutant[0]}", flush=True)
            return killed

        killed = sum(pool.map(is_killed, mutants))
    percent = 100 * killed / len(mutants)
    command = f"python -m tools.mutate {module}" + (f" --sample {sample} --seed {seed}" if sample else "")
    today = time.strftime("%Y-%m-%d", time.gmtime())
    line = f"{module} | {len(mutants)} | {killed} | {percent:.1f} % | {today} | {command}"
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
    results = [score(module, words.jobs, words.sample, words.seed) for module in words.modules or TESTS]
    sys.exit(0 if all(results) else 1)


if __name__ == "__main__":
    main()

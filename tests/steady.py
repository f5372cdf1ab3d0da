# SPDX-License-Identifier: Apache-2.0
"""Runs pytest for tools/test, and keeps count of unsteady tests: those that fail, and pass when they are run again.

Machines of CI stall for seconds at a time. There, at most three failed tests are run again; anything else that pytest
reports (interrupted, wrong usage, no tests) is final. Tests that pass then are named in `build/unsteady.txt`. A test
that is unsteady in two of the last ten runs of this machine fails the run.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Callable

MAX_RERUN_TESTS = 3
COUNTED_RUNS = 10
MAX_UNSTEADY_RUNS = 1
TESTS_FAILED = 1  # pytest.ExitCode.TESTS_FAILED
#: Most tests wait for programs, so two processes for each core have enough to do, and not too much.
PROCESSES_PER_CORE = 2

_TREE = Path(__file__).parents[1]
_LAST_FAILED = _TREE / ".pytest_cache/v/cache/lastfailed"
_THIS_RUN = _TREE / "build/unsteady.txt"
#: Outlives a checkout, as CI's clone is a new one for each run.
_EARLIER_RUNS = Path("/var/cache/reimzul-tests/unsteady.json")

RunPytest = Callable[[Sequence[str]], int]


def run_pytest(arguments: Sequence[str]) -> int:
    return subprocess.run([sys.executable, "-m", "pytest", *arguments], cwd=_TREE, check=False).returncode


def read_failed() -> list[str]:
    return sorted(json.loads(_LAST_FAILED.read_text(encoding="utf-8"))) if _LAST_FAILED.is_file() else []


def run_steadily(
    arguments: Sequence[str], runs: Path, pytest: RunPytest = run_pytest, failed: Callable[[], list[str]] = read_failed
) -> int:
    """Run pytest; run failed tests again if they are few, and record in `runs` which passed then."""
    code = pytest(arguments)
    unsteady = failed() if code == TESTS_FAILED else []
    if code and not 0 < len(unsteady) <= MAX_RERUN_TESTS:
        return code
    if unsteady:
        print("Running again:", *unsteady, sep="\n  ", flush=True)  # noqa: T201
        code = pytest(["--last-failed", "--last-failed-no-failures", "none"])
    return code or record_unsteady(unsteady, runs)


def record_unsteady(unsteady: Sequence[str], runs: Path) -> int:
    """Add this run to those of `runs`; return 1 if a test was unsteady in too many of the last ones."""
    earlier = json.loads(runs.read_text(encoding="utf-8")) if runs.is_file() else []
    counted = [*earlier, list(unsteady)][-COUNTED_RUNS:]
    runs.parent.mkdir(parents=True, exist_ok=True)
    runs.write_text(json.dumps(counted), encoding="utf-8")
    counts = Counter(name for names in counted for name in names)
    lines = [f"unsteady: {name}: in {counts[name]} of the last {len(counted)} runs" for name in unsteady]
    for line in lines:
        print(line)  # noqa: T201
    _THIS_RUN.parent.mkdir(exist_ok=True)
    _THIS_RUN.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return int(any(counts[name] > MAX_UNSTEADY_RUNS for name in unsteady))


def main() -> int:
    processes = PROCESSES_PER_CORE * (os.cpu_count() or 1)
    arguments = sys.argv[1:] or ["-n", str(processes), "--no-loadscope-reorder"]
    if os.environ.get("CI") != "true":
        return run_pytest(arguments)
    return run_steadily(arguments, _EARLIER_RUNS)


if __name__ == "__main__":
    sys.exit(main())

# SPDX-License-Identifier: Apache-2.0
"""Lets pytest-xdist run test files side by side: each process has a network of its own, and each farm one process.

Tests choose free ports, and start programs that bind them a moment later. In one network two processes could choose the
same port, and a test that counts listeners would count those of another.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import json
import os
import subprocess
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

_CLONE_NEWNET = 0x40000000  # sched.h
_NETWORK = "/proc/thread-self/ns/net"
#: The files of `acceptance` that share the fixture `farm`, which takes seconds to make and lasts for the session.
_FARM_FILES = ("test_batch.py", "test_claims.py", "test_farm.py", "test_follow.py", "test_fresh_repositories.py")
#: Of groups that are not known to take long: those of acceptance begin at once; then unit tests, which fail soonest.
_ORDER = ("acceptance", "unit", "integration")
#: Groups that take longer begin first, the longest of them at once: else one is left alone at the end.
_LONG_SECONDS = 15.0
#: How long each group took when all tests were run last on this machine.
RECORD = Path("/var/cache/reimzul-tests/seconds.json")

_libc = ctypes.CDLL(None, use_errno=True)


class Networks:
    """The network this process was started in, and its own."""

    def __init__(self) -> None:
        self._first = self._own = self._current = -1

    def enter_own(self) -> None:
        """Move into a network of loopback alone; without the right to make one, stay: ports then rarely clash."""
        first = os.open(_NETWORK, os.O_RDONLY)
        if _libc.unshare(_CLONE_NEWNET):
            os.close(first)
            return
        self._first, self._own = first, os.open(_NETWORK, os.O_RDONLY)
        self._current = self._own
        subprocess.run(["ip", "link", "set", "lo", "up"], check=True)

    def first(self) -> contextlib.AbstractContextManager[None]:
        """Within it, the network this process was started in, which may reach the internet."""
        return self._within(self._first)

    def own(self) -> contextlib.AbstractContextManager[None]:
        return self._within(self._own)

    @contextlib.contextmanager
    def _within(self, network: int) -> Iterator[None]:
        before = self._current
        self._switch_to(network)
        try:
            yield
        finally:
            self._switch_to(before)

    def _switch_to(self, network: int) -> None:
        if network != self._current and _libc.setns(network, _CLONE_NEWNET):
            raise OSError(ctypes.get_errno(), "setns")
        self._current = network


def read_seconds() -> dict[str, float]:
    with contextlib.suppress(OSError, ValueError):
        return {str(group): float(seconds) for group, seconds in json.loads(RECORD.read_text()).items()}
    return {}


def record_seconds(seconds: Mapping[str, float]) -> None:
    with contextlib.suppress(OSError):  # who may not write there has the order by size
        RECORD.parent.mkdir(parents=True, exist_ok=True)
        RECORD.write_text(json.dumps({group: round(each, 1) for group, each in sorted(seconds.items())}, indent=0))


def order_files(items: list[pytest.Item], seconds: Mapping[str, float]) -> None:
    """Order files by the seconds that their groups took, the longest first; then as in `_ORDER`, the largest first.

    Raises `UsageError` if a file shares the farm and is not in `_FARM_FILES`.
    """
    sizes = {path: path.stat().st_size for path in {Path(item.path) for item in items}}
    long = {group: each for group, each in seconds.items() if each >= _LONG_SECONDS}
    items.sort(
        key=lambda item: (
            -long.get(find_group(item.nodeid), 0.0),
            _ORDER.index(item.path.parent.name),
            -sizes[item.path],
            item.path,
        )
    )
    if strays := {Path(item.path).name for item in items if _uses_farm(item)} - set(_FARM_FILES):
        raise pytest.UsageError(f"tests/parallel.py, _FARM_FILES: add {', '.join(sorted(strays))}")


def _uses_farm(item: pytest.Item) -> bool:
    return Path(item.path).parent.name == "acceptance" and "farm" in getattr(item, "fixturenames", ())


def find_group(nodeid: str) -> str:
    """Return the name of the group of tests that run in one process: the test's file, or all files with the farm."""
    file = nodeid.partition("::")[0]
    return "farm" if file.rpartition("acceptance/")[2] in _FARM_FILES else file


class Stopwatch:
    """Adds up how long the tests of each group take, in the process that hands them out."""

    def __init__(self) -> None:
        self._seconds: Counter[str] = Counter()

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self._seconds[find_group(report.nodeid)] += report.duration  # type: ignore[assignment]

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        is_whole = session.config.args_source is pytest.Config.ArgsSource.TESTPATHS
        if is_whole and not session.config.getoption("keyword") and not session.config.getoption("markexpr"):
            record_seconds(self._seconds)


def make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Return a scheduler of pytest-xdist that keeps groups together.

    Its own `--dist loadgroup` does not with pytest 9.2: it renames tests, which pytest ignores.
    """
    scheduler = importlib.import_module("xdist.scheduler").LoadScopeScheduling(config, log)
    scheduler._split_scope = find_group
    return scheduler

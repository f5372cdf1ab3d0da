# SPDX-License-Identifier: Apache-2.0
"""A farm to measure: all its parts real, TLS between its hosts, and a mock that takes no time.

with Stand(workers=2) as stand:
    stand.fill(10_000)
    for source in stand.sources(3):
        stand.submit(source)
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from bench import packages
from devfarm.farm import Farm
from devfarm.plan import BSTORE, CONTROLLER
from reimzul.core.beanstalk import CREATEREPO, PRIORITY
from reimzul.core.message import RepogenRequest
from reimzul.core.process import output_of
from reimzul.store.listing import ListingCache
from tests import srpms
from tests.python import PYTHON

TARGET = "bench.1"
_SAMPLES = Path(__file__).parent.parent / "tests" / "samples" / "mock-logs" / "hello"
_INDEXED = re.compile(r"indexed for \d+ jobs")
#: Seconds between two looks at what is waited for, and how long it is waited for.
LOOK, PATIENCE = 0.002, 900.0


class Stand:
    """The farm, and what a benchmark does with it. On a real disk, in the current folder."""

    def __init__(self, **more: Any) -> None:
        """`more` is the farm's."""
        self._open = contextlib.ExitStack()
        self.folder = Path(tempfile.mkdtemp(prefix=".bench-", dir=".")).absolute()
        self._open.callback(shutil.rmtree, self.folder, ignore_errors=True)
        self.mock = _mock(self.folder / "mock")
        # every build has the same packages, which are to be listed nevertheless
        settings = dict.fromkeys((CONTROLLER, BSTORE), {"duplicates": {TARGET: "builds arches"}})
        mock = str(self.mock / "mock")
        self.farm = Farm(self.folder / "farm", mock=mock, targets=(TARGET,), settings=settings, **more)
        self.target = f"{TARGET}.{self.farm.arch}"

    def __enter__(self) -> Stand:
        try:
            self._open.enter_context(self.farm)
            self._leave()
        except BaseException:
            self._open.close()
            raise
        self.store = self.farm.layout.store
        self.listings = ListingCache(self.store)
        return self

    def __exit__(self, *_: object) -> None:
        self._open.close()

    def _leave(self) -> None:
        """What mock leaves of each leg beside its source's package: the logs of a real one."""
        for arch in self.farm.arches:
            goal = self.mock / "leave" / f"{TARGET}.{arch}"
            shutil.copytree(_SAMPLES, goal, ignore=shutil.ignore_patterns("exit-code", "stderr"))

    def fill(self, count: int) -> None:
        """Have so many packages published before."""
        packages.fill(self.store.target(self.target), count, self.folder)
        with self.farm.broker() as broker:
            broker.put(CREATEREPO, RepogenRequest(target=self.target), priority=PRIORITY)
        self.wait(lambda: len(self.listings.visible(self.target).packages) >= count, "the packages are listed")

    def sources(self, count: int, *, compiled: bool = False, prefix: str = "one") -> list[Path]:
        """So many source rpms, of packages of different names; mock makes one package of each."""
        make = srpms.compiled if compiled else srpms.noarch
        kind = "c" if compiled else "n"
        names = [f"{prefix}{kind}{number:04}" for number in range(count)]

        def make_both(name: str) -> Path:
            srpms.make_rpm(self.mock / "packages" / name, name, srpms.noarch(name))
            return srpms.make_srpm(self.farm.layout.incoming, name, make(name))

        with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
            return list(pool.map(make_both, names))

    def submit(self, source: Path) -> float:
        """Submit one by the program itself; the seconds that took."""
        began = time.monotonic()
        output_of(self.farm.submit_command(source, TARGET))
        return time.monotonic() - began

    def listed(self, name: str) -> int:
        """How many packages the repodata lists of builds of a package."""
        return sum(path.startswith(f"{name}/") for path in self.listings.visible(self.target).packages)

    def indexed(self) -> int:
        """How many runs of createrepo_c all repogen workers have made."""
        logs = self.farm.layout.log.glob("repogen-*")
        return sum(len(_INDEXED.findall(log.read_text())) for log in logs)

    def wait(self, condition: Any, what: str, patience: float = PATIENCE) -> float:
        """Wait for a condition, looking often; the moment it was seen."""
        deadline = time.monotonic() + patience
        while not condition():
            if time.monotonic() > deadline:
                raise SystemExit(f"not within {patience:g} s: {what}")
            time.sleep(LOOK)
        return time.monotonic()

    def mock_times(self) -> list[tuple[float, float]]:
        """When each run of mock began and ended, seconds since 1970."""
        calls = self.mock / "calls"
        lines = calls.read_text().splitlines() if calls.exists() else []
        return [(float(began), float(ended)) for began, ended in (line.split() for line in lines)]


def _mock(home: Path) -> Path:
    (home / "leave").mkdir(parents=True)
    program = home / "mock"
    text = (Path(__file__).parent / "mock_program.py").read_text()
    program.write_text(f"#!{PYTHON} -IS\n{text}")
    program.chmod(0o755)
    return home

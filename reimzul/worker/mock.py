# SPDX-License-Identifier: Apache-2.0
"""mock: calling it for one leg, ending it, and cleaning up the root it leaves when it was ended."""

from __future__ import annotations

import contextlib
import functools
import json
import logging
import shutil
from pathlib import Path
from typing import Callable

import attr

from reimzul.core import validators
from reimzul.core.errors import ProgramNotFound, ReimzulError, TimedOut
from reimzul.core.process import run
from reimzul.core.retry import CancelToken
from reimzul.worker.logfiles import BuildStalled, StallDetector, unpack_logs
from reimzul.worker.mock_config import MockConfigRepo
from reimzul.worker.mock_result import Fault, MockResult, classify, rpmbuild_started
from reimzul.worker.model import Leg
from reimzul.worker.orphans import RootInUse
from reimzul.worker.roots import EXIT_ROOT_IN_USE, MockRoot, MockRoots, RootNotRemoved
from reimzul.worker.slots import slot_of

log = logging.getLogger(__name__)

#: Seconds mock gets to enforce --rpmbuild_timeout itself before we end it: it has to set up its root before
#: rpmbuild starts, and to clean up after.
TIMEOUT_MARGIN_SECONDS = 1800
#: Seconds between SIGTERM and SIGKILL: mock ends its chroot's processes in about 0.3 s (mock.md), and what it leaves
#: is removed after it anyway.
GRACE_SECONDS = 3.0
#: Where a leg notes the root it builds in, and what mock said when it cleaned that up.
ROOT_NOTE, CLEAN_LOG = "root.json", "clean.log"
#: The logs every leg has, whatever happened; where mock wrote none, what it said on stderr stands in.
REQUIRED_LOGS = ("build.log", "root.log")


@attr.frozen(kw_only=True)
class Mock:
    """mock on this host."""

    mock: str
    configs: MockConfigRepo
    roots: MockRoots
    build_timeout: int  #: seconds, 0 for any time
    stall_timeout: int  #: seconds without a change in the result folder, 0 for any time

    def build(self, leg: Leg, heed: Callable[[], None]) -> tuple[MockResult, int | None]:
        """Run mock for a leg: the verdict and its exit code. What `heed` raises ends mock and is raised on."""
        leg.results.mkdir(parents=True, exist_ok=True)
        folder = self.configs.render(leg.config)
        shutil.copyfile(folder / "mock.cfg", leg.results / "mock.cfg")
        try:
            verdict, code = self._build(leg, folder, heed)
        except ProgramNotFound as error:
            return MockResult(Fault.BUILDER, str(error)), None
        except RootNotRemoved as error:
            verdict, code = MockResult(Fault.BUILDER, str(error)), None
        complete_logs(leg.results)
        return verdict, code

    def _build(self, leg: Leg, folder: Path, heed: Callable[[], None]) -> tuple[MockResult, int | None]:
        """Build in this worker's root, or in a spare one where a mock that cannot be ended is in it."""
        verdict: MockResult = classify(EXIT_ROOT_IN_USE, leg.results)
        code: int | None = EXIT_ROOT_IN_USE
        with contextlib.closing(self.roots.extensions(leg.arch)) as extensions:
            for extension in extensions:
                try:
                    with self.roots.prepare_root(folder, extension, heed) as root:
                        verdict, code = self._build_in(root, leg, folder, heed)
                except RootInUse as error:
                    log.warning("%s: %s", extension, error)
                    continue
                if code != EXIT_ROOT_IN_USE:
                    return verdict, code
                log.warning("%s: another mock is in the root", extension)
                remove_logs(leg.results)
        return verdict, code

    def _build_in(
        self, root: MockRoot, leg: Leg, folder: Path, heed: Callable[[], None]
    ) -> tuple[MockResult, int | None]:
        """One run of mock, and what has to be done for its root after it."""
        write_root_note(root, leg.folder)
        try:
            verdict, code = self._run(leg, folder, root, heed)
        except ReimzulError as error:
            self.roots.record_end(root, leg.results, None)
            self.roots.clean(root, leg.folder / CLEAN_LOG)
            if isinstance(error, (TimedOut, BuildStalled)):
                return timeout_result(error, leg.results), None
            raise
        self.roots.record_end(root, leg.results, code)
        if verdict.fault is Fault.BUILDER and code != EXIT_ROOT_IN_USE:  # it may not have come to its --cleanup-after
            self.roots.clean(root, leg.folder / CLEAN_LOG)
        return verdict, code

    def _run(self, leg: Leg, folder: Path, root: MockRoot, heed: Callable[[], None]) -> tuple[MockResult, int]:
        """One run of mock to its end. Raises `TimedOut`, `Stalled`, what `heed` raises."""
        watch = StallDetector(leg.results, self.stall_timeout)

        def look() -> None:
            heed()
            watch.raise_if_stalled()

        try:
            code = run(
                self.argv(leg, folder, root),
                output=leg.results / "stdout",
                errors=leg.results / "stderr",
                timeout=self.build_timeout + TIMEOUT_MARGIN_SECONDS if self.build_timeout else None,
                cancel=CancelToken(look),
                grace=GRACE_SECONDS,
                begun=functools.partial(self.roots.record_start, root),
            )
        finally:
            unpack_logs(leg.results)
        return classify(code, leg.results), code

    def argv(self, leg: Leg, folder: Path, root: MockRoot) -> list[str]:
        """mock's command line, as the original's (mock.md); the source rpm stands last."""
        timeout = [f"--rpmbuild_timeout={self.build_timeout}"] if self.build_timeout else []
        return [
            self.mock,
            "-r",
            "mock",
            f"--configdir={folder}",
            f"--resultdir={leg.results}",
            "--define",
            f"dist {leg.attempt.request.disttag}",
            f"--uniqueext={root.uniqueext}",
            *timeout,
            "--cleanup-after",
            str(leg.package.path),
        ]

    def recover_root(self, folder: Path) -> None:
        """Remove the root that a killed worker's leg may have left, as its folder says."""
        root = read_root_note(folder)
        if root is not None:
            self.roots.recover(root, folder / CLEAN_LOG)


def write_root_note(root: MockRoot, folder: Path) -> None:
    """Write a root down before mock starts, for whoever finds the folder after a crash."""
    (folder / ROOT_NOTE).write_text(json.dumps(attr.asdict(root)), encoding="utf-8")


def read_root_note(folder: Path) -> MockRoot | None:
    """The root that was written down; None where mock was never started. Earlier versions noted less of it."""
    try:
        raw = json.loads((folder / ROOT_NOTE).read_text(encoding="utf-8"))
        extension = raw["uniqueext"]
        if not slot_of(extension):
            extension = validators.attempt(extension)
        base, name = str(raw.get("base", "")), str(raw.get("name", ""))
        return MockRoot(configdir=str(raw["configdir"]), uniqueext=extension, base=base, name=name)
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return None


def remove_logs(results: Path) -> None:
    """Remove the logs of a mock that found its root in use: another is started, and mock appends to them."""
    for path in results.iterdir():
        if path.is_file() and path.name != "mock.cfg":
            path.unlink()


def timeout_result(error: ReimzulError, results: Path) -> MockResult:
    """The verdict on a build that had to be ended: the package's fault only where rpmbuild had begun."""
    fault = Fault.PACKAGE if rpmbuild_started(results) else Fault.BUILDER
    if isinstance(error, TimedOut):
        return MockResult(fault, "it took longer than a build may (build_timeout)")
    return MockResult(fault, str(error))


def complete_logs(results: Path) -> None:
    """Give a leg the logs it always has: what mock said stands in for those it did not write."""
    said = results / "stderr"
    for name in REQUIRED_LOGS:
        if not (results / name).exists():
            (results / name).write_bytes(said.read_bytes() if said.exists() else b"")
    for name in ("stdout", "stderr"):
        if (results / name).exists() and not (results / name).stat().st_size:
            (results / name).unlink()

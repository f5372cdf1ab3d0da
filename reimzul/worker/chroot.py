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
from reimzul.worker.configs import Configs
from reimzul.worker.job import Leg
from reimzul.worker.logfiles import Growth, Stalled, unpack_logs
from reimzul.worker.orphans import InUse
from reimzul.worker.roots import LOCKED, CannotRemove, Root, Roots
from reimzul.worker.slots import slot_of
from reimzul.worker.verdict import Fault, Verdict, began, judge

log = logging.getLogger(__name__)

#: Seconds mock gets to enforce --rpmbuild_timeout itself before we end it: it has to set up its root before
#: rpmbuild starts, and to clean up after.
MARGIN = 1800
#: Seconds between SIGTERM and SIGKILL: mock ends its chroot's processes in about 0.3 s (mock.md), and what it leaves
#: is removed after it anyway.
GRACE = 3.0
#: Where a leg notes the root it builds in, and what mock said when it cleaned that up.
ROOT, CLEAN_LOG = "root.json", "clean.log"
#: The logs every leg has, whatever happened; where mock wrote none, what it said on stderr stands in.
ALWAYS = ("build.log", "root.log")


@attr.frozen(kw_only=True)
class Chroot:
    """mock on this host."""

    mock: str
    configs: Configs
    roots: Roots
    build_timeout: int  #: seconds, 0 for any time
    stall_timeout: int  #: seconds without a change in the result folder, 0 for any time

    def build(self, leg: Leg, heed: Callable[[], None]) -> tuple[Verdict, int | None]:
        """Run mock for a leg: the verdict and its exit code. What `heed` raises ends mock and is raised on."""
        leg.results.mkdir(parents=True, exist_ok=True)
        folder = self.configs.render(leg.config)
        shutil.copyfile(folder / "mock.cfg", leg.results / "mock.cfg")
        try:
            verdict, code = self._build(leg, folder, heed)
        except ProgramNotFound as error:
            return Verdict(Fault.BUILDER, str(error)), None
        except CannotRemove as error:
            verdict, code = Verdict(Fault.BUILDER, str(error)), None
        complete_logs(leg.results)
        return verdict, code

    def _build(self, leg: Leg, folder: Path, heed: Callable[[], None]) -> tuple[Verdict, int | None]:
        """Build in this worker's root, or in a spare one where a mock that cannot be ended is in it."""
        verdict: Verdict = judge(LOCKED, leg.results)
        code: int | None = LOCKED
        with contextlib.closing(self.roots.extensions(leg.arch)) as extensions:
            for extension in extensions:
                try:
                    with self.roots.opened(folder, extension, heed) as root:
                        verdict, code = self._build_in(root, leg, folder, heed)
                except InUse as error:
                    log.warning("%s: %s", extension, error)
                    continue
                if code != LOCKED:
                    return verdict, code
                log.warning("%s: another mock is in the root", extension)
                forget_logs(leg.results)
        return verdict, code

    def _build_in(self, root: Root, leg: Leg, folder: Path, heed: Callable[[], None]) -> tuple[Verdict, int | None]:
        """One run of mock, and what has to be done for its root after it."""
        note_root(root, leg.folder)
        try:
            verdict, code = self._run(leg, folder, root, heed)
        except ReimzulError as error:
            self.roots.ended(root, leg.results, None)
            self.roots.clean(root, leg.folder / CLEAN_LOG)
            if isinstance(error, (TimedOut, Stalled)):
                return overdue(error, leg.results), None
            raise
        self.roots.ended(root, leg.results, code)
        if verdict.fault is Fault.BUILDER and code != LOCKED:  # it may not have come to its --cleanup-after
            self.roots.clean(root, leg.folder / CLEAN_LOG)
        return verdict, code

    def _run(self, leg: Leg, folder: Path, root: Root, heed: Callable[[], None]) -> tuple[Verdict, int]:
        """One run of mock to its end. Raises `TimedOut`, `Stalled`, what `heed` raises."""
        watch = Growth(leg.results, self.stall_timeout)

        def look() -> None:
            heed()
            watch.look()

        try:
            code = run(
                self.argv(leg, folder, root),
                output=leg.results / "stdout",
                errors=leg.results / "stderr",
                timeout=self.build_timeout + MARGIN if self.build_timeout else None,
                cancel=CancelToken(look),
                grace=GRACE,
                begun=functools.partial(self.roots.begun, root),
            )
        finally:
            unpack_logs(leg.results)
        return judge(code, leg.results), code

    def argv(self, leg: Leg, folder: Path, root: Root) -> list[str]:
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

    def clean_left(self, folder: Path) -> None:
        """Remove the root that a killed worker's leg may have left, as its folder says."""
        root = noted_root(folder)
        if root is not None:
            self.roots.recover(root, folder / CLEAN_LOG)


def note_root(root: Root, folder: Path) -> None:
    """Write a root down before mock starts, for whoever finds the folder after a crash."""
    (folder / ROOT).write_text(json.dumps(attr.asdict(root)), encoding="utf-8")


def noted_root(folder: Path) -> Root | None:
    """The root that was written down; None where mock was never started. Earlier versions noted less of it."""
    try:
        raw = json.loads((folder / ROOT).read_text(encoding="utf-8"))
        extension = raw["uniqueext"]
        if not slot_of(extension):
            extension = validators.attempt(extension)
        base, name = str(raw.get("base", "")), str(raw.get("name", ""))
        return Root(configdir=str(raw["configdir"]), uniqueext=extension, base=base, name=name)
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return None


def forget_logs(results: Path) -> None:
    """Remove the logs of a mock that found its root in use: another is started, and mock appends to them."""
    for path in results.iterdir():
        if path.is_file() and path.name != "mock.cfg":
            path.unlink()


def overdue(error: ReimzulError, results: Path) -> Verdict:
    """The verdict on a build that had to be ended: the package's fault only where rpmbuild had begun."""
    fault = Fault.PACKAGE if began(results) else Fault.BUILDER
    if isinstance(error, TimedOut):
        return Verdict(fault, "it took longer than a build may (build_timeout)")
    return Verdict(fault, str(error))


def complete_logs(results: Path) -> None:
    """Give a leg the logs it always has: what mock said stands in for those it did not write."""
    said = results / "stderr"
    for name in ALWAYS:
        if not (results / name).exists():
            (results / name).write_bytes(said.read_bytes() if said.exists() else b"")
    for name in ("stdout", "stderr"):
        if (results / name).exists() and not (results / name).stat().st_size:
            (results / name).unlink()

# SPDX-License-Identifier: Apache-2.0
"""mock: calling it for one leg, ending it, and cleaning up the root it leaves when it was ended."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path
from typing import Callable

import attr

from reimzul.core import fields
from reimzul.core.errors import ProgramMissing, ReimzulError, TimedOut
from reimzul.core.run import run
from reimzul.worker.configs import Configs
from reimzul.worker.job import Leg
from reimzul.worker.logfiles import Growth, Stalled, unpack_logs
from reimzul.worker.verdict import Fault, Verdict, began, judge

log = logging.getLogger(__name__)

#: Seconds mock gets to enforce --rpmbuild_timeout itself before we end it: it has to set up its root before
#: rpmbuild starts, and to clean up after.
MARGIN = 1800
#: Seconds between SIGTERM and SIGKILL: mock ends its chroot's processes in about 0.3 s (mock.md), and what it leaves
#: is removed after it anyway.
GRACE = 3.0
#: Seconds that cleaning a root up may take.
CLEANING = 300
#: Where a leg notes the root it builds in.
ROOT = "root.json"
#: The logs every leg has, whatever happened; where mock wrote none, what it said on stderr stands in.
ALWAYS = ("build.log", "root.log")


@attr.frozen(kw_only=True)
class Chroot:
    """mock on this host."""

    mock: str
    configs: Configs
    build_timeout: int  #: seconds, 0 for any time
    stall_timeout: int  #: seconds without a change in the result folder, 0 for any time

    def build(self, leg: Leg, heed: Callable[[], None]) -> tuple[Verdict, int | None]:
        """Run mock for a leg: the verdict and its exit code. What `heed` raises ends mock and is raised on."""
        leg.results.mkdir(parents=True, exist_ok=True)
        folder = self.configs.render(leg.config)
        shutil.copyfile(folder / "mock.cfg", leg.results / "mock.cfg")
        root = Root(configdir=str(folder), uniqueext=leg.attempt.token)
        root.note(leg.folder)
        try:
            verdict, code = self._run(leg, folder, heed)
            if verdict.fault is Fault.BUILDER:  # it was killed, or had no room: it did not come to its --cleanup-after
                self.clean(root, leg.folder)
        except ProgramMissing as error:
            return Verdict(Fault.BUILDER, str(error)), None
        except (TimedOut, Stalled) as error:
            self.clean(root, leg.folder)
            verdict, code = overdue(error, leg.results), None
        except ReimzulError:
            self.clean(root, leg.folder)
            raise
        complete_logs(leg.results)
        return verdict, code

    def _run(self, leg: Leg, folder: Path, heed: Callable[[], None]) -> tuple[Verdict, int]:
        """One run of mock to its end. Raises `TimedOut`, `Stalled`, what `heed` raises."""
        watch = Growth(leg.results, self.stall_timeout)

        def look() -> None:
            heed()
            watch.look()

        try:
            code = run(
                self.argv(leg, folder),
                output=leg.results / "stdout",
                errors=leg.results / "stderr",
                timeout=self.build_timeout + MARGIN if self.build_timeout else None,
                heed=look,
                grace=GRACE,
            )
        finally:
            unpack_logs(leg.results)
        return judge(code, leg.results), code

    def argv(self, leg: Leg, folder: Path) -> list[str]:
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
            f"--uniqueext={leg.attempt.token}",
            *timeout,
            "--cleanup-after",
            str(leg.package.path),
        ]

    def clean(self, root: Root, folder: Path) -> None:
        """Remove the root of a mock that was ended: TERM skips its --cleanup-after (mock.md)."""
        call = [self.mock, "-r", "mock", f"--configdir={root.configdir}", f"--uniqueext={root.uniqueext}"]
        for what in ("--orphanskill", "--clean"):
            try:
                run([*call, what], output=folder / "clean.log", timeout=CLEANING)
            except ReimzulError as error:
                log.warning("%s of %s: %s", what, Path(root.configdir).name, error)

    def clean_left(self, folder: Path) -> None:
        """Remove the root that a killed worker's leg may have left, as its folder says."""
        root = Root.noted(folder)
        if root is not None:
            self.clean(root, folder)


@attr.frozen(kw_only=True)
class Root:
    """The root of one leg's build, as mock has to be told to find it again."""

    configdir: str
    uniqueext: str

    def note(self, folder: Path) -> None:
        """Write it down before mock starts, for whoever finds the folder after a crash."""
        (folder / ROOT).write_text(json.dumps(attr.asdict(self)), encoding="utf-8")

    @classmethod
    def noted(cls, folder: Path) -> Root | None:
        """What was written down; None where mock was never started."""
        try:
            raw = json.loads((folder / ROOT).read_text(encoding="utf-8"))
            return cls(configdir=raw["configdir"], uniqueext=fields.attempt(raw["uniqueext"]))
        except (OSError, ValueError, TypeError, KeyError):
            return None


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

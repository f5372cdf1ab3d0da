# SPDX-License-Identifier: Apache-2.0
"""The bootstrap root of the stand-in for mock: what the package manager runs in, made once, used until it is removed.

As with mock it is never updated and never repaired: one that holds another package manager than the configuration asks
for, or an rpm database that is damaged, fails every build that uses it.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from pathlib import Path

import attr

from devfarm.standin_config import Chroot
from devfarm.standin_faults import Exit, Fault
from devfarm.standin_logs import Logs
from devfarm.standin_root import Root, root_of

_SOUND, _HALF_WRITTEN = "SQLite format 3\n", "SQLite for"


@attr.frozen
class Bootstrap:
    """A bootstrap root, in mock's folders."""

    root: Root
    manager: str
    seconds: float  #: how long it takes to make one

    @property
    def _inside(self) -> Path:
        return self.root.path / "root"

    @property
    def database(self) -> Path:
        """The rpm database in it."""
        return self._inside / "var" / "lib" / "rpm" / "rpmdb.sqlite"

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Be the only one in it."""
        with self.root.held():
            yield

    def prepare(self, logs: Logs) -> None:
        """Make it, unless it is marked as made: mock looks no further."""
        with logs.step("chroot init", bootstrap=True):
            if (self._inside / ".initialized").exists():
                return
            with logs.step(f"installing {self.manager} tooling", bootstrap=True):
                if self.database.exists():
                    self._check_database()
                self.database.parent.mkdir(parents=True, exist_ok=True)
                self.database.write_text(_HALF_WRITTEN, encoding="ascii")
                time.sleep(self.seconds)
                self.database.write_text(_SOUND, encoding="ascii")
                self._program(self.manager).parent.mkdir(parents=True, exist_ok=True)
                self._program(self.manager).touch()
            (self._inside / ".initialized").touch()

    def check(self) -> None:
        """Raise as the package manager fails in a bootstrap root that is not as it should be."""
        if not self._program(self.manager).exists():
            raise Fault(Exit.DEPENDENCIES, f"Command failed: \n # /usr/bin/{self.manager} install\nNo such file\n")
        self._check_database()

    def _check_database(self) -> None:
        if self.database.read_text(encoding="utf-8", errors="replace") != _SOUND:
            words = "error: rpmdb: damaged header\nError: Error: rpmdb open failed"
            raise Fault(Exit.DEPENDENCIES, f"Command failed: \n # /usr/bin/{self.manager} install\n{words}\n")

    def end_processes(self, logs: Logs) -> None:
        """Kill what still runs in it, unless another has it."""
        with contextlib.suppress(Fault), self.held():
            self.root.end_processes(logs)

    def _program(self, manager: str) -> Path:
        return self._inside / "usr" / "bin" / manager


def bootstrap_of(chroot: Chroot, unique: str) -> Bootstrap | None:
    """The bootstrap root of a configuration; None where it wants none."""
    if not chroot.bootstrap:
        return None
    root = root_of(chroot.roots, f"{chroot.name}-bootstrap", unique)
    return Bootstrap(root, chroot.package_manager, chroot.bootstrap_seconds)

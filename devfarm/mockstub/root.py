# SPDX-License-Identifier: Apache-2.0
"""The roots of the stand-in for mock: the folder a build happens in, and the bootstrap root.

The folder is what `/var/lib/mock/<root>` is for mock. Its lock is an flock beside it and dies with its holder. The
processes that a killed holder leaves are found by a variable in their environment; the root's next user kills them.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

from devfarm.mockstub.config import MockConfig
from devfarm.mockstub.logs import Exit, Fault, Logs
from reimzul.core.fs import file_lock

#: Set to the root's path for all that runs in a root. Orphans keep it, unlike their parent.
ROOT_VARIABLE = "REIMZUL_STANDIN_ROOT"
#: Characters in a path that mean something to rpm or to make.
UNUSABLE = frozenset(" \t\n%$'\"\\;&|<>()*?#:")


class Root:
    """The folder of one build. The names in it are mock's: `builddir` is the build user's home."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.home = path / "builddir"
        self.build = self.home / "build"  #: rpmbuild's top directory
        self.temporary = path / "tmp"
        self.programs = path / "bin"  #: the first folder in PATH of what runs in the root

    def environment(self) -> dict[str, str]:
        return {
            "HOME": str(self.home),
            "TMPDIR": str(self.temporary),
            "PATH": f"{self.programs}:/usr/bin:/bin:/usr/sbin:/sbin",
            "TERM": "vt100",
            ROOT_VARIABLE: str(self.path),
        }

    def make(self, macros: Mapping[str, str]) -> None:
        """Make an empty root whose rpmbuild works inside it and nowhere else."""
        self.remove()
        for folder in (self.temporary, self.programs, self.build / "originals"):
            folder.mkdir(parents=True)
        own = {"_topdir": self.build, "_tmppath": self.temporary, "_dbpath": self.path / "rpmdb"}
        lines = (f"%{name} {value}\n" for name, value in {**macros, **own}.items())
        (self.home / ".rpmmacros").write_text("".join(lines), encoding="utf-8")

    def remove(self) -> None:
        """Remove the root, including what a build made unwritable."""
        for folder, _, _ in os.walk(self.path):
            os.chmod(folder, 0o700)
        with contextlib.suppress(FileNotFoundError):
            shutil.rmtree(self.path)

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the root. Raises `Fault` with mock's exit code 60 where another process has it."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with file_lock(self.path.with_name(f"{self.path.name}.lock")) as descriptor:
            if descriptor is None:
                raise Fault(Exit.LOCKED, f"Build root is locked by another process: {self.path}")
            yield

    def processes(self) -> Iterator[tuple[int, str]]:
        """The processes that run in the root: their ids and command lines."""
        variable = f"{ROOT_VARIABLE}={self.path}".encode()
        for folder in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):  # it has ended meanwhile, or is another user's
                if variable in (folder / "environ").read_bytes().split(b"\0"):
                    argv = (folder / "cmdline").read_bytes().replace(b"\0", b" ")
                    yield int(folder.name), argv.decode(errors="replace").strip()

    def kill_processes(self, logs: Logs) -> None:
        """Kill what still runs in the root after whoever started it has ended."""
        logs.root.debug("kill orphans in chroot %s", self.path)
        while found := list(self.processes()):
            for pid, argv in found:
                logs.root.warning("Leftover process %d is being killed with signal 9: %s", pid, argv)
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.05)


class Bootstrap(Root):
    """The root that the package manager runs in.

    As with mock it is made once and neither updated nor repaired: where it holds another package manager than the
    configuration names, or its rpm database is damaged, every build that uses it fails. The database lists that alone.
    """

    def __init__(self, path: Path, config: MockConfig) -> None:
        super().__init__(path)
        self._config = config
        self._database = path / "root/var/lib/rpm/rpmdb.sqlite"

    def prepare(self, logs: Logs) -> None:
        """Make it, unless it is marked as made: mock looks no further."""
        done = self.path / "root/.initialized"
        with logs.step("chroot init", bootstrap=True):
            if done.exists():
                return
            with logs.step(f"installing {self._config.package_manager} tooling", bootstrap=True):
                if self._database.exists():
                    self.check()
                self._database.parent.mkdir(parents=True, exist_ok=True)
                self._database.touch()  # a mock that is killed now leaves it like this
                time.sleep(self._config.bootstrap_seconds)
                self._database.write_text(self._config.package_manager, encoding="ascii")
            done.touch()

    def check(self) -> None:
        """Fail as the package manager does in a damaged bootstrap root."""
        manager = self._config.package_manager
        if self._database.read_text(encoding="utf-8", errors="replace") != manager:
            output = "error: rpmdb: damaged header\nError: Error: rpmdb open failed"
            raise Fault(Exit.DEPENDENCIES, f"Command failed: \n # /usr/bin/{manager} install\n{output}\n")


def find_roots(config: MockConfig, extension: str) -> tuple[Root, Bootstrap | None]:
    """The root of a configuration, made unique by `--uniqueext`, and its bootstrap root, None where it wants none."""
    ending = f"-{extension}" if extension else ""
    path = config.roots / f"{config.name}{ending}"
    if bad := UNUSABLE & set(str(path)):
        raise Fault(Exit.SETUP, f"rpmbuild cannot work in {path}: {min(bad)!r} in a path means something to it")
    bootstrap = Bootstrap(config.roots / f"{config.name}-bootstrap{ending}", config) if config.bootstrap else None
    return Root(path), bootstrap

# SPDX-License-Identifier: Apache-2.0
"""A root of the stand-in for mock: the private folder one build happens in, and who may use it.

What `/var/lib/mock/<root>` is for mock. The lock is an flock beside the folder, so it dies with its holder; what a
killed holder left running is known by a variable in its environment, and is ended by whoever takes the root next.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import select
import shutil
import signal
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO

import attr

from devfarm.standin_faults import Exit, Fault
from devfarm.standin_logs import Logs

#: Set for all that runs in a root, with the root's path: a process cannot lose it as it loses its parent.
MARK = "REIMZUL_STANDIN_ROOT"
#: What means something to rpm or to make where it stands in a path.
UNUSABLE = frozenset(" \t\n%$'\"\\;&|<>()*?#:")


@attr.frozen
class Root:
    """The folder of one build. Inside, names are mock's: `builddir` is the home of whoever builds."""

    path: Path

    @property
    def home(self) -> Path:
        """The home of who builds."""
        return self.path / "builddir"

    @property
    def build(self) -> Path:
        """rpmbuild's top directory."""
        return self.home / "build"

    @property
    def scratch(self) -> Path:
        """For temporary files."""
        return self.path / "tmp"

    @property
    def programs(self) -> Path:
        """Comes first in the PATH of what runs in the root."""
        return self.path / "bin"

    def environment(self) -> dict[str, str]:
        """What a program in the root gets to know."""
        return {
            "HOME": str(self.home),
            "TMPDIR": str(self.scratch),
            "PATH": f"{self.programs}:/usr/bin:/bin:/usr/sbin:/sbin",
            "TERM": "vt100",
            MARK: str(self.path),
        }

    def make(self, macros: Mapping[str, str], rpmrc: str = "") -> None:
        """An empty root whose rpmbuild works inside it and nowhere else."""
        self.remove()
        for folder in (self.scratch, self.programs, self.build / "originals"):
            folder.mkdir(parents=True)
        ours = {"_topdir": self.build, "_tmppath": self.scratch, "_dbpath": self.path / "rpmdb"}
        lines = (f"%{name} {value}\n" for name, value in {**macros, **ours}.items())
        (self.home / ".rpmmacros").write_text("".join(lines), encoding="utf-8")
        (self.home / ".rpmrc").write_text(rpmrc, encoding="utf-8")

    def remove(self) -> None:
        """Take the root away, also what a build made unwritable."""
        with contextlib.suppress(FileNotFoundError):
            try:
                shutil.rmtree(self.path)
            except PermissionError:
                for folder, _, _ in os.walk(self.path):
                    os.chmod(folder, 0o700)
                shutil.rmtree(self.path)

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Be the only one in this root, or learn at once that another is (mock's exit code 60)."""
        with contextlib.closing(self._lock()) as stream:
            try:
                yield
            finally:
                if not self.path.exists():
                    Path(stream.name).unlink()  # while we still hold it: see _lock

    def _lock(self) -> IO[str]:
        path = self.path.with_name(f"{self.path.name}.lock")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            while True:
                stream = path.open("a")
                fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if path.exists() and path.stat().st_ino == os.fstat(stream.fileno()).st_ino:
                    return stream
                stream.close()  # its holder removed it between our opening and our locking it
        except BlockingIOError as error:
            raise Fault(Exit.LOCKED, f"Build root is locked by another process: {self.path}") from error
        except OSError as error:
            raise Fault(Exit.SETUP, f"no root can be made in {path.parent}: {error.strerror}") from error

    def processes(self) -> Iterator[tuple[int, str]]:
        """Who runs in the root: process ids, and what they are."""
        mark = f"{MARK}={self.path}".encode()
        for folder in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):  # gone meanwhile, or another user's
                if mark in (folder / "environ").read_bytes().split(b"\0"):
                    words = (folder / "cmdline").read_bytes().replace(b"\0", b" ")
                    yield int(folder.name), words.decode(errors="replace").strip()

    def end_processes(self, logs: Logs) -> None:
        """Kill what still runs in the root: whoever started it is gone."""
        logs.root.debug("kill orphans in chroot %s", self.path)
        while found := list(self.processes()):
            for process, words in found:
                logs.root.warning("Leftover process %d is being killed with signal 9: %s", process, words)
                _kill(process)


def _kill(process: int) -> None:
    # Waits until it is gone, so that it is not found once more.
    with contextlib.suppress(ProcessLookupError):
        descriptor = os.pidfd_open(process)
        try:
            os.kill(process, signal.SIGKILL)
            select.select([descriptor], [], [], 1.0)
        finally:
            os.close(descriptor)


def root_of(roots: Path, name: str, unique: str) -> Root:
    """The root for a configuration's name, made unique by `--uniqueext`."""
    path = roots / (f"{name}-{unique}" if unique else name)
    if bad := UNUSABLE & set(str(path)):
        raise Fault(Exit.SETUP, f"rpmbuild cannot work in {path}: {min(bad)!r} in a path means something to it")
    return Root(path)

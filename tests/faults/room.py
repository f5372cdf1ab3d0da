# SPDX-License-Identifier: Apache-2.0
"""A room of our own on this machine: its own loopback, its own mounts, and a second network behind a cable.

What is done in there (full disks, cut links, ports, the one sysctl a farm needs) goes when the last process of the
room does, whatever way that ends.
"""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
from pathlib import Path

from reimzul.core.errors import ReimzulError

#: Says that we are inside already.
_INSIDE = "REIMZUL_FAULTS_ROOM"
#: The two ends of the cable, and who is there. The near end is ours.
_NEAR, _FAR = "rz-near", "rz-far"
NEAR_ADDRESS, _FAR_ADDRESS = "10.213.77.1", "10.213.77.2"
#: What every host of a farm gets: a peer that is gone is noticed, with bytes under way too.
_SYSCTL = Path(__file__).parents[2] / "conf" / "sysctl-reimzul.conf"
_SYSCTL_HERE = ("sysctl", "-q", "-p", str(_SYSCTL))


def enter() -> None:
    """Go on in a room of our own: this very program, started again in new namespaces. Returns inside."""
    if _INSIDE not in os.environ:
        unshare = shutil.which("unshare")
        if unshare is None:
            raise ReimzulError("unshare (util-linux) is needed: the faults are done in namespaces of their own")
        as_root = [] if os.geteuid() == 0 else ["--user", "--map-root-user"]
        argv = [unshare, "--net", "--mount", *as_root, sys.executable, "-m", "tests.faults", *sys.argv[1:]]
        os.execve(unshare, argv, {**os.environ, _INSIDE: "1"})
    _ip("link", "set", "lo", "up")
    subprocess.run(_SYSCTL_HERE, check=True)
    # a killed program leaves libfaketime's shared memory there
    subprocess.run(["mount", "-t", "tmpfs", "faults", "/dev/shm"], check=True)


class Cable:
    """A network that is reached over one cable, which can be pulled at either end."""

    def __init__(self, folder: Path) -> None:
        self._name = folder / "network"
        self._name.touch()
        subprocess.run(["unshare", f"--net={self._name}", "true"], check=True)
        self._run_inside("ip", "link", "set", "lo", "up")
        self._run_inside("ip", "link", "add", _FAR, "type", "veth", "peer", "name", _NEAR, "netns", str(os.getpid()))
        self._run_inside("ip", "addr", "add", f"{_FAR_ADDRESS}/24", "dev", _FAR)
        _ip("addr", "add", f"{NEAR_ADDRESS}/24", "dev", _NEAR)
        self._run_inside(*_SYSCTL_HERE)
        self.plug()

    @property
    def prefix(self) -> tuple[str, ...]:
        """Before the command lines of what runs over there."""
        return (shutil.which("nsenter") or "nsenter", f"--net={self._name}", "--")

    def pull(self, *, far: bool) -> None:
        """Cut the link without a word: at the far end, as if that host had lost it, or at ours."""
        if far:
            self._run_inside("ip", "link", "set", _FAR, "down")
        else:
            _ip("link", "set", _NEAR, "down")

    def plug(self) -> None:
        """Have it back."""
        self._run_inside("ip", "link", "set", _FAR, "up")
        _ip("link", "set", _NEAR, "up")

    def throttle(self, rate: str) -> None:
        """Let no more through than so many bits a second, each way."""
        shaper = ("root", "tbf", "rate", rate, "burst", "4kb", "latency", "2s")
        self._run_inside("tc", "qdisc", "replace", "dev", _FAR, *shaper)
        subprocess.run(["tc", "qdisc", "replace", "dev", _NEAR, *shaper], check=True)

    def unthrottle(self) -> None:
        """Let all through."""
        self._run_inside("tc", "qdisc", "del", "dev", _FAR, "root")
        subprocess.run(["tc", "qdisc", "del", "dev", _NEAR, "root"], check=True)

    def close(self) -> None:
        """Let the network go."""
        _ip("link", "del", _NEAR)
        subprocess.run(["umount", self._name], check=True)

    def _run_inside(self, *argv: str) -> None:
        subprocess.run([*self.prefix, *argv], check=True)


class SmallDisk:
    """A small file system in memory, mounted at a folder; it can be filled and freed."""

    def __init__(self, folder: Path, mib: int) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self._ballast = folder / ".ballast"
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={mib}m", "faults", folder], check=True)

    def fill(self, left: int) -> None:
        """Leave no more than `left` bytes free."""
        with self._ballast.open("wb") as ballast:
            while True:
                room = os.statvfs(self.folder)
                try:
                    os.posix_fallocate(ballast.fileno(), 0, max(1, room.f_bavail * room.f_frsize - left))
                    return
                except OSError as error:  # another was quicker to take some of it: what is left of it then
                    if error.errno != errno.ENOSPC:
                        raise

    def free(self) -> None:
        """Have the room back."""
        self._ballast.unlink(missing_ok=True)

    def close(self) -> None:
        """Unmount it, with all that is in it."""
        subprocess.run(["umount", self.folder], check=True)


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True)

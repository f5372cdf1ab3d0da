# SPDX-License-Identifier: Apache-2.0
"""A room of our own for a run: its mounts, its processes, its folder, and what is left of runs that were killed.

All that a run does is done in namespaces whose first process is the run itself: when that ends, whatever way, its
machines, mounts and networks are gone with it. Only a folder on the disk and empty control groups outlive a `kill -9`;
the next run takes them away.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import FrameType

from tests.waiting import until

#: Outside of any clone: what is made once is kept for all of them.
CACHE = Path("/var/cache/reimzul-farm-test")
_RUNS = CACHE / "runs"
#: Tells the program inside the folder of its run.
_INSIDE = "REIMZUL_HOSTS_RUN"
#: Programs without which there are no machines, and the packages that have them.
_NEEDED = {
    "systemd-nspawn": "systemd-container",
    "debootstrap": "debootstrap",
    "tcpdump": "tcpdump",
    "dpkg-scanpackages": "dpkg-dev",
    "unshare": "util-linux",
    "setpriv": "util-linux",
    "ip": "iproute2",
}
#: Seconds the run may take to end once it was told to.
_GRACE = 60
#: Where control groups of version 2 are mounted, in the room.
CGROUPS = Path("/run/reimzul-cgroups")
_INNER = "inner.pid"
#: The first process of a room. It buries whom nobody else does: a machine cannot end as long as one of its processes
#: waits for that. A signal that ends it is handed on.
_FIRST = """\
trap 'kill -TERM "$run"' TERM INT HUP
"$@" &
run=$!
until wait "$run"; code=$?; ! kill -0 "$run" 2>/dev/null; do :; done
exit "$code"
"""
#: A file that is in a run's folder once its farm is up.
UP = "up"


class NotHere(Exception):
    """This host cannot boot machines; the words say why."""


def check_host() -> None:
    """Raise `NotHere` where machines cannot be booted: nothing is left out in silence."""
    if os.geteuid():
        raise NotHere("root is needed, to boot machines with systemd-nspawn: sudo make farm-test")
    os.environ["PATH"] += ":/usr/local/sbin:/usr/sbin:/sbin"  # where such programs are, and not every PATH looks
    missing = {package for program, package in _NEEDED.items() if not shutil.which(program)}
    if missing:
        raise NotHere(f"not installed: {', '.join(sorted(missing))} (tools/setup installs them)")


def run_inside(words: Sequence[str]) -> int:
    """Start this very program again in a room of its own, with a folder of its own; its exit code.

    A signal that ends us ends it first, and has it tidy up; `kill -9` has the kernel do that.
    """
    CACHE.mkdir(parents=True, exist_ok=True)
    with _folder() as folder:
        argv = ["unshare", "--mount", "--pid", "--ipc", "--uts", "--fork", "--kill-child", "--mount-proc"]
        argv += ["bash", "-c", _FIRST, "first", sys.executable, "-m", "tests.hosts", *words]
        environment = {**os.environ, _INSIDE: str(folder)}
        # a session of its own: Ctrl-C is for us to hand on, once
        argv = ["setpriv", "--pdeathsig", "KILL", *argv]
        with subprocess.Popen(argv, env=environment, start_new_session=True) as run, _handed_on(run):
            try:
                return run.wait()
            finally:
                run.kill()


@contextlib.contextmanager
def _handed_on(run: subprocess.Popen[bytes]) -> Iterator[None]:
    """Signals that end us go to the first process of the room instead."""

    def hand_on(number: int, frame: FrameType | None) -> None:
        with contextlib.suppress(OSError, ValueError):
            os.kill(int(Path(f"/proc/{run.pid}/task/{run.pid}/children").read_text().split()[0]), signal.SIGTERM)
        signal.signal(signal.SIGALRM, lambda number, frame: run.kill())
        signal.alarm(_GRACE)

    before = {number: signal.signal(number, hand_on) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        signal.alarm(0)
        for number, handler in before.items():
            signal.signal(number, handler)


def find_run_folder() -> Path | None:
    """The folder of the run whose room we are in."""
    return Path(os.environ[_INSIDE]) if _INSIDE in os.environ else None


def furnish(folder: Path) -> None:
    """What a new room needs, from inside: places of its own for nspawn and ip, and control groups."""
    (folder / _INNER).write_text(os.readlink("/proc/self/ns/pid"))
    for path in ("/run/netns", "/run/systemd"):
        Path(path).mkdir(exist_ok=True)
        _mount("-t", "tmpfs", "farm-test", path)
    CGROUPS.mkdir(exist_ok=True)
    _mount("-t", "cgroup2", "farm-test", str(CGROUPS))
    cgroup(folder).mkdir()


def cgroup(folder: Path) -> Path:
    """The control group of a run, in which each machine has one."""
    return CGROUPS / f"reimzul-farm-test-{folder.name}"


def runs() -> list[Path]:
    """The folders of the runs that are under way and have their farm up."""
    return [folder for folder in sorted(_RUNS.glob("*")) if (folder / UP).exists() and not _free(folder)]


def join(folder: Path, words: Sequence[str]) -> int:
    """Run this program once more in the room of a run that is under way; its exit code."""
    space = (folder / _INNER).read_text()
    first = next(
        (path.parent.parent for path in Path("/proc").glob("[0-9]*/ns/pid") if _link(path) == space), None
    )  # /proc is in the order of numbers, and the first process of a room has its lowest
    if first is None:
        raise NotHere(f"nobody is in the room of {folder}")
    argv = ["nsenter", "-t", first.name, "-m", "-p", "-i", "-u", "env", "-C", os.getcwd()]
    argv += [sys.executable, "-m", "tests.hosts", *words]
    return subprocess.run(argv, env={**os.environ, _INSIDE: str(folder)}, check=False).returncode


def _link(path: Path) -> str:
    try:
        return os.readlink(path)
    except OSError:
        return ""


@contextlib.contextmanager
def _folder() -> Iterator[Path]:
    """A folder for this run, locked as long as it lasts; those of runs that were killed go first."""
    _RUNS.mkdir(exist_ok=True)
    folder = _RUNS / f"{time.strftime('%H%M%S')}-{os.getpid()}"
    with contextlib.ExitStack() as ours:
        with (CACHE / "runs.lock").open("w") as one_at_a_time:
            fcntl.flock(one_at_a_time, fcntl.LOCK_EX)
            _sweep()
            folder.mkdir(mode=0o755)
            ours.callback(_remove, folder)
            fcntl.flock(ours.enter_context((folder / "lock").open("w")), fcntl.LOCK_EX)
        yield folder


def _sweep() -> None:
    for left in sorted(_RUNS.glob("*")):
        if left.is_dir() and _free(left):
            print(f"farm-test: taking away what a run that was killed has left: {left}", flush=True)
            _remove(left)


def _free(folder: Path) -> bool:
    """Whether the run of a folder is over: its lock ended with it."""
    try:
        with (folder / "lock").open() as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
    except FileNotFoundError:
        return True
    except BlockingIOError:
        return False


def _remove(folder: Path) -> None:
    """A run's control groups and its folder. Its processes are gone, or go this moment."""
    with _cgroups() as root:
        mine = root / cgroup(folder).name
        until(lambda: not mine.is_dir() or _rmdir(mine), 30, f"the control groups of {folder} are empty")
    shutil.rmtree(folder, ignore_errors=True)


def _rmdir(group: Path) -> bool:
    try:
        for path, _, _ in os.walk(group, topdown=False):
            os.rmdir(path)
        return True
    except OSError:  # a process that was killed has not quite ended
        return False


@contextlib.contextmanager
def _cgroups() -> Iterator[Path]:
    """The host's control groups of version 2, wherever they are mounted; a host without them has none of ours."""
    rows = (row.split() for row in Path("/proc/mounts").read_text().splitlines())
    yield next((Path(row[1]) for row in rows if row[2] == "cgroup2"), Path("/nonexistent"))


def _mount(*words: str) -> None:
    subprocess.run(["mount", *words], check=True)

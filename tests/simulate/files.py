# SPDX-License-Identifier: Apache-2.0
"""Every effect on a file is a step of the scheduler: an audit hook sees it before it happens, whoever's code it is."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import random
import sys
import tempfile
from collections.abc import Iterator
from typing import Any

from tests.simulate import scheduler

_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT
#: What needs room on the disk.
_MAKING = ("open", "os.mkdir", "os.symlink", "os.link")
_EVENTS = frozenset((*_MAKING, "os.rename", "os.remove", "os.rmdir", "os.truncate"))


class Files:
    """The files of one run, all below `root`."""

    def __init__(self, root: str) -> None:
        self.root = root
        self._touched: dict[str, dict[str, float]] = {}  #: of each folder, when a name was last changed in it

    def touch(self, path: str) -> None:
        folder, name = os.path.split(path)
        self._touched.setdefault(folder, {})[name] = scheduler.world.time()

    def last_change(self, path: str) -> float:
        """The ctime that files would have on the virtual clock, by the hosts' clock."""
        folder, name = os.path.split(path)
        times = list(self._touched.get(path, {}).values())
        if name in self._touched.get(folder, {}):
            times.append(self._touched[folder][name])
        return max(times, default=scheduler.EPOCH)


class _State:
    files: Files | None = None  #: of the run, while there is one


def last_change(path: str) -> float:
    return _State.files.last_change(path) if _State.files else 0.0


_real_close, _real_flock, _real_getpid = os.close, fcntl.flock, os.getpid


def _audit(event: str, arguments: tuple[Any, ...]) -> None:
    files = _State.files
    if files is None or event not in _EVENTS:
        return
    path = arguments[0]
    if event == "open" and not arguments[2] & _WRITING:
        return
    if not isinstance(path, (str, bytes)):
        return
    name = os.fsdecode(path)
    if name.startswith("/") and not name.startswith(files.root):
        return
    world = scheduler.world
    world.step(f"{event} {name[len(files.root) :] if name.startswith('/') else name}")
    process = world.current.process
    if event in _MAKING and process.steps < process.disk_full_until and not os.path.exists(path):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), name)
    goal = arguments[1] if event in ("os.rename", "os.link", "os.symlink") else name
    files.touch(os.fsdecode(goal))


def _close(descriptor: int) -> None:
    if _State.files is not None:
        scheduler.world.current.process.descriptors.discard(descriptor)
    _real_close(descriptor)


def _flock(descriptor: Any, mode: int) -> None:
    if _State.files is None:
        _real_flock(descriptor, mode)
        return
    world = scheduler.world
    if world.current.process.dead:
        raise scheduler.Killed
    while True:
        try:
            _real_flock(descriptor, mode | fcntl.LOCK_NB)
            break
        except BlockingIOError:
            if mode & fcntl.LOCK_NB:
                raise
        world.sleep(0.01)
    world.current.process.descriptors.add(descriptor)


def _fsync(descriptor: int) -> None:
    """Nothing is lost here: a cut of the power is another test's."""
    scheduler.world.step("fsync")


class _Names:
    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)

    def __iter__(self) -> _Names:
        return self

    def __next__(self) -> str:
        return f"{self._random.getrandbits(40):010x}"


def open_journal(path: Any, flags: int, mode: int) -> int:
    """`os.open` of a file that stays open until its process ends."""
    descriptor = os.open(path, flags, mode)
    scheduler.world.current.process.descriptors.add(descriptor)
    return descriptor


def write_journal(descriptor: int, block: bytes) -> int:
    """`os.write`, in two steps: a process may be killed between them, and a full disk takes the first half alone."""
    world = scheduler.world
    world.step("write journal")
    half = os.write(descriptor, block[: len(block) // 2])
    process = world.current.process
    world.step("write on")
    if process.steps < process.disk_full_until:
        return half
    return half + os.write(descriptor, block[half:])


def close_descriptors(process: scheduler.Process) -> None:
    """Close what a process has locked or writes to, as the kernel does at its end."""
    for descriptor in list(process.descriptors):
        with contextlib.suppress(OSError):
            _real_close(descriptor)
    process.descriptors.clear()


@contextlib.contextmanager
def watch_files(root: str, seed: int) -> Iterator[Files]:
    """Let every effect below a folder be a step, while the block runs."""
    own = random.Random(seed)
    originals = (os.fsync, os.urandom, tempfile._name_sequence)  # type: ignore[attr-defined]
    os.close, fcntl.flock, os.fsync = _close, _flock, _fsync  # type: ignore[assignment]
    os.urandom = own.randbytes if hasattr(own, "randbytes") else lambda n: own.getrandbits(8 * n).to_bytes(n, "big")
    os.getpid = lambda: scheduler.world.current.process.pid
    tempfile._name_sequence = _Names(seed)  # type: ignore[attr-defined]
    files = _State.files = Files(root)
    try:
        yield files
    finally:
        _State.files = None
        os.close, fcntl.flock, os.getpid = _real_close, _real_flock, _real_getpid
        os.fsync, os.urandom, tempfile._name_sequence = originals  # type: ignore[attr-defined]


sys.addaudithook(_audit)

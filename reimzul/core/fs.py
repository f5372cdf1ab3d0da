# SPDX-License-Identifier: Apache-2.0
"""What has to outlive a crash on a disk: files and links that are whole or not there, and locks that die with us.

And how much is free on one.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import attr

from reimzul.core.clock import EARLIEST_UNIX_TIME, MAX_SKEW_SECONDS
from reimzul.core.errors import ConfigError
from reimzul.core.store_paths import StorePaths

_MIB = 1024 * 1024


@attr.frozen(kw_only=True)
class FreeSpace:
    """What is free where a folder is, or will be."""

    folder: Path
    mib: int
    inodes: int | None  #: None where the file system does not count them

    @classmethod
    def measure(cls, folder: Path) -> FreeSpace:
        """Look; where the folder is not made yet, at the next one above it. Raises `OSError`."""
        there = folder
        while not there.exists() and there != there.parent:
            there = there.parent
        found = os.statvfs(there)
        mib = found.f_bavail * found.f_frsize // _MIB
        return cls(folder=folder, mib=mib, inodes=found.f_favail if found.f_files else None)

    def shortfalls(self, mib: int, inodes: int) -> Iterator[str]:
        """What is less than is needed, each as `<what>: <how much>`."""
        if self.mib < mib:
            yield f"disk under {self.folder}: {self.mib} MiB free, {mib} are needed"
        if self.inodes is not None and self.inodes < inodes:
            yield f"inodes under {self.folder}: {self.inodes} free, {inodes} are needed"


def sync(path: Path) -> None:
    """Have the disk keep a file's content, or a folder's list of names."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_parents(path: Path, top: Path) -> None:
    """Have the disk keep the way to a path, from `top` on."""
    for folder in path.parents:
        sync(folder)
        if folder == top:
            return


#: Folders that stay, and their inodes, whose way the disk keeps: `sync_way` had it do so.
_LASTING: dict[Path, int] = {}


def sync_ancestors_once(path: Path, stays: Path, top: Path) -> None:
    """The same by way of a folder that `stays`: the way to that is synced once in the life of a process."""
    sync_parents(path, stays)
    inode = stays.stat().st_ino
    if _LASTING.get(stays) != inode:
        sync_parents(stays, top)
        _LASTING[stays] = inode


def write_atomic(path: Path, text: str) -> None:
    """Write a file: whole and lasting when this returns, and until then as it was."""
    temporary = _temporary_sibling(path)
    temporary.write_text(text, encoding="utf-8")
    sync(temporary)
    temporary.replace(path)
    sync(path.parent)


def symlink_atomic(path: Path, goal: str) -> None:
    """Make or change a symbolic link in one step, for good."""
    temporary = _temporary_sibling(path)
    temporary.unlink(missing_ok=True)
    temporary.symlink_to(goal)
    temporary.replace(path)
    sync(path.parent)


def _temporary_sibling(path: Path) -> Path:
    # one per process: two that write the same path do not meet, and a crash leaves at most one behind
    return path.parent / f".{path.name}.{os.getpid()}"


def remove(path: Path) -> None:
    """Remove a file, a link or a folder with all that is in it; gone already is fine."""
    with contextlib.suppress(FileNotFoundError):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()


def last_change(folder: Path) -> float:
    """When something of a folder last arrived; by this host's clock, not by the time that rsync gives its files.

    What was written while that clock was not set, or ahead, counts from now on: it is kept as long as all else.
    """
    times = [folder.lstat().st_ctime]
    if folder.is_dir() and not folder.is_symlink():
        times += [entry.stat(follow_symlinks=False).st_ctime for entry in os.scandir(folder)]
    now = time.time()
    likely = [each for each in times if EARLIEST_UNIX_TIME <= each <= now + MAX_SKEW_SECONDS]
    if not likely:
        with contextlib.suppress(PermissionError):
            os.utime(folder, follow_symlinks=False)
    return max(likely, default=now)


@contextlib.contextmanager
def file_lock(path: Path, *, shared: bool = False, wait: bool = False) -> Iterator[int | None]:
    """Hold a file's flock, as its descriptor; None where another has it, unless we `wait`.

    The holder may remove the file. Give the descriptor to a program (`run`'s `inherit`) and the lock lasts until
    that has ended too.
    """
    mode = (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | (0 if wait else fcntl.LOCK_NB)
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            try:
                fcntl.flock(descriptor, mode)
            except BlockingIOError:
                yield None
                return
            if _is_same_file(path, descriptor):
                yield descriptor
                return
        finally:
            os.close(descriptor)


def _is_same_file(path: Path, descriptor: int) -> bool:
    with contextlib.suppress(FileNotFoundError):
        return path.stat().st_ino == os.fstat(descriptor).st_ino
    return False


def create_store_dirs(store: StorePaths) -> None:
    """Make the store's folders. Raises `ConfigError` where they cannot be written, or lie on several disks."""
    disks = set()
    for folder in store.folders():
        try:
            folder.mkdir(parents=True, exist_ok=True)
            disks.add(folder.stat().st_dev)
        except OSError as error:
            raise ConfigError(f"[bstore] root: {folder}: {(error.strerror or 'cannot be made').lower()}") from error
        if not os.access(folder, os.W_OK | os.X_OK):
            raise ConfigError(f"[bstore] root: {folder}: not writable for this user")
    if len(disks) > 1:
        raise ConfigError(f"[bstore] root: the folders in {store.root} lie on several file systems; it must be one")

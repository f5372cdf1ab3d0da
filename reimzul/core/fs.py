# SPDX-License-Identifier: Apache-2.0
"""Files that survive a crash: atomic writes, syncs and locks; how much space is free, and who can read them."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shlex
import shutil
import stat
import time
from collections.abc import Iterator
from pathlib import Path

import attr

from reimzul.core.clock import EARLIEST_UNIX_TIME, MAX_SKEW_SECONDS
from reimzul.core.errors import ConfigError, describe_os_error
from reimzul.core.formatting import format_size
from reimzul.core.store_paths import StorePaths

_MIB = 1024 * 1024
#: Seconds between two tries to get a lock that another process has.
_LOCK_POLL_SECONDS = 0.02


@attr.frozen(kw_only=True)
class FreeSpace:
    folder: Path
    mib: int
    inodes: int | None  #: None if the file system does not count them

    @classmethod
    def measure(cls, folder: Path) -> FreeSpace:
        """Measure at the folder, or at its nearest existing parent. Raises `OSError`."""
        existing = folder
        while not existing.exists() and existing != existing.parent:
            existing = existing.parent
        found = os.statvfs(existing)
        mib = found.f_bavail * found.f_frsize // _MIB
        return cls(folder=folder, mib=mib, inodes=found.f_favail if found.f_files else None)

    def shortfalls(self, mib: int, inodes: int) -> Iterator[str]:
        if self.mib < mib:
            free, needed = (format_size(each * _MIB) for each in (self.mib, mib))
            yield f"disk under {self.folder}: {free} free, {needed} are needed"
        if self.inodes is not None and self.inodes < inodes:
            yield f"inodes under {self.folder}: {self.inodes} free, {inodes} are needed"


def sync(path: Path) -> None:
    """fsync a file's content, or a folder's list of names."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_parents(path: Path, top: Path) -> None:
    """fsync the folders from a path's parent up to `top`."""
    for folder in path.parents:
        sync(folder)
        if folder == top:
            return


#: Folders whose ancestors were synced in this process, and their inodes.
_SYNCED: dict[Path, int] = {}


def sync_ancestors_once(path: Path, stays: Path, top: Path) -> None:
    """fsync the folders up to `top`; those above `stays`, which is never removed, only once per process."""
    sync_parents(path, stays)
    inode = stays.stat().st_ino
    if _SYNCED.get(stays) != inode:
        sync_parents(stays, top)
        _SYNCED[stays] = inode


def write_atomic(path: Path, text: str, *, mode: int | None = None, owner: tuple[int, int] = (-1, -1)) -> None:
    """Replace a file's content: the old one until this returns, then the new one, synced.

    With a mode, the file has it and its owner (uid and gid; -1: unchanged) before it has any content.
    """
    temporary = _temporary_sibling(path)
    temporary.unlink(missing_ok=True)
    try:
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        with open(os.open(temporary, flags, 0o666 if mode is None else 0o600), "w", encoding="utf-8") as sink:
            if mode is not None:
                os.fchown(sink.fileno(), *owner)
                os.fchmod(sink.fileno(), mode)
            sink.write(text)
            sink.flush()
            os.fsync(sink.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    sync(path.parent)


def symlink_atomic(path: Path, goal: str) -> None:
    """Create or replace a symbolic link in one step, synced."""
    temporary = _temporary_sibling(path)
    temporary.unlink(missing_ok=True)
    temporary.symlink_to(goal)
    temporary.replace(path)
    sync(path.parent)


def _temporary_sibling(path: Path) -> Path:
    # one per process: two writers of one path do not collide, and a crash leaves at most one behind
    return path.parent / f".{path.name}.{os.getpid()}"


def remove(path: Path) -> None:
    """Remove a file, a link or a folder with its content, if it exists."""
    with contextlib.suppress(FileNotFoundError):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()


def last_change(folder: Path) -> float:
    """When a folder last changed, as Unix time: by ctime, since rsync sets the mtime of its files.

    A ctime before the clock was set, or in the future, counts as now, so that what it belongs to is not removed early.
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
    """Hold a file's flock; yield its descriptor, or None if somebody else holds it and we do not `wait`.

    The holder may remove the file. A program that inherits the descriptor (`process.run`) holds the lock until it ends
    too.
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


@contextlib.contextmanager
def folder_lock(folder: Path, *, shared: bool = False, patience: float = 0.0) -> Iterator[None]:
    """Hold the flock of a folder itself, which ends with it.

    Raises `BlockingIOError` if another process has it for `patience` seconds more.
    """
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        _lock_within(descriptor, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB, patience)
        yield
    finally:
        os.close(descriptor)


def _lock_within(descriptor: int, mode: int, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while True:
        try:
            fcntl.flock(descriptor, mode)
            return
        except BlockingIOError:
            if time.monotonic() >= deadline:
                raise
        time.sleep(_LOCK_POLL_SECONDS)


def _is_same_file(path: Path, descriptor: int) -> bool:
    with contextlib.suppress(FileNotFoundError):
        return path.stat().st_ino == os.fstat(descriptor).st_ino
    return False


def create_store_dirs(store: StorePaths) -> None:
    """Create the store's folders. Raises `ConfigError` if they are not writable or lie on several file systems."""
    disks = set()
    for folder in store.folders():
        try:
            is_new = not folder.exists()
            folder.mkdir(parents=True, exist_ok=True)
            if is_new:  # what is synced in it later must not be lost with it
                sync_parents(folder, store.root)
            disks.add(folder.stat().st_dev)
        except OSError as error:
            raise ConfigError(f"[bstore] root: {folder}: {describe_os_error(error)}") from error
        if not os.access(folder, os.W_OK | os.X_OK):
            raise ConfigError(f"[bstore] root: {folder}: not writable for this user")
    if len(disks) > 1:
        raise ConfigError(f"[bstore] root: the folders in {store.root} lie on several file systems; it must be one")


def find_unreadable(path: Path, incoming: Path) -> str:
    """Describe what prevents other users from reading a file of `incoming/`, and the fix; empty if nothing does.

    The web server runs as another user. Symbolic links are followed. Folders above `incoming/` are not checked: that
    user may have access there through its groups, which `reimzul doctor` tries.
    """
    try:
        real, folder = path.resolve(), incoming.resolve()
        if not real.stat().st_mode & stat.S_IROTH:
            return _describe_bar(real, "read", "o+r")
        for parent in real.parents:
            if parent in folder.parents:
                break
            if not parent.stat().st_mode & stat.S_IXOTH:
                return _describe_bar(parent, "enter", "o+x")
    except (OSError, RuntimeError) as error:  # a loop of links
        return f"{path}: {describe_os_error(error)}"
    return ""


def _describe_bar(path: Path, verb: str, wanted: str) -> str:
    mode = stat.S_IMODE(path.stat().st_mode)
    return f"{path} has mode {mode:04o}, and other users cannot {verb} it: chmod {wanted} {shlex.quote(str(path))}"

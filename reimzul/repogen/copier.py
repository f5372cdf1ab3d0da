# SPDX-License-Identifier: Apache-2.0
"""Copies uploads out of the spool, into folders and files that no builder has ever had open.

rsyncd may still have a file or the folder of an upload open, and a builder may have linked a file into two uploads. So
nothing leaves the spool by a rename: whatever is verified, published or kept is a copy, and has inodes of its own.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import stat
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import attr

from reimzul.core import fs
from reimzul.core.arch import Arches, read_arches
from reimzul.core.errors import RetryLater
from reimzul.core.formatting import format_size
from reimzul.core.retry import CancelToken
from reimzul.core.store_paths import StorePaths
from reimzul.core.validators import quoted
from reimzul.repogen.verify import InvalidUpload, UnpublishablePackage

log = logging.getLogger(__name__)

_FICLONE = 0x40049409  # linux/fs.h: share the blocks of another file
_CHUNK_BYTES = 16 * 1024 * 1024
#: Never wait for a pipe's other end, never follow a link: a builder may have uploaded either.
_OPEN_FLAGS = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
#: Space that a copy leaves to others.
_SPARE_MIB = 64
#: The pause of a job whose upload finds no room.
_NO_ROOM_PAUSE_SECONDS = 30
#: A folder that is younger may be locked by its maker in a moment.
_ABANDONED_SECONDS = 60


@attr.frozen
class UploadCopier:
    store: StorePaths
    max_files: int  #: of an upload
    max_mib: int  #: of an upload
    arches: Arches = attr.field(factory=read_arches)  #: that packages are verified against

    def remove_abandoned(self) -> None:
        """Remove the copies of repogen processes that have died."""
        for folder in self.store.publishing.iterdir():
            if time.time() - folder.stat().st_ctime > _ABANDONED_SECONDS:
                with contextlib.suppress(BlockingIOError), fs.folder_lock(folder):
                    fs.remove(folder)

    @contextlib.contextmanager
    def copied(self, spool: Path, cancel: CancelToken) -> Iterator[Path]:
        """Yield a copy of an upload, for the caller to rename; otherwise it is removed.

        Raises `InvalidUpload` for what is no plain file, `UnpublishablePackage` where the upload exceeds the limits,
        `RetryLater` if the disk has no room for a copy.
        """
        with self._make_folder(spool) as folder, _open_folder(spool) as source:
            names = self._check_limits(source)
            self._copy(source, names, folder, cancel)
            yield folder

    @contextlib.contextmanager
    def copied_logs(self, spool: Path) -> Iterator[Path]:
        """Yield a copy of an upload's logs and of nothing else; of none where they exceed the limits."""
        with self._make_folder(spool) as folder, _open_folder(spool) as source:
            names = [name for name in _plain_files(source) if not name.endswith(".rpm")]
            try:
                self._check_sizes(source, names)
            except UnpublishablePackage as error:
                log.warning("%s: its logs are not kept: %s", spool.name, error)
                names = []
            self._copy(source, names, folder, CancelToken())
            yield folder

    @contextlib.contextmanager
    def _make_folder(self, spool: Path) -> Iterator[Path]:
        folder = Path(tempfile.mkdtemp(prefix=f"{spool.name[:150]}.", dir=self.store.publishing))
        try:
            with fs.folder_lock(folder):
                folder.chmod(0o755)
                yield folder
        finally:
            fs.remove(folder)

    def _check_limits(self, source: int) -> list[str]:
        """The names of an upload's files. rsync leaves those with a dot when a transfer is cut."""
        with os.scandir(source) as entries:
            for number, entry in enumerate(entries, 1):
                self._check_count(number)
                if not entry.is_file(follow_symlinks=False):
                    raise InvalidUpload(f"{quoted(entry.name)} is no plain file")
        names = _plain_files(source)
        self._check_sizes(source, names)
        return names

    def _check_count(self, number: int) -> None:
        if number > self.max_files:
            raise UnpublishablePackage(f"it has over {self.max_files} files ([repogen] max_upload_files)")

    def _check_sizes(self, source: int, names: list[str]) -> None:
        self._check_count(len(names))
        total = sum(os.stat(name, dir_fd=source, follow_symlinks=False).st_size for name in names)
        if total >> 20 > self.max_mib:
            limit = format_size(self.max_mib << 20)
            raise UnpublishablePackage(f"it has {format_size(total)}, over {limit} ([repogen] max_upload_mib)")

    def _copy(self, source: int, names: list[str], folder: Path, cancel: CancelToken) -> None:
        has_room = False
        for number, name in enumerate(names):
            with _open_file(source, name) as original, _create_file(folder / name) as copy:
                if _clone(original, copy):
                    continue
                if not has_room:
                    self._check_room(sum(os.stat(each, dir_fd=source).st_size for each in names[number:]))
                    has_room = True
                _copy_content(original, copy, name, cancel)

    def _check_room(self, size: int) -> None:
        room = fs.FreeSpace.measure(self.store.root)
        for shortfall in room.shortfalls((size >> 20) + _SPARE_MIB, 0):
            raise RetryLater(f"no room to publish: {shortfall}", pause=_NO_ROOM_PAUSE_SECONDS)


def upload_size(spool: Path) -> int:
    """Bytes of an upload as it lies in the spool, to order work by; 0 if it is not there."""
    with contextlib.suppress(OSError), os.scandir(spool) as entries:
        return sum(entry.stat(follow_symlinks=False).st_size for entry in entries)
    return 0


def _plain_files(source: int) -> list[str]:
    with os.scandir(source) as entries:
        plain = [entry.name for entry in entries if entry.is_file(follow_symlinks=False)]
    return sorted(name for name in plain if not name.startswith("."))


@contextlib.contextmanager
def _open_folder(folder: Path) -> Iterator[int]:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def _open_file(folder: int, name: str) -> Iterator[int]:
    """Open a plain file without holes. Raises `InvalidUpload`."""
    descriptor = os.open(name, _OPEN_FLAGS, dir_fd=folder)
    try:
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode):
            raise InvalidUpload(f"{quoted(name)} is no plain file")
        # A file of 20 GiB that takes no room would be hashed for minutes.
        if found.st_size and os.lseek(descriptor, 0, os.SEEK_HOLE) < found.st_size:
            raise InvalidUpload(f"{quoted(name)} has holes: it was not written as a whole")
        yield descriptor
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def _create_file(path: Path) -> Iterator[int]:
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _clone(original: int, copy: int) -> bool:
    """Share the blocks of a file, where the file system can (btrfs, XFS); writing to one does not change the other."""
    try:
        fcntl.ioctl(copy, _FICLONE, original)
    except OSError:
        return False
    return True


def _copy_content(original: int, copy: int, name: str, cancel: CancelToken) -> None:
    size = os.fstat(original).st_size
    copied = 0
    while copied < size:
        cancel.raise_if_cancelled()
        sent = os.sendfile(copy, original, copied, min(_CHUNK_BYTES, size - copied))
        if not sent:
            raise InvalidUpload(f"{quoted(name)} became shorter while it was copied")
        copied += sent

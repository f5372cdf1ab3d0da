# SPDX-License-Identifier: Apache-2.0
"""The names that keep the roots of this host's workers apart: one slot a worker, one extension a slot and leg arch.

mock adds the extension (--uniqueext) to a root's name. A worker that systemd runs has its instance's name as its slot;
a worker started by hand takes the first spare slot. A slot is held by an flock, which ends with its holder, so roots
are bounded by workers x targets and every build of a worker finds the bootstrap root of the build before.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import time
from collections.abc import Iterator
from pathlib import Path

import attr

#: Seconds a starting worker waits for the slot of its instance: another may be cleaning up what its predecessor left.
SLOT_TIMEOUT_SECONDS = 60.0
_POLL_SECONDS = 0.1
_SLOT = re.compile(r"[A-Za-z0-9_]{1,40}\Z")
_EXTENSION = r"reimzul-(?P<slot>[A-Za-z0-9_]{1,40})\.[A-Za-z0-9_]+"
#: A root's folder: the name in mock's configuration, `-bootstrap` where it is a bootstrap root, the extension.
_FOLDER = re.compile(rf"(?P<root>.+?)(?P<bootstrap>-bootstrap)?-(?P<extension>{_EXTENSION})\Z")
#: A folder of the versions that had an extension for each attempt: attempts are named `<seconds>-<8 hex digits>`.
_OLD_FOLDER = re.compile(r"(?P<root>reimzul-.+?)(?P<bootstrap>-bootstrap)?-(?P<extension>[0-9]{9,11}-[0-9a-f]{8})\Z")


@attr.frozen
class RootFolder:
    """A root's folder that a worker of this farm made, read from its name."""

    root: str  #: the name in mock's configuration; builds of one target share it
    bootstrap: bool
    extension: str
    slot: str  #: empty where a version before the slots made it

    @property
    def configured_name(self) -> str:
        """What a configuration has to call the root for mock to find the folder, given the extension."""
        return f"{self.root}-bootstrap" if self.bootstrap else self.root


def parse_folder(name: str) -> RootFolder | None:
    """Read the name of a folder among mock's roots; None where it is none of ours."""
    for pattern in (_FOLDER, _OLD_FOLDER):
        if found := pattern.match(name):
            slot = found.groupdict().get("slot") or ""
            return RootFolder(found["root"], bool(found["bootstrap"]), found["extension"], slot)
    return None


def slot_of(extension: str) -> str:
    """The slot of an extension; empty where a version before the slots made it."""
    found = re.fullmatch(_EXTENSION, extension)
    return found["slot"] if found else ""


def extension_of(slot: str, arch: str) -> str:
    """The extension of a slot for the legs of an arch: two legs may share a root's name, and run side by side."""
    return f"reimzul-{slot}.{arch}"


@contextlib.contextmanager
def hold_lock(path: Path, *, shared: bool = False) -> Iterator[None]:
    """Hold the flock of a file; `BlockingIOError` where another holds it. The holder may remove the file."""
    mode = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
    while True:
        descriptor = os.open(path, os.O_RDONLY | os.O_CREAT, 0o664)
        try:
            fcntl.flock(descriptor, mode | fcntl.LOCK_NB)
            if _is_same(path, descriptor):
                yield
                return
        finally:
            os.close(descriptor)


def _is_same(path: Path, descriptor: int) -> bool:
    with contextlib.suppress(FileNotFoundError):
        return path.stat().st_ino == os.fstat(descriptor).st_ino
    return False


class SlotLocks:
    """The slots of this host."""

    def __init__(self, folder: Path) -> None:
        """`folder` has the locks; it is the same for all workers that share mock's roots."""
        self.folder = folder

    def hold(self, slot: str) -> contextlib.AbstractContextManager[None]:
        """Hold a slot; `BlockingIOError` where another worker does."""
        return hold_lock(self.folder / f"{slot}.slot")

    @contextlib.contextmanager
    def hold_own(self, instance: str) -> Iterator[str]:
        """Hold the slot of a systemd instance, or a spare one where there is no instance or it is taken."""
        deadline = time.monotonic() + SLOT_TIMEOUT_SECONDS
        while _SLOT.match(instance):
            with contextlib.ExitStack() as stack:
                try:
                    stack.enter_context(self.hold(instance))
                except BlockingIOError:
                    if time.monotonic() > deadline:
                        break
                    time.sleep(_POLL_SECONDS)
                    continue
                yield instance
                return
        with self.hold_spare() as slot:
            yield slot

    @contextlib.contextmanager
    def hold_spare(self) -> Iterator[str]:
        """Hold the first spare slot that nobody holds."""
        number = 1
        while True:
            with contextlib.ExitStack() as stack:
                try:
                    stack.enter_context(self.hold(f"spare{number}"))
                except BlockingIOError:
                    number += 1
                    continue
                yield f"spare{number}"
                return

# SPDX-License-Identifier: Apache-2.0
"""When a source rpm in `incoming/` was last needed, so that `[incoming] keep_days` removes none that is in use.

Whoever queues a build marks its source rpm first. The mark is the file's own ctime; or, where the file belongs to
another user, an empty file beside it. A removal looks at the mark under a lock that marking takes too, so that it
either finds the mark or is over before the submission looks for the file.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable
from pathlib import Path

from reimzul.core import fs

#: Seconds to wait for the lock: a removal holds it for a moment, and nobody is to stop submissions by holding it.
LOCK_PATIENCE_SECONDS = 5.0
#: Prefix of the empty files that mark source rpms of other users: then comes the file's name, then the user's number.
MARK_PREFIX = ".used-"


def mark_source(path: Path) -> None:
    """Let a source rpm in `incoming/` stay for `[incoming] keep_days` from now. Raises `OSError` if it is not there."""
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(BlockingIOError):
            stack.enter_context(fs.folder_lock(path.parent.resolve(), shared=True, patience=LOCK_PATIENCE_SECONDS))
        status = path.lstat()
        try:  # sets ctime; the mtime stays, since the web server's ETag is made of it
            os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns), follow_symlinks=False)
        except PermissionError:
            with contextlib.suppress(PermissionError):  # the history alone protects what a reader submits
                path.with_name(f"{MARK_PREFIX}{path.name}.{os.getuid()}").touch()


def list_marks(folder: Path) -> dict[str, list[Path]]:
    """The marks beside source rpms, by the source rpm's name."""
    found: dict[str, list[Path]] = {}
    for mark in folder.glob(f"{MARK_PREFIX}*"):
        found.setdefault(mark.stem[len(MARK_PREFIX) :], []).append(mark)
    return found


def last_use(path: Path, marks: Iterable[Path]) -> float:
    """When a source rpm came to `incoming/`, or was last needed for a build. Raises `OSError` if it is not there."""
    times = [fs.last_change(path)]
    for mark in marks:
        with contextlib.suppress(FileNotFoundError):
            times.append(fs.last_change(mark))
    return max(times)

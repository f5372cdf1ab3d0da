# SPDX-License-Identifier: Apache-2.0
"""Which source rpms in `incoming/` no build needs any more, and their removal.

A file is needed by a build that waits, runs or waits to be published, by one that failed lately and may be retried, and
by every member of a batch that is not over: a person may retry or settle it. A batch that is not over has held builds.
A build that is being submitted is not in the history yet: core/incoming.py has its mark.
"""

from __future__ import annotations

import contextlib
import glob
import os
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path

import attr

from reimzul.core import fs, validators
from reimzul.core.errors import ReimzulError, describe_os_error
from reimzul.core.incoming import LOCK_PATIENCE_SECONDS, MARK_PREFIX, last_use, list_marks
from reimzul.core.message import Status
from reimzul.history import BuildFilter, BuildRecord, History

#: The statuses of a build that `reimzul retry` submits again.
_RETRYABLE = (Status.FAILED, Status.REJECTED, Status.CANCELLED)


@attr.frozen(kw_only=True)
class OldSource:
    """A source rpm that was not needed for long."""

    srpm: str
    bytes: int
    since: float  #: when it came to incoming/, or was last submitted
    message: str = ""  #: why it stays; empty for one to be removed


def find_old_sources(history: History, folder: Path, before: float) -> list[OldSource]:
    """Return the source rpms that came and were last submitted before a time, the oldest first.

    Raises `HistoryUnavailable` and `ReimzulError`.
    """
    try:
        found = sorted(_list_sources(folder, before), key=lambda each: (each.since, each.srpm))
    except OSError as error:
        raise ReimzulError(f"{folder}: {describe_os_error(error)}") from error
    batches = {each.batch for each in history.find_unfinished() if each.batch} if found else set()
    return [attr.evolve(each, message=_describe_need(history, each.srpm, before, batches)) for each in found]


def _list_sources(folder: Path, before: float) -> Iterator[OldSource]:
    marks = list_marks(folder)
    for entry in os.scandir(folder):
        if validators.is_source_rpm(entry.name) and not entry.is_dir(follow_symlinks=False):
            with contextlib.suppress(FileNotFoundError):
                since = last_use(Path(entry.path), marks.get(entry.name, ()))
                if since < before:
                    yield OldSource(srpm=entry.name, bytes=entry.stat(follow_symlinks=False).st_size, since=since)


def _describe_need(history: History, srpm: str, before: float, batches: Collection[str]) -> str:
    """Name a build that needs a source rpm, or an unfinished batch; empty if none does."""
    for build in history.iterate_builds(BuildFilter(srpm=srpm)):
        if _needs_source(build, before):
            return f"{build.arch} of build {build.build_id[:8]} is {build.state}"
        if build.batch in batches:
            return f"batch {build.batch} is not over"
    return ""


def _needs_source(build: BuildRecord, before: float) -> bool:
    if build.is_unfinished:
        return True
    # repogen has a success built again whose upload it finds damaged
    is_unpublished = build.status == Status.SUCCESS and build.published == 0 and not build.scratch
    return (is_unpublished or build.status in _RETRYABLE) and (build.finished or build.at) >= before


def remove_old_sources(folder: Path, sources: Iterable[OldSource], before: float) -> list[OldSource]:
    """Remove source rpms; return those that were removed. One that was submitted meanwhile stays.

    Killed in between, it leaves the rest to the next call. Raises `ReimzulError`.
    """
    try:
        removed = [source for source in sources if _remove_source(folder / source.srpm, before)]
        for srpm, marks in list_marks(folder).items():
            if not os.path.lexists(folder / srpm):
                _remove_marks(marks, before)
    except BlockingIOError:
        raise ReimzulError(f"{folder} is locked by another program") from None
    except OSError as error:
        reason = f"{error.filename}: {describe_os_error(error)}"
        hint = f": run it as root, or as the owner of {folder}" if isinstance(error, PermissionError) else ""
        raise ReimzulError(f"{reason}{hint}") from error
    return removed


def _remove_source(path: Path, before: float) -> bool:
    with fs.folder_lock(path.parent.resolve(), patience=LOCK_PATIENCE_SECONDS), contextlib.suppress(FileNotFoundError):
        if last_use(path, path.parent.glob(f"{MARK_PREFIX}{glob.escape(path.name)}.*")) < before:
            path.unlink()
            return True
    return False


def _remove_marks(marks: Iterable[Path], before: float) -> None:
    for mark in marks:
        with contextlib.suppress(FileNotFoundError):
            if fs.last_change(mark) < before:
                mark.unlink()

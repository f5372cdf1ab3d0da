# SPDX-License-Identifier: Apache-2.0
"""Source rpms in `incoming/`: how one gets there, when it was last needed, and the removal of unneeded ones.

Whoever queues a build marks its source rpm first. The mark is the file's own ctime; or, where the file belongs to
another user, an empty file beside it. A removal looks at the mark under a lock that marking takes too, so that it
either finds the mark or is over before the submission looks for the file.

A file is needed by a build that waits, runs or waits to be published, and by one that failed lately and may be retried.
A build that is being submitted is not in the history yet, but has marked its file.
"""

from __future__ import annotations

import contextlib
import glob
import os
import shutil
import tempfile
import time
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path

import attr

from reimzul.core import fs, validators
from reimzul.core.errors import InputError, ReimzulError, describe_os_error
from reimzul.core.manifest import sha256_of
from reimzul.core.message import Status
from reimzul.history import BuildFilter, BuildRecord, History

#: Seconds to wait for the lock: a removal holds it for a moment, and nobody is to stop submissions by holding it.
LOCK_PATIENCE_SECONDS = 5.0
#: Prefix of unfinished copies, and the seconds after which one is left over from a killed submission.
_COPY_PREFIX, _STALE_COPY_SECONDS = ".incoming-", 86_400
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


# --- copying a source rpm there


def copy_source(path: Path, incoming: Path) -> tuple[str, bool]:
    """Copy a source rpm to `incoming/` if it is elsewhere; return its sha256, and whether it was copied.

    Raises `InputError`, leaving nothing.
    """
    try:
        place = incoming / validators.srpm(path.name)
    except ValueError as error:
        raise InputError(f"{path}: {error}") from None
    try:
        if place.exists() and path.resolve() == place.resolve():
            mark_source(place)
            _check_readable(place)
            return sha256_of(place), False
    except OSError as error:  # removed meanwhile
        raise InputError(f"{path}: {describe_os_error(error)}") from error
    try:
        _remove_stale_copies(incoming)
        return _copy_in(path, place)
    except OSError as error:  # the folder cannot be written to, or is full
        reason = describe_os_error(error)
        raise InputError(f"{incoming}: {place.name} cannot be copied in: {reason}") from error


def _check_readable(place: Path) -> None:
    if bar := fs.find_unreadable(place, place.parent):
        raise InputError(f"no builder can download it: {bar}")


def _remove_stale_copies(incoming: Path) -> None:
    for copy in incoming.glob(f"{_COPY_PREFIX}*"):
        with contextlib.suppress(OSError):
            if time.time() - copy.stat().st_mtime > _STALE_COPY_SECONDS:
                copy.unlink()


def _copy_in(path: Path, place: Path) -> tuple[str, bool]:
    """Copy to a temporary name, then link(2): that never replaces a file, and shows the whole file or none.

    Returns the file's sha256, and whether it was not there yet.
    """
    descriptor, copy = tempfile.mkstemp(prefix=_COPY_PREFIX, dir=place.parent)
    try:
        with open(descriptor, "wb") as sink, path.open("rb") as source:
            shutil.copyfileobj(source, sink)
            os.fchmod(sink.fileno(), 0o644)  # the web server reads it as another user
            sink.flush()
            os.fsync(sink.fileno())
        _check_readable(Path(copy))
        digest = sha256_of(Path(copy))
        copied = _link_in(Path(copy), place, digest)
    finally:
        os.unlink(copy)
    fs.sync(place.parent)  # the request that is put next needs the file after a power cut too
    return digest, copied


def _link_in(copy: Path, place: Path, digest: str) -> bool:
    """Give a copy its name; return False if the same file has it already. Raises `InputError` if another has it."""
    while True:
        try:
            os.link(copy, place)
        except FileExistsError:
            try:
                mark_source(place)
                is_same = sha256_of(place) == digest
            except FileNotFoundError:
                if os.path.lexists(place):  # a link that leads nowhere
                    raise
                continue  # removed meanwhile
            if not is_same:
                raise InputError(
                    f"{place}: a different file of that name is there already; "
                    "submit that one by this path, or give yours another release"
                ) from None
            _check_readable(place)
            return False
        return True


# --- what no build needs

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

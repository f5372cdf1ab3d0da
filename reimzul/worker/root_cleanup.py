# SPDX-License-Identifier: Apache-2.0
"""Removes roots that nobody builds in any more: of targets not built for long, of workers that are gone, of versions
that had an extension for each attempt.

An idle worker does it, one root at a time. A busy worker that runs out of disk takes no jobs, and so becomes idle.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Callable

from reimzul.core.errors import ReimzulError, ShutdownRequested
from reimzul.core.fs import file_lock
from reimzul.core.retry import CancelToken
from reimzul.worker.roots import DAY_SECONDS, MockRoots, RootFolder, RootInUse, RootRecord, parse_folder

log = logging.getLogger(__name__)

#: Seconds between two scans for roots to remove.
SCAN_INTERVAL_SECONDS = 600.0
#: Seconds that the main root of a build lies unused before it counts as orphaned: mock removes it after each build.
_ORPHANED_SECONDS = 3600

Action = Callable[[CancelToken], None]


class RootCleanup:
    def __init__(self, roots: MockRoots) -> None:
        self.roots = roots
        self._actions: Iterator[Action] = iter(())
        self._next_scan = 0.0

    def clean_one(self, cancel: CancelToken) -> None:
        try:
            action = self._next_action()
            if action is not None:
                action(cancel)
        except ShutdownRequested:
            raise
        except RootInUse as error:
            log.info("%s: it is tried again later", error)
        except (ReimzulError, OSError) as error:
            log.warning("a root that nobody builds in is not removed: %s", error)

    def _next_action(self) -> Action | None:
        action = next(self._actions, None)
        if action is None and time.monotonic() >= self._next_scan:
            self._next_scan = time.monotonic() + SCAN_INTERVAL_SECONDS
            self._actions = self._scan()
            action = next(self._actions, None)
        return action

    def _scan(self) -> Iterator[Action]:
        self._create_missing_locks()
        for base in self._bases():
            for name in _folder_names(base):
                folder = parse_folder(name)
                if folder is not None and self._is_due(base / name, folder):
                    yield functools.partial(self._remove_root, base, name, folder)
        for lock in sorted(self.roots.state.glob("reimzul-*.lock")):
            if self._is_old(_age(lock)):
                yield functools.partial(self._remove_caches, lock)

    def _create_missing_locks(self) -> None:
        """Count the age of earlier versions' targets from now on: nothing records when they were last built."""
        for name in _folder_names(self.roots.configs.rendered_folder):
            lock = self.roots.state / f"reimzul-{name}.lock"
            if (self.roots.configs.rendered_folder / name / "mock.cfg").exists() and not lock.exists():
                lock.touch()

    def _bases(self) -> list[Path]:
        """The folders with mock's roots: that of the settings, and those that mock itself has named."""
        named = {lock.read_text(encoding="utf-8") for lock in self.roots.state.glob("*.lock")}
        return sorted({self.roots.mock_roots, *(Path(base) for base in named if base)})

    def _is_due(self, path: Path, folder: RootFolder) -> bool:
        if not folder.slot:
            return time.time() - int(folder.extension.partition("-")[0]) > _ORPHANED_SECONDS
        record = self._record_path(folder)
        age = _age(record if record.exists() else path)
        return self._is_old(age) if folder.bootstrap else age > _ORPHANED_SECONDS

    def _is_old(self, age: float) -> bool:
        return bool(self.roots.days) and age > self.roots.days * DAY_SECONDS

    def _record_path(self, folder: RootFolder) -> Path:
        return self.roots.state / f"{folder.root}-{folder.extension}.json"

    def _remove_root(self, base: Path, name: str, folder: RootFolder, cancel: CancelToken) -> None:
        with self.roots.hold_slot(folder.slot) as held:
            if held is None or not (base / name).exists() or not self._is_due(base / name, folder):
                return
            record = self._record_path(folder)
            if folder.bootstrap and folder.slot and record.exists():
                used = record.stat().st_mtime
                RootRecord(broken="its removal was aborted").write(record)
                os.utime(record, (used, used))
            log.info("removing the root %s, which nobody builds in any more", name)
            self.roots.remove(str(base), folder.configured_name, folder.extension, cancel)
            if folder.bootstrap:
                record.unlink(missing_ok=True)

    def _remove_caches(self, lock: Path, cancel: CancelToken) -> None:
        with file_lock(lock) as held:
            if held is None or not self._is_old(_age(lock)):
                return
            log.info("removing the caches of %s, not built for %d days (root_days)", lock.stem, self.roots.days)
            self.roots.remove_caches(lock.stem, cancel)
            lock.unlink()


def _folder_names(folder: Path) -> list[str]:
    with contextlib.suppress(OSError):
        return sorted(path.name for path in folder.iterdir() if path.is_dir())
    return []


def _age(path: Path) -> float:
    """Seconds since a file was last written; 0 where it is gone."""
    with contextlib.suppress(OSError):
        return time.time() - path.stat().st_mtime
    return 0.0

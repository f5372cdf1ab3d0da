# SPDX-License-Identifier: Apache-2.0
"""Removing roots that nobody builds in any more: of targets not built for long, of workers that are gone, of versions
that had an extension for each attempt. An idle worker does it, a root at a time; a busy one that runs out of disk takes
no jobs, and so is idle.
"""

from __future__ import annotations

import contextlib
import logging
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Callable

from reimzul.core.errors import ReimzulError, ShutdownRequested
from reimzul.worker.orphans import RootInUse
from reimzul.worker.rootrecord import RootRecord
from reimzul.worker.roots import MockRoots
from reimzul.worker.slots import RootFolder, hold_lock, parse_folder

log = logging.getLogger(__name__)

#: Seconds between two looks for roots to remove.
SCAN_INTERVAL_SECONDS = 600.0
_DAY_SECONDS = 86400
#: Seconds that the main root of a build lies unused before it counts as left behind: mock removes it after each build.
_LEFT_SECONDS = 3600

Action = Callable[[Callable[[], None]], None]


class RootCleanup:
    """What an idle worker removes."""

    def __init__(self, roots: MockRoots) -> None:
        self.roots = roots
        self._due: Iterator[Action] = iter(())
        self._next = 0.0

    def clean_one(self, heed: Callable[[], None]) -> None:
        """Remove one root, if one is due; what `heed` raises ends the removal and is raised on."""
        try:
            action = self._choose()
            if action is not None:
                action(heed)
        except BlockingIOError:  # its slot or its caches are in use after all
            return
        except ShutdownRequested:
            raise
        except RootInUse as error:
            log.info("%s: it is tried again later", error)
        except (ReimzulError, OSError) as error:
            log.warning("a root that nobody builds in is not removed: %s", error)

    def _choose(self) -> Action | None:
        action = next(self._due, None)
        if action is None and time.monotonic() >= self._next:
            self._next = time.monotonic() + SCAN_INTERVAL_SECONDS
            self._due = self._look()
            action = next(self._due, None)
        return action

    def _look(self) -> Iterator[Action]:
        self._count_from_now()
        for base in self._bases():
            for name in _names(base):
                folder = parse_folder(name)
                if folder is not None and self._is_due(base / name, folder):
                    yield self._removal(base, name, folder)
        for lock in sorted(self.roots.state.glob("reimzul-*.lock")):
            if self._is_old(_age(lock)):
                yield self._cache_removal(lock)

    def _count_from_now(self) -> None:
        """Have the targets of earlier versions grow old from now on: nothing says when they were last built."""
        for name in _names(self.roots.configs.rendered_folder):
            lock = self.roots.state / f"reimzul-{name}.lock"
            if (self.roots.configs.rendered_folder / name / "mock.cfg").exists() and not lock.exists():
                lock.touch()

    def _bases(self) -> list[Path]:
        """Where mock has its roots: as the settings say, and as mock itself has said."""
        said = {lock.read_text(encoding="utf-8") for lock in self.roots.state.glob("*.lock")}
        return sorted({self.roots.mock_roots, *(Path(base) for base in said if base)})

    def _is_due(self, path: Path, folder: RootFolder) -> bool:
        if not folder.slot:
            return time.time() - int(folder.extension.partition("-")[0]) > _LEFT_SECONDS
        record = self._record(folder)
        age = _age(record if record.exists() else path)
        return self._is_old(age) if folder.bootstrap else age > _LEFT_SECONDS

    def _is_old(self, age: float) -> bool:
        return bool(self.roots.days) and age > self.roots.days * _DAY_SECONDS

    def _record(self, folder: RootFolder) -> Path:
        return self.roots.state / f"{folder.root}-{folder.extension}.json"

    def _removal(self, base: Path, name: str, folder: RootFolder) -> Action:
        def remove(heed: Callable[[], None]) -> None:
            with self.roots.hold_slot(folder.slot):
                if not (base / name).exists() or not self._is_due(base / name, folder):
                    return
                record = self._record(folder)
                if folder.bootstrap and folder.slot and record.exists():
                    used = record.stat().st_mtime
                    RootRecord(broken="its removal was broken off").write(record)
                    os.utime(record, (used, used))
                log.info("removing the root %s, which nobody builds in any more", name)
                self.roots.remove(str(base), folder.configured_name, folder.extension, heed)
                if folder.bootstrap:
                    record.unlink(missing_ok=True)

        return remove

    def _cache_removal(self, lock: Path) -> Action:
        def remove(heed: Callable[[], None]) -> None:
            with hold_lock(lock):
                if not self._is_old(_age(lock)):
                    return
                log.info("removing the caches of %s, not built for %d days (root_days)", lock.stem, self.roots.days)
                self.roots.remove_caches(lock.stem, heed)
                lock.unlink()

        return remove


def _names(folder: Path) -> list[str]:
    with contextlib.suppress(OSError):
        return sorted(path.name for path in folder.iterdir() if path.is_dir())
    return []


def _age(path: Path) -> float:
    """Seconds since a file was last written; 0 where it is gone."""
    with contextlib.suppress(OSError):
        return time.time() - path.stat().st_mtime
    return 0.0

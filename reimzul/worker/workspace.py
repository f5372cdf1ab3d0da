# SPDX-License-Identifier: Apache-2.0
"""The folders builds are made in: one an attempt, removed when it ends, or by the next worker where one was killed.

A worker holds an flock on each folder of its own, so that the workers of one host, which share the place, know a
folder that is in use from one that nobody owns.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Callable

import attr

from reimzul.core.errors import ConfigError

log = logging.getLogger(__name__)


@attr.frozen
class Workspace:
    """The `results` folder of a host."""

    root: Path

    @property
    def builds(self) -> Path:
        return self.root / "builds"

    @property
    def configs(self) -> Path:
        return self.root / "configs"

    def create(self) -> None:
        """Create the folders. Raises `ConfigError`."""
        try:
            for folder in (self.builds, self.configs):
                folder.mkdir(parents=True, exist_ok=True)
            if not os.access(self.builds, os.W_OK):
                raise ConfigError(f"[worker] results: {self.builds} is not writable")
        except OSError as error:
            raise ConfigError(f"[worker] results: {self.root}: {(error.strerror or str(error)).lower()}") from error

    def remove_orphaned(self, clean: Callable[[Path], None]) -> None:
        """Remove the folders that no living worker owns; `clean` first cleans the root of each leg in them."""
        for folder in sorted(path for path in self.builds.iterdir() if path.is_dir()):
            with contextlib.suppress(OSError), _folder_lock(folder):
                log.info("removing %s, which a killed worker left", folder.name)
                for leg in sorted(path for path in folder.iterdir() if path.is_dir()):
                    clean(leg)
                shutil.rmtree(folder, ignore_errors=True)

    @contextlib.contextmanager
    def create_attempt_folder(self, name: str) -> Iterator[Path]:
        """Create a folder that this worker owns, and remove it in the end."""
        folder = self.builds / name
        folder.mkdir(parents=True)
        with _folder_lock(folder):
            try:
                yield folder
            finally:
                shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def _folder_lock(folder: Path) -> Iterator[None]:
    """Hold the flock of the folder itself, which ends with it; `BlockingIOError` where another does."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(descriptor)

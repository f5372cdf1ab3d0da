# SPDX-License-Identifier: Apache-2.0
"""The folders builds are made in: one an attempt, gone when it ends, and swept when a killed worker left it.

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
        """Where attempts have their folders."""
        return self.root / "builds"

    @property
    def configs(self) -> Path:
        """Where mock's rendered configurations are."""
        return self.root / "configs"

    def create(self) -> None:
        """Make the folders that have to be there. Raises `ConfigError`."""
        try:
            for folder in (self.builds, self.configs):
                folder.mkdir(parents=True, exist_ok=True)
            if not os.access(self.builds, os.W_OK):
                raise ConfigError(f"[worker] results: {self.builds} is not writable")
        except OSError as error:
            raise ConfigError(f"[worker] results: {self.root}: {(error.strerror or str(error)).lower()}") from error

    def remove_orphaned(self, clean: Callable[[Path], None]) -> None:
        """Remove the folders that no living worker owns; `clean` first cleans up the root of each leg in them."""
        for folder in sorted(path for path in self.builds.iterdir() if path.is_dir()):
            with contextlib.suppress(OSError), _owned(folder):
                log.info("removing %s, which a killed worker left", folder.name)
                for leg in sorted(path for path in folder.iterdir() if path.is_dir()):
                    clean(leg)
                shutil.rmtree(folder, ignore_errors=True)

    @contextlib.contextmanager
    def create_attempt_folder(self, name: str) -> Iterator[Path]:
        """A new folder of ours, removed in the end."""
        folder = self.builds / name
        folder.mkdir(parents=True)
        with _owned(folder):
            try:
                yield folder
            finally:
                shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def _owned(folder: Path) -> Iterator[None]:
    """Hold the folder's flock; `BlockingIOError` where another does."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(descriptor)

# SPDX-License-Identifier: Apache-2.0
"""The values of one attempt at a build, its legs, its folder, and the error for a builder's fault.

Each attempt has a folder in `results/builds`, removed when it ends, or by the next worker where one was killed. A
worker holds an flock on each folder of its own, so that the workers of one host, which share the place, know a folder
that is in use from one that nobody owns.
"""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Callable

import attr

from reimzul.core.arch import NOARCH, Arches
from reimzul.core.error_extractor import FirstError
from reimzul.core.errors import ConfigError, ReimzulError, describe_os_error
from reimzul.core.fs import folder_lock
from reimzul.core.message import BuildEvent, BuildRequest, event_for
from reimzul.core.rpm_header import Header

log = logging.getLogger(__name__)


class BuilderFault(ReimzulError):
    """This builder could not build it; another may."""

    first_error = FirstError()  #: in the logs of its leg


@attr.frozen(kw_only=True)
class AttemptSpec:
    request: BuildRequest  #: complete: it has its build id and timestamp
    token: str  #: of this attempt
    host: str  #: the builder
    folder: Path  #: owned by this attempt alone
    started: float = attr.field(factory=time.time)  #: seconds since 1970
    #: the legs that may have started before: of a cancel that comes before the source rpm they are all that is known
    started_arches: Sequence[str] = attr.field(
        default=attr.Factory(lambda attempt: attempt.request.announced_arches, takes_self=True)
    )


@attr.frozen(kw_only=True)
class Leg:
    """One arch of an attempt."""

    attempt: AttemptSpec
    source: Path  #: the source rpm, on this host
    header: Header  #: of the source rpm
    arch: str
    config: Path  #: of mock, in the checkout; Path() where there is none
    skipped: Mapping[str, str] = attr.field(factory=dict)  #: arch -> why; only the main leg has it

    @property
    def is_main(self) -> bool:
        """Whether it is of the requested arch; the source rpm of this one is kept."""
        return self.arch == self.attempt.request.arch

    @property
    def folder(self) -> Path:
        return self.attempt.folder / self.arch

    @property
    def results(self) -> Path:
        """The folder of mock's results, which is uploaded."""
        return self.folder / "result"

    def event(self, status: str, **fields: Any) -> BuildEvent:
        """An event of this leg; `fields` may override those of this attempt."""
        own = {
            "arch": self.arch,
            "attempt": self.attempt.token,
            "builder_fqdn": self.attempt.host,
            "pkgname": self.header.name,
            "evr": self.header.evr,
            "started": round(self.attempt.started, 3),
            "skipped": dict(self.skipped),
        }
        return event_for(self.attempt.request, status, **{**own, **fields})


def order_legs(arches: Sequence[str]) -> tuple[list[str], list[str]]:
    """The legs that run side by side, and those that start after them."""
    first = [arch for arch in arches if arch != NOARCH or arch == arches[0]]
    return first, [arch for arch in arches if arch not in first]


def skip_reason(header: Header, arch: str, main: str, arches: Arches) -> str | None:
    """Why a leg that follows the main one is not built; None where it is.

    A noarch package comes out the same on every arch, but for the few that end with a noarch leg of their own.
    """
    if NOARCH in header.build_archs and arch != main:
        return "a noarch package is built once"
    if arch == NOARCH and header.name in arches.noarch_last:
        return None
    return arches.exclusion_reason(arch, header)


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
            raise ConfigError(f"[worker] results: {self.root}: {describe_os_error(error)}") from error

    def remove_orphaned(self, clean: Callable[[Path], None]) -> None:
        """Remove the folders that no living worker owns; `clean` first cleans the root of each leg in them."""
        for folder in sorted(path for path in self.builds.iterdir() if path.is_dir()):
            with contextlib.suppress(OSError), folder_lock(folder):
                log.info("removing %s, which a killed worker left", folder.name)
                for leg in sorted(path for path in folder.iterdir() if path.is_dir()):
                    clean(leg)
                shutil.rmtree(folder, ignore_errors=True)

    @contextlib.contextmanager
    def create_attempt_folder(self, name: str) -> Iterator[Path]:
        """Create a folder that this worker owns, and remove it in the end."""
        folder = self.builds / name
        folder.mkdir(parents=True)
        with folder_lock(folder):
            try:
                yield folder
            finally:
                shutil.rmtree(folder, ignore_errors=True)

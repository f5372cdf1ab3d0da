# SPDX-License-Identifier: Apache-2.0
"""Whether this builder may take a job: free disk, free inodes and load against the settings.

A builder that does not qualify reserves nothing, says why once, and says when it is well again.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from pathlib import Path

import attr

from reimzul.core.fs import FreeSpace

log = logging.getLogger(__name__)


@attr.frozen(kw_only=True)
class ResourceLimits:
    """What a builder has to have before it takes a job."""

    folders: tuple[Path, ...]  #: where builds need room
    free_mib: int
    free_inodes: int
    load: int  #: the most, of the last minute; 0 for any


class HealthCheck:
    """This builder against its limits."""

    def __init__(self, limits: ResourceLimits) -> None:
        self.limits = limits
        self.problem = ""  #: why no job is taken now, in words
        self._ill: tuple[str, ...] = ()

    def is_healthy(self) -> bool:
        """Whether a job may be taken; what changed since the last look is said."""
        faults = tuple(self.find_problems())
        kinds = tuple(fault.split(":")[0] for fault in faults)
        self.problem = f"this builder takes no jobs now: {'; '.join(faults)}" if faults else ""
        if kinds != self._ill:
            if faults:
                log.error("%s", self.problem)
            else:
                log.info("this builder is well again and takes jobs")
        self._ill = kinds
        return not faults

    def find_problems(self) -> Iterator[str]:
        """Why no job may be taken, each as `<what>: <how much>`."""
        for folder in self.limits.folders:
            yield from self._room(folder)
        load = os.getloadavg()[0]
        if self.limits.load and load > self.limits.load:
            yield f"load: {load:.1f}, {self.limits.load} is the most"

    def _room(self, folder: Path) -> Iterator[str]:
        try:
            yield from FreeSpace.measure(folder).shortfalls(self.limits.free_mib, self.limits.free_inodes)
        except OSError as error:
            yield f"{folder}: {error.strerror}"

# SPDX-License-Identifier: Apache-2.0
"""The values of one build: who builds what, from which source, and which legs it has."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import attr

from reimzul.core.arch import NOARCH, Arches
from reimzul.core.message import BuildEvent, BuildRequest, event_for
from reimzul.core.rpm_header import Header


@attr.frozen(kw_only=True)
class AttemptSpec:
    """One worker's attempt at one request."""

    request: BuildRequest  #: complete: it has its build id and timestamp
    token: str  #: of this attempt
    host: str  #: the builder
    folder: Path  #: owned by this attempt alone
    started: float = attr.field(factory=time.time)  #: seconds since 1970


@attr.frozen(kw_only=True)
class Package:
    """The source rpm of an attempt, on this host."""

    path: Path
    name: str
    evr: str  #: version-release
    header: Header


@attr.frozen(kw_only=True)
class Leg:
    """One arch of an attempt."""

    attempt: AttemptSpec
    package: Package
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
            "pkgname": self.package.name,
            "evr": self.package.evr,
            "started": round(self.attempt.started, 3),
            "skipped": dict(self.skipped),
        }
        return event_for(self.attempt.request, status, **{**own, **fields})


def order_legs(arches: Sequence[str]) -> tuple[list[str], list[str]]:
    """The legs that run side by side, and those that start after them."""
    first = [arch for arch in arches if arch != NOARCH or arch == arches[0]]
    return first, [arch for arch in arches if arch not in first]


def skip_reason(header: Header, arch: str, main: str, package: str, arches: Arches) -> str | None:
    """Why a leg that follows the main one is not built; None where it is.

    A noarch package comes out the same on every arch, but for the few that end with a noarch leg of their own.
    """
    if NOARCH in header.build_archs and arch != main:
        return "a noarch package is built once"
    if arch == NOARCH and package in arches.noarch_last:
        return None
    return arches.exclusion_reason(arch, header)

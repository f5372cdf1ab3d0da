# SPDX-License-Identifier: Apache-2.0
"""Scratch builds in the store: which there are, and taking them away. They are indexed nowhere."""

from __future__ import annotations

import calendar
import time
from collections.abc import Iterator
from typing import Any

import attr

from reimzul.core import validators
from reimzul.core.store_paths import StorePaths
from reimzul.repogen.drop import Lying, Told, drop, lying, plain, size, targets, told


@attr.frozen(kw_only=True)
class Scratch:
    """A leg of a scratch build."""

    leg: Lying
    told: Told
    bytes: int

    @property
    def submitted(self) -> float:
        """When, in seconds since 1970; 0 where its folder's name is no date."""
        try:
            return float(calendar.timegm(time.strptime(self.leg.timestamp, validators.TIMESTAMP_FORMAT)))
        except ValueError:
            return 0.0

    def wire(self) -> dict[str, Any]:
        """For a program."""
        return plain(self.leg, self.told, self.bytes)


def find(store: StorePaths) -> Iterator[Scratch]:
    """All there are, by target."""
    for target in targets(store.scratch):
        for leg in sorted(lying(store.scratch, target), key=lambda leg: leg.timestamp):
            yield Scratch(leg=leg, told=told(store, leg), bytes=size(store, leg))


def remove(store: StorePaths, scratch: Scratch) -> None:
    """Take one away."""
    drop(store, scratch.leg, scratch.told)

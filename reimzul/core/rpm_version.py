# SPDX-License-Identifier: Apache-2.0
"""Comparing versions of packages as rpm does, and capabilities with versions, without rpm's bindings.

The order is that of rpm's own rpmvercmp (docs/man/rpm-version.7 in its sources).
"""

from __future__ import annotations

import re
from typing import Optional

import attr

_PART = re.compile(r"[0-9]+|[A-Za-z]+|~|\^")
_OPERATORS = ("<", "<=", "=", ">=", ">")
#: The flags of a repository's metadata, as operators.
OPERATOR_OF_FLAG = {"LT": "<", "LE": "<=", "EQ": "=", "GE": ">=", "GT": ">"}


def compare_versions(one: str, other: str) -> int:
    """Return 1 if the first version is newer, -1 if it is older, 0 if rpm finds them equal."""
    left, right = _PART.findall(one), _PART.findall(other)
    for mine, theirs in zip(left, right):
        order = _compare_parts(mine, theirs)
        if order:
            return order
    if len(left) == len(right):
        return 0
    rest = (left if len(left) > len(right) else right)[min(len(left), len(right))]
    longer_is_newer = rest != "~"  # 1.0~rc1 is older than 1.0, and 1.0^git1 is newer
    return 1 if (len(left) > len(right)) == longer_is_newer else -1


def _compare_parts(one: str, other: str) -> int:
    if one == other:
        return 0
    for mark in "~^":
        if mark in (one, other):
            return -1 if one == mark else 1
    if one.isdigit() and other.isdigit():
        return (int(one) > int(other)) - (int(one) < int(other))
    if one.isdigit() or other.isdigit():
        return 1 if one.isdigit() else -1
    return 1 if one > other else -1


@attr.frozen
class Evr:
    """An epoch, a version and a release; a capability's may lack the release."""

    epoch: int
    version: str
    release: str = ""

    @classmethod
    def parse(cls, text: str) -> Evr:
        epoch, colon, rest = text.rpartition(":")
        version, _, release = rest.partition("-")
        return cls(int(epoch) if colon and epoch.isdigit() else 0, version, release)

    def __str__(self) -> str:
        epoch = f"{self.epoch}:" if self.epoch else ""
        return f"{epoch}{self.version}-{self.release}" if self.release else f"{epoch}{self.version}"

    def compare(self, other: Evr) -> int:
        """Return 1 if this is newer, -1 if older; releases are compared if both have one."""
        if self.epoch != other.epoch:
            return 1 if self.epoch > other.epoch else -1
        order = compare_versions(self.version, other.version)
        return order or (compare_versions(self.release, other.release) if self.release and other.release else 0)


@attr.frozen
class Capability:
    """What a package provides or requires: a name, mostly with a version."""

    name: str
    operator: str = ""  #: empty: any version
    evr: Optional[Evr] = None

    @classmethod
    def parse(cls, text: str) -> Capability:
        """Read rpm's notation, as `zlib-devel >= 1.2`."""
        words = text.split()
        if len(words) == 3 and words[1] in _OPERATORS:
            return cls(words[0], words[1], Evr.parse(words[2]))
        return cls(text.strip())

    def __str__(self) -> str:
        return f"{self.name} {self.operator} {self.evr}" if self.evr else self.name

    def is_met_by(self, provided: Capability) -> bool:
        """Whether a provided capability of the same name is what this requires: their ranges overlap, as rpm has it."""
        if self.evr is None or provided.evr is None:
            return True
        order = provided.evr.compare(self.evr)
        if order == 0:
            for one, other in ((self, provided.evr), (provided, self.evr)):
                if one.evr and not one.evr.release and other.release and "=" in one.operator:
                    return True  # `= 1` is every release of version 1
            return bool(set(self.operator) & set(provided.operator))
        below, above = (provided, self) if order < 0 else (self, provided)
        return ">" in below.operator or "<" in above.operator

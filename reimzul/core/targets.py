# SPDX-License-Identifier: Apache-2.0
"""Targets by name: the list that a worker reports, and the target that a person means.

A target is named with its arch (`c9s.x86_64`), as its mock configuration and its repository are. People also name it
without (`c9s`), and then mean all its arches, or give a pattern (`c9*`).
"""

from __future__ import annotations

import fnmatch
import hashlib
from collections.abc import Collection, Iterable

import attr

from reimzul.core import validators
from reimzul.core.arch import Arches
from reimzul.core.errors import InputError
from reimzul.core.formatting import list_known, suggest_nearest

#: Bytes of names in one message: the rest of a heartbeat fits beside them (core/json_message.py, `MAX_BYTES`).
_MAX_LIST_BYTES = 40_000
#: Bytes that a name takes in JSON beside its own.
_JSON_BYTES = len('"",')


@attr.frozen
class TargetList:
    """The targets, with their arches, that a worker has mock configurations for."""

    names: tuple[str, ...]
    left_out: int = 0  #: how many more there are, which did not fit into a message

    @classmethod
    def from_names(cls, names: Iterable[str]) -> TargetList:
        """Sort the names, and leave out the last ones if they would not fit into a message."""
        ordered, kept, size = sorted(set(names)), 0, 0
        while kept < len(ordered) and (size := size + len(ordered[kept]) + _JSON_BYTES) <= _MAX_LIST_BYTES:
            kept += 1
        return cls(tuple(ordered[:kept]), len(ordered) - kept)

    @property
    def fingerprint(self) -> str:
        """Return 16 hex digits that stand for this list."""
        return hashlib.sha256("\n".join((str(self.left_out), *self.names)).encode()).hexdigest()[:16]

    def may_have(self, target: str) -> bool:
        return target in self.names or bool(self.left_out)


def split_arch(target: str, arches: Arches) -> tuple[str, str]:
    """Return a target's name without its arch, and the arch; "" if it names none."""
    name, _, arch = target.rpartition(".")
    return (name, arch) if name and arch in arches.known else (target, "")


def drop_arches(targets: Iterable[str], arches: Arches) -> set[str]:
    return {split_arch(each, arches)[0] for each in targets}


class UnknownTarget(InputError):
    """No known target has the name, or matches the pattern, that a person gave."""


def expand_target(given: str, arches: Arches) -> list[str]:
    """Return the names, with arches, that a target or a pattern of targets may mean: `c9s` is c9s on every arch."""
    return [given, *(f"{given}.{arch}" for arch in arches.known)]


def find_targets(given: str, known: Collection[str], arches: Arches) -> list[str]:
    """Return the known targets, with arches, that a person means by `c9s.x86_64`, `c9s` or `c9*`.

    `[` is no wildcard, as in the history's filters. Raises `UnknownTarget`, which suggests the nearest.
    """
    patterns = [each.replace("[", "[[]") for each in expand_target(given, arches)]
    found = sorted(each for each in known if any(fnmatch.fnmatchcase(each, pattern) for pattern in patterns))
    if not found:
        names = drop_arches(known, arches)
        hint = suggest_nearest(given, sorted({*known, *names})) or list_known(names) or "; no target is known yet"
        raise UnknownTarget(f"there is no target {validators.quoted(given)}{hint}")
    return found


def find_one_target(given: str, known: Collection[str], arches: Arches) -> str:
    """Return the known target that a person means. Raises `InputError` if there is none, or more than one."""
    found = find_targets(given, known, arches)
    if len(found) > 1:
        raise InputError(f"more than one target is called {validators.quoted(given)}: {', '.join(found)}")
    return found[0]

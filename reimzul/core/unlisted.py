# SPDX-License-Identifier: Apache-2.0
"""The record of published packages that the repodata does not list: legs replaced by a rebuild, left-out packages.

repogen writes it under the target's lock before the createrepo_c run that it affects. Later runs, the check of the
repodata, prune, `Published` and tosign read it. Manifests never change.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import attr

from reimzul.core import fs, validators
from reimzul.core.errors import RetryLater
from reimzul.core.store_paths import StorePaths, leg_key

#: Seconds until an unreadable record is read again.
_PAUSE_SECONDS = 60


@attr.frozen(kw_only=True)
class LeftOutPackage:
    """A package of a leg that is listed from another leg."""

    leg: str  #: `<build id>.<arch>` of the leg that is listed with it
    place: str  #: of that leg
    differs: bool  #: whether the two packages differ beyond build time and host


@attr.frozen(kw_only=True)
class UnlistedLeg:
    """A leg that is not listed, or not completely."""

    place: str
    replaced_by: str = ""  #: build id of the rebuild; then nothing of the leg is listed
    replacement: str = ""  #: the place of the rebuild's leg
    was_listed: bool = False  #: whether the rebuild was ever listed: then the leg is never listed again by itself
    left_out: Mapping[str, LeftOutPackage] = attr.field(factory=dict)  #: by file name

    @property
    def folder(self) -> str:
        return folder_of(self.place)


def folder_of(place: str) -> str:
    """The folder of a place, relative to its target's folder."""
    return place.split("/", 2)[2]


#: What is not listed in a target, by `<build id>.<arch>`.
Records = Mapping[str, UnlistedLeg]


#: The records read last, by their file, and what it was then: 5,000 of them take 0.4 s to check.
_KNOWN: dict[Path, tuple[tuple[int, ...], dict[str, UnlistedLeg]]] = {}
_KNOWN_TARGETS = 4


def read_records(store: StorePaths, target: str) -> dict[str, UnlistedLeg]:
    """The record of a target. Raises `RetryLater` where it is damaged: without it, too much would be listed."""
    path = store.unlisted(target)
    try:
        with path.open("rb") as stream:
            found = os.fstat(stream.fileno())
            identity = (found.st_ino, found.st_mtime_ns, found.st_size)
            known, records = _KNOWN.pop(path, ((), {}))
            if known != identity:
                records = {_check_leg(leg): _parse_unlisted(each) for leg, each in json.load(stream).items()}
        _KNOWN[path] = identity, records
        while len(_KNOWN) > _KNOWN_TARGETS:
            del _KNOWN[next(iter(_KNOWN))]
        return dict(records)
    except FileNotFoundError:
        return {}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise RetryLater(f"{path} is damaged, restore it or remove it: {error!r}", pause=_PAUSE_SECONDS) from error


def _check_place(place: str) -> str:
    """A place that is only compared."""
    if place.count("/") != 4:
        raise ValueError(f"{validators.quoted(place)} is no place")
    return place


def _check_leg(value: str) -> str:
    """A leg's name, which becomes a part of paths."""
    build_id, _, arch = value.partition(".")
    return leg_key(validators.build_id(build_id), validators.arch(arch))


def _parse_unlisted(raw: Any) -> UnlistedLeg:
    return UnlistedLeg(
        place=validators.place(raw["place"]),
        replaced_by=validators.optional(validators.build_id)(raw["replaced_by"]),
        replacement=validators.optional(validators.place)(raw["replacement"]),
        was_listed=validators.flag(raw["was_listed"]),
        left_out={
            validators.name(name): LeftOutPackage(
                leg=_check_leg(kept["leg"]), place=_check_place(kept["place"]), differs=validators.flag(kept["differs"])
            )
            for name, kept in raw["left_out"].items()
        },
    )


def write_records(store: StorePaths, target: str, records: Records) -> None:
    store.unlisted(target).parent.mkdir(exist_ok=True)  # a store of an earlier version has none
    said = {leg: attr.asdict(each) for leg, each in sorted(records.items())}
    fs.write_atomic(store.unlisted(target), json.dumps(said, indent=1) + "\n")


def replaced_builds(records: Records, build_id: str, arch: str) -> dict[str, UnlistedLeg]:
    """The legs that a build's leg took the place of, also by way of rebuilds between, by `<build id>.<arch>`."""
    found: dict[str, UnlistedLeg] = {}
    newer = [build_id]
    while newer:
        by = newer.pop()
        for leg, each in records.items():
            if each.replaced_by == by and leg.rpartition(".")[2] == arch and leg not in found:
                found[leg] = each
                newer.append(leg.rpartition(".")[0])
    return found

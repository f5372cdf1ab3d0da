# SPDX-License-Identifier: Apache-2.0
"""Additional metadata of a target (comps, updateinfo, modules), added and removed by a person on bstore."""

from __future__ import annotations

import re
from collections.abc import Collection
from typing import Callable

from reimzul.core.errors import InputError, ReimzulError
from reimzul.core.store_paths import StorePaths
from reimzul.repogen.prune import hold_lock
from reimzul.repogen.repodata import DAMAGED, Indexer
from reimzul.repogen.repomd import REPOMD, Addition, check_type, guess_type, read_records
from reimzul.repogen.swap import REPODATA

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+~-]{0,199}\Z")


def read_addition(name: str, raw: bytes, given: str) -> Addition:
    """Metadata in a file of some name; its type is given, or told by the name. Raises `InputError`."""
    if not _NAME.match(name):
        raise InputError(f"{name!r} is not a name for a file of metadata, as comps.xml")
    return Addition.make(name, raw, check_type(given) if given else guess_type(name))


def change_metadata(
    store: StorePaths,
    indexer: Indexer,
    target: str,
    heed: Callable[[], None],
    *,
    addition: Addition | None = None,
    without: Collection[str] = (),
) -> None:
    """Add or remove additional metadata under the target's lock. Raises `InputError`, `HookFailed`."""
    live = store.target(target) / REPODATA
    with hold_lock(store, target, heed):
        if not (live / REPOMD).exists():
            raise InputError(f"{target} has no repodata in {store.repo}: reimzul repogen --force {target} makes it")
        try:
            present = {record.kind for record in read_records(live) if record.is_extra}
            missing = [kind for kind in without if kind not in present]
            if missing:
                there = ", ".join(sorted(present)) or "nothing"
                raise InputError(f"{target} has no metadata {missing[0]}; added to it: {there}")
            indexer.change_metadata(target, heed, addition=addition, without=without)
        except DAMAGED as error:
            raise ReimzulError(f"the repodata of {target} cannot be read: {error!r}; nothing was changed") from error

# SPDX-License-Identifier: Apache-2.0
"""`--after`: which builds a submission has to wait for."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from reimzul.core import validators
from reimzul.core.errors import InputError
from reimzul.history import BuildFilter, BuildRecord, History, NoHistory, open_history
from reimzul.history.build_record import BuildState

_BROKEN = (BuildState.FAILED, BuildState.REJECTED, BuildState.CANCELLED)
#: Records that a prefix may match; a build has one for each leg.
_MAX_RECORDS = 100


def resolve_builds(prefixes: Iterable[str], url: str) -> tuple[str, ...]:
    """Return the ids of the builds that are not published yet. Raises `InputError` with a line for each fault."""
    found: list[str] = []
    faults: list[str] = []
    try:
        history = open_history(url, reading=True)
    except NoHistory as error:
        raise InputError(f"--after: {error}") from None
    try:
        for prefix in prefixes:
            try:
                found += _resolve_build(history, prefix)
            except InputError as error:
                faults.append(f"--after {prefix}: {error}")
    finally:
        history.close()
    if faults:
        raise InputError("\n".join(faults))
    return tuple(dict.fromkeys(found))


def _resolve_build(history: History, prefix: str) -> list[str]:
    """Return the id of a build, or nothing if it is published."""
    try:
        validators.build_id(prefix.ljust(32, "0"))
    except ValueError:
        raise InputError("give the id of a build, or its first digits, as `reimzul builds` prints them") from None
    records = history.find_builds(BuildFilter(build_id=prefix), _MAX_RECORDS)
    ids = sorted({each.build_id for each in records})
    if not ids:
        raise InputError("no such build")
    if len(ids) > 1:
        raise InputError(f"several builds begin with that: {', '.join(ids[:3])}")
    main = _list_main_legs(records)
    for each in main:
        if each.state in _BROKEN:
            reason = f": {each.reason}" if each.reason else ""
            raise InputError(f"{each.srpm} for {each.target} is {each.state}{reason}")
    if records[0].scratch:
        raise InputError(f"{records[0].srpm} is a scratch build, which is never published")
    return [] if main and all(each.state == BuildState.PUBLISHED for each in main) else ids


def _list_main_legs(records: Sequence[BuildRecord]) -> list[BuildRecord]:
    """The legs that others can be built against; one that follows, as i386, holds up nobody."""
    main = {records[0].target.rpartition(".")[2], "noarch"}
    return [each for each in records if each.arch in main]

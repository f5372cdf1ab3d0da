# SPDX-License-Identifier: Apache-2.0
"""Which builders are the original's still: as far as their last builds say, for nothing else tells it."""

from __future__ import annotations

import time
from collections.abc import Iterable

from reimzul.core import validators
from reimzul.core.message import ORIGINAL_ATTEMPT_SUFFIX, Status
from reimzul.history import BuildFilter, BuildRecord, History

#: Days and builds that are looked back.
DAYS, BUILDS = 30, 5_000
#: Statuses that say nothing of who builds.
_NOT_BUILT = (Status.QUEUED, Status.CANCELLED)


def builders(history: History, now: float | None = None) -> dict[str, BuildRecord]:
    """Builders whose last build was a worker's of the original, and that build. Raises `HistoryAway`."""
    begin = time.gmtime((time.time() if now is None else now) - DAYS * 86400)
    return of(history.find_builds(BuildFilter(since=time.strftime(validators.TIMESTAMP_FORMAT, begin)), BUILDS))


def of(documents: Iterable[BuildRecord]) -> dict[str, BuildRecord]:
    """The same of these documents, in any order."""
    last: dict[str, BuildRecord] = {}
    for document in documents:
        host, built = document.builder_fqdn, document.status not in _NOT_BUILT
        if host and built and (host not in last or when(document) >= when(last[host])):
            last[host] = document
    return {host: last[host] for host in sorted(last) if by_original(last[host])}


def when(document: BuildRecord) -> str:
    """The timestamp of a build; its builder's local time, where the original's worker made it."""
    return document.timestamp


def is_lost(document: BuildRecord) -> bool:
    """Whether its packages got nowhere, which its worker did not notice."""
    success = document.status == Status.SUCCESS and not document.scratch
    return success and not document.published and not document.is_original


def by_original(document: BuildRecord) -> bool:
    """Whether a worker of the original built it."""
    return not document.attempt or document.attempt.endswith(ORIGINAL_ATTEMPT_SUFFIX)

# SPDX-License-Identifier: Apache-2.0
"""Which builders are the original's still: as far as their last builds say, for nothing else tells it."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from typing import Any

from reimzul.core import validators
from reimzul.core.message import ORIGINAL_ATTEMPT_SUFFIX, Status
from reimzul.history import BuildFilter, Document, History

#: Days and builds that are looked back.
DAYS, BUILDS = 30, 5_000
#: Statuses that say nothing of who builds.
_NOT_BUILT = (Status.QUEUED, Status.CANCELLED)


def builders(history: History, now: float | None = None) -> dict[str, Document]:
    """Builders whose last build was a worker's of the original, and that build. Raises `HistoryAway`."""
    begin = time.gmtime((time.time() if now is None else now) - DAYS * 86400)
    return of(history.find_builds(BuildFilter(since=time.strftime(validators.TIMESTAMP_FORMAT, begin)), BUILDS))


def of(documents: Iterable[Document]) -> dict[str, Document]:
    """The same of these documents, in any order."""
    last: dict[str, Document] = {}
    for document in documents:
        host, built = document.get("builder_fqdn"), document.get("status") not in _NOT_BUILT
        if host and built and (host not in last or when(document) >= when(last[host])):
            last[host] = document
    return {host: last[host] for host in sorted(last) if by_original(last[host])}


def when(document: Mapping[str, Any]) -> str:
    """The timestamp of a build; its builder's local time, where the original's worker made it."""
    return str(document.get("timestamp") or "")


def is_lost(document: Mapping[str, Any]) -> bool:
    """Whether its packages got nowhere, which its worker did not notice."""
    success = document.get("status") == Status.SUCCESS and not document.get("scratch")
    return success and document.get("published") == 0  # the original's own documents do not say


def by_original(document: Mapping[str, Any]) -> bool:
    """Whether a worker of the original built it."""
    attempt = document.get("attempt") or ""
    return not attempt or str(attempt).endswith(ORIGINAL_ATTEMPT_SUFFIX)

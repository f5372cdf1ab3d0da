# SPDX-License-Identifier: Apache-2.0
"""Reads from the notifier's outbox how many events each sink still lacks; the notifier may write it meanwhile."""

from __future__ import annotations

import contextlib
import sqlite3
import time
from pathlib import Path

import attr

from reimzul.core.errors import ReimzulError
from reimzul.core.sqlite import has_table, open_read_only

#: What the notifier calls a damaged outbox that it has replaced, beside the outbox.
CORRUPT_PREFIX = "outbox.corrupt-"
CORRUPT_PATTERN = f"{CORRUPT_PREFIX}*"
_QUERY = """
SELECT sink, count(*), min(event.at), min(next_try), count(next_try)
FROM delivery JOIN event USING (seq) WHERE state <> 'done' GROUP BY sink ORDER BY sink
"""


class OutboxUnreadable(ReimzulError):
    """The outbox cannot be read now."""


@attr.frozen(kw_only=True)
class PendingDeliveries:
    """The events that one sink still lacks. Times are seconds since 1970."""

    sink: str
    count: int
    oldest: float  #: when the oldest of them arrived
    next_try: float | None = None  #: None while the sink has some in hand, or is tried every second
    at: float = attr.field(default=0.0, eq=False)  #: when the file was read


def count_pending(db: sqlite3.Connection) -> list[PendingDeliveries]:
    """Count what each sink lacks, by sink. Raises `sqlite3.Error`."""
    now = round(time.time())
    return [
        PendingDeliveries(
            sink=sink, count=count, oldest=round(oldest), next_try=round(first) if delayed == count else None, at=now
        )
        for sink, count, oldest, first, delayed in db.execute(_QUERY)
    ]


def read_pending(path: Path) -> list[PendingDeliveries]:
    """Count what each sink lacks; nothing if no notifier has made an outbox yet. Raises `OutboxUnreadable`."""
    if not path.exists():
        return []
    try:
        with contextlib.closing(open_read_only(path)) as db:
            return count_pending(db) if has_table(db, "delivery") else []
    except sqlite3.Error as error:
        raise OutboxUnreadable(f"{path}: the outbox cannot be read: {error}") from error

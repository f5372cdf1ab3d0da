# SPDX-License-Identifier: Apache-2.0
"""What became of every build: one document for a build on an arch, in SQLite or in MongoDB.

The documents have the original's field names and statuses, so that what was written for its collection still reads
ours (document.py). A URL says where they are; both homes keep one promise, and one suite of tests holds them to it.
"""

from __future__ import annotations

from typing import Callable

from reimzul.core.errors import ConfigError
from reimzul.history.base import BuildFilter, History, HistoryUnavailable, NoHistory, PendingCount
from reimzul.history.build_record import Document

__all__ = ["BuildFilter", "Document", "History", "HistoryUnavailable", "NoHistory", "PendingCount", "open_history"]


def open_history(url: str, *, reading: bool = False) -> History:
    """The history at a checked URL ([history] url); `reading` where nothing will be recorded.

    Raises `ConfigError` where a library for it is missing, `HistoryAway`, and `NoHistory` where there is nothing yet
    to be read.
    """
    return history_class(url)(url, reading=reading)


def history_class(url: str) -> Callable[..., History]:
    """What opens this kind of URL; only what it asks for is imported. Raises `ConfigError`."""
    if url.startswith("sqlite://"):
        from reimzul.history.sqlite import SqliteHistory

        return SqliteHistory
    try:
        from reimzul.history.mongo import MongoHistory
    except ImportError as error:
        raise ConfigError(
            f"[history] url: MongoDB needs pymongo, which is not installed ({error}): pip install 'reimzul[controller]'"
        ) from error
    return MongoHistory

# SPDX-License-Identifier: Apache-2.0
"""The history of all builds, in SQLite or MongoDB: one record per build and arch.

`[history] url` chooses the database. Both keep the same promises, and one test suite checks them.
"""

from __future__ import annotations

from typing import Callable

from reimzul.core.errors import ConfigError
from reimzul.history.base import BuildFilter, History, HistoryUnavailable, NoHistory
from reimzul.history.build_record import BuildRecord

__all__ = ["BuildFilter", "BuildRecord", "History", "HistoryUnavailable", "NoHistory", "open_history"]


def open_history(url: str, *, reading: bool = False) -> History:
    """Open the history at a checked URL ([history] url); with `reading` nothing can be recorded.

    Raises `ConfigError` if a library is missing, `HistoryUnavailable`, and `NoHistory` if there is nothing to read yet.
    """
    return history_class(url)(url, reading=reading)


def history_class(url: str) -> Callable[..., History]:
    """Return the class for this kind of URL; the libraries of the other are not imported. Raises `ConfigError`."""
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

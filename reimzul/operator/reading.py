# SPDX-License-Identifier: Apache-2.0
"""The notifier's history and its list of workers, opened to be read and closed again: the one door into that room."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from reimzul.core.config import Settings
from reimzul.notifier.history import History, open_history
from reimzul.notifier.history.presence import Presences, Seen


@contextlib.contextmanager
def history(url: str) -> Iterator[History]:
    """The history at a URL. Raises `NoHistory`, `HistoryAway` and `ConfigError`."""
    opened = open_history(url, reading=True)
    try:
        yield opened
    finally:
        opened.close()


def workers(settings: Settings) -> list[Seen]:
    """The latest word of each worker. Raises `NoPresences`."""
    return Presences(settings.notifier.presence).all()

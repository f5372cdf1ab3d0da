# SPDX-License-Identifier: Apache-2.0
"""The notifier's history, opened to be read and closed again: the one door of this room into another."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from reimzul.notifier.history import History, open_history


@contextlib.contextmanager
def history(url: str) -> Iterator[History]:
    """The history at a URL. Raises `NoHistory`, `HistoryAway` and `ConfigError`."""
    opened = open_history(url, reading=True)
    try:
        yield opened
    finally:
        opened.close()

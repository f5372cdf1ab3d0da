# SPDX-License-Identifier: Apache-2.0
"""One transaction of SQLite, for whoever in this room keeps something in it: all of it, or nothing."""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Iterator


@contextlib.contextmanager
def transaction(db: sqlite3.Connection) -> Iterator[None]:
    """What is done in the block, in one step; `db` commits nothing by itself (isolation_level None)."""
    db.execute("BEGIN IMMEDIATE")
    try:
        yield
        db.execute("COMMIT")
    except BaseException:
        with contextlib.suppress(sqlite3.Error):  # some failures have ended it already
            db.execute("ROLLBACK")
        raise

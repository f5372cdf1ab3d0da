# SPDX-License-Identifier: Apache-2.0
"""SQLite files: opening one with its schema, reading one that another process owns, and transactions."""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

#: Seconds a statement waits for another process's transaction.
BUSY_TIMEOUT_SECONDS = 5.0


def open_database(path: Path, schema: str, *, synchronous: str = "FULL") -> sqlite3.Connection:
    """Open a file for writing, in WAL mode, and create what its schema names; the folder is created too.

    The connection commits nothing by itself: use `transaction`.
    `synchronous` is SQLite's pragma: FULL survives a power cut, NORMAL may lose the last commits.
    Raises `sqlite3.Error`, `OSError`.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    db = sqlite3.connect(str(path), timeout=BUSY_TIMEOUT_SECONDS, isolation_level=None)
    try:
        db.execute("PRAGMA journal_mode = WAL")
        db.execute(f"PRAGMA synchronous = {synchronous}")
        db.executescript(schema)
    except BaseException:
        db.close()
        raise
    return db


def open_read_only(path: Path) -> sqlite3.Connection:
    """Open a file that another process writes; nothing is created. Raises `sqlite3.Error`.

    Without a WAL nobody has the file open. It is then opened as immutable: a reader of a WAL would make the WAL's
    index, and a user who may not write in that folder could not.
    """
    address = f"file:{quote(str(path))}?mode=ro"
    if not Path(f"{path}-wal").exists():
        address += "&immutable=1"
    return sqlite3.connect(address, uri=True, timeout=BUSY_TIMEOUT_SECONDS, isolation_level=None)


def has_table(db: sqlite3.Connection, name: str) -> bool:
    return db.execute("SELECT 1 FROM sqlite_master WHERE name = ?", [name]).fetchone() is not None


@contextlib.contextmanager
def transaction(db: sqlite3.Connection) -> Iterator[None]:
    """Commit what is done in the block in one step; undo it if the block raises."""
    db.execute("BEGIN IMMEDIATE")
    try:
        yield
        db.execute("COMMIT")
    except BaseException:
        with contextlib.suppress(sqlite3.Error):  # some failures have ended the transaction already
            db.execute("ROLLBACK")
        raise

# SPDX-License-Identifier: Apache-2.0
"""SQLite files: opening one with its schema, reading one that another process owns, and transactions."""

from __future__ import annotations

import contextlib
import os
import sqlite3
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

#: Seconds a statement waits for another process's transaction.
BUSY_TIMEOUT_SECONDS = 5.0
_MAX_ROWID = 2**62


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


def is_intact(path: Path, *, thorough: bool = False) -> bool:
    """Whether SQLite can use a file, or there is none. Raises `sqlite3.Error` if that cannot be found out now.

    `thorough`: look also whether each index fits its table, which takes longer.
    """
    if not path.exists():
        return True
    check = "integrity_check" if thorough else "quick_check"
    try:
        with contextlib.closing(sqlite3.connect(str(path))) as db:
            return bool(db.execute(f"PRAGMA {check}(1)").fetchone() == ("ok",))
    except sqlite3.OperationalError:  # locked, or not readable
        raise
    except sqlite3.DatabaseError:
        return False


def move_aside(path: Path, prefix: str) -> Path:
    """Rename a damaged file; its WAL goes first, since SQLite would apply the WAL to a new file of that name."""
    aside = path.with_name(f"{prefix}{int(time.time())}")
    for suffix in ("-shm", "-wal", ""):
        with contextlib.suppress(FileNotFoundError):
            os.rename(f"{path}{suffix}", f"{aside}{suffix}")
    return aside


def readable_rows(db: sqlite3.Connection, table: str) -> Iterator[tuple[Any, ...]]:
    """Yield the rows of a damaged file's table in their order; what SQLite cannot read is skipped, by growing steps."""
    last, step = -1, 1
    while step < _MAX_ROWID:
        try:
            for rowid, *row in db.execute(f"SELECT rowid, * FROM {table} WHERE rowid > ? ORDER BY rowid", [last]):
                last, step = rowid, 1
                yield tuple(row)
            return
        except sqlite3.Error:
            last, step = last + step, step * 2


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

# SPDX-License-Identifier: Apache-2.0
"""What mail has to remember, in tables of its own in the ledger's file.

Who has a mail already, though its news count as told only with all of their batch, and where the server put off other
recipients: theirs alone is owed then. And the last result of each package on an arch and target, for `only_on_change`;
what was decided of a piece of news stays decided, however often it is tried. A row is dropped after as long as the
ledger's own: a package not built for that time is mailed about as a new one is.
"""

from __future__ import annotations

import contextlib
import sqlite3
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

from reimzul.core.message import BuildEvent, Status
from reimzul.core.sqlite import transaction
from reimzul.history.result_rules import Notification
from reimzul.notifier.ledger import KEPT
from reimzul.notifier.sinks.base import SinkAway
from reimzul.notifier.sinks.mail_text import group

#: Seconds between two sweeps.
SWEEP = 86400.0

_SCHEMA = """
CREATE TABLE IF NOT EXISTS mailed (
    key TEXT NOT NULL, word TEXT NOT NULL, recipient TEXT NOT NULL, at REAL NOT NULL,
    PRIMARY KEY (key, word, recipient)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS change (
    key TEXT NOT NULL, word TEXT NOT NULL, changed INTEGER NOT NULL, at REAL NOT NULL,
    PRIMARY KEY (key, word)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS outcome (
    package TEXT NOT NULL, target TEXT NOT NULL, arch TEXT NOT NULL, good INTEGER NOT NULL, at REAL NOT NULL,
    timestamp TEXT NOT NULL DEFAULT '', PRIMARY KEY (package, target, arch)
) WITHOUT ROWID;
"""
_TABLES = ("mailed", "change", "outcome")


class Book:
    """The rows. Belongs to the sink's thread, and keeps no lock while a server is spoken to."""

    def __init__(self, path: Path) -> None:
        """Open it. Raises `SinkAway`."""
        self._path = path
        self._swept = float("-inf")
        with self._words():
            self._db = sqlite3.connect(str(path), timeout=5, isolation_level=None)
            self._db.execute("PRAGMA synchronous = NORMAL")
            self._db.executescript(_SCHEMA)
            # a book from before results had their build's timestamp: any is newer than theirs
            if "timestamp" not in {row[1] for row in self._db.execute("PRAGMA table_info(outcome)")}:
                self._db.execute("ALTER TABLE outcome ADD COLUMN timestamp TEXT NOT NULL DEFAULT ''")

    def close(self) -> None:
        """Leave."""
        self._db.close()

    def have(self, notice: Notification) -> set[str]:
        """Who has this mail already. Raises `SinkAway`."""
        with self._words():
            found = self._db.execute("SELECT recipient FROM mailed WHERE key = ? AND word = ?", notice.name)
            return {recipient for (recipient,) in found}

    def given(self, notice: Notification, recipients: Iterable[str]) -> None:
        """Write down who has it. Raises `SinkAway`."""
        rows = [(*notice.name, recipient, time.time()) for recipient in recipients]
        with self._transaction():
            self._db.executemany("INSERT OR REPLACE INTO mailed VALUES (?, ?, ?, ?)", rows)

    def changed(self, notice: Notification, event: BuildEvent) -> bool:
        """Whether this result is another than the package's last; the first one is. Raises `SinkAway`.

        One of a build that was submitted before that of the last result, and is told late, changes nothing.
        """
        with self._transaction():
            decided = self._one("SELECT changed FROM change WHERE key = ? AND word = ?", *notice.name)
            if decided is None:
                decided = self._decided(event)
                self._db.execute("INSERT INTO change VALUES (?, ?, ?, ?)", (*notice.name, decided, time.time()))
        return bool(decided)

    def _decided(self, event: BuildEvent) -> int:
        """The same of one that was not asked for before; it is the package's last now, if it is the newest."""
        good, about = event.status == Status.SUCCESS, group(event)
        of = "package = ? AND target = ? AND arch = ?"
        if self._one(f"SELECT COUNT(*) FROM outcome WHERE {of} AND timestamp > ?", *about, event.timestamp):
            return 0
        before = self._one(f"SELECT good FROM outcome WHERE {of}", *about)
        row = (*about, good, time.time(), event.timestamp)
        self._db.execute("INSERT OR REPLACE INTO outcome VALUES (?, ?, ?, ?, ?, ?)", row)
        return int(before is None or bool(before) != good)

    def sweep(self) -> None:
        """Drop what is too old, once a day. Raises `SinkAway`."""
        if time.monotonic() - self._swept > SWEEP:
            self._swept = time.monotonic()
            with self._transaction():
                for table in _TABLES:
                    self._db.execute(f"DELETE FROM {table} WHERE at < ?", (time.time() - KEPT,))

    def _one(self, query: str, *values: str) -> int | None:
        row = self._db.execute(query, values).fetchone()
        return None if row is None else int(row[0])

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[None]:
        with self._words(), transaction(self._db):
            yield

    @contextlib.contextmanager
    def _words(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            raise SinkAway(f"{self._path}: mail's notes cannot be kept: {error}") from error

# SPDX-License-Identifier: Apache-2.0
"""What was told to whom: a file of the notifier's own, apart from the history (architecture.md, promise 2).

A row is a piece of news (build key and word, see verdict.py) and a sink. It is written as begun *before* the sink
is asked, and as told after the sink said so; both are on their way to disk before the event's job is deleted. So a
second delivery of an event finds the row and tells nobody twice. Which result of a leg holds is decided here too,
once for all sinks.

What may double all the same: where the notifier is killed, or the machine, after a sink took something and before
that was written here (one batch at the most), the row says begun, and the notice is `doubtful`. The log finds out by
reading its own end and the history does not care; MQTT (later mail) is told again. Its messages carry an `id` by
which a subscriber knows them.

The file is never synced: a kill loses nothing of it, a power cut its last moments, and then a few things more are
doubtful or told again. Nothing that is owed depends on it.
"""

from __future__ import annotations

import contextlib
import logging
import sqlite3
import time
from collections.abc import Collection, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Callable

from reimzul.core.errors import ReimzulError, RetryLater
from reimzul.core.message import BuildEvent, Event, Status
from reimzul.history.result_rules import Notification, is_news, is_result, news_kind, resulting_status, with_implied

log = logging.getLogger(__name__)

#: Seconds a row is kept. What is owed to a sink longer than this names the sink itself, so nobody else hears it again.
KEPT = 180 * 86400
#: Seconds until a ledger that cannot be written is tried again.
PAUSE = 5

_SCHEMA = """
CREATE TABLE IF NOT EXISTS told (
    key TEXT NOT NULL, word TEXT NOT NULL, sink TEXT NOT NULL,
    begun REAL NOT NULL, told REAL,
    PRIMARY KEY (key, word, sink)
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS told_begun ON told (begun);
CREATE INDEX IF NOT EXISTS told_open ON told (sink, begun) WHERE told IS NULL;
CREATE TABLE IF NOT EXISTS verdict (
    key TEXT PRIMARY KEY, status TEXT NOT NULL, at REAL NOT NULL
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS queued (
    key TEXT PRIMARY KEY, event TEXT NOT NULL, at REAL NOT NULL
) WITHOUT ROWID;
"""

_Row = tuple[str, str, str]


class Ledger:
    """The rows, and what follows from them. Belongs to one thread."""

    def __init__(self, path: Path) -> None:
        """Open or make it. Raises `ReimzulError` where that cannot be."""
        self._path = path
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._db = sqlite3.connect(str(path), timeout=5, isolation_level=None)
        except (OSError, sqlite3.Error) as error:
            raise ReimzulError(f"{path}: cannot be used as the ledger: {error}") from error
        try:
            self._db.execute("PRAGMA synchronous = NORMAL")
            self._db.execute("PRAGMA journal_mode = WAL")
            self._db.executescript(_SCHEMA)
        except sqlite3.Error as error:
            self.close()
            raise ReimzulError(f"{path}: cannot be used as the ledger: {error}") from error

    def close(self) -> None:
        """Leave."""
        self._db.close()

    def due(self, events: Sequence[Event], whom: Callable[[Event], Iterable[str]]) -> dict[str, list[Notification]]:
        """What each sink still lacks of these events, `whom` naming the sinks of one; written down as begun.

        Raises `RetryLater` where it cannot be written: then nobody is told anything.
        """
        due: dict[str, list[Notification]] = {}
        begun: dict[_Row, float] = {}
        with self._transaction():
            told = self._told({event.key for event in events})
            news = [part for event in events if self._admit(event) for part in with_implied(event)]
            for part, sink in [(each, sink) for each in news for sink in whom(each)]:
                row = (part.key, news_kind(part), sink)
                if told.get(row) is None and row not in begun:
                    begun[row] = time.time()
                    due.setdefault(sink, []).append(Notification(part, row[1], maybe_sent=row in told))
            self._db.executemany(
                "INSERT OR IGNORE INTO told VALUES (?, ?, ?, ?, NULL)", [(*row, now) for row, now in begun.items()]
            )
        return due

    def told(self, sink: str, notices: Iterable[Notification]) -> None:
        """Write down that a sink has these. Raises `RetryLater`."""
        rows = [(time.time(), *notice.name, sink) for notice in notices]
        if rows:
            with self._transaction():
                self._db.executemany("UPDATE told SET told = ? WHERE key = ? AND word = ? AND sink = ?", rows)

    def owing(self) -> dict[str, tuple[int, float]]:
        """How much was begun and is not told, by sink, and since when the oldest of it. Raises `RetryLater`."""
        query = "SELECT sink, count(*), min(begun) FROM told WHERE told IS NULL GROUP BY sink"
        with self._transaction("DEFERRED"):
            return {sink: (count, oldest) for sink, count, oldest in self._db.execute(query)}

    def queued(self, build_id: str) -> list[BuildEvent]:
        """What was last said of a build's job, by each leg that is not over. Raises `RetryLater`."""
        with self._transaction("DEFERRED"):
            rows = self._db.execute("SELECT event FROM queued WHERE key BETWEEN ? AND ?", _legs(build_id)).fetchall()
        return [BuildEvent.decode(text.encode()) for (text,) in rows]

    def is_over(self, build_id: str) -> bool:
        """Whether any leg of a build was decided. Raises `RetryLater`."""
        with self._transaction("DEFERRED"):
            query = "SELECT 1 FROM verdict WHERE key BETWEEN ? AND ?"
            return self._db.execute(query, _legs(build_id)).fetchone() is not None

    def came_to(self, build_ids: Iterable[str]) -> dict[str, str]:
        """What builds of one leg have come to, by their ids; without those that are not over. Raises `RetryLater`."""
        found = {}
        with self._transaction("DEFERRED"):
            for build_id in build_ids:
                query = "SELECT status FROM verdict WHERE key BETWEEN ? AND ?"
                row = self._db.execute(query, _legs(build_id)).fetchone()
                found.update({build_id: row[0]} if row else {})
        return found

    def write_off(self) -> None:
        """Forget what was begun and is not told, where no job carries it any more. Raises `RetryLater`."""
        with self._transaction():
            self._db.execute("DELETE FROM told WHERE told IS NULL")

    def forget(self, now: float) -> None:
        """Drop what is too old to come again. Raises `RetryLater`."""
        with self._transaction():
            self._db.execute("DELETE FROM told WHERE begun < ?", (now - KEPT,))
            self._db.execute("DELETE FROM verdict WHERE at < ?", (now - KEPT,))
            self._db.execute("DELETE FROM queued WHERE at < ?", (now - KEPT,))

    def _told(self, keys: Collection[str]) -> dict[_Row, float | None]:
        marks = ",".join("?" * len(keys))
        rows = self._db.execute(f"SELECT key, word, sink, told FROM told WHERE key IN ({marks})", list(keys))
        return {(key, said, sink): told for key, said, sink, told in rows}

    def _admit(self, event: Event) -> bool:
        """Whether an event is news at all; a result that is decides its leg."""
        if not isinstance(event, BuildEvent) or not is_result(event.status):
            self._note_job(event)
            return True
        row = self._db.execute("SELECT status FROM verdict WHERE key = ?", (event.key,)).fetchone()
        holds = row[0] if row else ""
        if not is_news(holds, event.status):
            log.info("%s of %s by %s is told to nobody: %s holds", event.status, event.key, event.builder_fqdn, holds)
            rows = (event.key, news_kind(event))
            self._db.execute("DELETE FROM told WHERE key = ? AND word = ? AND told IS NULL", rows)  # owed no more
            return False
        if resulting_status(holds, event.status) != holds:
            self._db.execute("INSERT OR REPLACE INTO verdict VALUES (?, ?, ?)", (event.key, event.status, time.time()))
            self._db.execute("DELETE FROM queued WHERE key = ?", (event.key,))
        return True

    def _note_job(self, event: Event) -> None:
        """Keep which job a build waits as, for who has to find it; the last one said holds."""
        if isinstance(event, BuildEvent) and event.status == Status.QUEUED and event.job and not event.owed:
            row = (event.key, event.encode().decode("ascii"), event.at or time.time())
            later = "ON CONFLICT (key) DO UPDATE SET event = excluded.event, at = excluded.at WHERE excluded.at >= at"
            self._db.execute(f"INSERT INTO queued VALUES (?, ?, ?) {later}", row)

    @contextlib.contextmanager
    def _transaction(self, kind: str = "IMMEDIATE") -> Iterator[None]:
        try:
            self._db.execute(f"BEGIN {kind}")
            try:
                yield
            except BaseException:
                self._db.execute("ROLLBACK")
                raise
            self._db.execute("COMMIT")
        except sqlite3.Error as error:
            with contextlib.suppress(sqlite3.Error):  # a COMMIT that failed leaves its transaction open
                self._db.execute("ROLLBACK")
            raise RetryLater(f"{self._path}: the ledger cannot be written: {error}", pause=PAUSE) from error


def _legs(build_id: str) -> tuple[str, str]:
    """The keys of a build's legs, as a range: `<build id>.<arch>`."""
    return f"{build_id}.", f"{build_id}/"

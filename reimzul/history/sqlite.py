# SPDX-License-Identifier: Apache-2.0
"""The history in one file, for a farm without MongoDB.

The documents are JSON; beside each stand the columns it is looked up by. One process writes, any number read (WAL).
One index has all those columns, the newest first: whatever is asked for, it alone is read, and only as far as needed.
"""

from __future__ import annotations

import contextlib
import json
import sqlite3
from collections.abc import Collection, Iterator, Sequence
from itertools import islice, starmap
from pathlib import Path
from typing import Any, Optional
from urllib.parse import quote

import attr

from reimzul.core.message import BuildEvent, Event, Refusal, Status
from reimzul.core.sqlite import transaction
from reimzul.history.base import BuildFilter, History, HistoryUnavailable, NoHistory, PendingCount
from reimzul.history.build_record import OVER, Document, apply_events, group, is_over, of_refusal, with_override

_COLUMNS = ("timestamp", "status", "target", "arch", "srpm", "submitter")
_SCHEMA = """
CREATE TABLE IF NOT EXISTS builds (
    key TEXT PRIMARY KEY, timestamp TEXT NOT NULL, status TEXT NOT NULL, target TEXT NOT NULL, arch TEXT NOT NULL,
    srpm TEXT NOT NULL, submitter TEXT NOT NULL, published REAL NOT NULL, latest INTEGER NOT NULL,
    document TEXT NOT NULL
);
CREATE INDEX IF NOT EXISTS builds_newest ON builds
    (timestamp, key, status, target, arch, srpm, submitter, published);
CREATE INDEX IF NOT EXISTS builds_group ON builds (srpm, arch, target, timestamp, key);
CREATE INDEX IF NOT EXISTS builds_unfinished ON builds (key) WHERE status IN ('Queued', 'Building');
CREATE TABLE IF NOT EXISTS refused (
    key TEXT PRIMARY KEY, at REAL NOT NULL, document TEXT NOT NULL
);
CREATE INDEX IF NOT EXISTS refused_newest ON refused (at);
CREATE TABLE IF NOT EXISTS owed (
    sink TEXT PRIMARY KEY, count INTEGER NOT NULL, oldest REAL NOT NULL, next_try REAL, at REAL NOT NULL
);
"""
_UPSERT = "INSERT OR REPLACE INTO builds VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
_LATEST = """
UPDATE builds SET latest = (key = :newest) WHERE srpm = :srpm AND arch = :arch AND target = :target
    AND latest <> (key = :newest)
"""
_NEWEST_FIRST = "ORDER BY timestamp DESC, key DESC"
_NEWEST = f"""
SELECT key FROM builds WHERE srpm = :srpm AND arch = :arch AND target = :target
    AND status IN ({", ".join(f"'{status}'" for status in OVER)}) {_NEWEST_FIRST} LIMIT 1
"""


class SqliteHistory(History):
    """The history in a SQLite file. Belongs to one thread."""

    def __init__(self, url: str, *, reading: bool = False) -> None:
        """Open the file, or make it where it may be written. Raises `NoHistory`, `HistoryAway`."""
        self._path = Path("/" + url[len("sqlite:") :].lstrip("/"))
        with self._translating_errors():
            self._db = self._to_read() if reading else self._to_write()

    def record(self, events: Sequence[Event]) -> None:
        """Take in events, in one transaction that is on the disk when this returns."""
        builds = [event for event in events if isinstance(event, BuildEvent)]
        with self._translating_errors(), transaction(self._db):
            before = self._load_records({event.key for event in builds})
            after = apply_events(before, builds)
            self._db.executemany(_UPSERT, [self._row(key, document) for key, document in after.items()])
            for name in {group(doc) for key, doc in after.items() if is_over(doc) and not is_over(before.get(key))}:
                self._mark_latest(*name)
            self._refuse([event for event in events if isinstance(event, Refusal)])

    def find_builds(self, wanted: BuildFilter, limit: int) -> list[Document]:
        """The newest that match."""
        terms, values = _terms(wanted)
        where = f"WHERE {' AND '.join(terms)}" if terms else ""
        # an id names few builds, and the key has an index of its own
        index = "" if wanted.build_id else "INDEXED BY builds_newest"
        found = f"SELECT rowid FROM builds {index} {where} {_NEWEST_FIRST} LIMIT ?"
        query = f"SELECT document, latest FROM builds WHERE rowid IN ({found}) {_NEWEST_FIRST}"
        with self._translating_errors():
            return [_document(*row) for row in self._db.execute(query, [*values, limit])]

    def iterate_builds(self, wanted: BuildFilter) -> Iterator[Document]:
        """All that match, one at a time."""
        terms, values = _terms(wanted)
        where = f"WHERE {' AND '.join(terms)}" if terms else ""
        with self._translating_errors():
            for row in self._db.execute(f"SELECT document, latest FROM builds {where}", values):
                yield _document(*row)

    def find_unfinished(self) -> list[Document]:
        """All that wait or are under way; the index has no others."""
        query = "SELECT document, latest FROM builds WHERE status IN ('Queued', 'Building')"
        with self._translating_errors():
            return [_document(*row) for row in self._db.execute(query)]

    def recent_successes(self, name: str, arch: str, limit: int) -> list[Document]:
        """The newest of a package; what begins as its source rpms do and is another's is read too, and left out."""
        terms, values = zip(*_begins("srpm", f"{name}-"))
        query = (
            f"SELECT document, latest FROM builds INDEXED BY builds_group WHERE {' AND '.join(terms)} AND arch = ? "
            f"AND status = ? {_NEWEST_FIRST}"
        )
        with self._translating_errors():
            rows = self._db.execute(query, [*values, arch, Status.SUCCESS])
            found = (document for document in starmap(_document, rows) if document["pkgname"] == name)
            return list(islice(found, limit))

    def iterate_refusals(self) -> Iterator[Document]:
        """The messages that were none."""
        with self._translating_errors():
            for (document,) in self._db.execute("SELECT document FROM refused ORDER BY at DESC"):
                yield json.loads(document)

    def delete_refusals(self, keys: Sequence[str]) -> None:
        """Drop these of what was refused, each by itself: nobody waits for all of them."""
        with self._translating_errors():
            self._db.executemany("DELETE FROM refused WHERE key = ?", [(key,) for key in keys])

    def save_pending_counts(self, owed: Sequence[PendingCount]) -> None:
        """Keep what is owed now."""
        with self._translating_errors(), transaction(self._db):
            self._db.execute("DELETE FROM owed")
            self._db.executemany("INSERT INTO owed VALUES (?, ?, ?, ?, ?)", [attr.astuple(each) for each in owed])

    def pending_counts(self) -> list[PendingCount]:
        """What was owed last."""
        with self._translating_errors():
            if not self._db.execute("SELECT 1 FROM sqlite_master WHERE name = 'owed'").fetchone():
                return []  # a reader of what an earlier version made, or of what is being made just now
            rows = self._db.execute("SELECT sink, count, oldest, next_try, at FROM owed ORDER BY sink")
            return [PendingCount(sink=row[0], count=row[1], oldest=row[2], next_try=row[3], at=row[4]) for row in rows]

    def override(self, srpm: str, target: str, arch: str, comment: str) -> Optional[Document]:
        """A person's word on the latest build."""
        query = "SELECT key, document, latest FROM builds WHERE srpm = ? AND target = ? AND arch = ? AND latest"
        with self._translating_errors(), transaction(self._db):
            row = self._db.execute(query, [srpm, target, arch]).fetchone()
            if row is None:
                return None
            document = with_override(_document(row[1], row[2]), comment)
            self._db.execute(_UPSERT, self._row(row[0], document))
            return document

    def close(self) -> None:
        """Leave."""
        self._db.close()

    def _to_write(self) -> sqlite3.Connection:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        db = sqlite3.connect(str(self._path), timeout=5, isolation_level=None)
        try:
            # the event's job is deleted next: a power cut must find it here
            db.execute("PRAGMA synchronous = FULL")
            db.execute("PRAGMA journal_mode = WAL")
            db.executescript(_SCHEMA)
        except sqlite3.Error:
            db.close()
            raise
        return db

    def _to_read(self) -> sqlite3.Connection:
        if not self._path.exists():
            raise NoHistory(f"no builds are known yet: the notifier has not made {self._path}")
        address = f"file:{quote(str(self._path))}?mode=ro"
        if not Path(f"{self._path}-wal").exists():
            # Nobody has it open, so nothing will change below us; and who may not write in that folder
            # could not open it otherwise, since a reader of a WAL makes its index.
            address += "&immutable=1"
        db = sqlite3.connect(address, uri=True, timeout=5, isolation_level=None)
        if not db.execute("SELECT 1 FROM sqlite_master WHERE name = 'builds'").fetchone():
            db.close()
            raise NoHistory(f"no builds are known yet: the notifier is just making {self._path}")
        return db

    def _load_records(self, keys: Collection[str]) -> dict[str, Document]:
        marks = ",".join("?" * len(keys))
        rows = self._db.execute(f"SELECT key, document, latest FROM builds WHERE key IN ({marks})", list(keys))
        return {key: _document(document, latest) for key, document, latest in rows}

    def _row(self, key: str, document: Document) -> tuple[Any, ...]:
        columns = [document[name] for name in _COLUMNS]
        return (key, *columns, document["published"], document["latest_build"], json.dumps(document))

    def _mark_latest(self, srpm: str, arch: str, target: str) -> None:
        names = {"srpm": srpm, "arch": arch, "target": target}
        (newest,) = self._db.execute(_NEWEST, names).fetchone()
        self._db.execute(_LATEST, {**names, "newest": newest})

    def _refuse(self, refusals: Sequence[Refusal]) -> None:
        rows = [(event.key, event.at, json.dumps(of_refusal(event))) for event in refusals]
        self._db.executemany("INSERT OR IGNORE INTO refused VALUES (?, ?, ?)", rows)

    @contextlib.contextmanager
    def _translating_errors(self) -> Iterator[None]:
        """What SQLite says, in our own words."""
        try:
            yield
        except (OSError, sqlite3.Error) as error:
            raise HistoryUnavailable(f"{self._path}: the history cannot be used: {error}") from error


def _document(text: str, latest: int) -> Document:
    document: Document = json.loads(text)
    document["latest_build"] = bool(latest)
    return document


def _terms(wanted: BuildFilter) -> tuple[list[str], list[str]]:
    """The conditions of a filter, and their values."""
    pairs = [("target = ?", wanted.target), ("arch = ?", wanted.arch), ("submitter = ?", wanted.submitter)]
    pairs += [("timestamp >= ?", wanted.since)]
    if wanted.status == Status.PUBLISHED:
        pairs += [("published > 0 AND status = ?", Status.SUCCESS)]
    else:
        pairs += [("status = ?", wanted.status)]
    if wanted.whole_srpm:
        pairs += [("srpm = ?", wanted.srpm)]
    else:
        pairs += _begins("srpm", wanted.srpm)
    given = [(term, value) for term, value in [*pairs, *_begins("key", wanted.build_id)] if value is not None]
    return [term for term, _ in given], [value for _, value in given]


def _begins(column: str, beginning: str | None) -> list[tuple[str, str | None]]:
    """A beginning as a range, for which an index serves; what may stand in a name sorts below U+10FFFF."""
    if beginning is None:
        return []
    return [(f"{column} >= ?", beginning), (f"{column} < ?", beginning + "\U0010ffff")]

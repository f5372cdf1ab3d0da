# SPDX-License-Identifier: Apache-2.0
"""The history in one SQLite file, for a farm without MongoDB.

Documents are stored as JSON, beside the columns that queries use. One process writes, any number of processes read
(WAL). `builds_newest` has all those columns, ordered from new to old: it answers every query of the newest builds, and
is read only as far as needed.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from itertools import islice
from pathlib import Path
from typing import Any, Optional

from reimzul.core.errors import translate_errors
from reimzul.core.message import BuildEvent, Event, Refusal, Status
from reimzul.core.sqlite import has_table, open_database, open_read_only, transaction
from reimzul.history import BuildFilter, History, HistoryUnavailable, NoHistory
from reimzul.history.build_record import OVER, BuildRecord, RefusalRecord, apply_events, with_override

_COLUMNS = ("timestamp", "status", "target", "arch", "srpm", "submitter", "published", "latest_build")
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
"""
_SELECT = "SELECT document, latest FROM builds"
_UPSERT = "INSERT OR REPLACE INTO builds VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
_NEWEST_FIRST = "ORDER BY timestamp DESC, key DESC"
_NEWEST = f"""
SELECT key FROM builds WHERE srpm = :srpm AND arch = :arch AND target = :target
    AND status IN ({", ".join(f"'{status}'" for status in OVER)}) {_NEWEST_FIRST} LIMIT 1
"""
_MARK_LATEST = """
UPDATE builds SET latest = (key = :newest) WHERE srpm = :srpm AND arch = :arch AND target = :target
    AND latest <> (key = :newest)
"""


class SqliteHistory(History):
    def __init__(self, url: str, *, reading: bool = False) -> None:
        """Open the file; create it unless `reading`. Raises `NoHistory`, `HistoryUnavailable`."""
        self._path = Path("/" + url[len("sqlite:") :].lstrip("/"))
        with self._translating_errors():
            # the jobs of recorded events are deleted next, so a power cut must not lose the commit (synchronous=FULL)
            self._db = self._open_to_read() if reading else open_database(self._path, _SCHEMA, synchronous="FULL")

    def record(self, events: Sequence[Event]) -> None:
        builds = [event for event in events if isinstance(event, BuildEvent)]
        refusals = [RefusalRecord.from_event(event) for event in events if isinstance(event, Refusal)]
        with self._translating_errors(), transaction(self._db):
            before = self._load_records({event.key for event in builds})
            after = apply_events(before, builds)
            self._db.executemany(_UPSERT, [_to_row(key, record) for key, record in after.items()])
            already_over = {key for key, record in before.items() if record.is_over}
            for group in {each.group for key, each in after.items() if each.is_over and key not in already_over}:
                self._mark_latest(*group)
            rows = [(each.key, each.at, json.dumps(each.to_document())) for each in refusals]
            self._db.executemany("INSERT OR IGNORE INTO refused VALUES (?, ?, ?)", rows)

    def find_builds(self, wanted: BuildFilter, limit: int) -> list[BuildRecord]:
        where, values = _where_clause(wanted)
        # an id matches few builds, and the key has an index of its own
        index = "" if wanted.build_id else "INDEXED BY builds_newest"
        found = f"SELECT rowid FROM builds {index} {where} {_NEWEST_FIRST} LIMIT ?"
        return list(self._select(f"WHERE rowid IN ({found}) {_NEWEST_FIRST}", [*values, limit]))

    def iterate_builds(self, wanted: BuildFilter) -> Iterator[BuildRecord]:
        return self._select(*_where_clause(wanted))

    def find_unfinished(self) -> list[BuildRecord]:
        return list(self._select("WHERE status IN ('Queued', 'Building')"))

    def recent_successes(self, name: str, arch: str, limit: int) -> list[BuildRecord]:
        # The index finds source rpms whose names begin with the package's; those of other packages are skipped.
        terms, values = zip(*_prefix_terms("srpm", f"{name}-"))
        where = f"INDEXED BY builds_group WHERE {' AND '.join(terms)} AND arch = ? AND status = ? {_NEWEST_FIRST}"
        found = self._select(where, [*values, arch, Status.SUCCESS])
        return list(islice((record for record in found if record.pkgname == name), limit))

    def iterate_refusals(self) -> Iterator[RefusalRecord]:
        with self._translating_errors():
            for (document,) in self._db.execute("SELECT document FROM refused ORDER BY at DESC"):
                yield RefusalRecord.from_document(json.loads(document))

    def delete_refusals(self, keys: Sequence[str]) -> None:
        # a transaction per row: nobody needs all of them to be deleted together, and readers wait less
        with self._translating_errors():
            self._db.executemany("DELETE FROM refused WHERE key = ?", [(key,) for key in keys])

    def override(self, srpm: str, target: str, arch: str, comment: str) -> Optional[BuildRecord]:
        query = "SELECT key, document, latest FROM builds WHERE srpm = ? AND target = ? AND arch = ? AND latest"
        with self._translating_errors(), transaction(self._db):
            row = self._db.execute(query, [srpm, target, arch]).fetchone()
            if row is None:
                return None
            record = with_override(_from_row(row[1], row[2]), comment)
            self._db.execute(_UPSERT, _to_row(row[0], record))
            return record

    def close(self) -> None:
        self._db.close()

    def _open_to_read(self) -> sqlite3.Connection:
        if not self._path.exists():
            raise NoHistory(f"no builds are known yet: the notifier has not made {self._path}")
        db = open_read_only(self._path)
        if not has_table(db, "builds"):
            db.close()
            raise NoHistory(f"no builds are known yet: the notifier is just making {self._path}")
        return db

    def _select(self, where: str, values: Sequence[object] = ()) -> Iterator[BuildRecord]:
        with self._translating_errors():
            for row in self._db.execute(f"{_SELECT} {where}", values):
                yield _from_row(*row)

    def _load_records(self, keys: Collection[str]) -> dict[str, BuildRecord]:
        query = f"SELECT key, document, latest FROM builds WHERE key IN ({','.join('?' * len(keys))})"
        return {key: _from_row(document, latest) for key, document, latest in self._db.execute(query, list(keys))}

    def _mark_latest(self, srpm: str, arch: str, target: str) -> None:
        group = {"srpm": srpm, "arch": arch, "target": target}
        (newest,) = self._db.execute(_NEWEST, group).fetchone()
        self._db.execute(_MARK_LATEST, {**group, "newest": newest})

    def _translating_errors(self) -> AbstractContextManager[None]:
        problem = f"{self._path}: the history cannot be used"
        return translate_errors({(OSError, sqlite3.Error): lambda error: HistoryUnavailable(f"{problem}: {error}")})


def _to_row(key: str, record: BuildRecord) -> tuple[Any, ...]:
    return (key, *(getattr(record, name) for name in _COLUMNS), json.dumps(record.to_document()))


def _from_row(document: str, latest: int) -> BuildRecord:
    return BuildRecord.from_document({**json.loads(document), "latest_build": latest != 0})


def _where_clause(wanted: BuildFilter) -> tuple[str, list[str]]:
    pairs = [("target = ?", wanted.target), ("arch = ?", wanted.arch), ("submitter = ?", wanted.submitter)]
    pairs += [("timestamp >= ?", wanted.since)]
    if wanted.status == Status.PUBLISHED:
        pairs += [("published > 0 AND status = ?", Status.SUCCESS)]
    else:
        pairs += [("status = ?", wanted.status)]
    pairs += [("srpm = ?", wanted.srpm)] if wanted.is_whole_srpm else _prefix_terms("srpm", wanted.srpm)
    given = [(term, value) for term, value in [*pairs, *_prefix_terms("key", wanted.build_id)] if value is not None]
    return f"WHERE {' AND '.join(term for term, _ in given)}" if given else "", [value for _, value in given]


def _prefix_terms(column: str, prefix: str | None) -> Iterable[tuple[str, str | None]]:
    """Return a prefix as a range, so that an index is used; every character of a name sorts below U+10FFFF."""
    if prefix is None:
        return []
    return [(f"{column} >= ?", prefix), (f"{column} < ?", prefix + "\U0010ffff")]

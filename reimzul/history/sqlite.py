# SPDX-License-Identifier: Apache-2.0
"""The history in one SQLite file, for a farm without MongoDB.

Documents are stored as JSON, beside the columns that queries use. One process writes, any number of processes read
(WAL). `builds_newest` has all those columns, ordered from new to old: it answers every query of the newest builds, and
is read only as far as needed. The column `status` of a build whose job is held is `Held`; its document has `Queued`.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import sqlite3
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from itertools import islice
from pathlib import Path
from typing import Any, Optional

import attr

from reimzul.core.errors import translate_errors
from reimzul.core.failure_cause import CAUSE_VERSION
from reimzul.core.message import BuildEvent, Event, Refusal, Status
from reimzul.core.sqlite import (
    has_table,
    is_intact,
    move_aside,
    open_database,
    open_read_only,
    readable_rows,
    transaction,
)
from reimzul.history import (
    CORRUPT_PREFIX,
    BuildFilter,
    FailedBuild,
    History,
    HistoryDamaged,
    HistoryUnavailable,
    NoHistory,
    is_pattern,
)
from reimzul.history.build_record import (
    FAILURES,
    OVER,
    BuildRecord,
    BuildState,
    RefusalRecord,
    apply_events,
    explain_like,
    is_same_result,
    with_cause,
    with_override,
)

log = logging.getLogger(__name__)

_COLUMNS = ("timestamp", "status", "target", "arch", "srpm", "submitter", "published", "latest_build")
_SCHEMA = """
CREATE TABLE IF NOT EXISTS builds (
    key TEXT PRIMARY KEY, timestamp TEXT NOT NULL, status TEXT NOT NULL, target TEXT NOT NULL, arch TEXT NOT NULL,
    srpm TEXT NOT NULL, submitter TEXT NOT NULL, published REAL NOT NULL, latest INTEGER NOT NULL,
    document TEXT NOT NULL, changed INTEGER NOT NULL DEFAULT 0, cause TEXT NOT NULL DEFAULT '',
    cause_version INTEGER NOT NULL DEFAULT 0, package TEXT NOT NULL DEFAULT ''
);
CREATE INDEX IF NOT EXISTS builds_newest ON builds
    (timestamp, key, status, target, arch, srpm, submitter, published);
CREATE INDEX IF NOT EXISTS builds_group ON builds (srpm, arch, target, timestamp, key);
DROP INDEX IF EXISTS builds_unfinished;
CREATE INDEX IF NOT EXISTS builds_open ON builds (key) WHERE status IN ('Queued', 'Held', 'Building');
CREATE TABLE IF NOT EXISTS members (batch TEXT, key TEXT, PRIMARY KEY (batch, key)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS refused (
    key TEXT PRIMARY KEY, at REAL NOT NULL, document TEXT NOT NULL
);
CREATE INDEX IF NOT EXISTS refused_newest ON refused (at);
"""
#: A file of an earlier version has no such column: its builds are numbered in the order in which they came.
_ADD_CHANGED = """
BEGIN IMMEDIATE;
ALTER TABLE builds ADD COLUMN changed INTEGER NOT NULL DEFAULT 0;
UPDATE builds SET changed = rowid;
COMMIT;
"""
#: The columns of a failure's cause, empty for all other builds; a file of an earlier version has none.
_CAUSE_COLUMNS = {
    "cause": "TEXT NOT NULL DEFAULT ''", "cause_version": "INTEGER NOT NULL DEFAULT 0",
    "package": "TEXT NOT NULL DEFAULT ''",
}  # fmt: skip
#: Answers `iterate_failures` alone.
_INDEX_CAUSE = """
CREATE INDEX IF NOT EXISTS builds_cause ON builds
    (cause, timestamp, key, status, target, arch, srpm, submitter, cause_version, package) WHERE cause <> ''
"""
_OLD_CAUSES = "FROM builds INDEXED BY builds_cause WHERE cause <> '' AND cause_version <> ?"
_INDEX_CHANGED = "CREATE INDEX IF NOT EXISTS builds_changed ON builds (changed)"
# as a blob: a text that is not UTF-8 would fail the whole query
_SELECT = "SELECT key, CAST(document AS BLOB), latest FROM builds"
_OVER = ", ".join(f"'{status}'" for status in OVER)
_ROW = ("key", *_COLUMNS[:-1], "latest", "document", "changed", *_CAUSE_COLUMNS)
_UPSERT = f"INSERT OR REPLACE INTO builds ({', '.join(_ROW)}) VALUES ({', '.join('?' * len(_ROW))})"
_LAST_CHANGE = "SELECT coalesce(max(changed), 0) FROM builds"
_NEWEST_FIRST = "ORDER BY timestamp DESC, key DESC"
_NEWEST = f"""
SELECT key FROM builds WHERE srpm = :srpm AND arch = :arch AND target = :target
    AND status IN ({_OVER}) {_NEWEST_FIRST} LIMIT 1
"""
_WRONGLY_MARKED = """
SELECT key FROM builds WHERE srpm = :srpm AND arch = :arch AND target = :target AND latest <> (key = :newest)
"""
_TOGGLE_LATEST = "UPDATE builds SET latest = NOT latest, changed = ? WHERE key = ?"


class SqliteHistory(History):
    is_file = True

    def __init__(self, url: str, *, reading: bool = False) -> None:
        """Open the file; create it unless `reading`. Raises `NoHistory`, `HistoryUnavailable`."""
        self._path = path_of(url)
        with self._translating_errors():
            self._db = self._open_to_read() if reading else _open_to_write(self._path)
            self._has_causes = "cause" in _list_columns(self._db)

    def record(self, events: Sequence[Event]) -> None:
        builds = [event for event in events if isinstance(event, BuildEvent)]
        refusals = [RefusalRecord.from_event(event) for event in events if isinstance(event, Refusal)]
        with self._translating_errors(), transaction(self._db):
            before = self._load_records({event.key for event in builds})
            after = apply_events(before, builds)
            self._write_records(after)
            already_over = {key for key, record in before.items() if record.is_over}
            for group in {each.group for key, each in after.items() if each.is_over and key not in already_over}:
                self._mark_latest(*group)
            rows = [(each.key, each.at, json.dumps(each.to_document())) for each in refusals]
            self._db.executemany("INSERT OR IGNORE INTO refused VALUES (?, ?, ?)", rows)

    def find_builds(self, wanted: BuildFilter, limit: int) -> list[BuildRecord]:
        where, values = _where_clause(wanted)
        # an id or a batch matches few builds, whose keys have an index of their own
        index = "" if wanted.build_id or wanted.batch else "INDEXED BY builds_newest"
        found = f"SELECT rowid FROM builds {index} {where} {_NEWEST_FIRST} LIMIT ?"
        return list(self._select(f"WHERE rowid IN ({found}) {_NEWEST_FIRST}", [*values, limit]))

    def iterate_builds(self, wanted: BuildFilter) -> Iterator[BuildRecord]:
        return self._select(*_where_clause(wanted))

    def find_unfinished(self) -> list[BuildRecord]:
        return list(self._select("WHERE status IN ('Queued', 'Held', 'Building')"))

    def iterate_failures(self, wanted: BuildFilter, cause: str = "") -> Iterator[FailedBuild]:
        where, values = _where_clause(attr.evolve(wanted, states=[BuildState.FAILED]))
        with self._translating_errors():
            if self._has_causes:
                yield from self._iterate_index(where, values, cause)
                where, values = f"{where} AND rowid IN (SELECT rowid {_OLD_CAUSES})", [*values, CAUSE_VERSION]
            for key, record in self._readable(self._db.execute(f"{_SELECT} {where}", values)):
                failed = attr.evolve(FailedBuild.from_record(record), build_id=key.partition(".")[0])
                if failed.cause.startswith(cause):
                    yield failed

    def _iterate_index(self, where: str, values: Sequence[object], cause: str) -> Iterator[FailedBuild]:
        """Yield the failures whose cause is by this version of the rule."""
        term, prefixes = _prefix_term("cause", cause)
        current = f"{where} AND cause <> '' AND cause_version = ? AND {term}"
        query = f"SELECT key, timestamp, target, package, cause FROM builds INDEXED BY builds_cause {current}"
        for key, *about in self._db.execute(query, [*values, CAUSE_VERSION, *prefixes]):
            build_id, _, arch = key.partition(".")
            yield FailedBuild(build_id, arch, *about)

    def count_old_causes(self) -> int:
        with self._translating_errors():
            return int(self._db.execute(f"SELECT count(*) {_OLD_CAUSES}", [CAUSE_VERSION]).fetchone()[0])

    def find_old_causes(self, limit: int) -> dict[str, BuildRecord]:
        with self._translating_errors():
            while True:
                rows = self._db.execute(f"SELECT key {_OLD_CAUSES} LIMIT ?", [CAUSE_VERSION, limit]).fetchall()
                found = self._load_records([key for (key,) in rows])
                damaged = [(CAUSE_VERSION, key) for (key,) in rows if key not in found]
                # nothing can be stored in those, and they must not hold up the others
                self._db.executemany("UPDATE builds SET cause_version = ? WHERE key = ?", damaged)
                if found or not rows:
                    return found

    def store_causes(self, records: Mapping[str, BuildRecord]) -> None:
        with self._translating_errors(), transaction(self._db):
            known = self._load_records(records)
            same = {key: each for key, each in known.items() if is_same_result(each, records[key])}
            self._write_records({key: explain_like(each, records[key]) for key, each in same.items()})

    def recent_successes(self, name: str, arch: str, limit: int) -> list[BuildRecord]:
        # The index finds source rpms whose names begin with the package's; those of other packages are skipped.
        term, values = _prefix_term("srpm", f"{name}-")
        where = f"INDEXED BY builds_group WHERE {term} AND arch = ? AND status = ? {_NEWEST_FIRST}"
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

    def list_targets(self) -> list[str]:
        with self._translating_errors():
            return [target for (target,) in self._db.execute("SELECT DISTINCT target FROM builds ORDER BY target")]

    def override(self, srpm: str, target: str, arch: str, comment: str, build_id: str = "") -> Optional[BuildRecord]:
        which = f"key = ? AND status IN ({_OVER})" if build_id else "latest"
        query = f"{_SELECT} WHERE srpm = ? AND target = ? AND arch = ? AND {which}"
        values = [srpm, target, arch, *([f"{build_id}.{arch}"] if build_id else ())]
        with self._translating_errors(), transaction(self._db):
            row = self._db.execute(query, values).fetchone()
            if row is None:
                return None
            record = with_override(_from_row(row[1], row[2]), comment)
            self._write_records({row[0]: record})
            return record

    def find_changed(self, after: int, limit: int) -> list[tuple[int, BuildRecord]]:
        query = (
            "SELECT key, CAST(document AS BLOB), latest, changed FROM builds WHERE changed > ? ORDER BY changed LIMIT ?"
        )
        with self._translating_errors():
            rows = self._db.execute(query, (after, limit)).fetchall()
            numbers = {row[0]: row[3] for row in rows}
            return [(numbers[key], record) for key, record in self._readable(row[:3] for row in rows)]

    def last_change(self) -> int:
        with self._translating_errors():
            return int(self._db.execute(_LAST_CHANGE).fetchone()[0])

    def close(self) -> None:
        self._db.close()

    def _open_to_read(self) -> sqlite3.Connection:
        if not self._path.exists():
            raise NoHistory(f"no builds are known yet: the notifier has not made {self._path}")
        with contextlib.ExitStack() as opened:
            db = opened.enter_context(contextlib.closing(open_read_only(self._path)))
            if not has_table(db, "builds"):
                raise NoHistory(f"no builds are known yet: the notifier is just making {self._path}")
            opened.pop_all()  # it stays open
        return db

    def _select(self, where: str, values: Sequence[object] = ()) -> Iterator[BuildRecord]:
        with self._translating_errors():
            for _, record in self._readable(self._db.execute(f"{_SELECT} {where}", values)):
                yield record

    def _readable(self, rows: Iterable[tuple[str, bytes, int]]) -> Iterator[tuple[str, BuildRecord]]:
        """Parse rows. SQLite has no checksums, so damage in the middle of a document is seen here alone."""
        for key, document, latest in rows:
            try:
                yield key, _from_row(document, latest)
            except (ValueError, TypeError, AttributeError) as error:
                log.error("%s: the record of %s is damaged, and left out: %s", self._path, key, error)

    def salvage(self, damaged: Path) -> int:
        """Copy what can be read of a damaged history; return how many builds."""
        with self._translating_errors(), contextlib.closing(open_read_only(damaged)) as db, transaction(self._db):
            document = 1 + len(_COLUMNS)  # a file of an earlier version has no columns after it
            rows = ((row[0], row[document], row[document - 1]) for row in readable_rows(db, "builds"))
            for key, record in self._readable(rows):
                self._write_records({key: with_cause(record)})
            query = f"SELECT DISTINCT srpm, arch, target FROM builds WHERE status IN ({_OVER})"
            for group in self._db.execute(query).fetchall():  # a group's latest build may be lost
                self._mark_latest(*group)
            self._db.executemany("INSERT OR IGNORE INTO refused VALUES (?, ?, ?)", readable_rows(db, "refused"))
            return int(self._db.execute("SELECT count(*) FROM builds").fetchone()[0])

    def _load_records(self, keys: Collection[str]) -> dict[str, BuildRecord]:
        query = f"{_SELECT} WHERE key IN ({','.join('?' * len(keys))})"
        return dict(self._readable(self._db.execute(query, list(keys))))

    def _mark_latest(self, srpm: str, arch: str, target: str) -> None:
        group = {"srpm": srpm, "arch": arch, "target": target}
        (newest,) = self._db.execute(_NEWEST, group).fetchone()
        for (key,) in self._db.execute(_WRONGLY_MARKED, {**group, "newest": newest}).fetchall():
            self._db.execute(_TOGGLE_LATEST, (self.last_change() + 1, key))

    def _write_records(self, records: Mapping[str, BuildRecord]) -> None:
        """Write records, each with a number of its own: the order of writes that `find_changed` reads."""
        first = self.last_change() + 1
        rows = [
            (*_to_row(key, record), number, *_cause_values(record))
            for number, (key, record) in enumerate(records.items(), first)
        ]
        self._db.executemany(_UPSERT, rows)
        members = [(record.batch, key) for key, record in records.items() if record.batch]
        self._db.executemany("INSERT OR IGNORE INTO members VALUES (?, ?)", members)

    def _translating_errors(self) -> AbstractContextManager[None]:
        problem = f"{self._path}: the history cannot be used"

        def translated(error: Exception) -> HistoryUnavailable:
            # Python's class for a corrupt file, or one that is no database, is the base of those for all else
            kind = HistoryDamaged if type(error) is sqlite3.DatabaseError else HistoryUnavailable
            return kind(f"{problem}: {error}")

        return translate_errors({(OSError, sqlite3.Error): translated})


def _open_to_write(path: Path) -> sqlite3.Connection:
    # the jobs of recorded events are deleted next, so a power cut must not lose the commit (synchronous=FULL)
    with contextlib.ExitStack() as opened:
        db = opened.enter_context(contextlib.closing(open_database(path, _SCHEMA, synchronous="FULL")))
        columns = _list_columns(db)
        if "changed" not in columns:
            db.executescript(_ADD_CHANGED)
        if "package" not in columns:
            _add_causes(db)
        db.execute(_INDEX_CHANGED)
        db.execute(_INDEX_CAUSE)
        opened.pop_all()  # it stays open
    return db


def _list_columns(db: sqlite3.Connection) -> set[str]:
    return {column[1] for column in db.execute("PRAGMA table_info(builds)")}


def _add_causes(db: sqlite3.Connection) -> None:
    """Add the columns of causes to a file of an earlier version, and compute the causes of its failures.

    The builds' numbers stay: they are shown as before.
    """
    with transaction(db):
        for name, kind in _CAUSE_COLUMNS.items():
            db.execute(f"ALTER TABLE builds ADD COLUMN {name} {kind}")
        failed = db.execute(f"SELECT key FROM builds WHERE status IN ({', '.join('?' * len(FAILURES))})", FAILURES)
        for (key,) in failed.fetchall():
            (document,) = db.execute("SELECT CAST(document AS BLOB) FROM builds WHERE key = ?", [key]).fetchone()
            try:
                record = with_cause(_from_row(document, 0))
            except (ValueError, TypeError, AttributeError):
                continue  # the record is damaged, which its readers log
            values = (json.dumps(record.to_document()), *_cause_values(record), key)
            db.execute(
                "UPDATE builds SET document = ?, cause = ?, cause_version = ?, package = ? WHERE key = ?", values
            )
        db.execute(_INDEX_CAUSE)  # in the same step: a reader that finds the columns asks the index


def _cause_values(record: BuildRecord) -> tuple[str, int, str]:
    """Return the values of the columns of causes."""
    if not record.is_failure:
        return "", 0, ""
    return record.cause, record.cause_version, record.package


def path_of(url: str) -> Path:
    return Path("/" + url[len("sqlite:") :].lstrip("/"))


def replace_damaged(url: str, *, thorough: bool) -> str:
    """See `repair_history`. The new file is whole before the damaged one is renamed, so a kill or a full disk costs
    nothing: all is done again, or only the last rename.
    """
    path = path_of(url)
    fresh = path.with_name(f"{path.name}.salvaged")
    problem = f"{path}: the history is damaged, and cannot be replaced"
    with translate_errors({(OSError, sqlite3.Error): lambda error: HistoryUnavailable(f"{problem}: {error}")}):
        if not path.exists() and fresh.exists():
            os.rename(fresh, path)
        if is_intact(path, thorough=thorough):
            return ""
        for suffix in ("-shm", "-wal", ""):
            Path(f"{fresh}{suffix}").unlink(missing_ok=True)
        with contextlib.closing(SqliteHistory(f"sqlite://{fresh}")) as history:
            count = history.salvage(path)
        aside = move_aside(path, CORRUPT_PREFIX)
        os.rename(fresh, path)
    return (
        f"the history {path} was damaged: it is now {aside}, and {count} builds could be read from it; others are lost"
    )


def _to_row(key: str, record: BuildRecord) -> tuple[Any, ...]:
    values = {name: getattr(record, name) for name in _COLUMNS}
    if record.is_held:
        values["status"] = BuildState.HELD.capitalize()
    return (key, *values.values(), json.dumps(record.to_document()))


def _from_row(document: str | bytes, latest: int) -> BuildRecord:
    return BuildRecord.from_document({**json.loads(document), "latest_build": latest != 0})


def _where_clause(wanted: BuildFilter) -> tuple[str, list[Any]]:
    terms: list[tuple[str, list[str]]] = []
    if wanted.states is not None:
        terms.append(_state_term(wanted))
    if wanted.targets is not None:
        matches = [_match_term("target", each) for each in wanted.targets]
        terms.append((" OR ".join(term for term, _ in matches) or "0", [value for _, (value,) in matches]))
    matched = {"arch": wanted.arch, "submitter": wanted.submitter}
    terms += [_match_term(name, value) for name, value in matched.items() if value is not None]
    terms += [("timestamp >= ?", [wanted.since])] if wanted.since is not None else []
    terms += [("timestamp < ?", [wanted.until])] if wanted.until is not None else []
    if wanted.srpm is not None:
        whole = wanted.is_whole_srpm or is_pattern(wanted.srpm)
        terms.append(_match_term("srpm", wanted.srpm) if whole else _prefix_term("srpm", wanted.srpm))
    terms += [_prefix_term("key", wanted.build_id)] if wanted.build_id is not None else []
    if wanted.batch == "":
        terms.append(("key NOT IN (SELECT key FROM members)", []))
    elif wanted.batch is not None:
        term, values = _prefix_term("batch", wanted.batch)
        terms.append((f"key IN (SELECT key FROM members WHERE {term})", values))
    where = " AND ".join(f"({term})" for term, _ in terms)
    return f"WHERE {where}" if where else "", [value for _, values in terms for value in values]


def _state_term(wanted: BuildFilter) -> tuple[str, list[str]]:
    statuses = wanted.statuses
    term = f"status IN ({','.join('?' * len(statuses))})"
    if wanted.needs_published is None:
        return term, statuses
    published = "published > 0" if wanted.needs_published else "published <= 0"
    return f"{term} OR status = ? AND {published}", [*statuses, Status.SUCCESS]


def _match_term(column: str, wanted: str) -> tuple[str, list[str]]:
    """Return the condition that a column has a value, or matches a pattern; `[` is no wildcard, as GLOB has it."""
    if not is_pattern(wanted):
        return f"{column} = ?", [wanted]
    return f"{column} GLOB ?", [wanted.replace("[", "[[]")]


def _prefix_term(column: str, prefix: str) -> tuple[str, list[str]]:
    """Return a prefix as a range, so that an index is used; every character of a name sorts below U+10FFFF."""
    return f"{column} >= ? AND {column} < ?", [prefix, prefix + "\U0010ffff"]

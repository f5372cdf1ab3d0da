# SPDX-License-Identifier: Apache-2.0
"""The daemon's own SQLite file: a row for each build on an arch, each attempt and each batch, and which pages are due.

It is made from the history and the batches' files, and may be removed at any time. One transaction takes over some
changes of the history, notes the pages that show them as due, and stores the number of the last change; a page stops
being due after its file has been renamed. So a kill at any moment costs no more than rendering some pages again.
"""

from __future__ import annotations

import contextlib
import enum
import json
import sqlite3
import time
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Optional

import attr

from reimzul.core.errors import ReimzulError, translate_errors
from reimzul.core.failure_cause import CAUSE_VERSION, cause_of
from reimzul.core.sqlite import open_database, transaction
from reimzul.core.store_paths import leg_key
from reimzul.history import BuildRecord
from reimzul.history.build_record import BuildState

#: Changed whenever the tables are, and with the rule of causes: a file of another version is made again.
_VERSION = 4 + 1_000 * (CAUSE_VERSION - 1)
FAILURES = (BuildState.FAILED, BuildState.REJECTED)
SUCCESSES = (BuildState.PUBLISHED, BuildState.BUILT)
_SCHEMA = """
CREATE TABLE IF NOT EXISTS builds (
    key TEXT PRIMARY KEY, position TEXT NOT NULL, build_id TEXT NOT NULL, timestamp TEXT NOT NULL,
    package TEXT NOT NULL, evr TEXT NOT NULL, target TEXT NOT NULL, arch TEXT NOT NULL, submitter TEXT NOT NULL,
    scratch INTEGER NOT NULL, state TEXT NOT NULL, builder TEXT NOT NULL, tube TEXT NOT NULL, queued REAL NOT NULL,
    started REAL NOT NULL, ended REAL NOT NULL, duration REAL, wait REAL, cause TEXT NOT NULL, why TEXT NOT NULL,
    batch TEXT NOT NULL
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS builds_target ON builds (target, position);
CREATE INDEX IF NOT EXISTS builds_package ON builds (package, position);
CREATE INDEX IF NOT EXISTS builds_state ON builds (state, position);
CREATE INDEX IF NOT EXISTS builds_cause ON builds (cause, position) WHERE cause <> '';
CREATE INDEX IF NOT EXISTS builds_batch ON builds (batch, build_id) WHERE batch <> '';
CREATE INDEX IF NOT EXISTS builds_stats ON builds (position, state, arch, duration, wait, package);
CREATE TABLE IF NOT EXISTS attempts (
    key TEXT NOT NULL, number INTEGER NOT NULL, position TEXT NOT NULL, builder TEXT NOT NULL, state TEXT NOT NULL,
    at REAL NOT NULL, duration REAL, why TEXT NOT NULL, PRIMARY KEY (key, number)
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS attempts_builder ON attempts (builder, position);
CREATE TABLE IF NOT EXISTS batches (
    batch TEXT PRIMARY KEY, stamp TEXT NOT NULL, created REAL NOT NULL, is_over INTEGER NOT NULL, summary TEXT NOT NULL
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS names (kind TEXT NOT NULL, name TEXT NOT NULL, PRIMARY KEY (kind, name)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS parts (
    kind TEXT NOT NULL, name TEXT NOT NULL, number INTEGER NOT NULL, since TEXT NOT NULL,
    PRIMARY KEY (kind, name, number)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS pages (
    kind TEXT NOT NULL, name TEXT NOT NULL, due REAL, rendered REAL NOT NULL, urgency INTEGER NOT NULL,
    PRIMARY KEY (kind, name)
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS pages_due ON pages (urgency, due) WHERE due IS NOT NULL;
CREATE TABLE IF NOT EXISTS checks (
    build_id TEXT PRIMARY KEY, due REAL NOT NULL, gone INTEGER NOT NULL, checked REAL NOT NULL
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS checks_due ON checks (due) WHERE gone = 0;
CREATE TABLE IF NOT EXISTS facts (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
"""


class Urgency(enum.IntEnum):
    """How soon a page that is due is rendered, compared with others."""

    WATCHED = 0  #: the own page of what changes now: somebody may wait for it
    FRESH = 1  #: a list or a feed that shows a change of now
    BACKLOG = 2  #: old changes alone: the history is read for the first time, or the templates are new


_WATCHED_KINDS = ("build", "now", "batch")
#: Builds of a target before and after a pruned one that are looked for soon, unless they were within so many seconds.
_NEIGHBOURS, _CHECKED_LATELY_SECONDS = 100, 3600.0


class IndexUnavailable(ReimzulError):
    """The daemon's own file cannot be read or written now."""


class IndexDamaged(IndexUnavailable):
    """SQLite finds the file damaged: it has to be removed, and made again."""


@attr.frozen(kw_only=True)
class BuildRow:
    """A build on an arch, as lists show it. Times are seconds since 1970, 0 if unknown."""

    key: str
    position: str  #: its place in the order of all builds: timestamp and key
    build_id: str
    timestamp: str
    package: str
    evr: str
    target: str
    arch: str
    submitter: str
    scratch: int
    state: str
    builder: str
    tube: str
    queued: float
    started: float
    ended: float
    duration: Optional[float]
    wait: Optional[float]
    cause: str  #: the id of the cause of its failure
    why: str  #: that cause for a person, or what it waits for
    batch: str  #: the batch that it is a member's build of

    @classmethod
    def from_record(cls, record: BuildRecord) -> BuildRow:
        key = leg_key(record.build_id, record.arch)
        cause = cause_of(record) if record.state in FAILURES else None
        return cls(
            key=key,
            position=record.timestamp + key,
            build_id=record.build_id,
            timestamp=record.timestamp,
            package=record.package,
            evr=record.evr or record.srpm,
            target=record.target,
            arch=record.arch,
            submitter=record.submitter,
            scratch=int(record.scratch),
            state=record.state,
            builder=record.builder_fqdn,
            tube=record.tube or record.arch,
            queued=record.queued_at,
            started=record.attempt_start,
            ended=0.0 if record.is_unfinished else record.at,
            duration=record.duration,
            wait=record.wait,
            cause=cause.id if cause else "",
            why=(cause.text if cause else record.comment or record.waits_for or record.reason)[:300],
            batch=record.batch,
        )


@attr.frozen(kw_only=True)
class AttemptRow:
    """An attempt of a builder, as its page shows it."""

    key: str
    number: int
    position: str
    builder: str
    state: str
    at: float
    duration: Optional[float]
    why: str

    @classmethod
    def list_of(cls, record: BuildRecord) -> list[AttemptRow]:
        key = leg_key(record.build_id, record.arch)
        return [
            cls(
                key=key,
                number=number,
                position=f"{each.heard or each.at:017.3f}{key}",
                builder=each.builder_fqdn,
                state=each.state,
                at=each.ended_at if each.is_over else each.heard or each.at,
                duration=each.finished - each.started if 0 < each.started <= each.finished else None,
                why=each.reason[:300],
            )
            for number, each in enumerate(record.attempts, 1)
            if each.builder_fqdn
        ]


@attr.frozen
class DuePage:
    kind: str
    name: str
    due: float


_BUILD_COLUMNS = ", ".join(each.name for each in attr.fields(BuildRow))
_ATTEMPT_COLUMNS = ", ".join(each.name for each in attr.fields(AttemptRow))


def _upsert(table: str, row: type) -> str:
    return f"INSERT OR REPLACE INTO {table} VALUES ({', '.join('?' * len(attr.fields(row)))})"


_UPSERT_BUILD, _UPSERT_ATTEMPT = _upsert("builds", BuildRow), _upsert("attempts", AttemptRow)


def remove_index(path: Path) -> None:
    for suffix in ("-shm", "-wal", ""):
        Path(f"{path}{suffix}").unlink(missing_ok=True)


class PageIndex:
    """An instance belongs to one thread. Every method raises `IndexUnavailable`."""

    def __init__(self, path: Path) -> None:
        """Open the file; one of another version is removed and made again. Raises `IndexDamaged`."""
        self._path = path
        with self._translating_errors():
            if self._find_version() not in (0, _VERSION):
                remove_index(path)
            self._db = open_database(path, _SCHEMA, synchronous="NORMAL")
            self._db.execute(f"PRAGMA user_version = {_VERSION}")

    def _find_version(self) -> int:
        if not self._path.exists():
            return 0
        with contextlib.closing(sqlite3.connect(str(self._path))) as db:
            return int(db.execute("PRAGMA user_version").fetchone()[0])

    def close(self) -> None:
        self._db.close()

    @contextlib.contextmanager
    def transaction(self) -> Iterator[None]:
        with self._translating_errors(), transaction(self._db):
            yield

    def _translating_errors(self) -> AbstractContextManager[None]:
        return translate_errors({(OSError, sqlite3.Error): self._translate})

    def _translate(self, error: Exception) -> IndexUnavailable:
        # Python's class for a damaged file is the base of those for all else
        kind = IndexDamaged if type(error) is sqlite3.DatabaseError else IndexUnavailable
        return kind(f"{self._path}: cannot be used: {error}")

    def select(self, query: str, *values: object) -> list[Any]:
        """Run a query of a page."""
        with self._translating_errors():
            return self._db.execute(query, values).fetchall()

    def _execute(self, statement: str, *values: object) -> int:
        with self._translating_errors():
            return self._db.execute(statement, values).rowcount

    # --- facts

    def get_fact(self, name: str) -> str:
        rows = self.select("SELECT value FROM facts WHERE name = ?", name)
        return str(rows[0][0]) if rows else ""

    def set_fact(self, name: str, value: str) -> None:
        self._execute("INSERT OR REPLACE INTO facts VALUES (?, ?)", name, value)

    # --- builds and attempts

    def save(self, record: BuildRecord) -> tuple[BuildRow | None, BuildRow, list[AttemptRow]]:
        """Take over a record; return its row before and now, and its attempts."""
        row, attempts = BuildRow.from_record(record), AttemptRow.list_of(record)
        before = self.find_build_rows("key = ?", row.key)
        with self._translating_errors():
            self._db.execute(_UPSERT_BUILD, attr.astuple(row, recurse=False))
            self._db.executemany(_UPSERT_ATTEMPT, [attr.astuple(each, recurse=False) for each in attempts])
        return (before[0] if before else None), row, attempts

    def find_build_rows(self, where: str, *values: object, order: str = "", limit: int = -1) -> list[BuildRow]:
        names = [each.name for each in attr.fields(BuildRow)]
        rows = self.select(f"SELECT {_BUILD_COLUMNS} FROM builds WHERE {where} {order} LIMIT ?", *values, limit)
        return [BuildRow(**dict(zip(names, row))) for row in rows]

    def was_built_before(self, key: str) -> bool:
        """Whether the package's last build before one, on its arch and target, succeeded; scratch builds aside."""
        for row in self.find_build_rows("key = ?", key):
            where = "package = ? AND target = ? AND arch = ? AND position < ? AND scratch = 0 AND state IN (?, ?, ?)"
            about = (row.package, row.target, row.arch, row.timestamp, *SUCCESSES, BuildState.FAILED)
            before = self.find_build_rows(where, *about, order="ORDER BY position DESC", limit=1)
            return bool(before) and before[0].state in SUCCESSES
        return False

    def find_attempt_rows(self, builder: str, since: str, until: str) -> list[AttemptRow]:
        names = [each.name for each in attr.fields(AttemptRow)]
        query = (
            f"SELECT {_ATTEMPT_COLUMNS} FROM attempts WHERE builder = ? AND position >= ? AND position < ?"
            " ORDER BY position DESC"
        )
        rows = self.select(query, builder, since, until)
        return [AttemptRow(**dict(zip(names, row))) for row in rows]

    def forget_build(self, build_id: str) -> None:
        """Drop what is known of a build that the history has no more."""
        for table in ("builds", "attempts"):
            self._execute(f"DELETE FROM {table} WHERE key >= ? AND key < ?", f"{build_id}.", f"{build_id}/")
        self._execute("DELETE FROM checks WHERE build_id = ?", build_id)

    # --- batches

    def list_batch_stamps(self) -> dict[str, str]:
        """Return the batches that are known, with the stamp of the files that were last seen of each."""
        return dict(self.select("SELECT batch, stamp FROM batches"))

    def set_batch_stamp(self, batch: str, stamp: str) -> None:
        statement = (
            "INSERT INTO batches VALUES (?, ?, 0, 0, '') ON CONFLICT (batch) DO UPDATE SET stamp = excluded.stamp"
        )
        self._execute(statement, batch, stamp)

    def save_summary(self, batch: str, summary: Mapping[str, Any], *, is_over: bool) -> None:
        """Store what lists show of a batch."""
        statement = "UPDATE batches SET created = ?, is_over = ?, summary = ? WHERE batch = ?"
        self._execute(statement, summary["created"], is_over, json.dumps(summary), batch)

    def is_known_batch(self, batch: str) -> bool:
        return bool(self.select("SELECT 1 FROM batches WHERE batch = ?", batch))

    def list_summaries(self, *, is_unfinished: bool = False) -> list[dict[str, Any]]:
        """Return what lists show of batches, the newest first."""
        states = "(0)" if is_unfinished else "(0, 1)"
        query = f"SELECT summary FROM batches WHERE summary <> '' AND is_over IN {states} ORDER BY created DESC, batch"
        return [json.loads(summary) for (summary,) in self.select(query)]

    def find_summary(self, batch: str) -> dict[str, Any]:
        """Return what lists show of a batch; empty if its page was never rendered."""
        rows = self.select("SELECT summary FROM batches WHERE batch = ? AND summary <> ''", batch)
        return dict(json.loads(rows[0][0])) if rows else {}

    def list_builds_of_batch(self, batch: str) -> list[str]:
        query = "SELECT DISTINCT build_id FROM builds WHERE batch = ? AND batch <> ''"
        return [build_id for (build_id,) in self.select(query, batch)]

    def drop_batch(self, batch: str) -> None:
        self._execute("DELETE FROM batches WHERE batch = ?", batch)

    # --- names

    def add_name(self, kind: str, name: str) -> bool:
        """Remember a name; return whether it is new."""
        return self._execute("INSERT OR IGNORE INTO names VALUES (?, ?)", kind, name) > 0

    def drop_name(self, kind: str, name: str) -> None:
        self._execute("DELETE FROM names WHERE kind = ? AND name = ?", kind, name)

    def list_names(self, kind: str) -> list[str]:
        return [name for (name,) in self.select("SELECT name FROM names WHERE kind = ? ORDER BY name", kind)]

    # --- parts of long lists

    def find_part(self, kind: str, name: str, position: str) -> int:
        """Return the number of the part of a list that a position belongs to; 1 if the list has no parts yet."""
        query = "SELECT number FROM parts WHERE kind = ? AND name = ? AND since <= ? ORDER BY number DESC LIMIT 1"
        rows = self.select(query, kind, name, position)
        return int(rows[0][0]) if rows else 1

    def list_parts(self, kind: str, name: str) -> list[str]:
        """Return where each part begins, the oldest first; that of the oldest is empty."""
        query = "SELECT since FROM parts WHERE kind = ? AND name = ? ORDER BY number"
        return ["", *(since for (since,) in self.select(query, kind, name))]

    def add_part(self, kind: str, name: str, number: int, since: str) -> None:
        self._execute("INSERT OR REPLACE INTO parts VALUES (?, ?, ?, ?)", kind, name, number, since)

    # --- pages

    def mark_due(self, kind: str, name: str, delay: float, pause: float, *, is_backlog: bool = False) -> None:
        """Have a page rendered in `delay` seconds, and not before `pause` seconds after the last time.

        `is_backlog`: it shows nothing that happens now, and waits for pages that do.
        """
        now, urgency = time.time(), Urgency.WATCHED if kind in _WATCHED_KINDS else Urgency.FRESH
        statement = (
            "INSERT INTO pages VALUES (?, ?, ?, 0, ?) ON CONFLICT (kind, name) DO UPDATE"
            " SET due = min(coalesce(due, 9e12), max(excluded.due, rendered + ?)),"
            " urgency = CASE WHEN due IS NULL THEN excluded.urgency ELSE min(urgency, excluded.urgency) END"
        )
        self._execute(statement, kind, name, now + delay, Urgency.BACKLOG if is_backlog else urgency, pause)

    def list_due(self, urgency: Urgency, limit: int, *, without: Collection[str] = ()) -> list[DuePage]:
        """Return pages to render, without some kinds: those that wait longest first, of the backlog the newest."""
        kinds = ", ".join("?" * len(without))
        order = "DESC" if urgency == Urgency.BACKLOG else "ASC"
        query = (
            "SELECT kind, name, due FROM pages WHERE urgency = ? AND due IS NOT NULL AND due <= ?"
            f" AND kind NOT IN ({kinds}) ORDER BY due {order} LIMIT ?"
        )
        return [DuePage(*row) for row in self.select(query, urgency, time.time(), *without, limit)]

    def count_due(self) -> int:
        return int(self.select("SELECT count(*) FROM pages WHERE due IS NOT NULL AND due <= ?", time.time())[0][0])

    def mark_rendered(self, pages: Iterable[DuePage]) -> None:
        """Note that pages are rendered, unless they have become due again meanwhile."""
        now = time.time()
        with self.transaction():
            for page in pages:
                statement = "UPDATE pages SET due = NULL, rendered = ? WHERE kind = ? AND name = ? AND due = ?"
                self._execute(statement, now, page.kind, page.name, page.due)

    def postpone(self, page: DuePage, seconds: float) -> None:
        statement = "UPDATE pages SET due = ? WHERE kind = ? AND name = ?"
        self._execute(statement, time.time() + seconds, page.kind, page.name)

    def mark_all_due(self, since: float) -> None:
        """Have all pages rendered again that were rendered after a moment."""
        statement = "UPDATE pages SET due = ?, urgency = ? WHERE rendered >= ? AND due IS NULL"
        self._execute(statement, time.time(), Urgency.BACKLOG, since)

    def list_build_ids(self, after: str, limit: int) -> list[str]:
        query = "SELECT DISTINCT build_id FROM builds WHERE key > ? ORDER BY key LIMIT ?"
        return [build_id for (build_id,) in self.select(query, f"{after}/" if after else "", limit)]

    def drop_page(self, kind: str, name: str) -> None:
        self._execute("DELETE FROM pages WHERE kind = ? AND name = ?", kind, name)

    # --- looks into the store

    def plan_check(self, build_id: str, at: float) -> None:
        self._execute("INSERT OR REPLACE INTO checks VALUES (?, ?, 0, ?)", build_id, at, time.time())

    def list_checks(self, limit: int) -> list[str]:
        query = "SELECT build_id FROM checks WHERE gone = 0 AND due <= ? ORDER BY due LIMIT ?"
        return [build_id for (build_id,) in self.select(query, time.time(), limit)]

    def hasten_checks(self, build_id: str) -> None:
        """Have the builds around a pruned one looked for soon: whoever prunes removes many at once."""
        for comparison, order in (("<", "DESC"), (">", "ASC")):
            for row in self.find_build_rows("build_id = ? AND key >= ?", build_id, build_id, limit=1):
                around = f"target = ? AND position {comparison} ? ORDER BY position {order} LIMIT ?"
                self._execute(
                    "UPDATE checks SET due = 0 WHERE gone = 0 AND checked < ?"
                    f" AND build_id IN (SELECT build_id FROM builds WHERE {around})",
                    time.time() - _CHECKED_LATELY_SECONDS,
                    row.target,
                    row.position,
                    _NEIGHBOURS,
                )

    def mark_pruned(self, build_id: str) -> None:
        self._execute("UPDATE checks SET gone = 1 WHERE build_id = ?", build_id)

    def is_pruned(self, build_id: str) -> bool:
        return bool(self.select("SELECT 1 FROM checks WHERE build_id = ? AND gone = 1", build_id))

# SPDX-License-Identifier: Apache-2.0
"""What builders came to lately, and who of them is in quarantine: tables in the notifier's file of presences.

The mark in beanstalkd is what holds a builder back; a row here says when it is probed next. Where the file is lost,
marks are found again and their builders probed anew.
"""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import attr

from reimzul.core.errors import ReimzulError
from reimzul.core.message import NOBODY, UPLOAD, BuildEvent, Status
from reimzul.core.sqlite import transaction
from reimzul.notifier.standing import Tried

_SCHEMA = """
CREATE TABLE IF NOT EXISTS tried (
    attempt TEXT NOT NULL, arch TEXT NOT NULL, builder TEXT NOT NULL, package TEXT NOT NULL, fault INTEGER NOT NULL,
    at REAL NOT NULL, PRIMARY KEY (attempt, arch)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS quarantine (
    host TEXT PRIMARY KEY, since REAL NOT NULL, failed INTEGER NOT NULL, next REAL NOT NULL,
    build_id TEXT NOT NULL, job INTEGER NOT NULL, srpm TEXT NOT NULL
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS released (host TEXT PRIMARY KEY, at REAL NOT NULL) WITHOUT ROWID;
"""


class NoConduct(ReimzulError):
    """The file cannot be read or written now."""


@attr.frozen(kw_only=True)
class Ward:
    """A builder in quarantine."""

    host: str
    since: float
    failed: int = 0  #: probes
    next: float  #: when it is probed
    build_id: str = ""  #: of the probe under way
    job: int = 0
    srpm: str = ""  #: in incoming/


class Conduct:
    """The tables. Belongs to the daemon's thread."""

    def __init__(self, path: Path) -> None:
        """Nothing is opened yet."""
        self._path = path
        self._db: sqlite3.Connection | None = None

    def note(self, event: BuildEvent, now: float) -> None:
        """Keep what a builder's try came to, where an event says so. Raises `NoConduct`."""
        fault = fault_of(event)
        if fault is None:
            return
        row = (event.attempt, event.arch, event.builder_fqdn, f"{event.srpm} {event.target} {event.arch}", fault, now)
        with self._open() as db:
            db.execute("INSERT OR IGNORE INTO tried VALUES (?, ?, ?, ?, ?, ?)", row)

    def tried(self, since: float) -> list[Tried]:
        """All tries since a time; of a builder that was released, those since then. Raises `NoConduct`."""
        query = (
            "SELECT builder, package, fault FROM tried LEFT JOIN released ON host = builder "
            "WHERE tried.at >= max(?, ifnull(released.at, 0))"
        )
        with self._open() as db:
            return [Tried(builder=row[0], package=row[1], fault=bool(row[2])) for row in db.execute(query, (since,))]

    def forget(self, before: float) -> None:
        """Drop what is older. Raises `NoConduct`."""
        with self._open() as db:
            db.execute("DELETE FROM tried WHERE at < ?", (before,))
            db.execute("DELETE FROM released WHERE at < ?", (before,))

    def bound(self, now: float, ahead: float) -> None:
        """Bring back to now what lies in the future, since our clock was put back. Raises `NoConduct`.

        Else tries were never forgotten, those after a release not counted, and no probe sent until that time comes.
        `ahead` is how far in the future a probe may be.
        """
        with self._open() as db:
            db.execute("UPDATE tried SET at = :now WHERE at > :now", {"now": now})
            db.execute("UPDATE released SET at = :now WHERE at > :now", {"now": now})
            db.execute("UPDATE quarantine SET next = :now WHERE next > :now + :ahead", {"now": now, "ahead": ahead})

    def wards(self) -> list[Ward]:
        """Who is in quarantine. Raises `NoConduct`."""
        with self._open() as db:
            rows = db.execute("SELECT host, since, failed, next, build_id, job, srpm FROM quarantine ORDER BY host")
            names = [a.name for a in attr.fields(Ward)]
            return [Ward(**dict(zip(names, row))) for row in rows]

    def keep(self, ward: Ward) -> None:
        """Write one down. Raises `NoConduct`."""
        with self._open() as db:
            db.execute("INSERT OR REPLACE INTO quarantine VALUES (?, ?, ?, ?, ?, ?, ?)", attr.astuple(ward))

    def release(self, host: str, now: float) -> None:
        """One is none any more: what it did before is forgotten. Raises `NoConduct`."""
        with self._open() as db, transaction(db):
            db.execute("DELETE FROM quarantine WHERE host = ?", (host,))
            db.execute("INSERT OR REPLACE INTO released VALUES (?, ?)", (host, now))

    def close(self) -> None:
        """Leave."""
        if self._db is not None:
            self._db.close()
            self._db = None

    @contextlib.contextmanager
    def _open(self) -> Iterator[sqlite3.Connection]:
        try:
            if self._db is None:
                self._path.parent.mkdir(parents=True, exist_ok=True)
                self._db = sqlite3.connect(str(self._path), timeout=5, isolation_level=None)
                self._db.execute("PRAGMA synchronous = OFF")
                self._db.execute("PRAGMA journal_mode = WAL")
                self._db.executescript(_SCHEMA)
            yield self._db
        except (OSError, sqlite3.Error) as error:
            self.close()
            raise NoConduct(f"{self._path}: what builders came to cannot be kept: {error}") from error


def fault_of(event: BuildEvent) -> bool | None:
    """Whether an event tells of a builder's fault, or of a try that was none; None where it tells of no try."""
    if not event.attempt or not event.builder_fqdn:
        return None
    if event.status == Status.QUEUED:
        return None if event.reason.startswith((UPLOAD.strip(), NOBODY)) else True
    # a Failed that says that nobody could build it was no try of who says it
    tried = event.status in (Status.SUCCESS, Status.FAILED) and event.exit_code is not None
    return False if tried else None

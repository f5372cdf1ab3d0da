# SPDX-License-Identifier: Apache-2.0
"""What the notifier adds to a result: its cause, and how it differs from the package's previous result.

`PackageResults` keeps, in the outbox's file, the last result of each package on each target and arch, and what each leg
was compared with. A leg is compared once, in the commit that decides its result, so that whatever comes again or comes
later about it gets the same answer. Results of scratch builds are neither kept nor compared.
"""

from __future__ import annotations

import contextlib
import copy
import logging
import sqlite3
import threading
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Optional

import attr

from reimzul.core.errors import ReimzulError
from reimzul.core.failure_cause import cause_fields, cause_of, is_current
from reimzul.core.message import BuildEvent, Event, Status
from reimzul.core.sqlite import open_database, transaction
from reimzul.history import BuildFilter, BuildRecord, NoHistory, open_history
from reimzul.history.build_record import BuildState

log = logging.getLogger(__name__)

SCHEMA = """
CREATE TABLE IF NOT EXISTS last_result (
    package TEXT NOT NULL, target TEXT NOT NULL, arch TEXT NOT NULL, build_id TEXT NOT NULL, evr TEXT NOT NULL,
    good INTEGER NOT NULL, timestamp TEXT NOT NULL, PRIMARY KEY (package, target, arch)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS compared (
    key TEXT PRIMARY KEY, build_id TEXT NOT NULL, evr TEXT NOT NULL, good INTEGER NOT NULL, at REAL NOT NULL
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS seeded (at REAL NOT NULL);
"""
_GOOD = (Status.SUCCESS, Status.PUBLISHED)
_COMPARED = (*_GOOD, Status.FAILED)
_FAILURES = (Status.FAILED, Status.REJECTED)
_UNKNOWN = {"newly_failing": None, "fixed": None, "previous_build": "", "previous_evr": ""}
_UPSERT, _INSERT = (f"INSERT OR {what} INTO last_result VALUES (?, ?, ?, ?, ?, ?, ?)" for what in ("REPLACE", "IGNORE"))


@attr.frozen
class PackageResult:
    build_id: str
    evr: str
    good: bool


class PackageResults:
    """Belongs to the outbox: its methods run in the outbox's transactions. Raises `sqlite3.Error`."""

    def __init__(self, db: sqlite3.Connection) -> None:
        self._db = db

    def annotate(self, event: Event) -> Event:
        """Return an admitted event with its cause, if it is a failure, and compared with the package's last result.

        A cause by this version of the rule stays; what the sender says of the comparison is dropped.
        """
        if not isinstance(event, BuildEvent):
            return event
        fields = self._compare(event)
        if event.status in _FAILURES and not is_current(event):
            fields.update(cause_fields(cause_of(event)))
        if all(getattr(event, name) == value for name, value in fields.items()):
            return event
        # `attr.evolve` would check all fields again, which takes longer than all else here
        annotated = copy.copy(event)
        for name, value in fields.items():
            object.__setattr__(annotated, name, value)
        return annotated

    def _compare(self, event: BuildEvent) -> dict[str, Any]:
        fields: dict[str, Any] = dict(_UNKNOWN)
        if event.status in _COMPARED and not event.scratch and not event.claimed:
            previous = self._find_previous(event)
            if previous is not None:
                change = {"fixed": not previous.good} if event.status in _GOOD else {"newly_failing": previous.good}
                fields.update(change, previous_build=previous.build_id, previous_evr=previous.evr)
        return fields

    def purge(self, before: float) -> None:
        self._db.execute("DELETE FROM compared WHERE at < ?", (before,))

    def _find_previous(self, event: BuildEvent) -> Optional[PackageResult]:
        """Return what the leg is compared with; decided by the leg's first result, and kept."""
        row = self._db.execute("SELECT build_id, evr, good FROM compared WHERE key = ?", (event.key,)).fetchone()
        about = (event.package, event.target, event.arch)
        query = "SELECT build_id, evr, good, timestamp FROM last_result WHERE package = ? AND target = ? AND arch = ?"
        last = self._db.execute(query, about).fetchone()
        is_late = last is not None and last[0] != event.build_id and last[3] > event.timestamp
        values = (event.build_id, event.evr, event.status in _GOOD, event.timestamp)
        if not is_late and values != last:  # `Published` after its `Success` says nothing else
            self._db.execute(_UPSERT, (*about, *values))
        if row is None:
            # before the last result there were others; of a late one nobody knows which came before
            known = last is not None and last[0] != event.build_id and not is_late
            row = last[:3] if known else ("", "", False)
            self._db.execute("INSERT INTO compared VALUES (?, ?, ?, ?, ?)", (event.key, *row, time.time()))
        return PackageResult(row[0], row[1], bool(row[2])) if row[0] else None


# --- from the history


@attr.frozen
class ResultSeed:
    """Fills the table of last results, once, from a history of before it."""

    path: Path  #: of the outbox
    url: str  #: of the history

    def start(self) -> None:
        """Start in a thread with connections of its own: a long history takes seconds. Later starts do nothing."""
        threading.Thread(target=self.run, name="last results", daemon=True).start()

    def run(self) -> None:
        try:
            with contextlib.closing(open_database(self.path, "", synchronous="NORMAL")) as db:
                if db.execute("SELECT 1 FROM seeded").fetchone() is not None:
                    return
                rows = list(_find_last_results(self.url))
                with transaction(db):
                    db.executemany(_INSERT, rows)  # what came meanwhile is newer
                    db.execute("INSERT INTO seeded VALUES (?)", (time.time(),))
        except (OSError, sqlite3.Error, ReimzulError) as error:
            log.warning("the last results of packages are not read from the history today: %s", error)
        else:
            log.info("the last results of %d packages are read from the history", len(rows))


def _find_last_results(url: str) -> Iterable[tuple[Any, ...]]:
    """Yield the row of the newest result of each package, target and arch."""
    newest: dict[tuple[str, str, str], BuildRecord] = {}
    for each in _iterate_results(url):
        about = (each.package, each.target, each.arch)
        if about not in newest or newest[about].timestamp < each.timestamp:
            newest[about] = each
    for about, each in newest.items():
        yield (*about, each.build_id, each.evr, each.status == Status.SUCCESS, each.timestamp)


def _iterate_results(url: str) -> Iterator[BuildRecord]:
    wanted = BuildFilter(states=[BuildState.PUBLISHED, BuildState.BUILT, BuildState.FAILED])
    try:
        with contextlib.closing(open_history(url, reading=True)) as history:
            yield from (each for each in history.iterate_builds(wanted) if each.build_id and not each.scratch)
    except NoHistory:
        return

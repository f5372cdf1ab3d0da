# SPDX-License-Identifier: Apache-2.0
"""The outbox: a SQLite file with every event and, for each sink, whether the sink has it.

The daemon's thread writes an event and a delivery for each sink in one synced commit, and deletes the event's job
after that. Which result of a leg holds is decided in the same commit, once for all sinks, and how it differs from the
package's last result (`package_results.py`). The thread of a sink marks a
delivery as `begun` before it asks the sink, and as `done` when the sink has the event.

If the notifier is killed before the commit, the job comes again. If it is killed between the commit and the deletion
of the job, the event is found by its key and word. If it is killed after `begun`, nobody knows whether the sink has the
event: the delivery is repeated, and its notification is `doubtful`. The log looks at its own end, the history takes an
event twice without harm, and MQTT and mail repeat it under the same id; that is one batch at the most.

Earlier versions kept a table `told` in this file, and put undelivered events back into `notify` with `owed` naming the
sinks. Both are still read, so that nobody is notified twice after an update.
"""

from __future__ import annotations

import contextlib
import logging
import sqlite3
import threading
import time
from collections.abc import Collection, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Callable, cast

import attr

from reimzul.core.errors import InvalidMessage, ReimzulError, RetryLater, translate_errors
from reimzul.core.json_message import encode
from reimzul.core.message import BuildEvent, Event, Status, decode_event
from reimzul.core.pending import CORRUPT_PREFIX, count_pending
from reimzul.core.retry import Backoff
from reimzul.core.sqlite import has_table, is_intact, move_aside, open_database, readable_rows, transaction
from reimzul.history.result_rules import (
    Notification,
    is_claim_news,
    is_news,
    is_result,
    news_kind,
    resulting_status,
    with_implied,
)
from reimzul.notifier.package_results import SCHEMA as PACKAGE_RESULTS_SCHEMA
from reimzul.notifier.package_results import PackageResults

log = logging.getLogger(__name__)

#: Seconds a delivered event is remembered, without its body.
KEEP_SECONDS = 180 * 86400
#: Seconds until an outbox that cannot be written is tried again.
RETRY_SECONDS = 5
#: Seconds until a delivery that failed by itself is tried again: doubled each time, up to this.
LONGEST_PAUSE_SECONDS = 300.0
#: How many deliveries one read returns at the most.
PAGE = 200

_VERSION = 2
_SCHEMA = f"""
CREATE TABLE IF NOT EXISTS event (
    seq INTEGER PRIMARY KEY, key TEXT NOT NULL, word TEXT NOT NULL, body TEXT NOT NULL, at REAL NOT NULL,
    UNIQUE (key, word)
);
CREATE INDEX IF NOT EXISTS event_at ON event (at);
CREATE TABLE IF NOT EXISTS delivery (
    seq INTEGER NOT NULL, sink TEXT NOT NULL, state TEXT NOT NULL, tries INTEGER NOT NULL DEFAULT 0, next_try REAL,
    PRIMARY KEY (seq, sink)
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS delivery_open ON delivery (sink, seq) WHERE state <> 'done';
CREATE TABLE IF NOT EXISTS verdict (key TEXT PRIMARY KEY, status TEXT NOT NULL, at REAL NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS queued (key TEXT PRIMARY KEY, event TEXT NOT NULL, at REAL NOT NULL) WITHOUT ROWID;
PRAGMA user_version = {_VERSION};
"""
#: Whether a sink lacks an event.
_IS_OPEN = "EXISTS (SELECT 1 FROM delivery WHERE delivery.seq = event.seq AND state <> 'done')"
_RESULTS = tuple(status for status in Status.BUILD if is_result(status))

#: SQLite lets one connection write at a time; the others sleep for up to 0.1 s between two attempts. All threads of the
#: notifier write this file, so they wait here instead, and each goes on at once.
write_lock = threading.Lock()


@contextlib.contextmanager
def write_transaction(db: sqlite3.Connection) -> Iterator[sqlite3.Connection]:
    """Commit in one step what is done in the block. Raises `sqlite3.Error`."""
    with write_lock, transaction(db):
        yield db


def translating_errors(path: Path, fault: str = "the outbox cannot be used") -> contextlib.AbstractContextManager[None]:
    return translate_errors(
        {(OSError, sqlite3.Error): lambda error: RetryLater(f"{path}: {fault}: {error}", pause=RETRY_SECONDS)}
    )


@attr.frozen
class _Known:
    """What the file has of the builds of a batch; kept up to date while the batch is added."""

    verdicts: dict[str, str]  #: key -> the result that holds
    seqs: dict[tuple[str, str], int]  #: key and word -> number of the event
    told: dict[tuple[str, str, str], bool]  #: key, word and sink -> whether an earlier version finished telling it


class Outbox:
    """The daemon's side of the file: events arrive, results are decided. Belongs to one thread.

    All methods raise `RetryLater`.
    """

    def __init__(self, path: Path) -> None:
        """Open the file or make it; a damaged one is replaced. Raises `ReimzulError`."""
        self.path = path
        self.damage = ""  #: what happened to a damaged file
        try:
            damaged = None if is_intact(path) else move_aside(path, CORRUPT_PREFIX)
            self._db = open_database(path, "")
            try:
                self._prepare(damaged)
            except BaseException:
                self.close()
                raise
        except (OSError, sqlite3.Error) as error:
            raise ReimzulError(f"{path}: cannot be used as the outbox: {error}") from error

    def _prepare(self, damaged: Path | None) -> None:
        if self._db.execute("PRAGMA user_version").fetchone()[0] > _VERSION:
            raise ReimzulError(f"{self.path}: the schema is newer than version {_VERSION}, which this reimzul knows")
        self._db.executescript(_SCHEMA + PACKAGE_RESULTS_SCHEMA)
        self._results = PackageResults(self._db)
        self._has_told = has_table(self._db, "told")
        if damaged is not None:
            self._salvage(damaged)

    def close(self) -> None:
        self._db.close()

    def accept(
        self, events: Sequence[Event], sinks_for: Callable[[Event], Iterable[str]]
    ) -> dict[str, list[Notification]]:
        """Write events and their deliveries, on the disk when this returns; return the new deliveries, by sink.

        If the file cannot be written no sink may be asked.
        """
        new: dict[str, list[Notification]] = {}
        with translating_errors(self.path), write_transaction(self._db):
            known = self._read_known(list({event.key for event in events}))
            for event in events:
                if self._admit(event, known):
                    for part in with_implied(self._results.annotate(event)):
                        self._add(part, sinks_for(part), known, new)
        return new

    def drop_sinks_except(self, sinks: Collection[str]) -> None:
        with translating_errors(self.path), write_transaction(self._db):
            for pending in count_pending(self._db):
                if pending.sink not in sinks:
                    log.warning("%s is switched off: %d events for it are dropped", pending.sink, pending.count)
                    self._db.execute("DELETE FROM delivery WHERE sink = ? AND state <> 'done'", (pending.sink,))
                    self._db.execute(f"UPDATE event SET body = '' WHERE body <> '' AND NOT {_IS_OPEN}")

    def queued_events(self, build_id: str) -> list[BuildEvent]:
        """Return the last `Queued` of each leg of a build that is not over."""
        rows = self._rows("SELECT event FROM queued WHERE key BETWEEN ? AND ?", *_leg_range(build_id))
        return [BuildEvent.decode(text.encode()) for (text,) in rows]

    def unfinished_arches(self, build_id: str) -> list[str]:
        """Return the arches of a build of which an event came, and no result."""
        which = "WHERE key BETWEEN ? AND ? AND key NOT IN (SELECT key FROM verdict)"
        # of one that has been held for long, the events are purged
        query = f"SELECT key FROM event {which} UNION SELECT key FROM queued {which}"
        return [key.partition(".")[2] for (key,) in self._rows(query, *_leg_range(build_id) * 2)]

    def results_of(self, build_ids: Iterable[str]) -> dict[str, str]:
        """Return the result of a leg of each build, by build id; builds without any result are left out."""
        query = "SELECT status FROM verdict WHERE key BETWEEN ? AND ? LIMIT 1"
        found = {build_id: self._rows(query, *_leg_range(build_id)) for build_id in build_ids}
        return {build_id: rows[0][0] for build_id, rows in found.items() if rows}

    def purge(self, now: float) -> None:
        """Forget what was delivered or decided too long ago to come again; jobs that are held stay known."""
        before = (now - KEEP_SECONDS,)
        with translating_errors(self.path), write_transaction(self._db):
            old = "SELECT seq FROM event WHERE at < ? AND body = ''"
            self._db.execute(f"DELETE FROM delivery WHERE seq IN ({old})", before)
            self._db.execute("DELETE FROM event WHERE at < ? AND body = ''", before)
            self._db.execute("DELETE FROM verdict WHERE at < ?", before)
            self._results.purge(*before)
            queued = self._db.execute("SELECT key, event FROM queued WHERE at < ?", before).fetchall()
            gone = [(key,) for key, text in queued if not BuildEvent.decode(text.encode()).held]
            self._db.executemany("DELETE FROM queued WHERE key = ?", gone)
            if self._has_told:
                self._db.execute("DELETE FROM told WHERE begun < ?", before)

    def _read_known(self, keys: Sequence[str]) -> _Known:
        """Read what the file has of the builds of a batch: a query for each event would take longer than all else."""
        among = f"WHERE key IN ({_marks(keys)})"
        numbers = self._db.execute(f"SELECT key, word, seq FROM event {among}", keys)
        told = self._db.execute(f"SELECT key, word, sink, told FROM told {among}", keys) if self._has_told else ()
        return _Known(
            verdicts=dict(self._db.execute(f"SELECT key, status FROM verdict {among}", keys)),
            seqs={(key, word): seq for key, word, seq in numbers},
            told={(key, word, sink): when is not None for key, word, sink, when in told},
        )

    def _add(self, event: Event, sinks: Iterable[str], known: _Known, new: dict[str, list[Notification]]) -> None:
        """Add an event that is not there yet, or the deliveries that an earlier version still owed."""
        named, event = event.owed, attr.evolve(event, owed={}) if event.owed else event
        name = (event.key, news_kind(event))
        seq = known.seqs.get(name)
        if seq and not named:
            return
        there = self._db.execute("SELECT sink FROM delivery WHERE seq = ?", (seq,)).fetchall() if seq else []
        wanted = [
            sink
            for sink in sinks
            if not known.told.get((*name, sink)) and (not named or sink in named) and (sink,) not in there
        ]
        body = encode(event.to_json()).decode("ascii") if wanted else ""
        if seq is None:
            query = "INSERT INTO event (key, word, body, at) VALUES (?, ?, ?, ?)"
            seq = known.seqs[name] = cast("int", self._db.execute(query, (*name, body, time.time())).lastrowid)
        elif wanted:
            self._db.execute("UPDATE event SET body = ? WHERE seq = ?", (body, seq))
        rows = [(seq, sink, "begun" if (*name, sink) in known.told else "pending") for sink in wanted]
        if rows:
            query = f"INSERT INTO delivery (seq, sink, state) VALUES {', '.join(['(?, ?, ?)'] * len(rows))}"
            self._db.execute(query, [value for row in rows for value in row])
        for _, sink, state in rows:
            new.setdefault(sink, []).append(Notification(event, name[1], state == "begun", seq))

    def _admit(self, event: Event, known: _Known) -> bool:
        """Whether an event is news at all; a result that is decides its leg."""
        if not isinstance(event, BuildEvent) or not is_result(event.status):
            self._keep_job(event)
            return True
        holds = known.verdicts.get(event.key, "")
        if event.claimed:
            log.warning("%s of %s is claimed: bstore has not signed it", event.status, event.key)
            return is_claim_news(holds, event.status)
        if not is_news(holds, event.status):
            log.info("%s of %s by %s is ignored: %s holds", event.status, event.key, event.builder_fqdn, holds)
            return False
        after = resulting_status(holds, event.status)
        if after != holds:
            known.verdicts[event.key] = after
            self._db.execute("INSERT OR REPLACE INTO verdict VALUES (?, ?, ?)", (event.key, after, time.time()))
            self._db.execute("DELETE FROM queued WHERE key = ?", (event.key,))
            outranked = [(event.key, status) for status in _RESULTS if not is_news(after, status)]
            if holds:
                self._withdraw([known.seqs[name] for name in outranked if name in known.seqs])
        return True

    def _withdraw(self, seqs: Sequence[int]) -> None:
        """Forget what is pending of results that hold no more.

        A sink that gets nothing of such a result gets the stronger one: `Published` comes with its `Success`, and what
        is mailed or in MQTT's results is as if the stronger one had come first.
        """
        self._db.executemany("DELETE FROM delivery WHERE seq = ? AND state <> 'done'", [(seq,) for seq in seqs])
        _clear_bodies(self._db, seqs)

    def _keep_job(self, event: Event) -> None:
        """Keep which job a build waits as, for those who have to find the job; the newest event holds."""
        if isinstance(event, BuildEvent) and event.status == Status.QUEUED and event.job and not event.owed:
            row = (event.key, encode(event.to_json()).decode("ascii"), event.at or time.time())
            newer = "ON CONFLICT (key) DO UPDATE SET event = excluded.event, at = excluded.at WHERE excluded.at >= at"
            self._db.execute(f"INSERT INTO queued VALUES (?, ?, ?) {newer}", row)

    def _salvage(self, damaged: Path) -> None:
        """Copy from a damaged file the pending deliveries that can still be read."""
        count = 0
        with write_transaction(self._db):
            for seq, sink, state, key, name, body, at in _readable_deliveries(damaged):
                self._db.execute("INSERT OR IGNORE INTO event VALUES (?, ?, ?, ?, ?)", (seq, key, name, body, at))
                query = "INSERT OR IGNORE INTO delivery VALUES (?, ?, ?, 0, NULL)"
                count += self._db.execute(query, (seq, sink, state)).rowcount
        self.damage = (
            f"the notifier's outbox {self.path} was damaged: it is now {damaged}, and {count} pending deliveries could "
            "be read from it; others are lost, and some events may be delivered twice"
        )
        log.error("%s", self.damage)

    def _rows(self, query: str, *values: object) -> list[tuple[str, ...]]:
        with translating_errors(self.path):
            return self._db.execute(query, values).fetchall()


class SinkDeliveries:
    """A sink's side of the file: what it still lacks, and what it has. Belongs to that sink's thread."""

    def __init__(self, path: Path, sink: str) -> None:
        self._path = path
        self._sink = sink
        self._connection: sqlite3.Connection | None = None
        self._backoff = Backoff(2.0, LONGEST_PAUSE_SECONDS)

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def begin(self, notices: Sequence[Notification]) -> list[Notification]:
        """Mark deliveries as begun; return those the sink still lacks. Raises `RetryLater`: ask nobody then."""
        where = f"WHERE sink = ? AND state <> 'done' AND seq IN ({_marks(notices)})"
        values = [self._sink, *(each.seq for each in notices)]
        with self._writing() as db:
            # a row for each state and not for each event: at each row the threads contend for Python's lock
            rows = db.execute(
                f"SELECT state, group_concat(seq) FROM delivery {where} GROUP BY state", values
            ).fetchall()
            db.execute(f"UPDATE delivery SET state = 'begun' {where} AND state = 'pending'", values)
        states = {int(seq): state for state, seqs in rows for seq in seqs.split(",")}
        return [
            Notification(each.event, each.word, states[each.seq] == "begun", each.seq)
            for each in notices
            if each.seq in states
        ]

    def mark_delivered(self, seqs: Sequence[int]) -> None:
        """Record that the sink has these; a body goes with the last delivery of its event. Raises `RetryLater`."""
        query = f"UPDATE delivery SET state = 'done' WHERE sink = ? AND seq IN ({_marks(seqs)})"
        with self._writing() as db:
            db.execute(query, [self._sink, *seqs])
            _clear_bodies(db, seqs)

    def defer(self, seqs: Sequence[int]) -> float:
        """Put deliveries off, each by a pause of its own; return the shortest. Raises `RetryLater`."""
        query = f"SELECT tries + 1, seq FROM delivery WHERE sink = ? AND seq IN ({_marks(seqs)})"
        with self._writing() as db:
            found = db.execute(query, [self._sink, *seqs]).fetchall()
            pauses = [self._backoff.pause_after(tries) for tries, _ in found]
            rows = [(tries, time.time() + pause, self._sink, seq) for pause, (tries, seq) in zip(pauses, found)]
            db.executemany("UPDATE delivery SET tries = ?, next_try = ? WHERE sink = ? AND seq = ?", rows)
        return min(pauses, default=float("inf"))

    def read_due(self) -> tuple[list[Notification], float]:
        """Return the first page of what the sink lacks, in order, and the seconds until a deferred delivery is due.

        A time that is too far in the future is by a clock that was put back since. Raises `RetryLater`.
        """
        open_rows = "FROM delivery JOIN event USING (seq) WHERE sink = ? AND state <> 'done' AND"
        page = f"SELECT seq, body, word {open_rows} NOT ifnull(next_try, 0) BETWEEN ? AND ? ORDER BY seq LIMIT ?"
        first = f"SELECT min(next_try) {open_rows} next_try BETWEEN ? AND ?"
        now = time.time()
        with translating_errors(self._path):
            rows = self._open().execute(page, (self._sink, now, now + LONGEST_PAUSE_SECONDS, PAGE)).fetchall()
            (due,) = self._open().execute(first, (self._sink, now, now + LONGEST_PAUSE_SECONDS)).fetchone()
        found = [Notification(event, word, seq=seq) for seq, body, word in rows for event in self._decode(seq, body)]
        return found, due - now if due else float("inf")

    def _decode(self, seq: int, body: str) -> list[Event]:
        try:
            return [cast("Event", decode_event(body.encode()))]  # no heartbeat was ever written
        except InvalidMessage as error:
            log.error("an event for %s cannot be read from the outbox and is dropped: %s", self._sink, error)
        self.mark_delivered([seq])
        return []

    def _open(self) -> sqlite3.Connection:
        if self._connection is None:
            # not synced: after a power cut, some events may be delivered again
            self._connection = open_database(self._path, "", synchronous="NORMAL")
        return self._connection

    @contextlib.contextmanager
    def _writing(self) -> Iterator[sqlite3.Connection]:
        with translating_errors(self._path), write_transaction(self._open()) as db:
            yield db


def _marks(values: Collection[object]) -> str:
    """Return the parameters of an SQL list."""
    return ",".join("?" * len(values))


def _clear_bodies(db: sqlite3.Connection, seqs: Sequence[int]) -> None:
    """Empty the bodies of those events that no sink lacks any more."""
    db.execute(f"UPDATE event SET body = '' WHERE seq IN ({_marks(seqs)}) AND NOT {_IS_OPEN}", list(seqs))


def _readable_deliveries(path: Path) -> Iterator[tuple[object, ...]]:
    """Read a damaged file's pending deliveries and their events, as far as SQLite gets."""
    with contextlib.closing(sqlite3.connect(str(path))) as db:
        for seq, *event in readable_rows(db, "event"):
            with contextlib.suppress(sqlite3.Error):
                query = "SELECT sink, state FROM delivery WHERE seq = ? AND +state <> 'done'"
                for sink, state in db.execute(query, (seq,)):
                    yield (seq, sink, state, *event)


def _leg_range(build_id: str) -> tuple[str, str]:
    """Return the bounds of the keys of a build's legs, which are `<build id>.<arch>`."""
    return f"{build_id}.", f"{build_id}/"

# SPDX-License-Identifier: Apache-2.0
"""Who is there: the latest word of each worker of each host, in a SQLite file of the notifier's own.

A worker is a process: its host's name, its instance, and a session of its own. What a host's later processes replace
is left out by `all`, and what beanstalkd has no connection of any more by `connected`. Two that both go on speaking as
one are two hosts of one name (`shared_names`).

It is beside the history and not in it, whatever that is kept in: nothing here is worth a backup, and all of it is
said anew within a minute. The notifier alone writes; any number read, also while it writes.
"""

from __future__ import annotations

import contextlib
import json
import sqlite3
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from urllib.parse import quote

import attr

from reimzul.core.beanstalk import Broker, session_tube
from reimzul.core.clock import measure_skew
from reimzul.core.errors import InvalidMessage, ReimzulError
from reimzul.core.message import WorkerHeartbeat
from reimzul.core.sqlite import transaction

#: Seconds after which a worker that said nothing counts as silent: idle ones speak every 30 s by default.
SILENT_AFTER_SECONDS = 120
#: Seconds a worker is remembered that says nothing any more.
RETENTION_SECONDS = 7 * 86400
#: Seconds by which two moments may come in the wrong order: each is reckoned from an age in whole seconds.
CLOCK_SLACK_SECONDS = 2.0

_SCHEMA = """
DROP TABLE IF EXISTS presence; -- of earlier versions, which knew no sessions
CREATE TABLE IF NOT EXISTS workers (
    host TEXT NOT NULL, instance TEXT NOT NULL, session TEXT NOT NULL, first REAL NOT NULL, heard REAL NOT NULL,
    document TEXT NOT NULL, PRIMARY KEY (host, instance, session)
) WITHOUT ROWID;
"""
_UPSERT = """
INSERT INTO workers VALUES (:host, :instance, :session, :heard, :heard, :document)
ON CONFLICT (host, instance, session) DO UPDATE
SET first = min(first, excluded.first), heard = excluded.heard, document = excluded.document
WHERE excluded.heard >= heard - 1
"""
#: Our clock was put back: who was heard in the future was heard nobody knows when, until the next word.
_PUT_BACK = "UPDATE workers SET heard = :past, first = min(first, :past) WHERE heard > :future"
#: A process that ends often leaves no row for each of its lives.
_REPLACED = "DELETE FROM workers WHERE host = :host AND instance = :instance AND session <> :session AND heard < :old"
_LEFT = "DELETE FROM workers WHERE host = :host AND instance = :instance AND session = :session"


class WorkersUnavailable(ReimzulError):
    """Who is there cannot be read, or written down."""


@attr.frozen(kw_only=True)
class WorkerRecord:
    """A worker's latest word, and when it was heard."""

    heartbeat: WorkerHeartbeat
    last_seen: float  #: by the controller's clock, seconds since 1970: a builder's own may be wrong
    first_seen: float = attr.field()  #: when this process was first heard

    @first_seen.default
    def _first(self) -> float:
        return self.last_seen

    @property
    def skew(self) -> float:
        """Seconds that its clock is ahead of the controller's, negative where behind; 0 where it is right."""
        return measure_skew(self.heartbeat.at, self.last_seen)

    def seconds_since(self, moment: float, now: float) -> float:
        """Seconds since a moment that the worker told of by its own clock: each part is measured by one clock."""
        said = self.heartbeat.at or self.last_seen
        return max(0.0, said - moment) + max(0.0, now - self.last_seen)


class WorkerStore:
    """The file. Belongs to one thread."""

    def __init__(self, path: Path) -> None:
        """Nothing is opened yet: a file that is not there has nobody in it."""
        self._path = path
        self._db: sqlite3.Connection | None = None

    def load_all(self) -> list[WorkerRecord]:
        """The latest word of each that nothing has replaced, by host and instance. Raises `NoPresences`."""
        if not self._path.exists():
            return []
        query = "SELECT first, heard, document FROM workers ORDER BY host, length(instance), instance, first"
        with self._translating_errors(), contextlib.closing(self._to_read()) as db:
            if not db.execute("SELECT 1 FROM sqlite_master WHERE name = 'workers'").fetchone():
                return []
            return drop_replaced([seen for row in db.execute(query) for seen in _parse_row(*row)])

    def save(self, words: Iterable[WorkerRecord]) -> None:
        """Write down what was heard; one heard long before the one that is there is dropped. Raises `NoPresences`."""
        now = time.time()
        with self._translating_errors():
            db = self._to_write()
            with transaction(db):
                db.execute(_PUT_BACK, {"past": now - SILENT_AFTER_SECONDS, "future": now + CLOCK_SLACK_SECONDS})
                for word in words:
                    about = {"host": word.heartbeat.host, "instance": word.heartbeat.instance}
                    row = {**about, "session": word.heartbeat.session, "heard": word.last_seen}
                    if word.heartbeat.leaving:
                        db.execute(_LEFT, row)
                    else:
                        db.execute(_UPSERT, {**row, "document": json.dumps(word.heartbeat.to_json())})
                        db.execute(_REPLACED, {**row, "old": word.last_seen - SILENT_AFTER_SECONDS})

    def purge(self, before: float) -> None:
        """Drop who was last heard before a time. Raises `NoPresences`."""
        with self._translating_errors():
            self._to_write().execute("DELETE FROM workers WHERE heard < ?", (before,))

    def close(self) -> None:
        """Leave."""
        if self._db is not None:
            self._db.close()
            self._db = None

    def _to_write(self) -> sqlite3.Connection:
        if self._db is None:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._db = sqlite3.connect(str(self._path), timeout=5, isolation_level=None)
            # never synced: all of it is said anew within a minute
            for words in ("PRAGMA synchronous = OFF", "PRAGMA journal_mode = WAL"):
                self._db.execute(words)
            self._db.executescript(_SCHEMA)
        return self._db

    def _to_read(self) -> sqlite3.Connection:
        address = f"file:{quote(str(self._path))}?mode=ro"
        if not Path(f"{self._path}-wal").exists():  # nobody has it open, and who may not write there could not read it
            address += "&immutable=1"
        return sqlite3.connect(address, uri=True, timeout=5, isolation_level=None)

    @contextlib.contextmanager
    def _translating_errors(self) -> Iterator[None]:
        """What SQLite says, in our own words; what may be broken is opened anew the next time."""
        try:
            yield
        except (OSError, sqlite3.Error) as error:
            self.close()
            raise WorkersUnavailable(f"{self._path}: who is there cannot be read or written: {error}") from error


def _parse_row(first: float, heard: float, document: str) -> Iterator[WorkerRecord]:
    with contextlib.suppress(InvalidMessage, ValueError):  # of another version's
        yield WorkerRecord(heartbeat=WorkerHeartbeat.from_json(json.loads(document)), last_seen=heard, first_seen=first)


def drop_replaced(words: Iterable[WorkerRecord]) -> list[WorkerRecord]:
    """Without those whose host or process has started again since they were last heard."""
    hosts: dict[str, list[WorkerRecord]] = {}
    for each in words:
        hosts.setdefault(each.heartbeat.host, []).append(each)
    return [each for of_host in hosts.values() for each in of_host if not _is_replaced(each, of_host)]


def _is_replaced(seen: WorkerRecord, of_host: Sequence[WorkerRecord]) -> bool:
    for other in of_host:
        if _are_rivals(seen, other):
            began = _start_time(other, seen, of_host)
            if began > _start_time(seen, other, of_host) and seen.last_seen < began + CLOCK_SLACK_SECONDS:
                return True
    return False


def _are_rivals(one: WorkerRecord, other: WorkerRecord) -> bool:
    """Whether two workers of a host cannot both be there, if there is one host of that name."""
    mine, its = one.heartbeat, other.heartbeat
    if mine.instance == its.instance:
        return mine.session != its.session
    return _boots_differ(one, other)


def _boots_differ(one: WorkerRecord, other: WorkerRecord) -> bool:
    mine, its = one.heartbeat.boot, other.heartbeat.boot
    return bool(mine and its and mine != its)


def _start_time(seen: WorkerRecord, rival: WorkerRecord, of_host: Sequence[WorkerRecord]) -> float:
    """When a worker began, or its host, where the rival is of another start of it."""
    if not _boots_differ(seen, rival):
        return seen.first_seen
    return min(each.first_seen for each in of_host if each.heartbeat.boot == seen.heartbeat.boot)


def shared_names(words: Sequence[WorkerRecord]) -> dict[str, str]:
    """The names that more than one host or process speaks by, of workers that are connected, and what is wrong."""
    found: dict[str, str] = {}
    for one in words:
        for other in words:
            if one.heartbeat.host == other.heartbeat.host and _are_rivals(one, other):
                host, instance = one.heartbeat.host, one.heartbeat.instance
                if _boots_differ(one, other):
                    found[host] = f"more than one host calls itself {host}"
                else:
                    found.setdefault(host, f"more than one process calls itself worker {instance} of {host}")
    return found


def drop_disconnected(broker: Broker, words: Sequence[WorkerRecord]) -> list[WorkerRecord]:
    """Those whose connection to beanstalkd has not ended; of a worker of an earlier version nobody can tell."""
    sessions = {each.heartbeat.session for each in words} - {""}
    ended = {session for session in sessions if not broker.tube_stats(session_tube(session)).watchers}
    return [each for each in words if each.heartbeat.session not in ended]

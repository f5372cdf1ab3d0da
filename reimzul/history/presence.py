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
SILENT = 120
#: Seconds a worker is remembered that says nothing any more.
KEPT = 7 * 86400
#: Seconds by which two moments may come in the wrong order: each is reckoned from an age in whole seconds.
SLACK = 2.0

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


class NoPresences(ReimzulError):
    """Who is there cannot be read, or written down."""


@attr.frozen(kw_only=True)
class Seen:
    """A worker's latest word, and when it was heard."""

    presence: WorkerHeartbeat
    heard: float  #: by the controller's clock, seconds since 1970: a builder's own may be wrong
    first: float = attr.field()  #: when this process was first heard

    @first.default
    def _first(self) -> float:
        return self.heard

    @property
    def skew(self) -> float:
        """Seconds that its clock is ahead of the controller's, negative where behind; 0 where it is right."""
        return measure_skew(self.presence.at, self.heard)

    def since(self, moment: float, now: float) -> float:
        """Seconds since a moment that the worker told of by its own clock: each part is measured by one clock."""
        said = self.presence.at or self.heard
        return max(0.0, said - moment) + max(0.0, now - self.heard)


class Presences:
    """The file. Belongs to one thread."""

    def __init__(self, path: Path) -> None:
        """Nothing is opened yet: a file that is not there has nobody in it."""
        self._path = path
        self._db: sqlite3.Connection | None = None

    def all(self) -> list[Seen]:
        """The latest word of each that nothing has replaced, by host and instance. Raises `NoPresences`."""
        if not self._path.exists():
            return []
        query = "SELECT first, heard, document FROM workers ORDER BY host, length(instance), instance, first"
        with self._words(), contextlib.closing(self._to_read()) as db:
            if not db.execute("SELECT 1 FROM sqlite_master WHERE name = 'workers'").fetchone():
                return []
            return unreplaced([seen for row in db.execute(query) for seen in _seen(*row)])

    def keep(self, words: Iterable[Seen]) -> None:
        """Write down what was heard; one heard long before the one that is there is dropped. Raises `NoPresences`."""
        now = time.time()
        with self._words():
            db = self._to_write()
            with transaction(db):
                db.execute(_PUT_BACK, {"past": now - SILENT, "future": now + SLACK})
                for word in words:
                    about = {"host": word.presence.host, "instance": word.presence.instance}
                    row = {**about, "session": word.presence.session, "heard": word.heard}
                    if word.presence.leaving:
                        db.execute(_LEFT, row)
                    else:
                        db.execute(_UPSERT, {**row, "document": json.dumps(word.presence.to_json())})
                        db.execute(_REPLACED, {**row, "old": word.heard - SILENT})

    def forget(self, before: float) -> None:
        """Drop who was last heard before a time. Raises `NoPresences`."""
        with self._words():
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
    def _words(self) -> Iterator[None]:
        """What SQLite says, in our own words; what may be broken is opened anew the next time."""
        try:
            yield
        except (OSError, sqlite3.Error) as error:
            self.close()
            raise NoPresences(f"{self._path}: who is there cannot be read or written: {error}") from error


def _seen(first: float, heard: float, document: str) -> Iterator[Seen]:
    with contextlib.suppress(InvalidMessage, ValueError):  # of another version's
        yield Seen(presence=WorkerHeartbeat.from_json(json.loads(document)), heard=heard, first=first)


def unreplaced(words: Iterable[Seen]) -> list[Seen]:
    """Without those whose host or process has started again since they were last heard."""
    hosts: dict[str, list[Seen]] = {}
    for each in words:
        hosts.setdefault(each.presence.host, []).append(each)
    return [each for of_host in hosts.values() for each in of_host if not _is_replaced(each, of_host)]


def _is_replaced(seen: Seen, of_host: Sequence[Seen]) -> bool:
    for other in of_host:
        if _are_rivals(seen, other):
            began = _began(other, seen, of_host)
            if began > _began(seen, other, of_host) and seen.heard < began + SLACK:
                return True
    return False


def _are_rivals(one: Seen, other: Seen) -> bool:
    """Whether two workers of a host cannot both be there, if there is one host of that name."""
    mine, its = one.presence, other.presence
    if mine.instance == its.instance:
        return mine.session != its.session
    return _boots_differ(one, other)


def _boots_differ(one: Seen, other: Seen) -> bool:
    mine, its = one.presence.boot, other.presence.boot
    return bool(mine and its and mine != its)


def _began(seen: Seen, rival: Seen, of_host: Sequence[Seen]) -> float:
    """When a worker began, or its host, where the rival is of another start of it."""
    if not _boots_differ(seen, rival):
        return seen.first
    return min(each.first for each in of_host if each.presence.boot == seen.presence.boot)


def shared_names(words: Sequence[Seen]) -> dict[str, str]:
    """The names that more than one host or process speaks by, of workers that are connected, and what is wrong."""
    found: dict[str, str] = {}
    for one in words:
        for other in words:
            if one.presence.host == other.presence.host and _are_rivals(one, other):
                host, instance = one.presence.host, one.presence.instance
                if _boots_differ(one, other):
                    found[host] = f"more than one host calls itself {host}"
                else:
                    found.setdefault(host, f"more than one process calls itself worker {instance} of {host}")
    return found


def connected(broker: Broker, words: Sequence[Seen]) -> list[Seen]:
    """Those whose connection to beanstalkd has not ended; of a worker of an earlier version nobody can tell."""
    sessions = {each.presence.session for each in words} - {""}
    ended = {session for session in sessions if not broker.tube_stats(session_tube(session)).watchers}
    return [each for each in words if each.presence.session not in ended]

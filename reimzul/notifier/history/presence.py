# SPDX-License-Identifier: Apache-2.0
"""Who is there: the latest word of each worker of each host, in a SQLite file of the notifier's own.

It is beside the history and not in it, whatever that is kept in: nothing here is worth a backup, and all of it is
said anew within a minute. The notifier alone writes; any number read, also while it writes.
"""

from __future__ import annotations

import contextlib
import json
import sqlite3
from collections.abc import Iterable, Iterator
from pathlib import Path
from urllib.parse import quote

import attr

from reimzul.core.errors import MessageError, ReimzulError
from reimzul.core.message import Presence
from reimzul.notifier.transaction import transaction

#: Seconds after which a worker that said nothing counts as silent: idle ones speak every 30 s by default.
SILENT = 120
#: Seconds a worker is remembered that says nothing any more.
KEPT = 7 * 86400

_SCHEMA = """
CREATE TABLE IF NOT EXISTS presence (
    host TEXT NOT NULL, instance TEXT NOT NULL, heard REAL NOT NULL, document TEXT NOT NULL,
    PRIMARY KEY (host, instance)
) WITHOUT ROWID;
"""


class NoPresences(ReimzulError):
    """Who is there cannot be read, or written down."""


@attr.frozen(kw_only=True)
class Seen:
    """A worker's latest word, and when it was heard."""

    presence: Presence
    heard: float  #: by the controller's clock, seconds since 1970: a builder's own may be wrong


class Presences:
    """The file. Belongs to one thread."""

    def __init__(self, path: Path) -> None:
        """Nothing is opened yet: a file that is not there has nobody in it."""
        self._path = path
        self._db: sqlite3.Connection | None = None

    def all(self) -> list[Seen]:
        """The latest word of each, by host and instance. Raises `NoPresences`."""
        if not self._path.exists():
            return []
        query = "SELECT heard, document FROM presence ORDER BY host, length(instance), instance"
        with self._words(), contextlib.closing(self._to_read()) as db:
            if not db.execute("SELECT 1 FROM sqlite_master WHERE name = 'presence'").fetchone():
                return []
            return [seen for row in db.execute(query) for seen in _seen(*row)]

    def keep(self, words: Iterable[Seen]) -> None:
        """Write down what was heard; one heard long before the one that is there is dropped. Raises `NoPresences`."""
        rows = [(w.presence.host, w.presence.instance, w.heard, json.dumps(w.presence.wire())) for w in words]
        upsert = (
            "INSERT INTO presence VALUES (?, ?, ?, ?) ON CONFLICT (host, instance) DO UPDATE "
            # when it was heard is reckoned from an age in whole seconds
            "SET heard = excluded.heard, document = excluded.document WHERE excluded.heard >= heard - 1"
        )
        with self._words():
            db = self._to_write()
            with transaction(db):
                db.executemany(upsert, rows)

    def forget(self, before: float) -> None:
        """Drop who was last heard before a time. Raises `NoPresences`."""
        with self._words():
            self._to_write().execute("DELETE FROM presence WHERE heard < ?", (before,))

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


def _seen(heard: float, document: str) -> Iterator[Seen]:
    with contextlib.suppress(MessageError, ValueError):  # of another version's
        yield Seen(presence=Presence.from_wire(json.loads(document)), heard=heard)

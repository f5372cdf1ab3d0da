# SPDX-License-Identifier: Apache-2.0
"""The latest heartbeat of each worker, repogen and tosign, in a SQLite file that the notifier writes.

Each is a process, identified by host, instance and session. `load_all` leaves out processes that a later one of
their host has replaced, and `split_vanished` finds those whose connection to beanstalkd has ended without notice: they
are remembered until they come back, a person forgets them, or `RETENTION_SECONDS` have passed. If two go on sending
heartbeats under the same name, two hosts share that name (`shared_names`).

The file is separate from the history, whatever database that is in: it needs no backup, since all heartbeats are
repeated within a minute.

Workers of 0.1 bury requests with submitters' names that they do not accept: `all_accept_any_name` finds whether any
are left.

Heartbeats are not signed: whoever has a builder's key can send any. Nothing is decided by them.
"""

from __future__ import annotations

import contextlib
import json
import logging
import re
import sqlite3
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, ClassVar, Optional

import attr

from reimzul.core import validators
from reimzul.core.beanstalk import Broker, heartbeat_tube, is_heartbeat_tube, session_tube
from reimzul.core.clock import measure_skew
from reimzul.core.errors import InvalidMessage, ReimzulError, translate_errors
from reimzul.core.formatting import format_duration, format_size, pluralize
from reimzul.core.message import RecentError, Role, WorkerHeartbeat, WorkerState
from reimzul.core.sqlite import has_table, open_database, open_read_only, transaction
from reimzul.core.targets import TargetList

log = logging.getLogger(__name__)

#: Seconds without a heartbeat after which a worker counts as silent; idle workers send one every 30 s by default.
SILENT_AFTER_SECONDS = 120
#: Seconds that a worker without heartbeats is remembered.
RETENTION_SECONDS = 7 * 86400
#: Seconds by which two times may be in the wrong order: each is computed from an age in whole seconds.
CLOCK_SLACK_SECONDS = 2.0
#: Keys of a heartbeat that are not printed in JSON, or under another name.
_NOT_PRINTED = (
    "extra", "status", "leaving", "host", "why", "free_mib", "targets", "targets_left_out", "targets_fingerprint",
)  # fmt: skip
#: Seconds that a heartbeat may be late: beanstalkd counts ages in whole seconds, and a busy process sends later.
_HEARTBEAT_SLACK_SECONDS = 10
#: The states of a process that sends no heartbeats, that has vanished, and of a repogen or tosign that handles jobs,
#: beside the states of `WorkerState`.
SILENT, VANISHED, BUSY = "silent", "gone", "busy"

_SCHEMA = """
DROP TABLE IF EXISTS presence; -- of earlier versions, which knew no sessions
CREATE TABLE IF NOT EXISTS workers (
    host TEXT NOT NULL, instance TEXT NOT NULL, session TEXT NOT NULL, first REAL NOT NULL, heard REAL NOT NULL,
    document TEXT NOT NULL, PRIMARY KEY (host, instance, session)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS target_lists (
    fingerprint TEXT PRIMARY KEY, heard REAL NOT NULL, document TEXT NOT NULL
) WITHOUT ROWID;
"""
#: A heartbeat's list of targets is stored once for all workers that report the same one.
_SAVE_TARGETS = "INSERT OR REPLACE INTO target_lists VALUES (?, ?, ?)"
_UPSERT = """
INSERT INTO workers VALUES (:host, :instance, :session, :heard, :heard, :document)
ON CONFLICT (host, instance, session) DO UPDATE
SET first = min(first, excluded.first), heard = excluded.heard, document = excluded.document
WHERE excluded.heard >= heard - 1
"""
#: Our clock was set back: heartbeats from the future were received at an unknown time, until the next ones come.
_AFTER_CLOCK_CHANGE = "UPDATE workers SET heard = :past, first = min(first, :past) WHERE heard > :future"
#: A process that restarts often leaves one row only.
_DELETE_REPLACED = """
DELETE FROM workers WHERE host = :host AND instance = :instance AND session <> :session AND heard < :old
"""
_DELETE_LEAVING = "DELETE FROM workers WHERE host = :host AND instance = :instance AND session = :session"


class WorkersUnavailable(ReimzulError):
    """The workers' heartbeats cannot be read, or written."""


@attr.frozen(kw_only=True)
class WorkerRecord:
    heartbeat: WorkerHeartbeat
    last_seen: float  #: when it came, by the controller's clock: the builder's may be wrong
    #: when the first heartbeat of this process came
    first_seen: float = attr.field(default=attr.Factory(lambda record: record.last_seen, takes_self=True))
    targets: Optional[TargetList] = None  #: what it has mock configurations for; None: it has not reported them

    @property
    def skew(self) -> float:
        """Seconds that its clock is ahead of the controller's, negative if behind; 0 if it is right."""
        return measure_skew(self.heartbeat.at, self.last_seen)

    def seconds_since(self, moment: float, now: float) -> float:
        """Return the seconds since a time by the worker's clock; each part of the span is measured by one clock."""
        sent = self.heartbeat.at or self.last_seen
        return max(0.0, sent - moment) + max(0.0, now - self.last_seen)

    def is_silent(self, now: float) -> bool:
        """Whether no heartbeat has come for too long. One from the future is as old: the clock was set back."""
        return abs(now - self.last_seen) > SILENT_AFTER_SECONDS

    def is_overdue(self, now: float) -> bool:
        """Whether its next heartbeat should have come by now: its host may be dead although its connection stands."""
        interval = self.heartbeat.interval
        return self.is_silent(now) or bool(interval and now - self.last_seen > interval + _HEARTBEAT_SLACK_SECONDS)

    @property
    def is_worker(self) -> bool:
        return self.heartbeat.role == Role.WORKER

    @property
    def role(self) -> str:
        """The name of its program, as `reimzul-worker` without the prefix."""
        return self.heartbeat.role or "worker"

    def state_at(self, now: float) -> str:
        """Return its state of `WorkerState`, `silent`, or `busy`."""
        if self.is_silent(now):
            return SILENT
        return self.heartbeat.state if self.is_worker or self.heartbeat.state == WorkerState.IDLE else BUSY

    def to_output(self, now: float) -> dict[str, Any]:
        """Return the worker as commands print it in JSON."""
        values = attr.asdict(self.heartbeat, filter=lambda field, _: field.name not in _NOT_PRINTED)
        return {
            **values,
            "builder": self.heartbeat.host,
            "role": self.role,
            "state": self.state_at(now),
            "reason": self.heartbeat.why,
            "free_bytes": self.heartbeat.free_mib * 1024**2,
            "heard": self.last_seen,
            "skew": self.skew,
        }


class NotifierFile:
    """The notifier's file of heartbeats, which also holds its quarantine. An instance belongs to one thread.

    It is opened for writing when that is first needed. Every method raises `WorkersUnavailable`.
    """

    schema: ClassVar[str]
    fault: ClassVar[str]  #: what an error says

    def __init__(self, path: Path) -> None:
        """Open nothing yet: a missing file has no workers."""
        self._path = path
        self._db: sqlite3.Connection | None = None

    @contextlib.contextmanager
    def _open(self) -> Iterator[sqlite3.Connection]:
        with self._translating_errors():
            if self._db is None:  # a power cut may lose the last commits: heartbeats are repeated within a minute
                self._db = open_database(self._path, self.schema, synchronous="OFF")
            yield self._db

    def _translating_errors(self) -> AbstractContextManager[None]:
        return translate_errors({(OSError, sqlite3.Error): self._fail})

    def _fail(self, error: Exception) -> WorkersUnavailable:
        self.close()  # the file may be damaged: open it again next time
        return WorkersUnavailable(f"{self._path}: {self.fault}: {error}")

    def close(self) -> None:
        if self._db is not None:
            self._db.close()
            self._db = None


class WorkerStore(NotifierFile):
    schema = _SCHEMA
    fault = "the workers' heartbeats cannot be read or written"

    def load_workers(self) -> list[WorkerRecord]:
        return [each for each in self.load_all() if each.is_worker]

    def load_all(self) -> list[WorkerRecord]:
        """Return the processes that no later one has replaced, by host and instance."""
        with self._translating_errors():  # a folder that this user may not look into
            if not self._path.exists():
                return []
        query = "SELECT first, heard, document FROM workers ORDER BY host, length(instance), instance, first"
        with self._translating_errors(), contextlib.closing(open_read_only(self._path)) as db:
            if not has_table(db, "workers"):
                return []
            lists = _load_target_lists(db)
            return drop_replaced([record for row in db.execute(query) for record in _parse_row(lists, *row)])

    def save(self, records: Iterable[WorkerRecord]) -> None:
        """Store heartbeats; one that is much older than the stored one is dropped."""
        now = time.time()
        with self._open() as db, transaction(db):
            db.execute(_AFTER_CLOCK_CHANGE, {"past": now - SILENT_AFTER_SECONDS, "future": now + CLOCK_SLACK_SECONDS})
            for record in records:
                sent = record.heartbeat
                row = {
                    "host": sent.host, "instance": sent.instance, "session": sent.session,
                    "heard": record.last_seen, "old": record.last_seen - SILENT_AFTER_SECONDS,
                    "document": json.dumps(_drop_targets(sent.to_json())),
                }  # fmt: skip
                _save_targets(db, record)
                if sent.leaving:
                    _delete_replaced(db, sent.host)  # else they would count as vanished after it
                for statement in (_DELETE_LEAVING,) if sent.leaving else (_UPSERT, _DELETE_REPLACED):
                    db.execute(statement, row)

    def purge(self, before: float) -> None:
        with self._open() as db:
            for table in ("workers", "target_lists"):
                db.execute(f"DELETE FROM {table} WHERE heard < ?", (before,))


def _delete_replaced(db: sqlite3.Connection, host: str) -> None:
    """Delete the processes of a host that a later one has replaced."""
    query = "SELECT first, heard, document FROM workers WHERE host = ?"
    records = [record for row in db.execute(query, (host,)).fetchall() for record in _parse_row({}, *row)]
    kept = drop_replaced(records)
    for each in records:
        if each not in kept:
            key = {"host": host, "instance": each.heartbeat.instance, "session": each.heartbeat.session}
            db.execute(_DELETE_LEAVING, key)


def _parse_row(lists: Mapping[str, TargetList], first: float, heard: float, document: str) -> Iterator[WorkerRecord]:
    with contextlib.suppress(InvalidMessage, ValueError):  # another version wrote it
        sent = WorkerHeartbeat.from_json(json.loads(document))
        yield WorkerRecord(
            heartbeat=sent, last_seen=heard, first_seen=first, targets=lists.get(sent.targets_fingerprint)
        )


def _drop_targets(document: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in document.items() if name not in ("targets", "targets_left_out")}


def _save_targets(db: sqlite3.Connection, record: WorkerRecord) -> None:
    """Store a heartbeat's list of targets, unless it is not the list that its fingerprint stands for."""
    sent = record.heartbeat
    if TargetList(sent.targets, sent.targets_left_out).fingerprint == sent.targets_fingerprint:
        document = json.dumps([sent.targets_left_out, *sent.targets])
        db.execute(_SAVE_TARGETS, (sent.targets_fingerprint, record.last_seen, document))


def _load_target_lists(db: sqlite3.Connection) -> dict[str, TargetList]:
    if not has_table(db, "target_lists"):  # an earlier version's file
        return {}
    found: dict[str, TargetList] = {}
    for fingerprint, document in db.execute("SELECT fingerprint, document FROM target_lists"):
        with contextlib.suppress(ValueError):
            left_out, *names = json.loads(document)
            found[fingerprint] = TargetList(tuple(names), left_out)
    return found


def drop_replaced(records: Iterable[WorkerRecord]) -> list[WorkerRecord]:
    """Return the workers whose process or host has not been restarted since their last heartbeat."""
    hosts: dict[str, list[WorkerRecord]] = {}
    for each in records:
        hosts.setdefault(each.heartbeat.host, []).append(each)
    return [each for of_host in hosts.values() for each in of_host if not _is_replaced(each, of_host)]


def _is_replaced(record: WorkerRecord, of_host: Sequence[WorkerRecord]) -> bool:
    for other in of_host:
        if _are_rivals(record, other):
            start = _start_time(other, record, of_host)
            if start > _start_time(record, other, of_host) and record.last_seen < start + CLOCK_SLACK_SECONDS:
                return True
    return False


def _are_rivals(one: WorkerRecord, other: WorkerRecord) -> bool:
    """Whether two workers of one host name cannot both run, if only one host has that name."""
    if one.heartbeat.instance == other.heartbeat.instance:
        return one.heartbeat.session != other.heartbeat.session
    return _boots_differ(one, other)


def _boots_differ(one: WorkerRecord, other: WorkerRecord) -> bool:
    return bool(one.heartbeat.boot and other.heartbeat.boot and one.heartbeat.boot != other.heartbeat.boot)


def _start_time(record: WorkerRecord, rival: WorkerRecord, of_host: Sequence[WorkerRecord]) -> float:
    """Return when a worker started; when its host did, if the rival is of another boot."""
    if not _boots_differ(record, rival):
        return record.first_seen
    return min(each.first_seen for each in of_host if each.heartbeat.boot == record.heartbeat.boot)


def list_live(records: Iterable[WorkerRecord]) -> list[WorkerRecord]:
    """Return the workers that have sent a heartbeat within the last two minutes."""
    now = time.time()
    return [each for each in records if not each.is_silent(now)]


def map_targets(records: Iterable[WorkerRecord]) -> dict[str, set[str]]:
    """Return the hosts whose workers have a mock configuration, by target."""
    found: dict[str, set[str]] = {}
    for each in records:
        for target in each.targets.names if each.targets else ():
            found.setdefault(target, set()).add(each.heartbeat.host)
    return found


def shared_names(records: Sequence[WorkerRecord]) -> dict[str, str]:
    """Return the host names that several hosts or processes use, and what is wrong; all workers are connected."""
    found: dict[str, str] = {}
    for one in records:
        for other in records:
            if one.heartbeat.host == other.heartbeat.host and _are_rivals(one, other):
                host, instance = one.heartbeat.host, one.heartbeat.instance
                if _boots_differ(one, other):
                    found[host] = f"more than one host calls itself {host}"
                else:
                    name = f"worker {instance}" if one.is_worker else instance
                    found.setdefault(host, f"more than one process calls itself {name} of {host}")
    return found


def drop_disconnected(broker: Broker, records: Sequence[WorkerRecord]) -> list[WorkerRecord]:
    """Return the processes that are connected to beanstalkd."""
    return split_vanished(broker, records)[0]


def split_vanished(broker: Broker, records: Sequence[WorkerRecord]) -> tuple[list[WorkerRecord], list[WorkerRecord]]:
    """Return the processes that are connected to beanstalkd, and those whose connection has ended.

    Of version 0.1's workers this is unknown, and they count as connected.
    """
    sessions = {each.heartbeat.session for each in records} - {""}
    ended = {session for session in sessions if not broker.tube_stats(session_tube(session)).watchers}
    connected = [each for each in records if each.heartbeat.session not in ended]
    return connected, [each for each in records if each.heartbeat.session in ended]


def submitter_for_workers(broker: Broker, name: str, heartbeats: Path) -> str:
    """The submitter's name, restricted to the characters of version 0.1 while a worker may refuse others.

    Only an unusual name needs a look at the workers, in the notifier's file of heartbeats.
    """
    if is_plain(name):
        return name
    try:
        workers = [each.heartbeat for each in drop_disconnected(broker, WorkerStore(heartbeats).load_workers())]
        if all_accept_any_name(broker, workers):
            return name
        reason = "a worker is older than 0.2, or sends no heartbeats"
    except ReimzulError as error:
        reason = f"the workers' versions are unknown: {error}"
    plain = validators.restrict_submitter(name)
    log.warning("submitted as %s, not as %s: %s", plain, name, reason)
    return plain


def is_plain(name: str) -> bool:
    """Whether every version accepts a name unchanged."""
    return validators.restrict_submitter(name) == name


def all_accept_any_name(broker: Broker, workers: Sequence[WorkerHeartbeat]) -> bool:
    """Whether every known or connected worker is of version 0.2 or later."""
    spoke = {heartbeat_tube(each.host) for each in workers}
    silent = (tube for tube in broker.list_tubes() if is_heartbeat_tube(tube) and tube not in spoke)
    return all(map(_accepts_any_name, workers)) and not any(broker.tube_stats(tube).watchers for tube in silent)


def _accepts_any_name(worker: WorkerHeartbeat) -> bool:
    numbers = re.match(r"(\d+)\.(\d+)", worker.version)
    return bool(numbers and (int(numbers[1]), int(numbers[2])) >= (0, 2))


# --- health

#: MiB and inodes: a disk of the controller or bstore with less is full, or nearly full.
FULL, LOW = (200, 1_000), (2_048, 20_000)


@attr.frozen(kw_only=True)
class Processes:
    """All processes that have sent heartbeats: those that are connected, and those that vanished."""

    connected: list[WorkerRecord] = attr.field(factory=list)
    vanished: list[WorkerRecord] = attr.field(factory=list)

    @classmethod
    def find(cls, broker: Broker, known: list[WorkerRecord]) -> Processes:
        connected, vanished = split_vanished(broker, known)
        return cls(connected=connected, vanished=vanished)

    @property
    def workers(self) -> list[WorkerRecord]:
        return [each for each in self.connected if each.is_worker]

    @property
    def services(self) -> list[WorkerRecord]:
        """The repogens and tosigns that are connected."""
        return [each for each in self.connected if not each.is_worker]


def describe_error(record: WorkerRecord, error: RecentError, now: float) -> str:
    """Describe what fails: `upload failed 5 times in a row, for 4 min 10 s: rsync …`."""
    span = format_duration(record.seconds_since(error.since, now))
    times = f"{error.count} times in a row, for {span}" if error.count > 1 else f"{span} ago"
    return f"{error.what} failed {times}: {error.message}"


def find_leg_errors(
    records: Iterable[WorkerRecord], build_id: str, arch: str, target: str
) -> list[tuple[WorkerRecord, RecentError]]:
    """Return the errors that hold up a leg: its own, and those of its target."""
    return [
        (record, error)
        for record in records
        for error in record.heartbeat.errors
        if (error.build_id, error.arch) == (build_id, arch) or (not error.build_id and error.target == target)
    ]


def describe_short_disk(record: WorkerRecord, limits: tuple[int, int]) -> str:
    """Return how little space a host of repogen or tosign has, if it is below the limits; else nothing."""
    mib, inodes = record.heartbeat.free_mib, record.heartbeat.free_inodes
    if mib < limits[0]:
        return f"its disk has {format_size(mib * 1024**2)} free"
    # 0 is sent for a file system that does not count them
    return f"its disk has {pluralize(inodes, 'inode')} free" if 0 < inodes < limits[1] else ""

# SPDX-License-Identifier: Apache-2.0
"""Quarantine: a builder that fails one package after the other takes no more jobs, is probed, and released.

A builder is held back after so many faults of its own in a row, on different packages, of which other builders of the
arch have built at least half meanwhile: a package that nobody can build is evidence against nobody. The last builder of
an arch is never held back: one that fails now and then is better than none.

The builder's drain flag in beanstalkd holds it back, and lets one thing through: a canary, put into a tube that this
builder alone watches. A canary that is built clears the flag; one that fails is followed by another, after a pause that
doubles. The tables here, in the notifier's file of heartbeats, hold the attempts and when each builder is probed next.
If the file is lost, the flags are found, and their builders are probed from the beginning.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Callable, Optional

import attr

from reimzul.core import canary, control, validators
from reimzul.core.arch import Arches
from reimzul.core.beanstalk import PRIORITY_NOW, Broker, arch_tube, builder_of_drain_tube, canary_tube, drain_tube
from reimzul.core.control import QUARANTINED, ControlFlag
from reimzul.core.errors import ReimzulError, RetryLater
from reimzul.core.manifest import sha256_of
from reimzul.core.message import (
    NOBODY,
    UPLOAD,
    BuilderEvent,
    BuildEvent,
    BuildRequest,
    Status,
    WorkerState,
    event_for,
    new_build_id,
)
from reimzul.core.retry import LogThrottle
from reimzul.core.sqlite import transaction
from reimzul.history.workers import NotifierFile, WorkerRecord, WorkerStore, WorkersUnavailable, drop_disconnected

log = logging.getLogger(__name__)

#: Seconds between two rounds, and between two log lines about what keeps the rounds from their work.
ROUND_SECONDS, LOG_AGAIN_SECONDS = 15.0, 600.0
#: Seconds after which a canary counts as lost whose job is gone without a result, and the longest pause between two.
LOST_SECONDS, LONGEST_PAUSE_SECONDS = 1800, 86400
#: Seconds an attempt is remembered.
KEEP_SECONDS = 2 * 86400
_BY = "reimzul-notifier"

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


# --- judging --------------------------------------------------------------------------------------------------------


@attr.frozen(kw_only=True)
class AttemptRecord:
    builder: str
    package: str  #: with its target and arch
    fault: bool  #: it failed, and that was the builder's fault
    at: float


def is_fault(event: BuildEvent) -> bool | None:
    """Whether an event reports a builder's fault, or an attempt without one; None if it reports no attempt's end."""
    if not event.attempt or not event.builder_fqdn:
        return None
    if event.status == Status.QUEUED:
        return None if event.missing or event.reason.startswith((UPLOAD.strip(), NOBODY)) else True
    # a Failed without an exit code was decided by the builder that found the request's attempts used up: no attempt
    ended = event.status in (Status.SUCCESS, Status.FAILED) and event.exit_code is not None
    return False if ended else None


def find_fault_series(records: Sequence[AttemptRecord], builder: str, faults: int) -> str:
    """Describe why a builder is to be held back; "" if it is not. `records` are of all builders, oldest first."""
    series: dict[str, float] = {}  # package with its target and arch -> when it failed first
    for record in records:
        if record.builder == builder:
            if record.fault:
                series.setdefault(record.package, record.at)
            else:
                series.clear()
    began = min(series.values(), default=0.0)
    others = {each.package for each in records if each.builder != builder and not each.fault and each.at >= began}
    # the legs of one source are one package
    failed, built = ({package.partition(" ")[0] for package in each} for each in (series, series.keys() & others))
    if len(failed) < faults or 2 * len(built) < len(failed):
        return ""
    return f"{len(failed)} packages in a row failed by its own fault; others have built {len(built)} of them meanwhile"


@attr.frozen
class QuarantinedBuilder:
    host: str
    since: float
    next: float  #: when it is probed
    failed: int = 0  #: canaries
    build_id: str = ""  #: of the canary under way
    job: int = 0
    srpm: str = ""  #: in incoming/


#: The columns of a `QuarantinedBuilder`, in its order.
_COLUMNS = "host, since, next, failed, build_id, job, srpm"


class QuarantineTables(NotifierFile):
    """The attempts of builders, and the builders in quarantine."""

    schema = _SCHEMA
    fault = "builders' attempts cannot be recorded"

    def add_attempt(self, event: BuildEvent, now: float) -> None:
        """Record how a builder's attempt ended, if an event says so."""
        fault, package = is_fault(event), f"{event.srpm} {event.target} {event.arch}"
        if fault is not None:
            row = (event.attempt, event.arch, event.builder_fqdn, package, fault, now)
            with self._open() as db:
                db.execute("INSERT OR IGNORE INTO tried VALUES (?, ?, ?, ?, ?, ?)", row)

    def attempts(self) -> list[AttemptRecord]:
        """Return all attempts, oldest first; those before the release of their builder are left out."""
        query = (
            "SELECT builder, package, fault, tried.at FROM tried LEFT JOIN released ON host = builder "
            "WHERE tried.at >= ifnull(released.at, 0) ORDER BY tried.at, attempt"
        )
        with self._open() as db:
            return [
                AttemptRecord(builder=builder, package=package, fault=bool(fault), at=at)
                for builder, package, fault, at in db.execute(query)
            ]

    def purge(self, before: float) -> None:
        with self._open() as db:
            db.execute("DELETE FROM tried WHERE at < ?", (before,))
            db.execute("DELETE FROM released WHERE at < ?", (before,))

    def limit_times(self, now: float, ahead: float) -> None:
        """Set times in the future to now, since our clock was put back; a probe may be `ahead` seconds in the future.

        Without this, attempts would never be dropped, those after a release not count, and no canary be sent until
        that time.
        """
        with self._open() as db:
            db.execute("UPDATE tried SET at = :now WHERE at > :now", {"now": now})
            db.execute("UPDATE released SET at = :now WHERE at > :now", {"now": now})
            db.execute("UPDATE quarantine SET next = :now WHERE next > :now + :ahead", {"now": now, "ahead": ahead})

    def builders(self) -> list[QuarantinedBuilder]:
        query = f"SELECT {_COLUMNS} FROM quarantine ORDER BY host"
        with self._open() as db:
            return [QuarantinedBuilder(*row) for row in db.execute(query)]

    def save(self, builder: QuarantinedBuilder) -> None:
        query = f"INSERT OR REPLACE INTO quarantine ({_COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?)"
        with self._open() as db:
            db.execute(query, attr.astuple(builder))

    def release(self, host: str, now: float) -> None:
        """Take a builder out of quarantine; its earlier attempts count no more."""
        with self._open() as db, transaction(db):
            db.execute("DELETE FROM quarantine WHERE host = ?", (host,))
            db.execute("INSERT OR REPLACE INTO released VALUES (?, ?)", (host, now))


@attr.frozen(kw_only=True)
class QuarantineRules:
    faults: int  #: in a row
    pause: int  #: seconds until the first canary
    target: str  #: of the canary, without an arch; "": none is sent, and a person has to resume the builder
    incoming: Path
    arches: Arches


class Quarantine:
    """Holds builders back and releases them. Belongs to the daemon's thread; canaries are made in another."""

    def __init__(self, rules: QuarantineRules, path: Path) -> None:
        """`path`: of the notifier's file of heartbeats."""
        self.rules = rules
        self.tables = QuarantineTables(path)
        self.presences = WorkerStore(path)
        self._pool = ThreadPoolExecutor(1, "canary")
        self._making: Optional[Future[Path]] = None
        self._last_round = float("-inf")
        self._throttle = LogThrottle(LOG_AGAIN_SECONDS)

    def on_event(self, event: BuildEvent) -> None:
        """Record an attempt's end; a canary's end makes the next round due. Raises nothing."""
        try:
            if not event.srpm.startswith(canary.PACKAGE):
                self.tables.add_attempt(event, time.time())
            elif event.status in Status.FINAL:
                self._last_round = float("-inf")
        except WorkersUnavailable as error:
            self._warn(error)

    def run_if_due(self, broker: Broker, results_of: Callable[[Iterable[str]], dict[str, str]]) -> None:
        """Run a round, if one is due; `results_of` returns the results of builds, by id. Raises `BrokerUnavailable`."""
        if time.monotonic() - self._last_round < ROUND_SECONDS:
            return
        self._last_round = time.monotonic()
        try:
            self._run_round(broker, results_of)
        except (RetryLater, WorkersUnavailable, OSError) as error:
            self._warn(error)

    def close(self) -> None:
        self._pool.shutdown(wait=False)
        self.tables.close()
        self.presences.close()

    def _run_round(self, broker: Broker, results_of: Callable[[Iterable[str]], dict[str, str]]) -> None:
        self.tables.limit_times(time.time(), LONGEST_PAUSE_SECONDS)
        flags = _drain_flags(broker)
        seen = self.presences.load_workers()
        held = {builder.host: builder for builder in self.tables.builders()}
        for host, flag in flags.items():
            if flag.is_quarantine and host not in held:  # our file was lost, or we were killed before we wrote it
                held[host] = self._enter(broker, host, flag, seen)
        ended = results_of(builder.build_id for builder in held.values() if builder.build_id)
        for builder in held.values():
            own = flags.get(builder.host)
            if own is None:
                self._release(broker, builder, "by a person", seen)
            elif not own.is_quarantine:  # a person has drained it since, and it still takes nothing
                self._clear(broker, builder)
                self.tables.release(builder.host, time.time())
                log.info("%s is not in quarantine any more, but %s", builder.host, own.drain_text)
            else:
                self._probe(broker, builder, ended.get(builder.build_id, ""), seen)
        self._judge(broker, flags, seen, drop_disconnected(broker, seen))

    def _judge(
        self, broker: Broker, flags: dict[str, ControlFlag], seen: list[WorkerRecord], here: list[WorkerRecord]
    ) -> None:
        now = time.time()
        self.tables.purge(now - KEEP_SECONDS)
        records = self.tables.attempts()
        for host in sorted({record.builder for record in records if record.fault} - flags.keys()):
            why = find_fault_series(records, host, self.rules.faults)
            if why:
                lonely = tube_without_others(tubes_of(host, seen), host, here, flags, now)
                if lonely:
                    self._warn(f"{host} is not put into quarantine, being the last builder for {lonely}: {why}")
                    continue
                wanted = control.new_flag(_BY, why, reason=QUARANTINED)
                flags[host] = control.set_flag(broker, drain_tube(host), wanted)
                if flags[host].is_quarantine:
                    log.error("%s is in quarantine: %s", host, why)
                    self._enter(broker, host, flags[host], seen)

    def _enter(self, broker: Broker, host: str, flag: ControlFlag, seen: list[WorkerRecord]) -> QuarantinedBuilder:
        """Announce and then record it: after a kill between, both are repeated, and the outbox drops the same event."""
        self._announce(broker, host, Status.QUARANTINED, flag.why, seen, at=flag.at)
        builder = QuarantinedBuilder(host, since=flag.at or time.time(), next=time.time() + self.rules.pause)
        self.tables.save(builder)
        return builder

    def _probe(self, broker: Broker, builder: QuarantinedBuilder, result: str, seen: list[WorkerRecord]) -> None:
        now = time.time()
        if builder.build_id and not result and now - builder.next >= LOST_SECONDS and not _has_job(broker, builder):
            result = "lost"
        if result == Status.SUCCESS:
            control.clear_quarantine(broker, builder.host)
            if control.drain_flag(broker, builder.host) is None:  # else a person has drained it in this moment
                self._release(broker, builder, "it has built a canary", seen)
        elif result:
            self._clear(broker, builder)
            pause = min(self.rules.pause << min(builder.failed + 1, 20), LONGEST_PAUSE_SECONDS)
            log.warning("the canary of %s failed (%s): another in %d s", builder.host, result, pause)
            self.tables.save(QuarantinedBuilder(builder.host, builder.since, now + pause, builder.failed + 1))
        elif not builder.build_id and self.rules.target and now >= builder.next:
            self._send(broker, builder, seen)

    def _send(self, broker: Broker, builder: QuarantinedBuilder, seen: list[WorkerRecord]) -> None:
        """Put a canary into the builder's own tube, once it is made."""
        self._making = self._making or self._pool.submit(canary.make_canary_srpm, self.rules.incoming)
        if not self._making.done():
            return
        made, self._making = self._making, None
        try:
            srpm = made.result()
            request = self._request(builder.host, srpm, seen)
        except (ReimzulError, OSError) as error:
            self._warn(f"no canary can be sent to {builder.host}: {error}")
            self.tables.save(attr.evolve(builder, next=time.time() + LOG_AGAIN_SECONDS))
            return
        tube = arch_tube(canary_tube(builder.host))
        job = broker.put(tube, request, priority=PRIORITY_NOW)
        self.tables.save(attr.evolve(builder, build_id=request.build_id, job=job, srpm=srpm.name, next=time.time()))
        reason = f"a canary for {builder.host}, which is in quarantine"
        where = {"tube": tube.name, "job": job, "priority": PRIORITY_NOW}
        broker.announce(event_for(request, Status.QUEUED, pkgname=canary.PACKAGE, reason=reason, **where))
        log.info("%s is probed by build %s", builder.host, request.build_id)

    def _request(self, host: str, srpm: Path, seen: list[WorkerRecord]) -> BuildRequest:
        """Return the canary's request: a scratch build for the builder's own arch. Raises `ReimzulError`."""
        own_tube = tubes_of(host, seen)[:1]
        arch = next((arch.name for arch in self.rules.arches.known.values() if (arch.tube,) == own_tube), "")
        if not arch:
            srpm.unlink(missing_ok=True)
            raise ReimzulError("nobody knows which arches it builds")
        return BuildRequest(
            srpm=srpm.name,
            arch=arch,
            target=f"{self.rules.target}.{arch}",
            disttag=canary.DISTTAG,
            submitter=_BY,
            scratch=True,
            build_id=new_build_id(),
            timestamp=validators.now_timestamp(),
            srpm_sha256=sha256_of(srpm),
            legs=(arch,),
            rebuild=True,
        )

    def _release(self, broker: Broker, builder: QuarantinedBuilder, why: str, seen: list[WorkerRecord]) -> None:
        self._clear(broker, builder)
        # before its row goes: announced twice is better than never
        self._announce(broker, builder.host, Status.RELEASED, why, seen)
        self.tables.release(builder.host, time.time())
        log.info("%s takes jobs again: %s", builder.host, why)

    def _clear(self, broker: Broker, builder: QuarantinedBuilder) -> None:
        """Delete what a canary may have left: its job, unless somebody has it, and its source."""
        with contextlib.suppress(ReimzulError):
            if builder.job and _has_job(broker, builder):
                broker.delete(builder.job)
        with contextlib.suppress(OSError):
            if builder.srpm:
                (self.rules.incoming / builder.srpm).unlink(missing_ok=True)

    def _announce(
        self, broker: Broker, host: str, status: str, why: str, seen: list[WorkerRecord], *, at: float = 0.0
    ) -> None:
        at = at or round(time.time(), 3)
        broker.announce(BuilderEvent(builder=host, status=status, reason=why, arches=tubes_of(host, seen), at=at))

    def _warn(self, what: object) -> None:
        if self._throttle.is_due():
            log.warning("%s", what)


def _has_job(broker: Broker, builder: QuarantinedBuilder) -> bool:
    """Whether the job of a canary exists; its number may be another job's by now."""
    try:
        return BuildRequest.decode(broker.peek(builder.job)).build_id == builder.build_id
    except ReimzulError:
        return False


def _drain_flags(broker: Broker) -> dict[str, ControlFlag]:
    hosts = [builder_of_drain_tube(tube) for tube in broker.list_tubes()]
    found = {host: control.drain_flag(broker, host) for host in hosts if host}
    return {host: each for host, each in found.items() if each is not None}


def tubes_of(host: str, seen: list[WorkerRecord]) -> tuple[str, ...]:
    return next((each.heartbeat.arches for each in seen if each.heartbeat.host == host), ())


def tube_without_others(
    mine: Sequence[str], host: str, here: list[WorkerRecord], flags: dict[str, ControlFlag], now: float
) -> str:
    """Return the first of a builder's tubes that no other connected builder could work on; "" if there is none."""
    others = {
        tube
        for each in here
        if each.heartbeat.host not in (host, *flags) and each.state_at(now) in WorkerState.TAKING_JOBS
        for tube in each.heartbeat.arches
    }
    return next((tube for tube in mine if tube not in others), "" if mine else "an arch that nobody knows")

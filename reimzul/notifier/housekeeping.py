# SPDX-License-Identifier: Apache-2.0
"""The notifier's work beside delivering events: it corrects clocks, records heartbeats, and cleans up.

`correct_clock` corrects the times of an event by a sender whose clock is wrong, since these times decide which of two
events is the later one, and how long both are kept. `HeartbeatIntake` records who is there. `RefusalCleanup` drops
old refusals from the history, `SourceCleanup` removes source rpms that no build needs. `CancelReaper` finishes cancels
whose sender was killed before their end.
"""

from __future__ import annotations

import contextlib
import copy
import logging
import threading
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Callable

import attr

from reimzul.core import control
from reimzul.core.beanstalk import Broker, ReservedJob, build_of_cancel_tube, cancel_tube
from reimzul.core.clock import MAX_SKEW_SECONDS, measure_skew
from reimzul.core.errors import InvalidMessage, ReimzulError, ReservationLost, RetryLater
from reimzul.core.formatting import pluralize
from reimzul.core.message import BuildEvent, BuildRequest, Event, Status, WorkerHeartbeat
from reimzul.core.retry import LogThrottle
from reimzul.history import NoHistory, open_history
from reimzul.history.build_record import RefusalRecord
from reimzul.history.incoming import find_old_sources, remove_old_sources
from reimzul.history.workers import RETENTION_SECONDS, WorkerRecord, WorkerStore, WorkersUnavailable
from reimzul.notifier.outbox import Outbox

log = logging.getLogger(__name__)

#: Statuses that only a builder announces: its clock is that of `started`, `finished` and `phases`.
_BUILDER_STATUSES = (Status.BUILDING, Status.SUCCESS, Status.FAILED)
#: Seconds after which a heartbeat is not recorded any more: its worker has sent newer ones.
STALE_SECONDS = 120
#: Seconds between two rounds of the reaper.
ROUND_SECONDS = 30.0
#: Seconds that the sender of a cancel, and the worker that obeys it, have for themselves.
GRACE_SECONDS = 60
#: Seconds a cancel flag stays whose build is over, and one of whose build nothing is known.
KEEP_FLAG_SECONDS, KEEP_UNKNOWN_FLAG_SECONDS = 2 * 86400, 30 * 86400


# --- clocks ---------------------------------------------------------------------------------------------------------


def correct_clock(job: ReservedJob[Any], event: Event) -> Event:
    """Return the event with its times by this host's clock. What an earlier version put back is corrected already."""
    if not isinstance(event, BuildEvent) or event.owed or event.status == Status.OVERRIDE:
        return event  # the times of all others are a part of their keys
    if event.skew:
        event = attr.evolve(event, skew=0.0)  # only the notifier sets it
    now = time.time()
    if not event.at or abs(now - event.at) <= MAX_SKEW_SECONDS:
        return event  # saves asking beanstalkd how long the job has waited
    try:
        return shift_times(event, now - job.stats.age)
    except ReservationLost:
        return event


def shift_times(event: BuildEvent, put_at: float) -> BuildEvent:
    """Shift the times of an event that was put at `put_at` by our clock, if its sender's clock is wrong."""
    skew = measure_skew(event.at, put_at)
    if not skew:
        return event
    shifted = copy.copy(event)  # `attr.evolve` would check all its fields again, which takes longer than all else here
    object.__setattr__(shifted, "at", round(put_at, 3))
    object.__setattr__(shifted, "due", max(0.0, event.due - skew) if event.due else 0.0)
    object.__setattr__(shifted, "skew", skew if event.status in _BUILDER_STATUSES else 0.0)
    return shifted


# --- heartbeats -----------------------------------------------------------------------------------------------------


class HeartbeatIntake:
    """Records workers' heartbeats. They delay no event: what cannot be written is dropped. For the daemon's thread."""

    def __init__(self, path: Path) -> None:
        self._file = WorkerStore(path)
        self._throttle = LogThrottle(seconds=60.0)
        self._sweep_due = LogThrottle(seconds=3600.0)

    def update(self, heartbeats: Iterable[tuple[ReservedJob[Any], WorkerHeartbeat]]) -> None:
        """Record the newest heartbeat of each worker; `heartbeats` are in the order they were sent in."""
        latest: dict[tuple[str, str, str, bool], WorkerRecord] = {}
        now = time.time()
        for job, heartbeat in heartbeats:
            age = _age(job)
            if age <= STALE_SECONDS or heartbeat.leaving:  # one that ended in order did not vanish, however late we are
                # the last list of targets too: it is not repeated soon
                key = (heartbeat.host, heartbeat.instance, heartbeat.session, bool(heartbeat.targets))
                latest.pop(key, None)  # the later of the two is saved last
                latest[key] = WorkerRecord(heartbeat=heartbeat, last_seen=now - age)
        if latest:
            self._try(lambda: self._file.save(latest.values()))

    def sweep(self) -> None:
        """Drop, once an hour, workers that have been silent for long."""
        if self._sweep_due.is_due():
            self._try(lambda: self._file.purge(time.time() - RETENTION_SECONDS))

    def close(self) -> None:
        self._file.close()

    def _try(self, write: Callable[[], None]) -> None:
        try:
            write()
        except WorkersUnavailable as error:
            if self._throttle.is_due():
                log.warning("%s", error)


def _age(job: ReservedJob[Any]) -> float:
    """Return the seconds since the job was put, by beanstalkd's clock: a builder's own may be wrong."""
    try:
        return job.stats.age
    except ReservationLost:
        return STALE_SECONDS + 1


# --- refusals -------------------------------------------------------------------------------------------------------


@attr.frozen
class RefusalCleanup:
    """Drops refusals from the history after some days; the reason of a job that is still buried stays."""

    connect: Callable[[], Broker]
    url: str  #: of the history
    days: int  #: 0: keep them for ever

    def start(self) -> None:
        """Start a round in a thread and with connections of its own: the history may be unavailable for long."""
        if self.days:
            threading.Thread(target=self._run, name="refusals", daemon=True).start()

    def _run(self) -> None:
        """Drop refusals that are older, or of a clock that was ahead, and not buried any more."""
        now = time.time()
        try:
            with contextlib.closing(open_history(self.url)) as history, self.connect() as broker:
                first, last = now - self.days * 86400, now + 86400
                old = [refusal for refusal in history.iterate_refusals() if not first <= refusal.at <= last]
                keys = [refusal.key for refusal in old if not _is_buried(broker, refusal)]
                history.delete_refusals(keys)
        except ReimzulError as error:
            log.warning("old refusals are not dropped today: %s", error)
        else:
            if keys:
                log.info("%d refusals of more than %d days ago are dropped", len(keys), self.days)


def _is_buried(broker: Broker, refusal: RefusalRecord) -> bool:
    """Whether this job may be buried; if beanstalkd gave its number to another buried job, the refusal stays too."""
    try:
        stats = broker.job_stats(refusal.job)
    except ReservationLost:
        return False
    return (stats.tube, stats.state) == (refusal.tube, "buried")


# --- incoming/ ------------------------------------------------------------------------------------------------------


@attr.frozen(kw_only=True)
class SourceCleanup:
    """Removes source rpms from `incoming/` that no build has needed for some days."""

    folder: Path
    url: str  #: of the history
    days: int  #: 0: keep them for ever

    def start(self) -> None:
        """Start a round in a thread, as `RefusalCleanup` does."""
        if self.days:
            threading.Thread(target=self._run, name="incoming", daemon=True).start()

    def _run(self) -> None:
        before = time.time() - self.days * 86400
        try:
            with contextlib.closing(open_history(self.url, reading=True)) as history:
                found = find_old_sources(history, self.folder, before)
            removed = remove_old_sources(self.folder, [each for each in found if not each.message], before)
        except NoHistory:
            return  # nothing was built yet, or the history is lost
        except ReimzulError as error:
            log.warning("old source rpms are not removed today: %s", error)
        else:
            if removed:
                log.info("removed %s of more than %d days ago", pluralize(len(removed), "source rpm"), self.days)


# --- cancels --------------------------------------------------------------------------------------------------------


class CancelReaper:
    """Finishes cancels. Belongs to the daemon's thread.

    The sender of a cancel sets the flag, deletes the job if it waits, and announces `Cancelled`; a worker or repogen
    does the rest. What none of them got to is done here: a waiting job of a cancelled build is deleted, and a build
    whose job is gone without any result is announced as cancelled. The flag stays for two days, since a worker that
    has lost its link may build for that long.
    """

    def __init__(self, outbox: Outbox, grace: int = GRACE_SECONDS) -> None:
        self._outbox, self._grace = outbox, grace
        self._last_round = float("-inf")

    def run_if_due(self, broker: Broker) -> None:
        """Go through all cancel flags, every half minute. Raises `BrokerUnavailable`."""
        if time.monotonic() - self._last_round < ROUND_SECONDS:
            return
        self._last_round = time.monotonic()
        with contextlib.suppress(RetryLater):  # beanstalkd, or the disk of the outbox, is full
            for tube in broker.list_tubes():
                build_id = build_of_cancel_tube(tube)
                if build_id:
                    self._finish(broker, build_id)

    def _finish(self, broker: Broker, build_id: str) -> None:
        tube = cancel_tube(build_id)
        found = broker.first_ready(tube)
        if found is None:  # the tube exists because somebody looks for a flag
            return
        with contextlib.suppress(ReservationLost):  # the flag was cleared meanwhile
            age = broker.job_stats(found[0]).age
            if age < self._grace:
                return
            queued, is_over = self._outbox.queued_events(build_id), self._outbox.results_of([build_id])
            if any(self._is_reserved(broker, event) for event in queued):
                return
            unfinished = self._outbox.unfinished_arches(build_id)
            if queued and unfinished:
                flag = control.cancel_flag(broker, build_id) or control.ControlFlag()
                self._announce(broker, queued, unfinished, flag)
            elif age > (KEEP_FLAG_SECONDS if is_over else KEEP_UNKNOWN_FLAG_SECONDS):
                control.clear_flag(broker, tube)

    def _is_reserved(self, broker: Broker, event: BuildEvent) -> bool:
        """Whether a worker has the build's job, and so obeys the flag; a job that waits is deleted."""
        try:
            if BuildRequest.decode(broker.peek(event.job)).build_id != event.build_id:
                return False  # beanstalkd has lost its binlog, and the number is another job's now
            if broker.job_stats(event.job).state == "reserved":
                return True
            broker.delete(event.job)
            log.info("job %d of the cancelled build %s was still waiting: deleted", event.job, event.build_id)
        except (ReservationLost, InvalidMessage):
            pass
        return False

    def _announce(
        self, broker: Broker, queued: list[BuildEvent], unfinished: list[str], flag: control.ControlFlag
    ) -> None:
        """Announce all arches without a result: one that follows another may have begun, and was never queued itself.

        Those that were queued come last: once they have a result, nothing is known here of the build's job.
        """
        changed: dict[str, Any] = {
            "tube": "", "job": 0, "priority": None, "due": 0.0, "attempt": "", "url": "", "builder_fqdn": "",
            "owed": {}, "status": Status.CANCELLED, "reason": flag.cancel_text, "at": round(time.time(), 3),
            "held": None, "missing": (), "waits_for": "",
        }  # fmt: skip
        waiting = {event.arch for event in queued}
        for arch in sorted(unfinished, key=lambda arch: arch in waiting):
            event = attr.evolve(queued[0], arch=arch, **changed)
            broker.announce(event)
            log.info("%s was cancelled, and nobody had announced it", event.key)

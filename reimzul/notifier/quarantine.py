# SPDX-License-Identifier: Apache-2.0
"""Quarantine: a builder whose faults stand out from its peers' takes no more jobs, is probed, and let back.

What holds it back is a mark in beanstalkd, as of a drain, that lets one thing through: a canary, put into a tube that
this builder alone looks into. A canary that is built lifts the mark; one that fails is followed by another, after a
pause that grows. Never is the last builder held back that could build for an arch: one that fails now and then is
better than none.
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
from reimzul.core.errors import ReimzulError, ReservationLost, RetryLater
from reimzul.core.manifest import sha256_of
from reimzul.core.message import BuilderEvent, BuildEvent, BuildRequest, Status, WorkerState, event_for, new_build_id
from reimzul.history.workers import (
    SILENT_AFTER_SECONDS,
    WorkerRecord,
    WorkerStore,
    WorkersUnavailable,
    drop_disconnected,
)
from reimzul.notifier.conduct import Conduct, NoConduct, Ward
from reimzul.notifier.standing import standing

log = logging.getLogger(__name__)

#: Seconds between two rounds, and between two lines about what keeps us from our work.
ROUND, SAY_AGAIN = 15.0, 600.0
#: Seconds a probe may be away from its tube without a word until another is sent, and the longest pause between two.
LOST, LONGEST = 1800, 86400
_BY = "reimzul-notifier"


@attr.frozen(kw_only=True)
class Rules:
    """When a builder stands out, and how it is probed."""

    faults: int  #: from so many on
    ratio: int  #: so many times as often as its peers
    window: float  #: seconds that are looked back
    pause: int  #: seconds until the first probe
    target: str  #: of the canary, without an arch; nothing: none is sent, and a person resumes the builder
    incoming: Path
    arches: Arches


class Quarantine:
    """Who judges builders. Belongs to the daemon's thread; a canary is made in another."""

    def __init__(self, rules: Rules, path: Path) -> None:
        """`path`: of the notifier's file of presences."""
        self.rules = rules
        self.conduct = Conduct(path)
        self.presences = WorkerStore(path)
        self._probes: set[str] = set()  #: the builds that probe
        self._pool = ThreadPoolExecutor(1, "canary")
        self._making: Optional[Future[Path]] = None
        self._looked = self._said = float("-inf")

    def hear(self, event: BuildEvent) -> None:
        """What a build came to; it does not fail."""
        if event.srpm.startswith(canary.PACKAGE):
            if event.build_id in self._probes and event.status in Status.FINAL:
                self._looked = float("-inf")
            return
        try:
            self.conduct.note(event, time.time())
        except NoConduct as error:
            self._complain(error)

    def look(self, broker: Broker, came_to: Callable[[Iterable[str]], dict[str, str]]) -> None:
        """Run a round, if one is due; `came_to`: results of builds, by id. Raises `BrokerUnavailable`."""
        if time.monotonic() - self._looked < ROUND:
            return
        self._looked = time.monotonic()
        try:
            self._round(broker, came_to)
        except (RetryLater, NoConduct, WorkersUnavailable, OSError) as error:
            self._complain(error)

    def close(self) -> None:
        """Leave."""
        self._pool.shutdown(wait=False)
        self.conduct.close()
        self.presences.close()

    def _round(self, broker: Broker, came_to: Callable[[Iterable[str]], dict[str, str]]) -> None:
        self.conduct.bound(time.time(), LONGEST)
        marks = _marks(broker)
        seen = self.presences.load_all()
        wards = {ward.host: ward for ward in self.conduct.wards()}
        for host, found in marks.items():
            if found.is_quarantine and host not in wards:  # our file was lost, or we were killed before we wrote it
                wards[host] = self._take_in(broker, host, found, seen)
        self._probes = {ward.build_id for ward in wards.values() if ward.build_id}
        ended = came_to(self._probes)
        for ward in wards.values():
            holds = marks.get(ward.host)
            if holds is None:
                self._let_back(broker, ward, "by a person", seen)
            elif not holds.is_quarantine:  # a person has it now, and it still takes nothing
                self._clear(broker, ward)
                self.conduct.release(ward.host, time.time())
                log.info("%s is no more in quarantine, but %s", ward.host, holds.drain_text)
            else:
                self._probe(broker, ward, ended.get(ward.build_id, ""), seen)
        self._judge(broker, marks, seen, drop_disconnected(broker, seen))

    # --- judging --------------------------------------------------------------------------------------------------

    def _judge(
        self, broker: Broker, marks: dict[str, ControlFlag], seen: list[WorkerRecord], here: list[WorkerRecord]
    ) -> None:
        now = time.time()
        since = now - self.rules.window
        self.conduct.forget(since)
        rows = self.conduct.tried(since)
        for builder in sorted({row.builder for row in rows if row.fault} - marks.keys()):
            how = standing(rows, builder)
            if how.stands_out(self.rules.faults, self.rules.ratio):
                lonely = alone(tubes_of(builder, seen), builder, here, marks, now)
                if lonely:
                    words = "stays though its faults stand out, being the last for"
                    self._complain(f"{builder} {words} {lonely}: {how.words}")
                else:
                    marks[builder] = self._hold(broker, builder, how.words, seen)

    def _hold(self, broker: Broker, host: str, why: str, seen: list[WorkerRecord]) -> ControlFlag:
        holds = control.set_flag(broker, drain_tube(host), control.new_flag(_BY, why, reason=QUARANTINED))
        if holds.is_quarantine:
            log.error("%s is in quarantine: %s", host, why)
            self._take_in(broker, host, holds, seen)
        return holds

    def _take_in(self, broker: Broker, host: str, holds: ControlFlag, seen: list[WorkerRecord]) -> Ward:
        """Announce and then keep it: who is killed between is here again, and the ledger drops the same news."""
        self._announce(broker, host, Status.QUARANTINED, holds.why, seen, at=holds.at)
        now = time.time()
        ward = Ward(host=host, since=holds.at or now, next=now + self.rules.pause)
        self.conduct.keep(ward)
        return ward

    # --- probing --------------------------------------------------------------------------------------------------

    def _probe(self, broker: Broker, ward: Ward, came_to: str, seen: list[WorkerRecord]) -> None:
        if came_to == Status.SUCCESS:
            control.clear_quarantine(broker, ward.host)
            if control.drain_flag(broker, ward.host) is None:  # else a person has drained it in this moment
                self._let_back(broker, ward, "it has built a canary", seen)
        elif came_to or (ward.build_id and self._is_lost(broker, ward)):
            self._clear(broker, ward)
            pause = min(self.rules.pause << min(ward.failed + 1, 20), LONGEST)
            log.warning("the canary of %s came to nothing (%s): another in %d s", ward.host, came_to or "lost", pause)
            self.conduct.keep(Ward(host=ward.host, since=ward.since, failed=ward.failed + 1, next=time.time() + pause))
        elif not ward.build_id and self.rules.target and time.time() >= ward.next:
            self._send(broker, ward, seen)

    def _is_lost(self, broker: Broker, ward: Ward) -> bool:
        """Whether a probe's job is gone and no word of it came, for long."""
        if time.time() - ward.next < LOST:
            return False
        try:
            return BuildRequest.decode(broker.peek(ward.job)).build_id != ward.build_id
        except ReimzulError:
            return True

    def _send(self, broker: Broker, ward: Ward, seen: list[WorkerRecord]) -> None:
        """Put a canary into the builder's own tube, once it is made."""
        if self._making is None:
            self._making = self._pool.submit(canary.make_canary_srpm, self.rules.incoming)
        if not self._making.done():
            return
        made, self._making = self._making, None
        try:
            srpm = made.result()
            request = self._request(ward.host, srpm, seen)
        except (ReimzulError, OSError) as error:
            self._complain(f"no canary can be sent to {ward.host}: {error}")
            self.conduct.keep(attr.evolve(ward, next=time.time() + SAY_AGAIN))
            return
        tube = arch_tube(canary_tube(ward.host))
        job = broker.put(tube, request, priority=PRIORITY_NOW)
        self._probes.add(request.build_id)
        self.conduct.keep(attr.evolve(ward, build_id=request.build_id, job=job, srpm=srpm.name, next=time.time()))
        reason = f"a canary for {ward.host}, which is in quarantine"
        where = {"tube": tube.name, "job": job, "priority": PRIORITY_NOW}
        broker.announce(event_for(request, Status.QUEUED, pkgname=canary.PACKAGE, reason=reason, **where))
        log.info("%s is probed by build %s", ward.host, request.build_id)

    def _request(self, host: str, srpm: Path, seen: list[WorkerRecord]) -> BuildRequest:
        """What the builder is probed with: a scratch build for its own arch. Raises `ReimzulError`."""
        tubes = tubes_of(host, seen)
        known = self.rules.arches.known
        arch = next((arch.name for arch in known.values() if tubes and arch.tube == tubes[0]), "")
        if not arch:
            srpm.unlink(missing_ok=True)
            raise ReimzulError("nobody knows what it builds")
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

    def _let_back(self, broker: Broker, ward: Ward, why: str, seen: list[WorkerRecord]) -> None:
        self._clear(broker, ward)
        # before it is forgotten: told twice is better than never
        self._announce(broker, ward.host, Status.RELEASED, why, seen)
        self.conduct.release(ward.host, time.time())
        log.info("%s takes jobs again: %s", ward.host, why)

    def _clear(self, broker: Broker, ward: Ward) -> None:
        """Take away what a probe may have left: its job, where nobody has it, and its source."""
        if ward.job:
            with contextlib.suppress(ReservationLost, ReimzulError):
                if BuildRequest.decode(broker.peek(ward.job)).build_id == ward.build_id:
                    broker.delete(ward.job)
        if ward.srpm:
            with contextlib.suppress(OSError):
                (self.rules.incoming / ward.srpm).unlink(missing_ok=True)

    def _announce(
        self, broker: Broker, host: str, status: str, why: str, seen: list[WorkerRecord], *, at: float = 0.0
    ) -> None:
        at = at or round(time.time(), 3)
        broker.announce(BuilderEvent(builder=host, status=status, reason=why, arches=tubes_of(host, seen), at=at))

    def _complain(self, what: object) -> None:
        if time.monotonic() - self._said > SAY_AGAIN:
            self._said = time.monotonic()
            log.warning("%s", what)


def _marks(broker: Broker) -> dict[str, ControlFlag]:
    """The marks of builders, by host."""
    hosts = [builder_of_drain_tube(tube) for tube in broker.list_tubes()]
    found = {host: control.drain_flag(broker, host) for host in hosts if host}
    return {host: each for host, each in found.items() if each is not None}


def tubes_of(host: str, seen: list[WorkerRecord]) -> tuple[str, ...]:
    """What a builder watches, as its workers last said."""
    return next((each.heartbeat.arches for each in seen if each.heartbeat.host == host), ())


def alone(mine: Sequence[str], host: str, here: list[WorkerRecord], marks: dict[str, ControlFlag], now: float) -> str:
    """The first of a builder's tubes that no other could work on that is here; nothing where each has another."""
    others: set[str] = set()
    for each in here:
        able = (
            each.heartbeat.state in (WorkerState.IDLE, WorkerState.BUILDING)
            and abs(now - each.last_seen) < SILENT_AFTER_SECONDS
        )
        if able and each.heartbeat.host != host and each.heartbeat.host not in marks:
            others.update(each.heartbeat.arches)
    return next((tube for tube in mine if tube not in others), "" if mine else "what nobody knows")

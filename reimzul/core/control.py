# SPDX-License-Identifier: Apache-2.0
"""Marks: what a person, or the notifier, wants of a build or of a builder, in a tube that nobody reserves from.

`target.<target>` holds one of repogen's: why that target's new repodata does not become visible.

`cancel.<build id>` and `worker.<host>` hold one small job each. Who has to heed it peeks, which takes nothing away; so
a mark holds for all until somebody deletes it, and beanstalkd's binlog keeps it across a restart of any host. That it
is there counts: one that cannot be read is heeded too.
"""

from __future__ import annotations

import contextlib
import time

import attr

from reimzul.core import validators
from reimzul.core.beanstalk import PRIORITY, TTR_SECONDS, Broker, Tube, cancel_tube, drain_tube, target_tube
from reimzul.core.errors import InvalidMessage, ReservationLost
from reimzul.core.message import BuildRequest, Message, field

#: Why a builder's mark was put where no person did it.
QUARANTINED = "quarantined"


@attr.frozen(kw_only=True)
class ControlFlag(Message):
    """What a mark says, for whoever asks why."""

    by: str = field(validators.line(64), "")  #: who put it
    at: float = field(validators.unix_time, 0.0)
    drain: bool = field(validators.flag, True)  #: of a builder's: false is no mark
    reason: str = field(validators.line(64), "")  #: QUARANTINED, or nothing
    why: str = field(validators.line(300), "")  #: in words for a person

    @property
    def cancel_text(self) -> str:
        """What is said of a build that it ends."""
        by = f" by {self.by}" if self.by else ""
        return f"cancelled{by}: {self.why}" if self.why else f"cancelled{by}"

    @property
    def drain_text(self) -> str:
        """What is said of a builder that takes nothing for it."""
        by = f" by {self.by}" if self.by else ""
        return f"{self.reason or 'drained'}{by}: {self.why}" if self.why else f"{self.reason or 'drained'}{by}"

    @property
    def is_quarantine(self) -> bool:
        """Whether the notifier put it, and takes it away."""
        return self.reason == QUARANTINED


def new_flag(by: str, why: str = "", *, reason: str = "") -> ControlFlag:
    """A mark put now."""
    return ControlFlag(by=by, at=round(time.time(), 3), why=why, reason=reason)


def cancel_flag(broker: Broker, build_id: str) -> ControlFlag | None:
    """The mark that says this build is to end; None where there is none."""
    return read_flag(broker, cancel_tube(build_id)) if build_id else None


def drain_flag(broker: Broker, host: str) -> ControlFlag | None:
    """The mark that says this builder is to take nothing; None where there is none."""
    found = read_flag(broker, drain_tube(host))
    return found if found and found.drain else None


def stuck_flag(broker: Broker, target: str) -> ControlFlag | None:
    """The mark that says why a target's new repodata does not become visible; None where there is none."""
    return read_flag(broker, target_tube(target))


def read_flag(broker: Broker, tube: str) -> ControlFlag | None:
    """The mark in a tube, whatever its body is."""
    found = broker.first_ready(tube)
    if found is None:
        return None
    try:
        return ControlFlag.decode(found[1])
    except InvalidMessage:
        return ControlFlag()


def set_flag(broker: Broker, tube: str, wanted: ControlFlag) -> ControlFlag:
    """Put a mark where there is none; the one that holds."""
    there = read_flag(broker, tube)
    if there is None:
        broker.put_raw(tube, wanted.encode(), priority=PRIORITY)
    return there or wanted


def clear_flag(broker: Broker, tube: str) -> bool:
    """Delete what is in a mark's tube; whether there was anything."""
    lifted = False
    while (found := broker.first_ready(tube)) is not None:
        with contextlib.suppress(ReservationLost):  # another does the same
            broker.delete(found[0])
        lifted = True
    return lifted


def clear_quarantine(broker: Broker, host: str) -> None:
    """Delete the notifier's marks of a builder; a person's stays."""
    while (found := broker.first_ready(drain_tube(host))) is not None:
        try:
            quarantined = ControlFlag.decode(found[1]).is_quarantine
        except InvalidMessage:
            return
        if not quarantined:
            return
        with contextlib.suppress(ReservationLost):  # another does the same
            broker.delete(found[0])


def requeue_unless_cancelled(
    broker: Broker,
    tube: Tube[BuildRequest],
    request: BuildRequest,
    *,
    priority: int,
    delay: int = 0,
    ttr: int = TTR_SECONDS,
) -> tuple[int, ControlFlag | None]:
    """Put a request anew: its job's number, or 0 and the mark that forbids it.

    Looked at before and after: who cancels puts the mark first and then deletes the job he knows, which is not this
    one. So whichever of us comes second sees what the other has done.
    """
    forbidden = cancel_flag(broker, request.build_id)
    if forbidden:
        return 0, forbidden
    job = broker.put(tube, request, priority=priority, delay=delay, ttr=ttr)
    forbidden = cancel_flag(broker, request.build_id)
    if forbidden:
        with contextlib.suppress(ReservationLost):  # a worker has it already, and heeds the mark as we do
            broker.delete(job)
            return 0, forbidden
    return job, None

# SPDX-License-Identifier: Apache-2.0
"""Control flags: cancel a build, drain a builder, let workers pull their configurations, say why a target is stuck.

A flag is one small job in a tube that nobody reserves from: `cancel.<build id>`, `worker.<host>`, `refresh.targets` or
`target.<target>` (repogen's: why new repodata is not published). Its readers peek, so it holds for all of them until
somebody deletes it, and beanstalkd's binlog keeps it across restarts. A flag whose body cannot be read counts too.
"""

from __future__ import annotations

import contextlib
import time
from typing import Callable

import attr

from reimzul.core import validators
from reimzul.core.beanstalk import (
    HELD_SECONDS,
    PRIORITY,
    REFRESH_TUBE,
    TTR_SECONDS,
    Broker,
    Tube,
    cancel_tube,
    drain_tube,
    target_tube,
)
from reimzul.core.errors import InvalidMessage, ReservationLost
from reimzul.core.json_message import Message, field
from reimzul.core.message import BuildRequest

#: The reason of a drain flag that the notifier set.
QUARANTINED = "quarantined"


@attr.frozen(kw_only=True)
class ControlFlag(Message):
    by: str = field(validators.line(64), "")  #: who set it
    at: float = field(validators.unix_time, 0.0)
    drain: bool = field(validators.flag, True)  #: of a builder's flag: false counts as no flag
    reason: str = field(validators.line(64), "")  #: QUARANTINED, or nothing
    why: str = field(validators.line(300), "")  #: for a person

    @property
    def cancel_text(self) -> str:
        """The reason of the build's `Cancelled`."""
        return self._describe("cancelled")

    @property
    def drain_text(self) -> str:
        return self._describe(self.reason or "drained")

    def _describe(self, what: str) -> str:
        by = f" by {self.by}" if self.by else ""
        return f"{what}{by}: {self.why}" if self.why else f"{what}{by}"

    @property
    def is_quarantine(self) -> bool:
        """Whether the notifier set it, and clears it."""
        return self.reason == QUARANTINED


def new_flag(by: str, why: str = "", *, reason: str = "") -> ControlFlag:
    return ControlFlag(by=by, at=round(time.time(), 3), why=why, reason=reason)


def cancel_flag(broker: Broker, build_id: str) -> ControlFlag | None:
    return read_flag(broker, cancel_tube(build_id)) if build_id else None


def drain_flag(broker: Broker, host: str) -> ControlFlag | None:
    found = read_flag(broker, drain_tube(host))
    return found if found and found.drain else None


def stuck_flag(broker: Broker, target: str) -> ControlFlag | None:
    """The flag that says why a target's new repodata is not published, if it is set."""
    return read_flag(broker, target_tube(target))


def refresh_flag(broker: Broker) -> ControlFlag | None:
    """The last flag that lets idle workers pull their mock configurations; each obeys it once."""
    return read_flag(broker, REFRESH_TUBE)


def replace_refresh_flag(broker: Broker, wanted: ControlFlag) -> None:
    clear_flag(broker, REFRESH_TUBE)
    broker.put_raw(REFRESH_TUBE, wanted.encode(), priority=PRIORITY)


def read_flag(broker: Broker, tube: str) -> ControlFlag | None:
    """The flag in a tube, if there is one; an unreadable one is returned without content."""
    found = broker.first_ready(tube)
    return _decode(found[1]) if found else None


def _decode(body: bytes) -> ControlFlag:
    try:
        return ControlFlag.decode(body)
    except InvalidMessage:
        return ControlFlag()


def set_flag(broker: Broker, tube: str, wanted: ControlFlag) -> ControlFlag:
    """Set a flag unless one is set; return the one that holds."""
    there = read_flag(broker, tube)
    if there is None:
        broker.put_raw(tube, wanted.encode(), priority=PRIORITY)
    return there or wanted


def clear_flag(broker: Broker, tube: str, only: Callable[[ControlFlag], bool] = lambda _: True) -> bool:
    """Delete the flags in a tube, up to the first that `only` spares; return whether there was any."""
    lifted = False
    while (found := broker.first_ready(tube)) is not None and only(_decode(found[1])):
        with contextlib.suppress(ReservationLost):  # somebody else deleted it
            broker.delete(found[0])
        lifted = True
    return lifted


def clear_quarantine(broker: Broker, host: str) -> None:
    """Delete the notifier's drain flags of a builder; a person's stays."""
    clear_flag(broker, drain_tube(host), only=lambda flag: flag.is_quarantine)


def hold_job(broker: Broker, tube: Tube[BuildRequest], number: int, priority: int | None = None) -> int:
    """Hold a job that waits, or is held already with another priority; return its number.

    Raises `ReservationLost` if a worker has it, or it is gone. If we are killed before the release, the job is ready.
    """
    return broker.reserve_job(number, tube).release(HELD_SECONDS, priority)


def requeue_unless_cancelled(
    broker: Broker,
    tube: Tube[BuildRequest],
    request: BuildRequest,
    *,
    priority: int,
    delay: int = 0,
    ttr: int = TTR_SECONDS,
) -> tuple[int, ControlFlag | None]:
    """Put a request again; return its job's number, or 0 and the flag that cancels the build.

    The flag is read before and after: `reimzul cancel` sets it first and then deletes the job it knows, which is not
    this one. So whoever comes second sees what the other has done.
    """
    forbidden = cancel_flag(broker, request.build_id)
    if forbidden:
        return 0, forbidden
    job = broker.put(tube, request, priority=priority, delay=delay, ttr=ttr)
    forbidden = cancel_flag(broker, request.build_id)
    if forbidden:
        with contextlib.suppress(ReservationLost):  # a worker has reserved it, and reads the flag itself
            broker.delete(job)
            return 0, forbidden
    return job, None

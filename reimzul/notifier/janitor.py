# SPDX-License-Identifier: Apache-2.0
"""The janitor of marks that cancel: sees to it that a cancel comes to its end, whoever was killed in the middle of it.

Who cancels puts the mark, deletes the job he knows where it waits, and announces `Cancelled`; a worker or repogen does
the rest. What neither came to is done here: a job that waits under a mark is deleted, a build whose job is gone and
that nobody has said anything of is said to be cancelled. The mark itself stays for two days, as a worker that has lost
its link may be at the build that long, and then goes.
"""

from __future__ import annotations

import contextlib
import logging
import time
from typing import Any

import attr

from reimzul.core import control
from reimzul.core.beanstalk import Broker, build_of_cancel_tube, cancel_tube
from reimzul.core.errors import InvalidMessage, ReservationLost, RetryLater
from reimzul.core.message import BuildEvent, BuildRequest, Status
from reimzul.notifier.ledger import Ledger

log = logging.getLogger(__name__)

#: Seconds between two rounds.
ROUND = 30.0
#: Seconds that who cancels, and who heeds it, have for themselves.
GRACE = 60
#: Seconds a mark stays whose build is over, and one of whose build nothing is known.
KEPT, UNKNOWN = 2 * 86400, 30 * 86400


class Janitor:
    """Looks at the marks that cancel, now and then. Belongs to the daemon's thread."""

    def __init__(self, ledger: Ledger, grace: int = GRACE, kept: int = KEPT) -> None:
        self.ledger = ledger
        self.grace, self.kept = grace, kept
        self._looked = float("-inf")

    def look(self, broker: Broker) -> None:
        """A round, where one is due. Raises `BrokerUnavailable`."""
        if time.monotonic() - self._looked < ROUND:
            return
        self._looked = time.monotonic()
        with contextlib.suppress(RetryLater):  # beanstalkd, or the disk of the ledger, takes nothing now
            for tube in broker.list_tubes():
                build_id = build_of_cancel_tube(tube)
                if build_id:
                    self._see_to(broker, build_id)

    def _see_to(self, broker: Broker, build_id: str) -> None:
        tube = cancel_tube(build_id)
        found = broker.first_ready(tube)
        if found is None:  # somebody only looks into it
            return
        with contextlib.suppress(ReservationLost):  # lifted meanwhile
            age = broker.job_stats(found[0]).age
            if age < self.grace:
                return
            queued, is_over = self.ledger.queued(build_id), self.ledger.is_over(build_id)
            if any(self._is_in_hand(broker, event) for event in queued):
                return
            if queued and not is_over:
                self._announce(broker, queued, control.cancel_flag(broker, build_id) or control.ControlFlag())
            elif age > (self.kept if is_over else UNKNOWN):
                control.clear_flag(broker, tube)

    def _is_in_hand(self, broker: Broker, event: BuildEvent) -> bool:
        """Whether a worker has the build's job, and so heeds the mark; a job that waits is deleted."""
        try:
            if BuildRequest.decode(broker.peek(event.job)).build_id != event.build_id:
                return False  # beanstalkd has lost its binlog, and numbers anew
            if broker.job_stats(event.job).state == "reserved":
                return True
            broker.delete(event.job)
            log.info("job %d of the cancelled build %s was waiting still: deleted", event.job, event.build_id)
        except (ReservationLost, InvalidMessage):
            pass
        return False

    def _announce(self, broker: Broker, queued: list[BuildEvent], forbidden: control.ControlFlag) -> None:
        changed: dict[str, Any] = {
            "tube": "", "job": 0, "priority": None, "due": 0.0, "attempt": "", "url": "", "builder_fqdn": "",
            "owed": {}, "status": Status.CANCELLED, "reason": forbidden.cancel_text, "at": round(time.time(), 3),
        }  # fmt: skip
        for event in queued:
            broker.announce(attr.evolve(event, **changed))
            log.info("%s was cancelled, and nobody had said so", event.key)

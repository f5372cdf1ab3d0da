# SPDX-License-Identifier: Apache-2.0
"""What the history keeps of refused messages, for a while only: the reason of one that is still buried stays.

A round is a thread of its own, with its own connections: a history that is away for long holds nobody up.
"""

from __future__ import annotations

import contextlib
import logging
import math
import threading
import time
from typing import Callable

import attr

from reimzul.core.beanstalk import Broker
from reimzul.core.errors import ReimzulError, ReservationLost
from reimzul.history import open_history
from reimzul.history.build_record import RefusalRecord

log = logging.getLogger(__name__)


@attr.frozen
class Refusals:
    """Whose they are, and how long they are kept."""

    connect: Callable[[], Broker]
    url: str  #: of the history
    days: int  #: 0: for ever

    def sweep(self) -> None:
        """Have a round begin; it ends by itself."""
        if self.days:
            threading.Thread(target=self._round, name="refusals", daemon=True).start()

    def _round(self) -> None:
        try:
            now = time.time()
            count = self.forget(now - self.days * 86400, now + 86400)
        except ReimzulError as error:
            log.warning("what was refused is not looked through today: %s", error)
        else:
            if count:
                log.info("%d refusals of more than %d days ago are forgotten", count, self.days)

    def forget(self, before: float, after: float = math.inf) -> int:
        """Drop those that are older and not buried any more, and those of a clock that was ahead; how many.

        Raises `HistoryAway`, `BrokerUnavailable`.
        """
        with contextlib.closing(open_history(self.url)) as history, self.connect() as broker:
            old = [document for document in history.iterate_refusals() if not before <= document.at <= after]
            keys = [document.key for document in old if not _is_buried(broker, document)]
            history.delete_refusals(keys)
        return len(keys)


def _is_buried(broker: Broker, document: RefusalRecord) -> bool:
    """Whether the job may be this one, put aside: its number may have become another's, which keeps it too."""
    try:
        facts = broker.job_stats(document.job)
    except ReservationLost:
        return False
    return (facts.tube, facts.state) == (document.tube, "buried")

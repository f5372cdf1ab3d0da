# SPDX-License-Identifier: Apache-2.0
"""The roll: what workers say of themselves, taken out of `notify` and kept for who asks; told to nobody.

None of it is worth a moment of delay to an event: what is old is dropped unread, what cannot be written down is
dropped too, and said once a minute.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Callable

from reimzul.core.beanstalk import ReservedJob
from reimzul.core.errors import ReservationLost
from reimzul.core.message import WorkerHeartbeat
from reimzul.history.workers import RETENTION_SECONDS, WorkerRecord, WorkerStore, WorkersUnavailable

log = logging.getLogger(__name__)

#: Seconds after which a worker's word is not worth reading any more: it has said newer ones since.
STALE = 120
#: Seconds between two lines about a file that cannot be written, and between two sweeps of it.
SAY_AGAIN, SWEEP = 60.0, 3600.0


class Roll:
    """Who is there, as the notifier hears it. Belongs to the daemon's thread."""

    def __init__(self, path: Path) -> None:
        self._file = WorkerStore(path)
        self._said = self._swept = float("-inf")

    def call(self, words: Iterable[tuple[ReservedJob[Any], WorkerHeartbeat]]) -> None:
        """Write down what was said, in the order it was said in; it does not fail."""
        latest: dict[tuple[str, str, str], WorkerRecord] = {}
        now = time.time()
        for claim, presence in words:
            age = _age(claim)
            if age <= STALE:
                key = (presence.host, presence.instance, presence.session)
                latest[key] = WorkerRecord(heartbeat=presence, last_seen=now - age)
        if latest:
            self._try(lambda: self._file.save(latest.values()))

    def sweep(self) -> None:
        """Now and then forget who has long been silent."""
        if time.monotonic() - self._swept > SWEEP:
            self._swept = time.monotonic()
            self._try(lambda: self._file.purge(time.time() - RETENTION_SECONDS))

    def close(self) -> None:
        """Leave."""
        self._file.close()

    def _try(self, write: Callable[[], None]) -> None:
        try:
            write()
        except WorkersUnavailable as error:
            if time.monotonic() - self._said > SAY_AGAIN:
                log.warning("%s", error)
                self._said = time.monotonic()


def _age(claim: ReservedJob[Any]) -> float:
    """Seconds since it was said, by beanstalkd's clock: a builder's own may be wrong."""
    try:
        return claim.stats.age
    except ReservationLost:
        return STALE + 1

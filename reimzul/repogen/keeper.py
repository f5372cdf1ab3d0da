# SPDX-License-Identifier: Apache-2.0
"""What repogen does meanwhile, whatever takes its time."""

from __future__ import annotations

import logging
import time
from typing import Any, Callable

from reimzul.core.beanstalk import Broker, ReservedJob
from reimzul.core.daemon import Stop

log = logging.getLogger(__name__)


class Keeper:
    """Called often while something takes its time: heeds a stop, keeps all claims ours, and the watchdog quiet."""

    def __init__(self, broker: Broker, stop: Stop, alive: Callable[[], None]) -> None:
        self.broker, self.stop, self.alive, self._kept = broker, stop, alive, time.monotonic()

    def __call__(self) -> None:
        self.stop.raise_if_stopping()
        self.alive()
        if time.monotonic() - self._kept > 1.0:
            self.broker.touch_all_if_due(lost=self._lost)
            self._kept = time.monotonic()

    def _lost(self, claim: ReservedJob[Any]) -> None:
        # what we do for it is done twice then, which is allowed; the others of the batch are still ours
        log.warning("%r may be another's by now", claim)
        self.broker.untrack(claim)

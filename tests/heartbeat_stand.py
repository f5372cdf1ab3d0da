# SPDX-License-Identifier: Apache-2.0
"""What a sender of heartbeats needs around it: a clock that stands still, and a listener in beanstalkd's place."""

from __future__ import annotations

from reimzul.core.beanstalk_stats import TubeStats
from reimzul.core.message import WorkerHeartbeat


class Clock:
    """A clock that stands still unless it is moved."""

    now = 1000.0

    def monotonic(self) -> float:
        return self.now

    def time(self) -> float:
        return self.now


class Listener:
    """As much of a broker as a sender of heartbeats needs."""

    def __init__(self, ready: int = 0) -> None:
        self.ready = ready
        self.error: Exception | None = None  #: raised instead of hearing
        self.heard: list[WorkerHeartbeat] = []

    def tube_stats(self, tube: str) -> TubeStats:
        return TubeStats(tube, ready=self.ready)

    def announce(self, sent: WorkerHeartbeat) -> None:
        if self.error:
            raise self.error
        self.heard.append(sent)

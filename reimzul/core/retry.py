# SPDX-License-Identifier: Apache-2.0
"""Pauses between attempts, log lines that are not repeated at each of them, and tokens that cancel long work.

Also the time for which a builder leaves a request that it could not build to others (`compute_backoff`).
"""

from __future__ import annotations

import time
from typing import Callable, Optional


class Backoff:
    """The pauses between attempts, in seconds: `first`, then twice the last one, never more than `cap`."""

    def __init__(self, first: float, cap: float) -> None:
        self.first = first
        self.cap = cap
        self.failures = 0

    def next_pause(self) -> float:
        """Count a failure and return the pause that follows it."""
        self.failures += 1
        return self.pause_after(self.failures)

    def pause_after(self, failures: int) -> float:
        """Return the pause after so many failures in a row (at least one)."""
        return min(self.cap, self.first * 2.0 ** min(failures - 1, 30))

    def reset(self) -> None:
        """Begin with the first pause again: an attempt succeeded."""
        self.failures = 0


class LogThrottle:
    """Lets a line that would be logged at every attempt through once in so many seconds."""

    def __init__(self, seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._seconds = seconds
        self._clock = clock
        self._last: Optional[float] = None

    def is_due(self) -> bool:
        now = self._clock()
        if self._last is not None and now - self._last < self._seconds:
            return False
        self._last = now
        return True

    @property
    def is_running(self) -> bool:
        """Whether a line was logged since the last reset."""
        return self._last is not None

    def reset(self) -> bool:
        """Log the next line at once: the fault is over. Return whether a line was logged about it."""
        was_running, self._last = self.is_running, None
        return was_running


class CancelToken:
    """Passed to work that takes long: the work asks it again and again whether it should end."""

    #: Seconds between two checks while `wait` sleeps.
    POLL_SECONDS = 0.25

    def __init__(self, check: Callable[[], None] = lambda: None, sleep: Callable[[float], object] = time.sleep) -> None:
        self._check = check
        self._sleep = sleep

    def raise_if_cancelled(self) -> None:
        self._check()

    def wait(self, seconds: float) -> None:
        """Sleep; raise as soon as the work is to end."""
        deadline = time.monotonic() + seconds
        self._check()
        while (left := deadline - time.monotonic()) > 0:
            self._sleep(min(left, self.POLL_SECONDS))
            self._check()


#: The broken builder is always the idle one: without a pause it would take the job straight back, and use up all tries
#: while a healthy one is busy. Seconds for which it leaves the request to builders that have not tried it, which may be
#: busy or drained for long; and to those that could not build it either.
SAME_BUILDER_BACKOFF_SECONDS, SAME_BUILDER_BACKOFF_ALL_FAILED_SECONDS = 3600, 60


def compute_backoff(elapsed: float, watchers: int, failed: int) -> float:
    """Return the seconds for which a builder still leaves a request to others; 0: it takes it now.

    `elapsed`: seconds since it was at fault. `watchers`: how many workers watch the tube; `failed`: how many workers
    the hosts have that were at fault for this request.
    """
    if watchers > failed:
        limit = SAME_BUILDER_BACKOFF_SECONDS
    else:
        limit = SAME_BUILDER_BACKOFF_ALL_FAILED_SECONDS if watchers > 1 else 0
    return max(0.0, limit - elapsed)

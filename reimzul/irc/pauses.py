# SPDX-License-Identifier: Apache-2.0
"""How long to wait before a server that was away is tried again: longer each time."""

from __future__ import annotations

#: Seconds: the first pause, and the longest.
FIRST, LONGEST = 2.0, 300.0


class Pauses:
    """When the next try is due."""

    def __init__(self) -> None:
        self._pause = FIRST
        self._next = float("-inf")

    def due(self, now: float) -> bool:
        """Whether it is time to try."""
        return now >= self._next

    def failed(self, now: float) -> float:
        """It did not work; the seconds until the next try."""
        pause = self._pause
        self._next, self._pause = now + pause, min(pause * 2, LONGEST)
        return pause

    def worked(self) -> None:
        """It did: the next pause is short again."""
        self._pause = FIRST

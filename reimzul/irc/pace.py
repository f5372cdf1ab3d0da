# SPDX-License-Identifier: Apache-2.0
"""How fast may be spoken: a few lines at once, then one every so often. Who is faster is thrown out by servers."""

from __future__ import annotations

#: How many lines may be said at once after a silence.
BURST = 4


class Pace:
    """An allowance that fills up again."""

    def __init__(self, seconds_a_line: float, now: float) -> None:
        self._seconds = seconds_a_line
        self._free_at = now  #: when the allowance will be whole again

    def ready(self, now: float) -> bool:
        """Whether a line may be said now."""
        return self._free_at - now <= (BURST - 1) * self._seconds

    def spend(self, now: float, lines: int = 1) -> None:
        """So many lines were said."""
        self._free_at = max(self._free_at, now) + lines * self._seconds

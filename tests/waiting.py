# SPDX-License-Identifier: Apache-2.0
"""Waiting for a condition, with a bound: tests never sleep for luck."""

from __future__ import annotations

import time
from typing import Callable, Optional, TypeVar

T = TypeVar("T")


def until(condition: Callable[[], Optional[T]], seconds: float, what: str) -> T:
    """What `condition` gives when that is first true; fails with `what` when the time is over."""
    deadline = time.monotonic() + seconds
    while True:
        value = condition()
        if value:
            return value
        assert time.monotonic() < deadline, f"not within {seconds:g} s: {what}"
        time.sleep(0.02)

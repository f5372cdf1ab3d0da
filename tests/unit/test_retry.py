# SPDX-License-Identifier: Apache-2.0
"""Pauses double up to their cap, and a repeated log line comes once in its interval."""

from __future__ import annotations

from reimzul.core.retry import Backoff, LogThrottle


def test_pauses_double_up_to_the_cap_until_an_attempt_succeeds() -> None:
    backoff = Backoff(2.0, 300.0)
    assert [backoff.next_pause() for _ in range(9)] == [2, 4, 8, 16, 32, 64, 128, 256, 300]
    backoff.reset()
    assert backoff.next_pause() == 2


def test_a_long_series_of_failures_does_not_overflow() -> None:
    assert Backoff(1.0, 60.0).pause_after(10**6) == 60


def test_a_log_line_is_due_once_in_its_interval_and_after_a_reset() -> None:
    now = [100.0]
    throttle = LogThrottle(60.0, clock=lambda: now[0])
    assert (throttle.is_due(), throttle.is_due()) == (True, False)
    now[0] += 60
    assert (throttle.is_due(), throttle.is_due()) == (True, False)
    throttle.reset()
    assert throttle.is_due()

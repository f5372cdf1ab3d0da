# SPDX-License-Identifier: Apache-2.0
"""Comparing the clocks of two hosts."""

from __future__ import annotations

#: Seconds that two clocks may differ. NTP keeps a clock right within tenths; our measurement is off by up to a second,
#: since beanstalkd gives ages in whole seconds, and by a message's travel time. `reimzul doctor` warns above it too.
MAX_SKEW_SECONDS = 5.0
#: 2000-01-01. An earlier time comes from a clock that was not set yet.
EARLIEST_UNIX_TIME = 946_684_800.0


def measure_skew(sent: float, arrived: float) -> float:
    """Seconds that a sender's clock is ahead of ours (negative: behind); 0 below `MAX_SKEW_SECONDS`.

    `sent` is the time of sending by the sender's clock, 0 if unknown; `arrived` is the same moment by ours.
    """
    ahead = round(sent - arrived, 3)
    return ahead if sent and abs(ahead) > MAX_SKEW_SECONDS else 0.0

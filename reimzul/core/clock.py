# SPDX-License-Identifier: Apache-2.0
"""Clocks of two hosts: how far one of them is off, and from where on that counts. Pure."""

from __future__ import annotations

#: Seconds that two clocks may be apart. A clock that NTP sets is right within tenths; what we measure is off by up to
#: a second, as beanstalkd tells ages in whole seconds, and by the moment that a message takes to get there. From here
#: on `reimzul doctor` warns too.
MAX_SKEW_SECONDS = 5.0
#: 2000-01-01: a host that says it is earlier has no battery, and nobody has set its clock yet.
EARLIEST_UNIX_TIME = 946_684_800.0


def measure_skew(said: float, arrived: float) -> float:
    """Seconds that a sender's clock is ahead of ours, negative where it is behind; 0 within what may be chance.

    `said` is the time of sending by the sender's clock, 0 where it is not known; `arrived` is the same moment by ours.
    """
    ahead = round(said - arrived, 3)
    return ahead if said and abs(ahead) > MAX_SKEW_SECONDS else 0.0

# SPDX-License-Identifier: Apache-2.0
"""What a wrong clock of its sender does to an event is put right where the event arrives, before anybody is told.

When something was announced decides which of two words is the later one, and how long they are kept: by the clock of
a host that booted in 1970, or in 2099, the history would hold a build to its first word, or forget it at once.
"""

from __future__ import annotations

import time
from typing import Any

import attr

from reimzul.core.beanstalk import ReservedJob
from reimzul.core.clock import MAX_SKEW_SECONDS, measure_skew
from reimzul.core.errors import ReservationLost
from reimzul.core.message import BuildEvent, Event, Status

#: What a builder alone announces: its clock is that of `started`, `finished` and `phases`.
_BUILDERS = (Status.BUILDING, Status.SUCCESS, Status.FAILED)


def arrived(claim: ReservedJob[Any], event: Event) -> Event:
    """An event as it is told, its times by this host's clock; what is owed to a sink was put right before."""
    if not isinstance(event, BuildEvent) or event.owed or event.status == Status.OVERRIDE:
        return event  # of all others, the time is a part of what names them
    if event.skew:
        event = attr.evolve(event, skew=0.0)  # ours to say
    now = time.time()
    if not event.at or abs(now - event.at) <= MAX_SKEW_SECONDS:
        return event  # else beanstalkd has to be asked how long it has waited
    try:
        return by_our_clock(event, now - claim.stats.age)
    except ReservationLost:
        return event


def by_our_clock(event: BuildEvent, put_at: float) -> BuildEvent:
    """An event that was put at a time by our clock."""
    skew = measure_skew(event.at, put_at)
    if not skew:
        return event
    builders = event.status in _BUILDERS
    due = max(0.0, event.due - skew) if event.due else 0.0
    return attr.evolve(event, at=round(put_at, 3), due=due, skew=skew if builders else 0.0)

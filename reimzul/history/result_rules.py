# SPDX-License-Identifier: Apache-2.0
"""Which of several results of one leg holds, and what is one piece of news and what are two.

Events come more than once and in any order, and two builders may each come to a result for one leg (a cut link).
The rules, the same for the ledger and the history:

- Of `Success`, `Failed` and `Cancelled` the first holds; the others are told to nobody.
- But a `Success` waits to be published: until then the store may reject it, and a person cancel it. `Rejected` and
  `Cancelled` outrank it; `Published` outranks them all, since the rename that it tells of came before any cancel.
- `Published` says all that a `Success` would have. Where it comes first, the `Success` is told along with it.
- Each status of a leg is news once, whichever attempt it came from; `Queued` and `Building` once an attempt, and
  a `Queued` without one once a job.
"""

from __future__ import annotations

import attr

from reimzul.core.message import BuildEvent, Event, Status

_RANK = {Status.SUCCESS: 1, Status.FAILED: 1, Status.CANCELLED: 2, Status.REJECTED: 2, Status.PUBLISHED: 3}


def is_result(status: str) -> bool:
    """Whether a status decides a leg."""
    return status in _RANK


def is_news(holds: str, status: str) -> bool:
    """Whether an event of this status is still news where `holds` was decided ("" where nothing was)."""
    if not is_result(status) or status == holds:
        return True
    if holds == Status.PUBLISHED and status == Status.SUCCESS:
        return True
    if (holds, status) == (Status.FAILED, Status.CANCELLED):
        return False  # it had ended by itself
    return _RANK[status] > _RANK.get(holds, 0)


def resulting_status(holds: str, status: str) -> str:
    """What holds after an admitted event."""
    return status if _RANK.get(status, 0) > _RANK.get(holds, 0) else holds


def news_kind(event: Event) -> str:
    """What names this piece of news among those of its build."""
    if isinstance(event, BuildEvent):
        if event.status in (Status.QUEUED, Status.BUILDING) and event.attempt:
            return f"{event.status}/{event.attempt}"
        if event.status == Status.QUEUED and event.job:  # put first by a person: another job, of the same build
            return f"{event.status}/{event.job}"
        if event.status == Status.OVERRIDE:
            return f"{event.status}/{event.at:.3f}"
    return event.status


def with_implied(event: Event) -> tuple[Event, ...]:
    """The event with what it says besides: a `Published` without its `Success` would leave a gap."""
    if isinstance(event, BuildEvent) and event.status == Status.PUBLISHED:
        return (attr.evolve(event, status=Status.SUCCESS), event)
    return (event,)


@attr.frozen
class Notification:
    """One piece of news on its way to one sink."""

    event: Event
    word: str
    maybe_sent: bool = False  #: telling it was begun before, and nothing says how that ended

    @property
    def name(self) -> tuple[str, str]:
        """What this is, for ever: the same name is never told twice to one sink."""
        return (self.event.key, self.word)

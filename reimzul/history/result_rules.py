# SPDX-License-Identifier: Apache-2.0
"""Which of several results of a build on an arch counts, and which events are news.

Events come more than once and in any order, and after a network failure two builders may build the same leg. The
notifier and the history follow the same rules:

- Of `Success`, `Failed` and `Cancelled` the first counts; nobody is notified of the others.
- A `Success` waits to be published. Until then the store may reject it, and a person cancel it: `Rejected` and
  `Cancelled` outrank it. `Published` outranks them all, since its rename came before any cancel.
- `Published` implies `Success`. If it comes first, both are sent.
- A `Published` or `Rejected` that bstore has not signed is `claimed` (`core/event_signature.py`): it is shown once, and
  decides nothing.
- Each status of a leg is news once, whichever attempt it came from; `Queued` and `Building` once per attempt, and a
  `Queued` without an attempt once per job. Each time that its job is held or released is news.
"""

from __future__ import annotations

import attr

from reimzul.core.message import BuildEvent, Event, Status

#: What a person is told of an event that is claimed.
CLAIM = "claimed: not signed by bstore"
_RANK = {Status.SUCCESS: 1, Status.FAILED: 1, Status.CANCELLED: 2, Status.REJECTED: 2, Status.PUBLISHED: 3}


def is_result(status: str) -> bool:
    return status in _RANK


def is_news(decided: str, status: str) -> bool:
    """Whether an event of this status is news after the result `decided` ("": there is none yet)."""
    if not is_result(status) or status == decided:
        return True
    if decided == Status.PUBLISHED and status == Status.SUCCESS:
        return True
    if (decided, status) == (Status.FAILED, Status.CANCELLED):
        return False  # the build ended before it could be cancelled
    return _RANK[status] > _RANK.get(decided, 0)


def is_claim_news(decided: str, status: str) -> bool:
    """Whether a claim is news after the result `decided`: not if that is the same, or outranks it."""
    return status != decided and is_news(decided, status)


def resulting_status(decided: str, status: str) -> str:
    return status if _RANK.get(status, 0) > _RANK.get(decided, 0) else decided


def news_kind(event: Event) -> str:
    """Return what distinguishes this event from others of its build: two of the same kind are one piece of news."""
    if isinstance(event, BuildEvent):
        if event.status == Status.QUEUED and event.held is not None:
            return _hold_kind(event)
        if event.status in (Status.QUEUED, Status.BUILDING) and event.attempt:
            return f"{event.status}/{event.attempt}"
        if event.status == Status.QUEUED and event.job:  # `reimzul raise`: another job of the same build
            return f"{event.status}/{event.job}"
        if event.status == Status.OVERRIDE:
            return f"{event.status}/{event.at:.3f}"
        if event.claimed:
            return f"{event.status}/claimed"
    return event.status


def _hold_kind(event: BuildEvent) -> str:
    """What distinguishes one time that a job is held or released from the others.

    A worker holds a job once an attempt; its own clock may be wrong, and a corrected `at` may differ when the event
    comes again.
    """
    when = event.attempt or f"{event.at:.3f}"
    return f"{event.status}/{event.job}/{'held' if event.held else 'released'}/{when}"


def with_implied(event: Event) -> tuple[Event, ...]:
    """Return the event, after the `Success` that a `Published` implies."""
    if isinstance(event, BuildEvent) and event.status == Status.PUBLISHED and not event.claimed:
        success = attr.evolve(event, status=Status.SUCCESS, signature="", manifest_sha256="", claimed=None)
        return (success, event)
    return (event,)


@attr.frozen
class Notification:
    event: Event
    word: str  #: its `news_kind`
    maybe_sent: bool = False  #: an earlier delivery was begun, and its outcome is unknown
    seq: int = attr.field(default=0, eq=False)  #: the event's number in the outbox

    @property
    def name(self) -> tuple[str, str]:
        """Identifies it for ever: a sink never delivers two of the same name."""
        return (self.event.key, self.word)

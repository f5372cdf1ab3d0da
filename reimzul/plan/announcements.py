# SPDX-License-Identifier: Apache-2.0
"""What people are to be notified of about a batch, from its state alone.

`reimzul-batch` calls `find_announcements` after each change of a batch, announces what it returns, and then journals an
`announced` entry for each (`announced_entry`). If it is killed in between, the same event is announced again under the
same key, which the notifier knows.

The first causes of a batch's failures are announced one by one, later ones together: once an hour, or in the event that
announces that the batch has stopped.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Sequence
from typing import Callable

import attr

from reimzul.core.batch_event import BatchEvent, BatchStatus
from reimzul.core.formatting import pluralize
from reimzul.core.message import NAMESPACE
from reimzul.plan.journal import Entry, EntryKind
from reimzul.plan.overview import (
    cause_of_member,
    count_states,
    describe_counts,
    find_all_blocked,
    find_failed,
    group_failures_by_cause,
)
from reimzul.plan.progress import MemberProgress, MemberState
from reimzul.plan.state import BatchState

#: Causes that an event lists; it has room for some lines more.
_MAX_LISTED_CAUSES = 30
#: Causes of a batch that are announced one by one, and seconds between two events that list later ones.
MAX_SINGLE_CAUSES, DIGEST_SECONDS = 10, 3600.0

#: Makes the text of an event, and the lines below it.
Describe = Callable[[BatchState], tuple[str, list[str]]]


@attr.frozen
class Announcement:
    event: BatchEvent
    others: Sequence[str] = ()  #: keys of the events that this one is announced instead of


def find_announcements(state: BatchState) -> list[Announcement]:
    """Return what was not announced yet: new causes of failures, and the end, rest or pause of a batch."""
    found = list(_announce_causes(state))
    stop = _find_stop(state)
    if stop is not None:
        status, describe = stop
        key = make_key(state, status, f"{state.stopped_at:.3f}")
        if key not in state.announced:
            found.append(Announcement(_make_event(state, status, key, *describe(state))))
    return found


def announced_entry(news: Announcement, at: float) -> Entry:
    """The entry with the whole event: of a batch that is over, it sums up what became of its members."""
    others = {"others": list(news.others)} if news.others else {}
    return {"kind": EntryKind.ANNOUNCED, "at": at, "key": news.event.key, "event": news.event.to_json(), **others}


def make_key(state: BatchState, status: str, about: str) -> str:
    """Make the key of an event; `about` tells it from others of the same status."""
    return uuid.uuid5(NAMESPACE, f"{state.plan.batch} {status} {about}").hex


def _announce_causes(state: BatchState) -> Iterator[Announcement]:
    """Announce the causes that nobody was notified of, in the order in which they were found."""
    new: dict[str, MemberProgress] = {}
    for progress in sorted(find_failed(state), key=lambda each: (each.at, each.key)):
        key = make_key(state, BatchStatus.NEW_CAUSE, cause_of_member(progress).id)
        if key not in state.announced:
            new.setdefault(key, progress)
    keys = list(new)
    room = max(0, MAX_SINGLE_CAUSES - state.cause_events)
    for key in keys[:room]:
        yield Announcement(_make_event(state, BatchStatus.NEW_CAUSE, key, *_describe_cause(state, new[key])))
    later, is_due = keys[room:], state.at - state.cause_announced_at >= DIGEST_SECONDS
    if later and not room and is_due and _find_stop(state) is None:
        text, lines = _describe_causes(state, [new[key] for key in later])
        yield Announcement(_make_event(state, BatchStatus.NEW_CAUSE, later[0], text, lines), later[1:])


def _find_stop(state: BatchState) -> tuple[str, Describe] | None:
    """Return the status of a batch that has stopped by itself, and the function that describes it."""
    if state.is_over:
        return BatchStatus.OVER, _describe_end
    if state.rests:
        return BatchStatus.RESTING, _describe_rest
    return (BatchStatus.PAUSED, _describe_pause) if state.is_self_paused else None


def _describe_cause(state: BatchState, progress: MemberProgress) -> tuple[str, list[str]]:
    cause, blocked = cause_of_member(progress), state.count_blocked(progress.key)
    behind = f"; {pluralize(blocked, 'member')} behind it" if blocked else ""
    return f": {progress.key} {progress.state}: {cause.text}{behind}", [
        f"Cause {cause.id}: {cause.text}",
        f"Why it failed: reimzul explain {progress.build_id[:8]}",
        f"Build it again: reimzul batch retry {state.plan.batch} {progress.member.name}",
    ]


def _describe_causes(state: BatchState, first: Sequence[MemberProgress]) -> tuple[str, list[str]]:
    """Describe causes together, each by the member that failed for it first."""
    lines = [f"{each.key} {each.state}: {cause_of_member(each).text}" for each in first[:_MAX_LISTED_CAUSES]]
    return f": members failed for {pluralize(len(first), 'more cause')}", [
        *_cut_list(lines, len(first)),
        "",
        f"All of them: reimzul causes --batch {state.plan.batch}",
    ]


def _describe_end(state: BatchState) -> tuple[str, list[str]]:
    return f" is over: {describe_counts(count_states(state))}", _list_causes(state)


def _describe_rest(state: BatchState) -> tuple[str, list[str]]:
    broken = {each: state.counts[each] for each in MemberState.BROKEN if state.counts[each]}
    waiting = pluralize(len(find_all_blocked(state)), "member")
    batch = state.plan.batch
    advice = [
        f"To go on: reimzul batch retry {batch} NAME, or replace, skip or release",
        f"To end it: reimzul batch settle {batch} --close",
    ]
    return f" rests: {waiting} behind {describe_counts(broken)}", [*_list_causes(state), "", *advice]


def _describe_pause(state: BatchState) -> tuple[str, list[str]]:
    advice = f"To go on: reimzul batch resume {state.plan.batch}"
    return f" has paused itself: {state.pause_reason}", [*_list_causes(state), "", advice]


def _list_causes(state: BatchState) -> list[str]:
    groups = group_failures_by_cause(state)
    return _cut_list([f"{len(each.members):,} x {each.text}" for each in groups[:_MAX_LISTED_CAUSES]], len(groups))


def _cut_list(lines: list[str], total: int) -> list[str]:
    return [*lines, f"and {pluralize(total - len(lines), 'more cause')}"] if total > len(lines) else lines


def _make_event(state: BatchState, status: str, key: str, text: str, lines: Sequence[str]) -> BatchEvent:
    plan = state.plan
    return BatchEvent(
        batch=plan.batch,
        status=status,
        key=key,
        target=plan.target,
        submitter=plan.submitter,
        arches=plan.arches,
        counts=count_states(state),
        text=f"Batch {plan.batch} for {plan.target}{text}",
        lines=tuple(lines),
        scratch=plan.scratch,
        at=state.at,
    )

# SPDX-License-Identifier: Apache-2.0
"""What people are to be notified of about a batch, from its state alone.

`reimzul-batch` calls `find_announcements` after each change of a batch, announces what it returns, and then journals an
`announced` entry for each (`announced_entry`). If it is killed in between, the same event is announced again under the
same key, which the notifier knows.
"""

from __future__ import annotations

import functools
import uuid
from collections.abc import Iterator, Sequence
from typing import Callable

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

#: Makes the text of an event, and the lines below it.
Describe = Callable[[BatchState], tuple[str, list[str]]]


def find_announcements(state: BatchState) -> list[BatchEvent]:
    """Return the events that were not announced yet: a new cause of failures, and the end, rest or pause of a batch."""
    due = [(status, make_key(state, status, about), describe) for status, about, describe in _list_news(state)]
    return [
        _make_event(state, status, key, *describe(state)) for status, key, describe in due if key not in state.announced
    ]


def announced_entry(event: BatchEvent, at: float) -> Entry:
    """The entry with the whole event: of a batch that is over, it sums up what became of its members."""
    return {"kind": EntryKind.ANNOUNCED, "at": at, "key": event.key, "event": event.to_json()}


def make_key(state: BatchState, status: str, about: str) -> str:
    """Make the key of an event; `about` tells it from others of the same status."""
    return uuid.uuid5(NAMESPACE, f"{state.plan.batch} {status} {about}").hex


def _list_news(state: BatchState) -> Iterator[tuple[str, str, Describe]]:
    """Yield status and distinction of everything that people are notified of, and the function that describes it."""
    first: dict[str, MemberProgress] = {}
    for progress in sorted(find_failed(state), key=lambda each: (each.at, each.key)):
        first.setdefault(cause_of_member(progress).id, progress)
    for cause_id, progress in first.items():
        yield BatchStatus.NEW_CAUSE, cause_id, functools.partial(_describe_cause, progress=progress)
    stopped = f"{state.stopped_at:.3f}"
    if state.is_over:
        yield BatchStatus.OVER, stopped, _describe_end
    elif state.rests:
        yield BatchStatus.RESTING, stopped, _describe_rest
    elif state.is_self_paused:
        yield BatchStatus.PAUSED, stopped, _describe_pause


def _describe_cause(state: BatchState, progress: MemberProgress) -> tuple[str, list[str]]:
    cause, blocked = cause_of_member(progress), state.count_blocked(progress.key)
    behind = f"; {pluralize(blocked, 'member')} behind it" if blocked else ""
    return f": {progress.key} {progress.state}: {cause.text}{behind}", [
        f"Cause {cause.id}: {cause.text}",
        f"Why it failed: reimzul explain {progress.build_id[:8]}",
        f"Build it again: reimzul batch retry {state.plan.batch} {progress.member.name}",
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
    lines = [f"{len(each.members):,} x {each.text}" for each in groups[:_MAX_LISTED_CAUSES]]
    left_out = len(groups) - _MAX_LISTED_CAUSES
    return [*lines, f"and {pluralize(left_out, 'more cause')}"] if left_out > 0 else lines


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

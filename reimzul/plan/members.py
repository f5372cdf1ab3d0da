# SPDX-License-Identifier: Apache-2.0
"""Members of a batch as people see them: why each is as it is, whom it waits for, and who waits for it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import attr

from reimzul.core.batch_message import is_conflict
from reimzul.core.formatting import format_duration, join_words, list_first, pluralize
from reimzul.plan import overview
from reimzul.plan.progress import MemberProgress, MemberState
from reimzul.plan.state import BatchState

#: The order of states in a table: members that run, those that need a person, then those that wait.
_STATE_ORDER = (
    MemberState.BUILDING, MemberState.RELEASED, MemberState.FAILED, MemberState.REJECTED, MemberState.CANCELLED,
    MemberState.WAITING, MemberState.BUILT, MemberState.HELD, MemberState.SKIPPED, MemberState.PUBLISHED,
)  # fmt: skip
#: Members and requirements that a sentence lists.
_MAX_NAMED = 3


def sort_members(state: BatchState, members: Iterable[MemberProgress]) -> list[MemberProgress]:
    """Sort members by state; failed ones by how many wait behind them, others as they are released."""
    chosen = list(members)
    behind = {each.key: count_blocked(state, each) or 0 for each in chosen}
    return sorted(
        chosen,
        key=lambda each: (_STATE_ORDER.index(each.state), -behind[each.key], each.member.rank, each.key),
    )


def count_blocked(state: BatchState, progress: MemberProgress) -> int | None:
    """Count the members that wait behind one; None for one that waits for others itself, or holds up nobody."""
    if progress.state == MemberState.HELD or state.is_met(progress.key):
        return None
    return state.count_blocked(progress.key)


def describe_member(state: BatchState, progress: MemberProgress, now: float) -> str:
    """Say why a member is as it is: what it waits for, who builds it, why it failed."""
    if progress.state == MemberState.BUILDING:
        text = _describe_running(progress, now)
    elif progress.state == MemberState.WAITING:
        text = describe_missing(progress)
    elif progress.state == MemberState.HELD:
        text = describe_wait(state, progress.key, now) or describe_held(state, progress)
    elif progress.state in (MemberState.FAILED, MemberState.REJECTED):
        text = overview.cause_of_member(progress).text
    elif progress.state == MemberState.BUILT and not state.plan.scratch:
        text = "to be published"
    else:
        text = {MemberState.RELEASED: "waits for a builder"}.get(progress.state, progress.reason)
    stale = progress.stale and f"stale: {progress.stale}"
    return "; ".join(each for each in (text, *_describe_followers(progress), stale) if each)


def _describe_followers(progress: MemberProgress) -> Iterator[str]:
    """Say what is worth knowing of the legs that hold up nobody."""
    if progress.state == MemberState.WAITING and progress.is_published:
        yield f"only for {join_words(sorted(progress.missing_by_leg))}: those that need it go on"
    for leg, state in sorted(progress.followers.items()):
        if state in MemberState.BROKEN:
            yield f"{leg} {state}"
    if progress.is_published:
        yield from (f"{leg} is still being built" for leg in sorted(progress.open_followers))


def _describe_running(progress: MemberProgress, now: float) -> str:
    on = f"on {progress.builder.partition('.')[0]}, " if progress.builder else ""
    usually = f", usually {format_duration(progress.member.seconds)}" if progress.member.is_measured else ""
    return f"{on}{format_duration(now - progress.started)}{usually}"


def describe_held(state: BatchState, progress: MemberProgress) -> str:
    """Say why a member is held that waits for no other."""
    if not progress.is_put:
        return "not queued yet"
    return "the batch is paused" if state.is_paused else "next, as soon as a builder is free"


def describe_missing(progress: MemberProgress) -> str:
    """Say what a member waits for that no member of the batch is known to provide."""
    conflicts = [each for each in progress.missing if is_conflict(each)]
    missing = [each for each in progress.missing if each not in conflicts]
    parts = [f"nobody provides {list_first(missing, _MAX_NAMED)}"] if missing else []
    return "; ".join([*parts, *([list_first(conflicts, _MAX_NAMED)] if conflicts else [])])


def describe_wait(state: BatchState, key: str, now: float) -> str:
    """Say which members a member waits for, and for which in the end; empty if it waits for none."""
    unmet = state.unmet_needs(key)
    if not unmet:
        return ""
    listed = [f"{each} ({_describe_need(state, each, now)})" for each in unmet[:_MAX_NAMED]]
    more = [f"{len(unmet) - _MAX_NAMED:,} more"] if len(unmet) > _MAX_NAMED else []
    text = f"waits for {join_words([*listed, *more])}"
    distant = [each for each in state.find_roots(key) if each not in unmet]
    behind = {each: state.count_blocked(each) for each in distant}
    return f"{text}; {_describe_root(state, behind)}" if behind else text


def _describe_need(state: BatchState, key: str, now: float) -> str:
    progress = state.members[key]
    if progress.state == MemberState.BUILDING:
        return f"building {_describe_running(progress, now)}"
    if progress.state in MemberState.BROKEN:
        return f"{progress.state}, with {pluralize(state.count_blocked(key), 'member')} behind it"
    return progress.state


def _describe_root(state: BatchState, behind: Mapping[str, int]) -> str:
    """Say which member holds up another in the end: one that failed, else the one that most wait for."""
    ranked = sorted(behind, key=lambda each: (state.members[each].state not in MemberState.BROKEN, -behind[each], each))
    root = state.members[ranked[0]]
    which = f"which {root.state}" if root.state == MemberState.FAILED else f"which is {root.state}"
    more = f", and for {len(ranked) - 1:,} more" if len(ranked) > 1 else ""
    return f"in the end for {root.key}, {which}: {pluralize(behind[root.key], 'member')} behind it{more}"


def to_dict(state: BatchState, progress: MemberProgress, now: float) -> dict[str, Any]:
    return {
        "member": progress.key,
        "name": progress.member.name,
        "arch": progress.member.arch,
        "srpm": progress.member.srpm,
        "disttag": progress.disttag,
        "state": progress.state,
        "message": describe_member(state, progress, now),
        "reason": progress.reason,
        "build_id": progress.build_id,
        "job": progress.job,
        "builder": progress.builder,
        "started": progress.started,
        "at": progress.at,
        "usual": progress.member.seconds if progress.member.is_measured else None,
        "followers": dict(sorted(progress.follower_states.items())),
        "waits_for": [] if state.is_ended(progress) else state.unmet_needs(progress.key),
        "missing": list(progress.missing),
        "blocked": count_blocked(state, progress),
        "stale": progress.stale,
    }


@attr.frozen(kw_only=True)
class TreeLine:
    """A member in the tree of who waits for whom."""

    progress: MemberProgress
    depth: int  #: 0: it waits for none
    behind: int = 0  #: of one that waits for none: members that wait for it, directly or through others
    is_repeated: bool = False  #: what waits for it is drawn further up


def walk_tree(state: BatchState) -> Iterator[TreeLine]:
    """Yield who waits for whom, from the members that wait for none.

    The members that wait for one come only where it comes first.
    """
    shown: set[str] = set()
    for root, behind in overview.find_waited_for(state).items():
        yield TreeLine(progress=state.members[root], depth=0, behind=behind)
        pending = [(each, 1) for each in reversed(overview.list_waiting_on(state, root))]
        while pending:
            key, depth = pending.pop()
            yield TreeLine(progress=state.members[key], depth=depth, is_repeated=key in shown)
            if key not in shown:
                pending += [(each, depth + 1) for each in reversed(overview.list_waiting_on(state, key))]
            shown.add(key)

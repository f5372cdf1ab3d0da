# SPDX-License-Identifier: Apache-2.0
"""What people see of a batch and its members: what it does, why members failed or are held, who waits for whom, and how
long it takes still.

Pure: everything follows from the batch's state and the time.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Optional

import attr

from reimzul.core.batch_message import is_conflict
from reimzul.core.failure_cause import FailureCause, find_cause
from reimzul.core.formatting import format_duration, join_words, list_first, pluralize
from reimzul.plan.document import SEED_SUFFIX
from reimzul.plan.progress import MemberProgress, MemberState
from reimzul.plan.state import BatchState

#: Names of members that a sentence lists.
_MAX_NAMED_MEMBERS = 4


class BatchPhase:
    """What a batch as a whole does, as `reimzul batch list` shows it."""

    SUBMITTED = "submitted"  #: reimzul-batch has not accepted it yet
    RUNNING = "running"
    PAUSED = "paused"
    RESTING = "resting"  #: members wait behind failed ones, and nothing else is left to do
    CANCELLING = "cancelling"  #: a person cancelled it, and builds still run
    OVER = "over"

    ALL = (SUBMITTED, RUNNING, PAUSED, RESTING, CANCELLING, OVER)


def find_phase(state: BatchState) -> str:
    if not state.is_accepted:
        return BatchPhase.SUBMITTED
    if state.is_over:
        return BatchPhase.OVER
    if state.cancel_reason:
        return BatchPhase.CANCELLING
    if state.is_paused:
        return BatchPhase.PAUSED
    return BatchPhase.RESTING if state.rests else BatchPhase.RUNNING


def is_good(state: BatchState, progress: MemberProgress) -> bool:
    """Whether a member needs nobody's attention: it is published, or left out."""
    return progress.state in list_good_states(scratch=state.plan.scratch)


def list_good_states(*, scratch: bool) -> tuple[str, ...]:
    return (MemberState.PUBLISHED, MemberState.SKIPPED, *([MemberState.BUILT] if scratch else []))


def count_states(state: BatchState) -> dict[str, int]:
    """Count members by state; states of no member are left out."""
    return {each: state.counts[each] for each in MemberState.ALL if state.counts[each]}


def describe_counts(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{count:,} {state}" for state, count in counts.items()) or "no members"


def list_names(members: Iterable[MemberProgress]) -> str:
    """List members by their keys, as many as a sentence can hold."""
    return list_first([each.key for each in members], _MAX_NAMED_MEMBERS)


# --- failures


@attr.frozen(kw_only=True)
class MemberFailures:
    """The members that failed for one cause, the one that most wait for first."""

    cause: FailureCause
    members: Sequence[MemberProgress]
    blocked: int  #: members that wait for any of them, directly or through others

    @property
    def text(self) -> str:
        behind = "them" if len(self.members) > 1 else "it"
        waiting = f"; {pluralize(self.blocked, 'member')} behind {behind}" if self.blocked else ""
        return f"{self.cause.text} ({list_names(self.members)}){waiting}"


@functools.lru_cache(maxsize=10_000)
def _find_cause(reason: str, error_line: str, package: str) -> FailureCause:
    return find_cause(reason, error_line, package)


def cause_of_member(progress: MemberProgress) -> FailureCause:
    """Return the cause of a member's failure; the same as that of its build in `reimzul causes`."""
    if progress.cause is not None:
        return progress.cause
    return _find_cause(progress.reason, progress.error_line, progress.member.name.removesuffix(SEED_SUFFIX))


def find_failed(state: BatchState) -> list[MemberProgress]:
    """Return the members that failed or were rejected, not those that a person cancelled."""
    failed = (MemberState.FAILED, MemberState.REJECTED)
    if not any(state.counts[each] for each in failed):
        return []
    return [each for each in state.members.values() if each.state in failed]


def group_failures_by_cause(state: BatchState) -> list[MemberFailures]:
    """Group failed members by cause; the cause that most members wait for comes first."""
    groups: dict[str, list[MemberProgress]] = {}
    for progress in find_failed(state):
        groups.setdefault(cause_of_member(progress).id, []).append(progress)
    found = []
    for members in groups.values():
        blocked = {each.key: state.find_blocked(each.key) for each in members}
        members.sort(key=lambda each: (-len(blocked[each.key]), each.key))
        everybody = set().union(*blocked.values())
        found.append(MemberFailures(cause=cause_of_member(members[0]), members=members, blocked=len(everybody)))
    return sorted(found, key=lambda each: (-each.blocked, -len(each.members), each.cause.text))


def find_all_blocked(state: BatchState) -> set[str]:
    """Return the members that wait, directly or through others, for one that failed, was rejected or cancelled."""
    broken = [key for key, each in state.members.items() if each.state in MemberState.BROKEN]
    return set().union(*(state.find_blocked(key) for key in broken))


# --- how long still


@attr.frozen(kw_only=True)
class Outlook:
    """How much of a batch is still to be done, without the members behind failed ones."""

    chain_seconds: float  #: of the longest chain of members that wait for each other
    chain: Sequence[str]  #: its members, the first to be built first
    work_seconds: float  #: of all builds, one after the other

    def seconds_left(self, builders: int) -> Optional[float]:
        """Estimate how long it takes with so many builders; None without any, or if no duration is known."""
        if not builders or not self.work_seconds:
            return None
        return max(self.chain_seconds, self.work_seconds / builders)


def compute_outlook(state: BatchState, now: float) -> Outlook:
    blocked = find_all_blocked(state)
    left = {
        key: _seconds_left(progress, now)
        for key, progress in state.members.items()
        if not state.is_ended(progress) and key not in blocked
    }
    lengths = _measure_chains(state, left)
    end = max(lengths, key=lambda key: lengths[key][0], default="")
    chain: list[str] = []
    while end:
        chain.append(end)
        end = lengths[end][1]
    longest = lengths[chain[0]][0] if chain else 0.0
    return Outlook(chain_seconds=longest, chain=chain[::-1], work_seconds=sum(left.values()))


def _seconds_left(progress: MemberProgress, now: float) -> float:
    if progress.result:  # to be published, or a follower is left, which holds up nobody
        return 0.0
    spent = max(0.0, now - progress.started) if progress.state == MemberState.BUILDING else 0.0
    return max(0.0, progress.member.seconds - spent)


def _measure_chains(state: BatchState, left: Mapping[str, float]) -> dict[str, tuple[float, str]]:
    """Return, for each member, the seconds of the longest chain that ends with it, and the member before it there."""
    found: dict[str, tuple[float, str]] = {}
    needs = {key: [need for need in state.members[key].needs if need in left] for key in left}
    pending = list(left)
    entered: set[str] = set()
    while pending:
        key = pending[-1]
        if key in found:
            pending.pop()
            continue
        missing = [need for need in needs[key] if need not in found]
        if missing and key not in entered:
            entered.add(key)
            pending += missing
            continue
        pending.pop()
        before = max((need for need in needs[key] if need in found), key=lambda need: found[need][0], default="")
        found[key] = (left[key] + (found[before][0] if before else 0.0), before)
    return found


# --- who waits for whom


def find_waited_for(state: BatchState) -> dict[str, int]:
    """Return the members that others wait for and that wait for none themselves, with how many wait behind each.

    The one that most wait for comes first.
    """
    candidates = [key for key in state.members if not state.is_met(key) and state.dependents_of(key)]
    behind = {key: state.count_blocked(key) for key in candidates if not state.unmet_needs(key)}
    return {key: behind[key] for key in sorted(behind, key=lambda key: (-behind[key], key)) if behind[key]}


def list_waiting_on(state: BatchState, key: str) -> list[str]:
    """Return the members that wait for one directly, the longest chain first."""
    waiting = [each for each in map(state.members.__getitem__, state.dependents_of(key)) if key in each.needs]
    waiting = [each for each in waiting if not state.is_ended(each)]
    return [each.key for each in sorted(waiting, key=lambda each: (-each.member.chain, each.key))]


def find_stale(state: BatchState) -> list[MemberProgress]:
    """Return the members that were built against an old build of another, as far as the batch itself knows."""
    built = (MemberState.BUILDING, MemberState.BUILT, MemberState.PUBLISHED)
    return [each for each in state.members.values() if each.stale and each.state in built]


# --- members

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
        text = cause_of_member(progress).text
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
    for root, behind in find_waited_for(state).items():
        yield TreeLine(progress=state.members[root], depth=0, behind=behind)
        pending = [(each, 1) for each in reversed(list_waiting_on(state, root))]
        while pending:
            key, depth = pending.pop()
            yield TreeLine(progress=state.members[key], depth=depth, is_repeated=key in shown)
            if key not in shown:
                pending += [(each, depth + 1) for each in reversed(list_waiting_on(state, key))]
            shown.add(key)

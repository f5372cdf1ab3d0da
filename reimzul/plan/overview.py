# SPDX-License-Identifier: Apache-2.0
"""What people ask about a batch: what it does, why members failed and who waits for them, and how long it takes still.

Pure: everything follows from the batch's state and the time.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping, Sequence
from typing import Optional

import attr

from reimzul.core.failure_cause import FailureCause, find_cause
from reimzul.core.formatting import list_first, pluralize
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

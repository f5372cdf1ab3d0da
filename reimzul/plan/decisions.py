# SPDX-License-Identifier: Apache-2.0
"""What `reimzul-batch` does next for a batch: pure decisions from its state.

The rules, in this order:

1. A cancelled batch ends its held members and cancels those that run.
2. A paused batch takes back what no builder has reserved yet.
3. A member is released once the members it needs are published, the longest chain first; one that waits for a
   requirement once that is provided. One that failed for want of it, on a worker that holds no jobs, is built again.
4. When nothing runs and nothing can be released, members behind a failed one are released against its listed build
   (the last resort), and those that wait for what cannot come end as Failed.
5. When nothing is left to do, the batch is over; or it rests, if members wait behind failed ones.
"""

from __future__ import annotations

import uuid
from collections.abc import Collection, Iterator, Mapping
from typing import Union

import attr

from reimzul.core.batch_message import OrderKind
from reimzul.core.failure_cause import missing_capabilities
from reimzul.core.message import NAMESPACE, NO_BUILDER
from reimzul.plan.journal import Entry, EntryKind
from reimzul.plan.progress import MemberProgress, MemberState
from reimzul.plan.state import MASS_FAULT_MEMBERS, MAX_VAIN_WAITS, BatchState


@attr.frozen
class Put:
    """Put a build of a member, held."""

    key: str


@attr.frozen
class Release:
    key: str
    stale: str = ""  #: why it has to be built again later


@attr.frozen
class TakeBack:
    """Hold a released member again, unless a builder has reserved it."""

    key: str


@attr.frozen
class CancelBuild:
    """Cancel a build that may run."""

    key: str
    reason: str


@attr.frozen
class End:
    """End the legs without a result of a member whose job is held, or that has none.

    If its required legs have a result, the member keeps the state that they make.
    """

    key: str
    state: str  #: of these legs: failed, rejected, cancelled or skipped
    reason: str


@attr.frozen
class Repeat:
    """Build a member again that failed for want of what is published now: a worker older than 0.2 holds no job."""

    key: str
    order: str  #: the id of the order as which that is journaled, so that it happens once for the same packages

    @property
    def entry(self) -> Entry:
        about = {"order": OrderKind.RETRY, "id": self.order, "by": "reimzul-batch", "members": [self.key]}
        return {"kind": EntryKind.ORDER, **about, "why": "what it lacked is published"}


@attr.frozen
class Pause:
    reason: str


@attr.frozen
class Rest:
    pass


@attr.frozen
class Finish:
    pass


Action = Union[Put, Release, TakeBack, CancelBuild, End, Repeat, Pause, Rest, Finish]


@attr.frozen(kw_only=True)
class Surroundings:
    """What decisions need to know beyond the batch."""

    room: Mapping[str, int]  #: tube -> jobs that may be released there now
    provided: Collection[str] = ()  #: waiting members whose requirements the target's repodata provides now
    #: waiting members whose requirements it lacks, as read after the last publication
    unprovided: Collection[str] = ()


def decide(state: BatchState, around: Surroundings) -> list[Action]:
    """Return what to do now, in this order. The caller journals each, and asks again."""
    if not state.is_accepted or state.is_over:
        return []
    ends = list(_end_cancelled(state))
    if state.cancel_reason:
        return ends or ([] if _is_running(state) else [Finish()])
    if reason := _find_mass_fault(state):
        return [*ends, Pause(reason)]
    puts = [Put(key) for key, each in state.members.items() if each.is_wanted and not each.is_skipped]
    if state.is_paused:
        forced = [each for each in _releases(state, around) if state.members[each.key].is_forced]
        return [*ends, *puts, *_take_back(state), *forced]
    releases = list(_releases(state, around))
    vain = list(_end_vain_waits(state))
    decided: list[Action] = [*ends, *puts, *vain, *_repeat_for_want(state), *releases]
    if decided or _is_running(state) or state.ready:
        return decided
    return list(_decide_without_progress(state, around))


def _is_running(state: BatchState) -> bool:
    """Whether something may still happen by itself."""
    return bool(state.unsettled or any(state.counts[each] for each in MemberState.RUNNING))


def _end_cancelled(state: BatchState) -> Iterator[Action]:
    roots: Mapping[str, str] | None = None
    for key, progress in state.members.items():
        reason = progress.cancel_reason or state.cancel_reason
        if not reason or (state.is_ended(progress) and not progress.open_followers):
            continue
        if progress.state in (MemberState.HELD, MemberState.WAITING):
            if progress.is_skipped:
                yield End(key, MemberState.SKIPPED, reason)
                continue
            roots = _find_broken_roots(state) if roots is None else roots
            why = f"; it waited for {roots[key]}, which {_describe_end(state, roots[key])}" if key in roots else ""
            yield End(key, MemberState.CANCELLED, reason + why)
        elif not progress.is_cancelling:
            yield CancelBuild(key, reason)


def _find_broken_roots(state: BatchState) -> dict[str, str]:
    """For each member that waits, directly or through others, for broken ones: one of these."""
    roots: dict[str, str] = {}
    for key in sorted(key for key, each in state.members.items() if each.state in MemberState.BROKEN):
        pending = [key]
        while pending:
            found = [each for each in state.dependents_of(pending.pop()) if each not in roots]
            found = [each for each in found if not state.is_ended(state.members[each])]
            roots.update(dict.fromkeys(found, key))
            pending += found
    return roots


def _describe_end(state: BatchState, key: str) -> str:
    ended = state.members[key].state
    return ended if ended == MemberState.FAILED else f"was {ended}"


def _find_mass_fault(state: BatchState) -> str:
    """Why the batch is to pause itself: its last members failed for want of a builder, or all with the same words."""
    last = state.failures_in_a_row[-MASS_FAULT_MEMBERS:]
    if state.is_paused or len(last) < MASS_FAULT_MEMBERS:
        return ""
    if all(reason.startswith(NO_BUILDER) for reason in last):
        return f"the last {len(last)} members could be built by no builder: {last[-1]}"
    return f"the last {len(last)} members failed alike: {last[-1]}" if len(set(last)) == 1 else ""


def _take_back(state: BatchState) -> Iterator[TakeBack]:
    for key, progress in state.members.items():
        if progress.state == MemberState.RELEASED and not progress.is_forced:
            yield TakeBack(key)


def _releases(state: BatchState, around: Surroundings) -> Iterator[Release]:
    room = dict(around.room)
    ready = {*state.ready, *filter(lambda key: _has_all_but_missing(state, key), around.provided)}
    for key in sorted(ready, key=lambda each: _urgency(state.members[each])):
        progress = state.members[key]
        if progress.cancel_reason or progress.vain_waits >= MAX_VAIN_WAITS:
            continue
        if progress.is_forced or room.get(progress.member.tube, 0) > 0:
            room[progress.member.tube] = room.get(progress.member.tube, 0) - 1
            yield Release(key)


def _has_all_but_missing(state: BatchState, key: str) -> bool:
    return state.members[key].state == MemberState.WAITING and not state.unmet_needs(key)


def _urgency(progress: MemberProgress) -> tuple[int, float, str]:
    return (progress.member.rank, -progress.member.chain, progress.key)


def _end_vain_waits(state: BatchState) -> Iterator[End]:
    """End the members whose wait cannot help: another required leg has failed, or it was in vain too often."""
    for key, progress in state.members.items():
        if progress.state != MemberState.WAITING:
            continue
        if progress.result in MemberState.BROKEN:
            yield End(key, progress.result, progress.reason)
        elif progress.vain_waits >= MAX_VAIN_WAITS:
            missing = ", ".join(progress.missing)
            why = f"nobody provides {missing}; missed {MAX_VAIN_WAITS + 1} times though it was found published"
            yield End(key, MemberState.FAILED, why)


def _repeat_for_want(state: BatchState) -> Iterator[Repeat]:
    """Build the failed members again that lacked only what members have published since, or had published then."""
    for key, progress in state.members.items() if state.counts[MemberState.FAILED] else ():
        if progress.state != MemberState.FAILED or progress.end_state or progress.is_wanted:
            continue
        missing = missing_capabilities(progress.reason)
        providers = [state.find_providers(progress, each) for each in missing]
        published = {each for found in providers for each in found if state.members[each].is_published}
        if missing and all(published.intersection(found) for found in providers):
            builds = " ".join(sorted(state.members[each].build_id for each in published))
            order = uuid.uuid5(NAMESPACE, f"{state.plan.batch} {key} {builds}").hex[:16]
            if order not in state.orders:
                yield Repeat(key, order)


def _decide_without_progress(state: BatchState, around: Surroundings) -> Iterator[Action]:
    """Nothing runs, and nothing can be released."""
    resorts = list(_release_against_old_builds(state)) if state.plan.last_resort else []
    if resorts:
        yield from resorts
        return
    waiting = [key for key, each in state.members.items() if each.state == MemberState.WAITING]
    hopeless = [key for key in waiting if not state.unmet_needs(key)]
    if hopeless:
        for key in hopeless:
            if key in around.unprovided:
                missing = ", ".join(state.members[key].missing)
                yield End(key, MemberState.FAILED, f"nobody provides {missing}; nothing left in the batch could")
        return
    if all(state.is_ended(each) for each in state.members.values()):
        yield Finish()
    elif not state.rests:
        yield Rest()


def _release_against_old_builds(state: BatchState) -> Iterator[Release]:
    """Release the members that wait for failed ones alone, each of which the target has an old build of."""
    for key, progress in state.members.items():
        if not progress.is_put or progress.state != MemberState.HELD:
            continue
        unmet = [state.members[need] for need in state.unmet_needs(key)]
        if unmet and all(each.state in MemberState.BROKEN and each.member.is_listed for each in unmet):
            yield Release(key, stale=f"built against the old build of {', '.join(each.key for each in unmet)}")

# SPDX-License-Identifier: Apache-2.0
"""Members of a batch as commands print them."""

from __future__ import annotations

from collections.abc import Iterator

from reimzul.admin.output import Table
from reimzul.core.formatting import pluralize
from reimzul.history import BuildRecord
from reimzul.plan import overview
from reimzul.plan.members import count_blocked, describe_held, describe_member, describe_wait, walk_tree
from reimzul.plan.progress import MemberProgress, MemberState
from reimzul.plan.state import BatchState

MEMBER_TABLE = Table(("MEMBER", "STATE", "BUILD", "BEHIND", "WHY"), dispensable=("BUILD", "BEHIND"))


def describe_membership(state: BatchState | None, build: BuildRecord, now: float) -> Iterator[str]:
    """Say, in sentences for `reimzul explain`, which batch a build belongs to and what that means for it."""
    if not build.batch:
        return
    if state is None or (progress := state.find_member(build.build_id)) is None:
        yield f"It belongs to batch {build.batch}, whose files cannot be read."
        return
    phase = overview.find_phase(state)
    why = f": {state.pause_reason}" if phase == overview.BatchPhase.PAUSED else ""
    yield f"It is a build of {progress.key} of batch {build.batch}, which is {phase}{why}."
    if progress.build_id != build.build_id:
        yield f"A later build of that member is {progress.build_id[:8]}."
        return
    if progress.state == MemberState.HELD:
        wait = describe_wait(state, progress.key, now)
        yield f"It {wait}." if wait else f"It is held: {describe_held(state, progress)}."
    if progress.state in (MemberState.HELD, MemberState.WAITING):
        yield f"To have it built all the same: reimzul batch release {build.batch} {progress.member.name} --anyway"
    blocked = count_blocked(state, progress)
    if blocked:
        yield f"{pluralize(blocked, 'member')} behind it: reimzul batch show {build.batch} --tree"
    if blocked and progress.state in MemberState.BROKEN:
        yield f"To go on: reimzul batch retry, replace or skip {build.batch} {progress.member.name}"


def to_row(state: BatchState, progress: MemberProgress, now: float) -> list[str]:
    blocked = count_blocked(state, progress)
    behind = "-" if blocked is None else f"{blocked:,}"
    why = describe_member(state, progress, now) or "-"
    return [progress.key, progress.state, progress.build_id[:8] or "-", behind, why]


def format_tree(state: BatchState, now: float) -> Iterator[str]:
    """Draw who waits for whom, from the members that wait for none."""
    for line in walk_tree(state):
        progress = line.progress
        if line.depth:
            again = "  (see above)" if line.is_repeated else ""
            yield f"{'  ' * line.depth}{progress.key}  {progress.state}{again}"
        else:
            why = describe_member(state, progress, now)
            yield f"{progress.key}  {progress.state}{f': {why}' if why else ''}  ({line.behind:,} behind it)"

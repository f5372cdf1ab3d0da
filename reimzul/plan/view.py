# SPDX-License-Identifier: Apache-2.0
"""A batch as a person sees it at a moment, for the administrator's command and the pages."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from typing import Any, Optional

import attr

from reimzul.core.formatting import pluralize
from reimzul.core.message import WorkerHeartbeat, WorkerState
from reimzul.plan import overview
from reimzul.plan.batches import BatchSummary, summarize
from reimzul.plan.members import sort_members, to_dict
from reimzul.plan.overview import BatchPhase, Outlook
from reimzul.plan.progress import MemberProgress, MemberState
from reimzul.plan.state import BatchState


@attr.frozen(kw_only=True)
class BatchView:
    """A batch and what is known beside its files."""

    state: BatchState
    now: float
    outlook: Outlook
    builders: Optional[int]  #: workers that take its jobs; None if unknown
    newly_failing: Optional[Sequence[str]] = None  #: of a scratch batch: members that were built before

    @property
    def seconds_left(self) -> float | None:
        """How long it takes still; None unless it runs, and if that cannot be estimated."""
        is_running = overview.find_phase(self.state) in (BatchPhase.RUNNING, BatchPhase.SUBMITTED)
        return self.outlook.seconds_left(self.builders or 0) if is_running else None


def make_view(state: BatchState, builders: int | None, newly_failing: Sequence[str] | None = None) -> BatchView:
    now = time.time()
    outlook = overview.compute_outlook(state, now)
    return BatchView(state=state, now=now, outlook=outlook, builders=builders, newly_failing=newly_failing)


def count_builders(state: BatchState, heartbeats: Iterable[WorkerHeartbeat]) -> int:
    """Count the workers that take jobs of a batch's tubes."""
    tubes = {progress.member.tube for progress in state.members.values()}
    return sum(bool(tubes & set(each.arches)) and each.state in WorkerState.TAKING_JOBS for each in heartbeats)


def describe_phase(state: BatchState) -> str:
    """Say what a batch does, and why, and what a person can do."""
    phase, batch = overview.find_phase(state), state.plan.batch
    if phase == BatchPhase.SUBMITTED:
        return f"{phase}: reimzul-batch has not accepted it yet"
    if phase == BatchPhase.PAUSED:
        running = sum(state.counts[each] for each in MemberState.RUNNING)
        rest = f"; {pluralize(running, 'build')} still to end" if running else ""
        return f"{phase}: {state.pause_reason}{rest} (reimzul batch resume {batch})"
    if phase == BatchPhase.RESTING:
        waiting = pluralize(len(overview.find_all_blocked(state)), "member")
        return f"{phase}: {waiting} behind failed ones (reimzul batch retry, replace, skip or release {batch} NAME)"
    return f"{phase}: {state.cancel_reason}" if phase == BatchPhase.CANCELLING else phase


def describe_progress(state: BatchState) -> str:
    good, total = summarize(state).good, len(state.members)
    return f"{good:,} of {total:,} ({100 * good // max(1, total)} %)"


def summary_to_dict(summary: BatchSummary) -> dict[str, Any]:
    about = {name: value for name, value in attr.asdict(summary).items() if name != "phase"}
    return {**about, "state": summary.phase, "total": summary.total, "good": summary.good}


def view_to_dict(view: BatchView, chosen: Sequence[MemberProgress]) -> dict[str, Any]:
    state, seconds = view.state, view.seconds_left
    return {
        **summary_to_dict(summarize(state)),
        "order": state.plan.order,
        "message": describe_phase(state),
        "builders": view.builders,
        "expected_end": None if seconds is None else view.now + seconds,
        "chain_seconds": view.outlook.chain_seconds,
        "chain": list(view.outlook.chain),
        "newly_failing": None if view.newly_failing is None else list(view.newly_failing),
        "causes": [
            {
                "cause": each.cause.id,
                "message": each.cause.text,
                "members": [one.key for one in each.members],
                "blocked": each.blocked,
            }
            for each in overview.group_failures_by_cause(state)
        ],
        "members": [to_dict(state, each, view.now) for each in sort_members(state, chosen)],
    }

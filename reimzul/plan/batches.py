# SPDX-License-Identifier: Apache-2.0
"""The batches of a controller, as readers see them: each has its plan and its journal in incoming/.

`BatchView` is a batch as a person sees it at a moment, for the administrator's command and the pages.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Optional

import attr

from reimzul.core.batch_event import BatchEvent, BatchStatus
from reimzul.core.errors import InvalidMessage
from reimzul.core.formatting import pluralize
from reimzul.core.json_message import parse_json
from reimzul.core.message import WorkerHeartbeat, WorkerState
from reimzul.plan import overview
from reimzul.plan.document import FOLDER, Plan, journal_path, plan_path, read_plan
from reimzul.plan.journal import Entry, EntryKind, JournalReader
from reimzul.plan.overview import BatchPhase, Outlook, sort_members, to_dict
from reimzul.plan.progress import MemberProgress, MemberState
from reimzul.plan.state import BatchState

#: More than the longest entry of a journal.
_MAX_END_BYTES = 1 << 17
_PLAN_OR_JOURNAL_FILE = re.compile(r"([0-9a-f]{8})\.(json|log)")


def list_batch_ids(incoming: Path) -> list[str]:
    """Return the ids of all batches, the newest first, also of unfinished ones whose plan is gone. Raises `OSError`."""
    folder = incoming / FOLDER
    if not folder.is_dir():
        return []
    times: dict[str, float] = {}
    for path in folder.iterdir():
        match = _PLAN_OR_JOURNAL_FILE.fullmatch(path.name)
        if match and (match[2] == "json" or _has_lost_plan(path)):
            times[match[1]] = path.stat().st_mtime
    return sorted(times, key=lambda batch: (times[batch], batch), reverse=True)


def _has_lost_plan(journal: Path) -> bool:
    return not journal.with_suffix(".json").exists() and read_announced_end(journal) is None


def list_batch_stamps(incoming: Path) -> dict[str, str]:
    """Return the ids of all batches, each with a stamp that changes when its files do. Raises `OSError`."""
    folder = incoming / FOLDER
    if not folder.is_dir():
        return {}
    with os.scandir(folder) as entries:
        found = {entry.name: entry.stat() for entry in entries if _PLAN_OR_JOURNAL_FILE.fullmatch(entry.name)}
    stamps = {name: f"{each.st_size}@{each.st_mtime_ns}" for name, each in found.items()}
    plans = [name.removesuffix(".json") for name in stamps if name.endswith(".json")]
    return {batch: f"{stamps[f'{batch}.json']} {stamps.get(f'{batch}.log', '')}" for batch in plans}


@attr.define
class BatchFiles:
    """Replays a batch's journal, and what is added to it. It writes nothing."""

    incoming: Path
    batch: str
    state: BatchState = attr.field(init=False)
    changes: list[Entry] = attr.field(factory=list, init=False)  #: the entries of the last `refresh`
    _reader: JournalReader = attr.field(init=False)

    def __attrs_post_init__(self) -> None:
        """Read the batch as it is now. Raises `InputError`."""
        self._start()

    def _start(self) -> None:
        self._reader = JournalReader(journal_path(self.incoming, self.batch))
        self.changes = self._read_new()
        accepted = self.changes[0].get("plan_sha256", "") if self.changes else ""
        plan = read_plan(plan_path(self.incoming, self.batch), accepted)
        self.state = BatchState.replay(plan, self.changes, self._read_later_plan)

    def _read_new(self) -> list[Entry]:
        return list(self._reader.read_new()) if self._reader.path.exists() else []

    def _read_later_plan(self, plan_sha256: str) -> Plan:
        return read_plan(plan_path(self.incoming, self.batch, plan_sha256), plan_sha256)

    def refresh(self) -> BatchState:
        """Add what was journaled since the last call. Raises `InputError`."""
        if self._reader.has_shrunk():
            self._start()
            return self.state
        self.changes = self._read_new()
        for entry in self.changes:
            self.state.apply(entry)
        return self.state


def load_batch(incoming: Path, batch: str) -> BatchState:
    """Read a batch as it is now. Raises `InputError`."""
    return BatchFiles(incoming, batch).state


# --- summaries, of which tables have many


@attr.frozen(kw_only=True)
class BatchSummary:
    batch: str
    phase: str
    target: str
    arches: Sequence[str]
    submitter: str
    scratch: bool
    created: float
    at: float  #: of its last change
    reason: str = ""  #: why it is paused or cancelled
    counts: Mapping[str, int] = attr.field(factory=dict)  #: state -> members

    @property
    def total(self) -> int:
        return sum(self.counts.values())

    @property
    def good(self) -> int:
        """The members that need nobody's attention."""
        return sum(self.counts.get(each, 0) for each in overview.list_good_states(scratch=self.scratch))

    @property
    def failed_count(self) -> int:
        return sum(self.counts.get(each, 0) for each in MemberState.BROKEN)


def summarize(state: BatchState) -> BatchSummary:
    plan = state.plan
    return BatchSummary(
        batch=plan.batch,
        phase=overview.find_phase(state),
        target=plan.target,
        arches=plan.arches,
        submitter=plan.submitter,
        scratch=plan.scratch,
        created=plan.created,
        at=state.at,
        reason=state.cancel_reason or state.pause_reason,
        counts=overview.count_states(state),
    )


def read_summary(incoming: Path, batch: str) -> BatchSummary:
    """Sum up a batch; one that is over is not replayed, since the end of its journal has all. Raises `InputError`."""
    end = read_announced_end(journal_path(incoming, batch))
    if end is None:
        return summarize(load_batch(incoming, batch))
    about = {name: getattr(end, name) for name in ("batch", "target", "arches", "submitter", "scratch", "at", "counts")}
    created = plan_path(incoming, batch).stat().st_mtime
    return BatchSummary(phase=overview.BatchPhase.OVER, created=created, **about)


def read_announced_end(path: Path) -> BatchEvent | None:
    """Return the event that announced the end of a batch, if nothing was journaled after it."""
    try:
        with path.open("rb") as stream:
            size = stream.seek(0, os.SEEK_END)
            stream.seek(max(0, size - _MAX_END_BYTES))
            line = stream.read().rstrip(b"\n").rpartition(b"\n")[2]
        entry = parse_json(line)
        event = BatchEvent.from_json(entry["event"]) if entry.get("kind") == EntryKind.ANNOUNCED else None
    except (OSError, InvalidMessage, KeyError):
        return None
    return event if event is not None and event.status == BatchStatus.OVER else None


# --- a batch as a person sees it


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

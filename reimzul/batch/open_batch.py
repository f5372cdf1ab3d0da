# SPDX-License-Identifier: Apache-2.0
"""A batch while `reimzul-batch` works on it: its state, its journal, and what only this process has to remember."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from reimzul.core.arch import Arches
from reimzul.core.batch_message import BatchRequest
from reimzul.core.errors import InputError, RetryLater, describe_os_error
from reimzul.core.message import Status
from reimzul.plan.announcements import Announcement, find_announcements
from reimzul.plan.document import Plan, journal_path, plan_path, read_plan
from reimzul.plan.journal import Entry, EntryKind, Journal, read_journal
from reimzul.plan.progress import MemberProgress
from reimzul.plan.state import BatchState


class OpenBatch:
    def __init__(self, incoming: Path, plan: Plan) -> None:
        self.incoming = incoming
        self.state = BatchState(plan, self.load_plan)
        self.id = plan.batch
        self.plan_sha256 = ""  #: of the plan that was accepted
        self.journal = Journal(journal_path(incoming, plan.batch))
        #: the numbers between which the jobs of its builds are
        self.first_job = self.last_job = 0
        #: whether a job may have been put that the journal does not have
        self.is_put_in_doubt = False
        #: builds whose job a builder still held when it was to be kicked, by member
        self.pending_kicks: dict[str, str] = {}
        #: jobs of ended members that a builder still held
        self.pending_deletes: dict[int, str] = {}
        #: when a job was first found missing, by build
        self.missing_since: dict[str, float] = {}
        #: when the last publication was noted, or everything before it was read, by this host's clock
        self.publication_noted_at = time.time()
        self.changed_at = time.monotonic()
        self._looked_at = 0.0  #: the change up to which `find_news` was asked

    @classmethod
    def accept(cls, incoming: Path, request: BatchRequest, job: int, arches: Arches) -> OpenBatch:
        """Begin a batch whose request is the job. Raises `InputError`, `RetryLater`."""
        plan = read_plan(plan_path(incoming, request.batch), request.plan_sha256)
        check_plan(plan, request.batch, arches)
        if has_begun(incoming, request.batch):
            journal = journal_path(incoming, request.batch)
            raise InputError(f"{journal}: belongs to another plan, or to none; a batch begins without a journal")
        try:
            batch = cls(incoming, plan)
        except OSError as error:
            raise RetryLater(f"{error.filename}: {describe_os_error(error)}") from error
        accepted = {"kind": EntryKind.ACCEPTED, "plan_sha256": request.plan_sha256, "job": job, "at": time.time()}
        batch.record([accepted])
        return batch

    @classmethod
    def load(cls, incoming: Path, batch_id: str) -> OpenBatch:
        """Load a batch that was accepted earlier. Raises `InputError`."""
        path = journal_path(incoming, batch_id)
        entries = read_journal(path)
        first = next(entries, None)
        if first is None or first["kind"] != EntryKind.ACCEPTED:
            raise InputError(f"{path}: does not begin with the acceptance of a plan")
        plan = read_plan(plan_path(incoming, batch_id), str(first.get("plan_sha256")) or "none")
        try:
            batch = cls(incoming, plan)  # cuts off an entry that a kill has left half written
        except OSError as error:
            raise InputError(f"{path}: {describe_os_error(error)}") from None
        for entry in (first, *entries):
            batch.apply(entry)
        batch.is_put_in_doubt = any(each.is_wanted for each in batch.state.members.values())
        return batch

    def load_plan(self, plan_sha256: str) -> Plan:
        """Read the plan that replaced the first one. Raises `InputError`."""
        return read_plan(plan_path(self.incoming, self.id, plan_sha256), plan_sha256)

    def load_checked_plan(self, plan_sha256: str, arches: Arches) -> Plan:
        """Read a plan that is to replace this one, and check it. Raises `InputError`."""
        plan = self.load_plan(plan_sha256)
        check_plan(plan, self.id, arches)
        return plan

    def record(self, entries: Sequence[Entry], *, sync: bool = True) -> None:
        """Write entries to the journal, then apply them. Raises `RetryLater` if the disk does not take them."""
        try:
            self.journal.append(entries, sync=sync)
        except OSError as error:
            raise RetryLater(f"{self.journal.path}: {describe_os_error(error)}") from error
        for entry in entries:
            self.apply(entry)

    def apply(self, entry: Entry) -> None:
        if entry["kind"] == EntryKind.ACCEPTED:
            self.plan_sha256 = str(entry["plan_sha256"])
        if entry["kind"] in (EntryKind.ACCEPTED, EntryKind.PUT, EntryKind.PUT_AGAIN):
            job = int(entry["job"])
            self.first_job, self.last_job = min(self.first_job or job, job), max(self.last_job, job)
        elif entry["kind"] == EntryKind.EVENT and entry["event"]["status"] == Status.PUBLISHED:
            self.publication_noted_at = time.time()
        self.state.apply(entry)
        self.changed_at = time.monotonic()

    def entry_of(self, kind: str, progress: MemberProgress, **more: Any) -> Entry:
        """An entry that is later than all events of the member's build, even if a builder's clock is ahead."""
        at = max(time.time(), progress.at + 0.001)
        return {"kind": kind, "member": progress.key, "build": progress.build_id, "at": at, **more}

    def find_news(self) -> list[Announcement]:
        """What people are to be notified of and the journal does not have yet."""
        if self._looked_at == self.changed_at:
            return []
        news = find_announcements(self.state)
        if not news:  # else they may not get out, and have to be found again
            self._looked_at = self.changed_at
        return news

    def close(self) -> None:
        self.journal.close()


def has_begun(incoming: Path, batch_id: str) -> bool:
    """Whether the journal of a batch has an entry: a kill may leave half of the first one. Raises `InputError`."""
    path = journal_path(incoming, batch_id)
    return path.exists() and next(read_journal(path), None) is not None


def check_plan(plan: Plan, batch_id: str, arches: Arches) -> None:
    """Raise `InputError` for a plan that is another batch's, or whose builds would get into a wrong tube."""
    if plan.batch != batch_id:
        raise InputError(f"the plan is of batch {plan.batch}, not of {batch_id}")
    for member in plan.members:
        if member.arch not in arches.known or member.tube != arches.tube_of(member.arch):
            raise InputError(f"the plan has {member.key} in tube {member.tube}, which is not that of its arch")
        if not set(member.legs):
            raise InputError(f"the plan has no arch on which {member.key} must be published")
    if len({member.key for member in plan.members}) < len(plan.members):
        raise InputError("the plan has two members of one name and arch")

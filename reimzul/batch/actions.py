# SPDX-License-Identifier: Apache-2.0
"""Does what was decided for a batch (`plan/decisions.py`): puts, releases, holds, cancels and ends builds.

The journal has each effect before or right after it happens, so that whoever is killed in between can find out:

- A put is announced, then noted; the one job that may not be noted is looked for by its number.
- A release and an end are noted first, and done again where the job shows that they were not.
- A job that was taken back is noted after; a job that is held while its batch is paused is one.

`OpenBatch` is a batch while `reimzul-batch` works on it: its state, its journal, and what only this process remembers.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Iterable, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, Callable

from reimzul.batch import jobs
from reimzul.batch.jobs import FoundJob
from reimzul.core import control
from reimzul.core.arch import Arches
from reimzul.core.batch_message import BatchRequest
from reimzul.core.beanstalk import HELD_SECONDS, Broker, arch_tube, cancel_tube
from reimzul.core.errors import InputError, ReservationLost, RetryLater, describe_os_error
from reimzul.core.message import BuildRequest, Status
from reimzul.core.validators import now_timestamp
from reimzul.plan.announcements import Announcement, find_announcements
from reimzul.plan.decisions import Action, CancelBuild, End, Finish, Pause, Put, Release, Repeat, Rest, TakeBack
from reimzul.plan.document import SEED_SUFFIX, Plan, journal_path, plan_path, read_plan
from reimzul.plan.journal import Entry, EntryKind, Journal, read_journal
from reimzul.plan.progress import MemberProgress, MemberState
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


log = logging.getLogger(__name__)

# --- actions

#: Builds that are put between two looks at the tube `batch`.
PUTS_BETWEEN_RESERVES = 100
#: Needs that an announcement names.
_MAX_NAMED_NEEDS = 3


class ActionRunner:
    """Does what was decided for one batch, by one connection."""

    def __init__(self, broker: Broker, batch: OpenBatch, ping: Callable[[], None]) -> None:
        self.broker = broker
        self.batch = batch
        self.state = batch.state
        self._ping = ping

    def run(self, actions: Sequence[Action]) -> bool:
        """Do what was decided, but put at most a slice; return whether the state has changed."""
        if self.batch.is_put_in_doubt:
            self._note_unnoted()
            return True  # what was decided may be different now
        before = self.batch.changed_at
        self._end([each for each in actions if isinstance(each, End)])
        self._release([each for each in actions if isinstance(each, Release)])
        self._take_back(each.key for each in actions if isinstance(each, TakeBack))
        self._put(islice((each.key for each in actions if isinstance(each, Put)), PUTS_BETWEEN_RESERVES))
        for each in actions:
            if isinstance(each, CancelBuild):
                self._cancel(each)
            elif isinstance(each, Repeat):
                self.batch.record([{**each.entry, "at": time.time()}])
            elif isinstance(each, Pause):
                log.warning("batch %s paused: %s", self.batch.id, each.reason)
                self.batch.record([{"kind": EntryKind.PAUSED, "reason": each.reason, "at": time.time()}])
            elif isinstance(each, (Rest, Finish)):
                self._stop(each)
        return self.batch.changed_at != before

    # --- put

    def _put(self, keys: Iterable[str]) -> None:
        for key in keys:
            progress = self.state.members[key]
            if not progress.is_wanted:
                continue  # it has just ended
            request = make_request(self.batch, progress)
            priority = self.state.plan.priority + progress.member.rank
            self.batch.is_put_in_doubt = True
            tube = arch_tube(progress.member.tube)
            job = self.broker.put(tube, request, priority=priority, delay=HELD_SECONDS)
            self._note_put(progress, request, job)
            self._ping()
        self.batch.journal.sync()

    def _note_put(self, progress: MemberProgress, request: BuildRequest, job: int) -> None:
        self.announce_held(progress, request, request.announced_arches, job)
        note = {"build": request.build_id, "job": job, "count": progress.count, "disttag": request.disttag}
        self.batch.record([{**self.batch.entry_of(EntryKind.PUT, progress), **note}], sync=False)
        self.batch.is_put_in_doubt = False

    def announce_held(self, progress: MemberProgress, request: BuildRequest, arches: Iterable[str], job: int) -> None:
        member = progress.member
        needs = [self.state.members[each].member.name for each in self.state.unmet_needs(progress.key)]
        more = f" and {len(needs) - _MAX_NAMED_NEEDS} more" if len(needs) > _MAX_NAMED_NEEDS else ""
        waits_for = f"waits for {', '.join(needs[:_MAX_NAMED_NEEDS])}{more}" if needs else ""
        reason = f"held for batch {self.batch.id}: job {job} of tube {member.tube}"
        priority = self.state.plan.priority + member.rank
        jobs.announce_queued(
            self.broker, request, arches, job, priority, member.tube, held=True, reason=reason, waits_for=waits_for,
            at=jobs.next_event_time(progress.at), **name_package(progress),
        )  # fmt: skip

    def _note_unnoted(self) -> None:
        """Look for the job that was put when this daemon was killed or cut off, and note it."""
        wanted = {self.state.next_build_id(each.key): each for each in self.state.members.values() if each.is_wanted}
        now = jobs.next_job_number(self.broker)
        for job, request in jobs.find_jobs(self.broker, self._numbers_before(now), wanted, self._ping).items():
            progress = wanted[request.build_id]
            if progress.is_wanted:
                self._note_put(progress, request, job)
        self.batch.is_put_in_doubt = False

    def _numbers_before(self, now: int) -> range:
        """The numbers that a job may have which was put after the last noted one: they fall when a binlog is lost."""
        if now > self.batch.last_job:
            return range(self.batch.last_job + 1, now)
        return self._own_numbers_before(now)

    def _own_numbers_before(self, now: int) -> range:
        """The numbers that any job of the batch may have."""
        return range(self.batch.first_job if now > self.batch.first_job else 1, now)

    # --- release and take back

    def _release(self, releases: Sequence[Release]) -> None:
        rows = [(self.state.members[each.key], each.stale) for each in releases]
        entries = [
            self.batch.entry_of(EntryKind.RELEASED, progress, **({"stale": stale} if stale else {}))
            for progress, stale in rows
        ]
        self.batch.record(entries)
        for progress, _ in rows:
            self.kick(progress)

    def kick_pending(self) -> None:
        """Kick the released jobs that a builder still held."""
        for key, build_id in list(self.batch.pending_kicks.items()):
            progress = self.state.members.get(key)
            if progress is None or progress.build_id != build_id or progress.state != MemberState.RELEASED:
                del self.batch.pending_kicks[key]
            else:
                self.kick(progress)

    def kick(self, progress: MemberProgress) -> None:
        """Announce that the job of a released build is ready, and make it so; one that a builder holds is kicked later.

        A builder announces that its build waits before it holds the job, so a release may come before that. A job
        that is ready, or in the pause of a retry, needs no kick.
        """
        self.batch.pending_kicks.pop(progress.key, None)
        found = jobs.find_job(self.broker, progress.job, progress.build_id)
        if found is None:  # the regular check finds out why
            return
        if found.stats.state == "reserved":
            self.batch.pending_kicks[progress.key] = progress.build_id
        elif found.stats.is_held:
            reason = progress.stale or f"released: job {progress.job} of tube {progress.member.tube}"
            arches = progress.list_unfinished(found.request.announced_arches)
            jobs.announce_queued(
                self.broker, found.request, arches, progress.job, found.stats.priority, progress.member.tube,
                held=False, reason=reason, at=jobs.next_event_time(progress.at), **name_package(progress),
            )  # fmt: skip
            with contextlib.suppress(ReservationLost):  # cancelled meanwhile, or kicked by a person
                self.broker.kick(progress.job)

    def _take_back(self, keys: Iterable[str]) -> None:
        taken = []
        for key in keys:
            progress = self.state.members[key]
            if (found := self.hold_again(progress)) is not None:
                arches = progress.list_unfinished(found.request.announced_arches)
                self.announce_held(progress, found.request, arches, progress.job)
                taken.append(self.batch.entry_of(EntryKind.HELD, progress))
        self.batch.record(taken)

    # --- cancel and end

    def _cancel(self, action: CancelBuild) -> None:
        """End a build that no builder has reserved, else set its cancel flag."""
        progress = self.state.members[action.key]
        if self.hold_again(progress) is not None:
            state = MemberState.SKIPPED if progress.is_skipped else MemberState.CANCELLED
            self._end([End(action.key, state, action.reason)])
            return
        control.set_flag(self.broker, cancel_tube(progress.build_id), control.new_flag("", action.reason))
        self.batch.record([self.batch.entry_of(EntryKind.CANCELLING, progress)])

    def hold_again(self, progress: MemberProgress) -> FoundJob | None:
        """Hold a job again unless a builder has reserved it, or it is gone; return it if it is held now."""
        found = jobs.find_job(self.broker, progress.job, progress.build_id)
        if found is None:
            return None
        with contextlib.suppress(ReservationLost):
            self.broker.reserve_job(progress.job, arch_tube(progress.member.tube)).release(HELD_SECONDS)
            return found
        return None

    def _end(self, ends: Sequence[End]) -> None:
        rows = [(self.state.members[each.key], each) for each in ends]
        held = [progress for progress, _ in rows if progress.is_put]
        self.batch.record(
            [
                self.batch.entry_of(EntryKind.ENDED, progress, state=end.state, reason=end.reason)
                for progress, end in rows
            ]
        )
        for progress in held:
            self.complete_end(progress)

    def complete_end(self, progress: MemberProgress) -> None:
        """Announce the end of the legs that were ended here, and delete the job."""
        found = jobs.find_job(self.broker, progress.job, progress.build_id)
        if found is None:
            return
        if self.batch.pending_deletes.get(progress.job) != progress.build_id:  # else it was announced already
            self._announce_end(progress, found.request)
        self.batch.pending_deletes[progress.job] = progress.build_id
        self.delete_pending()

    def _announce_end(self, progress: MemberProgress, request: BuildRequest) -> None:
        state, at = progress.end_state or progress.state, progress.ended_at or progress.at
        status = Status.CANCELLED if state in (MemberState.CANCELLED, MemberState.SKIPPED) else Status.FAILED
        arches = dict.fromkeys([*progress.ended_legs, *progress.list_unfinished(request.announced_arches)])
        jobs.announce_end(self.broker, request, arches, status, progress.reason, at, name_package(progress))

    def delete_pending(self) -> None:
        """Delete the jobs of ended builds, and keep in mind those that a builder still holds."""
        for job, build_id in list(self.batch.pending_deletes.items()):
            with contextlib.suppress(ReservationLost):
                if jobs.find_job(self.broker, job, build_id) is not None:
                    self.broker.delete(job)
                del self.batch.pending_deletes[job]

    def cancel_replaced(self, changed: Iterable[MemberProgress]) -> None:
        """Cancel the builds of members that another plan replaces, before that plan counts."""
        for progress in changed:
            if not progress.is_put or (self.state.is_ended(progress) and not progress.open_followers):
                continue
            reason = "replaced by another source rpm"
            if (found := self.hold_again(progress)) is not None:
                arches = progress.list_unfinished(found.request.announced_arches)
                jobs.announce_end(
                    self.broker, found.request, arches, Status.CANCELLED, reason, time.time(), name_package(progress)
                )
                with contextlib.suppress(ReservationLost):
                    self.broker.delete(progress.job)
            else:
                control.set_flag(self.broker, cancel_tube(progress.build_id), control.new_flag("", reason))

    # --- the end of the batch

    def _stop(self, action: Rest | Finish) -> None:
        kind = EntryKind.RESTS
        if isinstance(action, Finish):
            self._clear_jobs()
            kind = EntryKind.OVER
        entry: Entry = {"kind": kind, "at": time.time()}
        self.batch.record([entry])
        counts = ", ".join(f"{count} {state}" for state, count in sorted(self.state.counts.items()) if count)
        log.info("batch %s %s: %s", self.batch.id, "is over" if kind == EntryKind.OVER else "rests", counts)

    def _clear_jobs(self) -> None:
        """Complete the ends that a kill has left half done; delete held doubles, which the journal does not name."""
        members = {each.build_id: each for each in self.state.members.values() if each.build_id}
        numbers = self._own_numbers_before(jobs.next_job_number(self.broker))
        for job, request in jobs.find_jobs(self.broker, numbers, members, self._ping).items():
            progress = members[request.build_id]
            with contextlib.suppress(ReservationLost):
                if not self.broker.job_stats(job).is_held:
                    continue
                if job == progress.job:
                    self.complete_end(progress)
                else:
                    log.warning("batch %s: deleted job %d, a double of %s", self.batch.id, job, request.srpm)
                    self.broker.delete(job)


def make_request(batch: OpenBatch, progress: MemberProgress) -> BuildRequest:
    """The request of a member's next build."""
    member, plan = progress.member, batch.state.plan
    return BuildRequest(
        srpm=member.srpm,
        arch=member.arch,
        target=member.target,
        disttag=progress.disttag,
        submitter=plan.submitter,
        scratch=plan.scratch,
        build_id=batch.state.next_build_id(progress.key),
        timestamp=now_timestamp(),
        srpm_sha256=member.srpm_sha256,
        parent=progress.build_id,
        rebuild=True,
        batch=batch.id,
        bconds=member.bconds,
    )


def name_package(progress: MemberProgress) -> dict[str, str]:
    """What an event says about the package of a member."""
    return {"pkgname": progress.member.name.removesuffix(SEED_SUFFIX), "evr": progress.member.evr}

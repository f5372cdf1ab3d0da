# SPDX-License-Identifier: Apache-2.0
"""Compares what a batch believes of its jobs with what beanstalkd says: events and wake-ups may be lost.

Released builds are checked regularly, held ones after each connect. A job that is held though it was released is
kicked; one that was buried counts as failed; one that is gone without a result is put again.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Iterable, Iterator, Sequence

import attr

from reimzul.batch import jobs
from reimzul.batch.actions import ActionRunner, OpenBatch, make_request, name_package
from reimzul.core import control
from reimzul.core.beanstalk import BATCH, CREATEREPO, HELD_SECONDS, NOTIFY, Broker, arch_tube
from reimzul.core.errors import ReimzulError
from reimzul.core.message import BuildEvent, BuildRequest, Status
from reimzul.core.pending import read_pending
from reimzul.core.settings import Settings
from reimzul.history import BuildFilter, BuildRecord, NoHistory, open_history
from reimzul.plan.journal import EntryKind, event_entry
from reimzul.plan.progress import MemberProgress, MemberState

log = logging.getLogger(__name__)

#: Seconds between two checks, and until a check is repeated that could not decide.
CHECK_SECONDS, RECHECK_SECONDS = 30.0, 1.0
#: The most legs that a build has.
_MAX_LEGS = 20


@attr.frozen
class Pipeline:
    """What lies between the programs that announce something and this one."""

    settings: Settings

    def is_drained(self, broker: Broker, *, of_uploads: bool = False) -> bool:
        """Whether everything announced until now has arrived here; `of_uploads`: and is published."""
        if not broker.tube_stats(NOTIFY.name).is_empty:
            return False
        if of_uploads and not broker.tube_stats(CREATEREPO.name).is_empty:
            return False
        try:
            if any(each.sink in ("batch", "history") for each in read_pending(self.settings.notifier.ledger)):
                return False
        except ReimzulError as error:
            log.warning("%s", error)
            return False
        return broker.tube_stats(BATCH.name).is_empty

    def find_results(self, build_id: str) -> list[BuildRecord] | None:
        """The records of a build that is over; None if the history cannot be read."""
        try:
            with contextlib.closing(open_history(self.settings.history.url, reading=True)) as history:
                found = history.find_builds(BuildFilter(build_id=build_id), _MAX_LEGS)
        except NoHistory:
            return []
        except ReimzulError as error:
            log.warning("the result of build %s is unknown: %s", build_id, error)
            return None
        return [each for each in found if each.is_over and each.status in (*Status.FINAL, Status.PUBLISHED)]


class JobChecker:
    def __init__(self, pipeline: Pipeline) -> None:
        self._pipeline = pipeline
        self.restart()

    def restart(self) -> None:
        """Check all jobs next: the connection is new."""
        self._due = self._recheck_due = 0.0
        self._is_first = True
        self._undecided: set[str] = set()  #: build ids

    def check_if_due(self, runners: Sequence[ActionRunner]) -> None:
        """Check the jobs of all batches; in between, those that a check could not decide on."""
        now = time.monotonic()
        is_whole = now >= self._due
        if not is_whole and (not self._undecided or now < self._recheck_due):
            return
        undecided = set()
        for runner in runners:
            for progress in list(_members_to_check(runner.batch, everything=self._is_first or not is_whole)):
                if (is_whole or progress.build_id in self._undecided) and not self._check_member(runner, progress):
                    undecided.add(progress.build_id)
        self._undecided, self._recheck_due = undecided, time.monotonic() + RECHECK_SECONDS
        if is_whole:
            self._is_first, self._due = False, time.monotonic() + CHECK_SECONDS

    def check_job(self, runners: Iterable[ActionRunner], job: int) -> None:
        """Check the build that a job was refused of."""
        for runner in runners:
            for progress in list(_members_to_check(runner.batch, everything=True)):
                if progress.job == job:
                    self._check_member(runner, progress)

    def _check_member(self, runner: ActionRunner, progress: MemberProgress) -> bool:
        """Check one member's job; return False if that has to be repeated soon."""
        batch, job = runner.batch, progress.job
        found = jobs.find_job(runner.broker, job, progress.build_id)
        if batch.state.is_ended(progress) and not progress.open_followers:
            if found is not None and found.stats.is_held:
                runner.complete_end(progress)
            return True
        if found is None:
            self._check_missing(runner, progress)
            return True
        batch.missing_since.pop(progress.build_id, None)
        if found.stats.state == "buried":
            reason = f"its job {job} was refused: `reimzul kick {job}` has it tried again"
            ended = batch.entry_of(EntryKind.ENDED, progress, state=MemberState.FAILED, reason=reason)
            batch.record([ended])
        elif found.stats.is_held and _is_running(progress):
            return self._check_held(runner, progress)
        return True

    def _check_held(self, runner: ActionRunner, progress: MemberProgress) -> bool:
        """Kick a held job that was released, unless its builder has announced that it is held again."""
        batch = runner.batch
        if not self._pipeline.is_drained(runner.broker):
            return False
        if batch.state.is_paused and not progress.is_forced:
            # a Building that arrived after its job was taken back is left: a check after the resume kicks the job
            if progress.state == MemberState.RELEASED:
                batch.record([batch.entry_of(EntryKind.HELD, progress)])
        elif progress.key not in batch.pending_kicks:
            log.info("batch %s: job %d of %s was still held", batch.id, progress.job, progress.key)
            runner.kick(progress)
        return True

    def _check_missing(self, runner: ActionRunner, progress: MemberProgress) -> None:
        """Look for the result of a build whose job is gone; without one, put it again.

        If the required legs have a result, a follower without one ends as failed instead: it holds up nobody.
        """
        batch, build_id = runner.batch, progress.build_id
        since = batch.missing_since.setdefault(build_id, time.monotonic())
        if time.monotonic() - since < CHECK_SECONDS or not self._pipeline.is_drained(runner.broker, of_uploads=True):
            return
        results = self._pipeline.find_results(build_id)
        if results is None:
            return
        known = progress.results
        batch.record([event_entry(event_of_record(each), time.time()) for each in results])
        if progress.results != known:
            return
        if progress.result:
            _end_followers(runner, progress)
        else:
            put_again(runner, progress)


def _end_followers(runner: ActionRunner, progress: MemberProgress) -> None:
    """Announce the end of the followers of a build whose job was lost, after a kill under the same attempt; note it."""
    reason = f"its job {progress.job} is gone, and has left no result"
    request, about = _repeat_request(runner.batch, progress), name_package(progress)
    jobs.announce_end(runner.broker, request, progress.list_unfinished(), Status.FAILED, reason, progress.at, about)
    ended = runner.batch.entry_of(EntryKind.ENDED, progress, state=MemberState.FAILED, reason=reason)
    runner.batch.record([ended])


def _repeat_request(batch: OpenBatch, progress: MemberProgress) -> BuildRequest:
    """The request of a build that was put already."""
    return attr.evolve(make_request(batch, progress), build_id=progress.build_id, parent="")


def put_again(runner: ActionRunner, progress: MemberProgress) -> None:
    """Put a build whose job was lost, with the same build id; a builder finds what was uploaded already."""
    batch, member = runner.batch, progress.member
    request = _repeat_request(batch, progress)
    priority = batch.state.plan.priority + member.rank
    job, flag = control.requeue_unless_cancelled(
        runner.broker, arch_tube(member.tube), request, priority=priority, delay=HELD_SECONDS
    )
    if flag is not None:
        ended = batch.entry_of(EntryKind.ENDED, progress, state=MemberState.CANCELLED, reason=flag.cancel_text)
        batch.record([ended])
        return
    log.warning("batch %s: job %d of %s was lost; put again as job %d", batch.id, progress.job, progress.key, job)
    runner.announce_held(progress, request, progress.list_unfinished(request.announced_arches), job)
    batch.record([{**batch.entry_of(EntryKind.PUT_AGAIN, progress), "job": job}])


def _members_to_check(batch: OpenBatch, *, everything: bool) -> Iterator[MemberProgress]:
    """The members that should have a job: a builder's result ends that."""
    for progress in batch.state.members.values():
        has_ended = batch.state.is_ended(progress) and progress.legs and not progress.end_state
        has_result = not progress.open_followers and (progress.state == MemberState.BUILT or has_ended)
        if progress.is_put and not has_result and (everything or _is_running(progress)):
            yield progress


def _is_running(progress: MemberProgress) -> bool:
    """Whether a builder may have its job, or is about to get it."""
    return progress.state in MemberState.RUNNING or bool(progress.open_followers)


def event_of_record(record: BuildRecord) -> BuildEvent:
    """The event of a result that never arrived here, from the history."""
    return BuildEvent(
        srpm=record.srpm,
        arch=record.arch,
        target=record.target,
        status=Status.PUBLISHED if record.published else record.status,
        submitter=record.submitter,
        scratch=record.scratch,
        build_id=record.build_id,
        attempt=record.attempt,
        reason=record.reason,
        place=record.place,
        at=record.at,
    )

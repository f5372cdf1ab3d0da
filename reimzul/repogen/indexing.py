# SPDX-License-Identifier: Apache-2.0
"""Brings a target's repodata up to date for the legs that were placed in it, and keeps track of failures.

A run that createrepo_c crashes at is repeated without the legs that cause it; one with a wrong checksum is repeated
from the packages alone. Callers hold the target's lock.
"""

from __future__ import annotations

import contextlib
import logging
import math
import time
from collections.abc import Iterable, Iterator, Sequence
from typing import Optional, Union

import attr

from reimzul.core import control, validators
from reimzul.core.beanstalk import Broker, ReservedJob, target_tube
from reimzul.core.errors import ProgramNotFound, ReservationLost, RetryLater
from reimzul.core.message import RepogenRequest
from reimzul.core.retry import Backoff, CancelToken
from reimzul.store.createrepo import (
    CRASH_PREFIX,
    CreaterepoCrashed,
    CreaterepoRunner,
    HookFailed,
    RunningHook,
    read_failure,
    read_run,
    run_hook,
)
from reimzul.store.listing import Listing, ListingCache, StoredLeg
from reimzul.store.listing_rules import ListingRules, RulesResult
from reimzul.store.repodata import Draft, recover_interrupted_run

log = logging.getLogger(__name__)


@attr.define
class IndexJob:
    """A reserved job and the leg that it brought to its place; no leg if the job only asks for the target."""

    claim: ReservedJob[RepogenRequest]
    leg: Optional[StoredLeg]


@attr.frozen(kw_only=True)
class PendingRepodata:
    """A target's new repodata, read back, which nobody sees yet; its hook may be running."""

    target: str
    jobs: list[IndexJob]
    listing: Listing
    draft: Draft
    hook: Optional[RunningHook]
    resources: contextlib.ExitStack  #: the hook and the target's lock: closing it ends both
    started: float  #: by time.monotonic


class HookRetry(RetryLater):
    """The hook has failed, and is run again after its own pause."""


class TargetIndexer:
    def __init__(self, createrepo: CreaterepoRunner, rules: ListingRules) -> None:
        self.createrepo, self.rules, self.store = createrepo, rules, createrepo.store
        self.listings = ListingCache(self.store)
        self.complaints: dict[str, str] = {}  #: why createrepo_c's last run did not list a leg, by its place
        self._backoffs: dict[str, Backoff] = {}

    def is_due(self, target: str, jobs: Sequence[IndexJob]) -> bool:
        """Whether to work on a target now: it has rested, or it needs no run. Later jobs are indexed together."""
        rested = read_run(self.store.runs(target)).allows_next(time.time())
        return rested or _are_listed(jobs, self.listings.visible(target))

    def start(
        self, target: str, jobs: list[IndexJob], lock: int, cancel: CancelToken, resources: contextlib.ExitStack
    ) -> Union[PendingRepodata, Listing]:
        """Make a target's new repodata and start its hook; return what is listed if no run is needed.

        The hook joins `resources`. Raises `RetryLater`.
        """
        started = time.monotonic()
        with self._retrying(target):
            recover_interrupted_run(self.store.target(target), thorough=False)
            visible = self.listings.visible(target)
            _update_legs(jobs, self.rules.read_rulings(target, _legs_of(jobs)))
            if _are_listed(jobs, visible):
                return visible
            self._raise_if_hook_pauses(target, jobs)
            ruled = self._apply_rules(target, _legs_of(jobs))
            _update_legs(jobs, ruled.legs)
            if _are_listed(jobs, visible):  # all new legs may be refused
                return visible
            listing = self._make_listing(target, jobs, ruled, lock, cancel)
            draft = self.createrepo.make_draft(target)
            try:
                hook = resources.enter_context(run_hook(self.createrepo.settings, self.store, target, draft.folder))
            except HookFailed as error:
                self._discard(draft, error)
        return PendingRepodata(
            target=target, jobs=jobs, listing=listing, draft=draft, hook=hook, resources=resources, started=started
        )

    def finish(self, pending: PendingRepodata) -> bool:
        """Make new repodata visible; return false while its hook runs. Raises `RetryLater`."""
        with contextlib.ExitStack() as resources, self._retrying(pending.target):
            resources.push(pending.resources)
            try:
                if pending.hook is not None and not pending.hook.has_succeeded():
                    resources.pop_all()
                    return False
                self.createrepo.reveal(pending.draft)
            except HookFailed as error:
                self._discard(pending.draft, error)
        self._backoffs.pop(pending.target, None)
        took = time.monotonic() - pending.started
        log.info("%s indexed for %d jobs in %.1f s", pending.target, len(pending.jobs), took)
        return True

    @contextlib.contextmanager
    def _retrying(self, target: str) -> Iterator[None]:
        """Raise `RetryLater` with a growing pause for whatever fails."""
        try:
            yield
        except HookRetry:
            raise
        except (RetryLater, ProgramNotFound, OSError) as error:
            backoff = self._backoffs.setdefault(target, Backoff(first=5, cap=300))
            raise RetryLater(str(error), pause=int(backoff.next_pause())) from error

    def _discard(self, draft: Draft, error: HookFailed) -> None:
        log.error("%s keeps its old repodata: [repogen] after_createrepo: %s", draft.target, error)
        failure = self.createrepo.discard_draft(draft, error)
        raise HookRetry(f"[repogen] after_createrepo: {error}", pause=failure.pause) from error

    def _raise_if_hook_pauses(self, target: str, jobs: Iterable[IndexJob]) -> None:
        """Raise `HookRetry` if the hook failed a while ago, unless a new request asks for the target itself."""
        failure = read_failure(self.store.hook(target))
        if failure is None or not self.createrepo.settings.after_createrepo:
            return
        left = math.ceil(failure.seconds_to_retry(time.time()))
        if left > 0 and not any(job.claim.message.is_bare and _is_new(job.claim) for job in jobs):
            raise HookRetry(f"[repogen] after_createrepo: {failure.reason}", pause=left)

    def _apply_rules(self, target: str, legs: Sequence[StoredLeg], dropped: Sequence[str] = ()) -> RulesResult:
        return self.rules.apply_rules(
            target, self.listings.visible(target), self.createrepo.list_packages(target), legs, dropped
        )

    def _make_listing(
        self, target: str, jobs: list[IndexJob], ruled: RulesResult, lock: int, cancel: CancelToken
    ) -> Listing:
        """Run createrepo_c, and once more if a rebuild cannot be listed: then what it was to replace is listed."""
        listing = self._run_and_read(target, ruled, lock, cancel)
        failed = [leg for leg in ruled.legs if not leg.ruling.refused and not listing.has(leg)]
        if failed and self.rules.restore_replaced(target, failed):
            legs = [leg for leg in ruled.legs if leg not in failed]
            ruled = self._apply_rules(target, legs, [leg.folder for leg in failed])
            listing = self._run_and_read(target, ruled, lock, cancel)
        _update_legs(jobs, ruled.legs)
        return listing

    def _run_and_read(self, target: str, ruled: RulesResult, lock: int, cancel: CancelToken) -> Listing:
        legs = [leg for leg in ruled.legs if not leg.ruling.refused]
        given = RulesResult(legs=legs, packages=ruled.packages)
        try:
            read_all = self.createrepo.run(target, lock, cancel, packages=given.packages)
        except CreaterepoCrashed as crash:
            given = self._without_fatal(target, given, crash, cancel)
            read_all = self.createrepo.run(target, lock, cancel, packages=given.packages)
        listing = self.listings.read_new(target)
        if any(listing.has_wrong_checksum(leg) for leg in ruled.legs):
            # --skip-stat and the cache trust earlier checksums, and a crash may have damaged either.
            log.warning("the repodata of %s has a wrong checksum: made again, from the packages alone", target)
            read_all = self.createrepo.run(target, lock, cancel, full_rebuild=True, packages=given.packages)
            listing = self.listings.read_new(target)
        for leg in legs:  # under the lock, before another run overwrites the output
            if leg.place not in self.complaints and not listing.has(leg):
                self.complaints[leg.place] = self.createrepo.find_complaint(leg)
        is_short = len(listing.packages) < len(given.packages) or not all(listing.has(leg) for leg in given.legs)
        if read_all and is_short:
            raise RetryLater(f"createrepo_c ended well, and its repodata of {target} lacks what it should list")
        return listing

    def _without_fatal(
        self, target: str, ruled: RulesResult, crash: CreaterepoCrashed, cancel: CancelToken
    ) -> RulesResult:
        """Leave out the legs that createrepo_c crashes on; raise the crash again if there are none."""
        visible = self.listings.visible(target)
        fatal = [leg for leg in ruled.legs if not visible.has(leg) and self.createrepo.crashes_on(leg, cancel)]
        if not fatal:
            raise crash
        self.complaints.update({leg.place: f"{CRASH_PREFIX}{crash}" for leg in fatal})
        folders = {leg.folder for leg in fatal}
        log.warning("%s: made again without %s", crash, ", ".join(sorted(folders)))
        packages = [path for path in ruled.packages if path.rpartition("/")[0] not in folders]
        return RulesResult(legs=[leg for leg in ruled.legs if leg not in fatal], packages=packages)


def update_stuck_flag(broker: Broker, createrepo: CreaterepoRunner, target: str, host: str) -> None:
    """Put the reason why the hook fails into beanstalkd, for `reimzul explain` on the controller."""
    failure = read_failure(createrepo.store.hook(target))
    tube = target_tube(target)
    flag = control.read_flag(broker, tube)
    why = validators.line(300)(failure.reason) if failure else ""
    if (flag.why if flag else "") == why:
        return
    with contextlib.suppress(RetryLater):  # beanstalkd is full
        control.clear_flag(broker, tube)
        if failure:
            control.set_flag(broker, tube, control.new_flag(host, why))


def _is_new(claim: ReservedJob[RepogenRequest]) -> bool:
    try:
        return not claim.stats.releases
    except ReservationLost:
        return False


def _legs_of(jobs: Iterable[IndexJob]) -> list[StoredLeg]:
    return [job.leg for job in jobs if job.leg is not None]


def _update_legs(jobs: Iterable[IndexJob], legs: Iterable[StoredLeg]) -> None:
    ruled = {leg.place: leg for leg in legs}
    for job in jobs:
        if job.leg is not None:
            job.leg = ruled.get(job.leg.place, job.leg)


def _are_listed(jobs: Iterable[IndexJob], listing: Listing) -> bool:
    return all(job.leg is not None and (job.leg.ruling.refused or listing.has(job.leg)) for job in jobs)

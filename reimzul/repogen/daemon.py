# SPDX-License-Identifier: Apache-2.0
"""The daemon that publishes: takes what waits, brings each leg to its place, indexes each target once for all.

The order is the promise: in its place, in the repodata, announced, given to the signer, and only then the job is
settled. Whatever line we die at, the job comes again, and each step first looks whether it is done.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Callable, Optional

import attr

from reimzul.core import control
from reimzul.core.beanstalk import CREATEREPO, PRIORITY, TOSIGN, Broker, ReservedJob
from reimzul.core.daemon import Daemon, Outcome, Stop, retry_or_give_up
from reimzul.core.errors import BrokerUnavailable, ProgramNotFound, ReimzulError, RetryLater, ShutdownRequested
from reimzul.core.fs import file_lock
from reimzul.core.manifest import Manifest
from reimzul.core.message import Refusal, RepogenRequest
from reimzul.core.refused import Overflow
from reimzul.core.store_paths import StorePaths, StoreUrls, leg_key, spool_name
from reimzul.repogen import indexing as stuck
from reimzul.repogen.publish import (
    CancelledBeforePublish,
    archive_upload,
    archived_manifest,
    make_cancelled_event,
    make_published_event,
    make_sign_request,
    remove_live_logs,
    store_upload,
)
from reimzul.repogen.reject import Rejection, RejectionHandler, read_rejection, read_request, reject
from reimzul.repogen.spool_scan import IncompleteUpload, UnknownUpload, scan_spool
from reimzul.repogen.verify import InvalidUpload, UnpublishablePackage
from reimzul.store.cleanup import Retention, sweep_expired, sweep_live_logs
from reimzul.store.createrepo import (
    CRASH_PREFIX,
    CreaterepoCrashed,
    CreaterepoRunner,
    crashes_on,
    find_complaint,
    is_lasting,
)
from reimzul.store.hook import HookFailed, RunningHook
from reimzul.store.listing import Listing, ListingCache, StoredLeg
from reimzul.store.listing_rules import ListingRules, RulesResult
from reimzul.store.repodata import REPODATA, Draft, recover_interrupted_run

log = logging.getLogger(__name__)

#: Seconds between looks at a lock that another has.
LOCK_POLL = 0.05
#: Seconds between two scans of the spool.
SCAN_INTERVAL_SECONDS = 3600
#: How often createrepo_c may leave a leg out before it is given up, and the pauses before it is asked again.
LEFT_OUT_PAUSES = (5, 30, 120)
#: The pauses, in seconds, after one failure of createrepo_c on a target, after two, and so on.
FAILED_PAUSES = (5, 10, 30, 60, 120, 300)
#: Seconds after which growing logs to which nothing comes any more are removed.
LIVE_LOGS_SECONDS = 2 * 86400
#: Seconds to wait after the disk would not do what we asked.
DISK_PAUSE = 30

#: Seconds to wait for a hook to end where nothing else is to be done.
HOOK_POLL = 0.05

_Claim = ReservedJob[RepogenRequest]
#: A claim and the leg it brought to its place; None where it only asks for the target.
_Job = tuple[_Claim, Optional[StoredLeg]]
Heed = Callable[[], None]


@attr.frozen(kw_only=True)
class Made:
    """A target's new repodata, read back, which nobody sees yet; the hook is at work on it, if there is one."""

    jobs: list[_Job]
    listing: Listing
    new: Draft
    hook: Optional[RunningHook]
    held: contextlib.ExitStack  #: the target's lock, and the hook: closing it ends both
    started: float  #: by time.monotonic


@attr.frozen(kw_only=True)
class RepogenContext:
    """What this host publishes with."""

    store: StorePaths
    urls: StoreUrls
    createrepo: CreaterepoRunner
    rejections: RejectionHandler
    spool_days: int
    rules: ListingRules
    retention: Retention = attr.field(factory=Retention)


class Repogen(Daemon[RepogenRequest]):
    """Claims from `createrepo`, many at once."""

    batch = 200

    def __init__(
        self,
        connect: Callable[[], Broker],
        host: str,
        tools: RepogenContext,
        stop: Stop | None = None,
        overflow: Overflow | None = None,
    ) -> None:
        super().__init__(connect, [CREATEREPO], host, stop, overflow)
        self.context = tools
        self.listings = ListingCache(tools.store)
        self._failures: dict[str, int] = {}
        self._complaints: dict[str, str] = {}  # what createrepo_c said in the last run against a leg, by its place
        self._next_scan = 0.0

    def handle(self, broker: Broker, claims: list[_Claim]) -> Iterator[tuple[_Claim, Outcome]]:
        """Each leg to its place first, and those that came meanwhile; then a target at a time, whichever is free."""
        heed = ProgressGuard(broker, self.stop, self.ping_watchdog)
        waiting: dict[str, list[_Job]] = {}
        yield from self._place_all(broker, list(claims), waiting, heed)
        # legs of one build end together, and are indexed together
        yield from self._place_all(broker, self._claim_more(broker, claims, waiting), waiting, heed)
        yield from self._index_all(broker, claims, waiting, heed)

    def _place_all(
        self, broker: Broker, claims: Iterable[_Claim], waiting: dict[str, list[_Job]], heed: Heed
    ) -> Iterator[tuple[_Claim, Outcome]]:
        """Each leg to its place; those that are to be indexed into `waiting`, by their target, the others are done."""
        for claim in claims:
            heed()
            try:
                leg = None if claim.message.is_bare else self._bring_in(broker, claim, heed)
            except (BrokerUnavailable, ShutdownRequested):
                raise
            except (ReimzulError, OSError) as error:
                yield claim, _outcome(error)
                continue
            is_published = leg is not None and leg.is_publishable
            if claim.message.is_bare or is_published or (leg and not self._has_repodata(claim.message.target)):
                waiting.setdefault(claim.message.target, []).append((claim, leg if is_published else None))
            else:
                yield claim, None

    def _has_repodata(self, target: str) -> bool:
        """Whether builds for a target find repodata: it gets empty ones with its first leg, whatever that came to."""
        return (self.context.store.target(target) / REPODATA).exists()

    def _bring_in(self, broker: Broker, claim: _Claim, heed: Heed) -> StoredLeg | None:
        """The leg in its place; None where it has none, and all that follows from that is out."""
        store, request = self.context.store, claim.message
        name = spool_name(request.build_id, request.arch, request.attempt)
        if request.logs:
            archive_upload(store, name)
            leg = None
        else:
            leg = self._place(broker, claim, name, heed)
        remove_live_logs(store, name)
        return leg

    def _place(self, broker: Broker, claim: _Claim, name: str, heed: Heed) -> StoredLeg | None:
        store, request = self.context.store, claim.message
        try:
            leg = store_upload(store, request, heed, lambda: control.cancel_flag(broker, request.build_id) is not None)
        except CancelledBeforePublish as error:
            self._withdraw(broker, request, error.manifest)
            archive_upload(store, name)
            return None
        except InvalidUpload as error:
            asked = read_request(store.spool / name, request.build_id)
            again = not isinstance(error, UnpublishablePackage)
            reject(store, store.spool / name, name, Rejection(reason=str(error), again=again, request=asked))
            leg = None
        if leg is not None:
            log.info("%s is in %s", leg_key(request.build_id, request.arch), leg.place)
            return leg
        verdict = read_rejection(store, name)
        if verdict is not None:
            self.context.rejections.handle(broker, request, verdict)
        elif not self._withdraw(broker, request, archived_manifest(store, request)):  # as one was that died right here
            raise retry_or_give_up(claim, f"the upload {name}")
        return None

    def _withdraw(self, broker: Broker, request: RepogenRequest, manifest: Manifest | None) -> bool:
        """Say that a leg is cancelled that was built; whether it is."""
        forbidden = control.cancel_flag(broker, request.build_id)
        event = make_cancelled_event(request, manifest, forbidden.cancel_text, self.context.urls) if forbidden else None
        if event is None:
            return False
        log.info("%s is not published: %s", leg_key(request.build_id, request.arch), event.reason)
        broker.announce(event)
        return True

    def _index_all(
        self, broker: Broker, claims: list[_Claim], waiting: dict[str, list[_Job]], heed: Heed
    ) -> Iterator[tuple[_Claim, Outcome]]:
        """All targets, the one whose lock is free first; waiting for a lock is no try.

        What comes while all of them have to wait is taken in too: it goes with them, or its own target is free. A hook
        at work on one target holds no other.
        """
        hooked: dict[str, Made] = {}
        try:
            while waiting or hooked:
                before = len(waiting) + len(hooked)
                for target in list(waiting):
                    yield from self._begin(broker, target, waiting, hooked, heed)
                    yield from self._end_all(broker, hooked)
                yield from self._end_all(broker, hooked)
                heed()
                if len(waiting) + len(hooked) == before:
                    self._pause(hooked)
                    yield from self._place_all(broker, self._claim_more(broker, claims, waiting), waiting, heed)
        finally:
            for made in hooked.values():
                made.held.close()

    def _pause(self, hooked: dict[str, Made]) -> None:
        """Wait a little, or until a hook has ended, whose outcome `_end_all` then sees."""
        running = next((made.hook for made in hooked.values() if made.hook), None)
        if running is None:
            self.stop.now.wait(LOCK_POLL)
        else:
            running.wait(HOOK_POLL)

    def _begin(
        self, broker: Broker, target: str, waiting: dict[str, list[_Job]], hooked: dict[str, Made], heed: Heed
    ) -> Iterator[tuple[_Claim, Outcome]]:
        """Index a target where it is free; where its hook is at work then, the rest is for later."""
        with contextlib.ExitStack() as held:
            lock = held.enter_context(file_lock(self.context.store.lock(target)))
            if lock is None or not self._due(target, waiting[target]):
                return
            jobs = waiting.pop(target)
            self.service.set_status(f"indexing {target} for {len(jobs)} jobs")
            made = self._index(target, jobs, lock, heed, held)
            if isinstance(made, Made):
                hooked[target] = attr.evolve(made, held=held.pop_all())
                return
        yield from self._answer(broker, target, jobs, made)

    def _end_all(self, broker: Broker, hooked: dict[str, Made]) -> Iterator[tuple[_Claim, Outcome]]:
        """Make the repodata visible of each target whose hook has ended, or that has none."""
        for target, made in list(hooked.items()):
            listing = self._shown(target, made)
            if listing is not None:
                del hooked[target]
                yield from self._answer(broker, target, made.jobs, listing)

    def _answer(
        self, broker: Broker, target: str, jobs: list[_Job], listing: Listing | RetryLater
    ) -> Iterator[tuple[_Claim, Outcome]]:
        """Tell of each job that its leg is listed, or give all back."""
        stuck.mark_target(broker, self.context.createrepo, target, self.host)
        if isinstance(listing, Listing):
            yield from self._tell_all(broker, jobs, listing)
        else:
            yield from ((claim, listing) for claim, _ in jobs)

    def _claim_more(self, broker: Broker, claims: list[_Claim], waiting: dict[str, list[_Job]]) -> list[_Claim]:
        """What has come since, as much as there is room for; nothing where we are to end."""
        room = self.batch - sum(map(len, waiting.values()))
        if room <= 0 or self.stop.requested:
            return []
        more = self.reserve_jobs(broker, 0, room)
        claims += more
        return more

    def _due(self, target: str, jobs: list[_Job]) -> bool:
        """Whether there is a run to be made now, or none: what ends shortly after another waits, and goes with more."""
        return self.context.createrepo.may_run_now(target) or _all_listed(self.listings.visible(target), jobs)

    def _index(
        self, target: str, jobs: list[_Job], lock: int, heed: Heed, held: contextlib.ExitStack
    ) -> Made | Listing | RetryLater:
        """What is listed already, or is as soon as it is visible; or why it could not be."""
        started = time.monotonic()
        try:
            recover_interrupted_run(self.context.store.target(target), thorough=False)
            ruled = self._apply_rules(target, jobs)
            if not isinstance(ruled, RulesResult):
                return ruled
            listing = self._made(target, jobs, ruled, lock, heed)
            new = self.context.createrepo.make_draft(target)
        except (RetryLater, ProgramNotFound, OSError) as error:
            return self._failed(target, error)
        try:
            running = held.enter_context(self.context.createrepo.run_hook(new))
        except HookFailed as error:
            return self._hook_failed(new, error)
        return Made(jobs=jobs, listing=listing, new=new, hook=running, held=held, started=started)

    def _apply_rules(self, target: str, jobs: list[_Job]) -> RulesResult | Listing | RetryLater:
        """What the next run is to list; what is listed already where that is all, or the rest of a failed hook."""
        listing, legs = self.listings.visible(target), [leg for _, leg in jobs if leg is not None]
        _update(jobs, self.context.rules.read_rulings(target, legs))
        if _all_listed(listing, jobs):
            return listing
        paused = stuck.pause_of(self.context.createrepo, target, [claim for claim, _ in jobs])
        if paused is not None:
            return paused
        ruled = self.context.rules.apply_rules(target, listing, self.context.createrepo.list_packages(target), legs)
        _update(jobs, ruled.legs)
        return listing if _all_listed(listing, jobs) else ruled  # all that is new may be refused

    def _made(self, target: str, jobs: list[_Job], ruled: RulesResult, lock: int, heed: Heed) -> Listing:
        """What createrepo_c lists, read back before anybody sees it."""
        listing = self._listed(target, ruled, lock, heed)
        failed = [leg for leg in ruled.legs if not leg.ruling.refused and not listing.has(leg)]
        if failed and self.context.rules.restore_replaced(target, failed):
            folders, legs = [leg.folder for leg in failed], [leg for leg in ruled.legs if leg not in failed]
            visible, packages = self.listings.visible(target), self.context.createrepo.list_packages(target)
            ruled = self.context.rules.apply_rules(target, visible, packages, legs, folders)
            listing = self._listed(target, ruled, lock, heed)
        _update(jobs, ruled.legs)
        return listing

    def _listed(self, target: str, ruled: RulesResult, lock: int, heed: Heed) -> Listing:
        """What createrepo_c lists of what the rules let it."""
        legs = [leg for leg in ruled.legs if not leg.ruling.refused]
        read_all, given = self._make(target, RulesResult(legs=legs, packages=ruled.packages), lock, heed)
        listing = self.listings.read_new(target)
        if any(listing.has_wrong_checksum(leg) for leg in ruled.legs):
            # --skip-stat and the cache believe what was once reckoned, and a crash can have spoilt either
            log.warning("the repodata of %s has a wrong checksum: made anew, from the packages alone", target)
            read_all = self.context.createrepo.run(target, lock, heed, afresh=True, packages=given.packages)
            listing = self.listings.read_new(target)
        self._note_complaints(target, listing, legs)
        if read_all and not all(listing.has(leg) for leg in given.legs):
            raise RetryLater(f"createrepo_c ended well, and its repodata of {target} lacks what it should list")
        return listing

    def _shown(self, target: str, made: Made) -> Listing | RetryLater | None:
        """What is listed now that it is visible, or why it is not; None while the hook is at work."""
        with contextlib.ExitStack() as held:
            held.push(made.held)
            try:
                if made.hook is not None and not made.hook.has_ended():
                    held.pop_all()
                    return None
                self.context.createrepo.reveal(made.new)
            except HookFailed as error:
                return self._hook_failed(made.new, error)
            except OSError as error:
                return self._failed(target, error)
        self._failures.pop(target, None)
        log.info("%s indexed for %d jobs in %.1f s", target, len(made.jobs), time.monotonic() - made.started)
        return made.listing

    def _hook_failed(self, new: Draft, error: HookFailed) -> RetryLater:
        log.error("%s keeps its old repodata: [repogen] after_createrepo: %s", new.target, error)
        try:
            failure = self.context.createrepo.discard_draft(new, error)
        except OSError as full:  # it cannot be kept: it is tried again all the same
            return self._failed(new.target, full)
        return RetryLater(f"[repogen] after_createrepo: {error}", pause=failure.pause)

    def _failed(self, target: str, error: Exception) -> RetryLater:
        failures = self._failures[target] = self._failures.get(target, 0) + 1
        return RetryLater(str(error), pause=nth(FAILED_PAUSES, failures - 1))

    def _make(self, target: str, ruled: RulesResult, lock: int, heed: Heed) -> tuple[bool, RulesResult]:
        """One run; whether it read all it was given, and what that was: nothing that createrepo_c crashes on."""
        try:
            return self.context.createrepo.run(target, lock, heed, packages=ruled.packages), ruled
        except CreaterepoCrashed as crash:
            visible = self.listings.visible(target)
            fatal = [
                leg for leg in ruled.legs if not visible.has(leg) and crashes_on(self.context.createrepo, leg, heed)
            ]
            if not fatal:
                raise
            for leg in fatal:
                self._complaints[leg.place] = f"{CRASH_PREFIX}{crash}"
            log.warning("%s: made again without %s", crash, ", ".join(sorted(leg.folder for leg in fatal)))
            folders = {leg.folder for leg in fatal}
            packages = [path for path in ruled.packages if path.rpartition("/")[0] not in folders]
            given = RulesResult(legs=[leg for leg in ruled.legs if leg not in fatal], packages=packages)
            return self.context.createrepo.run(target, lock, heed, packages=packages), given

    def _note_complaints(self, target: str, listing: Listing, legs: list[StoredLeg]) -> None:
        """Read, under the target's lock, what the run said against legs that it left out."""
        store = self.context.store
        for leg in legs:
            if leg.place not in self._complaints and not listing.has(leg):
                self._complaints[leg.place] = find_complaint(store.log(target), store.target(target), leg)

    def _tell_all(self, broker: Broker, jobs: list[_Job], listing: Listing) -> Iterator[tuple[_Claim, Outcome]]:
        for claim, leg in jobs:
            if leg is not None:
                if leg.ruling.refused:
                    self._put_aside(broker, claim, leg, leg.ruling.refused)
                elif listing.has(leg):
                    self._publish(broker, leg)
                else:
                    self._retry_unindexed(broker, claim, leg)
            yield claim, None

    def _publish(self, broker: Broker, leg: StoredLeg) -> None:
        broker.announce(make_published_event(leg, self.context.urls))
        broker.put(TOSIGN, make_sign_request(leg), priority=PRIORITY)
        log.info("published %s for %s in %s", leg.manifest.pkgname, leg.manifest.arch, leg.manifest.request.target)

    def _retry_unindexed(self, broker: Broker, claim: _Claim, leg: StoredLeg) -> None:
        """Give up a leg that createrepo_c refuses for what is in it; ask again, a few times, for other reasons."""
        message, complaint = claim.message, self._complaints.pop(leg.place, "")
        # a refusal may be the disk's doing, unless it is of the text, or comes twice
        final = is_lasting(complaint) or (complaint and message.tries) or message.tries >= len(LEFT_OUT_PAUSES)
        if not final:
            log.warning("%s is not in the repodata: asked again", leg.place)
            later = attr.evolve(message, tries=message.tries + 1)
            broker.put(CREATEREPO, later, priority=PRIORITY, delay=LEFT_OUT_PAUSES[message.tries])
            return
        self._put_aside(broker, claim, leg, complaint or f"createrepo_c cannot read all packages in {leg.place}")

    def _put_aside(self, broker: Broker, claim: _Claim, leg: StoredLeg, reason: str) -> None:
        """Take a leg out of its target for good: createrepo_c cannot read it, or the rules have refused it."""
        message, refused = claim.message, bool(leg.ruling.refused)
        name = spool_name(message.build_id, message.arch, message.attempt)
        request = leg.manifest.request
        verdict = Rejection(reason=reason, again=False, request=request, regenerate=not refused)
        reject(self.context.store, self.context.store.place(leg.place), name, verdict)
        self.context.rejections.handle(broker, message, verdict)

    def do_idle_work(self, broker: Broker) -> None:
        """At start and then once an hour, look through the spool."""
        if time.monotonic() < self._next_scan:
            return
        try:
            self._scan(broker)
        except OSError as error:
            log.warning("the spool cannot be looked through: %s", error)
        self._next_scan = time.monotonic() + SCAN_INTERVAL_SECONDS

    def _scan(self, broker: Broker) -> None:
        store, abandoned = self.context.store, 0
        for found in scan_spool(store, self.context.spool_days, time.time()):
            self.ping_watchdog()
            if isinstance(found, IncompleteUpload):
                abandoned += 1
            elif isinstance(found, UnknownUpload):
                verdict = Rejection(reason=found.reason, again=True)
                reject(store, found.folder, found.name, verdict)
                broker.announce(self._refusal(found))
            else:
                log.info("%s.%s was uploaded and not asked for: taken up", found.build_id, found.arch)
                broker.put(CREATEREPO, found, priority=PRIORITY)
        removed = sweep_expired(store, self.context.retention, time.time(), self.ping_watchdog)
        if removed:
            log.info("%s", removed)
        left = sweep_live_logs(store, time.time() - LIVE_LOGS_SECONDS)
        if left:
            log.info("the growing logs of %d builds ended long ago, removed", left)
        if abandoned:
            log.info("%d uploads never completed in %d days, removed", abandoned, self.context.spool_days)

    def _refusal(self, strange: UnknownUpload) -> Refusal:
        reason = f"an upload nobody can make anything of: {strange.reason}"
        at = round(time.time(), 3)
        return Refusal(tube=CREATEREPO.name, job=0, reason=reason, begins=strange.name, host=self.host, at=at)


def _update(jobs: list[_Job], legs: Iterable[StoredLeg]) -> None:
    """Have the jobs know what has been decided about their legs."""
    ruled = {leg.place: leg for leg in legs}
    jobs[:] = [(claim, ruled.get(leg.place, leg) if leg else None) for claim, leg in jobs]


def _all_listed(listing: Listing, jobs: list[_Job]) -> bool:
    return all(leg is not None and (leg.ruling.refused or listing.has(leg)) for _, leg in jobs)


def _outcome(error: Exception) -> Exception:
    """What the disk says is no fault of the job's: it is tried again."""
    return RetryLater(str(error), pause=DISK_PAUSE) if isinstance(error, OSError) else error


def nth(pauses: Sequence[int], number: int) -> int:
    """A growing pause; the last one again and again."""
    return pauses[min(number, len(pauses) - 1)]


class ProgressGuard:
    """Called often while something takes its time: heeds a stop, keeps all claims ours, and the watchdog quiet."""

    def __init__(self, broker: Broker, stop: Stop, alive: Callable[[], None]) -> None:
        self.broker, self.stop, self.alive, self._kept = broker, stop, alive, time.monotonic()

    def __call__(self) -> None:
        self.stop.raise_if_stopping()
        self.alive()
        if time.monotonic() - self._kept > 1.0:
            self.broker.touch_all_if_due(lost=self._lost)
            self._kept = time.monotonic()

    def _lost(self, claim: ReservedJob[Any]) -> None:
        # what we do for it is done twice then, which is allowed; the others of the batch are still ours
        log.warning("%r may be another's by now", claim)
        self.broker.untrack(claim)

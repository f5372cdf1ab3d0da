# SPDX-License-Identifier: Apache-2.0
"""The repogen daemon: brings legs to their place, indexes their targets, announces them and has them signed.

A job is settled only after its leg has its place, is listed, is announced and is given to the signer. Wherever the
daemon is killed, the job comes again, and each step first checks whether it is done.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import time
from collections.abc import Iterable, Iterator
from typing import Any, Callable

import attr

from reimzul.core import control
from reimzul.core.beanstalk import CREATEREPO, PRIORITY, TOSIGN, Broker, ReservedJob
from reimzul.core.daemon import Daemon, Outcome, Stop, retry_or_give_up
from reimzul.core.errors import BrokerUnavailable, ReimzulError, RetryLater, ShutdownRequested
from reimzul.core.event_signature import EventKeys
from reimzul.core.fs import file_lock, remove
from reimzul.core.heartbeat import HeartbeatSender
from reimzul.core.manifest import Manifest
from reimzul.core.message import Refusal, RepogenRequest, WorkerState
from reimzul.core.process import wait_until_exit
from reimzul.core.retry import Backoff, CancelToken
from reimzul.core.store_paths import StorePaths, StoreUrls, leg_key, spool_name
from reimzul.repogen.copier import UploadCopier, upload_size
from reimzul.repogen.indexing import IndexJob, PendingRepodata, TargetIndexer, update_stuck_flag
from reimzul.repogen.publish import (
    CancelledBeforePublish,
    archive_logs,
    make_cancelled_event,
    make_published_event,
    make_sign_request,
    remove_upload,
    store_upload,
)
from reimzul.repogen.reject import (
    Rejection,
    RejectionHandler,
    read_rejection,
    read_request,
    reject_stored,
    reject_upload,
)
from reimzul.repogen.verify import (
    IncompleteUpload,
    InvalidUpload,
    UnknownUpload,
    UnpublishablePackage,
    read_upload_or_none,
    scan_spool,
)
from reimzul.store.cleanup import Retention, sweep_expired, sweep_live_logs
from reimzul.store.createrepo import CreaterepoRunner, is_lasting
from reimzul.store.listing import Listing, StoredLeg
from reimzul.store.listing_rules import ListingRules
from reimzul.store.repodata import REPODATA

log = logging.getLogger(__name__)

#: The steps of a leg among the errors that heartbeats carry.
PLACING_STEP, INDEXING_STEP = "storing the upload", "indexing"
#: Seconds between attempts to get a lock that another worker holds, and between checks of a running hook.
POLL_SECONDS = 0.05
SCAN_INTERVAL_SECONDS = 3600
#: How often createrepo_c may leave a leg out before the leg is given up, and the pauses in between.
MAX_LEFT_OUT = 3
LEFT_OUT_BACKOFF = Backoff(first=15, cap=120)
#: Growing logs are removed if they have not grown for so long.
LIVE_LOGS_SECONDS = 2 * 86400
#: A larger upload is stored after all others of its batch are listed: to copy and hash it takes seconds.
LARGE_UPLOAD_BYTES = 256 << 20
#: The pause after an error of the disk.
DISK_PAUSE_SECONDS = 30

_Claim = ReservedJob[RepogenRequest]
_Outcomes = Iterator[tuple[_Claim, Outcome]]


@attr.frozen(kw_only=True)
class RepogenContext:
    store: StorePaths
    urls: StoreUrls
    createrepo: CreaterepoRunner
    copier: UploadCopier
    rejections: RejectionHandler
    spool_days: int
    rules: ListingRules
    retention: Retention
    event_keys: EventKeys


class ProgressGuard(CancelToken):
    """Keeps all jobs reserved and systemd's watchdog quiet during long work, and raises if the daemon has to stop."""

    def __init__(self, broker: Broker, stop: Stop, ping: Callable[[], None], report: Callable[[], None]) -> None:
        super().__init__(self._check_progress)
        self.broker, self.stop, self.ping, self.report, self._touched = broker, stop, ping, report, time.monotonic()

    def _check_progress(self) -> None:
        self.stop.raise_if_stopping()
        self.ping()
        if time.monotonic() - self._touched > 1.0:
            self.broker.touch_all_if_due(lost=self._drop_lost_job)
            self.report()
            self._touched = time.monotonic()

    def _drop_lost_job(self, claim: ReservedJob[Any]) -> None:
        # The work for it may be done twice, which is allowed. The other jobs are still reserved.
        log.warning("%r may be another's by now", claim)
        self.broker.untrack(claim)


@attr.define(kw_only=True)
class _Batch:
    broker: Broker
    cancel: CancelToken
    claims: list[_Claim]
    waiting: dict[str, list[IndexJob]] = attr.field(factory=dict)  #: by target
    pending: dict[str, PendingRepodata] = attr.field(factory=dict)  #: by target
    large: list[_Claim] = attr.field(factory=list)  #: stored when nothing else of the batch waits


class Repogen(Daemon[RepogenRequest]):
    batch = 200

    heartbeat: HeartbeatSender

    def __init__(
        self, connect: Callable[[], Broker], host: str, context: RepogenContext, heartbeat: HeartbeatSender
    ) -> None:
        super().__init__(connect, [CREATEREPO], host, heartbeat=heartbeat)
        self.context, self.store = context, context.store
        self.indexer = TargetIndexer(context.createrepo, context.rules)
        self._next_scan = 0.0

    def handle(self, broker: Broker, claims: list[_Claim]) -> _Outcomes:
        report = functools.partial(self.send_heartbeat, broker, WorkerState.BUILDING)
        guard = ProgressGuard(broker, self.stop, self.ping_watchdog, report)
        batch = _Batch(broker=broker, cancel=guard, claims=claims)
        yield from self._place_all(batch, list(claims))
        # The legs of a build end together, so they are indexed together.
        yield from self._place_all(batch, self._claim_more(batch))
        yield from self._index_all(batch)
        while batch.large:
            yield from self._place_all(batch, [batch.large.pop(0)], defer_large=False)
            yield from self._index_all(batch)

    def settle(self, claim: _Claim, outcome: Outcome) -> None:
        """Settle a job; an error of the disk, wherever it came up, is no fault of the job."""
        if isinstance(outcome, OSError):
            outcome = RetryLater(str(outcome), pause=DISK_PAUSE_SECONDS)
        super().settle(claim, outcome)

    def _is_large(self, claim: _Claim) -> bool:
        request = claim.message
        spool = self.store.spool / spool_name(request.build_id, request.arch, request.attempt)
        return not request.is_bare and upload_size(spool) > LARGE_UPLOAD_BYTES

    def _claim_more(self, batch: _Batch) -> list[_Claim]:
        """Reserve what has arrived meanwhile, as much as fits into the batch."""
        room = self.batch - sum(map(len, batch.waiting.values()))
        if room <= 0 or self.stop.is_requested:
            return []
        more = self.reserve_jobs(batch.broker, 0, room)
        batch.claims += more
        return more

    # --- placing

    def _place_all(self, batch: _Batch, claims: Iterable[_Claim], *, defer_large: bool = True) -> _Outcomes:
        """Bring legs to their place; those to be indexed wait for it, the other jobs are done."""
        for claim in claims:
            batch.cancel.raise_if_cancelled()
            request = claim.message
            if defer_large and self._is_large(claim):
                batch.large.append(claim)
                continue
            try:
                leg = None if request.is_bare else self._place(batch, claim)
            except (BrokerUnavailable, ShutdownRequested):
                raise
            except (OSError, ReimzulError) as error:
                self._record_placing(request, error)
                yield claim, error
                continue
            self._record_placing(request, None)
            is_publishable = leg is not None and leg.is_publishable
            # A target gets empty repodata with its first leg, whatever that is, so that mock can use it.
            is_first = leg is not None and not (self.store.target(request.target) / REPODATA).exists()
            if request.is_bare or is_publishable or is_first:
                jobs = batch.waiting.setdefault(request.target, [])
                jobs.append(IndexJob(claim, leg if is_publishable else None))
            else:
                yield claim, None

    def _place(self, batch: _Batch, claim: _Claim) -> StoredLeg | None:
        """Bring a leg to its place; None if it gets none, and everything else about it is done."""
        request = claim.message
        name = spool_name(request.build_id, request.arch, request.attempt)
        if request.logs:
            archive_logs(self.context.copier, self.store.spool / name)
            leg = None
        else:
            leg = self._store_or_refuse(batch, claim, name)
        remove(self.store.live / name)  # the logs are elsewhere by now
        return leg

    def _store_or_refuse(self, batch: _Batch, claim: _Claim, name: str) -> StoredLeg | None:
        broker, request, spool = batch.broker, claim.message, self.store.spool / name
        try:
            leg = store_upload(
                self.context.copier,
                request,
                batch.cancel,
                lambda: control.cancel_flag(broker, request.build_id) is not None,
            )
        except CancelledBeforePublish as error:
            self._announce_if_cancelled(broker, request, error.manifest)
            archive_logs(self.context.copier, spool)
            return None
        except InvalidUpload as error:
            requeue, original = not isinstance(error, UnpublishablePackage), read_request(spool, request.build_id)
            rejection = Rejection(reason=str(error), requeue=requeue, request=original)
            reject_upload(self.context.copier, spool, name, rejection)
            leg = None
        if leg is not None:
            log.info("%s is in %s", leg_key(request.build_id, request.arch), leg.place)
            return leg
        noted = read_rejection(self.store, name)
        if noted is not None:
            remove_upload(spool)  # a repogen that was killed may have removed half of it
            self.context.rejections.handle(broker, request, noted)
        # A worker that was killed right here may have archived the upload of a cancelled build.
        elif self._announce_if_cancelled(broker, request, read_upload_or_none(self.store.attempts / name)):
            remove_upload(spool)
        # Two repogens may take up one upload; the flag of a cancel is gone once its event is recorded.
        elif os.path.lexists(self.store.attempts / name):
            log.info("%s is archived already", name)
        else:
            raise retry_or_give_up(claim, f"the upload {name}")
        return None

    def _announce_if_cancelled(self, broker: Broker, request: RepogenRequest, manifest: Manifest | None) -> bool:
        """Announce that a leg was built and is cancelled; return whether it is."""
        flag = control.cancel_flag(broker, request.build_id)
        event = make_cancelled_event(request, manifest, flag.cancel_text, self.context.urls) if flag else None
        if event is None:
            return False
        log.info("%s is not published: %s", leg_key(request.build_id, request.arch), event.reason)
        broker.announce(event)
        return True

    def _record_placing(self, request: RepogenRequest, outcome: Outcome) -> None:
        self.heartbeat.errors.record(
            PLACING_STEP, outcome, build_id=request.build_id, arch=request.arch, target=request.target
        )

    # --- indexing

    def _index_all(self, batch: _Batch) -> _Outcomes:
        """Index all targets, those first whose lock is free; a target whose hook runs delays no other.

        If all of them have to wait, jobs that have arrived meanwhile join the batch.
        """
        try:
            while batch.waiting or batch.pending:
                before = len(batch.waiting) + len(batch.pending)
                for target in list(batch.waiting):
                    yield from self._start_indexing(batch, target)
                    yield from self._finish_indexing(batch)
                yield from self._finish_indexing(batch)
                batch.cancel.raise_if_cancelled()
                if len(batch.waiting) + len(batch.pending) == before:
                    self._pause(batch)
                    yield from self._place_all(batch, self._claim_more(batch))
        finally:
            for pending in batch.pending.values():
                pending.resources.close()

    def _pause(self, batch: _Batch) -> None:
        hook = next((pending.hook for pending in batch.pending.values() if pending.hook), None)
        if hook is None:
            self.stop.now.wait(POLL_SECONDS)
        else:
            wait_until_exit(hook.process, POLL_SECONDS)

    def _start_indexing(self, batch: _Batch, target: str) -> _Outcomes:
        """Index a target if its lock is free and a run is due."""
        with contextlib.ExitStack() as resources:
            lock = resources.enter_context(file_lock(self.store.lock(target)))
            if lock is None or not self.indexer.is_due(target, batch.waiting[target]):
                return
            jobs = batch.waiting.pop(target)
            self.service.set_status(f"indexing {target} for {len(jobs)} jobs")
            result: PendingRepodata | Listing | RetryLater
            try:
                result = self.indexer.start(target, jobs, lock, batch.cancel, resources)
            except RetryLater as error:
                result = error
            if isinstance(result, PendingRepodata):
                batch.pending[target] = attr.evolve(result, resources=resources.pop_all())
                return
        yield from self._settle_indexed(batch, target, jobs, result)

    def _finish_indexing(self, batch: _Batch) -> _Outcomes:
        """Make the new repodata of each target visible, unless its hook still runs."""
        for target, pending in list(batch.pending.items()):
            result: Listing | RetryLater = pending.listing
            try:
                if not self.indexer.finish(pending):
                    continue
            except RetryLater as error:
                result = error
            del batch.pending[target]
            yield from self._settle_indexed(batch, target, pending.jobs, result)

    def _settle_indexed(
        self, batch: _Batch, target: str, jobs: Iterable[IndexJob], result: Listing | RetryLater
    ) -> _Outcomes:
        update_stuck_flag(batch.broker, self.context.createrepo, target, self.host)
        self.heartbeat.errors.record(INDEXING_STEP, result, target=target)
        for job in jobs:
            if isinstance(result, RetryLater):
                yield job.claim, result
                continue
            try:
                if job.leg is not None:
                    self._settle_leg(batch.broker, job.claim.message, job.leg, result)
            except OSError as error:  # the manifest that is signed cannot be read now
                yield job.claim, error
            else:
                yield job.claim, None

    def _settle_leg(self, broker: Broker, request: RepogenRequest, leg: StoredLeg, listing: Listing) -> None:
        if leg.ruling.refused:
            self._reject_stored(broker, request, leg, leg.ruling.refused)
        elif not listing.has(leg):
            self._retry_unlisted(broker, request, leg)
        else:
            published = make_published_event(leg, self.context.urls)
            broker.announce(self.context.event_keys.sign(published, self.store.place(leg.place)))
            broker.put(TOSIGN, make_sign_request(leg), priority=PRIORITY)
            log.info("published %s for %s in %s", leg.manifest.pkgname, leg.manifest.arch, request.target)

    def _retry_unlisted(self, broker: Broker, request: RepogenRequest, leg: StoredLeg) -> None:
        """Index a leg again that createrepo_c has left out; give it up if that would not help."""
        complaint = self.indexer.complaints.pop(leg.place, "")
        # A complaint may be the disk's fault, unless it is about the text or comes twice.
        if is_lasting(complaint) or (complaint and request.tries) or request.tries >= MAX_LEFT_OUT:
            reason = complaint or f"createrepo_c cannot read all packages in {leg.place}"
            self._reject_stored(broker, request, leg, reason)
            return
        log.warning("%s is not in the repodata: asked again", leg.place)
        retried = attr.evolve(request, tries=request.tries + 1)
        broker.put(CREATEREPO, retried, priority=PRIORITY, delay=int(LEFT_OUT_BACKOFF.pause_after(retried.tries)))

    def _reject_stored(self, broker: Broker, request: RepogenRequest, leg: StoredLeg, reason: str) -> None:
        name = spool_name(request.build_id, request.arch, request.attempt)
        rejection = Rejection(
            reason=reason, requeue=False, request=leg.manifest.request, regenerate=not leg.ruling.refused
        )
        reject_stored(self.store, self.store.place(leg.place), name, rejection)
        self.context.rejections.handle(broker, request, rejection)

    # --- housekeeping

    def do_idle_work(self, broker: Broker) -> None:
        self.send_heartbeat(broker, WorkerState.IDLE)
        if time.monotonic() < self._next_scan:
            return
        try:
            self._scan_spool(broker)
            self._sweep()
        except OSError as error:
            log.warning("the spool cannot be looked through: %s", error)
        self._next_scan = time.monotonic() + SCAN_INTERVAL_SECONDS

    def _scan_spool(self, broker: Broker) -> None:
        incomplete = 0
        for found in scan_spool(self.store, self.context.spool_days, time.time()):
            self.ping_watchdog()
            if isinstance(found, IncompleteUpload):
                incomplete += 1
            elif isinstance(found, UnknownUpload):
                reject_upload(
                    self.context.copier, found.folder, found.name, Rejection(reason=found.reason, requeue=True)
                )
                refusal = Refusal(
                    tube=CREATEREPO.name,
                    job=0,
                    reason=f"an upload nobody can make anything of: {found.reason}",
                    begins=found.name,
                    host=self.host,
                    at=round(time.time(), 3),
                )
                broker.announce(refusal)
            else:
                log.info("%s.%s was uploaded and not asked for: taken up", found.build_id, found.arch)
                broker.put(CREATEREPO, found, priority=PRIORITY)
        if incomplete:
            log.info("%d uploads never completed in %d days, removed", incomplete, self.context.spool_days)

    def _sweep(self) -> None:
        removed = sweep_expired(self.store, self.context.retention, time.time(), CancelToken(self.ping_watchdog))
        if removed:
            log.info("%s", removed)
        ended = sweep_live_logs(self.store, time.time() - LIVE_LOGS_SECONDS)
        if ended:
            log.info("the growing logs of %d builds ended long ago, removed", ended)

# SPDX-License-Identifier: Apache-2.0
"""The batches that `reimzul-batch` works on: which are open, and what a message adds to which journal."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Iterator
from pathlib import Path

from reimzul.batch.actions import ActionRunner, OpenBatch, has_begun
from reimzul.batch.jobs import without_logs
from reimzul.core.arch import Arches
from reimzul.core.batch_message import BatchOrder, BatchRequest, OrderKind
from reimzul.core.daemon import MAX_WAIT_SECONDS
from reimzul.core.errors import InputError, InvalidMessage, RetryLater, describe_os_error
from reimzul.core.message import BuildEvent
from reimzul.plan.batches import read_announced_end
from reimzul.plan.document import FOLDER, journal_path, plan_path
from reimzul.plan.journal import Entry, EntryKind, Journal, event_entry
from reimzul.plan.progress import MemberProgress
from reimzul.plan.state import BatchState

log = logging.getLogger(__name__)

#: Seconds that a batch which is over is kept in memory: late events of its builds still count.
_KEEP_SECONDS = 3600.0
#: Seconds between two looks whether the batch of an order has begun.
ORDER_PAUSE_SECONDS = 2
#: Digits of a batch's id, by which its journal is told from that of single builds.
_ID_LENGTH = 8
#: Seconds between two looks for the files of batches that could not be read.
_LOOK_AGAIN_SECONDS = 5.0


class Batches:
    def __init__(self, incoming: Path, arches: Arches) -> None:
        self.incoming = incoming
        self.arches = arches
        self.open: dict[str, OpenBatch] = {}
        self._broken: dict[str, str] = {}  #: batches that are not touched, and why
        self._unreadable: set[str] = set()  #: those of them whose plan or journal may be restored
        self._look_again_at = 0.0

    def load_unfinished(self) -> None:
        """Load the batches that are not over, or whose end was not announced.

        One that cannot be loaded is logged and not touched. Raises `OSError`.
        """
        folder = self.incoming / FOLDER
        for path in folder.iterdir() if folder.is_dir() else ():
            if path.suffix == ".log" and len(path.stem) == _ID_LENGTH and read_announced_end(path) is None:
                self._try_to_load(path.stem)

    def _try_to_load(self, batch_id: str) -> bool:
        """Load a batch that has begun; note and log why that fails."""
        try:
            if has_begun(self.incoming, batch_id):
                self._load(batch_id)
        except InputError as error:
            self.set_aside(batch_id, str(error))
            self._unreadable.add(batch_id)
            return False
        return True

    def load_restored(self) -> bool:
        """Look again for what could not be read, at times; return whether any batch goes on."""
        if not self._unreadable or time.monotonic() < self._look_again_at:
            return False
        self._look_again_at = time.monotonic() + _LOOK_AGAIN_SECONDS
        restored = list(filter(self._try_to_load, list(self._unreadable)))
        for batch_id in restored:
            log.info("batch %s goes on", batch_id)
        return bool(restored)

    def set_aside(self, batch_id: str, reason: str) -> None:
        """Touch a batch no more until this daemon is restarted, or a person gives an order or restores its files."""
        if self._broken.get(batch_id) != reason:
            log.error("batch %s is not touched: %s", batch_id, reason)
        self._broken[batch_id] = reason
        if batch_id in self.open:
            self.open.pop(batch_id).close()

    def active(self) -> list[OpenBatch]:
        return [each for each in self.open.values() if not each.state.is_over]

    def drop_old(self) -> None:
        for batch in list(self.open.values()):
            if batch.state.is_over and time.monotonic() - batch.changed_at > _KEEP_SECONDS:
                self.open.pop(batch.id).close()

    def _load(self, batch_id: str) -> OpenBatch:
        batch = OpenBatch.load(self.incoming, batch_id)
        self.open[batch_id] = batch
        self._broken.pop(batch_id, None)
        self._unreadable.discard(batch_id)
        return batch

    # --- messages

    def accept(self, request: BatchRequest, job: int) -> None:
        """Begin a batch, unless it has begun. Raises `InvalidMessage`, `RetryLater`."""
        try:
            if self._find(request.batch, request.plan_sha256) is None:
                batch = OpenBatch.accept(self.incoming, request, job, self.arches)
                self.open[request.batch] = batch
                log.info("batch %s accepted: %d members", batch.id, len(batch.state.members))
        except InputError as error:
            raise InvalidMessage(f"batch {request.batch}: {error}") from None

    def _find(self, batch_id: str, plan_sha256: str = "") -> OpenBatch | None:
        """The batch, loaded if it is over or was set aside; None if it has not begun. Raises `InputError`."""
        batch = self.open.get(batch_id)
        if batch is None and has_begun(self.incoming, batch_id):
            batch = self._load(batch_id)
        if batch is not None and plan_sha256 and batch.plan_sha256 != plan_sha256:
            raise InputError(f"{journal_path(self.incoming, batch_id)}: belongs to another plan")
        return batch

    def find_for_order(self, order: BatchOrder, releases: int) -> OpenBatch:
        """The batch that an order is for. Raises `InvalidMessage`, and `RetryLater` if its request is still to come.

        `releases`: how often the order was put back to wait. Its age says nothing: this daemon may have been down, and
        then the order comes before the request.
        """
        about = f"{order.order} of batch {order.batch}, ordered by {order.by}"
        try:
            batch = self._find(order.batch)
        except InputError as error:
            raise InvalidMessage(f"{about}: {error}") from None
        if batch is not None:
            return batch
        if not plan_path(self.incoming, order.batch).exists():
            raise InvalidMessage(f"{about}: there is no such batch")
        if releases * ORDER_PAUSE_SECONDS > MAX_WAIT_SECONDS:
            raise InvalidMessage(f"{about}: the batch has not begun, nor did it since")
        raise RetryLater(f"batch {order.batch} has not begun yet", pause=ORDER_PAUSE_SECONDS)

    def keep_event(self, event: BuildEvent) -> None:
        """Journal an event of a batch that is not touched, so that it counts later. Raises `RetryLater`."""
        if event.batch not in self._broken or event.batch in self.open:
            return
        path = journal_path(self.incoming, event.batch)
        try:
            with contextlib.closing(Journal(path)) as journal:
                journal.append([entry_of_event(event)])
        except OSError as error:
            raise RetryLater(f"{path}: {describe_os_error(error)}") from error

    def find_for_event(self, event: BuildEvent) -> tuple[OpenBatch, MemberProgress] | None:
        """The open batch, and its member, that an event is about."""
        candidates = [self.open[event.batch]] if event.batch in self.open else self.open.values()
        for batch in candidates:
            progress = batch.state.member_of_build(event)
            if progress is not None:
                return batch, progress
        return None


def entry_of_order(order: BatchOrder) -> Entry:
    return {
        "kind": EntryKind.ORDER,
        "at": time.time(),
        "order": order.order,
        "id": order.id,
        "by": order.by,
        "members": list(order.members),
        "settle_pass": order.settle_pass,
        "plan_sha256": order.plan_sha256,
        "why": order.why,
    }


def entry_of_event(event: BuildEvent) -> Entry:
    return event_entry(without_logs(event), time.time())


def prepare_order(order: BatchOrder, runner: ActionRunner, arches: Arches) -> None:
    """Complete the ends of members that a kill has left half done, since a new build keeps nothing of them.

    Check a `replace`, and cancel the builds that it replaces. Raises `InvalidMessage`.
    """
    if order.id in runner.state.orders:
        return
    for progress in filter(None, map(runner.state.members.get, order.members)):
        if progress.end_state and progress.is_put:
            runner.complete_end(progress)
    if order.order != OrderKind.REPLACE:
        return
    try:
        plan = runner.batch.load_checked_plan(order.plan_sha256, arches)
    except InputError as error:
        raise InvalidMessage(f"{order.order} of batch {order.batch}, ordered by {order.by}: {error}") from None
    kept = {each.key: each.srpm_sha256 for each in plan.members}
    runner.cancel_replaced(_find_replaced(runner.state, kept))


def _find_replaced(state: BatchState, kept: dict[str, str]) -> Iterator[MemberProgress]:
    for key, progress in state.members.items():
        if kept.get(key) != progress.member.srpm_sha256:
            yield progress

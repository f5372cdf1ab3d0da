# SPDX-License-Identifier: Apache-2.0
"""Follows the history, the heartbeats and the batches: takes over what has changed, and notes which pages show it."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from typing import Any, Optional

from reimzul.history import BuildFilter, BuildRecord, History
from reimzul.history.workers import WorkerRecord
from reimzul.pages.batch_pages import forget_batch
from reimzul.pages.farm_pages import FARM
from reimzul.pages.index import AttemptRow, BuildRow, PageIndex
from reimzul.pages.list_pages import describe_worker
from reimzul.pages.page_kinds import PAGE_KINDS, BuildChange
from reimzul.pages.rendering import is_build_id, is_page_name
from reimzul.pages.sources import BatchReader

log = logging.getLogger(__name__)

#: Changes that are taken over at once.
_BATCH = 250
#: Numbers of changes that are read again: another writer's lower one may become readable after a higher one.
_OVERLAP = 200
#: What counts as a change of now: seconds since the build's last event, or numbers of changes before the last one.
_FRESH_SECONDS, _FRESH_CHANGES = 600.0, 10
#: Builds that one look asks the history for, to find those that it has no more; seconds until all are asked for again.
_SWEEP_BATCH, _SWEEP_PAUSE_SECONDS = 10, 86400.0
_FOLLOWED, _SWEPT, _SWEEP_AT = "followed", "swept", "sweep at"


class HistoryFollower:
    def __init__(self, index: PageIndex) -> None:
        self._index = index
        self._seen: dict[int, None] = {}  #: numbers of changes that were taken over last
        self._ahead = 0  #: the last change that was taken over before its turn

    def follow(self, history: History) -> bool:
        """Take over some changes; return whether that were all. Raises `HistoryUnavailable`."""
        last, newest = int(self._index.get_fact(_FOLLOWED) or 0), history.last_change()
        if newest < last:
            log.warning("the history is older than the pages: a backup came back, or it was made again")
            last = self._ahead = 0
            self._seen.clear()
            with self._index.transaction():
                self._index.set_fact(_SWEPT, "")
                self._index.set_fact(_SWEEP_AT, "0")
        overlap = min(_OVERLAP, len(self._seen))
        found = history.find_changed(last - overlap, _BATCH + overlap)
        news = [(number, record) for number, record in found if number not in self._seen]
        with self._index.transaction():
            self._take_over(news, newest)
            self._index.set_fact(_FOLLOWED, str(max([last, *(number for number, _ in news)])))
        self._seen.update(dict.fromkeys(number for number, _ in news))
        for number in list(self._seen)[: -2 * _OVERLAP]:
            del self._seen[number]
        return len(news) < _BATCH

    def look_ahead(self, history: History) -> None:
        """Take over the newest changes before older ones that are still to come. Raises `HistoryUnavailable`."""
        newest = history.last_change()
        found = history.find_changed(max(self._ahead, newest - _BATCH), _BATCH)
        with self._index.transaction():
            self._take_over(found, newest)
        self._ahead = max([self._ahead, *(number for number, _ in found)])

    def _take_over(self, changes: Sequence[tuple[int, BuildRecord]], newest: int) -> None:
        fresh_since = time.time() - _FRESH_SECONDS
        for number, record in changes:
            if not is_build_id(record.build_id):  # the original's have none, and no page
                continue
            before, after, attempts = self._index.save(record)
            has_new_name = any([self._index.add_name(kind, name) for kind, name in _names_of(after, attempts)])
            is_backlog = record.at < fresh_since and number <= newest - _FRESH_CHANGES
            mark_changed(self._index, before, after, attempts, has_new_name=has_new_name, is_backlog=is_backlog)

    def sweep(self, history: History) -> None:
        """Find builds that the history has no more, some at a time. Raises `HistoryUnavailable`."""
        if time.time() < float(self._index.get_fact(_SWEEP_AT) or 0):
            return
        build_ids = self._index.list_build_ids(self._index.get_fact(_SWEPT), _SWEEP_BATCH)
        gone = [each for each in build_ids if not history.find_builds(BuildFilter(build_id=each), 1)]
        with self._index.transaction():
            for build_id in gone:
                self._forget(build_id)
            self._index.set_fact(_SWEPT, build_ids[-1] if build_ids else "")
            if not build_ids:
                self._index.set_fact(_SWEEP_AT, str(time.time() + _SWEEP_PAUSE_SECONDS))

    def _forget(self, build_id: str) -> None:
        log.info("the history does not have build %s any more: its page is removed", build_id)
        for row in self._index.find_build_rows("build_id = ? AND key >= ?", build_id, build_id):
            mark_changed(self._index, None, row, (), has_new_name=False, is_backlog=True)
        for (builder,) in self._index.select(
            "SELECT DISTINCT builder FROM attempts WHERE key >= ? AND key < ?", f"{build_id}.", f"{build_id}/"
        ):
            self._index.mark_due("builder", builder, 0.0, 0.0)
        self._index.forget_build(build_id)


def _names_of(row: BuildRow, attempts: Sequence[AttemptRow]) -> list[tuple[str, str]]:
    return [("package", row.package), ("target", row.target), *(("builder", each.builder) for each in attempts)]


def mark_changed(
    index: PageIndex,
    before: Optional[BuildRow],
    after: BuildRow,
    attempts: Sequence[AttemptRow],
    *,
    has_new_name: bool,
    is_backlog: bool,
) -> None:
    """Note that the pages which show a build on an arch are to be rendered."""
    change = BuildChange(index=index, before=before, after=after, attempts=attempts, has_new_name=has_new_name)
    for kind, row in PAGE_KINDS.items():
        for name in row.names(change):
            index.mark_due(kind, name, row.delay, row.pause, is_backlog=is_backlog)


class HeartbeatFollower:
    """Notes that the first page, and the page of a builder, show a change of a worker."""

    #: What changes with every heartbeat, and is worth no rendering.
    _PASSING = ("heard", "load", "free_bytes")

    def __init__(self, index: PageIndex, load: Callable[[], Sequence[WorkerRecord]]) -> None:
        self._index, self._load = index, load
        self._known: dict[tuple[str, str, str], dict[str, Any]] = {}

    def follow(self) -> Sequence[WorkerRecord]:
        """Return all processes. Raises `WorkersUnavailable`."""
        processes, now = self._load(), time.time()
        found: dict[tuple[str, str, str], dict[str, Any]] = {}
        for each in processes:
            shown = describe_worker(each, now)
            key = (each.heartbeat.host, each.role, each.heartbeat.instance)
            found[key] = {name: value for name, value in shown.items() if name not in self._PASSING}
        changed = {key[0] for key in found.keys() | self._known.keys() if found.get(key) != self._known.get(key)}
        if changed:
            self._mark(changed, {key[0] for key in found})
            self._known = found
        return processes

    def _mark(self, changed: set[str], hosts: set[str]) -> None:
        with self._index.transaction():
            self._index.mark_due("now", FARM, 0.0, PAGE_KINDS["now"].pause)
            for host in filter(is_page_name, changed):
                if host in hosts and self._index.add_name("builder", host):
                    self._index.mark_due("search", FARM, PAGE_KINDS["search"].delay, PAGE_KINDS["search"].pause)
                self._index.mark_due("builder", host, PAGE_KINDS["builder"].delay, PAGE_KINDS["builder"].pause)


class BatchFilesFollower:
    """Notes which batches' files have changed."""

    def __init__(self, index: PageIndex, reader: BatchReader) -> None:
        self._index, self._reader = index, reader

    def follow(self) -> None:
        """Have the pages rendered of batches that are new, changed or gone. Raises `OSError`."""
        found, known = self._reader.list_stamps(), self._index.list_batch_stamps()
        changed = [batch for batch, stamp in found.items() if known.get(batch) != stamp]
        gone = known.keys() - found.keys()
        if not (changed or gone):
            return
        row = PAGE_KINDS["batch"]
        with self._index.transaction():
            for batch in changed:
                self._index.set_batch_stamp(batch, found[batch])
                # of a farm that has had no pages yet, most batches are over
                self._index.mark_due("batch", batch, row.delay, row.pause, is_backlog=not known)
            for batch in gone:
                log.info("the files of batch %s are gone: its pages are removed", batch)
                forget_batch(self._index, batch)

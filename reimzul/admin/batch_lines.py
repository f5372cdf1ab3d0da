# SPDX-License-Identifier: Apache-2.0
"""A batch as one line among builds, in `reimzul builds` and in `reimzul watch` without ids."""

from __future__ import annotations

import time
from collections.abc import Iterator

from reimzul.admin import batch_lookup
from reimzul.core.errors import InputError
from reimzul.core.formatting import pluralize
from reimzul.core.settings import Settings
from reimzul.plan.batches import BatchFiles, BatchSummary, summarize
from reimzul.plan.overview import BatchPhase, describe_counts

#: Seconds that a batch is shown after its end where all that runs is followed.
_SHOWN_AFTER_END_SECONDS = 60.0


def describe_summary(summary: BatchSummary) -> str:
    return f"batch of {pluralize(summary.total, 'member')}: {describe_counts(summary.counts)}"


def iterate_summaries(settings: Settings, target: str | None, begin: float, end: float) -> Iterator[BatchSummary]:
    """Yield the batches that were submitted in a period, the newest first; those that cannot be read are left out."""
    for batch in batch_lookup.list_batches(settings):
        summaries, _faults = batch_lookup.read_summaries(settings, [batch])
        for each in summaries:
            if each.created < begin:
                return
            if each.created < end and (target is None or target in _list_targets(each)):
                yield each


def _list_targets(summary: BatchSummary) -> list[str]:
    return [summary.target, *(f"{summary.target}.{arch}" for arch in summary.arches)]


class BatchFollower:
    """Follows all batches that are not over."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._files: dict[str, BatchFiles] = {}
        self._over: dict[str, float] = {}  #: when each was first found to be over

    def poll(self) -> list[BatchSummary]:
        """Return the batches that are not over, or have been for a short time only."""
        now = time.monotonic()
        for batch in batch_lookup.list_batches(self._settings):
            if batch not in self._over and batch not in self._files:
                self._open(batch)
        found = []
        for batch, files in list(self._files.items()):
            summary = self._refresh(files)
            if summary is None or now - self._over.get(batch, now) > _SHOWN_AFTER_END_SECONDS:
                del self._files[batch]
            else:
                found.append(summary)
            if summary is not None and summary.phase == BatchPhase.OVER:
                self._over.setdefault(batch, now)
        return found

    def _open(self, batch: str) -> None:
        summaries, _faults = batch_lookup.read_summaries(self._settings, [batch])
        if not summaries or summaries[0].phase == BatchPhase.OVER:
            self._over[batch] = float("-inf")
            return
        self._files[batch] = BatchFiles(self._settings.incoming.folder, batch)

    def _refresh(self, files: BatchFiles) -> BatchSummary | None:
        try:
            return summarize(files.refresh())
        except InputError:
            return None

# SPDX-License-Identifier: Apache-2.0
"""Reads the batches in incoming/: which there are, and what has become of each."""

from __future__ import annotations

import time
from pathlib import Path

import attr

from reimzul.plan.batches import BatchFiles, list_batch_stamps
from reimzul.plan.state import BatchState

#: Seconds after which a batch that no page was rendered of is dropped from memory: it may have thousands of members.
_KEEP_SECONDS = 300.0


@attr.define
class _OpenBatch:
    files: BatchFiles
    used: float = 0.0
    parts: dict[int, int] = attr.field(factory=dict)  #: of each part of its members, a digest of what it shows


class BatchReader:
    """Keeps the batches that are read often: only what was added to their journals is read again."""

    def __init__(self, incoming: Path) -> None:
        self._incoming = incoming
        self._open: dict[str, _OpenBatch] = {}

    def list_stamps(self) -> dict[str, str]:
        """Return all batches, each with a stamp that changes when its files do. Raises `OSError`."""
        now = time.monotonic()
        self._open = {batch: each for batch, each in self._open.items() if now - each.used < _KEEP_SECONDS}
        return list_batch_stamps(self._incoming)

    def read(self, batch: str) -> BatchState:
        """Return the state of a batch as it is now. Raises `InputError`, `OSError`."""
        opened = self._open.pop(batch, None)
        if opened is None:
            opened = _OpenBatch(BatchFiles(self._incoming, batch))
        else:
            opened.files.refresh()
        opened.used = time.monotonic()
        self._open[batch] = opened
        return opened.files.state

    def note_part(self, batch: str, number: int, digest: int) -> bool:
        """Remember what a part of an open batch shows; return whether that has changed."""
        parts = self._open[batch].parts
        is_changed = parts.get(number) != digest
        parts[number] = digest
        return is_changed

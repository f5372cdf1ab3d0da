# SPDX-License-Identifier: Apache-2.0
"""The batches of a controller, as readers see them: each has its plan and its journal in incoming/."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

import attr

from reimzul.core.errors import InputError
from reimzul.plan.document import FOLDER, Plan, journal_path, plan_path, read_plan
from reimzul.plan.journal import Entry, JournalReader
from reimzul.plan.state import BatchState

_PLAN_FILE = re.compile(r"([0-9a-f]{8})\.json")


def list_batch_ids(incoming: Path) -> list[str]:
    """Return the ids of all batches, the newest first. Raises `OSError`."""
    folder = incoming / FOLDER
    if not folder.is_dir():
        return []
    found = [
        (path.stat().st_mtime, match[1]) for path in folder.iterdir() if (match := _PLAN_FILE.fullmatch(path.name))
    ]
    return [batch for _, batch in sorted(found, reverse=True)]


@attr.define
class BatchFiles:
    """Replays a batch's journal, and what is added to it. It writes nothing."""

    incoming: Path
    batch: str
    state: BatchState = attr.field(init=False)
    changes: list[Entry] = attr.field(factory=list, init=False)  #: the entries of the last `refresh`
    _reader: JournalReader = attr.field(init=False)

    def __attrs_post_init__(self) -> None:
        """Read the batch as it is now. Raises `InputError`."""
        self._start()

    def _start(self) -> None:
        self._reader = JournalReader(journal_path(self.incoming, self.batch))
        self.changes = self._read_new()
        accepted = self.changes[0].get("plan_sha256", "") if self.changes else ""
        plan = read_plan(plan_path(self.incoming, self.batch), accepted)
        self.state = BatchState.replay(plan, self.changes, self._read_later_plan)

    def _read_new(self) -> list[Entry]:
        return list(self._reader.read_new()) if self._reader.path.exists() else []

    def _read_later_plan(self, plan_sha256: str) -> Plan:
        return read_plan(plan_path(self.incoming, self.batch, plan_sha256), plan_sha256)

    def refresh(self) -> BatchState:
        """Add what was journaled since the last call. Raises `InputError`."""
        if self._reader.has_shrunk():
            self._start()
            return self.state
        self.changes = self._read_new()
        for entry in self.changes:
            self.state.apply(entry)
        return self.state


def load_batch(incoming: Path, batch: str) -> BatchState:
    """Read a batch as it is now. Raises `InputError`."""
    return BatchFiles(incoming, batch).state


def find_unfinished_batches(incoming: Path, batches: Iterable[str]) -> list[BatchState]:
    """Return those of these batches that are not over; one that cannot be read is left out."""
    found = []
    for batch in batches:
        try:
            state = load_batch(incoming, batch)
        except InputError:
            continue
        if not state.is_over:
            found.append(state)
    return found

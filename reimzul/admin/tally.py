# SPDX-License-Identifier: Apache-2.0
"""What became of attempts, builder by builder, counted from the history's documents. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import attr

from reimzul.core.message import Status
from reimzul.history import Document


@attr.define
class AttemptCounts:
    """The attempts of one builder."""

    attempts: int = 0  #: that came to something
    faults: int = 0  #: that were the builder's own fault
    last: Mapping[str, Any] = attr.field(factory=dict)  #: the one that ended last, with its build's srpm and arch

    @property
    def rate(self) -> float:
        """The share of them that were the builder's fault; 0 of none."""
        return self.faults / self.attempts if self.attempts else 0.0


class AttemptCounter:
    """Counts, document by document; an attempt at several legs counts once, and as a fault if any of them was."""

    def __init__(self) -> None:
        self._faulty: dict[tuple[str, str, str], bool] = {}
        self._tallies: dict[str, AttemptCounts] = {}

    def add(self, document: Document) -> None:
        """Count the attempts at a leg in."""
        for attempt in document.get("attempts") or ():
            if attempt["status"] in (Status.QUEUED, Status.BUILDING):
                continue
            builder = attempt["builder_fqdn"]
            key = (builder, document.get("build_id") or "", attempt["attempt"])
            self._faulty[key] = self._faulty.get(key, False) or attempt["status"] == Status.UNFIT
            tally = self._tallies.setdefault(builder, AttemptCounts())
            if not tally.last or ended(attempt) >= ended(tally.last):
                tally.last = {**attempt, "srpm": document["srpm"], "arch": document["arch"]}

    def counts(self) -> dict[str, AttemptCounts]:
        """What each builder's attempts came to."""
        for (builder, _, _), fault in self._faulty.items():
            self._tallies[builder].attempts += 1
            self._tallies[builder].faults += fault
        self._faulty.clear()
        return self._tallies


def count_by_builder(documents: Iterable[Document]) -> dict[str, AttemptCounts]:
    """The attempts of each builder."""
    tallies = AttemptCounter()
    for document in documents:
        tallies.add(document)
    return tallies.counts()


def ended(attempt: Mapping[str, Any]) -> float:
    """When an attempt came to something, as far as that is known."""
    finished = attempt.get("finished") if not attempt.get("skew") else 0.0
    return float(finished or attempt.get("at") or 0.0)

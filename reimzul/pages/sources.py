# SPDX-License-Identifier: Apache-2.0
"""What pages are made from, and what links in them begin with."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from typing import Optional
from urllib.parse import quote

import attr

from reimzul.core.links import LinkRoots
from reimzul.core.store_paths import StoreUrls
from reimzul.history import History
from reimzul.history.workers import WorkerRecord
from reimzul.pages.batch_reader import BatchReader
from reimzul.pages.index import SUCCESSES, PageIndex
from reimzul.pages.rendering import PageRenderer
from reimzul.pages.store_reader import StoreReader

#: Where the web server of the pages offers the store, for logs: pages and logs have one origin.
STORE_ROOT = "/bstore/"
STORE_LINKS = StoreUrls(STORE_ROOT, "")
#: Earlier builds that say how long a build usually takes.
_USUAL_SAMPLE = 20


@attr.define(kw_only=True)
class PageSources:
    renderer: PageRenderer
    index: PageIndex
    store: StoreReader
    batches: BatchReader
    url: str  #: [pages] url, for feeds
    history: Optional[History] = None  #: None while it cannot be read
    processes: Sequence[WorkerRecord] = ()
    public_url: str = ""  #: of the store, for packages
    outage: str = ""  #: what cannot be read now, and since when
    followed_at: float = 0.0  #: when the history was last read

    def file_link(self, place: str, name: str) -> str:
        """Return the link to a package of a leg."""
        return f"{LinkRoots(self.public_url).make_link(place) or STORE_LINKS.place(place)}{quote(name)}"

    def usual_duration(self, package: str, arch: str, without: str = "") -> float | None:
        """Return the median of the package's last successful builds on an arch, in seconds, without one by its key."""
        rows = self.index.select(
            "SELECT duration FROM builds WHERE package = ? AND arch = ? AND state IN (?, ?) AND duration IS NOT NULL"
            " AND key <> ? ORDER BY position DESC LIMIT ?",
            package,
            arch,
            *SUCCESSES,
            without,
            _USUAL_SAMPLE,
        )
        return statistics.median(seconds for (seconds,) in rows) if rows else None

    @property
    def live_processes(self) -> list[WorkerRecord]:
        now = time.time()
        return [each for each in self.processes if not each.is_silent(now)]

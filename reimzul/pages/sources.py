# SPDX-License-Identifier: Apache-2.0
"""What pages are made from: the history, the index, the batches in incoming/ and the store; and how links begin.

A store that does not answer costs one timeout, and is asked again after a pause: pages are then made without it.
"""

from __future__ import annotations

import functools
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Callable, Optional, TypeVar
from urllib.parse import quote

import attr

from reimzul.core.errors import InvalidMessage
from reimzul.core.http_client import HttpSession, HttpUnavailable, NotFound
from reimzul.core.json_message import parse_json
from reimzul.core.links import LinkRoots
from reimzul.core.listed_packages import iterate_packages
from reimzul.core.manifest import MAX_BYTES, File, Manifest
from reimzul.core.settings import StoreSettings
from reimzul.core.store_paths import MANIFEST, StoreUrls
from reimzul.history import BuildRecord, History
from reimzul.history.workers import WorkerRecord
from reimzul.pages.index import SUCCESSES, PageIndex
from reimzul.pages.rendering import PageRenderer
from reimzul.plan.batches import BatchFiles, list_batch_stamps
from reimzul.plan.state import BatchState

T = TypeVar("T")

#: Seconds that the store may take to answer, and until it is asked again after it did not.
_TIMEOUT_SECONDS, _PAUSE_SECONDS = 3.0, 30.0


class StoreSilent(Exception):
    """The store does not answer now."""


@attr.frozen(kw_only=True)
class TargetContent:
    """What the repodata of a target lists."""

    packages: int
    bytes: int


class StoreReader:
    def __init__(self, settings: StoreSettings) -> None:
        self._urls = StoreUrls.from_settings(settings.base_url, settings.upload_url)
        self._session = HttpSession(_TIMEOUT_SECONDS)
        self._ask_at = 0.0

    def close(self) -> None:
        self._session.close()

    def read_files(self, leg: BuildRecord) -> Optional[tuple[File, ...]]:
        """Return the files that a leg has in the store; None if it has none there. Raises `StoreSilent`."""
        urls = [self._urls.manifest(leg.build_id, leg.arch)]
        if leg.attempt:
            urls.append(self._urls.attempt(leg.build_id, leg.arch, leg.attempt) + MANIFEST)
        for url in urls:
            body = self._ask(functools.partial(self._session.get, url, MAX_BYTES))
            if body is not None:
                try:
                    return Manifest.from_json(parse_json(body)).files
                except InvalidMessage:
                    return ()
        return None

    def read_target(self, target: str) -> Optional[TargetContent]:
        """Return what a target lists; None if the store does not have it. Raises `StoreSilent`."""

        def read() -> TargetContent:
            sizes = [each.size for each in iterate_packages(self._session, self._urls.target(target))]
            return TargetContent(packages=len(sizes), bytes=sum(sizes))

        return self._ask(read)

    def _ask(self, read: Callable[[], T]) -> Optional[T]:
        if time.monotonic() < self._ask_at:
            raise StoreSilent
        try:
            return read()
        except NotFound:
            return None
        except HttpUnavailable as error:
            self._ask_at = time.monotonic() + _PAUSE_SECONDS
            raise StoreSilent(str(error)) from error


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


# --- all sources

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

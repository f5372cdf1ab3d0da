# SPDX-License-Identifier: Apache-2.0
"""What targets provide, read from the store while builds wait for it.

A thread reads: a large target's primary.xml takes seconds, in which others are to be released. repomd.xml is asked for
every ten seconds, sooner after a publication, and only for targets that somebody waits for.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping

import attr

from reimzul.core.arch import Arches
from reimzul.core.batch_message import is_conflict
from reimzul.core.capability import Provide, is_satisfied, list_names
from reimzul.core.errors import ReimzulError
from reimzul.core.http_client import Document, HttpSession, HttpUnavailable, NotFound
from reimzul.core.listed_packages import fetch_newer_repomd, iterate_files, iterate_provides
from reimzul.core.retry import LogThrottle
from reimzul.core.store_paths import StoreUrls
from reimzul.plan.progress import select_decisive

log = logging.getLogger(__name__)

#: Seconds between two looks at a target's repomd.xml; and if there must be something new in it.
POLL_SECONDS, HASTY_POLL_SECONDS = 10.0, 1.0
_LOG_AGAIN_SECONDS = 600.0


@attr.frozen(kw_only=True)
class TargetReading:
    began: float  #: when the reading began, by this host's clock
    names: frozenset[str]  #: the names that it looked for
    #: arch of a package, and what it provides; by name, of these names alone
    provides: Mapping[str, Collection[tuple[str, Provide]]]
    repomd: Document = Document(b"")

    def has_looked_for(self, missing: Iterable[str]) -> bool:
        return all(self.names.issuperset(list_names(each)) for each in missing if not is_conflict(each))

    def provides_to_legs(
        self, missing: Mapping[str, tuple[str, ...]], required: Collection[str], arches: Arches
    ) -> bool:
        """Whether the target provides what the legs wait for; to one that is not required, by packages of its arch."""
        return all(
            self.provides_all(each, () if leg in required else arches.package_arches(leg))
            for leg, each in select_decisive(missing, required).items()
        )

    def provides_all(self, missing: Iterable[str], arches: Collection[str] = ()) -> bool:
        """Whether the target provides all of it, by packages of these arches if some are given.

        No repository says whether a conflict is over.
        """
        return not any(is_conflict(each) or not self._provides(each, arches) for each in missing)

    def _provides(self, requirement: str, arches: Collection[str]) -> bool:
        fitting = {
            name: [each for arch, each in self.provides.get(name, ()) if not arches or arch in arches]
            for name in list_names(requirement)
        }
        return is_satisfied(requirement, fitting)


class TargetWatcher:
    """Reads targets in a thread of its own. Its methods are called by the daemon's thread."""

    def __init__(self, urls: StoreUrls) -> None:
        self._urls = urls
        self._readings: dict[str, TargetReading] = {}
        self._asked_at: dict[str, float] = {}
        self._changed: set[str] = set()  #: targets in which something was published since they were read
        self._pending: queue.Queue[tuple[str, frozenset[str]]] = queue.Queue()
        self._logged: defaultdict[str, LogThrottle] = defaultdict(lambda: LogThrottle(_LOG_AGAIN_SECONDS))
        self._thread: threading.Thread | None = None

    def note_publication(self, target: str) -> None:
        """Have a target read again soon: it lists something new."""
        self._changed.add(target)

    def read(self, target: str, missing: Iterable[str]) -> TargetReading | None:
        """Return the latest reading that looked for all that is missing, and have the target read again when due."""
        missing = list(missing)
        reading = self._readings.get(target)
        is_useful = reading is not None and reading.has_looked_for(missing)
        known = reading.names if reading else frozenset()
        names = known | {name for each in missing if not is_conflict(each) for name in list_names(each)}
        is_settled = target not in self._changed and (is_useful or target not in self._readings)
        pause = POLL_SECONDS if is_settled else HASTY_POLL_SECONDS
        if time.monotonic() - self._asked_at.get(target, float("-inf")) >= pause:
            self._asked_at[target] = time.monotonic()
            self._changed.discard(target)
            self._start()
            self._pending.put((target, names))
        return reading if is_useful else None

    def _start(self) -> None:
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="targets", daemon=True)
            self._thread.start()

    def _run(self) -> None:
        with HttpSession() as session:
            while True:
                target, names = self._pending.get()
                try:
                    self._readings[target] = read_target(
                        session, self._urls.target(target), names, self._readings.get(target)
                    )
                    self._logged[target].reset()
                except ReimzulError as error:
                    if self._logged[target].is_due():
                        log.warning("what %s provides is unknown: %s", target, error)


def read_target(session: HttpSession, url: str, names: frozenset[str], known: TargetReading | None) -> TargetReading:
    """Read a target unless it is as it was when it was read for the same names. Raises `HttpUnavailable`."""
    began = time.time()
    before = known.repomd if known is not None and known.names >= names else Document(b"")
    found: defaultdict[str, list[tuple[str, Provide]]] = defaultdict(list)
    repomd = Document(b"")
    try:
        repomd = fetch_newer_repomd(session, url, before)
        if known is not None and repomd.body and repomd.body == before.body:
            return attr.evolve(known, began=began)
        for arch, each in iterate_provides(session, url):
            if each.name in names:
                found[each.name].append((arch, each))
        if paths := {name for name in names if name.startswith("/") and name not in found}:
            # primary.xml has only the files that are mostly required
            for arch, path in iterate_files(session, url):
                if path in paths:
                    found[path].append((arch, Provide(path)))
    except NotFound as error:
        if repomd.body:  # it was replaced meanwhile
            raise HttpUnavailable(str(error)) from error
    return TargetReading(began=began, names=names, provides=dict(found), repomd=repomd)

# SPDX-License-Identifier: Apache-2.0
"""Look-ups about targets: which there are, and which builds they list."""

from __future__ import annotations

import contextlib
import fnmatch
from collections.abc import Iterable
from typing import Any

import attr

from reimzul.admin import lookup
from reimzul.core.arch import Arches, read_arches
from reimzul.core.errors import ReimzulError
from reimzul.core.http_client import HttpSession, HttpUnavailable, NotFound
from reimzul.core.listed_packages import ListedBuild, iterate_packages, list_store_targets
from reimzul.core.settings import Settings
from reimzul.core.store_paths import StoreUrls
from reimzul.core.targets import UnknownTarget, find_targets
from reimzul.history import BuildFilter, BuildRecord, NoHistory
from reimzul.history.build_record import BuildState
from reimzul.history.workers import list_live, map_targets

#: Seconds to wait for the store.
STORE_TIMEOUT_SECONDS = 10.0


@attr.frozen(kw_only=True)
class KnownTargets:
    builders: dict[str, set[str]]  #: the hosts that have a mock configuration, by target
    published: set[str]  #: those that the store has
    faults: list[str]  #: what could not be read, a line each

    @property
    def names(self) -> set[str]:
        return self.builders.keys() | self.published


def read_known_targets(settings: Settings, session: HttpSession) -> KnownTargets:
    """Return the targets that live workers or the store have."""
    builders: dict[str, set[str]] = {}
    published: set[str] = set()
    faults = []
    try:
        builders = map_targets(list_live(lookup.load_workers(settings)))
    except ReimzulError as error:
        faults.append(f"which targets the workers have is unknown: {error}")
    try:
        published = set(list_store_targets(session, settings.bstore.base_url))
    except (NotFound, HttpUnavailable) as error:
        faults.append(f"which targets the store has is unknown: {error}")
    return KnownTargets(builders=builders, published=published, faults=faults)


def find_known_targets(settings: Settings, session: HttpSession, given: str) -> list[str]:
    """Return the targets that workers or the store have and a person means. Raises as `match_known` does."""
    return match_known(read_known_targets(settings, session), given, read_arches(settings.farm.arches))


def match_known(known: KnownTargets, given: str, arches: Arches) -> list[str]:
    """Return the targets that a person means. Raises `UnknownTarget`, or `ReimzulError` if the list has gaps."""
    try:
        return find_targets(given, known.names, arches)
    except UnknownTarget as error:
        if known.faults:
            raise ReimzulError("\n".join([*known.faults, str(error)])) from None
        raise


# --- the builds that a target lists


#: The states of builds that a target may list: a person can override one that is published.
PUBLISHED_ONCE = (BuildState.PUBLISHED, BuildState.OVERRIDE)


@attr.frozen(kw_only=True)
class PublishedBuild:
    target: str
    listed: ListedBuild
    record: BuildRecord | None  #: None: the history does not know it

    @property
    def place(self) -> str:
        return f"repo/{self.target}/{self.listed.place}"

    def to_dict(self) -> dict[str, Any]:
        record = self.record or BuildRecord()
        about = {"build_id": record.build_id, "published": record.published, "submitter": record.submitter}
        return {
            **about,
            "pkgname": self.listed.name,
            "evr": self.listed.evr,
            "arch": self.listed.arch,
            "target": self.target,
            "timestamp": self.listed.timestamp,
            "place": self.place,
        }


def find_latest_builds(
    settings: Settings, session: HttpSession, targets: Iterable[str], pattern: str
) -> list[PublishedBuild]:
    """Return, of each package that a pattern matches, the listed build of each arch that was submitted last.

    Raises `HttpUnavailable`.
    """
    urls = StoreUrls.from_settings(settings.bstore.base_url, settings.bstore.upload_url)
    found = [
        PublishedBuild(target=target, listed=listed, record=None)
        for target in targets
        for listed in _list_latest(session, urls.target(target), pattern)
    ]
    records = _find_records(settings, found)
    return [attr.evolve(each, record=records.get(each.place)) for each in found]


def _list_latest(session: HttpSession, url: str, pattern: str) -> list[ListedBuild]:
    latest: dict[tuple[str, str], ListedBuild] = {}
    with contextlib.suppress(NotFound):  # nothing was ever published
        for build in {package.build for package in iterate_packages(session, url)}:
            if build is None or not _matches(build, pattern):
                continue
            key = (build.name, build.arch)
            if key not in latest or (build.timestamp, build.evr) > (latest[key].timestamp, latest[key].evr):
                latest[key] = build
    return [build for _, build in sorted(latest.items())]


def _matches(build: ListedBuild, pattern: str) -> bool:
    return any(fnmatch.fnmatchcase(text, pattern) for text in (build.name, f"{build.name}-{build.evr}"))


def _find_records(settings: Settings, published: Iterable[PublishedBuild]) -> dict[str, BuildRecord]:
    """Return the history's records of published builds by their places; none where there is no history."""
    places = {each.place: each.target for each in published}
    with contextlib.suppress(NoHistory), lookup.reading_history(settings.history.url) as history:
        builds = history.iterate_builds(BuildFilter(targets=sorted(set(places.values())), states=PUBLISHED_ONCE))
        return {each.place: each for each in builds if each.published and each.place in places}
    return {}

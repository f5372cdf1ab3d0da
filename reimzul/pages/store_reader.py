# SPDX-License-Identifier: Apache-2.0
"""Reads from the store what the history does not have: the files of a build, and what a target lists.

A store that does not answer costs one timeout, and is asked again after a pause: pages are then made without it.
"""

from __future__ import annotations

import functools
import time
from typing import Callable, Optional, TypeVar

import attr

from reimzul.core.errors import InvalidMessage
from reimzul.core.http_client import HttpSession, HttpUnavailable, NotFound
from reimzul.core.json_message import parse_json
from reimzul.core.listed_packages import iterate_packages
from reimzul.core.manifest import MAX_BYTES, File, Manifest
from reimzul.core.settings import StoreSettings
from reimzul.core.store_paths import MANIFEST, StoreUrls
from reimzul.history import BuildRecord

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

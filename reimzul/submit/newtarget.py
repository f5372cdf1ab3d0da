# SPDX-License-Identifier: Apache-2.0
"""A target that nothing was ever built for: it gets empty repodata before its first build reads it.

Without repodata the target's own URL answers 404, and mock would have to skip it, which hides every other fault of it.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable

from reimzul.core.beanstalk import CREATEREPO, PRIORITY_NOW, Broker
from reimzul.core.errors import ReimzulError
from reimzul.core.http_client import HttpSession, HttpUnavailable, NotFound
from reimzul.core.message import RepogenRequest
from reimzul.core.store_paths import StoreUrls

log = logging.getLogger(__name__)

#: Seconds the store may take to answer: nothing depends on it.
_TIMEOUT_SECONDS = 2.0
#: Bytes; a repomd.xml has some 3 kB.
_LIMIT_BYTES = 1 << 20


def ask_for_repodata(broker: Broker, urls: StoreUrls, targets: Iterable[str]) -> None:
    """Ask repogen for the repodata of each target that has none; a store that does not answer is left alone."""
    with HttpSession(timeout=_TIMEOUT_SECONDS) as site:
        for target in dict.fromkeys(targets):
            try:
                site.get(f"{urls.target(target)}repodata/repomd.xml", _LIMIT_BYTES)
            except NotFound:
                _ask(broker, target)
            except HttpUnavailable as error:
                log.debug("whether %s has repodata is not known: %s", target, error)
                return


def _ask(broker: Broker, target: str) -> None:
    try:
        broker.put(CREATEREPO, RepogenRequest(target=target), priority=PRIORITY_NOW)
    except ReimzulError as error:
        log.debug("no repodata is asked for of %s: %s", target, error)

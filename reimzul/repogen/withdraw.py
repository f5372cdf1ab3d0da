# SPDX-License-Identifier: Apache-2.0
"""Uploads that are published nowhere though nothing is wrong with them: of a build that was cancelled before it had its
place, and of attempts that decided nothing. Their packages go, their logs are kept in `attempts/`.

The rename into the place is where a cancel comes too late: it is asked for right before, and never after.
"""

from __future__ import annotations

import time

from reimzul.core import fs
from reimzul.core.manifest import Manifest
from reimzul.core.message import BuildEvent, RepogenRequest, Status, event_for
from reimzul.core.store_paths import StorePaths, StoreUrls, spool_name
from reimzul.repogen.check import Mismatch, arrived
from reimzul.repogen.place import drop


def file_away(store: StorePaths, name: str) -> None:
    """Keep the logs of an attempt; done before, nothing is left to do."""
    drop(store, store.spool / name)


def forget_live(store: StorePaths, name: str) -> None:
    """Remove what was sent of an attempt's logs while they grew: all of it is elsewhere by now."""
    fs.remove(store.live / name)


def sweep_live(store: StorePaths, before: float) -> int:
    """Remove growing logs to which nothing came since a time: their worker was killed. How many."""
    left = [folder for folder in store.live.iterdir() if fs.last_change(folder) < before]
    for folder in left:
        fs.remove(folder)
    return len(left)


def filed(store: StorePaths, request: RepogenRequest) -> Manifest | None:
    """The manifest of an upload that was filed away, where it can be read."""
    try:
        return arrived(store.attempts / spool_name(request.build_id, request.arch, request.attempt))
    except Mismatch:
        return None


def cancelled_event(request: RepogenRequest, manifest: Manifest | None, why: str, urls: StoreUrls) -> BuildEvent | None:
    """What everybody is told of a leg that was built and cancelled; None where nothing says what it was."""
    asked = manifest.request if manifest else request.request
    if asked is None:
        return None
    about = {"arch": request.arch, "attempt": request.attempt, "reason": why, "finished": round(time.time(), 3)}
    if manifest:
        about.update(
            builder_fqdn=manifest.builder_fqdn,
            pkgname=manifest.pkgname,
            evr=manifest.evr,
            started=manifest.started,
            finished=manifest.finished,
            exit_code=manifest.exit_code,
            phases=manifest.phases,
        )
    url = urls.attempt(request.build_id, request.arch, request.attempt)
    return event_for(asked, Status.CANCELLED, url=url, **about)

# SPDX-License-Identifier: Apache-2.0
"""The daemon that stages for signing: one request at a time, and of each only what has succeeded."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Callable

from reimzul.core.bstore import Bstore
from reimzul.core.daemon import Daemon, Outcome, Stop, not_yet
from reimzul.core.disk import locked
from reimzul.core.errors import Again
from reimzul.core.message import SignRequest, Status
from reimzul.core.refused import Overflow
from reimzul.core.tube import TOSIGN, Broker, Claim
from reimzul.tosign.stage import Build, find, stage

log = logging.getLogger(__name__)

#: Seconds between looks at the lock, where another stages.
LOCK_POLL = 0.05
#: Seconds to wait after the disk would not do what we asked.
DISK_PAUSE = 30
#: The lock's name; no target begins with a dot.
_LOCK = ".tosign"

_Claim = Claim[SignRequest]


class Tosign(Daemon[SignRequest]):
    """Claims from `tosign`."""

    def __init__(
        self,
        connect: Callable[[], Broker],
        host: str,
        store: Bstore,
        stop: Stop | None = None,
        overflow: Overflow | None = None,
    ) -> None:
        super().__init__(connect, [TOSIGN], host, stop, overflow)
        self.store = store

    def handle(self, broker: Broker, claims: list[_Claim]) -> Iterator[tuple[_Claim, Outcome]]:
        """Stage what a request means; what is not there is waited for a while, a disk that fails for ever."""
        for claim in claims:
            try:
                self._handle(claim)
            except FileNotFoundError as error:
                yield claim, not_yet(claim, str(error.filename))
            except OSError as error:
                yield claim, Again(str(error), pause=DISK_PAUSE)
            else:
                yield claim, None

    def _handle(self, claim: _Claim) -> None:
        request = claim.message
        if request.status != Status.SUCCESS:
            log.info("%s for %s is %s: not staged", request.pkgname, request.arch, request.status)
            return
        builds = find(self.store, request)
        if not builds:
            raise not_yet(claim, f"the place of {request.pkgname} {request.timestamp} for {request.arch}")
        for build in builds:
            self._stage(claim, build)

    def _stage(self, claim: _Claim, build: Build) -> None:
        """One at a time on a store: two that copy the same build would both come to show it."""

        def heed() -> None:
            self.stop.heed()
            self.alive()
            claim.keep()

        self.service.doing(f"staging {build.target}/{build.name}")
        while True:
            with locked(self.store.lock(_LOCK)) as lock:
                if lock is not None:
                    staged = stage(self.store, build, heed)
                    break
            heed()
            self.stop.now.wait(LOCK_POLL)
        log.info("%s/%s %s", build.target, build.name, "staged" if staged else "was staged before")

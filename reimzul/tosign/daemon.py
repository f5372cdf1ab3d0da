# SPDX-License-Identifier: Apache-2.0
"""The daemon that stages for signing: one request at a time, and of each only what has succeeded."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Callable

from reimzul.core.beanstalk import TOSIGN, Broker, ReservedJob
from reimzul.core.daemon import Daemon, Outcome, Stop, retry_or_give_up
from reimzul.core.errors import RetryLater
from reimzul.core.fs import file_lock
from reimzul.core.message import SignRequest, Status
from reimzul.core.refused import Overflow
from reimzul.core.store_paths import StorePaths
from reimzul.tosign.staging import SignableLeg, find_signable, stage_leg

log = logging.getLogger(__name__)

#: Seconds between looks at the lock, where another stages.
LOCK_POLL = 0.05
#: Seconds to wait after the disk would not do what we asked.
DISK_PAUSE = 30
#: The lock's name; no target begins with a dot.
_LOCK = ".tosign"

_Claim = ReservedJob[SignRequest]


class Tosign(Daemon[SignRequest]):
    """Claims from `tosign`."""

    def __init__(
        self,
        connect: Callable[[], Broker],
        host: str,
        store: StorePaths,
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
                yield claim, retry_or_give_up(claim, str(error.filename))
            except OSError as error:
                yield claim, RetryLater(str(error), pause=DISK_PAUSE)
            else:
                yield claim, None

    def _handle(self, claim: _Claim) -> None:
        request = claim.message
        if request.status != Status.SUCCESS:
            log.info("%s for %s is %s: not staged", request.pkgname, request.arch, request.status)
            return
        builds = find_signable(self.store, request)
        if not builds:
            raise retry_or_give_up(claim, f"the place of {request.pkgname} {request.timestamp} for {request.arch}")
        for build in builds:
            self._stage(claim, build)

    def _stage(self, claim: _Claim, build: SignableLeg) -> None:
        """One at a time on a store: two that copy the same build would both come to show it."""

        def heed() -> None:
            self.stop.raise_if_stopping()
            self.ping_watchdog()
            claim.touch_if_due()

        self.service.set_status(f"staging {build.target}/{build.name}")
        while True:
            with file_lock(self.store.lock(_LOCK)) as lock:
                if lock is not None:
                    staged = stage_leg(self.store, build, heed)
                    break
            heed()
            self.stop.now.wait(LOCK_POLL)
        log.info("%s/%s %s", build.target, build.name, "staged" if staged else "was staged before")

# SPDX-License-Identifier: Apache-2.0
"""The tosign daemon: lays out published legs for the signer, one request at a time."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Callable

from reimzul.core.beanstalk import TOSIGN, Broker, ReservedJob
from reimzul.core.daemon import Daemon, Outcome, Stop, retry_or_give_up
from reimzul.core.errors import RetryLater
from reimzul.core.fs import file_lock
from reimzul.core.message import SignRequest, Status
from reimzul.core.retry import CancelToken
from reimzul.core.store_paths import StorePaths
from reimzul.tosign.staging import SignableLeg, find_signable, stage_leg

log = logging.getLogger(__name__)

#: Seconds between attempts to get the lock while another daemon stages.
LOCK_POLL_SECONDS = 0.05
#: The pause after an error of the disk.
DISK_PAUSE_SECONDS = 30
#: The lock's name; no target begins with a dot.
_LOCK = ".tosign"

_Claim = ReservedJob[SignRequest]


class Tosign(Daemon[SignRequest]):
    """Takes jobs from `tosign`."""

    def __init__(
        self,
        connect: Callable[[], Broker],
        host: str,
        store: StorePaths,
        stop: Stop | None = None,
    ) -> None:
        super().__init__(connect, [TOSIGN], host, stop)
        self.store = store

    def handle(self, broker: Broker, claims: list[_Claim]) -> Iterator[tuple[_Claim, Outcome]]:
        """Stage what is requested; wait a limited time for missing files, and as long as it takes for the disk."""
        for claim in claims:
            try:
                self._handle_request(claim)
            except FileNotFoundError as error:
                yield claim, retry_or_give_up(claim, str(error.filename))
            except OSError as error:
                yield claim, RetryLater(str(error), pause=DISK_PAUSE_SECONDS)
            else:
                yield claim, None

    def _handle_request(self, claim: _Claim) -> None:
        request = claim.message
        if request.status != Status.SUCCESS:
            log.info("%s for %s is %s: not staged", request.pkgname, request.arch, request.status)
            return
        legs = find_signable(self.store, request)
        if not legs:
            raise retry_or_give_up(claim, f"the place of {request.pkgname} {request.timestamp} for {request.arch}")
        for leg in legs:
            self._stage(claim, leg)

    def _stage(self, claim: _Claim, leg: SignableLeg) -> None:
        """Stage a leg under the store's lock: two daemons that copy the same leg would both expose it."""

        def check_progress() -> None:
            self.stop.raise_if_stopping()
            self.ping_watchdog()
            claim.touch_if_due()

        self.service.set_status(f"staging {leg.target}/{leg.name}")
        while True:
            with file_lock(self.store.lock(_LOCK)) as lock:
                if lock is not None:
                    is_new = stage_leg(self.store, leg, CancelToken(check_progress))
                    break
            check_progress()
            self.stop.now.wait(LOCK_POLL_SECONDS)
        log.info("%s/%s %s", leg.target, leg.name, "staged" if is_new else "was staged before")

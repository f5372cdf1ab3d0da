# SPDX-License-Identifier: Apache-2.0
"""IX"""

from __future__ import annotations

import contextlib
import logging
import math
import time
from collections.abc import Iterable

from reimzul.core import control, validators
from reimzul.core.beanstalk import Broker, ReservedJob, target_tube
from reimzul.core.errors import ReservationLost, RetryLater
from reimzul.core.message import RepogenRequest
from reimzul.store.createrepo import CreaterepoRunner
from reimzul.store.hook import read_failure

log = logging.getLogger(__name__)


def pause_of(
    indexer: CreaterepoRunner, target: str, claims: Iterable[ReservedJob[RepogenRequest]]
) -> RetryLater | None:
    """Why there is no run now: the hook failed a while ago. A new request for the target itself is not held."""
    failure = read_failure(indexer.store.hook(target))
    if failure is None or not indexer.settings.after_createrepo:
        return None
    left = math.ceil(failure.seconds_to_retry(time.time()))
    if left <= 0 or any(claim.message.is_bare and _is_new(claim) for claim in claims):
        return None
    return RetryLater(f"[repogen] after_createrepo: {failure.reason}", pause=left)


def _is_new(claim: ReservedJob[RepogenRequest]) -> bool:
    try:
        return not claim.stats.releases
    except ReservationLost:
        return False


def mark_target(broker: Broker, indexer: CreaterepoRunner, target: str, host: str) -> None:
    """Have beanstalkd keep why the hook fails, for `reimzul explain` on the controller; nothing depends on it."""
    failure = read_failure(indexer.store.hook(target))
    tube = target_tube(target)
    there = control.read_flag(broker, tube)
    why = validators.line(300)(failure.reason) if failure else ""
    if (there.why if there else "") == why:
        return
    with contextlib.suppress(RetryLater):  # beanstalkd takes nothing now
        control.clear_flag(broker, tube)
        if failure:
            control.set_flag(broker, tube, control.new_flag(host, why))

# SPDX-License-Identifier: Apache-2.0
"""Held jobs: count them, release them, and change their priority. beanstalkd counts them among the delayed jobs.

Each release and each change is announced as `Queued`, so that the history and `reimzul-batch` know of it.
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import attr

from reimzul.admin import lookup
from reimzul.core import control
from reimzul.core.beanstalk import HELD_SECONDS, Broker, arch_tube
from reimzul.core.beanstalk_stats import TubeStats
from reimzul.core.cli import current_user
from reimzul.core.errors import InvalidMessage, ReimzulError
from reimzul.core.message import BuildRequest, Status, event_for
from reimzul.core.settings import Settings
from reimzul.history import BuildFilter, BuildRecord, NoHistory
from reimzul.history.build_record import BuildState

log = logging.getLogger(__name__)


def count_held(records: Iterable[BuildRecord]) -> Counter[str]:
    """Count the held jobs of each tube; legs that were held together are one job."""
    return Counter(tube for tube, _ in {(each.tube, each.job) for each in records if each.is_held and each.job})


def read_held_counts(settings: Settings) -> Counter[str]:
    """Count the held jobs of each tube. Raises `HistoryUnavailable` and `ConfigError`."""
    try:
        with lookup.reading_history(settings.history.url) as history:
            return count_held(history.iterate_builds(BuildFilter(states=[BuildState.HELD])))
    except NoHistory:
        return Counter()


def separate_held(tubes: Iterable[TubeStats], held: Mapping[str, int]) -> list[TubeStats]:
    """Count held jobs apart from those that are delayed. The history may lag behind beanstalkd."""
    counts = [(tube, min(held.get(tube.name, 0), tube.delayed)) for tube in tubes]
    return [attr.evolve(tube, delayed=tube.delayed - count, held=count) for tube, count in counts]


def release_job(broker: Broker, settings: Settings, job: int) -> None:
    """Release a held job. Raises `ReservationLost` if it is gone."""
    stats, body = broker.job_stats(job), broker.peek(job)
    broker.kick(job)
    try:
        request = BuildRequest.decode(body)
        with lookup.reading_history(settings.history.url) as history:
            legs = [leg for build in lookup.find_recorded_builds(history, [request.build_id]) for leg in build.legs]
        about = {"tube": stats.tube, "job": job, "priority": stats.priority}
        _announce_queued(broker, request, legs, f"released by {current_user()}", held=False, **about)
    except (InvalidMessage, NoHistory):  # the job is no build, or no build was ever recorded
        pass
    except ReimzulError as error:
        log.warning("job %d is released, but that is not announced: %s", job, error)


def change_priority(broker: Broker, legs: Sequence[BuildRecord], found: lookup.QueuedJob, priority: int) -> int:
    """Change the priority of a held job, and keep it held; return its number. Raises `ReservationLost`."""
    tube = found.stats.tube
    job = control.hold_job(broker, arch_tube(tube), found.job, priority)
    about = {"tube": tube, "job": job, "priority": priority, "due": round(time.time()) + HELD_SECONDS}
    reason = f"moved to the front, and held: job {job} of tube {tube}"
    _announce_queued(broker, found.request, legs, reason, held=True, **about)
    return job


def _announce_queued(
    broker: Broker, request: BuildRequest, legs: Sequence[BuildRecord], reason: str, **about: Any
) -> None:
    """Announce `Queued` for each leg without a result, after all that was announced of it before.

    A leg that stays held waits for what it waited for.
    """
    unfinished = {leg.arch: leg for leg in legs if leg.is_unfinished}
    for arch in unfinished or request.announced_arches:
        leg = unfinished.get(arch, BuildRecord())
        at = round(max(time.time(), leg.put_at + 0.001), 3)
        known: dict[str, Any] = {"pkgname": leg.pkgname, "evr": leg.evr}
        if about["held"]:
            known.update(missing=leg.missing, waits_for=leg.waits_for)
        broker.announce(event_for(request, Status.QUEUED, arch=arch, at=at, reason=reason, **known, **about))

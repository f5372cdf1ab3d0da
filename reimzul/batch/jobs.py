# SPDX-License-Identifier: Apache-2.0
"""The jobs of held builds: whose a job is, how it is found, and what is announced about it."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Collection, Iterable, Mapping
from typing import Any, Callable

import attr

from reimzul.core.beanstalk import BATCH, BATCH_REQUEST, NOTIFY, Broker
from reimzul.core.beanstalk_stats import JobStats
from reimzul.core.errors import InvalidMessage, ReservationLost
from reimzul.core.message import BuildEvent, BuildRequest, Status, event_for

#: Jobs that are looked at between two pings of the watchdog.
_PEEKS_BETWEEN_PINGS = 1000


@attr.frozen
class FoundJob:
    request: BuildRequest
    stats: JobStats


def find_job(broker: Broker, number: int, build_id: str) -> FoundJob | None:
    """The job of a build; None if that number has no job, or another's: numbers fall when a binlog is lost."""
    return _find_job(broker, number, [build_id])


def _find_job(broker: Broker, number: int, build_ids: Collection[str]) -> FoundJob | None:
    """The job with a number, if it is one that a builder may reserve, of one of these builds.

    An event has all fields of a request, and a request that is to be held comes in the tube `batch`.
    """
    with contextlib.suppress(ReservationLost, InvalidMessage):
        request = BuildRequest.decode(broker.peek(number))
        if request.build_id in build_ids and (stats := broker.job_stats(number)).tube not in (NOTIFY.name, BATCH.name):
            return FoundJob(request, stats)
    return None


def next_job_number(broker: Broker) -> int:
    """A number that is greater than those of all jobs that were put so far.

    Only this daemon reserves from `batch`, so nobody gets the job before it is deleted; a refusal of an unknown job
    concerns nobody, if a kill leaves it.
    """
    body = b'{"status":"Refused","tube":"batch","job":0,"reason":"asks for the number of a job"}'
    number = broker.put_raw(BATCH.name, body, priority=BATCH_REQUEST)
    with contextlib.suppress(ReservationLost):
        broker.delete(number)
    return number


def find_jobs(
    broker: Broker, numbers: range, build_ids: Collection[str], ping: Callable[[], None]
) -> dict[int, BuildRequest]:
    """The jobs with these numbers that belong to one of these builds, by number."""
    found = {}
    for number in numbers:
        if number % _PEEKS_BETWEEN_PINGS == 0:
            ping()
        if (job := _find_job(broker, number, build_ids)) is not None:
            found[number] = job.request
    return found


def next_event_time(last: float) -> float:
    """The time of an event that is to be the newest of its build, even if a builder's clock is ahead."""
    return round(max(time.time(), last + 0.001), 3)


def announce_queued(
    broker: Broker, request: BuildRequest, arches: Iterable[str], job: int, priority: int, tube: str, **more: Any
) -> None:
    """Announce that a job is held or released, for each arch that it is to be built for."""
    for arch in arches:
        broker.announce(event_for(request, Status.QUEUED, arch=arch, tube=tube, job=job, priority=priority, **more))


def announce_end(
    broker: Broker,
    request: BuildRequest,
    arches: Iterable[str],
    status: str,
    reason: str,
    at: float,
    about: Mapping[str, str] | None = None,
) -> None:
    """Announce the end of legs that no builder has ended. Announced again it is the same attempt."""
    attempt = f"{int(at)}-{request.build_id[:8]}"
    for arch in arches:
        broker.announce(event_for(request, status, arch=arch, attempt=attempt, reason=reason, **(about or {})))


def without_logs(event: BuildEvent) -> BuildEvent:
    """The event as it is journaled: what may be long decides nothing."""
    return attr.evolve(
        event, root_log="", build_log="", first_error="", rpms=(), phases=(), extra={}, signature="", owed={}
    )

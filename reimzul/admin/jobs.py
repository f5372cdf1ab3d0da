# SPDX-License-Identifier: Apache-2.0
"""The job of a waiting build: its state in beanstalkd, and its turn among the others.

beanstalkd cannot list a tube, so which jobs wait there is the history's to say; what is done to one of them is done by
its number, and only after a look whether it still is that build's.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import attr

from reimzul.admin.facts import GONE, UNKNOWN
from reimzul.core.beanstalk import Broker
from reimzul.core.beanstalk import JobStats as JobFacts
from reimzul.core.errors import InvalidMessage, ReservationLost
from reimzul.core.message import BuildRequest, Status
from reimzul.history import Document

#: Behind all priorities there are.
_LAST = 2**32


@attr.frozen(kw_only=True)
class QueuedJob:
    """The job of a build that waits."""

    job: int
    request: BuildRequest
    body: bytes
    stats: JobFacts


def find_job(broker: Broker, leg: Document) -> QueuedJob | None:
    """The job of a build, where the history knows it and beanstalkd still has it; whatever state it is in."""
    if not leg.get("job"):
        return None
    try:
        body = broker.peek(leg["job"])
        request = BuildRequest.decode(body)
        if request.build_id != leg["build_id"]:  # beanstalkd numbers anew when it loses its binlog
            return None
        return QueuedJob(job=leg["job"], request=request, body=body, stats=broker.job_stats(leg["job"]))
    except (ReservationLost, InvalidMessage):
        return None


def queue_order(leg: Mapping[str, Any]) -> tuple[int, int]:
    """What beanstalkd orders ready jobs by."""
    priority = leg.get("priority")
    return (priority if priority is not None else _LAST, leg.get("job") or 2**64)


def job_state(broker: Broker, leg: Document) -> str:
    """What beanstalkd says of a leg's job: one of its four states, `gone`; `unknown` where nobody knows its number."""
    if not leg.get("job"):
        return UNKNOWN
    found = find_job(broker, leg)
    return found.stats.state if found else GONE


def lowest_priority(unfinished: Iterable[Document], tube: str) -> int:
    """The smallest priority of what waits in a tube, as the history knows it; a very large one where nothing does."""
    waiting = [
        queue_order(each)[0] for each in unfinished if each["status"] == Status.QUEUED and each.get("tube") == tube
    ]
    return min(waiting, default=_LAST)

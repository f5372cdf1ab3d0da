# SPDX-License-Identifier: Apache-2.0
"""Names of submitters while a farm is upgraded: workers of 0.1 bury requests with names that they do not accept."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

import attr

from reimzul.core import validators
from reimzul.core.beanstalk import Broker, heartbeat_tube, is_heartbeat_tube
from reimzul.core.message import Feature


@attr.frozen(kw_only=True)
class SeenWorker:
    """The version and features in a worker's heartbeat."""

    host: str
    version: str
    features: Sequence[str] = ()

    @property
    def accepts_any_name(self) -> bool:
        """Whether it accepts any name: version 0.2 or later, or one built on the way there."""
        numbers = re.match(r"(\d+)\.(\d+)", self.version)
        return Feature.ANY_SUBMITTER in self.features or bool(numbers and (int(numbers[1]), int(numbers[2])) >= (0, 2))


def is_plain(name: str) -> bool:
    """Whether every version accepts a name unchanged."""
    return validators.restrict_submitter(name) == name


def all_accept_any_name(broker: Broker, workers: Iterable[SeenWorker]) -> bool:
    """Whether every known or connected worker accepts any name."""
    workers = tuple(workers)
    spoke = {heartbeat_tube(each.host) for each in workers}
    silent = (tube for tube in broker.list_tubes() if is_heartbeat_tube(tube) and tube not in spoke)
    return all(each.accepts_any_name for each in workers) and not any(
        broker.tube_stats(tube).watchers for tube in silent
    )

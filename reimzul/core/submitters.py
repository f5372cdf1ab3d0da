# SPDX-License-Identifier: Apache-2.0
"""Which names of submitters may be written while a farm is upgraded: a worker of 0.1 buries what it does not take."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

import attr

from reimzul.core import validators
from reimzul.core.beanstalk import Broker, heartbeat_tube, is_heartbeat_tube
from reimzul.core.message import Feature


@attr.frozen(kw_only=True)
class SeenWorker:
    """What a worker has said of itself."""

    host: str
    version: str
    features: Sequence[str] = ()

    @property
    def takes_any(self) -> bool:
        """Whether it takes any name: of version 0.2 or later, or built on the way there."""
        numbers = re.match(r"(\d+)\.(\d+)", self.version)
        return Feature.ANY_SUBMITTER in self.features or bool(numbers and (int(numbers[1]), int(numbers[2])) >= (0, 2))


def is_plain(name: str) -> bool:
    """Whether every version takes a name as it is."""
    return validators.restrict_submitter(name) == name


def all_take_any(broker: Broker, workers: Iterable[SeenWorker]) -> bool:
    """Whether every worker that is known or connected takes any name."""
    workers = tuple(workers)
    spoke = {heartbeat_tube(each.host) for each in workers}
    silent = (tube for tube in broker.list_tubes() if is_heartbeat_tube(tube) and tube not in spoke)
    return all(each.takes_any for each in workers) and not any(broker.tube_stats(tube).watchers for tube in silent)

# SPDX-License-Identifier: Apache-2.0
"""What follows from a result that a worker of the original announced: the original's notifier saw to it.

Nobody else tells bstore of such a leg what the farm needs to know. The original's worker asks `createrepo` after it
has announced a success, and never of a failure, whose logs would have no place then; and for the signer it was always
the notifier that asked. Both messages have the original's keys, for a bstore that is the original's still.

And its rsync makes no folder for a target that is new: that one is asked for as soon as something is built for it.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Container, Iterator, Sequence
from typing import Any, Callable, Optional

from reimzul.core.beanstalk import CREATEREPO, PRIORITY, TOSIGN, Broker, Tube
from reimzul.core.config import Settings
from reimzul.core.errors import BrokerUnavailable, InvalidMessage, RetryLater
from reimzul.core.message import BuildEvent, Event, RepogenRequest, SignRequest, Status
from reimzul.core.store_paths import package_dir
from reimzul.history.result_rules import Notification
from reimzul.notifier.sinks.base import Sink, SinkAway

log = logging.getLogger(__name__)


class OriginalsSink(Sink):
    """Asks repogen and tosign for the legs of the original's workers; both find out what is done already."""

    name = "originals"

    def __init__(self, connect: Callable[[], Broker]) -> None:
        self._connect = connect
        self._broker: Optional[Broker] = None
        self._known: set[str] = set()  #: targets that were asked for, or had a result, since we are here

    @classmethod
    def of(cls, settings: Settings) -> OriginalsSink | None:
        """Only while there are such workers."""
        if not settings.farm.original_workers:
            return None
        return cls(functools.partial(Broker, settings.beanstalkd.host, settings.beanstalkd.port))

    def wants(self, event: Event) -> bool:
        """What a worker of the original says."""
        return isinstance(event, BuildEvent) and event.by_original

    def tell(self, notices: Sequence[Notification]) -> Iterator[Notification]:
        """Each is told when its requests are in their tubes."""
        for notice in notices:
            if isinstance(notice.event, BuildEvent):
                self._ask(notice.event)
            yield notice

    def close(self) -> None:
        """Leave."""
        if self._broker is not None:
            self._broker.close()
            self._broker = None

    def _ask(self, event: BuildEvent) -> None:
        try:
            self._broker = self._broker or self._connect()
            for tube, message in requests(event, self._known):
                self._broker.put(tube, message, priority=PRIORITY)
            self._known.add(event.target)
        except (BrokerUnavailable, RetryLater) as error:
            self.close()
            raise SinkAway(str(error)) from error
        except InvalidMessage as error:
            log.error("%s of %s by %s cannot be passed on: %s", event.status, event.srpm, event.builder_fqdn, error)


def requests(event: BuildEvent, known: Container[str]) -> Iterator[tuple[Tube[Any], Any]]:
    """What bstore is asked for; `known` targets are there. Raises `InvalidMessage` where the event says too little."""
    if event.status == Status.BUILDING:
        if event.target not in known:
            yield CREATEREPO, RepogenRequest(target=event.target)
        return
    yield CREATEREPO, RepogenRequest.from_json(event.to_json())
    if event.status != Status.SUCCESS or event.scratch:
        return
    try:
        yield (
            TOSIGN,
            SignRequest(
                pkgname=event.pkgname,
                status=event.status,
                target=event.target,
                arch=event.arch,
                timestamp=event.timestamp,
                place=package_dir(event.target, event.pkgname, event.timestamp, event.evr, event.arch, scratch=False),
            ),
        )
    except ValueError as error:
        raise InvalidMessage(str(error)) from None

# SPDX-License-Identifier: Apache-2.0
"""The tube `batch`: passes on what `reimzul-batch` decides by (docs/wire.md, "What the notifier passes on to batch").

These are the events of batches' members and of held builds, all results, since a single build may wait for any other
build, and refusals of requests. Each is passed on without delay, with only the fields that decide something. It may
come twice; `reimzul-batch` takes it once.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from typing import Optional, Union

import attr

from reimzul.core.arch import read_arches
from reimzul.core.beanstalk import BATCH, BATCH_RESULT, Broker
from reimzul.core.errors import BrokerUnavailable, RetryLater
from reimzul.core.message import BuilderEvent, BuildEvent, Event, Refusal
from reimzul.core.settings import BeanstalkdSettings, Settings
from reimzul.history.result_rules import Notification, is_result
from reimzul.notifier.delivery import Sink, SinkUnavailable

_EVENT_FIELDS = (
    "srpm", "arch", "target", "submitter", "status", "scratch", "build_id", "timestamp", "parent", "batch", "pkgname",
    "evr", "builder_fqdn", "attempt", "at", "job", "due", "held", "missing", "reason", "error_line", "cause",
    "cause_text", "cause_version", "place", "skipped",
)  # fmt: skip


def shorten(event: Event) -> Union[BuildEvent, Refusal]:
    """Return the event with only those fields by which `reimzul-batch` decides."""
    if isinstance(event, Refusal):
        return attr.evolve(event, begins="", owed={})
    assert not isinstance(event, BuilderEvent), "`accepts` takes none"
    return BuildEvent(**{name: getattr(event, name) for name in _EVENT_FIELDS})


class BatchSink(Sink):
    name = "batch"
    is_urgent = True

    def __init__(self, beanstalkd: BeanstalkdSettings, request_tubes: Collection[str]) -> None:
        self._beanstalkd, self._request_tubes = beanstalkd, frozenset(request_tubes)
        self._broker: Optional[Broker] = None

    @classmethod
    def from_settings(cls, settings: Settings) -> Optional[BatchSink]:
        if not settings.batch.enabled:
            return None
        return cls(settings.beanstalkd, read_arches(settings.farm.arches).tubes())

    def accepts(self, event: Event) -> bool:
        if isinstance(event, Refusal):
            return event.tube in self._request_tubes
        if not isinstance(event, BuildEvent) or event.claimed:
            return False
        return bool(event.batch) or event.held is not None or is_result(event.status)

    def deliver(self, notices: Sequence[Notification]) -> Iterator[Notification]:
        try:
            self._broker = self._broker or Broker.from_settings(self._beanstalkd)
            for notice in notices:
                self._broker.put(BATCH, shorten(notice.event), priority=BATCH_RESULT)
                yield notice
        except BrokerUnavailable as error:
            self.close()
            raise SinkUnavailable(str(error)) from error
        except RetryLater as error:  # beanstalkd is full
            raise SinkUnavailable(str(error)) from error

    def close(self) -> None:
        if self._broker is not None:
            self._broker.close()
            self._broker = None

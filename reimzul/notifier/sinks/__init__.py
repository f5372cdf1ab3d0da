# SPDX-License-Identifier: Apache-2.0
"""The sinks of the notifier: the table of all, and the history; the others have a module each."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from typing import Optional

from reimzul.core.links import LinkSource, relink_event
from reimzul.core.settings import Settings
from reimzul.history import (
    History,
    HistoryDamaged,
    HistoryUnavailable,
    history_class,
    open_history,
    repair_history,
)
from reimzul.history.result_rules import Notification
from reimzul.notifier.delivery import Sink, SinkUnavailable
from reimzul.notifier.sinks.batch import BatchSink
from reimzul.notifier.sinks.logfile import LogSink
from reimzul.notifier.sinks.mail import MailSink
from reimzul.notifier.sinks.mqtt import MqttSink

log = logging.getLogger(__name__)


class HistorySink(Sink):
    """An event is delivered when the history has recorded it."""

    name = "history"

    def __init__(self, url: str, links: LinkSource) -> None:
        self._url, self._links = url, links
        self._history: Optional[History] = None
        self._is_checked = self._is_damaged = False

    @classmethod
    def from_settings(cls, settings: Settings) -> HistorySink:
        history_class(settings.history.url)  # a missing library is an error at the start
        return cls(settings.history.url, LinkSource(settings))

    def deliver(self, notices: Sequence[Notification]) -> Iterator[Notification]:
        try:
            self._history = self._history or self._open()
            roots = self._links.get()
            self._history.record([relink_event(notice.event, roots) for notice in notices])
        except HistoryUnavailable as error:
            self._is_damaged = isinstance(error, HistoryDamaged)
            self.close()
            raise SinkUnavailable(str(error)) from error
        yield from notices

    def _open(self) -> History:
        """Open the history; after the start, and when it was found damaged, what is damaged is replaced first."""
        if self._is_damaged or not self._is_checked:
            done = repair_history(self._url, thorough=self._is_damaged)
            self._is_checked, self._is_damaged = True, False
            if done:
                log.error("%s", done)
        return open_history(self._url)

    def close(self) -> None:
        if self._history is not None:
            self._history.close()
            self._history = None


SINKS: dict[str, type[Sink]] = {sink.name: sink for sink in (LogSink, HistorySink, MailSink, MqttSink, BatchSink)}


def enabled_sinks(settings: Settings) -> list[Sink]:
    """Make the sinks that are switched on. Raises `ConfigError`."""
    made = [kind.from_settings(settings) for kind in SINKS.values()]
    return [sink for sink in made if sink is not None]

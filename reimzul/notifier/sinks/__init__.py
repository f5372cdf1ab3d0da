# SPDX-License-Identifier: Apache-2.0
"""The table of sinks: a row each."""

from __future__ import annotations

from reimzul.core.config import Settings
from reimzul.notifier.sinks.base import Sink
from reimzul.notifier.sinks.history import HistorySink
from reimzul.notifier.sinks.logfile import LogSink
from reimzul.notifier.sinks.mail import MailSink
from reimzul.notifier.sinks.mqtt import MqttSink
from reimzul.notifier.sinks.originals import OriginalsSink

SINKS: dict[str, type[Sink]] = {sink.name: sink for sink in (LogSink, HistorySink, MailSink, MqttSink, OriginalsSink)}


def wanted(settings: Settings) -> list[Sink]:
    """The sinks that are switched on. Raises `ConfigError`."""
    made = [kind.of(settings) for kind in SINKS.values()]
    return [sink for sink in made if sink is not None]

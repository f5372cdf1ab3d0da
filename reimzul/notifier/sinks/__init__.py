# SPDX-License-Identifier: Apache-2.0
"""The sinks of the notifier."""

from __future__ import annotations

from reimzul.core.settings import Settings
from reimzul.notifier.sinks.base import Sink
from reimzul.notifier.sinks.history import HistorySink
from reimzul.notifier.sinks.logfile import LogSink
from reimzul.notifier.sinks.mail import MailSink
from reimzul.notifier.sinks.mqtt import MqttSink

SINKS: dict[str, type[Sink]] = {sink.name: sink for sink in (LogSink, HistorySink, MailSink, MqttSink)}


def enabled_sinks(settings: Settings) -> list[Sink]:
    """Make the sinks that are switched on. Raises `ConfigError`."""
    made = [kind.from_settings(settings) for kind in SINKS.values()]
    return [sink for sink in made if sink is not None]

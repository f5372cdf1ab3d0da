# SPDX-License-Identifier: Apache-2.0
"""MQTT: publishes results, and every event on a topic of its own.

`<topic>/builds/results` has `Success` and `Failed`, as the original published them: not of scratch builds, since its
six keys (srpm, status, target, arch, timestamp, submitter) do not show whether a build is one, and their subscribers
act on packages. `<topic>/builds/events` has everything, scratch builds and refused messages too.
`<topic>/builds/batches` has what concerns a batch as a whole.

An event is delivered when the broker has acknowledged all its messages (QoS 1). QoS 1 may deliver twice; messages with
the same `id` are the same event.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, Optional

from reimzul.core.batch_event import BatchEvent
from reimzul.core.errors import ConfigError
from reimzul.core.links import NO_LINKS, LinkRoots, LinkSource, relink_event
from reimzul.core.message import BuildEvent, Status
from reimzul.core.settings import MqttSettings, Settings
from reimzul.history.result_rules import Notification
from reimzul.notifier.delivery import Sink, SinkUnavailable

if TYPE_CHECKING:
    from reimzul.core.mqtt import MqttConnection

#: The version of what is published. A new key is no new version, a changed meaning is.
SCHEMA = 1
#: Seconds the broker has to acknowledge a batch.
ACK_SECONDS = 10.0

_RESULT_KEYS = (
    "srpm", "status", "target", "arch", "timestamp", "submitter",
    "build_id", "evr", "pkgname", "builder_fqdn", "reason", "url", "place", "page", "batch",
    "cause", "cause_text", "newly_failing", "fixed", "previous_build", "previous_evr",
)  # fmt: skip


def messages(topic: str, notice: Notification, roots: LinkRoots = NO_LINKS) -> list[tuple[str, bytes]]:
    """Return topic and payload of each message that an event is published as."""
    event = relink_event(notice.event, roots)
    about = {"schema": SCHEMA, "id": "/".join(notice.name)}
    fields = {name: value for name, value in event.to_json().items() if name != "owed"}
    published = [(f"{topic}/builds/events", _payload({**fields, **about}))]
    if isinstance(event, BatchEvent):
        published.append((f"{topic}/builds/batches", _payload({**fields, **about})))
    if isinstance(event, BuildEvent) and event.status in (Status.SUCCESS, Status.FAILED) and not event.scratch:
        values = ((name, getattr(event, name)) for name in _RESULT_KEYS)
        result = {name: value for name, value in values if value is not None}
        published.append((f"{topic}/builds/results", _payload({**result, **about})))
    return published


def _payload(fields: dict[str, Any]) -> bytes:
    return json.dumps(fields, sort_keys=True).encode("ascii")


class MqttSink(Sink):
    name = "mqtt"

    def __init__(self, settings: MqttSettings, links: LinkSource) -> None:
        self._settings, self._links = settings, links
        self._connection: Optional[MqttConnection] = None

    @classmethod
    def from_settings(cls, settings: Settings) -> Optional[MqttSink]:
        if not settings.mqtt.notifications:
            return None
        try:
            from reimzul.core import mqtt  # noqa: F401  paho is needed only where MQTT is switched on
        except ImportError as error:
            raise ConfigError(
                f"[mqtt] notifications: paho-mqtt is not installed ({error}): pip install 'reimzul[controller]'"
            ) from error
        return cls(settings.mqtt, LinkSource(settings))

    def deliver(self, notices: Sequence[Notification]) -> Iterator[Notification]:
        from reimzul.core.mqtt import MqttConnection, MqttUnavailable

        try:
            if self._connection is not None and self._connection.fault:
                self.close()
            self._connection = connection = self._connection or MqttConnection(self._settings)
            roots = self._links.get()
            for notice in notices:
                connection.send(notice.name, messages(self._settings.topic, notice, roots))
        except MqttUnavailable as error:
            raise SinkUnavailable(str(error)) from error
        until = time.monotonic() + ACK_SECONDS
        for notice in notices:
            if not connection.wait_acked(notice.name, until):
                fault = connection.fault or f"acknowledges nothing for {ACK_SECONDS:g} s"
                raise SinkUnavailable(f"{connection.address} {fault}")
            yield notice

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None

# SPDX-License-Identifier: Apache-2.0
"""MQTT: results for whoever subscribes, and every event for who wants all.

`<topic>/builds/results` has `Success` and `Failed`, as the original published them: not of scratch builds, since its
six keys (srpm, status, target, arch, timestamp, submitter) do not say whether a build is one, and who subscribed to
them acts on packages. `<topic>/builds/events` has everything, scratch builds and refused messages too.

An event is told when the broker has acknowledged all its messages (QoS 1). QoS 1 may deliver twice; messages with
the same `id` are the same news.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, Optional

from reimzul.core.config import MqttSettings, Settings
from reimzul.core.errors import ConfigError
from reimzul.core.message import BuildEvent, Event, Status
from reimzul.history.result_rules import Notification
from reimzul.notifier.sinks.base import Sink, SinkAway

if TYPE_CHECKING:
    from reimzul.notifier.sinks.mqtt_link import Link

#: The version of what is published. A new key is no new version, a changed meaning is.
SCHEMA = 1
#: Seconds the broker has to acknowledge what it was sent.
ACKNOWLEDGED = 10.0

_RESULT_KEYS = (
    "srpm", "status", "target", "arch", "timestamp", "submitter",
    "build_id", "evr", "pkgname", "builder_fqdn", "reason", "url",
)  # fmt: skip


def messages(topic: str, notice: Notification) -> list[tuple[str, bytes]]:
    """What is published of an event: topic and payload of each message."""
    event = notice.event
    about = {"schema": SCHEMA, "id": "/".join(notice.name)}
    told = {name: value for name, value in event.to_json().items() if name != "owed"}
    published = [(f"{topic}/builds/events", _payload({**told, **about}))]
    if _is_result(event):
        result = {name: getattr(event, name) for name in _RESULT_KEYS}
        published.append((f"{topic}/builds/results", _payload({**result, **about})))
    return published


def _is_result(event: Event) -> bool:
    return isinstance(event, BuildEvent) and event.status in (Status.SUCCESS, Status.FAILED) and not event.scratch


def _payload(wire: dict[str, Any]) -> bytes:
    return json.dumps(wire, sort_keys=True).encode("ascii")


class MqttSink(Sink):
    """Publishes to one broker, on one connection that is kept."""

    name = "mqtt"

    def __init__(self, settings: MqttSettings) -> None:
        self._settings = settings
        self._link: Optional[Link] = None

    @classmethod
    def of(cls, settings: Settings) -> Optional[MqttSink]:
        """Where [mqtt] notifications is true."""
        if not settings.mqtt.notifications:
            return None
        try:
            from reimzul.notifier.sinks import mqtt_link  # noqa: F401
        except ImportError as error:
            raise ConfigError(
                f"[mqtt] notifications: paho-mqtt is not installed ({error}): pip install 'reimzul[controller]'"
            ) from error
        return cls(settings.mqtt)

    def tell(self, notices: Sequence[Notification]) -> Iterator[Notification]:
        """Send all, then wait for the acknowledgements."""
        link = self._connected()
        for notice in notices:
            link.send(notice.name, messages(self._settings.topic, notice))
        until = time.monotonic() + ACKNOWLEDGED
        for notice in notices:
            if not link.arrived(notice.name, until):
                raise SinkAway(f"{link.address} {link.fault or f'acknowledges nothing for {ACKNOWLEDGED:g} s'}")
            yield notice

    def close(self) -> None:
        """Take leave of the broker."""
        if self._link is not None:
            self._link.close()
            self._link = None

    def _connected(self) -> Link:
        """The connection, a new one where the last has failed."""
        from reimzul.notifier.sinks.mqtt_link import Link

        if self._link is not None and self._link.fault:
            self.close()
        if self._link is None:
            self._link = Link(self._settings)
        return self._link

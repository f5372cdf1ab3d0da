# SPDX-License-Identifier: Apache-2.0
"""Our place at the MQTT broker. The one place of this room that imports paho.

MQTT 5, QoS 1 and a session that the broker keeps while we are away: what is published meanwhile waits there. It sends
at most `UNDER_WAY` messages ahead of our acknowledgements, and we acknowledge what was said, not what was heard.
paho reconnects by itself, with growing pauses.
"""

from __future__ import annotations

import logging
import time
from typing import Any, Callable

import paho.mqtt.client as paho
from paho.mqtt.enums import CallbackAPIVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from reimzul.core.config import IrcSettings, MqttSettings
from reimzul.core.errors import ConfigError
from reimzul.core.tls import client_context
from reimzul.irc.inbox import UNDER_WAY, Receipt

log = logging.getLogger(__name__)

#: Seconds of silence after which the broker is asked whether it is there.
KEEPALIVE = 30
#: Seconds between two tries to reach it: doubled each time, up to the second.
PAUSE, LONGEST_PAUSE = 1, 120
#: Seconds the broker keeps our place while we are away.
KEPT = 30 * 86400
#: Seconds between two lines about a broker that is away.
SAY_AGAIN = 60.0


class Subscription:
    """Hears `<topic>/builds/results` from its start until it is closed."""

    def __init__(self, mqtt: MqttSettings, irc: IrcSettings, hear: Callable[[bytes, Receipt], None]) -> None:
        """`hear` gets each payload, in paho's thread, and what acknowledges it. Raises `ConfigError`."""
        self._topic = f"{mqtt.topic}/builds/results"
        self._address = f"the MQTT broker at {mqtt.host}:{mqtt.port}"
        self._hear = hear
        self._said = float("-inf")
        self._client = paho.Client(CallbackAPIVersion.VERSION2, irc.client_id, protocol=paho.MQTTv5, manual_ack=True)
        self._client.tls_set_context(_tls(mqtt, irc))
        self._client.reconnect_delay_set(PAUSE, LONGEST_PAUSE)
        self._client.on_connect = self._on_connect
        self._client.on_connect_fail = self._on_connect_fail
        self._client.on_disconnect = self._on_disconnect
        self._client.on_message = self._on_message
        self._client.connect_async(mqtt.host, mqtt.port, KEEPALIVE, clean_start=False, properties=_properties())

    def start(self) -> None:
        """Connect, and stay so."""
        self._client.loop_start()

    def close(self) -> None:
        """Leave; the broker keeps our place."""
        self._client.disconnect()
        self._client.loop_stop()

    def _on_connect(self, _client: Any, _userdata: Any, _flags: Any, code: Any, _properties: Any) -> None:
        if code != 0:
            self._say(f"refused us: {code}")
            return
        self._said = float("-inf")
        log.info("%s: listening to %s", self._address, self._topic)
        self._client.subscribe(self._topic, qos=1)

    def _on_connect_fail(self, *_: Any) -> None:
        self._say("cannot be reached")

    def _on_disconnect(self, _client: Any, _userdata: Any, _flags: Any, code: Any, _properties: Any) -> None:
        if code != 0:
            self._say(f"is gone ({code})")

    def _on_message(self, _client: Any, _userdata: Any, message: paho.MQTTMessage) -> None:
        number, qos = message.mid, message.qos
        self._hear(bytes(message.payload), lambda: self._acknowledge(number, qos))

    def _acknowledge(self, number: int, qos: int) -> None:
        # where the connection has broken since, the broker knows no such number, and delivers it again
        if self._client.is_connected():
            self._client.ack(number, qos)

    def _say(self, what: str) -> None:
        if time.monotonic() - self._said > SAY_AGAIN:
            self._said = time.monotonic()
            log.warning("%s %s; trying again", self._address, what)


def _properties() -> Properties:
    properties = Properties(PacketTypes.CONNECT)  # type: ignore[no-untyped-call]
    properties.SessionExpiryInterval = KEPT
    properties.ReceiveMaximum = UNDER_WAY
    return properties


def _tls(mqtt: MqttSettings, irc: IrcSettings) -> Any:
    both = (irc.mqtt_cert, irc.mqtt_key) if irc.mqtt_cert else (mqtt.tls_cert, mqtt.tls_key)
    pair = (both[0], both[1]) if both[0] and both[1] else None
    try:
        return client_context("mqtt", ca_cert=mqtt.ca_cert, pair=pair, any_name=mqtt.tls_insecure)
    except OSError as error:
        raise ConfigError(str(error)) from error

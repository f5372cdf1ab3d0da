# SPDX-License-Identifier: Apache-2.0
"""One connection to an MQTT broker. The one module of notifier and doctor that imports paho, any version from 1.5 on.

paho is on a controller alone: import this module only where MQTT is switched on. A connection that fails is thrown
away with all it had not sent: paho would send that again after reconnecting, and so would the notifier. While a
connection holds, messages that the broker is slow to acknowledge are waited for, and not sent again.
"""

from __future__ import annotations

import contextlib
import socket
import ssl
import threading
import time
from collections.abc import Sequence
from typing import Any, Callable

import paho.mqtt.client as paho

from reimzul.core.errors import ReimzulError
from reimzul.core.settings import MqttSettings
from reimzul.core.tls import client_context

#: Seconds of silence after which the broker is pinged, and then given up.
KEEPALIVE_SECONDS = 15
#: Seconds the broker has to accept the connection.
CONNECT_SECONDS = 5.0
#: Seconds a disconnect may take.
DISCONNECT_SECONDS = 0.2
#: How many messages may be unacknowledged: more than a batch makes.
MAX_UNACKNOWLEDGED = 2000

Name = tuple[str, str]


class MqttUnavailable(ReimzulError):
    """The broker cannot be used now."""


class MqttConnection:
    """One connection, until its first fault."""

    def __init__(self, settings: MqttSettings) -> None:
        """Connect. Raises `MqttUnavailable`."""
        self.address = f"the MQTT broker at {settings.host}:{settings.port}"
        self.fault = ""  #: why it cannot be used any more
        self._changed = threading.Condition()
        self._is_accepted = False
        self._sent: dict[Name, list[paho.MQTTMessageInfo]] = {}
        self._client = _client()
        self._client.max_inflight_messages_set(MAX_UNACKNOWLEDGED)
        self._client.on_socket_open = _without_delay
        self._client.on_connect = self._on_connect
        self._client.on_disconnect = self._on_disconnect
        self._client.on_publish = self._on_publish
        self._open(settings)

    def send(self, name: Name, messages: Sequence[tuple[str, bytes]]) -> None:
        """Publish the messages of one event, unless they are sent already. Raises `MqttUnavailable`."""
        if name in self._sent:
            return
        infos = [self._client.publish(topic, payload, qos=1) for topic, payload in messages]
        if any(info.rc != paho.MQTT_ERR_SUCCESS for info in infos):
            self._fail("is gone")
            raise MqttUnavailable(f"{self.address} {self.fault}")
        self._sent[name] = infos

    def wait_acked(self, name: Name, until: float) -> bool:
        # acknowledgements come in the order of sending, so the last is asked first
        infos = self._sent[name][::-1]
        if not self._wait(lambda: all(info.is_published() for info in infos), until):
            return False
        del self._sent[name]
        return True

    def close(self) -> None:
        """Disconnect; a broker that does not answer is not waited for."""
        self._client.disconnect()
        if not self.fault:
            self._wait(lambda: False, time.monotonic() + DISCONNECT_SECONDS)
        self._fail("was disconnected")
        # paho's own loop_stop() would wait for what was never acknowledged
        sock: Any = self._client.socket()
        if sock is not None:
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)

    def _open(self, settings: MqttSettings) -> None:
        try:
            self._client.tls_set_context(tls_context(settings))
            self._client.connect(settings.host, settings.port, KEEPALIVE_SECONDS)
        except (OSError, ValueError) as error:
            raise MqttUnavailable(f"{self.address} cannot be reached: {error}") from error
        self._client.loop_start()
        if not self._wait(lambda: self._is_accepted, time.monotonic() + CONNECT_SECONDS):
            self.close()
            raise MqttUnavailable(f"{self.address} did not welcome us ({self.fault}); is our certificate one it knows?")

    def _wait(self, holds: Callable[[], bool], until: float) -> bool:
        """Wait until it holds, the connection fails, or the time is over; return whether it holds."""
        with self._changed:
            self._changed.wait_for(lambda: holds() or bool(self.fault), max(0.0, until - time.monotonic()))
            return holds()

    def _fail(self, why: str) -> None:
        with self._changed:
            self.fault = self.fault or why
            self._changed.notify_all()

    # paho's callbacks, in its thread. What follows the first arguments differs between its versions.

    def _on_connect(self, _client: Any, _userdata: Any, _flags: Any, code: Any, *_: Any) -> None:
        if code != 0:
            self._fail(f"refused us: {code}")
            return
        with self._changed:
            self._is_accepted = True
            self._changed.notify_all()

    def _on_disconnect(self, *_: Any) -> None:
        self._fail("closed the connection")
        self._client.disconnect()  # paho does not reconnect then

    def _on_publish(self, *_: Any) -> None:
        with self._changed:
            self._changed.notify_all()


def tls_context(settings: MqttSettings) -> ssl.SSLContext:
    """Return the context: the certificate is always checked, its name unless `tls_insecure`. Raises `OSError`."""
    pair = settings.tls_cert, settings.tls_key
    return client_context("mqtt", ca_cert=settings.ca_cert, pair=pair, any_name=settings.tls_insecure)


def _client() -> paho.Client:
    # paho 2 needs the version of its callbacks, paho 1 does not know that parameter
    versions = getattr(paho, "CallbackAPIVersion", None)
    arguments: list[Any] = [] if versions is None else [versions.VERSION2]
    return paho.Client(*arguments)


def _without_delay(_client: Any, _userdata: Any, sock: Any) -> None:
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

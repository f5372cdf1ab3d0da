# SPDX-License-Identifier: Apache-2.0
"""One connection to an MQTT broker. The one place that imports paho, of any version from 1.5 on.

A connection that fails is thrown away with all that it had not sent: paho would send that again by itself when it
has reconnected, and the notifier, to whom it is still owed, would too. While a connection holds, what the broker is
slow to acknowledge is waited for, and not sent again.
"""

from __future__ import annotations

import contextlib
import socket
import ssl
import sys
import threading
import time
from collections.abc import Sequence
from typing import Any, Callable

from reimzul.core.config import MqttSettings
from reimzul.core.tls import client_context
from reimzul.notifier.sinks.base import SinkAway

# paho takes a DNS resolver along where one is installed (pymongo wants it), to find brokers by SRV records. None of
# ours is found so, and it takes 3 MiB: it is not there for as long as paho is imported.
_HIDDEN = "dns" not in sys.modules and sys.modules.setdefault("dns", None) is None  # type: ignore[arg-type]
import paho.mqtt.client as paho  # noqa: E402

if _HIDDEN:
    del sys.modules["dns"]

#: Seconds of silence after which the broker is asked whether it is there, and then given up.
KEEPALIVE = 15
#: Seconds until the broker has to have welcomed us.
WELCOME = 5.0
#: Seconds a good-bye may take.
LEAVE = 0.2
#: How many messages may be under way: more than a batch makes.
UNDER_WAY = 2000

Name = tuple[str, str]


class Link:
    """One connection, from its welcome until its first fault."""

    def __init__(self, settings: MqttSettings) -> None:
        """Connect. Raises `SinkAway`."""
        self.address = f"the MQTT broker at {settings.host}:{settings.port}"
        self.fault = ""  #: why it can be used no more
        self._news = threading.Condition()
        self._welcome = False
        self._sent: dict[Name, list[paho.MQTTMessageInfo]] = {}
        self._client = _client()
        self._client.max_inflight_messages_set(UNDER_WAY)
        self._client.on_socket_open = _without_delay
        self._client.on_connect = self._on_connect
        self._client.on_disconnect = self._on_disconnect
        self._client.on_publish = self._on_publish
        self._open(settings)

    def send(self, name: Name, messages: Sequence[tuple[str, bytes]]) -> None:
        """Publish what belongs to one notice, unless it is under way already. Raises `SinkAway`."""
        if name in self._sent:
            return
        infos = [self._client.publish(topic, payload, qos=1) for topic, payload in messages]
        if any(info.rc != paho.MQTT_ERR_SUCCESS for info in infos):
            self._fail("is gone")
            raise SinkAway(f"{self.address} {self.fault}")
        self._sent[name] = infos

    def arrived(self, name: Name, until: float) -> bool:
        """Whether the broker has acknowledged all of a notice, waiting for it."""
        # acknowledgements come in the order of sending, so the last is asked first
        infos = self._sent[name][::-1]
        if not self._wait(lambda: all(info.is_published() for info in infos), until):
            return False
        del self._sent[name]
        return True

    def close(self) -> None:
        """Say good-bye if the broker hears it; in any case let go."""
        self._client.disconnect()
        if not self.fault:
            self._wait(lambda: False, time.monotonic() + LEAVE)
        self._fail("was left")
        # paho's own loop_stop() would wait for what was never acknowledged
        sock: Any = self._client.socket()
        if sock is not None:
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)

    def _open(self, settings: MqttSettings) -> None:
        try:
            self._client.tls_set_context(tls(settings))
            self._client.connect(settings.host, settings.port, KEEPALIVE)
        except (OSError, ValueError) as error:
            raise SinkAway(f"{self.address} cannot be reached: {error}") from error
        self._client.loop_start()
        if not self._wait(lambda: self._welcome, time.monotonic() + WELCOME):
            self.close()
            raise SinkAway(f"{self.address} did not welcome us ({self.fault}); is our certificate one it knows?")

    def _wait(self, holds: Callable[[], bool], until: float) -> bool:
        """Whether it holds before the connection fails and before that time."""
        with self._news:
            self._news.wait_for(lambda: holds() or bool(self.fault), max(0.0, until - time.monotonic()))
            return holds()

    def _fail(self, why: str) -> None:
        with self._news:
            self.fault = self.fault or why
            self._news.notify_all()

    # paho's callbacks, in its thread. What follows the first arguments differs between its versions.

    def _on_connect(self, _client: Any, _userdata: Any, _flags: Any, code: Any, *_: Any) -> None:
        if code != 0:
            self._fail(f"refused us: {code}")
            return
        with self._news:
            self._welcome = True
            self._news.notify_all()

    def _on_disconnect(self, *_: Any) -> None:
        self._fail("closed the connection")
        self._client.disconnect()  # paho does not reconnect then

    def _on_publish(self, *_: Any) -> None:
        with self._news:
            self._news.notify_all()


def tls(settings: MqttSettings) -> ssl.SSLContext:
    """TLS as set: the broker's certificate is always checked, its name unless `tls_insecure`. Raises `OSError`."""
    both = settings.tls_cert, settings.tls_key
    pair = (both[0], both[1]) if both[0] and both[1] else None
    return client_context("mqtt", ca_cert=settings.ca_cert, pair=pair, any_name=settings.tls_insecure)


def _client() -> paho.Client:
    """A client of this paho: 2 wants to be told how its callbacks look, 1 does not know the question."""
    versions = getattr(paho, "CallbackAPIVersion", None)
    arguments: list[Any] = [] if versions is None else [versions.VERSION2]
    return paho.Client(*arguments)


def _without_delay(_client: Any, _userdata: Any, sock: Any) -> None:
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

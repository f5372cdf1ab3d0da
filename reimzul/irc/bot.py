# SPDX-License-Identifier: Apache-2.0
"""The loop of reimzul-irc: takes results from the MQTT broker, sends them to IRC, then acknowledges them.

While IRC is away, the broker keeps what is published; while the broker is away, the bot stays in its channels. A
message that was under way when the IRC connection ended is sent again. A payload is data from outside: nothing in it
can end a line, begin a command, colour it or ring a bell. Only this module of the package imports paho.
"""

from __future__ import annotations

import itertools
import json
import logging
import sys
import threading
import time
from collections import deque
from pathlib import Path
from typing import Any, Callable, Optional

import attr
import paho.mqtt.client as paho
from paho.mqtt.enums import CallbackAPIVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from reimzul.core import validators
from reimzul.core.daemon import SdNotify, Stop, handle_signals
from reimzul.core.errors import ConfigError
from reimzul.core.links import describe_folder
from reimzul.core.retry import Backoff, LogThrottle
from reimzul.core.settings import IrcChannelsSettings, IrcSettings, MqttSettings, Settings
from reimzul.core.tls import client_context
from reimzul.irc.connection import IrcConnection, IrcDisconnected

log = logging.getLogger(__name__)

#: The longest wait for the IRC server in one pass of the loop; a new result is noticed after it.
PASS_SECONDS = 0.2
#: The most bytes of a message: a line of IRC has 512, with the sender's name and the channel's.
MAX_BYTES = 380
#: How many deliveries the MQTT broker sends ahead of our acknowledgements.
MAX_UNACKNOWLEDGED = 20
#: How many ids of sent messages are remembered, to recognise a repeated delivery.
REMEMBERED_IDS = 1000
#: How many lines may be sent at once after a silence.
BURST_LINES = 4
#: mIRC's colours: green, red, and the default.
_GREEN, _RED, _PLAIN = "\x0303", "\x0304", "\x0f"
_KEYS = ("status", "srpm", "arch", "target", "submitter", "reason", "url", "place", "page")
#: Topics below the prefix that are subscribed to.
_TOPICS = ("builds/results", "builds/batches")

#: Acknowledges a delivery to the MQTT broker.
Acknowledge = Callable[[], None]


class IrcBot:
    def __init__(self, settings: Settings) -> None:
        """Raises `ConfigError`."""
        self.stop = Stop()
        self.service = SdNotify()
        self._settings = settings.irc
        self._formatter = Formatter(settings=settings.irc, rows=settings.irc_channels)
        self._channels = dict.fromkeys(
            [*settings.irc.channels, *(name for row in settings.irc_channels.by_name.values() for name in row)]
        )
        if not self._channels:
            raise ConfigError("[irc] channels and [irc_channels] are empty; name a channel in one of them")
        self._password = _read_password(settings.irc.password_file)
        self._pending = PendingMessages()
        self._subscription = Subscription(settings.mqtt, settings.irc, self._on_result)
        self._connection: Optional[IrcConnection] = None
        self._under_way: dict[str, str] = {}  #: PING token -> id of the message before it
        self._tokens = itertools.count(1)
        self._backoff = Backoff(first=2.0, cap=300.0)
        self._retry_at = 0.0
        self._limiter = RateLimiter(settings.irc.seconds_a_line, time.monotonic())

    def run(self) -> None:
        with handle_signals(self.stop):
            self._subscription.start()
            self.service.announce_ready("connecting to IRC")
            while not self.stop.is_requested:
                self.service.ping()
                try:
                    self._run_once()
                except IrcDisconnected as error:
                    self._connection = None
                    self._under_way.clear()
                    pause = self._backoff.next_pause()
                    self._retry_at = time.monotonic() + pause
                    log.warning("%s; retrying in %g s", error, pause)
                    self.service.set_status(f"{error}; will retry")
        self.service.announce_stop()
        self._subscription.close()
        if self._connection is not None:
            self._connection.close()
        log.info("stopped")

    def _run_once(self) -> None:
        """Raises `IrcDisconnected`."""
        if self._connection is None:
            if time.monotonic() < self._retry_at:
                self.stop.now.wait(PASS_SECONDS)
                return
            self._connection = IrcConnection(self._settings, self._channels, self._password)
        for token in self._connection.process(PASS_SECONDS):
            if token in self._under_way:
                self._pending.mark_sent(self._under_way.pop(token))
        if self._connection.is_ready:
            self._backoff.reset()
            self.service.set_status(f"in {', '.join(self._channels)}")
            self._send_pending(self._connection)

    def _send_pending(self, connection: IrcConnection) -> None:
        waiting_for_channel: set[str] = set()
        while self._limiter.allows(time.monotonic()):
            message = self._pending.oldest({*self._under_way.values(), *waiting_for_channel})
            if message is None:
                return
            joined = connection.joined_channels(message.channels)
            if not joined and connection.may_still_join(message.channels):
                waiting_for_channel.add(message.id)
                continue
            if not joined:
                log.error("dropped, since none of its channels lets us in: %s", message.line)
            token = f"message-{next(self._tokens)}"
            self._under_way[token] = message.id
            self._limiter.spend(time.monotonic(), len(joined) + 1)  # the PING is a line too
            connection.send(token, joined, message.line)

    def _on_result(self, payload: bytes, acknowledge: Acknowledge) -> None:
        """Queue a payload; runs in paho's thread."""
        message = self._formatter.format(payload)
        if message is None or not message.channels:
            acknowledge()
        else:
            self._pending.add(message, acknowledge)


class Subscription:
    """Receives results and what concerns batches from the MQTT broker, from its start until it is closed.

    MQTT 5, QoS 1 and a session: the broker keeps what is published while we are away. It sends at most
    `MAX_UNACKNOWLEDGED` messages ahead of our acknowledgements. paho reconnects by itself, with growing pauses.
    """

    def __init__(self, mqtt: MqttSettings, irc: IrcSettings, on_result: Callable[[bytes, Acknowledge], None]) -> None:
        """`on_result` is called in paho's thread. Raises `ConfigError`."""
        self._topics = [f"{mqtt.topic}/{each}" for each in _TOPICS]
        self._address = f"the MQTT broker at {mqtt.host}:{mqtt.port}"
        self._on_result = on_result
        self._throttle = LogThrottle(seconds=60.0)
        self._client = paho.Client(CallbackAPIVersion.VERSION2, irc.client_id, protocol=paho.MQTTv5, manual_ack=True)
        self._client.tls_set_context(_tls_context(mqtt, irc))
        self._client.reconnect_delay_set(min_delay=1, max_delay=120)
        self._client.on_connect = self._on_connect
        # paho calls this while it handles the error, and does not hand it over
        self._client.on_connect_fail = lambda *_: self._warn(f"cannot be reached: {sys.exc_info()[1]}")
        self._client.on_disconnect = self._on_disconnect
        self._client.on_message = self._on_message
        properties = Properties(PacketTypes.CONNECT)  # type: ignore[no-untyped-call]
        properties.SessionExpiryInterval = 30 * 86400  # seconds
        properties.ReceiveMaximum = MAX_UNACKNOWLEDGED
        self._client.connect_async(mqtt.host, mqtt.port, keepalive=30, clean_start=False, properties=properties)

    def start(self) -> None:
        self._client.loop_start()

    def close(self) -> None:
        """Disconnect; the broker keeps the session."""
        self._client.disconnect()
        self._client.loop_stop()

    def _on_connect(self, _client: Any, _userdata: Any, _flags: Any, code: Any, _properties: Any) -> None:
        if code != 0:
            self._warn(f"refused us: {code}")
            return
        self._throttle.reset()
        log.info("%s: listening to %s", self._address, ", ".join(self._topics))
        self._client.subscribe([(topic, 1) for topic in self._topics])

    def _on_disconnect(self, _client: Any, _userdata: Any, _flags: Any, code: Any, _properties: Any) -> None:
        if code != 0:
            self._warn(f"disconnected ({code})")

    def _on_message(self, _client: Any, _userdata: Any, message: paho.MQTTMessage) -> None:
        number, qos = message.mid, message.qos
        self._on_result(bytes(message.payload), lambda: self._acknowledge(number, qos))

    def _acknowledge(self, number: int, qos: int) -> None:
        # after a disconnection the broker does not know the number any more, and delivers the message again
        if self._client.is_connected():
            self._client.ack(number, qos)

    def _warn(self, fault: str) -> None:
        if self._throttle.is_due():
            log.warning("%s %s; retrying", self._address, fault)


def _read_password(file: Optional[Path]) -> str:
    try:
        return "" if file is None else file.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"[irc] password_file: {file} cannot be read: {error}") from error


def _tls_context(mqtt: MqttSettings, irc: IrcSettings) -> Any:
    pair = (irc.mqtt_cert, irc.mqtt_key) if irc.mqtt_cert else (mqtt.tls_cert, mqtt.tls_key)
    try:
        return client_context("mqtt", ca_cert=mqtt.ca_cert, pair=pair, any_name=mqtt.tls_insecure)
    except OSError as error:
        raise ConfigError(str(error)) from error


# --- messages -------------------------------------------------------------------------------------------------------


@attr.frozen(kw_only=True)
class IrcMessage:
    """A line and its channels; a result that is delivered twice has the same id both times."""

    id: str
    line: str
    channels: tuple[str, ...]


@attr.frozen(kw_only=True)
class Formatter:
    settings: IrcSettings
    rows: IrcChannelsSettings

    def format(self, payload: bytes) -> Optional[IrcMessage]:
        """The message of a payload; None if it is neither about a batch nor a result of a build outside batches."""
        try:
            raw = json.loads(payload.decode("utf-8"))
        except (ValueError, RecursionError):
            return None
        if not isinstance(raw, dict):
            return None
        if raw.get("batch"):
            return self._format_batch(raw)
        if not all(isinstance(raw.get(key), str) for key in ("status", "srpm", "arch")):
            return None
        result = {key: _clean(raw.get(key)) for key in _KEYS}
        result["change"] = "newly failing" if raw.get("newly_failing") is True else "fixed" * (raw.get("fixed") is True)
        message_id = raw.get("id")
        return IrcMessage(
            id=message_id if isinstance(message_id, str) else "/".join(result.values()),
            line=self._line(result),
            channels=self._channels(result["target"], result["arch"]),
        )

    def _format_batch(self, raw: dict[str, Any]) -> Optional[IrcMessage]:
        """The message of an event of a batch; None for a result of one of its builds."""
        text, target, message_id = _clean(raw.get("text")), _clean(raw.get("target")), raw.get("id")
        if not text or not isinstance(message_id, str):
            return None
        arches = raw.get("arches")
        known = [each for each in arches if isinstance(each, str)] if isinstance(arches, list) else []
        channels = [name for arch in known or [""] for name in self._channels(f"{target}.{arch}", arch)]
        return IrcMessage(id=message_id, line=_truncate(text, MAX_BYTES), channels=tuple(dict.fromkeys(channels)))

    def _line(self, result: dict[str, str]) -> str:
        status = result["status"]
        if self.settings.colours:
            status = f"{_GREEN if status == 'Success' else _RED}{status}{_PLAIN}"
        reason = f", {result['reason']}" if result["reason"] else ""
        change = f", {result['change']}" if result["change"] else ""
        submitter = f" ({result['submitter']})" if result["submitter"] else ""
        where = result["page"] or describe_folder(result["url"], result["place"])
        url = f" {where}" if where else ""
        text = f"{status}{change}: {result['srpm']} on {result['arch']} for {result['target']}{submitter}{reason}"
        # half a URL leads nowhere: a line that is too long is cut before it
        return _truncate(_truncate(text, MAX_BYTES - len(url.encode("utf-8"))) + url, MAX_BYTES)

    def _channels(self, target: str, arch: str) -> tuple[str, ...]:
        """The channels of the rows that name the target or the arch; without such a row the default channels."""
        target, arch = target.lower(), arch.lower()
        without_arch = target[: -len(arch) - 1] if target.endswith(f".{arch}") else target
        named = [channel for name in (target, without_arch, arch) for channel in self.rows.by_name.get(name, ())]
        return tuple(dict.fromkeys(named)) or self.settings.channels


def _clean(value: Any) -> str:
    return validators.line(250)(value) if isinstance(value, str) else ""


def _truncate(line: str, max_bytes: int) -> str:
    encoded = line.encode("utf-8")
    return line if len(encoded) <= max_bytes else encoded[: max(0, max_bytes - 3)].decode("utf-8", "ignore") + "…"


class PendingMessages:
    """The queue between the thread that receives results and the one that sends them.

    It holds at most `MAX_UNACKNOWLEDGED` messages; the others wait at the MQTT broker, on its disk.
    """

    def __init__(self) -> None:
        self._waiting: dict[str, tuple[IrcMessage, Acknowledge]] = {}
        self._sent_ids: deque[str] = deque(maxlen=REMEMBERED_IDS)
        self._lock = threading.Lock()

    def add(self, message: IrcMessage, acknowledge: Acknowledge) -> None:
        """Queue a message; one that was sent before is acknowledged at once."""
        with self._lock:
            if message.id not in self._sent_ids:
                # a repeated delivery replaces the former's acknowledgement, which ended with its connection
                self._waiting[message.id] = (message, acknowledge)
                return
        acknowledge()

    def oldest(self, excluded_ids: set[str]) -> Optional[IrcMessage]:
        with self._lock:
            return next((message for key, (message, _) in self._waiting.items() if key not in excluded_ids), None)

    def mark_sent(self, message_id: str) -> None:
        """The IRC server has read the message: acknowledge its delivery."""
        with self._lock:
            _, acknowledge = self._waiting.pop(message_id)
            self._sent_ids.append(message_id)
        acknowledge()


class RateLimiter:
    """Allows a few lines at once, then one in so many seconds: servers disconnect a client that is faster."""

    def __init__(self, seconds_per_line: float, now: float) -> None:
        self._seconds_per_line = seconds_per_line
        self._full_at = now  #: when the allowance will be complete again

    def allows(self, now: float) -> bool:
        return self._full_at - now <= (BURST_LINES - 1) * self._seconds_per_line

    def spend(self, now: float, lines: int = 1) -> None:
        self._full_at = max(self._full_at, now) + lines * self._seconds_per_line

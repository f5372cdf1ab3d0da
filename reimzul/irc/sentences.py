# SPDX-License-Identifier: Apache-2.0
"""Results as IRC messages: their text and channels, the queue in which they wait, and the rate at which they go out.

A payload is data from outside: nothing in it can end a line, begin a command, colour it or ring a bell.
"""

from __future__ import annotations

import json
import threading
from collections import OrderedDict
from typing import Any, Callable, Optional

import attr

from reimzul.core import validators
from reimzul.core.settings import IrcChannelsSettings, IrcSettings

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
_KEYS = ("status", "srpm", "arch", "target", "submitter", "reason", "url")

#: Acknowledges a delivery to the MQTT broker.
Acknowledge = Callable[[], None]


@attr.frozen(kw_only=True)
class IrcMessage:
    """A line and its channels; a result that is delivered twice has the same id both times."""

    id: str
    line: str
    channels: tuple[str, ...]


@attr.frozen(kw_only=True)
class Formatter:
    """Makes messages as the settings say."""

    settings: IrcSettings
    rows: IrcChannelsSettings

    def format(self, payload: bytes) -> Optional[IrcMessage]:
        """The message of a payload, None where the payload is not a result."""
        try:
            raw = json.loads(payload.decode("utf-8"))
        except (ValueError, RecursionError):
            return None
        if not isinstance(raw, dict) or not all(isinstance(raw.get(key), str) for key in ("status", "srpm", "arch")):
            return None
        result = {key: _clean(raw.get(key)) for key in _KEYS}
        message_id = raw.get("id")
        return IrcMessage(
            id=message_id if isinstance(message_id, str) else "/".join(result.values()),
            line=self._line(result),
            channels=self._channels(result["target"], result["arch"]),
        )

    def _line(self, result: dict[str, str]) -> str:
        status = result["status"]
        if self.settings.colours:
            status = f"{_GREEN if status == 'Success' else _RED}{status}{_PLAIN}"
        reason = f", {result['reason']}" if result["reason"] else ""
        submitter = f" ({result['submitter']})" if result["submitter"] else ""
        url = f" {result['url']}" if result["url"] else ""
        text = f"{status}: {result['srpm']} on {result['arch']} for {result['target']}{submitter}{reason}"
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
        self._waiting: OrderedDict[str, tuple[IrcMessage, Acknowledge]] = OrderedDict()
        self._sent: OrderedDict[str, None] = OrderedDict()
        self._lock = threading.Lock()

    def add(self, message: IrcMessage, acknowledge: Acknowledge) -> None:
        """Queue a message; one that was sent before is acknowledged at once."""
        with self._lock:
            is_sent = message.id in self._sent
            if not is_sent:
                # a repeated delivery replaces the former's acknowledgement, which ended with its connection
                self._waiting[message.id] = (message, acknowledge)
        if is_sent:
            acknowledge()

    def oldest(self, excluded_ids: set[str]) -> Optional[IrcMessage]:
        with self._lock:
            return next((message for key, (message, _) in self._waiting.items() if key not in excluded_ids), None)

    def mark_sent(self, message_id: str) -> None:
        """The IRC server has read the message: acknowledge its delivery."""
        with self._lock:
            _, acknowledge = self._waiting.pop(message_id, (None, None))
            self._sent[message_id] = None
            while len(self._sent) > REMEMBERED_IDS:
                self._sent.popitem(last=False)
        if acknowledge is not None:
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

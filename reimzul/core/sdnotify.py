# SPDX-License-Identifier: Apache-2.0
"""sd_notify(3): tells systemd that a daemon is ready, what it is doing, that its loop is alive, and that it stops.

Does nothing without $NOTIFY_SOCKET. Programs that a daemon runs do not get that variable (`core/process.py`), so they
cannot answer for it. With a watchdog, a daemon that systemd aborts prints the stacks of all its threads.
"""

from __future__ import annotations

import faulthandler
import logging
import os
import socket
import sys
import time
from collections.abc import Mapping

log = logging.getLogger(__name__)

#: Pings are sent at this share of the watchdog's interval: one may be lost, and one may be late.
PING_SHARE = 1 / 4
#: Seconds that systemd may take to receive the first and the last message. Others are not waited for: a busy systemd
#: must not delay the loop, and the message is sent again in the next round.
SEND_TIMEOUT_SECONDS = 5.0
#: Characters of a status; `systemctl status` shows one line.
MAX_STATUS_CHARACTERS = 300


class SdNotify:
    """Notifies systemd; used by the thread of the daemon's loop only."""

    def __init__(self, environment: Mapping[str, str] | None = None) -> None:
        variables = os.environ if environment is None else environment
        self._address = _socket_address(variables.get("NOTIFY_SOCKET", ""))
        self._every = _ping_interval(variables)
        self._due = 0.0 if self._every else float("inf")
        self._doing = self._said = ""
        self._remarks: dict[str, str] = {}
        if self._address and self._every:
            faulthandler.enable(sys.__stderr__ or 2)

    def announce_ready(self, doing: str) -> None:
        """The settings are checked and signals are handled."""
        self._doing = doing
        self._said = self._status_text()
        self._send(f"READY=1\nSTATUS={self._said}", SEND_TIMEOUT_SECONDS)
        self.ping()

    def ping(self) -> None:
        """The loop is alive: call this often, and only from the loop."""
        now = time.monotonic()
        if now >= self._due and self._send("WATCHDOG=1"):
            self._due = now + self._every
        if self._said != self._status_text():
            self._send_status()

    def set_status(self, words: str) -> None:
        self._doing = words
        self._send_status()

    def set_note(self, **remarks: str) -> None:
        """Add a note per subject to the status; an empty one removes it."""
        self._remarks.update(remarks)
        self._send_status()

    def announce_stop(self) -> None:
        self._send("STOPPING=1\nSTATUS=stopping", SEND_TIMEOUT_SECONDS)

    def _send_status(self) -> None:
        status = self._status_text()
        if status != self._said and self._send(f"STATUS={status}"):
            self._said = status

    def _status_text(self) -> str:
        words = "; ".join(words for words in (self._doing, *self._remarks.values()) if words)
        return " ".join(words.split())[:MAX_STATUS_CHARACTERS]

    def _send(self, words: str, patience: float = 0.0) -> bool:
        """Send a datagram; return whether systemd received it or does not want any."""
        if not self._address:
            return True
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as end:
                end.settimeout(patience)
                end.sendto(words.encode("utf-8", "replace"), self._address)
        except OSError as error:
            log.debug("systemd did not receive %r: %s", words, error)
            return False
        return True


def _socket_address(name: str) -> str:
    """A path or, with a leading `@`, an abstract name; anything else is ignored."""
    if name.startswith("@"):
        return f"\0{name[1:]}"
    return name if name.startswith("/") else ""


def _ping_interval(variables: Mapping[str, str]) -> float:
    """Seconds between pings; 0 without a watchdog."""
    try:
        allowed = int(variables["WATCHDOG_USEC"]) / 1_000_000
        ours = int(variables.get("WATCHDOG_PID", os.getpid())) == os.getpid()
    except (KeyError, ValueError):
        return 0.0
    return allowed * PING_SHARE if ours and allowed > 0 else 0.0

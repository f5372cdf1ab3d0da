# SPDX-License-Identifier: Apache-2.0
"""What systemd is told of a daemon: that it is set up, what it does, that its loop goes round, that it ends.

The only place that speaks sd_notify(3), in Python alone. Where systemd did not ask ($NOTIFY_SOCKET is not set) nothing
is said. What a daemon runs never gets that variable (`core/process.py` passes a few by name), so mock and rsync cannot
answer for it. With a watchdog set, the stacks of all threads go to the journal when systemd aborts a daemon that hangs.
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

#: Of the time that the watchdog allows, how much passes between two pings: one may be lost, and one may be late.
PING_SHARE = 1 / 4
#: Seconds that systemd may take to hear the first and the last word. Anything between is not waited for: a systemd that
#: is busy must not hold the loop up, and what it had no room for is said again the next time round.
SEND_TIMEOUT_SECONDS = 5.0
#: Characters of a status; `systemctl status` shows one line.
MAX_STATUS_CHARACTERS = 300


class SdNotify:
    """This process as a unit of systemd; all methods are for the thread of the loop."""

    def __init__(self, environment: Mapping[str, str] | None = None) -> None:
        told = os.environ if environment is None else environment
        self._address = _socket_address(told.get("NOTIFY_SOCKET", ""))
        self._every = _ping_interval(told)
        self._due = 0.0 if self._every else float("inf")
        self._doing = self._said = ""
        self._remarks: dict[str, str] = {}
        if self._address and self._every:
            faulthandler.enable(sys.__stderr__ or 2)

    def announce_ready(self, doing: str) -> None:
        """Set up: what can be wrong with this host's settings has been looked at, and signals are heeded."""
        self._doing = doing
        self._said = self._status_text()
        self._send(f"READY=1\nSTATUS={self._said}", SEND_TIMEOUT_SECONDS)
        self.ping()

    def ping(self) -> None:
        """The loop goes round: call it often, and from the loop alone, never from a thread beside it."""
        now = time.monotonic()
        if now >= self._due and self._send("WATCHDOG=1"):
            self._due = now + self._every
        if self._said != self._status_text():
            self._send_status()

    def set_status(self, words: str) -> None:
        """What it does now, for `systemctl status`."""
        self._doing = words
        self._send_status()

    def set_note(self, **remarks: str) -> None:
        """What is to be known beside that, a remark for each subject; an empty one takes it back."""
        self._remarks.update(remarks)
        self._send_status()

    def announce_stop(self) -> None:
        """The loop has ended; the process does so now."""
        self._send("STOPPING=1\nSTATUS=stopping", SEND_TIMEOUT_SECONDS)

    def _send_status(self) -> None:
        status = self._status_text()
        if status != self._said and self._send(f"STATUS={status}"):
            self._said = status

    def _status_text(self) -> str:
        words = "; ".join(words for words in (self._doing, *self._remarks.values()) if words)
        return " ".join(words.split())[:MAX_STATUS_CHARACTERS]

    def _send(self, words: str, patience: float = 0.0) -> bool:
        """Send one datagram; whether systemd has it, or did not ask for it."""
        if not self._address:
            return True
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as end:
                end.settimeout(patience)
                end.sendto(words.encode("utf-8", "replace"), self._address)
        except OSError as error:
            log.debug("systemd was not told %r: %s", words, error)
            return False
        return True


def _socket_address(told: str) -> str:
    """A path, or an abstract name, which `@` stands before; anything else is none of ours."""
    if told.startswith("@"):
        return f"\0{told[1:]}"
    return told if told.startswith("/") else ""


def _ping_interval(told: Mapping[str, str]) -> float:
    """Seconds between two pings; 0 where no watchdog waits for ours."""
    try:
        allowed = int(told["WATCHDOG_USEC"]) / 1_000_000
        ours = int(told.get("WATCHDOG_PID", os.getpid())) == os.getpid()
    except (KeyError, ValueError):
        return 0.0
    return allowed * PING_SHARE if ours and allowed > 0 else 0.0

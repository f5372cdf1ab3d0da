# SPDX-License-Identifier: Apache-2.0
"""systemd's end of sd_notify: a real datagram socket that keeps the messages it gets, in order."""

from __future__ import annotations

import contextlib
import socket
from pathlib import Path

from tests.waiting import until


class Manager:
    """The messages of a service, one variable per line."""

    def __init__(self, address: str) -> None:
        self.address = address
        self.said: list[str] = []
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(f"\0{address[1:]}" if address.startswith("@") else address)
        self._socket.setblocking(False)

    @classmethod
    def make_in(cls, folder: Path) -> Manager:
        """Make one with its socket in this folder."""
        return cls(str(folder / "notify"))

    def environment(self, watchdog: float = 0.4) -> dict[str, str]:
        """The environment of the service; `watchdog` in seconds."""
        return {"NOTIFY_SOCKET": self.address, "WATCHDOG_USEC": str(int(watchdog * 1_000_000))}

    def listen(self) -> list[str]:
        """All messages so far."""
        with contextlib.suppress(BlockingIOError):
            while True:
                self.said += self._socket.recv(65536).decode().splitlines()
        return self.said

    @property
    def status(self) -> str:
        """The last status."""
        told = [line for line in self.listen() if line.startswith("STATUS=")]
        return told[-1][len("STATUS=") :] if told else ""

    @property
    def pings(self) -> int:
        """The number of the watchdog's pings."""
        return self.listen().count("WATCHDOG=1")

    def wait_for(self, words: str) -> None:
        """Wait until the status has these words."""
        until(lambda: words in self.status, 30, f"a status with {words!r}")

    def wait_for_pings(self, number: int = 3) -> None:
        """Wait until so many more have come."""
        enough = self.pings + number
        until(lambda: self.pings >= enough, 30, f"{number} more pings; the status is {self.status!r}")

    def close(self) -> None:
        """No more."""
        self._socket.close()

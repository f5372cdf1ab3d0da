# SPDX-License-Identifier: Apache-2.0
"""A real ngircd, with TLS, and somebody who listens in its channels."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import threading
from pathlib import Path

from tests.conftest import free_port
from tests.mosquitto import Authority
from tests.waiting import until


class Ngircd:
    """An IRC server on two free ports, one for TLS, known as localhost."""

    def __init__(self, folder: Path, authority: Authority) -> None:
        self.port, self.tls_port = free_port(), free_port()
        self.process: subprocess.Popen[bytes] | None = None
        certificate, key = authority.issue("localhost")
        self._log = folder / "ngircd.log"
        self._config = folder / "ngircd.conf"
        self._config.write_text(
            f"[Global]\nName = irc.example.org\nInfo = tests\nListen = 127.0.0.1\nPorts = {self.port}\n"
            f"ServerUID = {os.getuid()}\nServerGID = {os.getgid()}\n"
            "[Limits]\nMaxConnectionsIP = 0\nMaxNickLength = 20\nPingTimeout = 60\nPongTimeout = 30\n"
            "[Options]\nDNS = no\nIdent = no\nPAM = no\n"
            f"[SSL]\nCertFile = {certificate}\nKeyFile = {key}\nPorts = {self.tls_port}\n"
            "[Channel]\nName = #closed\nModes = i\n"
        )

    def start(self) -> None:
        """Start it, and wait until it listens."""
        with self._log.open("ab") as log:
            self.process = subprocess.Popen(["ngircd", "-n", "-f", str(self._config)], stdout=log, stderr=log)
        until(self.listens, 10, "ngircd listens")

    def listens(self) -> bool:
        """Whether somebody is at its ports."""
        for port in (self.port, self.tls_port):
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) != 0:
                    return False
        return True

    def signal(self, number: int) -> None:
        """SIGSTOP makes it hang, SIGCONT go on."""
        assert self.process
        self.process.send_signal(number)

    def stop(self) -> None:
        """End it."""
        assert self.process
        self.process.send_signal(signal.SIGCONT)
        self.process.terminate()
        self.process.wait()


class Person:
    """Somebody in channels, who keeps every line that the server sends."""

    def __init__(self, port: int, nick: str, *channels: str) -> None:
        self.nick = nick
        self.lines: list[str] = []
        self._socket = socket.create_connection(("127.0.0.1", port), 10)
        self._socket.settimeout(None)
        self._thread = threading.Thread(target=self._listen, daemon=True)
        self._thread.start()
        self.tell(f"NICK {nick}", f"USER {nick} 0 * :{nick}")
        until(lambda: self.has(" 001 "), 10, f"{nick} is let in")
        for channel in channels:
            self.tell(f"JOIN {channel}")
            until(lambda name=channel: self.has(f" 366 {nick} {name} "), 10, f"{nick} is in it")  # type: ignore[misc]

    def tell(self, *lines: str) -> None:
        """Send lines to the server."""
        self._socket.sendall("".join(f"{line}\r\n" for line in lines).encode())

    def has(self, words: str) -> bool:
        """Whether the server has sent these."""
        return any(words in line for line in list(self.lines))

    def heard(self, channel: str) -> list[str]:
        """The messages of others in a channel, or to the person."""
        marked = [line.partition(f" PRIVMSG {channel} :") for line in list(self.lines)]
        return [words for _, mark, words in marked if mark]

    def close(self) -> None:
        """Leave."""
        with contextlib.suppress(OSError):  # the server may have ended
            self._socket.shutdown(socket.SHUT_RDWR)
        self._thread.join(5)
        self._socket.close()

    def _listen(self) -> None:
        rest = b""
        while block := self._socket.recv(65536):
            *lines, rest = (rest + block).split(b"\r\n")
            for line in lines:
                if line.startswith(b"PING"):
                    self.tell(line.decode().replace("PING", "PONG", 1))
                self.lines.append(line.decode("utf-8", "replace"))

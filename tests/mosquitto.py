# SPDX-License-Identifier: Apache-2.0
"""A real mosquitto with TLS that asks for client certificates, the keys made for the run, and somebody who listens."""

from __future__ import annotations

import json
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Optional

from tests.conftest import free_port
from tests.waiting import until


class Authority:
    """A certificate authority of the test's own."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True)
        self.folder = folder
        self._issued = 0
        self.certificate = folder / "ca.pem"
        self._key = folder / "ca.key"
        _openssl(
            "req", "-x509", *_NEW_KEY, "-keyout", self._key, "-out", self.certificate, "-days", 2,
            "-subj", "/CN=an authority of tests",
        )  # fmt: skip

    def issue(self, name: str, days: Optional[int] = None) -> tuple[Path, Path]:
        """A certificate of that name, and its key; of negative `days` it has expired.

        The files are new ones: mosquitto listens before it reads its own, and ends if the two do not belong together.
        """
        self._issued += 1
        files = (self.folder / f"{name}-{self._issued}.{ending}" for ending in ("pem", "key", "csr", "ext"))
        certificate, key, request, extensions = files
        extensions.write_text(f"subjectAltName = DNS:{name}\n")
        _openssl("req", "-new", *_NEW_KEY, "-keyout", key, "-out", request, "-subj", f"/CN={name}")
        _openssl(
            "x509", "-req", "-in", request, "-CA", self.certificate, "-CAkey", self._key, "-CAcreateserial",
            "-days", 2 if days is None else days, "-extfile", extensions, "-out", certificate,
        )  # fmt: skip
        return certificate, key


_NEW_KEY = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")


def _openssl(*arguments: object) -> None:
    subprocess.run(["openssl", *map(str, arguments)], check=True, capture_output=True, stdin=subprocess.DEVNULL)


class Mosquitto:
    """A broker on a free port, known as localhost, that keeps undelivered messages over a restart."""

    def __init__(self, folder: Path, authority: Authority, name: str = "localhost", days: Optional[int] = None) -> None:
        self.folder = folder
        self.authority = authority
        self.port = free_port()
        self.process: subprocess.Popen[bytes] | None = None
        certificate, key = authority.issue(name, days)
        self._config = folder / "mosquitto.conf"
        self._config.write_text(
            f"user root\nlistener {self.port} 127.0.0.1\nallow_anonymous true\nrequire_certificate true\n"
            f"cafile {authority.certificate}\ncertfile {certificate}\nkeyfile {key}\n"
            f"persistence true\npersistence_location {folder}/\nmax_queued_messages 0\nlog_dest none\n"
        )

    def start(self) -> None:
        """Start it, and wait until it listens."""
        self.process = subprocess.Popen(["mosquitto", "-c", str(self._config)])
        until(self.listens, 10, "mosquitto listens")

    def listens(self) -> bool:
        """Whether somebody is at its port."""
        import socket

        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", self.port)) == 0

    def signal(self, number: int) -> None:
        """SIGSTOP makes it hang, SIGCONT go on."""
        assert self.process
        self.process.send_signal(number)

    def stop(self) -> None:
        """End it in good order: it writes down what it has."""
        assert self.process
        self.process.send_signal(signal.SIGCONT)
        self.process.terminate()
        self.process.wait()


class Watcher:
    """mosquitto_sub, which receives all that is published below a topic; its session outlives the broker."""

    def __init__(self, broker: Mosquitto, folder: Path, topic: str = "reimzul/#") -> None:
        certificate, key = broker.authority.issue("watcher")
        self._heard = folder / "heard"
        self._command = [
            "stdbuf", "-oL", "mosquitto_sub", "-h", "localhost", "-p", str(broker.port), "-t", topic, "-q", "1",
            "-c", "-i", "watcher", "-F", "%t %p", "--cafile", str(broker.authority.certificate),
            "--cert", str(certificate), "--key", str(key), "-d",
        ]  # fmt: skip
        self._start()
        try:
            until(lambda: b"Subscribed" in self._heard.read_bytes(), 10, "mosquitto_sub has subscribed")
        except BaseException:
            self.close()
            raise

    def heard(self, topic: str) -> list[dict[str, Any]]:
        """The payloads of a topic, in their order."""
        return [payload for name, payload in self._messages() if name == topic]

    def _start(self) -> None:
        with self._heard.open("ab") as output:
            self.process = subprocess.Popen(self._command, stdout=output)

    def _messages(self) -> Iterator[tuple[str, dict[str, Any]]]:
        if self.process.poll() is not None:  # "Protocol error", where a broker that ends breaks off in mid-packet
            self._start()
        for line in self._heard.read_bytes().split(b"\n")[:-1]:
            if line.startswith(b"reimzul/"):
                topic, payload = line.decode().split(" ", 1)
                yield topic, json.loads(payload)

    def close(self) -> None:
        """Listen no more."""
        self.process.terminate()
        self.process.wait()

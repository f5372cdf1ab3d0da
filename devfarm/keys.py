# SPDX-License-Identifier: Apache-2.0
"""Keys for one run of a farm: a PSK for each host's stunnel, a CA with certificates for MQTT, a key for events.

They are made at every start and lie in a folder that only its owner can enter. A real farm has keys of its own.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Iterable
from pathlib import Path

from reimzul.core.event_signature import add_new_key
from reimzul.core.process import output_of

_NEW_KEY = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")


class Keys:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.authority = folder / "ca.crt"  #: the certificate of the CA
        self.all_psks = folder / "psk-all.txt"  #: of all hosts, for the side that accepts
        self.events = folder / "event-keys"  #: repogen signs events by them, and the notifier verifies these

    def psk(self, host: str) -> Path:
        """The PSK of one host, for the side that connects."""
        return self.folder / f"psk-{host}.txt"

    def certificate(self, name: str) -> Path:
        """A certificate whose common name is `name`."""
        return self.folder / f"{name}.crt"

    def key(self, name: str) -> Path:
        return self.folder / f"{name}.key"

    def make(self, hosts: Iterable[str], server: str, clients: Iterable[str]) -> None:
        """Make PSKs of `hosts`, certificates of the MQTT server and its clients."""
        self.folder.mkdir(mode=0o700, exist_ok=True)
        psks = {host: f"{host}:{secrets.token_hex(32)}\n" for host in hosts}
        if not self.events.exists():  # events of an earlier start may still wait to be verified
            self.events.touch(mode=0o600)
            self.events.write_text("".join(f"{key.to_line()}\n" for key in add_new_key([], time.time(), days=0)))
        for path, text in [(self.all_psks, "".join(psks.values())), *((self.psk(host), psks[host]) for host in psks)]:
            path.touch(mode=0o600)
            path.write_text(text)
        subject = ("-subj", "/CN=reimzul devfarm")
        self._openssl("req", "-x509", *_NEW_KEY, "-days", "30", *subject, "-keyout", "ca.key", "-out", "ca.crt")
        self._make_certificate(server, "serverAuth\nsubjectAltName=DNS:localhost,IP:127.0.0.1,IP:::1")
        for client in clients:
            self._make_certificate(client, "clientAuth")

    def _make_certificate(self, name: str, usage: str) -> None:
        (self.folder / f"{name}.ext").write_text(f"extendedKeyUsage={usage}\n")
        self._openssl("req", "-new", *_NEW_KEY, "-subj", f"/CN={name}", "-keyout", f"{name}.key", "-out", f"{name}.csr")
        signed = ("-in", f"{name}.csr", "-extfile", f"{name}.ext", "-out", f"{name}.crt", "-days", "30")
        self._openssl("x509", "-req", *signed, "-CA", "ca.crt", "-CAkey", "ca.key", "-CAcreateserial")

    def _openssl(self, *arguments: str) -> None:
        # it runs in the folder with bare file names, since characters in a path may mean something to openssl
        output_of(["openssl", *arguments], cwd=self.folder)

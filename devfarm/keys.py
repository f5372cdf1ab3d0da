# SPDX-License-Identifier: Apache-2.0
"""Keys for one run of a farm: a PSK for each host's stunnel, a CA with certificates for MQTT, a key for events.

They are made at every start, as `reimzul setup` makes them, and lie in a folder that only its owner can enter.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from pathlib import Path

from reimzul.admin.setup.mqtt import issue_certificate, make_authority
from reimzul.admin.setup.psk import format_keys, new_secret
from reimzul.core.event_signature import add_new_key


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
        psks = {host: new_secret() for host in hosts}
        texts = {self.psk(host): format_keys({host: secret}) for host, secret in psks.items()}
        authority = make_authority()
        issued = {client: issue_certificate(authority, client, "clientAuth") for client in clients}
        issued[server] = issue_certificate(authority, server, "serverAuth", ["localhost", "127.0.0.1"])
        texts.update({self.all_psks: format_keys(psks), self.authority: authority.text})
        for name, certificate in issued.items():
            texts.update({self.certificate(name): certificate.text, self.key(name): certificate.key})
        if not self.events.exists():  # events of an earlier start may still wait to be verified
            texts[self.events] = "".join(f"{key.to_line()}\n" for key in add_new_key([], time.time(), days=0))
        for path, text in texts.items():
            path.touch(mode=0o600)
            path.write_text(text)

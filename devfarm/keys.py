# SPDX-License-Identifier: Apache-2.0
"""Keys for one run of a farm: a PSK for each host's stunnel, a CA with certificates for MQTT, a key for events.

They are made at every start and lie in a folder that only its owner can enter. A real farm has keys of its own.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Iterable
from pathlib import Path

import attr

from reimzul.core.event_signature import add_new_key
from reimzul.core.process import output_of

_DAYS = "30"
_NEW_KEY = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")


@attr.frozen
class Keys:
    """The files of a run's keys."""

    folder: Path

    @property
    def authority(self) -> Path:
        """The certificate of the CA."""
        return self.folder / "ca.crt"

    @property
    def all_psks(self) -> Path:
        """The PSKs of all hosts, for the side that accepts."""
        return self.folder / "psk-all.txt"

    @property
    def events(self) -> Path:
        """The key by which repogen signs events and the notifier verifies them."""
        return self.folder / "event-keys"

    def psk(self, host: str) -> Path:
        """The PSK of one host, for the side that connects."""
        return self.folder / f"psk-{host}.txt"

    def certificate(self, name: str) -> Path:
        """A certificate whose common name is `name`."""
        return self.folder / f"{name}.crt"

    def key(self, name: str) -> Path:
        return self.folder / f"{name}.key"


def make_keys(folder: Path, hosts: Iterable[str], server: str, clients: Iterable[str]) -> Keys:
    """Make all keys of a run: PSKs of `hosts`, certificates of the MQTT server and its clients."""
    folder.mkdir(mode=0o700, exist_ok=True)
    keys = Keys(folder)
    psks = {host: f"{host}:{secrets.token_hex(32)}\n" for host in hosts}
    if not keys.events.exists():  # events of an earlier start may still wait to be verified
        keys.events.touch(mode=0o600)
        keys.events.write_text("".join(f"{key.to_line()}\n" for key in add_new_key([], time.time(), days=0)))
    for path, text in [(keys.all_psks, "".join(psks.values())), *((keys.psk(host), psks[host]) for host in psks)]:
        path.touch(mode=0o600)
        path.write_text(text)
    _openssl(
        folder, "req", "-x509", *_NEW_KEY, "-days", _DAYS, "-subj", "/CN=reimzul devfarm",
        "-keyout", "ca.key", "-out", "ca.crt",
    )  # fmt: skip
    _make_certificate(folder, server, "serverAuth", "subjectAltName=DNS:localhost,IP:127.0.0.1,IP:::1\n")
    for client in clients:
        _make_certificate(folder, client, "clientAuth")
    return keys


def _make_certificate(folder: Path, name: str, usage: str, more: str = "") -> None:
    _openssl(folder, "req", "-new", *_NEW_KEY, "-subj", f"/CN={name}", "-keyout", f"{name}.key", "-out", f"{name}.csr")
    (folder / f"{name}.ext").write_text(f"extendedKeyUsage={usage}\n{more}")
    _openssl(
        folder, "x509", "-req", "-in", f"{name}.csr", "-extfile", f"{name}.ext", "-days", _DAYS,
        "-CA", "ca.crt", "-CAkey", "ca.key", "-CAcreateserial", "-out", f"{name}.crt",
    )  # fmt: skip


def _openssl(folder: Path, *arguments: str) -> None:
    # it runs in the folder with bare file names, since characters in a path may mean something to openssl
    output_of(["openssl", *arguments], cwd=folder)

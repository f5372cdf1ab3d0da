# SPDX-License-Identifier: Apache-2.0
"""Keys for one run of a farm: a PSK a host for stunnel, an authority with certificates for MQTT.

They are made new at every start and lie in a folder that only its owner can enter. A real farm has keys of its own.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterable
from pathlib import Path

import attr

from reimzul.core.process import output_of

_DAYS = "30"
_KEY = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")


@attr.frozen
class Keys:
    """Where the keys of a run lie."""

    folder: Path

    @property
    def authority(self) -> Path:
        """The certificate of the authority that signed all others."""
        return self.folder / "ca.crt"

    @property
    def all_psks(self) -> Path:
        """The PSK of every host, for the side that accepts."""
        return self.folder / "psk-all.txt"

    def psk(self, host: str) -> Path:
        """The PSK of one host, for the side that connects."""
        return self.folder / f"psk-{host}.txt"

    def certificate(self, name: str) -> Path:
        """A certificate; its common name is its owner's name."""
        return self.folder / f"{name}.crt"

    def key(self, name: str) -> Path:
        """The key that belongs to it."""
        return self.folder / f"{name}.key"


def make_keys(folder: Path, hosts: Iterable[str], server: str, clients: Iterable[str]) -> Keys:
    """Make all keys of a run: PSKs of `hosts`, certificates of the MQTT server and its clients."""
    folder.mkdir(mode=0o700, exist_ok=True)
    keys = Keys(folder)
    _make_psks(keys, hosts)
    _make_authority(keys)
    _make_certificate(keys, server, "serverAuth", "subjectAltName=DNS:localhost,IP:127.0.0.1,IP:::1\n")
    for client in clients:
        _make_certificate(keys, client, "clientAuth")
    return keys


def _make_psks(keys: Keys, hosts: Iterable[str]) -> None:
    lines = {host: f"{host}:{secrets.token_hex(32)}\n" for host in hosts}
    for host, line in lines.items():
        _private(keys.psk(host), line)
    _private(keys.all_psks, "".join(lines.values()))


def _private(path: Path, text: str) -> None:
    path.touch(mode=0o600)
    path.write_text(text)


def _openssl(folder: Path, *words: str) -> None:
    # in the folder, by names alone: whatever the folder is called means nothing to openssl
    output_of(["openssl", *words], cwd=folder)


def _make_authority(keys: Keys) -> None:
    _openssl(
        keys.folder, "req", "-x509", *_KEY, "-days", _DAYS, "-subj", "/CN=reimzul devfarm",
        "-keyout", "ca.key", "-out", "ca.crt",
    )  # fmt: skip


def _make_certificate(keys: Keys, name: str, usage: str, more: str = "") -> None:
    _openssl(keys.folder, "req", "-new", *_KEY, "-subj", f"/CN={name}", "-keyout", f"{name}.key", "-out", f"{name}.csr")
    (keys.folder / f"{name}.ext").write_text(f"extendedKeyUsage={usage}\n{more}")
    _openssl(
        keys.folder, "x509", "-req", "-in", f"{name}.csr", "-extfile", f"{name}.ext", "-days", _DAYS,
        "-CA", "ca.crt", "-CAkey", "ca.key", "-CAcreateserial", "-out", f"{name}.crt",
    )  # fmt: skip

# SPDX-License-Identifier: Apache-2.0
"""mosquitto on the controller: its configuration, `[mqtt]` in reimzul.ini, and certificates.

The certificates are made by openssl, with a small authority of the farm's own. One that is still valid is kept.
"""

from __future__ import annotations

import contextlib
import re
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import attr

from reimzul.admin.setup import ini
from reimzul.admin.setup.files import FileSpec
from reimzul.admin.setup.host import System
from reimzul.admin.setup.roles import SETTINGS, Plan
from reimzul.admin.setup.templates import find_mosquitto_address, read_template, set_mosquitto_address
from reimzul.core.cli import local_hostname
from reimzul.core.config import LOCAL
from reimzul.core.errors import ProgramFailed
from reimzul.core.process import output_of
from reimzul.core.settings import MqttSettings

UNIT = "mosquitto"
CONFIGURATION = "/etc/mosquitto/conf.d/reimzul.conf"
ACCESS = "/etc/mosquitto/reimzul.acl"
#: Ours: the authority and the clients' certificates.
FOLDER = "/etc/reimzul/mqtt"
#: The broker's: certificate and key beside it.
BROKER = "/etc/mosquitto/certs/reimzul"
#: Who may publish, and who may read: conf/mosquitto-reimzul.acl.
CLIENTS = ("notifier", "listener")

#: Days that certificates last: the authority's own, and those it signs.
AUTHORITY_DAYS, CERTIFICATE_DAYS = 7300, 1826
#: A certificate with fewer days left is replaced.
MIN_DAYS_LEFT = 30

_MAIN = "/etc/mosquitto/mosquitto.conf"
_INCLUDES = "include_dir /etc/mosquitto/conf.d"
_NEW_KEY = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")


@attr.frozen
class Certificate:
    """A certificate and its key, as texts."""

    text: str
    key: str = attr.field(repr=False)


def role_options(
    system: System, ordered: bool, listen: str | None, host: str | None, settings: ini.Settings
) -> dict[str, Any]:
    """What mosquitto adds to a controller's `RoleOptions`, if it is ordered now, or was set up before.

    `listen` is an address other than loopback, `host` the name of this host that subscribers use. The `settings` a
    person gives now override those that mosquitto needs.
    """
    present = system.text(CONFIGURATION)
    if not ordered and listen is None and present is None:
        return {"settings": settings}
    address = listen or find_mosquitto_address(present or "") or "127.0.0.1"
    topic = settings.get(("mqtt", "topic")) or ini.get_value(system.text(SETTINGS) or "", "mqtt", "topic")
    topic = topic or MqttSettings().topic
    files = (*_configuration(system, address, topic), *_certificate_files(system, host or ""))
    ports = () if address in LOCAL else (8883,)
    return {
        "services": Plan(files=files, units=(UNIT,), ports=ports),
        "settings": {**(_settings(system) if ordered or listen else {}), **settings},
    }


def _configuration(system: System, address: str, topic: str) -> Iterator[FileSpec]:
    text = set_mosquitto_address(read_template("mosquitto-reimzul.conf"), address)
    yield FileSpec(path=CONFIGURATION, text=text, restarts=(UNIT,))
    # mosquitto accepts messages under a topic that the list does not name, and drops them silently
    access = read_template("mosquitto-reimzul.acl").replace(" reimzul/#", f" {topic}/#")
    # mosquitto is going to refuse a list that others can read or change
    yield FileSpec(path=ACCESS, text=access, mode=0o600, owner="mosquitto", restarts=(UNIT,))
    main = system.text(_MAIN) or ""
    if _INCLUDES not in main.splitlines():  # Debian's has it, EPEL's has not
        text = f"{main.rstrip()}\n\n{_INCLUDES}\n".lstrip()
        yield FileSpec(path=_MAIN, text=text, patched=True, backup=f"{_MAIN}.before-reimzul", restarts=(UNIT,))


def _certificate_files(system: System, host: str) -> Iterator[FileSpec]:
    present = _read_certificate(system, f"{FOLDER}/ca")
    authority = present if present and is_valid(present) else new_authority("Reimzul MQTT")
    yield from _pair_of_files(f"{FOLDER}/ca", authority, "root")
    broker = _read_certificate(system, BROKER)
    if not (broker and is_valid(broker, authority, host)):
        # a subscriber goes on using the name it was given once
        known = ("localhost", "127.0.0.1", host, local_hostname(), *certified_hosts(broker))
        names = tuple(dict.fromkeys(filter(None, known)))
        broker = issue_certificate(authority, "mosquitto", "serverAuth", names)
    yield from _pair_of_files(BROKER, broker, "mosquitto", (UNIT,))
    yield FileSpec(path=f"{BROKER}-ca.crt", text=authority.text, secret=True, restarts=(UNIT,))
    for name in CLIENTS:
        client = _read_certificate(system, f"{FOLDER}/{name}")
        if not (client and is_valid(client, authority)):
            client = issue_certificate(authority, name, "clientAuth")
        yield from _pair_of_files(f"{FOLDER}/{name}", client, "reimzul")


def _read_certificate(system: System, path: str) -> Certificate | None:
    text, key = (system.text(f"{path}.{ending}") for ending in ("crt", "key"))
    return Certificate(text, key) if text and key else None


def _pair_of_files(path: str, pair: Certificate, owner: str, units: tuple[str, ...] = ()) -> Iterator[FileSpec]:
    yield FileSpec(path=f"{path}.key", text=pair.key, mode=0o600, owner=owner, secret=True, restarts=units)
    yield FileSpec(path=f"{path}.crt", text=pair.text, secret=True, restarts=units)


def _settings(system: System) -> ini.Settings:
    settings = {
        ("mqtt", "notifications"): "true",
        ("mqtt", "host"): "localhost",
        ("mqtt", "port"): "8883",
        ("mqtt", "ca_cert"): f"{FOLDER}/ca.crt",
        ("mqtt", "tls_cert"): f"{FOLDER}/notifier.crt",
        ("mqtt", "tls_key"): f"{FOLDER}/notifier.key",
    }
    if not ini.get_value(system.text(SETTINGS) or "", "irc", "mqtt_cert"):
        settings[("irc", "mqtt_cert")] = f"{FOLDER}/listener.crt"
        settings[("irc", "mqtt_key")] = f"{FOLDER}/listener.key"
    return settings


# --- the certificate authority


def is_valid(pair: Certificate, authority: Certificate | None = None, host: str = "") -> bool:
    """Whether a certificate lasts for a while, is signed by the authority (or by itself), and names the host."""
    with _folder(certificate=pair.text, authority=(authority or pair).text) as folder:
        try:
            _openssl(folder, "x509", "-in", "certificate", "-noout", "-checkend", str(MIN_DAYS_LEFT * 86400))
            _openssl(folder, "verify", "-CAfile", "authority", "certificate")
            option = "-checkip" if _is_address(host) else "-checkhost"
            printed = _openssl(folder, "x509", "-in", "certificate", "-noout", *((option, host) if host else ()))
        except ProgramFailed:
            return False
    return not host or "does match" in printed


def new_authority(name: str) -> Certificate:
    with _folder() as folder:
        _openssl(
            folder, "req", "-x509", *_NEW_KEY, "-days", str(AUTHORITY_DAYS), "-subj", f"/CN={name}",
            "-addext", "keyUsage=critical,keyCertSign,cRLSign", "-keyout", "key", "-out", "certificate",
        )  # fmt: skip
        return _result(folder)


def issue_certificate(authority: Certificate, name: str, usage: str, hosts: Sequence[str] = ()) -> Certificate:
    """A certificate with this common name, for `serverAuth` at these hosts or for `clientAuth`."""
    names = ",".join(f"{'IP' if _is_address(host) else 'DNS'}:{host}" for host in hosts)
    alternatives = f"subjectAltName={names}\n" if hosts else ""
    extensions = f"basicConstraints=critical,CA:FALSE\nextendedKeyUsage={usage}\n{alternatives}"
    with _folder(authority=authority.text, authority_key=authority.key, extensions=extensions) as folder:
        _openssl(folder, "req", "-new", *_NEW_KEY, "-subj", f"/CN={name}", "-keyout", "key", "-out", "request")
        _openssl(
            folder, "x509", "-req", "-in", "request", "-extfile", "extensions", "-days", str(CERTIFICATE_DAYS),
            "-CA", "authority", "-CAkey", "authority_key", "-CAcreateserial", "-out", "certificate",
        )  # fmt: skip
        return _result(folder)


def certified_hosts(pair: Certificate | None) -> list[str]:
    if pair is None:
        return []
    with _folder(certificate=pair.text) as folder:
        try:
            printed = _openssl(folder, "x509", "-in", "certificate", "-noout", "-ext", "subjectAltName")
        except ProgramFailed:
            return []
    return re.findall(r"(?:DNS|IP Address):([^\s,]+)", printed)


def _is_address(host: str) -> bool:
    return bool(re.match(r"\d+\.\d+\.\d+\.\d+\Z", host))


def _result(folder: Path) -> Certificate:
    return Certificate((folder / "certificate").read_text(), (folder / "key").read_text())


@contextlib.contextmanager
def _folder(**files: str) -> Iterator[Path]:
    """A temporary folder with these files, closed to other users."""
    with tempfile.TemporaryDirectory(prefix="reimzul-") as folder:
        for name, text in files.items():
            (Path(folder) / name).write_text(text)
        yield Path(folder)


def _openssl(folder: Path, *arguments: str) -> str:
    # files are given by their names alone: no character of the folder's path means anything to openssl
    return output_of(["openssl", *arguments], cwd=folder)

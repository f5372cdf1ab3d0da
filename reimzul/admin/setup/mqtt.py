# SPDX-License-Identifier: Apache-2.0
"""mosquitto on the controller: its configuration, `[mqtt]` in reimzul.ini, and certificates.

The certificates are made by openssl, with a small authority of the farm's own. One that is still valid is kept.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import attr

from reimzul.admin.setup import ini
from reimzul.admin.setup.files import FileSpec, System
from reimzul.admin.setup.roles import RolePlan, current_setting, read_template
from reimzul.core.cli import local_hostname
from reimzul.core.config import LOCAL
from reimzul.core.errors import ProgramFailed
from reimzul.core.process import output_of

UNIT = "mosquitto"
PORT = 8883
CONFIGURATION = "/etc/mosquitto/conf.d/reimzul.conf"
#: Ours: the authority and the clients' certificates.
FOLDER = "/etc/reimzul/mqtt"
#: The broker's: certificate and key beside it.
BROKER = "/etc/mosquitto/certs/reimzul"

#: Days that certificates last: the authority's own, and those it signs.
AUTHORITY_DAYS, CERTIFICATE_DAYS = 7300, 1826
#: A certificate with fewer days left is replaced.
MIN_DAYS_LEFT = 30

_MAIN = "/etc/mosquitto/mosquitto.conf"
_INCLUDES = "include_dir /etc/mosquitto/conf.d"
_NEW_KEY = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")
_IPV4 = re.compile(r"\d+\.\d+\.\d+\.\d+\Z")


@attr.frozen
class Certificate:
    """A certificate and its key, as texts."""

    text: str
    key: str = attr.field(repr=False)


def plan_broker(
    system: System, ordered: bool, listen: str | None, host: str | None, settings: ini.Settings
) -> tuple[RolePlan, ini.Settings]:
    """What mosquitto needs on the controller, if it is ordered now, or was set up before; and the settings to make.

    `listen` is an address other than loopback, `host` the name of this host that subscribers use. The `settings` a
    person gives now override those that mosquitto needs.
    """
    present = system.text(CONFIGURATION)
    if not ordered and listen is None and present is None:
        return RolePlan(), settings
    found = re.search(r"^listener 8883 (\S+)$", present or "", re.MULTILINE)
    address = listen or (found[1] if found else "127.0.0.1")
    topic = settings.get(("mqtt", "topic")) or current_setting(system, "mqtt", "topic")
    files = (*_configuration(system, address, topic), *_certificate_files(system, host or ""))
    plan = RolePlan(files=files, units=(UNIT,), ports=() if address in LOCAL else (PORT,))
    return plan, {**(_settings(system) if ordered or listen else {}), **settings}


def _configuration(system: System, address: str, topic: str) -> Iterator[FileSpec]:
    text = read_template("mosquitto-reimzul.conf").replace("listener 8883 127.0.0.1", f"listener 8883 {address}")
    yield FileSpec(path=CONFIGURATION, text=text, restarts=(UNIT,))
    # mosquitto accepts messages under a topic that the list does not name, and drops them silently
    access = read_template("mosquitto-reimzul.acl").replace(" reimzul/#", f" {topic}/#")
    # mosquitto is going to refuse a list that others can read or change
    yield FileSpec(path="/etc/mosquitto/reimzul.acl", text=access, mode=0o600, owner=UNIT, restarts=(UNIT,))
    main = system.text(_MAIN) or ""
    if _INCLUDES not in main.splitlines():  # Debian's has it, EPEL's has not
        text = f"{main.rstrip()}\n\n{_INCLUDES}\n".lstrip()
        yield FileSpec(path=_MAIN, text=text, patched=True, backup=f"{_MAIN}.before-reimzul", restarts=(UNIT,))


def _certificate_files(system: System, host: str) -> Iterator[FileSpec]:
    authority = _read_valid(system, f"{FOLDER}/ca") or make_authority()
    yield from _pair_of_files(f"{FOLDER}/ca", authority, "root")
    broker, names = _read_valid(system, BROKER, authority), _certified_hosts(system.text(f"{BROKER}.crt") or "")
    if broker is None or host not in ("", *names):
        # a subscriber goes on using the name it was given once
        known = ("localhost", "127.0.0.1", host, local_hostname(), *names)
        broker = issue_certificate(authority, UNIT, "serverAuth", dict.fromkeys(filter(None, known)))
    yield from _pair_of_files(BROKER, broker, UNIT, (UNIT,))
    yield FileSpec(path=f"{BROKER}-ca.crt", text=authority.text, secret=True, restarts=(UNIT,))
    for name in ("notifier", "listener"):  # one may publish, the other read: conf/mosquitto-reimzul.acl
        client = _read_valid(system, f"{FOLDER}/{name}", authority)
        client = client or issue_certificate(authority, name, "clientAuth")
        yield from _pair_of_files(f"{FOLDER}/{name}", client, "reimzul")


def _pair_of_files(path: str, pair: Certificate, owner: str, units: tuple[str, ...] = ()) -> Iterator[FileSpec]:
    yield FileSpec(path=f"{path}.key", text=pair.key, mode=0o600, owner=owner, secret=True, restarts=units)
    yield FileSpec(path=f"{path}.crt", text=pair.text, secret=True, restarts=units)


def _settings(system: System) -> ini.Settings:
    listener = {("irc", "mqtt_cert"): f"{FOLDER}/listener.crt", ("irc", "mqtt_key"): f"{FOLDER}/listener.key"}
    return {
        ("mqtt", "notifications"): "true",
        ("mqtt", "host"): "localhost",
        ("mqtt", "port"): "8883",
        ("mqtt", "ca_cert"): f"{FOLDER}/ca.crt",
        ("mqtt", "tls_cert"): f"{FOLDER}/notifier.crt",
        ("mqtt", "tls_key"): f"{FOLDER}/notifier.key",
        **({} if current_setting(system, "irc", "mqtt_cert") else listener),
    }


# --- the certificate authority


def _read_valid(system: System, path: str, authority: Certificate | None = None) -> Certificate | None:
    """The certificate at a path, if it lasts for a while and is signed by the authority; without one, by itself."""
    text, key = (system.text(f"{path}.{ending}") or "" for ending in ("crt", "key"))
    try:
        _run_openssl(
            {"certificate": text, "authority": authority.text if authority else text},
            ("x509", "-in", "certificate", "-noout", "-checkend", str(MIN_DAYS_LEFT * 86400)),
            ("verify", "-CAfile", "authority", "certificate"),
        )
    except ProgramFailed:
        return None
    return Certificate(text, key) if key else None


def _certified_hosts(certificate: str) -> list[str]:
    command = ("x509", "-in", "certificate", "-noout", "-ext", "subjectAltName")
    try:
        printed = _run_openssl({"certificate": certificate}, command)["stdout"]
    except ProgramFailed:
        return []
    return re.findall(r"(?:DNS|IP Address):([^\s,]+)", printed)


def make_authority() -> Certificate:
    made = _run_openssl(
        {},
        (
            "req", "-x509", *_NEW_KEY, "-days", str(AUTHORITY_DAYS), "-subj", "/CN=Reimzul MQTT",
            "-addext", "keyUsage=critical,keyCertSign,cRLSign", "-keyout", "key", "-out", "certificate",
        ),
    )  # fmt: skip
    return Certificate(made["certificate"], made["key"])


def issue_certificate(authority: Certificate, name: str, usage: str, hosts: Iterable[str] = ()) -> Certificate:
    """A certificate with this common name, for `serverAuth` at these hosts or for `clientAuth`."""
    names = ",".join(f"{'IP' if _IPV4.match(host) else 'DNS'}:{host}" for host in hosts)
    alternatives = f"subjectAltName={names}\n" if names else ""
    extensions = f"basicConstraints=critical,CA:FALSE\nextendedKeyUsage={usage}\n{alternatives}"
    made = _run_openssl(
        {"authority": authority.text, "authority_key": authority.key, "extensions": extensions},
        ("req", "-new", *_NEW_KEY, "-subj", f"/CN={name}", "-keyout", "key", "-out", "request"),
        (
            "x509", "-req", "-in", "request", "-extfile", "extensions", "-days", str(CERTIFICATE_DAYS),
            "-CA", "authority", "-CAkey", "authority_key", "-CAcreateserial", "-out", "certificate",
        ),
    )  # fmt: skip
    return Certificate(made["certificate"], made["key"])


def _run_openssl(files: Mapping[str, str], *commands: Sequence[str]) -> dict[str, str]:
    """Run commands of openssl in a folder of their own with these files.

    Returns the files that are in it then, and as `stdout` what the last command printed. Raises `ProgramFailed`.
    """
    with tempfile.TemporaryDirectory(prefix="reimzul-") as name:
        folder, printed = Path(name), ""
        for file, text in files.items():
            (folder / file).write_text(text)
        for command in commands:
            # files are given by their names alone: no character of the folder's path means anything to openssl
            printed = output_of(["openssl", *command], cwd=folder)
        return {"stdout": printed, **{file.name: file.read_text() for file in folder.iterdir()}}

# SPDX-License-Identifier: Apache-2.0
"""mosquitto for a controller: its configuration, certificates for it and its clients, and what reimzul.ini says."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import attr

from reimzul.admin.setup import ini
from reimzul.admin.setup.authority import Pair, holds, hosts_of, issued, new_authority
from reimzul.admin.setup.files import Wanted
from reimzul.admin.setup.roles import SETTINGS
from reimzul.admin.setup.system import System
from reimzul.admin.setup.templates import listener_in, listening, template
from reimzul.core import config
from reimzul.core.cli import local_hostname

UNIT = "mosquitto"
CONFIGURATION = "/etc/mosquitto/conf.d/reimzul.conf"
ACCESS = "/etc/mosquitto/reimzul.acl"
#: Ours: the authority and the clients' certificates.
FOLDER = "/etc/reimzul/mqtt"
#: The broker's: certificate and key beside it.
BROKER = "/etc/mosquitto/certs/reimzul"
#: Who may publish, and who may read: conf/mosquitto-reimzul.acl.
CLIENTS = ("notifier", "listener")

_MAIN = "/etc/mosquitto/mosquitto.conf"
_INCLUDES = "include_dir /etc/mosquitto/conf.d"


@attr.frozen(kw_only=True)
class Broker:
    """What MQTT adds to a controller; nothing where it is not wanted."""

    files: tuple[Wanted, ...] = ()
    units: tuple[str, ...] = ()
    ports: tuple[int, ...] = ()
    settings: ini.Settings = attr.field(factory=dict)

    def as_wishes(self, settings: ini.Settings) -> dict[str, Any]:
        """The same as wishes, beside the settings a person gave, which win."""
        return {
            "more": self.files,
            "more_units": self.units,
            "more_ports": self.ports,
            "settings": {**self.settings, **settings},
        }


def wishes(system: System, ordered: bool, listen: str | None, host: str | None, given: ini.Settings) -> Broker:
    """What is wanted of mosquitto: where it was ordered, or is there from the last time.

    `listen` is an address that is not loopback, `host` a name of this host by which subscribers know it, `given` the
    settings a person gives now.
    """
    present = system.text(CONFIGURATION)
    if not ordered and listen is None and present is None:
        return Broker()
    address = listen or listener_in(present or "") or "127.0.0.1"
    topic = given.get(("mqtt", "topic")) or ini.value_in(system.text(SETTINGS) or "", "mqtt", "topic")
    files = (*_configuration(system, address, topic or config.MqttSettings().topic), *_certificates(system, host or ""))
    ports = () if address in config.LOCAL else (8883,)
    return Broker(files=files, units=(UNIT,), ports=ports, settings=_settings(system) if ordered or listen else {})


def _configuration(system: System, address: str, topic: str) -> Iterator[Wanted]:
    text = listening(template("mosquitto-reimzul.conf"), address)
    yield Wanted(path=CONFIGURATION, text=text, units=(UNIT,))
    # what the list does not name mosquitto takes, and drops without a word
    access = template("mosquitto-reimzul.acl").replace(" reimzul/#", f" {topic}/#")
    # mosquitto is going to refuse a list that others can read or change
    yield Wanted(path=ACCESS, text=access, mode=0o600, owner="mosquitto", units=(UNIT,))
    main = system.text(_MAIN) or ""
    if _INCLUDES not in main.splitlines():  # Debian's has it, EPEL's has not
        text = f"{main.rstrip()}\n\n{_INCLUDES}\n".lstrip()
        yield Wanted(path=_MAIN, text=text, edited=True, kept=f"{_MAIN}.before-reimzul", units=(UNIT,))


def _certificates(system: System, host: str) -> Iterator[Wanted]:
    there = _pair(system, f"{FOLDER}/ca")
    authority = there if there and holds(there) else new_authority("Reimzul MQTT")
    yield from _files(f"{FOLDER}/ca", authority, "root")
    broker = _pair(system, BROKER)
    if not (broker and holds(broker, authority, host)):
        # who subscribes by a name that was given once still does
        known = ("localhost", "127.0.0.1", host, local_hostname(), *hosts_of(broker))
        names = tuple(dict.fromkeys(filter(None, known)))
        broker = issued(authority, "mosquitto", "serverAuth", names)
    yield from _files(BROKER, broker, "mosquitto", (UNIT,))
    yield Wanted(path=f"{BROKER}-ca.crt", text=authority.certificate, secret=True, units=(UNIT,))
    for name in CLIENTS:
        client = _pair(system, f"{FOLDER}/{name}")
        if not (client and holds(client, authority)):
            client = issued(authority, name, "clientAuth")
        yield from _files(f"{FOLDER}/{name}", client, "reimzul")


def _pair(system: System, path: str) -> Pair | None:
    texts = [system.text(f"{path}.{ending}") for ending in ("crt", "key")]
    return Pair(texts[0] or "", texts[1] or "") if all(texts) else None


def _files(path: str, pair: Pair, owner: str, units: tuple[str, ...] = ()) -> Iterator[Wanted]:
    yield Wanted(path=f"{path}.key", text=pair.key, mode=0o600, owner=owner, secret=True, units=units)
    yield Wanted(path=f"{path}.crt", text=pair.certificate, secret=True, units=units)


def _settings(system: System) -> ini.Settings:
    settings = {
        ("mqtt", "notifications"): "true",
        ("mqtt", "host"): "localhost",
        ("mqtt", "port"): "8883",
        ("mqtt", "ca_cert"): f"{FOLDER}/ca.crt",
        ("mqtt", "tls_cert"): f"{FOLDER}/notifier.crt",
        ("mqtt", "tls_key"): f"{FOLDER}/notifier.key",
    }
    if not ini.value_in(system.text(SETTINGS) or "", "irc", "mqtt_cert"):
        settings[("irc", "mqtt_cert")] = f"{FOLDER}/listener.crt"
        settings[("irc", "mqtt_key")] = f"{FOLDER}/listener.key"
    return settings

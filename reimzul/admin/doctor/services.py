# SPDX-License-Identifier: Apache-2.0
"""Talks to the farm's four services as their clients do, and checks that the systemd units of the roles run."""

from __future__ import annotations

import contextlib
import http.client
import socket
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Callable
from urllib.parse import urlsplit

import attr

from reimzul.admin.doctor import Check, Misconfigured, Result, Results, fail, ok
from reimzul.admin.doctor.host import (
    BSTORE,
    BUILDER,
    CONTROLLER,
    ENABLED_UNITS,
    PROGRAM_TIMEOUT_SECONDS,
    Address,
    Host,
)
from reimzul.core.beanstalk import Broker
from reimzul.core.config import LOCAL
from reimzul.core.errors import BrokerUnavailable
from reimzul.core.process import output_of
from reimzul.core.settings import Settings

#: Time limit for one answer of a service.
ANSWER_TIMEOUT_SECONDS = 4.0
BEANSTALKD, INCOMING, RSYNCD, STORE = "beanstalkd", "incoming", "rsyncd", "store"
#: The services each role needs.
NEEDED = {CONTROLLER: (BEANSTALKD, STORE), BSTORE: (BEANSTALKD,), BUILDER: (BEANSTALKD, INCOMING, RSYNCD, STORE)}

#: What shows that systemd runs this host: sd_booted(3).
BOOTED = Path("/run/systemd/system")
#: Units by role; a name that ends with @ is a template with numbered instances.
UNITS = {
    CONTROLLER: ("stunnel@reimzul", "beanstalkd", "nginx", "reimzul-notifier"),
    BUILDER: ("stunnel@reimzul", "reimzul-worker@"),
    BSTORE: ("stunnel@reimzul", "nginx", "rsync", "reimzul-repogen-worker@", "reimzul-signer"),
}
#: Names of units on Fedora and EL, where they differ.
_OTHER_NAMES = {"rsync": ("rsyncd",)}


@attr.frozen(kw_only=True)
class Service:
    name: str
    setting: str  #: the setting with its address
    address: Address
    offered_by: str  #: the role of the host that offers it
    program: str  #: the name of its unit
    #: Ask for an answer at an address and describe it. Raises `OSError`, `Misconfigured`
    ask: Callable[[Address], str]


def services(settings: Settings) -> dict[str, Service]:
    incoming, store, uploads = settings.incoming.url, settings.bstore.base_url, settings.bstore.upload_url
    rows = (
        Service(
            name=BEANSTALKD, setting="[beanstalkd] host and port", offered_by=CONTROLLER, program="beanstalkd",
            address=(settings.beanstalkd.host, settings.beanstalkd.port), ask=_ask_beanstalkd,
        ),
        Service(
            name=INCOMING, setting="[incoming] url", offered_by=CONTROLLER, program="nginx",
            address=address_of(incoming), ask=partial(_ask_web_server, incoming, "conf/nginx-controller.conf"),
        ),
        Service(
            name=RSYNCD, setting="[bstore] upload_url", offered_by=BSTORE, program="rsync",
            address=address_of(uploads), ask=_ask_rsyncd,
        ),
        Service(
            name=STORE, setting="[bstore] base_url", offered_by=BSTORE, program="nginx",
            address=address_of(store), ask=partial(_ask_web_server, store, "conf/nginx-bstore.conf"),
        ),
    )  # fmt: skip
    return {service.name: service for service in rows}


def used_services(host: Host) -> dict[str, Service]:
    """The services this host uses: those its roles need, and those it has a tunnel to."""
    needed = {name for role in host.roles for name in NEEDED[role]}
    return {
        name: service
        for name, service in services(host.settings).items()
        if name in needed or host.stunnel.find_client(*service.address)
    }


def address_of(url: str) -> Address:
    parts = urlsplit(url)
    return parts.hostname or "", parts.port or {"https": 443, "rsync": 873}.get(parts.scheme, 80)


def format_address(address: Address) -> str:
    return f"{address[0]}:{address[1]}"


def restart_hint(program: str) -> str:
    other = " (rsyncd on Fedora and EL)" if program == "rsync" else ""
    return f"systemctl restart {program}{other}; journalctl -u {program}"


def connect(settings: Settings) -> Broker:
    return Broker(settings.beanstalkd.host, settings.beanstalkd.port, ANSWER_TIMEOUT_SECONDS)


def _ask_beanstalkd(address: Address) -> str:
    try:
        with Broker(*address, answer=ANSWER_TIMEOUT_SECONDS) as broker:
            return f"beanstalkd {broker.server_stats().version} answers"
    except BrokerUnavailable as error:
        raise ConnectionError(str(error)) from error.__cause__


def _ask_rsyncd(address: Address) -> str:
    with socket.create_connection(address, ANSWER_TIMEOUT_SECONDS) as connection:
        greeting = connection.recv(64)
    if not greeting.startswith(b"@RSYNCD:"):
        raise ConnectionError(f"not rsync's greeting: {greeting[:20]!r}" if greeting else "closed without a greeting")
    return f"rsyncd answers, protocol {greeting.split()[1].decode(errors='replace')}"


def _ask_web_server(url: str, sample: str, address: Address) -> str:
    """Ask for a folder. The server may refuse to list it (403)."""
    path, status = urlsplit(url).path, fetch(url, address)[0].status
    if status not in (200, 403):
        message = f"the web server at {format_address(address)} answers {status} for {path}"
        raise Misconfigured(message, f"compare its configuration with {sample}")
    return f"the web server answers for {path}"


def fetch(url: str, address: Address | None = None) -> tuple[http.client.HTTPResponse, bytes]:
    """Fetch a URL, at most 64 KB of it; connect to `address` instead of the URL's host if given. Raises `OSError`."""
    parts = urlsplit(url)
    kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
    host, port = address or address_of(url)
    try:
        with contextlib.closing(kind(host, port, timeout=ANSWER_TIMEOUT_SECONDS)) as connection:
            connection.request("GET", parts.path or "/", headers={"Host": parts.netloc, "User-Agent": "reimzul-doctor"})
            response = connection.getresponse()
            return response, response.read(65_536)
    except http.client.HTTPException as error:
        raise ConnectionError(f"not an answer of a web server: {error!r}") from error


# --- units


def checks(host: Host) -> list[Check]:
    """One check for each unit, if systemd runs and the settings are this machine's own."""
    if not host.is_installed or not BOOTED.is_dir():
        return []
    return [Check(name=f"unit.{unit.rstrip('@')}", run=partial(_check_unit, unit)) for unit in _list_units(host)]


def _list_units(host: Host) -> Iterator[str]:
    units = dict.fromkeys(unit for role in host.roles for unit in UNITS[role])
    yield from (unit for unit in units if host.needs_stunnel or unit != "stunnel@reimzul")
    if host.has_role(CONTROLLER) and host.settings.mqtt.notifications and host.settings.mqtt.host in LOCAL:
        yield "mosquitto"
    if any(ENABLED_UNITS.glob("*.wants/reimzul-irc.service")):
        yield "reimzul-irc"


def _check_unit(unit: str) -> Results:
    names = [unit, *_OTHER_NAMES.get(unit, ())]
    if unit.endswith("@"):
        names = sorted({link.stem for link in ENABLED_UNITS.glob(f"*.wants/{unit}*.service")})
    if not names:
        return fail(f"no instance of {unit} is enabled", f"systemctl enable --now {unit}1")
    properties = "Id,LoadState,ActiveState,SubState,UnitFileState"
    argv = ["systemctl", "show", f"--property={properties}", *(f"{name}.service" for name in names)]
    blocks = output_of(argv, timeout=PROGRAM_TIMEOUT_SECONDS).strip().split("\n\n")
    units = [dict(line.split("=", 1) for line in block.splitlines() if "=" in line) for block in blocks]
    if not unit.endswith("@"):
        units = [each for each in units if each.get("LoadState") != "not-found"][:1] or units[:1]
    problems = [problem for each in units for problem in find_unit_problems(each)]
    return [*problems, ok(f"{len(units)} of {len(units)} run" if unit.endswith("@") else "runs")]


def find_unit_problems(unit: Mapping[str, str]) -> Iterator[Result]:
    name = unit.get("Id", "").removesuffix(".service")
    if unit.get("LoadState") == "not-found":
        yield fail(f"{name} is not installed", "make install, or install its package")
        return
    if unit.get("ActiveState") != "active":
        state = f"{unit.get('ActiveState')} ({unit.get('SubState')})"
        yield fail(f"{name} is {state}", f"systemctl start {name}; journalctl -u {name}")
    state = unit.get("UnitFileState", "")
    if state in ("disabled", "masked", "bad"):
        yield fail(f"{name} is {state}: it will not start after a reboot", f"systemctl enable --now {name}")

# SPDX-License-Identifier: Apache-2.0
"""The roles of this host in the farm, as `reimzul setup` leaves them: from stunnel's sections and the enabled units.

stunnel's configuration says which services this host offers to others, and which it uses (stunnel(8)).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import attr

from reimzul.core.config import DEFAULT_FILE, LOCAL, find_file
from reimzul.core.errors import InputError
from reimzul.core.settings import Settings

#: Section names of the services offered to others. A devfarm has one section per address, with a number.
_OFFER = re.compile(r"(beanstalkd|incoming|rsyncd|store)-server(-\d+)?\Z")

Address = tuple[str, int]


@attr.frozen(kw_only=True)
class StunnelSection:
    name: str
    options: Mapping[str, str]  #: by name in lower case; the last value of a repeated option

    @property
    def is_client(self) -> bool:
        """A client is a tunnel to another host; the other sections are services offered to others."""
        return self.options.get("client", "no") == "yes"

    @property
    def accept(self) -> Address:
        """The address it listens on; the host is empty if that is every address."""
        return _parse_address(self.options.get("accept", ""))

    @property
    def connect(self) -> Address:
        host, port = _parse_address(self.options.get("connect", ""))
        return host or "localhost", port

    @property
    def secrets(self) -> Path | None:
        return Path(self.options["psksecrets"]) if "psksecrets" in self.options else None


@attr.frozen(kw_only=True)
class StunnelConfig:
    path: Path
    common: tuple[tuple[str, str], ...] = ()  #: options before the first section, in their order
    sections: tuple[StunnelSection, ...] = ()
    problem: str = ""  #: why it cannot be read
    is_missing: bool = False

    @property
    def clients(self) -> list[StunnelSection]:
        return [section for section in self.sections if section.is_client]

    @property
    def offers(self) -> dict[str, StunnelSection]:
        """The sections that offer a service to others, by the service's name; the first of each."""
        found: dict[str, StunnelSection] = {}
        for section in self.sections:
            match = _OFFER.match(section.name)
            if match and not section.is_client:
                found.setdefault(match[1], section)
        return found

    def find_client(self, host: str, port: int) -> StunnelSection | None:
        found = (section for section in self.clients if section.accept[1] == port)
        return next(found, None) if host in LOCAL else None

    @property
    def key_files(self) -> list[Path]:
        return sorted({section.secrets for section in self.sections if section.secrets is not None})


def _parse_address(text: str) -> Address:
    """Parse `port` or `host:port`; the port is 0 if the text is neither."""
    host, _, port = text.strip().rpartition(":")
    return host.strip("[]"), int(port) if port.isascii() and port.isdigit() else 0


def read_stunnel_config(path: Path) -> StunnelConfig:
    try:
        return parse_stunnel_config(path, path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8"
        problem = f"{path}: {(reason or 'cannot be read').lower()}"
        return StunnelConfig(path=path, problem=problem, is_missing=isinstance(error, FileNotFoundError))


def parse_stunnel_config(path: Path, text: str) -> StunnelConfig:
    common: list[tuple[str, str]] = []
    sections: list[StunnelSection] = []
    options: dict[str, str] = {}
    for line in map(str.strip, text.splitlines()):
        name, equals, value = (part.strip() for part in line.partition("="))
        if line.startswith("[") and line.endswith("]"):
            options = {}
            sections.append(StunnelSection(name=line[1:-1].strip(), options=options))
        elif equals and line[0] not in ";#":
            options[name.lower()] = value
            if not sections:
                common.append((name, value))
    return StunnelConfig(path=path, common=tuple(common), sections=tuple(sections))


CONTROLLER, BUILDER, BSTORE = "controller", "builder", "bstore"
ROLES = (CONTROLLER, BUILDER, BSTORE)
#: The unit that is enabled on hosts of each role.
_UNITS = {
    CONTROLLER: "reimzul-notifier.service",
    BUILDER: "reimzul-worker@*.service",
    BSTORE: "reimzul-repogen-worker@*.service",
}
ENABLED_UNITS = Path("/etc/systemd/system")
#: The stunnel configuration that `reimzul setup` writes.
_STUNNEL_FILE = Path("/etc/stunnel/reimzul.conf")


def find_stunnel_config(file: Path | None) -> Path:
    """The stunnel configuration that belongs to a settings file; a devfarm has its own beside its settings."""
    if file is None or file == DEFAULT_FILE:
        return _STUNNEL_FILE
    beside = file.with_name(f"stunnel-{file.stem}.conf")
    return beside if beside.exists() else _STUNNEL_FILE


def find_roles(config: StunnelConfig, file: Path | None) -> list[str]:
    """The roles by stunnel's sections, and on an installed host by the enabled units too; empty where neither says."""
    found = {
        CONTROLLER: "beanstalkd" in config.offers,
        BUILDER: not config.offers and any(section.name == "rsyncd" for section in config.clients),
        BSTORE: "rsyncd" in config.offers,
    }
    if file is None or file == DEFAULT_FILE:
        found = {role: found[role] or any(ENABLED_UNITS.glob(f"*.wants/{_UNITS[role]}")) for role in ROLES}
    return [role for role in ROLES if found[role]]


def require_controller(program: str, settings: Settings, given: Path | None) -> None:
    """Raise `InputError` if this host has other roles than the controller's; `given` is the settings file, if any.

    A host without roles may be a controller that nobody has set up by `reimzul setup`, and one that uses no stunnel and
    its own beanstalkd is a farm of a single host.
    """
    file = find_file(given)
    config = read_stunnel_config(find_stunnel_config(file))
    roles = find_roles(config, file)
    if not roles or CONTROLLER in roles or (config.is_missing and settings.beanstalkd.host in LOCAL):
        return
    own = " and ".join("a builder" if role == BUILDER else role for role in roles)
    name = _find_controller(config, settings)
    raise InputError(f"this host is {own}, not the controller: run {program} on the controller{name and f', {name}'}")


def _find_controller(config: StunnelConfig, settings: Settings) -> str:
    """The controller's name, from the way to its beanstalkd; empty if that is unknown, or leads to this host."""
    hosts = [section.connect[0] for section in config.clients if section.name == "beanstalkd"]
    hosts.append(settings.beanstalkd.host)
    return next((host for host in hosts if host not in LOCAL and not host.startswith("127.")), "")

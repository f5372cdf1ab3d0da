# SPDX-License-Identifier: Apache-2.0
"""The roles of this host in the farm, as `reimzul setup` leaves them: from stunnel's sections and the enabled units."""

from __future__ import annotations

from pathlib import Path

from reimzul.core.config import DEFAULT_FILE, LOCAL, find_file
from reimzul.core.errors import InputError
from reimzul.core.settings import Settings
from reimzul.core.stunnel import StunnelConfig, read_stunnel_config

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

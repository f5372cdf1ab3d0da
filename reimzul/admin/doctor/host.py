# SPDX-License-Identifier: Apache-2.0
"""This host as the doctor finds it: its settings, its roles, its stunnel's configuration, and whose access counts."""

from __future__ import annotations

import os
import pwd
from collections.abc import Collection, Mapping
from pathlib import Path

import attr

from reimzul.admin.doctor import tunnels
from reimzul.admin.doctor.tunnels import Tunnels
from reimzul.core.cli import local_hostname
from reimzul.core.config import DEFAULT_FILE, Settings
from reimzul.core.errors import InputError
from reimzul.core.process import output_of

CONTROLLER, BUILDER, BSTORE = "controller", "builder", "bstore"
ROLES = (CONTROLLER, BUILDER, BSTORE)
ALL = "all"
#: Who runs the farm's programs on a host that was set up.
OWNER = "reimzul"
#: The units whose being enabled says what a host is for.
_UNITS = {
    CONTROLLER: "reimzul-notifier.service",
    BUILDER: "reimzul-worker@*.service",
    BSTORE: "reimzul-repogen-worker@*.service",
}
#: The sections of reimzul.ini that only one role's has, where nothing else tells.
_SETTINGS = {CONTROLLER: ("history", "notifier", "mqtt", "mail"), BUILDER: ("worker",), BSTORE: ("repogen",)}
_ENABLED = Path("/etc/systemd/system")


@attr.frozen(kw_only=True)
class Host:
    """What is looked at."""

    settings: Settings
    file: Path | None  #: of the settings; None where the defaults hold
    roles: tuple[str, ...]
    tunnels: Tunnels
    user: str  #: who runs the farm's programs here

    @property
    def installed(self) -> bool:
        """Whether it is this machine's own farm that is looked at, and not one in a folder."""
        return is_installed(self.file)

    @property
    def name(self) -> str:
        """The name this host goes by."""
        return (self.settings.worker.fqdn if BUILDER in self.roles else "") or local_hostname()

    def has(self, *roles: str) -> bool:
        """Whether it has one of these roles."""
        return any(role in self.roles for role in roles)

    @property
    def entry(self) -> pwd.struct_passwd | None:
        """The user who runs the farm's programs; None where there is none of that name."""
        try:
            return pwd.getpwnam(self.user)
        except KeyError:
            return None

    @property
    def is_other(self) -> bool:
        """Whether that user is not who runs us."""
        return self.entry is not None and self.entry.pw_uid != os.geteuid()

    def run(self, *argv: str, timeout: float, env: Mapping[str, str] | None = None) -> str:
        """What a program prints that is run as that user where we are root and may, else as ourselves.

        Raises `ProgramFailed`, `ProgramNotFound` and `TimedOut`.
        """
        if not (self.entry and self.is_other and is_root()):
            return output_of(argv, timeout=timeout, env=env)
        its = {**(env or {}), "HOME": self.entry.pw_dir}
        return output_of(["runuser", "-u", self.user, "--", *argv], timeout=timeout, env=its, cwd=Path("/"))


def is_root() -> bool:
    """Whether we may do anything."""
    return os.geteuid() == 0


def is_installed(file: Path | None) -> bool:
    """Whether settings of that file are this machine's own."""
    return file is None or file == DEFAULT_FILE


def find(settings: Settings, file: Path | None, roles: Collection[str], stunnel: Path | None) -> Host:
    """This host; without `roles` and `stunnel` it is found out what it is. Raises `InputError`."""
    ways = tunnels.read(stunnel or _stunnel_of(file))
    found = _roles(ways, file) if not roles else [role for role in ROLES if role in roles or ALL in roles]
    user = OWNER if is_installed(file) else pwd.getpwuid(os.geteuid()).pw_name
    return Host(settings=settings, file=file, roles=tuple(found), tunnels=ways, user=user)


def _stunnel_of(file: Path | None) -> Path:
    """Beside settings of another place than the usual one is their stunnel's configuration, as a devfarm has it."""
    beside = file.with_name(f"stunnel-{file.stem}.conf") if file and not is_installed(file) else None
    return beside if beside and beside.exists() else tunnels.INSTALLED


def _roles(ways: Tunnels, file: Path | None) -> list[str]:
    """What the host is for, by what it offers and uses, its units and its settings. Raises `InputError`."""
    names = {section.name for section in ways.ways}
    told = {
        CONTROLLER: "beanstalkd" in ways.offers,
        BUILDER: "rsyncd" in names and not ways.offers,
        BSTORE: "rsyncd" in ways.offers,
    }
    found = [role for role in ROLES if told[role] or (is_installed(file) and _enabled(_UNITS[role]))]
    found = found or ([] if is_installed(file) else _roles_of(file))
    if not found:
        raise InputError(f"nothing here tells what this host is for: say it by --role ({', '.join((*ROLES, ALL))})")
    return found


def _enabled(unit: str) -> bool:
    return any(_ENABLED.glob(f"*.wants/{unit}"))


def _roles_of(file: Path | None) -> list[str]:
    try:
        text = file.read_text(encoding="utf-8") if file else ""
    except (OSError, UnicodeDecodeError):
        return []
    lines = {line.strip() for line in text.splitlines()}
    return [role for role in ROLES if any(f"[{section}]" in lines for section in _SETTINGS[role])]

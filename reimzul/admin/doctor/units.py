# SPDX-License-Identifier: Apache-2.0
"""The units of a host's roles: enabled, so that they come back after a boot, and running."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from reimzul.admin.doctor.check import Check, Result, fail, worst
from reimzul.admin.doctor.host import BSTORE, BUILDER, CONTROLLER, Host
from reimzul.core.config import LOCAL
from reimzul.core.process import output_of

#: What shows that systemd runs here: sd_booted(3).
BOOTED = Path("/run/systemd/system")
_ENABLED = Path("/etc/systemd/system")
_FOLDERS = ("/etc/systemd/system", "/usr/local/lib/systemd/system", "/usr/lib/systemd/system", "/lib/systemd/system")
_PATIENCE = 8.0

#: Units by role; one that ends with @ has instances by number.
UNITS = {
    CONTROLLER: ("stunnel@reimzul", "beanstalkd", "nginx", "reimzul-notifier"),
    BUILDER: ("stunnel@reimzul", "reimzul-worker@"),
    BSTORE: ("stunnel@reimzul", "nginx", "rsync", "reimzul-repogen-worker@", "reimzul-signer"),
}
#: What a unit is called elsewhere: Fedora's and EL's rsyncd.
_OTHER_NAMES = {"rsync": "rsyncd"}


def checks(host: Host) -> list[Check]:
    """One for each unit, where systemd runs and it is its own farm that is looked at."""
    if not host.installed or not BOOTED.is_dir():
        return []
    return [Check(name=f"unit.{unit.rstrip('@')}", look=_Unit(unit)) for unit in wanted(host)]


def wanted(host: Host) -> list[str]:
    """The units of all roles, each once."""
    units = [unit for role in host.roles for unit in UNITS[role]]
    if not host.tunnels.sections and len(host.roles) == len(UNITS):
        units.remove("stunnel@reimzul")
    if host.has(CONTROLLER) and host.settings.mqtt.notifications and host.settings.mqtt.host in LOCAL:
        units.append("mosquitto")
    if any(_ENABLED.glob("*.wants/reimzul-irc.service")):
        units.append("reimzul-irc")
    return list(dict.fromkeys(units))


class _Unit:
    """A unit, or all instances of one."""

    def __init__(self, unit: str) -> None:
        self.unit = _here(unit)

    def __call__(self) -> Result:
        names = _instances(self.unit) if self.unit.endswith("@") else [f"{self.unit}.service"]
        if not names:
            return fail(f"no instance of {self.unit} is enabled", f"systemctl enable --now {self.unit}1")
        wanted = ("Id", "LoadState", "ActiveState", "SubState", "UnitFileState")
        said = output_of(["systemctl", "show", f"--property={','.join(wanted)}", *names], timeout=_PATIENCE)
        found = [_properties(block) for block in said.strip().split("\n\n")]
        results = [result for each in found for result in _faults(each)]
        return worst(results, f"{len(found)} of {len(found)} run" if self.unit.endswith("@") else "runs")


def _faults(unit: Mapping[str, str]) -> Iterator[Result]:
    name = unit.get("Id", "").removesuffix(".service")
    if unit.get("LoadState") == "not-found":
        yield fail(f"{name} is not installed", "make install, or install its package")
        return
    if unit.get("ActiveState") != "active":
        state = f"{unit.get('ActiveState')} ({unit.get('SubState')})"
        yield fail(f"{name} is {state}", f"systemctl start {name}; journalctl -u {name}")
    if unit.get("UnitFileState") in ("disabled", "masked", "bad"):
        words = f"{name} is {unit.get('UnitFileState')}: it does not come back after a boot"
        yield fail(words, f"systemctl enable --now {name}")


def _instances(template: str) -> list[str]:
    """The enabled instances, by their links."""
    return sorted({link.name for link in _ENABLED.glob(f"*.wants/{template}*.service")})


def _here(unit: str) -> str:
    other = _OTHER_NAMES.get(unit)
    return other if other and not _is_there(unit) and _is_there(other) else unit


def _is_there(unit: str) -> bool:
    return any((Path(folder) / f"{unit}.service").exists() for folder in _FOLDERS)


def _properties(block: str) -> Mapping[str, str]:
    return dict(line.split("=", 1) for line in block.splitlines() if "=" in line)

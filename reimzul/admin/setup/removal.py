# SPDX-License-Identifier: Apache-2.0
"""Takes a role off this host: its units are stopped and disabled, and the files that setup wrote are removed.

A file that was changed since is kept and named, as are reimzul.ini and the data below /srv/reimzul.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import attr
import click

from reimzul.admin.output import print_json
from reimzul.admin.setup import apply, files, mqtt, psk, roles
from reimzul.admin.setup.apply import ApplyOptions, MissingAnswer
from reimzul.admin.setup.files import CHECKSUMS_FILE, System, translate_write_errors
from reimzul.admin.setup.roles import Step
from reimzul.core.errors import ReimzulError

#: Files of keys and certificates (globs): setup alone writes them, and keeps no checksum of a secret.
_SECRETS = (roles.OWN_KEY, roles.ACCEPTED, psk.EVENT_KEYS, f"{mqtt.FOLDER}/*", f"{mqtt.BROKER}*")
_DATA_FOLDERS = ("/srv/reimzul", "/var/log/reimzul")


@attr.frozen(kw_only=True)
class Removal:
    removed: tuple[str, ...]
    kept: Mapping[str, str]  #: path -> why it stays
    before: tuple[Step, ...]  #: stop and disable, before files are removed
    after: tuple[Step, ...]


def plan_removal(role: str, system: System) -> Removal:
    """Raises `ReimzulError` if the host is not set up."""
    if roles.find_role(system.text(roles.TUNNELS) or "") != role:
        raise ReimzulError(f"this host is not set up as {role}: {roles.TUNNELS} is not that of a {role}")
    written = [path for path in files.read_checksums(system) if system.resolve(path).exists()]
    changed = [path for path in written if not files.is_ours(system, path)]
    secrets = [f"/{file.relative_to(system.root)}" for each in _SECRETS for file in sorted(_glob(system, each))]
    removed = (*(path for path in written if path not in changed), *secrets, CHECKSUMS_FILE)
    kept = {path: "it was changed after setup wrote it" for path in changed}
    kept.update(_list_kept(system, written))
    before = (*_unit_steps(role, system, changed), *apply.firewall_steps(system, _list_ports(role, system), close=True))
    after = (_reload_step(),) if system.running else ()
    return Removal(removed=removed, kept=kept, before=before, after=after)


def _list_ports(role: str, system: System) -> list[int]:
    public = {"bstore": roles.PUBLIC, "controller": roles.PAGES}.get(role, "")
    broker = mqtt.PORT if system.resolve(mqtt.CONFIGURATION).exists() else 0
    return [port for port in (*roles.PORTS[role], public and roles.current_port(system, public), broker) if port]


def _glob(system: System, pattern: str) -> Iterator[Path]:
    return system.root.glob(pattern.lstrip("/"))


def _list_kept(system: System, written: list[str]) -> Iterator[tuple[str, str]]:
    rows = (
        (roles.SETTINGS, "settings are yours"),
        *((f"{path}.before-reimzul", "the file before setup") for path in (*written, "/etc/nginx/nginx.conf")),
        *((path, "data and logs") for path in _DATA_FOLDERS),
    )
    yield from ((path, why) for path, why in rows if system.resolve(path).exists())


def _unit_steps(role: str, system: System, changed: list[str]) -> Iterator[Step]:
    """A daemon that serves more than the farm goes on: nginx with other sites, rsyncd with a changed configuration."""
    services = [mqtt.UNIT] if system.resolve(mqtt.CONFIGURATION).exists() else []
    units = [*services, *roles.list_units(role, system)]
    others = [unit for unit in units if unit == "nginx" and _has_other_sites(system)]
    others += [unit for unit in units if unit.startswith("rsync") and "/etc/rsyncd.conf" in changed]
    for unit in reversed([unit for unit in units if unit not in others]):
        argv = ("disable", "--now", unit) if system.running else ("disable", unit)
        description = f"disable {unit}" + (", which stops it" if system.running else "")
        yield Step(argv=(*apply.systemctl(system), *argv), description=description, hint=f"journalctl -u {unit}")


def _has_other_sites(system: System) -> bool:
    found = [*system.resolve("/etc/nginx/conf.d").glob("*.conf"), *system.resolve("/etc/nginx/sites-enabled").glob("*")]
    return any(not path.name.startswith("reimzul") for path in found)


def _reload_step() -> Step:
    return Step(argv=("systemctl", "daemon-reload"), description="reload systemd's units")


def show_removal(removal: Removal, options: ApplyOptions) -> None:
    if options.as_json:
        steps = [{"message": step.description, "argv": list(step.argv)} for step in (*removal.before, *removal.after)]
        print_json({"removed": list(removal.removed), "kept": dict(removal.kept), "steps": steps})
        return
    options.print(
        *(f"would {step.description}" for step in removal.before),
        *(f"would remove {path}" for path in removal.removed),
        *(f"would {step.description}" for step in removal.after),
        *(f"would keep {path}: {why}" for path, why in removal.kept.items()),
    )


def remove_role(role: str, system: System, removal: Removal, options: ApplyOptions) -> None:
    """Raises `MissingAnswer`, and `ReimzulError` with all steps that failed."""
    if not options.yes:
        if not sys.stdin.isatty():
            raise MissingAnswer("--remove needs --yes where there is no terminal to ask on. Nothing was changed")
        show_removal(removal, options)
        if not click.confirm(f"Remove the role {role} from this host?", err=True):
            raise ReimzulError("nothing was changed")
    failures = list(apply.try_steps(removal.before, options))
    for path in removal.removed:
        try:
            with translate_write_errors(path):
                system.resolve(path).unlink(missing_ok=True)
        except ReimzulError as error:
            failures.append(str(error))
        else:
            options.print(f"removed {path}")
    failures += apply.try_steps(removal.after, options)
    options.print(*(f"kept {path}: {why}" for path, why in removal.kept.items()))
    if failures:
        raise ReimzulError("\n".join(failures))

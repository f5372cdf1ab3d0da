# SPDX-License-Identifier: Apache-2.0
"""Takes a role off this host: its units are stopped and disabled, and the files that setup wrote are removed.

A file that was changed since is kept and named, as are reimzul.ini and the data below /srv/reimzul. Settings that name
a removed file get their defaults again.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import attr
import click

from reimzul.admin.output import print_json
from reimzul.admin.setup import apply, files, ini, mqtt, psk, roles
from reimzul.admin.setup.apply import ApplyOptions, MissingAnswer
from reimzul.admin.setup.files import CHECKSUMS_FILE, FileSpec, System, translate_write_errors
from reimzul.admin.setup.roles import Step
from reimzul.core.errors import ReimzulError
from reimzul.core.settings import all_sections, settings_of

#: Files of keys and certificates (globs): setup alone writes them, and keeps no checksum of a secret.
_SECRETS = (roles.OWN_KEY, roles.ACCEPTED, psk.EVENT_KEYS, f"{mqtt.FOLDER}/*", f"{mqtt.BROKER}*")
_DATA_FOLDERS = ("/srv/reimzul", "/var/log/reimzul")


@attr.frozen(kw_only=True)
class Removal:
    removed: tuple[str, ...]
    kept: Mapping[str, str]  #: path -> why it stays
    reset: ini.Settings  #: settings that name a removed file, and their defaults
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
    return Removal(removed=removed, kept=kept, reset=_find_dead_settings(system, removed), before=before, after=after)


def _find_dead_settings(system: System, removed: Iterable[str]) -> ini.Settings:
    text, gone = system.text(roles.SETTINGS) or "", set(removed)
    rows = [(section, row) for section, kind in all_sections().items() for row in settings_of(kind)]
    dead = {(section, row.name) for section, row in rows if ini.get_value(text, section, row.name) in gone}
    if any(section == "mqtt" for section, _ in dead):
        dead.add(("mqtt", "notifications"))  # there is no broker any more
    return {(section, row.name): row.metadata["default"] for section, row in rows if (section, row.name) in dead}


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
        names = [f"{section}.{key}" for section, key in removal.reset]
        print_json({"removed": list(removal.removed), "kept": dict(removal.kept), "reset": names, "steps": steps})
        return
    options.print(
        *(f"would {step.description}" for step in removal.before),
        *(f"would reset {name}" for name in _name_settings(removal)),
        *(f"would remove {path}" for path in removal.removed),
        *(f"would {step.description}" for step in removal.after),
        *(f"would keep {path}: {why}" for path, why in removal.kept.items()),
    )


def _name_settings(removal: Removal) -> list[str]:
    return [f"[{section}] {key} in {roles.SETTINGS}" for section, key in removal.reset]


def _reset_settings(system: System, removal: Removal) -> None:
    """Raises `ReimzulError`."""
    present = system.text(roles.SETTINGS)
    if removal.reset and present is not None:
        text = ini.set_values(present, removal.reset)
        spec = FileSpec(path=roles.SETTINGS, text=text, mode=system.mode(roles.SETTINGS), patched=True)
        for diff in files.compare(system, [spec]):
            files.write(system, diff)


def remove_role(role: str, system: System, removal: Removal, options: ApplyOptions) -> None:
    """Raises `MissingAnswer`, and `ReimzulError` with all steps that failed."""
    if not options.yes:
        if not sys.stdin.isatty():
            raise MissingAnswer("--remove needs --yes where there is no terminal to ask on. Nothing was changed")
        show_removal(removal, options)
        if not click.confirm(f"Remove the role {role} from this host?", err=True):
            raise ReimzulError("nothing was changed")
    failures = list(apply.try_steps(removal.before, options))
    try:
        _reset_settings(system, removal)
    except ReimzulError as error:
        failures.append(str(error))
    else:
        options.print(*(f"reset {name}" for name in _name_settings(removal)))
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

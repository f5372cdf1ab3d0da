# SPDX-License-Identifier: Apache-2.0
"""What each role needs on its host: files, units, ports. Nothing is changed here."""

from __future__ import annotations

import grp
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import attr

from reimzul.admin.setup import event_keys, ini, psk
from reimzul.admin.setup.files import FileSpec
from reimzul.admin.setup.host import UNIT_FOLDERS, Step, System
from reimzul.admin.setup.templates import (
    fill_tunnels,
    find_hosts,
    find_role,
    list_units,
    read_template,
    remove_stock_server,
    set_nginx_port,
    set_program_folder,
)
from reimzul.core import config
from reimzul.core.errors import InputError
from reimzul.core.settings import StoreSettings, WorkerSettings
from reimzul.core.validators import quoted

TUNNEL = "stunnel@reimzul"
TUNNELS = "/etc/stunnel/reimzul.conf"
#: A host's own key, and those it accepts.
OWN_KEY = "/etc/stunnel/reimzul-psk.txt"
ACCEPTED = "/etc/stunnel/reimzul-psk-all.txt"
SETTINGS = str(config.DEFAULT_FILE)

#: Debian enables it by itself: a link to a file that stays where it is.
STOCK_SITE = "/etc/nginx/sites-enabled/default"
#: bstore's folders, for systemd-tmpfiles.
FOLDERS = "/etc/tmpfiles.d/reimzul-bstore.conf"
#: repo/ for everybody.
PUBLIC = "/etc/nginx/conf.d/reimzul-public.conf"
#: What other hosts reach: docs/install.md, "Ports".
PORTS = {"controller": (13100, 11080), "bstore": (11874, 11081), "builder": ()}
#: Whom a role's stunnel connects to.
PEERS = {"controller": ("BSTORE",), "bstore": ("CONTROLLER",), "builder": ("CONTROLLER", "BSTORE")}

#: The unit of a role that may run several times, and the one that runs once.
_INSTANCES = {"bstore": "reimzul-repogen-worker", "builder": "reimzul-worker"}
_SINGLE_UNITS = {"controller": ("reimzul-notifier",), "bstore": ("reimzul-signer",)}

#: What git takes as a repository, and could never take as an option.
_GIT_URL = re.compile(
    r"(?:(?:https?|ssh|git|file)://|[A-Za-z0-9_][A-Za-z0-9._-]*@[A-Za-z0-9][A-Za-z0-9.-]*:|/)[^\s\x00-\x1f]+\Z"
)


@attr.frozen(kw_only=True)
class Plan:
    """All that a role, or a change of keys, needs on this host."""

    files: tuple[FileSpec, ...] = ()
    units: tuple[str, ...] = ()  #: in the order they are started in
    unwanted: tuple[str, ...] = ()  #: units to disable
    removed: Mapping[str, str] = attr.field(factory=dict)  #: files to remove, and the unit that reads each
    ports: tuple[int, ...] = ()


@attr.frozen(kw_only=True)
class RoleOptions:
    """What a person asked for, or what holds since the last run."""

    hosts: Mapping[str, str] = attr.field(factory=dict)  #: the names of CONTROLLER and BSTORE
    own_key: str = ""  #: the text of the host's own key file
    accepted: str = ""  #: the text of the file of accepted keys
    revoked: bool = False  #: a host that may be connected loses its key
    instances: int = 0  #: of the role's unit that may run several times
    public_port: int = 0  #: where bstore serves repo/ to everybody; 0: nowhere
    settings: ini.Settings = attr.field(factory=dict)  #: to be set in reimzul.ini
    event_keys: str = ""  #: the text of the file of the keys of events; empty: it stays as it is
    services: Plan | None = None  #: what further services need: mosquitto


def plan_role(role: str, system: System, options: RoleOptions) -> Plan:
    ours, services = _role_units(role, options.instances), options.services or Plan()
    files = (
        *_missing_packaged_files(role, system, ours),
        *_common_files(role, options),
        *(_FILES[role](system, options) if role in _FILES else ()),
        *_event_keys_file(options, ours),
        *_settings_file(system, options, ours),
        *services.files,
    )
    public = (options.public_port,) if options.public_port else ()
    return Plan(
        files=files,
        units=(*_backend_services(role, system), *services.units, TUNNEL, *ours),
        unwanted=(*_conflicting_units(role, system), *_surplus_instances(role, system, options.instances)),
        removed=dict(_files_to_remove(role, system, options)),
        ports=(*PORTS[role], *public, *services.ports),
    )


def plan_keys(role: str, system: System, options: RoleOptions, new_own_key: bool = False) -> Plan:
    """A change of keys, on a host that is set up.

    With `new_own_key` the controller's way to the store changes too, without disturbing connections that are open.
    """
    files, removed = [accepted_keys_file(options)], {}
    if new_own_key:
        tunnels = FileSpec(path=TUNNELS, text=fill_tunnels("controller", options.hosts))
        files += (attr.evolve(file, restarts=(), reloads=(TUNNEL,)) for file in (*_own_key_file(options), tunnels))
        removed = dict(_unused_own_key(system, options))
    ours = _role_units(role, len(system.instances(_INSTANCES.get(role, "")))) if options.event_keys else ()
    if ours:
        files += (*_event_keys_file(options, ours), *_settings_file(system, options, ours))
    return Plan(files=tuple(files), units=(TUNNEL, *ours), removed=removed)


def current_role(system: System) -> tuple[str, dict[str, str]]:
    """The role this host was set up for, and the hosts it connects to; empty for a new host."""
    text = system.text(TUNNELS) or ""
    return find_role(text), find_hosts(text)


def current_public_port(system: System) -> int:
    """The port where this host serves repo/ to everybody; 0 if it does not."""
    found = re.search(r"^    listen (\d+);$", system.text(PUBLIC) or "", re.MULTILINE)
    return int(found[1]) if found else 0


def current_accepted_keys(system: System) -> dict[str, str]:
    """The keys this host accepts; the one of nobody is always among them."""
    keys = psk.parse_keys(system.text(ACCEPTED) or "", ACCEPTED)
    return {psk.NOBODY: keys.get(psk.NOBODY) or psk.new_secret(), **keys}


def folder_steps(system: System) -> list[Step]:
    """Make the folders that rsyncd writes to, if one is missing."""
    paths = re.findall(r"^d (\S+)", read_template("tmpfiles-bstore.conf"), re.MULTILINE)
    if not system.running or all(system.resolve(path).is_dir() for path in paths):
        return []
    argv = ("systemd-tmpfiles", "--create", FOLDERS)
    return [Step(argv=argv, description=f"the folders of {FOLDERS} made")]


def clone_steps(system: System, url: str | None) -> list[Step]:
    """Clone mock's configurations, as the user who pulls them before each build. Raises `InputError`."""
    if url is None:
        return []
    if not _GIT_URL.match(url):
        raise InputError(f"{quoted(url)} is not where a git repository is, as https://git.example.org/mock_configs")
    default = str(WorkerSettings().mock_configs)
    folder = ini.get_value(system.text(SETTINGS) or "", "worker", "mock_configs") or default
    if system.resolve(f"{folder}/.git").exists() or not system.running:
        return []
    # HOME: root's is closed to that user
    git = ("env", "HOME=/srv/reimzul", "GIT_TERMINAL_PROMPT=0", "git", "clone", "--quiet", "--", url, folder)
    argv = ("runuser", "-u", "reimzul", "--", *git)
    return [Step(argv=argv, description=f"mock's configurations cloned into {folder}")]


def find_old_uploads(system: System) -> str:
    """Where a store keeps uploads of the original's workers, which nobody publishes any more; empty without any."""
    default = str(StoreSettings().root)
    root = ini.get_value(system.text(SETTINGS) or "", "bstore", "root") or default
    uploads = list(system.resolve(f"{root}/originals").glob("*/*"))
    count = f"{len(uploads)} package{'s' if len(uploads) > 1 else ''}"
    return f"{count} in {root}/originals" if uploads else ""


# --- files


def accepted_keys_file(options: RoleOptions) -> FileSpec:
    """The keys a host accepts. A revoked host is disconnected by a restart; a new key disturbs nobody."""
    restarts = (TUNNEL,) if options.revoked else ()
    return FileSpec(
        path=ACCEPTED, text=options.accepted, mode=0o600, secret=True, restarts=restarts, reloads=(TUNNEL,)
    )  # fmt: skip


def _own_key_file(options: RoleOptions) -> Iterator[FileSpec]:
    if options.own_key:
        yield FileSpec(path=OWN_KEY, text=options.own_key, mode=0o600, secret=True, restarts=(TUNNEL,))


def _missing_packaged_files(role: str, system: System, units: Sequence[str]) -> Iterator[FileSpec]:
    """Units, user and folders, on a host whose programs are Python's wheel: it brings none of them."""
    # `systemctl link` makes links of units that are installed below another prefix
    if all(system.has_unit(unit, UNIT_FOLDERS[1:]) or system.has_linked_unit(unit) for unit in units):
        return
    has_mock = any(group.gr_name == "mock" for group in grp.getgrall())
    users = ["reimzul", *(["reimzul-builder"] if role == "builder" and has_mock else [])]
    for name in users:
        path = f"/etc/sysusers.d/{name}.conf"
        yield FileSpec(path=path, text=read_template(f"{name}.sysusers", "systemd"), then=("systemd-sysusers", path))
    path = "/etc/tmpfiles.d/reimzul.conf"
    text = read_template("reimzul.tmpfiles", "systemd")
    yield FileSpec(path=path, text=text, then=("systemd-tmpfiles", "--create", path))
    programs = str(Path(sys.argv[0]).absolute().parent)
    for unit in list_units():
        text = set_program_folder(read_template(unit, "systemd"), programs)
        yield FileSpec(path=f"{UNIT_FOLDERS[0]}/{unit}", text=text)


def _common_files(role: str, options: RoleOptions) -> Iterator[FileSpec]:
    sysctl = read_template("sysctl-reimzul.conf")
    yield FileSpec(path="/etc/sysctl.d/90-reimzul.conf", text=sysctl, restarts=("systemd-sysctl",))
    yield FileSpec(path=_drop_in(TUNNEL), text=read_template("stunnel-service.conf"), restarts=(TUNNEL,))
    yield from _own_key_file(options)
    if PORTS[role]:
        yield accepted_keys_file(options)
    yield FileSpec(path=TUNNELS, text=fill_tunnels(role, options.hosts), restarts=(TUNNEL,))


def _controller_files(system: System, options: RoleOptions) -> Iterator[FileSpec]:
    yield FileSpec(path=_drop_in("beanstalkd"), text=read_template("beanstalkd-service.conf"), restarts=("beanstalkd",))
    yield from _nginx_files(system, "controller")
    backup = "/etc/reimzul/logrotate.before-reimzul"  # logrotate would read it beside ours
    yield FileSpec(path="/etc/logrotate.d/reimzul", text=read_template("logrotate-reimzul"), backup=backup)


def _bstore_files(system: System, options: RoleOptions) -> Iterator[FileSpec]:
    rsync = _rsync_unit(system)
    yield FileSpec(path=FOLDERS, text=read_template("tmpfiles-bstore.conf"))
    yield FileSpec(path="/etc/rsyncd.conf", text=read_template("rsyncd.conf"), restarts=(rsync,))
    yield FileSpec(path=_drop_in(rsync), text=read_template("rsync-service.conf"), restarts=(rsync,))
    yield from _nginx_files(system, "bstore")
    if options.public_port:
        text = set_nginx_port(read_template("nginx-public.conf"), options.public_port)
        yield FileSpec(path=PUBLIC, text=text, restarts=("nginx",))


_FILES = {"controller": _controller_files, "bstore": _bstore_files}


def _nginx_files(system: System, role: str) -> Iterator[FileSpec]:
    text = read_template(f"nginx-{role}.conf")
    yield FileSpec(path="/etc/nginx/conf.d/reimzul.conf", text=text, restarts=("nginx",))
    path = "/etc/nginx/nginx.conf"
    present = system.text(path) or ""
    text = remove_stock_server(present)
    if text != present:
        yield FileSpec(path=path, text=text, patched=True, backup=f"{path}.before-reimzul", restarts=("nginx",))


def _event_keys_file(options: RoleOptions, units: Sequence[str]) -> Iterator[FileSpec]:
    if options.event_keys:
        readers = tuple(unit for unit in units if unit != "reimzul-signer")
        path, text = event_keys.PATH, options.event_keys
        yield FileSpec(path=path, text=text, mode=0o640, group=event_keys.GROUP, secret=True, reloads=readers)


def _settings_file(system: System, options: RoleOptions, readers: tuple[str, ...]) -> Iterator[FileSpec]:
    present = system.text(SETTINGS)
    if options.settings or present is None:
        text = ini.set_values(config.sample_text() if present is None else present, options.settings)
        mode = 0o640 if present is None else system.mode(SETTINGS)
        yield FileSpec(path=SETTINGS, text=text, mode=mode, group="reimzul", patched=True, reloads=readers)


def _files_to_remove(role: str, system: System, options: RoleOptions) -> Iterator[tuple[str, str]]:
    if role != "builder" and system.resolve(STOCK_SITE).is_symlink():
        yield STOCK_SITE, "nginx"
    if role == "bstore":
        if not options.public_port and system.resolve(PUBLIC).exists():
            yield PUBLIC, "nginx"
        # an earlier version had rsyncd show workers of the original another folder as repo/
        bind_mount = _drop_in(_rsync_unit(system), "reimzul-originals")
        if system.resolve(bind_mount).exists():
            yield bind_mount, _rsync_unit(system)
    if role == "controller":
        yield from _unused_own_key(system, options)


def _unused_own_key(system: System, options: RoleOptions) -> Iterator[tuple[str, str]]:
    if not options.own_key and system.resolve(OWN_KEY).exists():
        yield OWN_KEY, TUNNEL


def _drop_in(unit: str, name: str = "reimzul") -> str:
    return f"{UNIT_FOLDERS[0]}/{unit}.service.d/{name}.conf"


# --- units


def _backend_services(role: str, system: System) -> Sequence[str]:
    """Services of others that a role needs."""
    return {"controller": ("beanstalkd", "nginx"), "bstore": (_rsync_unit(system), "nginx"), "builder": ()}[role]


def _role_units(role: str, instances: int) -> tuple[str, ...]:
    return (*(f"{_INSTANCES[role]}@{number}" for number in range(1, instances + 1)), *_SINGLE_UNITS.get(role, ()))


def _rsync_unit(system: System) -> str:
    return system.first_installed_unit(("rsync", "rsyncd"))  # Debian's name, and that of Fedora and EL


def _conflicting_units(role: str, system: System) -> Iterator[str]:
    """Debian's other ways to start the same programs, which would take their ports."""
    if role == "controller" and system.is_wanted("beanstalkd.socket"):
        yield "beanstalkd.socket"
    if not system.has_other_tunnels() and any(system.resolve("/etc").glob("rc?.d/S??stunnel4")):
        yield "stunnel4"  # it starts every /etc/stunnel/*.conf


def _surplus_instances(role: str, system: System, instances: int) -> Iterator[str]:
    template = _INSTANCES.get(role, "")
    for number in system.instances(template) if template else ():
        if number > instances:
            yield f"{template}@{number}"

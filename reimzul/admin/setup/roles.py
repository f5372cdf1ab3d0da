# SPDX-License-Identifier: Apache-2.0
"""Plans the files, units and ports that each role needs on its host. Nothing is changed here."""

from __future__ import annotations

import grp
import os
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from importlib import resources
from pathlib import Path

import attr

from reimzul.admin.setup import ini, psk
from reimzul.admin.setup.files import UNIT_FOLDERS, FileSpec, System, is_ours, unit_file
from reimzul.core import config
from reimzul.core.cli import local_hostname
from reimzul.core.errors import InputError
from reimzul.core.setting_parsers import parse_optional_url
from reimzul.core.validators import quoted

TUNNEL = "stunnel@reimzul"
TUNNELS = "/etc/stunnel/reimzul.conf"
#: A host's own key, and those it accepts.
OWN_KEY = "/etc/stunnel/reimzul-psk.txt"
ACCEPTED = "/etc/stunnel/reimzul-psk-all.txt"
SETTINGS = str(config.DEFAULT_FILE)

#: Debian enables it by itself: a link to a file that stays where it is.
STOCK_SITE = "/etc/nginx/sites-enabled/default"
#: What the file holds, without comments, as Debian and Ubuntu ship it.
_STOCK_SITE_TEXT = (
    "server { listen 80 default_server; listen [::]:80 default_server; root /var/www/html; "
    "index index.html index.htm index.nginx-debian.html; server_name _; location / { try_files $uri $uri/ =404; } }"
)
#: bstore's folders, for systemd-tmpfiles.
FOLDERS = "/etc/tmpfiles.d/reimzul-bstore.conf"
#: repo/ for everybody.
PUBLIC = "/etc/nginx/conf.d/reimzul-public.conf"
#: The root of links to repo/, which nginx gives to the controller.
PUBLIC_URL = "/etc/reimzul/public-url"
#: The farm's pages for everybody, and the daemon that makes them.
PAGES, PAGES_UNIT = "/etc/nginx/conf.d/reimzul-pages.conf", "reimzul-pages"
#: What other hosts reach: docs/install.md, "Ports".
PORTS = {"controller": (13100, 11080), "bstore": (11874, 11081), "builder": ()}

#: The unit of a role that may run several times, and the one that runs once.
_INSTANCES = {"bstore": "reimzul-repogen-worker", "builder": "reimzul-worker"}
_SINGLE_UNITS = {"controller": ("reimzul-notifier", "reimzul-batch"), "bstore": ("reimzul-signer",)}
#: What stands for a host in conf/stunnel-*.conf, by the port that is connected to there.
_PEERS_BY_PORT = {"13100": "CONTROLLER", "11081": "BSTORE"}
#: Characters that nginx would not read as themselves in a path or a URL.
_UNUSABLE_IN_NGINX = re.compile(r"""[\s"'\\$;{}]""")
#: A section that only this role's configuration of stunnel has.
_SECTIONS = {"controller": "beanstalkd-server", "bstore": "rsyncd-server", "builder": "rsyncd"}

#: What git takes as a repository, and could never take as an option.
_GIT_URL = re.compile(
    r"(?:(?:https?|ssh|git|file)://|[A-Za-z0-9_][A-Za-z0-9._-]*@[A-Za-z0-9][A-Za-z0-9.-]*:|/)[^\s\x00-\x1f]+\Z"
)


@attr.frozen(kw_only=True)
class RolePlan:
    """All that a role, or a change of keys, needs on this host."""

    files: tuple[FileSpec, ...] = ()
    units: tuple[str, ...] = ()  #: in the order they are started in
    unwanted: tuple[str, ...] = ()  #: units to disable
    removed: Mapping[str, str] = attr.field(factory=dict)  #: files to remove, and the unit that has to notice
    ports: tuple[int, ...] = ()
    closed_ports: tuple[int, ...] = ()  #: that an earlier run opened


_PAST_TENSES = {"make": "made", "stop": "stopped"}


@attr.frozen(kw_only=True)
class Step:
    """One command of a setup."""

    argv: tuple[str, ...]
    description: str  #: for a person, beginning with a verb: "enable nginx"
    hint: str = ""  #: where to look when it fails
    unit: str = ""  #: the unit that runs with its present files once the command succeeds

    @property
    def done_text(self) -> str:
        """The description in the past tense."""
        verb, _, rest = self.description.partition(" ")
        past = _PAST_TENSES.get(verb) or f"{verb}{'d' if verb.endswith('e') else 'ed'}"
        return f"{past} {rest}"


@attr.frozen(kw_only=True)
class RoleOptions:
    """What a person asked for, or what holds since the last run."""

    hosts: Mapping[str, str] = attr.field(factory=dict)  #: the names of CONTROLLER and BSTORE
    own_key: str = ""  #: the text of the host's own key file
    keys: psk.KeyResult = attr.field(factory=psk.KeyResult)  #: the keys that the host accepts
    instances: int = 0  #: of the role's unit that may run several times
    public_port: int = 0  #: where bstore serves repo/ to everybody; 0: nowhere
    public_url: str = ""  #: what people reach it by
    pages_port: int = 0  #: where the controller serves the farm's pages to everybody; 0: nowhere
    settings: ini.Settings = attr.field(factory=dict)  #: to be set in reimzul.ini
    event_keys: str = ""  #: the text of the file of the keys of events; empty: it stays as it is
    services: RolePlan = attr.field(factory=RolePlan)  #: what further services need: mosquitto


def plan_role(role: str, system: System, options: RoleOptions) -> RolePlan:
    template, further = _INSTANCES.get(role, ""), options.services
    daemons = _role_units(role, options.instances)
    ours = (*daemons, *((PAGES_UNIT,) if options.pages_port else ()))
    surplus = [f"{template}@{n}" for n in system.instances(template) if n > options.instances]
    files = (
        *_missing_packaged_files(role, system, ours),
        *_role_files(role, system, options),
        *_event_keys_file(options, daemons),
        *_settings_file(system, options, ours),
        *further.files,
    )
    public = tuple(filter(None, (options.public_port, options.pages_port)))
    former = (current_port(system, path) for path in (PUBLIC, PAGES))
    return RolePlan(
        files=files,
        units=(*_backends(role, system), *further.units, TUNNEL, *ours),
        unwanted=(*_conflicting_units(role, system), *surplus, *_ended_units(role, system, options)),
        removed=_files_to_remove(role, system, options),
        ports=(*PORTS[role], *public, *further.ports),
        closed_ports=tuple(port for port in former if port and port not in public),
    )


def plan_keys(role: str, system: System, options: RoleOptions, new_own_key: bool = False) -> RolePlan:
    """A change of keys, on a host that is set up.

    With `new_own_key` the controller's way to the store changes too, without disturbing connections that are open.
    """
    files, removed = [accepted_keys_file(options)], {}
    if new_own_key:
        tunnels = FileSpec(path=TUNNELS, text=fill_tunnels("controller", options.hosts))
        files += (attr.evolve(file, restarts=(), reloads=(TUNNEL,)) for file in (*_own_key_file(options), tunnels))
        removed = {OWN_KEY: TUNNEL} if not options.own_key and system.resolve(OWN_KEY).exists() else {}
    ours = _role_units(role, len(system.instances(_INSTANCES.get(role, "")))) if options.event_keys else ()
    if ours:
        files += (*_event_keys_file(options, ours), *_settings_file(system, options, ours))
    return RolePlan(files=tuple(files), units=(TUNNEL, *ours), removed=removed)


def list_units(role: str, system: System) -> list[str]:
    """The units of a role that are enabled on this host, in the order they are started in."""
    instances = (f"{_INSTANCES.get(role)}@{n}" for n in system.instances(_INSTANCES.get(role, "")))
    pages = (PAGES_UNIT,) if role == "controller" and current_port(system, PAGES) else ()
    return [*_backends(role, system), TUNNEL, *instances, *_SINGLE_UNITS.get(role, ()), *pages]


def _backends(role: str, system: System) -> tuple[str, ...]:
    return {"controller": ("beanstalkd", "nginx"), "bstore": (_rsync_unit(system), "nginx")}.get(role, ())


def _role_units(role: str, instances: int) -> tuple[str, ...]:
    return (*(f"{_INSTANCES.get(role)}@{n}" for n in range(1, instances + 1)), *_SINGLE_UNITS.get(role, ()))


# --- what holds since the last run


def find_role(tunnels: str) -> str:
    """The role that a configuration of stunnel belongs to; empty if it is none of ours."""
    return next((role for role, section in _SECTIONS.items() if f"\n[{section}]\n" in tunnels), "")


def find_hosts(tunnels: str) -> dict[str, str]:
    """The names of CONTROLLER and BSTORE in a configuration of stunnel."""
    found = re.findall(r"^connect = ([^\s:]+):(\d+)$", tunnels, re.MULTILINE)
    unknown = ("127.0.0.1", *_PEERS_BY_PORT.values())
    return {_PEERS_BY_PORT[port]: host for host, port in found if port in _PEERS_BY_PORT and host not in unknown}


def current_port(system: System, path: str) -> int:
    """The port where `PUBLIC` or `PAGES` has nginx serve everybody; 0 if the file does not exist."""
    found = re.search(r"^    listen (\d+);$", system.text(path) or "", re.MULTILINE)
    return int(found[1]) if found else 0


def find_public_url(given: str | None, port: int, own_name: str, system: System) -> str:
    """What people reach repo/ by: what was set, else this host's name at the public port. Raises `InputError`."""
    text = current_setting(system, "bstore", "public_url") if given is None else given
    try:
        url = parse_optional_url(text)
    except ValueError as error:
        raise InputError(f"[bstore] public_url: {error}") from None
    return url or _make_url(own_name, port)


def _make_url(own_name: str, port: int) -> str:
    """The URL of this host's web server at a port for everybody; empty without a port."""
    names = (own_name, local_hostname())
    host = next((name for name in names if "." in name), own_name)
    return f"http://{host}{'' if port == 80 else f':{port}'}/" if port else ""


def find_pages_url(port: int | None, own_name: str, system: System) -> str | None:
    """What [pages] url has to be once the pages are at a new port, or at none with 0; None: it stays as it is.

    A URL that a person has set stays while there are pages: a proxy may serve them.
    """
    if port is None:
        return None
    present = current_setting(system, "pages", "url")
    was_made = present in ("", _make_url(own_name, current_port(system, PAGES)))
    return _make_url(own_name, port) if was_made or not port else None


def current_accepted_keys(system: System) -> dict[str, str]:
    """The keys this host accepts; the one of nobody is always among them."""
    keys = psk.parse_keys(system.text(ACCEPTED) or "", ACCEPTED)
    return {psk.NOBODY: keys.get(psk.NOBODY) or psk.new_secret(), **keys}


def current_setting(system: System, section: str, key: str) -> str:
    """A setting's text in reimzul.ini; its default if it is not set."""
    return ini.get_value(system.text(SETTINGS) or "", section, key)


def find_old_uploads(system: System) -> str:
    """Where a store keeps uploads of the original's workers, which nobody publishes any more; empty without any."""
    folder = f"{current_setting(system, 'bstore', 'root')}/originals"
    uploads = list(system.resolve(folder).glob("*/*"))
    return f"{len(uploads)} package{'s' if len(uploads) > 1 else ''} in {folder}" if uploads else ""


# --- folders


def folder_steps(system: System) -> Iterator[Step]:
    """Make the folders that rsyncd writes to, if one is missing."""
    paths = re.findall(r"^d (\S+)", read_template("tmpfiles-bstore.conf"), re.MULTILINE)
    if system.running and not all(system.resolve(path).is_dir() for path in paths):
        yield Step(argv=("systemd-tmpfiles", "--create", FOLDERS), description=f"make the folders of {FOLDERS}")


def batch_folder_steps(system: System) -> Iterator[Step]:
    """Make the folder of batches' plans, if incoming/ is not where the package has made one."""
    incoming = current_setting(system, "incoming", "folder")
    folder = f"{incoming}/.batches"
    if system.running and system.resolve(incoming).is_dir() and not system.resolve(folder).is_dir():
        argv = ("install", "-d", "-m", "3775", "-o", "reimzul", "-g", "reimzul", folder)
        yield Step(argv=argv, description=f"make {folder}")


def parse_git_url(url: str) -> str:
    """Raises `InputError` for what git could not take as a repository."""
    if not _GIT_URL.match(url):
        raise InputError(f"{quoted(url)} is not where a git repository is, as https://git.example.org/mock_configs")
    return url


def clone_steps(system: System, url: str | None) -> list[Step]:
    """Clone mock's configurations, as the user who pulls them before each build. Raises `InputError`."""
    if url is None:
        return []
    parse_git_url(url)
    folder = current_setting(system, "worker", "mock_configs")
    if system.resolve(f"{folder}/.git").exists():
        _require_origin(system, folder, url)
        return []
    if not system.running:
        return []
    # HOME: root's is closed to that user
    git = ("env", "HOME=/srv/reimzul", "GIT_TERMINAL_PROMPT=0", "git", "clone", "--quiet", "--", url, folder)
    argv = ("runuser", "-u", "reimzul", "--", *git)
    steps = [Step(argv=argv, description=f"clone mock's configurations into {folder}")]
    if not system.resolve(folder).exists():  # that user cannot make it
        make = ("install", "-d", "-o", "reimzul", "-g", "reimzul", folder)
        steps.insert(0, Step(argv=make, description=f"make {folder}"))
    return steps


def _require_origin(system: System, folder: str, url: str) -> None:
    """Raises `InputError` for a checkout of another repository: setup leaves a checkout alone."""
    settings = system.text(f"{folder}/.git/config") or ""
    found = re.search(r'^\[remote "origin"\]\n(?:\s.*\n)*?\s*url = (.*)$', settings, re.MULTILINE)
    if found and found[1] != url:
        raise InputError(
            f"mock's configurations in {folder} were cloned from {found[1]}; to have them from elsewhere: "
            f"runuser -u reimzul -- git -C {folder} remote set-url origin {url}"
        )


# --- files


def read_template(name: str, folder: str = "conf") -> str:
    """A file of conf/ or systemd/."""
    return (resources.files("reimzul") / "data" / folder / name).read_text(encoding="utf-8")


def _template_file(path: str, name: str, *restarts: str) -> FileSpec:
    return FileSpec(path=path, text=read_template(name), restarts=restarts)


def _drop_in(unit: str, template: str) -> FileSpec:
    return _template_file(f"{UNIT_FOLDERS[0]}/{unit}.service.d/reimzul.conf", template, unit)


def accepted_keys_file(options: RoleOptions) -> FileSpec:
    """The keys a host accepts. A revoked host is disconnected by a restart; a new key disturbs nobody."""
    return FileSpec(
        path=ACCEPTED,
        text=psk.format_keys(options.keys.keys),
        mode=0o600,
        secret=True,
        restarts=(TUNNEL,) if options.keys.revoked else (),
        reloads=(TUNNEL,),
    )


def _own_key_file(options: RoleOptions) -> Iterator[FileSpec]:
    if options.own_key:
        yield FileSpec(path=OWN_KEY, text=options.own_key, mode=0o600, secret=True, restarts=(TUNNEL,))


def fill_tunnels(role: str, hosts: Mapping[str, str]) -> str:
    """A role's configuration of stunnel. `hosts` has the names of CONTROLLER and BSTORE.

    A controller that does not know bstore does not connect to it.
    """
    text = read_template(f"stunnel-{role}.conf")
    if role == "controller" and "BSTORE" not in hosts:
        text = "\n\n".join(part for part in text.split("\n\n") if "\nconnect = BSTORE:" not in part) + "\n"
    return re.sub(r"^connect = ([A-Z]+):", lambda peer: f"connect = {hosts[peer[1]]}:", text, flags=re.MULTILINE)


def _missing_packaged_files(role: str, system: System, units: Sequence[str]) -> Iterator[FileSpec]:
    """Units, user and folders, on a host whose programs are Python's wheel: it brings none of them."""
    # `systemctl link` makes links of units that are installed below another prefix
    linked = [unit for unit in units if system.resolve(f"{UNIT_FOLDERS[0]}/{unit_file(unit)}").is_symlink()]
    if all(unit in linked or system.has_unit(unit, UNIT_FOLDERS[1:]) for unit in units):
        return
    has_mock = any(group.gr_name == "mock" for group in grp.getgrall())
    for user in ("reimzul", *(["reimzul-builder"] if role == "builder" and has_mock else [])):
        path = f"/etc/sysusers.d/{user}.conf"
        yield FileSpec(path=path, text=read_template(f"{user}.sysusers", "systemd"), then=("systemd-sysusers", path))
    path = "/etc/tmpfiles.d/reimzul.conf"
    text = read_template("reimzul.tmpfiles", "systemd")
    yield FileSpec(path=path, text=text, then=("systemd-tmpfiles", "--create", path))
    programs = Path(sys.argv[0]).absolute().parent
    for name in sorted(entry.name for entry in (resources.files("reimzul") / "data" / "systemd").iterdir()):
        if name.endswith((".service", ".target", ".timer")):
            # the documentation is where `make install` puts it, so not here
            text = re.sub(r"^Documentation=.*\n", "", read_template(name, "systemd"), flags=re.MULTILINE)
            text = text.replace("\nExecStart=/usr/local/bin/", f"\nExecStart={programs}/")
            yield FileSpec(path=f"{UNIT_FOLDERS[0]}/{name}", text=text)


def _role_files(role: str, system: System, options: RoleOptions) -> Iterator[FileSpec]:
    yield _template_file("/etc/sysctl.d/90-reimzul.conf", "sysctl-reimzul.conf", "systemd-sysctl")
    yield _drop_in(TUNNEL, "stunnel-service.conf")
    yield from _own_key_file(options)
    if PORTS[role]:
        yield accepted_keys_file(options)
    yield FileSpec(path=TUNNELS, text=fill_tunnels(role, options.hosts), restarts=(TUNNEL,))
    if role == "controller":
        yield _drop_in("beanstalkd", "beanstalkd-service.conf")
        yield from _nginx_files(role, system)
        backup = "/etc/reimzul/logrotate.before-reimzul"  # logrotate would read it beside ours
        yield attr.evolve(_template_file("/etc/logrotate.d/reimzul", "logrotate-reimzul"), backup=backup)
    elif role == "bstore":
        rsync = _rsync_unit(system)
        yield _template_file(FOLDERS, "tmpfiles-bstore.conf")
        yield _template_file("/etc/rsyncd.conf", "rsyncd.conf", rsync)
        yield _drop_in(rsync, "rsync-service.conf")
        yield from _nginx_files(role, system)
    if options.public_port:
        text = read_template("nginx-public.conf").replace("    listen 80;\n", f"    listen {options.public_port};\n")
        yield FileSpec(path=PUBLIC, text=text, restarts=("nginx",))
    if options.pages_port:
        yield FileSpec(path=PAGES, text=_fill_pages(system, options), restarts=("nginx",))
    if options.public_url:
        yield FileSpec(path=PUBLIC_URL, text=f"{options.public_url}\n")


def _nginx_files(role: str, system: System) -> Iterator[FileSpec]:
    yield _template_file("/etc/nginx/conf.d/reimzul.conf", f"nginx-{role}.conf", "nginx")
    path = "/etc/nginx/nginx.conf"
    present = system.text(path) or ""
    text = remove_stock_server(present)
    if text != present:
        yield FileSpec(path=path, text=text, patched=True, backup=f"{path}.before-reimzul", restarts=("nginx",))


def _fill_pages(system: System, options: RoleOptions) -> str:
    """The server block of the pages: their port, their folder, and the store as this host reaches it."""

    def find_setting(section: str, key: str) -> str:
        text = options.settings.get((section, key)) or current_setting(system, section, key)
        if found := _UNUSABLE_IN_NGINX.search(text):
            raise InputError(f"[{section}] {key}: nginx does not accept {found[0]!r} there")
        return text.rstrip("/")

    # nginx would try both addresses that localhost has, and stunnel listens on one
    store = find_setting("bstore", "base_url").replace("//localhost", "//127.0.0.1", 1)
    changes = {
        "    listen 80;": f"    listen {options.pages_port};",
        "/srv/reimzul/pages": find_setting("pages", "folder"),
        "http://127.0.0.1:11081/bstore/": store.removesuffix("repo"),
    }
    text = read_template("nginx-pages.conf")
    for old, new in changes.items():
        text = text.replace(old, new)
    return text


def remove_stock_server(text: str) -> str:
    """nginx.conf as Fedora and EL ship it, without its server on all addresses of port 80."""
    for block in re.findall(r"^    server \{\n(?:.*\n)*?    \}\n", text, re.MULTILINE):
        if re.search(r"^ +listen +80;", block, re.MULTILINE) and "/usr/share/nginx/html;" in block:
            text = text.replace(block, "")
    return text


def _event_keys_file(options: RoleOptions, units: Sequence[str]) -> Iterator[FileSpec]:
    if options.event_keys:
        path, text = psk.EVENT_KEYS, options.event_keys
        readers = tuple(unit for unit in units if unit not in ("reimzul-signer", "reimzul-batch"))
        yield FileSpec(path=path, text=text, mode=0o640, group="reimzul-store", secret=True, reloads=readers)


def _settings_file(system: System, options: RoleOptions, readers: tuple[str, ...]) -> Iterator[FileSpec]:
    present = system.text(SETTINGS)
    settings = {**options.settings, **({("farm", "event_keys"): psk.EVENT_KEYS} if options.event_keys else {})}
    if settings or present is None:
        text = ini.set_values(config.sample_text() if present is None else present, settings)
        mode = 0o640 if present is None else system.mode(SETTINGS)
        yield FileSpec(path=SETTINGS, text=text, mode=mode, group="reimzul", patched=True, reloads=readers)


def _files_to_remove(role: str, system: System, options: RoleOptions) -> dict[str, str]:
    rsync = _rsync_unit(system)
    rows = (
        (STOCK_SITE, "nginx", role != "builder"),
        (PUBLIC, "nginx", role == "bstore" and not options.public_port),
        (PUBLIC_URL, "", role == "bstore" and not options.public_url),
        (PAGES, "nginx", role == "controller" and not options.pages_port),
        # an earlier version had rsyncd show workers of the original another folder as repo/
        (f"{UNIT_FOLDERS[0]}/{rsync}.service.d/reimzul-originals.conf", rsync, role == "bstore"),
        (OWN_KEY, TUNNEL, role == "controller" and not options.own_key),
    )
    return {path: unit for path, unit, unwanted in rows if unwanted and os.path.lexists(system.resolve(path))}


def is_foreign(system: System, path: str) -> bool:
    """Whether a file that setup would remove is a person's."""
    if path == STOCK_SITE:
        rows = (row.partition("#")[0] for row in read_site(system, path).splitlines())
        return " ".join(" ".join(rows).split()) not in ("", _STOCK_SITE_TEXT)
    return path in (PUBLIC, PAGES) and not is_ours(system, path)


def read_site(system: System, path: str) -> str:
    """The text of one of nginx's sites, mostly a link; empty if what it leads to does not exist."""
    file = system.resolve(path)
    if file.is_symlink():
        path = os.path.normpath(os.path.join(os.path.dirname(path), os.readlink(file)))
    return system.text(path) or ""


# --- units


def _rsync_unit(system: System) -> str:
    """Debian's name of it, or that of Fedora and EL."""
    return next((name for name in ("rsync", "rsyncd") if system.has_unit(name)), "rsync")


def _ended_units(role: str, system: System, options: RoleOptions) -> Iterator[str]:
    """Daemons that are no longer asked for. A person may have enabled one without setup: that one stays."""
    if role == "controller" and not options.pages_port and current_port(system, PAGES):
        yield PAGES_UNIT


def _conflicting_units(role: str, system: System) -> Iterator[str]:
    """Debian's other ways to start the same programs, which would take their ports."""
    if role == "controller" and any(system.resolve(UNIT_FOLDERS[0]).glob("*.wants/beanstalkd.socket")):
        yield "beanstalkd.socket"
    others = [file for file in system.resolve("/etc/stunnel").glob("*.conf") if file.name != "reimzul.conf"]
    if not others and any(system.resolve("/etc").glob("rc?.d/S??stunnel4")):
        yield "stunnel4"  # it starts every /etc/stunnel/*.conf

# SPDX-License-Identifier: Apache-2.0
"""What each role wants of its host: files, units, ports. The table of a farm's set-up; nothing is done here."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence

import attr

from reimzul.admin.setup import ini, keys
from reimzul.admin.setup.files import Wanted
from reimzul.admin.setup.system import System
from reimzul.admin.setup.templates import (
    hosts_in,
    listening_publicly,
    role_of,
    template,
    tunnels,
    without_stock_server,
)
from reimzul.core import config
from reimzul.core.errors import InputError

TUNNEL = "stunnel@reimzul"
TUNNELS = "/etc/stunnel/reimzul.conf"
#: A host's own key, and those it accepts.
OWN_KEY = "/etc/stunnel/reimzul-psk.txt"
ACCEPTED = "/etc/stunnel/reimzul-psk-all.txt"
SETTINGS = str(config.DEFAULT_FILE)
MOCK_CONFIGS = "/srv/reimzul/mock_configs"

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


@attr.frozen(kw_only=True)
class Plan:
    """All that a role, or an order about keys, wants of this host."""

    files: tuple[Wanted, ...]
    units: tuple[str, ...]  #: in the order they are started in
    unwanted: tuple[str, ...] = ()  #: units that are in the way
    removed: Mapping[str, str] = attr.field(factory=dict)  #: files that are in the way, and the unit that read them
    ports: tuple[int, ...] = ()


@attr.frozen(kw_only=True)
class Wishes:
    """What a person said, or what is there from the last time."""

    hosts: Mapping[str, str] = attr.field(factory=dict)  #: what CONTROLLER and BSTORE stand for
    own_key: str = ""  #: the text of the host's own key file
    accepted: str = ""  #: the text of the file of keys it accepts
    cut: bool = False  #: somebody who may be connected is shut out
    instances: int = 0  #: of the role's unit that may run several times
    public_port: int = 0  #: where bstore serves repo/ to everybody; 0: nowhere
    originals: bool = False  #: workers of the original upload to bstore
    settings: ini.Settings = attr.field(factory=dict)  #: what reimzul.ini has to say
    more: tuple[Wanted, ...] = ()
    more_units: tuple[str, ...] = ()
    more_ports: tuple[int, ...] = ()


def plan(role: str, system: System, wishes: Wishes) -> Plan:
    """What a role wants."""
    ours = _ours(role, wishes.instances)
    files = [*_everywhere(role, wishes), *_FILES[role](system, wishes), *_settings(system, wishes, ours), *wishes.more]
    public = (wishes.public_port,) if wishes.public_port else ()
    return Plan(
        files=tuple(files),
        units=(*_below(role, system), *wishes.more_units, TUNNEL, *ours),
        unwanted=(*_in_the_way(role, system), *_too_many(system, _INSTANCES.get(role, ""), wishes.instances)),
        removed=dict(_to_be_removed(role, system, wishes)),
        ports=(*PORTS[role], *public, *wishes.more_ports),
    )


def _to_be_removed(role: str, system: System, wishes: Wishes) -> Iterator[tuple[str, str]]:
    if role != "builder" and system.at(STOCK_SITE).is_symlink():
        yield STOCK_SITE, "nginx"
    if role == "bstore" and not wishes.public_port and system.at(PUBLIC).exists():
        yield PUBLIC, "nginx"
    originals = _drop_in(_rsync(system), "reimzul-originals")
    if role == "bstore" and not wishes.originals and system.at(originals).exists():
        yield originals, _rsync(system)
    if role == "controller":
        yield from _without_own_key(system, wishes)


def _without_own_key(system: System, wishes: Wishes) -> Iterator[tuple[str, str]]:
    if not wishes.own_key and system.at(OWN_KEY).exists():
        yield OWN_KEY, TUNNEL


def keys_only(system: System, wishes: Wishes) -> Plan:
    """What an order about keys wants of a host that is set up."""
    return Plan(files=(accepted(wishes),), units=(TUNNEL,))


def keys_and_way(system: System, wishes: Wishes) -> Plan:
    """The same of a controller whose own key is another now: a way that comes new disturbs none that is there."""
    ours = (*_own_key(wishes), Wanted(path=TUNNELS, text=tunnels("controller", wishes.hosts)))
    files = (accepted(wishes), *(attr.evolve(one, units=(), reloaded=(TUNNEL,)) for one in ours))
    return Plan(files=files, units=(TUNNEL,), removed=dict(_without_own_key(system, wishes)))


def remembered(system: System) -> tuple[str, dict[str, str]]:
    """The role this host was set up for, and the hosts that it names; empty where it is new."""
    text = system.text(TUNNELS) or ""
    return role_of(text), hosts_in(text)


def public_port(system: System) -> int:
    """Where this host serves repo/ to everybody; 0 where it does not."""
    found = re.search(r"^    listen (\d+);$", system.text(PUBLIC) or "", re.MULTILINE)
    return int(found[1]) if found else 0


def folders_missing(system: System) -> bool:
    """Whether a folder that rsyncd writes to is not there."""
    paths = re.findall(r"^d (\S+)", template("tmpfiles-bstore.conf"), re.MULTILINE)
    return not all(system.at(path).is_dir() for path in paths)


def original_workers(system: System, settings: ini.Settings) -> bool:
    """Whether workers of the original are there: as these settings have it, else those of this host."""
    said = settings.get(("farm", "original_workers"))
    text = ini.value_in(system.text(SETTINGS) or "", "farm", "original_workers") if said is None else said
    try:
        return config.parse_flag(text or "false")
    except ValueError as error:
        raise InputError(f"[farm] original_workers: {error}") from None


def accepted(wishes: Wishes) -> Wanted:
    """The keys a host accepts; who is shut out is cut off, who comes new disturbs nobody."""
    cut = (TUNNEL,) if wishes.cut else ()
    return Wanted(path=ACCEPTED, text=wishes.accepted, mode=0o600, secret=True, units=cut, reloaded=(TUNNEL,))


def _everywhere(role: str, wishes: Wishes) -> Iterator[Wanted]:
    yield Wanted(path="/etc/sysctl.d/90-reimzul.conf", text=template("sysctl-reimzul.conf"), units=("systemd-sysctl",))
    yield Wanted(path=_drop_in(TUNNEL), text=template("stunnel-service.conf"), units=(TUNNEL,))
    yield from _own_key(wishes)
    if PORTS[role]:
        yield accepted(wishes)
    yield Wanted(path=TUNNELS, text=tunnels(role, wishes.hosts), units=(TUNNEL,))


def _own_key(wishes: Wishes) -> Iterator[Wanted]:
    if wishes.own_key:
        yield Wanted(path=OWN_KEY, text=wishes.own_key, mode=0o600, secret=True, units=(TUNNEL,))


def _controller(system: System, wishes: Wishes) -> Iterator[Wanted]:
    yield Wanted(path=_drop_in("beanstalkd"), text=template("beanstalkd-service.conf"), units=("beanstalkd",))
    yield from _nginx(system, "controller")
    kept = "/etc/reimzul/logrotate.before-reimzul"  # logrotate would read it beside ours
    yield Wanted(path="/etc/logrotate.d/reimzul", text=template("logrotate-reimzul"), kept=kept)


def _bstore(system: System, wishes: Wishes) -> Iterator[Wanted]:
    yield Wanted(path=FOLDERS, text=template("tmpfiles-bstore.conf"))
    unit, which = _rsync(system), "-originals" if wishes.originals else ""
    yield Wanted(path="/etc/rsyncd.conf", text=template(f"rsyncd{which}.conf"), units=(unit,))
    yield Wanted(path=_drop_in(unit), text=template("rsync-service.conf"), units=(unit,))
    if wishes.originals:
        text = template("rsync-service-originals.conf")
        yield Wanted(path=_drop_in(unit, "reimzul-originals"), text=text, units=(unit,))
    yield from _nginx(system, "bstore")
    if wishes.public_port:
        text = listening_publicly(template("nginx-public.conf"), wishes.public_port)
        yield Wanted(path=PUBLIC, text=text, units=("nginx",))


def _drop_in(unit: str, name: str = "reimzul") -> str:
    return f"/etc/systemd/system/{unit}.service.d/{name}.conf"


def _builder(system: System, wishes: Wishes) -> Iterator[Wanted]:
    yield from ()


def _nginx(system: System, role: str) -> Iterator[Wanted]:
    yield Wanted(path="/etc/nginx/conf.d/reimzul.conf", text=template(f"nginx-{role}.conf"), units=("nginx",))
    main = system.text("/etc/nginx/nginx.conf") or ""
    if without_stock_server(main) != main:
        kept = "/etc/nginx/nginx.conf.before-reimzul"
        text = without_stock_server(main)
        yield Wanted(path="/etc/nginx/nginx.conf", text=text, edited=True, kept=kept, units=("nginx",))


def _settings(system: System, wishes: Wishes, readers: tuple[str, ...]) -> Iterator[Wanted]:
    present = system.text(SETTINGS)
    if wishes.settings or present is None:
        text = ini.changed(config.sample_text() if present is None else present, wishes.settings)
        mode = 0o640 if present is None else system.mode(SETTINGS)
        yield Wanted(path=SETTINGS, text=text, mode=mode, group="reimzul", edited=True, reloaded=readers)


_FILES = {"controller": _controller, "bstore": _bstore, "builder": _builder}

#: The unit of a role that may run several times.
_INSTANCES = {"bstore": "reimzul-repogen-worker", "builder": "reimzul-worker"}


def _below(role: str, system: System) -> Sequence[str]:
    """The services of others that a role stands on."""
    return {"controller": ("beanstalkd", "nginx"), "bstore": (_rsync(system), "nginx"), "builder": ()}[role]


def _ours(role: str, instances: int) -> tuple[str, ...]:
    single = {"controller": ("reimzul-notifier",), "bstore": ("reimzul-signer",), "builder": ()}[role]
    return (*(f"{_INSTANCES[role]}@{number}" for number in range(1, instances + 1)), *single)


def _rsync(system: System) -> str:
    return system.first_unit(("rsync", "rsyncd"))  # Debian's name, and that of Fedora and EL


def _in_the_way(role: str, system: System) -> Iterator[str]:
    """Debian's other ways to start the same programs, which would take their ports."""
    if role == "controller" and system.wanted_by_something("beanstalkd.socket"):
        yield "beanstalkd.socket"
    if not list(system.other_tunnels()) and any(system.at("/etc").glob("rc?.d/S??stunnel4")):
        yield "stunnel4"  # it starts every /etc/stunnel/*.conf


def _too_many(system: System, template_unit: str, instances: int) -> Iterator[str]:
    for number in system.instances(template_unit) if template_unit else ():
        if number > instances:
            yield f"{template_unit}@{number}"


def first_keys(present: str | None) -> dict[str, str]:
    """The keys a host accepts, with the one that is nobody's."""
    there = keys.parse(present or "", ACCEPTED)
    return {keys.NOBODY: there.get(keys.NOBODY) or keys.new(), **there}

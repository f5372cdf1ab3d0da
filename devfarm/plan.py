# SPDX-License-Identifier: Apache-2.0
"""What a farm on one machine consists of: its hosts, its folders, its ports, and the parts that run.

A host is what would be a machine: the parts that run on it, its own stunnel, its own reimzul.ini. Pure, but for the
ports, which are claimed when they are first named.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import attr

from devfarm.ports import ADDRESS, Ports
from reimzul.core.errors import InputError
from reimzul.core.store_paths import StorePaths

CONTROLLER, BSTORE = "controller", "bstore"
#: rsync's module and the paths of the http servers, as a real farm has them.
MODULE, INCOMING, STORE = "reimzul-bstore", "reimzul-incoming", "bstore"
TOPIC = "reimzul"
#: Who may speak MQTT, by the names in their certificates.
NOTIFIER, LISTENER = "notifier", "listener"

#: Services that a host offers to the others: name in the configuration -> who offers it.
SERVICES = {"beanstalkd": CONTROLLER, "incoming": CONTROLLER, "rsyncd": BSTORE, "store": BSTORE}

#: What none of the programs would read as itself in its configuration.
_UNUSABLE = frozenset("\"'\\$%#;{}\n\r\t")


@attr.frozen(kw_only=True)
class Host:
    """One machine of the farm."""

    name: str
    uses: tuple[str, ...]  #: services it reaches through its stunnel
    offers: tuple[str, ...] = ()  #: services it offers to the others
    prefix: tuple[str, ...] = ()  #: before its programs' command lines, as (ip, netns, exec, NAME)
    way: str = ADDRESS  #: the address at which it finds what the others offer

    @property
    def fqdn(self) -> str:
        """The name it goes by."""
        return f"{self.name}.farm.test"

    @property
    def is_builder(self) -> bool:
        """Whether workers run on it."""
        return self.name not in (CONTROLLER, BSTORE)


def hosts(builders: int, prefixes: Mapping[str, tuple[str, ...]], ways: Mapping[str, str]) -> list[Host]:
    """The farm's machines, as the table in architecture.md, section 1, has them."""
    offered = {name: tuple(s for s, host in SERVICES.items() if host == name) for name in (CONTROLLER, BSTORE)}
    # a real controller uploads nothing: here the doctor looks at all roles from it
    rows = [(CONTROLLER, tuple(SERVICES)), (BSTORE, ("beanstalkd", "store"))]
    rows += [(f"builder{number}", tuple(SERVICES)) for number in range(1, builders + 1)]
    return [
        Host(
            name=name,
            uses=uses,
            offers=offered.get(name, ()),
            prefix=prefixes.get(name, ()),
            way=ways.get(name, ADDRESS),
        )
        for name, uses in rows
    ]


@attr.frozen
class Layout:
    """The folders and files of a farm."""

    state: Path

    @property
    def conf(self) -> Path:
        """The configuration of every part."""
        return self.state / "conf"

    @property
    def keys(self) -> Path:
        """The keys of this run."""
        return self.state / "keys"

    @property
    def log(self) -> Path:
        """What every part says, a file a part."""
        return self.state / "log"

    @property
    def tmp(self) -> Path:
        """Temporary files of all parts."""
        return self.state / "tmp"

    @property
    def binlog(self) -> Path:
        """beanstalkd's jobs."""
        return self.state / "binlog"

    @property
    def mosquitto(self) -> Path:
        """What the MQTT broker keeps for those who are away."""
        return self.state / "mosquitto"

    @property
    def incoming(self) -> Path:
        """Source rpms that wait to be built."""
        return self.state / "incoming"

    @property
    def store(self) -> StorePaths:
        """The store."""
        return StorePaths(self.state / "bstore")

    @property
    def notifier(self) -> Path:
        """The notifier's ledger, and the history."""
        return self.state / "notifier"

    @property
    def history(self) -> Path:
        """What became of every build."""
        return self.notifier / "history.sqlite"

    @property
    def mock_configs(self) -> Path:
        """The git repository the builders' checkouts are pulled from."""
        return self.state / "mock_configs"

    def checkout(self, host: str) -> Path:
        """A builder's checkout of it."""
        return self.state / host / "mock_configs"

    def results(self, host: str) -> Path:
        """Where a builder builds."""
        return self.state / host / "results"

    def ini(self, host: str) -> Path:
        """A host's reimzul.ini."""
        return self.conf / f"{host}.ini"

    def part_log(self, part: str) -> Path:
        """What a part says."""
        return self.log / f"{part}.log"

    def folders(self) -> list[Path]:
        """All that has to be there before a part starts."""
        own = [self.conf, self.log, self.tmp, self.binlog, self.mosquitto, self.incoming, self.notifier]
        return [*own, *self.store.folders()]


def check_state(path: Path) -> Path:
    """A path that every program of the farm can be told in its own configuration. Raises `InputError`."""
    path = Path(os.path.abspath(path))
    bad = sorted(_UNUSABLE & set(str(path)))
    if bad or str(path) != str(path).strip():
        raise InputError(f"{path}: a state folder cannot have {bad[0] if bad else 'a space'!r} in its path")
    return path


@attr.frozen
class Plan:
    """One start of a farm: its layout, hosts and ports."""

    layout: Layout
    hosts: list[Host]
    ports: Ports

    def host(self, name: str) -> Host:
        """One machine by its name."""
        return next(host for host in self.hosts if host.name == name)

    def local(self, host: str, service: str) -> int:
        """The port at which a host finds a service: its stunnel's."""
        return self.ports[f"{host} {service}"]

    def tls(self, service: str) -> int:
        """The port at which a service is offered to other hosts."""
        return self.ports[f"tls {service}"]

    def plain(self, service: str) -> int:
        """The port the service itself listens on, at its own host alone."""
        return self.ports[f"plain {service}"]

    def incoming_url(self, host: str) -> str:
        """The incoming area as a host reaches it."""
        return f"http://{ADDRESS}:{self.local(host, 'incoming')}/{INCOMING}/"

    def store_url(self, host: str) -> str:
        """The store as a host reaches it; what http://repohost stands for."""
        return f"http://{ADDRESS}:{self.local(host, 'store')}/{STORE}/"

    def upload_url(self, host: str) -> str:
        """The rsync module as a host reaches it."""
        return f"rsync://{ADDRESS}:{self.local(host, 'rsyncd')}/{MODULE}/"

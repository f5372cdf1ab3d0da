# SPDX-License-Identifier: Apache-2.0
"""The plan of a farm on one machine: its hosts, folders and ports.

A host is what would be a machine: the parts that run on it, its own stunnel, its own reimzul.ini.

All ports are of loopback. The kernel gives ports from its ephemeral range to every outgoing connection, so a farm's
ports lie below it. Each farm claims a block of ports by an abstract unix socket: the claim holds for all users of a
network namespace and ends with the process. Another program may still take a port between our check and the start of
the part that is to listen there; the supervisor notices that, and the farm then takes another block.
"""

from __future__ import annotations

import contextlib
import os
import random
import socket
from collections.abc import Iterator, Mapping
from pathlib import Path

import attr

from reimzul.core.errors import InputError, ReimzulError
from reimzul.core.store_paths import StorePaths

ADDRESS = "127.0.0.1"
#: Ports of a block; a farm of sixteen builders needs some 80.
_BLOCK_SIZE = 128
_LOWEST_PORT = 10240
_TRIES = 200

CONTROLLER, BSTORE = "controller", "bstore"
TOPIC = "reimzul"
#: The MQTT clients, by the names in their certificates.
NOTIFIER, LISTENER = "notifier", "listener"
#: Services that a host offers to the others: name in the configuration -> host.
SERVICES = {"beanstalkd": CONTROLLER, "incoming": CONTROLLER, "rsyncd": BSTORE, "store": BSTORE}
#: Characters that one of the programs would not read as themselves in its configuration.
_UNUSABLE = frozenset("\"'\\$%#;{}\n\r\t")


@attr.frozen
class Host:
    name: str
    prefix: tuple[str, ...] = ()  #: before its programs' command lines, as (ip, netns, exec, NAME)
    address: str = ADDRESS  #: where it reaches what the others offer

    @property
    def fqdn(self) -> str:
        return f"{self.name}.farm.test"

    @property
    def is_builder(self) -> bool:
        return self.name not in (CONTROLLER, BSTORE)

    @property
    def uses(self) -> tuple[str, ...]:
        """Services it reaches through its stunnel."""
        # a real controller uploads nothing: here the doctor checks all roles on it
        return ("beanstalkd", "store") if self.name == BSTORE else tuple(SERVICES)

    @property
    def offers(self) -> tuple[str, ...]:
        """Services it offers to the others."""
        return tuple(service for service, host in SERVICES.items() if host == self.name)


def plan_hosts(builders: int, prefixes: Mapping[str, tuple[str, ...]], addresses: Mapping[str, str]) -> list[Host]:
    """A controller, a bstore and the builders."""
    names = [CONTROLLER, BSTORE, *(f"builder{number}" for number in range(1, builders + 1))]
    return [Host(name, prefixes.get(name, ()), addresses.get(name, ADDRESS)) for name in names]


class Layout:
    """The folders and files of a farm, all in its state folder."""

    def __init__(self, state: Path) -> None:
        self.state = state
        self.conf, self.keys, self.log, self.tmp = (state / name for name in ("conf", "keys", "log", "tmp"))
        self.binlog, self.mosquitto, self.incoming = (state / name for name in ("binlog", "mosquitto", "incoming"))
        self.store = StorePaths(state / "bstore")
        self.notifier = state / "notifier"
        self.history = self.notifier / "history.sqlite"
        self.pages = state / "pages"
        self.mock_configs = state / "mock_configs"  #: a git repository from which the builders' checkouts are pulled

    def checkout(self, host: str) -> Path:
        return self.state / host / "mock_configs"

    def results(self, host: str) -> Path:
        return self.state / host / "results"

    def ini(self, host: str) -> Path:
        return self.conf / f"{host}.ini"

    def part_log(self, part: str) -> Path:
        return self.log / f"{part}.log"

    def make_folders(self) -> None:
        own = [self.conf, self.log, self.tmp, self.binlog, self.mosquitto, self.incoming, self.notifier]
        for folder in [*own, *self.store.folders()]:
            folder.mkdir(parents=True, exist_ok=True)
        self.incoming.chmod(0o755)  # as an installed one, whatever the umask is


def check_state(path: Path) -> Path:
    """The state folder's absolute path. Raises `InputError` where a program could not read it in its configuration."""
    path = Path(os.path.abspath(path))
    bad = sorted(_UNUSABLE & set(str(path)))
    if bad or str(path) != str(path).strip():
        raise InputError(f"{path}: a state folder cannot have {bad[0] if bad else 'a space'!r} in its path")
    return path


class Ports(dict[str, int]):
    """A block of ports, claimed until it is closed; a port gets its name when it is first used."""

    def __init__(self, start: int, claim: socket.socket) -> None:
        super().__init__()
        self._free = _unused_ports(start)
        self.close = claim.close

    def __missing__(self, name: str) -> int:
        self[name] = next(self._free)
        return self[name]


def claim_ports() -> Ports:
    ephemeral = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    end = ephemeral if ephemeral > _LOWEST_PORT + 10 * _BLOCK_SIZE else 65536
    starts = range(_LOWEST_PORT, end - _BLOCK_SIZE, _BLOCK_SIZE)
    for start in random.sample(starts, min(_TRIES, len(starts))):
        claim = socket.socket(socket.AF_UNIX)
        try:
            claim.bind(f"\0reimzul-devfarm-{start}")
        except OSError:
            claim.close()
        else:
            return Ports(start, claim)
    raise ReimzulError(f"no free block of {_BLOCK_SIZE} ports from {_LOWEST_PORT} up: how many farms run here?")


def _unused_ports(start: int) -> Iterator[int]:
    for port in range(start, start + _BLOCK_SIZE):
        # without SO_REUSEADDR: a port that another program has just used is skipped
        with contextlib.suppress(OSError), contextlib.closing(socket.socket()) as probe:
            probe.bind((ADDRESS, port))
            probe.close()
            yield port
    raise ReimzulError(f"the ports from {start} to {start + _BLOCK_SIZE - 1} are used up")


@attr.frozen
class Plan:
    """One start of a farm: its layout, hosts and ports."""

    layout: Layout
    hosts: list[Host]
    ports: Ports
    has_pages: bool = False  #: whether the controller shows the farm in a browser

    def local(self, host: str, service: str) -> int:
        """The port at which a host reaches a service: its stunnel's."""
        return self.ports[f"{host} {service}"]

    def tls(self, service: str) -> int:
        """The port at which a service is offered to other hosts."""
        return self.ports[f"tls {service}"]

    def plain(self, service: str) -> int:
        """The port on which the service itself listens, on its own host alone."""
        return self.ports[f"plain {service}"]

    def incoming_url(self, host: str) -> str:
        return f"http://{ADDRESS}:{self.local(host, 'incoming')}/reimzul-incoming/"

    def store_url(self, host: str) -> str:
        """The store as a host reaches it; http://repohost stands for it."""
        return f"http://{ADDRESS}:{self.local(host, 'store')}/bstore/"

    @property
    def pages_url(self) -> str:
        return f"http://{ADDRESS}:{self.plain('pages')}/"

    def upload_url(self, host: str) -> str:
        return f"rsync://{ADDRESS}:{self.local(host, 'rsyncd')}/reimzul-bstore/"

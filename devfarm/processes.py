# SPDX-License-Identifier: Apache-2.0
"""The parts of a farm on one machine: what is run, where, and on which ports it listens."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path

import attr

from devfarm.configs import beanstalkd_command
from devfarm.plan import BSTORE, CONTROLLER, Host, Plan
from reimzul.core.errors import ProgramNotFound


@attr.frozen(kw_only=True)
class Part:
    """One program that runs as long as the farm does."""

    name: str
    host: str
    argv: tuple[str, ...]
    listens: tuple[int, ...] = ()  #: ports; none for our own daemons
    env: Mapping[str, str] = attr.field(factory=dict)

    @property
    def is_daemon(self) -> bool:
        """Whether it is one of our own programs."""
        return not self.listens


def find_program(name: str) -> str:
    """The path of a program, also of a service, which an ordinary user's PATH lacks. Raises `ProgramNotFound`."""
    found = shutil.which(name, path=f"{os.environ.get('PATH', os.defpath)}:/usr/local/sbin:/usr/sbin:/sbin")
    if not found:
        raise ProgramNotFound(f"{name} is not installed: tools/setup installs what a farm needs")
    return found


def own_program(name: str) -> str:
    """The path of one of our own commands, in the environment that this process runs in."""
    path = Path(sys.executable).with_name(name)
    if not path.exists():
        raise ProgramNotFound(f"{path} does not exist: tools/setup installs it")
    return str(path)


def infrastructure(plan: Plan, sync_ms: int) -> list[Part]:
    """What our daemons need, in the best order to start it."""
    hosts = {host.name: host for host in plan.hosts}

    def part(name: str, host: Host, ports: list[int], *argv: str) -> Part:
        command = (*host.prefix, find_program(argv[0]), *argv[1:])
        return Part(name=name, host=host.name, argv=command, listens=tuple(ports))

    # paths are relative to the state folder; -e: nginx would open its log in /var before it reads where ours is
    nginx = ("nginx", "-e", "stderr", "-p", f"{plan.layout.state}", "-c", "conf/nginx.conf")
    rsyncd = ("rsync", "--daemon", "--no-detach", "--config=conf/rsyncd.conf")
    mosquitto = ("mosquitto", "-c", "conf/mosquitto.conf")
    plain = {name: plan.plain(name) for name in ("beanstalkd", "incoming", "store", "rsyncd", "mqtt")}
    parts = [
        part("beanstalkd", hosts[CONTROLLER], [plain["beanstalkd"]], *beanstalkd_command(plan, sync_ms)),
        part("nginx", hosts[BSTORE], [plain["incoming"], plain["store"]], *nginx),
        part("rsyncd", hosts[BSTORE], [plain["rsyncd"]], *rsyncd),
        part("mosquitto", hosts[CONTROLLER], [plain["mqtt"]], *mosquitto),
    ]
    for host in plan.hosts:
        ports = [*map(plan.tls, host.offers), *(plan.local(host.name, name) for name in host.uses)]
        parts.append(part(f"stunnel-{host.name}", host, ports, "stunnel", f"conf/stunnel-{host.name}.conf"))
    return parts


def daemons(plan: Plan, workers: int, repogens: int) -> list[Part]:
    programs = [("notifier", CONTROLLER, "notifier")]
    programs += [(f"repogen-{number}", BSTORE, "repogen") for number in range(1, repogens + 1)]
    programs += [("tosign", BSTORE, "tosign")]
    for host in plan.hosts:
        numbers = range(1, workers + 1) if host.is_builder else ()
        programs += [(f"worker-{host.name}-{number}", host.name, "worker") for number in numbers]
    hosts = {host.name: host for host in plan.hosts}
    return [
        Part(
            name=name,
            host=host,
            argv=(*hosts[host].prefix, own_program(f"reimzul-{program}"), "--config", str(plan.layout.ini(host))),
            env={"REIMZUL_FQDN": hosts[host].fqdn},
        )
        for name, host, program in programs
    ]

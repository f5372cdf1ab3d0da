# SPDX-License-Identifier: Apache-2.0
"""The parts of a farm on one machine: what is run, where, and on which ports it listens."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path

import attr

from devfarm.plan import BSTORE, CONTROLLER, Plan
from devfarm.ports import ADDRESS
from reimzul.core.errors import ProgramNotFound

#: Folders of services, which an ordinary user's PATH does not have.
_SYSTEM_PATH = "/usr/local/sbin:/usr/sbin:/sbin"


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
    """The path of a program. Raises `ProgramNotFound`."""
    found = shutil.which(name, path=f"{os.environ.get('PATH', os.defpath)}:{_SYSTEM_PATH}")
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
    beanstalkd, rsyncd = plan.plain("beanstalkd"), plan.plain("rsyncd")

    def part(name: str, host: str, ports: tuple[int, ...], *argv: object) -> Part:
        program, *arguments = map(str, argv)
        command = (*plan.host(host).prefix, find_program(program), *arguments)
        return Part(name=name, host=host, argv=command, listens=ports)

    http_ports = (plan.plain("incoming"), plan.plain("store"))
    parts = [
        part(
            "beanstalkd", CONTROLLER, (beanstalkd,),
            "beanstalkd", "-l", ADDRESS, "-p", beanstalkd, "-b", plan.layout.binlog, f"-f{sync_ms}",
        ),
        # -e: nginx would open its log in /var before it reads where ours is
        part(
            "nginx", BSTORE, http_ports,
            "nginx", "-e", "stderr", "-p", plan.layout.state, "-c", "conf/nginx.conf",
        ),
        part(
            "rsyncd", BSTORE, (rsyncd,),
            "rsync", "--daemon", "--no-detach", "--config=conf/rsyncd.conf", f"--address={ADDRESS}", f"--port={rsyncd}",
        ),
        part("mosquitto", CONTROLLER, (plan.plain("mqtt"),), "mosquitto", "-c", "conf/mosquitto.conf"),
    ]  # fmt: skip
    for host in plan.hosts:
        ports = (*(plan.tls(name) for name in host.offers), *(plan.local(host.name, name) for name in host.uses))
        parts.append(part(f"stunnel-{host.name}", host.name, ports, "stunnel", f"conf/stunnel-{host.name}.conf"))
    return parts


def daemons(plan: Plan, workers: int, repogens: int) -> list[Part]:
    """Our own daemons."""

    def part(name: str, program: str, host: str) -> Part:
        argv = (own_program(f"reimzul-{program}"), "--config", str(plan.layout.ini(host)))
        env = {"REIMZUL_FQDN": plan.host(host).fqdn}
        return Part(name=name, host=host, argv=(*plan.host(host).prefix, *argv), env=env)

    builders = [host.name for host in plan.hosts if host.is_builder]
    return [
        part("notifier", "notifier", CONTROLLER),
        *(part(f"repogen-{number}", "repogen", BSTORE) for number in range(1, repogens + 1)),
        part("tosign", "tosign", BSTORE),
        *(part(f"worker-{name}-{number}", "worker", name) for name in builders for number in range(1, workers + 1)),
    ]

# SPDX-License-Identifier: Apache-2.0
"""The parts of a farm on one machine: what is run, where, and what it listens on."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path

import attr

from devfarm.plan import BSTORE, CONTROLLER, Host, Plan
from devfarm.ports import ADDRESS
from reimzul.core.errors import ProgramNotFound

#: Where services are, beside PATH: an ordinary user's does not look there.
_SYSTEM = "/usr/local/sbin:/usr/sbin:/sbin"


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
        """Whether it is one of our own; the others are what they stand on."""
        return not self.listens


def which(name: str) -> str:
    """Where a program is. Raises `ProgramNotFound`."""
    found = shutil.which(name, path=f"{os.environ.get('PATH', os.defpath)}:{_SYSTEM}")
    if not found:
        raise ProgramNotFound(f"{name} is not installed: tools/setup installs what a farm needs")
    return found


def own(name: str) -> str:
    """One of our own commands, from the environment we run in."""
    path = Path(sys.executable).with_name(name)
    if not path.exists():
        raise ProgramNotFound(f"{path} is not there: tools/setup installs it")
    return str(path)


def infrastructure(plan: Plan, sync_ms: int) -> list[Part]:
    """What our daemons stand on, in the order in which it is best started."""
    rsyncd = plan.plain("rsyncd")
    rows = [
        Part(
            name="beanstalkd",
            host=CONTROLLER,
            argv=(
                which("beanstalkd"), "-l", ADDRESS, "-p", str(plan.plain("beanstalkd")),
                "-b", str(plan.layout.binlog), f"-f{sync_ms}",
            ),
            listens=(plan.plain("beanstalkd"),),
        ),
        Part(
            name="nginx",
            host=BSTORE,
            # -e: it would look for its own log in /var before it reads where ours is
            argv=(which("nginx"), "-e", "stderr", "-p", str(plan.layout.state), "-c", "conf/nginx.conf"),
            listens=(plan.plain("incoming"), plan.plain("store")),
        ),
        Part(
            name="rsyncd",
            host=BSTORE,
            argv=(
                which("rsync"), "--daemon", "--no-detach", "--config=conf/rsyncd.conf",
                f"--address={ADDRESS}", f"--port={rsyncd}",
            ),
            listens=(rsyncd,),
        ),
        Part(
            name="mosquitto",
            host=CONTROLLER,
            argv=(which("mosquitto"), "-c", "conf/mosquitto.conf"),
            listens=(plan.plain("mqtt"),),
        ),
    ]  # fmt: skip
    return [_on_host(part, plan) for part in rows + [_stunnel(plan, host) for host in plan.hosts]]


def _stunnel(plan: Plan, host: Host) -> Part:
    ways = [plan.tls(name) for name in host.offers] + [plan.local(host.name, name) for name in host.uses]
    argv = (which("stunnel"), f"conf/stunnel-{host.name}.conf")
    return Part(name=f"stunnel-{host.name}", host=host.name, argv=argv, listens=tuple(ways))


def daemons(plan: Plan, workers: int, repogens: int) -> list[Part]:
    """Our own daemons."""
    rows = [_daemon(plan, "notifier", "notifier", CONTROLLER)]
    rows += [_daemon(plan, f"repogen-{number}", "repogen", BSTORE) for number in range(1, repogens + 1)]
    rows.append(_daemon(plan, "tosign", "tosign", BSTORE))
    for host in plan.hosts:
        if host.is_builder:
            rows += [_daemon(plan, f"worker-{host.name}-{n}", "worker", host.name) for n in range(1, workers + 1)]
    return [_on_host(part, plan) for part in rows]


def _daemon(plan: Plan, name: str, program: str, host: str) -> Part:
    argv = (own(f"reimzul-{program}"), "--config", str(plan.layout.ini(host)))
    return Part(name=name, host=host, argv=argv, env={"REIMZUL_FQDN": plan.host(host).fqdn})


def _on_host(part: Part, plan: Plan) -> Part:
    return attr.evolve(part, argv=(*plan.host(part.host).prefix, *part.argv))

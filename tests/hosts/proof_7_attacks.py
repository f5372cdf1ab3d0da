# SPDX-License-Identifier: Apache-2.0
"""Attacks by somebody who has no key: the farm goes on meanwhile."""

from __future__ import annotations

import contextlib
import re
import subprocess
import sys
from collections.abc import Iterator

import pytest

from tests.hosts.farm import Farm, Tell
from tests.hosts.machine import Machine
from tests.waiting import until

_CONNECTIONS = 5_000
#: Opens connections, prints a line when all are open, and holds them; one that was closed is opened again.
_FLOOD = """
import resource, socket, sys, time
host, count = sys.argv[1], int(sys.argv[2])
resource.setrlimit(resource.RLIMIT_NOFILE, (count + 100, count + 100))
held = []
while True:
    while len(held) < count:
        held.append(socket.create_connection((host, 13100), 30))
        held[-1].setblocking(False)
    print("open", flush=True)
    time.sleep(1)
    alive = []
    for each in held:
        try:
            if each.recv(1):
                alive.append(each)
        except BlockingIOError:
            alive.append(each)
        except OSError:
            pass
    held = alive
"""
#: systemd-analyze's score of what reaches or is reached by other hosts: 0 is confined, 10 is not.
_MAX_EXPOSURE = 4.0


@contextlib.contextmanager
def flooding(attacker: Machine, target: Machine) -> Iterator[None]:
    """Within it, connections from a machine's network to a target's beanstalkd are open, and say nothing."""
    network = ["nsenter", "-t", str(attacker.leader()), "-n"]
    argv = [*network, sys.executable, "-c", _FLOOD, target.address, str(_CONNECTIONS)]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout
            assert process.stdout.readline() == "open\n"
            yield
        finally:
            process.kill()


def test_idle_connections(farm: Farm, tell: Tell) -> None:
    """5,000 connections that say nothing shut nobody out: builders stay connected, and a build is published."""
    controller = farm["controller"]
    with flooding(farm["customer"], controller):
        process = controller.property("stunnel@reimzul", "MainPID")
        memory_kib = int(controller.run(f"ps -o rss= -p {process}").out)
        tell(f"  with {_CONNECTIONS} idle connections stunnel has {memory_kib >> 10} MiB")
        farm.published(farm.submit(farm.slow("flooded", 5)))
        farm["b1"].run("systemctl restart reimzul-worker@1")  # a new connection gets in, too
        until(lambda: farm.watchers() == 4, 60, "all workers watch")


@pytest.mark.parametrize(
    ("name", "unit"),
    [("controller", "stunnel@reimzul"), ("controller", "beanstalkd"), ("bstore", "stunnel@reimzul"),
     ("bstore", "rsync"), ("b1", "stunnel@reimzul")],
)  # fmt: skip
def test_confined(farm: Farm, tell: Tell, name: str, unit: str) -> None:
    """What strangers or builders reach runs confined."""
    exposure = _exposure(farm[name], unit)
    tell(f"  {name}: {unit} {exposure}")
    assert exposure < _MAX_EXPOSURE


def _exposure(machine: Machine, unit: str) -> float:
    analysis = machine.run(f"systemd-analyze security --no-pager {unit}.service").said
    found = re.search(r"Overall exposure level for \S+: ([\d.]+)", analysis)
    assert found, analysis
    return float(found[1])

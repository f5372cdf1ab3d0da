# SPDX-License-Identifier: Apache-2.0
"""A builder of the original among ours: its exact messages, and its rsync into repo/, until the setting is off."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from tests import srpms
from tests.hosts.farm import ARCH, TARGET, Farm
from tests.hosts.machine import Machine
from tests.waiting import until

_PROGRAM = Path(__file__).parents[1] / "original.py"
_THERE = "/srv/reimzul/original.py"
_MOCK = "/usr/local/bin/reimzul-standin-mock"


def test_mixed(farm: Farm) -> None:
    """Beside ours, what a worker of the original builds is published, staged and told once; the setting off, not."""
    b1, b2 = farm["b1"], farm["b2"]
    with _as_the_originals(b2):
        with _switched_on(farm):
            with _idle(b1):
                first = farm.submit(farm.srpm("heirloom", srpms.compiled("heirloom")))
                legs = farm.published(first)
            assert {leg["builder_fqdn"] for leg in legs} == {b2.fqdn}
            builds = [farm.submit(farm.srpm(f"both{n}", srpms.noarch(f"both{n}"))) for n in range(4)]
            for build in builds:
                farm.published(build)
            farm.wait_idle()
            for build in (first, *builds):
                farm.once(build)
            assert b2.fqdn in farm.doctor("controller").words("originals")
            assert farm.doctor("bstore").failed == []
        with _idle(b1):
            lost = farm.submit(farm.srpm("lost", srpms.noarch("lost")))
            until(lambda: {leg["status"] for leg in farm.legs(lost)} == {"Success"}, 600, "it says that it has built")
            farm.wait_idle()
            assert not any(leg.get("published") for leg in farm.legs(lost))
            assert "lost" not in farm.bstore.run("find /srv/reimzul/bstore -name 'lost*'").out
            assert "not published" in farm.doctor("controller").words("originals")
    again = farm.submit(farm.srpm("again", srpms.noarch("again")))
    farm.published(again)
    farm.once(again)


@contextlib.contextmanager
def _switched_on(farm: Farm) -> Iterator[None]:
    """As docs/upgrading.md says."""
    hosts = ("controller", "bstore")
    for name in hosts:
        farm[name].run(f"reimzul setup {name} --original-workers on --yes")
    farm["bstore"].wait_active("reimzul-repogen-worker@1")
    farm["controller"].wait_active("reimzul-notifier")
    target = f"{TARGET}.{ARCH}"
    farm["controller"].run(f"reimzul repogen --force {target}")
    room = farm["bstore"].root / "srv/reimzul/bstore/originals" / target
    until(room.is_dir, 120, "there is room for the target")
    yield
    for name in hosts:
        farm[name].run(f"reimzul setup {name} --original-workers off --yes")
    farm["bstore"].wait_active("reimzul-repogen-worker@1")


@contextlib.contextmanager
def _as_the_originals(machine: Machine) -> Iterator[None]:
    """A builder whose workers are the original's."""
    machine.write(_THERE, _PROGRAM.read_text(), 0o755)
    program = f"/srv/reimzul/code/venv/bin/python {_THERE} {machine.fqdn} /srv/reimzul/results/old {_MOCK}"
    with _idle(machine):
        machine.run(
            "systemd-run --unit=original --uid=reimzul --setenv=HOME=/srv/reimzul --setenv=PATH=$PATH "
            f"{program} /srv/reimzul/mock_configs"
        )
        try:
            yield
        finally:
            machine.run("systemctl stop original", check=False)


@contextlib.contextmanager
def _idle(machine: Machine) -> Iterator[None]:
    """A builder whose workers of ours are stopped."""
    machine.run("systemctl stop 'reimzul-worker@*'")
    try:
        yield
    finally:
        machine.run("systemctl start reimzul-worker@1 reimzul-worker@2")

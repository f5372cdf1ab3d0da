# SPDX-License-Identifier: Apache-2.0
"""Machines that vanish, are cut off, and are rebooted: nothing is lost, and nobody has to start anything by hand."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator

from tests import srpms
from tests.hosts.base import SOURCES_THERE
from tests.hosts.farm import BUILDERS, Farm, Tell
from tests.hosts.machine import Machine
from tests.waiting import until

#: Seconds: architecture.md promises 30 for a host that vanished; a machine with other things to do gets more.
_NOTICED = 120
_WORKERS = 4
_UNITS = {
    "controller": ("stunnel@reimzul", "beanstalkd", "nginx", "reimzul-notifier", "reimzul-batch"),
    "bstore": ("stunnel@reimzul", "nginx", "rsync", "reimzul-repogen-worker@1", "reimzul-signer"),
    **dict.fromkeys(BUILDERS, ("stunnel@reimzul", "reimzul-worker@1", "reimzul-worker@2")),
}


def _other_builder(farm: Farm, builder: Machine) -> Machine:
    return next(machine for machine in farm.builders if machine.name != builder.name)


def _wait_until_back(farm: Farm, machine: Machine) -> None:
    """It has come back by itself: its units run, doctor is content, its workers watch."""
    machine.wait_up()
    machine.wait_active(*_UNITS[machine.name])
    until(lambda: farm.watchers() == _WORKERS, _NOTICED, "all workers are back")
    until(lambda: farm.doctor(machine.name).failed == [], _NOTICED, f"doctor is content on {machine.name}")


def test_builder_vanishes_in_mid_build(farm: Farm, tell: Tell) -> None:
    """A builder is gone in mid-build: its job is another's, and published once."""
    build = farm.submit(farm.slow("vanishing", 25))
    builder = farm.building_on(build)
    builder.vanish()
    gone = time.monotonic()
    until(lambda: farm.building_on(build).name != builder.name, _NOTICED, "another builds it")
    tell(f"  after {time.monotonic() - gone:.0f} s another builder had the job")
    (leg,) = farm.published(build)
    assert leg["builder"] == _other_builder(farm, builder).fqdn
    builder.boot()
    _wait_until_back(farm, builder)
    farm.once(build)


def test_builder_vanishes_while_idle(farm: Farm, tell: Tell) -> None:
    """A builder is gone while it has nothing to do: it is no longer counted on, and comes back by itself."""
    b1, b2 = farm.builders
    farm.wait_idle()
    b1.vanish()
    gone = time.monotonic()
    until(lambda: farm.watchers() == _WORKERS - 2, _NOTICED, "its workers are no longer counted")
    tell(f"  after {time.monotonic() - gone:.0f} s its workers were no longer counted")
    build = farm.submit(farm.slow("alone", 1))
    (leg,) = farm.published(build)
    assert leg["builder"] == b2.fqdn
    b1.boot()
    _wait_until_back(farm, b1)
    farm.once(build)


def test_builder_cut_off_and_back(farm: Farm) -> None:
    """A builder is cut off in mid-build until its job is another's, and comes back: one result is published."""
    build = farm.submit(farm.slow("cut", 45))
    builder = farm.building_on(build)
    builder.cut_link()
    until(lambda: farm.building_on(build).name != builder.name, _NOTICED, "another builds it")
    builder.mend_link()
    farm.published(build)
    until(lambda: farm.watchers() == _WORKERS, _NOTICED, "its workers are back")
    farm.wait_idle()
    farm.once(build)


def test_bstore_rebooted_in_mid_upload(farm: Farm) -> None:
    """bstore is rebooted in mid-upload: the upload is made again, and nothing of the first is ever seen."""
    load = "head -c 40000000 /dev/urandom > %{buildroot}/usr/share/heavy/load\n%check"
    spec = srpms.noarch("heavy").replace("%check", load, 1)
    with _slowly(farm):
        build = farm.submit(farm.srpm("heavy", spec))
        spool = farm.bstore.root / "srv/reimzul/bstore/spool"

        def half() -> bool:
            return any(path.stat().st_size > 4_000_000 for path in spool.glob(f"{build}.*/.*.rpm.*"))

        until(half, 600, "it is being uploaded")
        farm.bstore.reboot()
        _wait_until_back(farm, farm.bstore)
        farm.published(build)
    farm.wait_idle()
    farm.once(build)


@contextlib.contextmanager
def _slowly(farm: Farm) -> Iterator[None]:
    """Uploads have a middle."""
    for builder in farm.builders:
        builder.run("reimzul setup builder --set worker.rsync_arguments=--bwlimit=2m")
    until(lambda: farm.watchers() == _WORKERS, _NOTICED, "all workers are back")
    try:
        yield
    finally:
        for builder in farm.builders:
            builder.run("reimzul setup builder --set worker.rsync_arguments=")


def test_controller_rebooted(farm: Farm) -> None:
    """The controller is rebooted with builds waiting and under way: nothing is lost, and it comes back by itself."""
    builds = [farm.submit(farm.slow(f"queued{number}", 8)) for number in range(6)]
    farm.building_on(builds[0])
    farm.controller.reboot()
    _wait_until_back(farm, farm.controller)
    for build in builds:
        farm.published(build)
    farm.wait_idle()
    for build in builds:
        farm.once(build)


def test_all_rebooted(farm: Farm) -> None:
    """All machines lose their power at once, and boot in any order: what was queued is built and published."""
    build = farm.submit(farm.slow("dark", 8))
    farm.building_on(build)
    for machine in farm.farm:
        machine.vanish()
    for machine in reversed(farm.farm):
        machine.boot()
    for machine in farm.farm:
        _wait_until_back(farm, machine)
    farm.published(build)
    farm.wait_idle()
    farm.once(build)
    farm.published(farm.submit(f"{SOURCES_THERE}/some-1.0-1.src.rpm", "--rebuild"))

# SPDX-License-Identifier: Apache-2.0
"""A farm from bare machines: what was typed, and what runs then."""

from __future__ import annotations

import json
import re
from datetime import datetime

import pytest

from tests.hosts.farm import ARCH, BUILDERS, PUBLIC, TARGET, Farm, Tell
from tests.waiting import until

#: The most commands that a person types for four machines: eight for the stand-in, where there is no mock.
_COMMANDS = 28
#: The ports that other hosts reach, by docs/install.md, "Ports"; and that of the public repositories.
_OFFERED = {"controller": {13100, 11080}, "bstore": {11874, 11081}, "b1": set(), "b2": set()}
#: On systemd-analyze's scale, on which 10 is wide open.
_EXPOSURE, _EXPOSURE_OF_WORKER = 3.0, 9.0


def test_commands(farm: Farm, tell: Tell) -> None:
    """From four bare machines to a published package by the commands of docs/install.md, no file edited by hand."""
    tell("What a person typed, and how long the machine took:")
    for typed in farm.typed:
        tell(f"  {typed.seconds:6.1f} s  {typed.machine:11}{typed.line}")
    longest = max(sum(typed.seconds for typed in farm.typed if typed.machine == machine.name) for machine in farm.farm)
    tell(f"  {len(farm.typed)} commands on {len(farm.farm)} machines; the busiest of these worked for {longest:.0f} s")
    assert 0 < len(farm.typed) <= _COMMANDS
    first = min(farm.legs_of("some-1.0-1"), key=lambda leg: str(leg["timestamp"]))
    (leg,) = farm.published(first["build_id"])
    published = datetime.fromisoformat(leg["published"].replace("Z", "+00:00")).timestamp()
    tell(f"  published {published - min(typed.at for typed in farm.typed):.0f} s after the first of them")
    assert farm.bstore.run(f"find /srv/reimzul/bstore/repo/{TARGET}.{ARCH} -name 'some-*.noarch.rpm'").out
    farm.once(first["build_id"])


def test_units_are_up(farm: Farm) -> None:
    """Every unit is enabled and runs, and nothing on any machine has failed."""
    wanted = {
        "controller": ("stunnel@reimzul", "beanstalkd", "nginx", "reimzul-notifier", "reimzul-batch"),
        "bstore": ("stunnel@reimzul", "nginx", "rsync", "reimzul-repogen-worker@1", "reimzul-signer"),
        **dict.fromkeys(BUILDERS, ("stunnel@reimzul", "reimzul-worker@1", "reimzul-worker@2")),
    }
    for machine in farm.farm:
        for unit in wanted[machine.name]:
            machine.wait_active(unit)
            assert machine.run(f"systemctl is-enabled {unit}").out.strip() == "enabled"
        assert machine.run("systemctl --failed --no-legend").out == ""


def test_setup_again(farm: Farm) -> None:
    """Setup run again changes nothing and restarts nothing."""
    for machine in farm.farm:
        role = "builder" if machine.name in BUILDERS else machine.name
        show = "systemctl show -p MainPID,InvocationID 'reimzul-*' stunnel@reimzul"
        before = machine.run(show).out
        said = machine.run(f"reimzul setup {role}").said
        assert machine.run(show).out == before, said
        assert not re.search(r"^wrote|started$", said, re.MULTILINE), said


def test_listening(farm: Farm) -> None:
    """Nothing listens on a public address but stunnel, and the repositories where a person asked for them."""
    for machine in farm.farm:
        rows = [row.split() for row in machine.run("ss -Hltunp").out.splitlines()]
        public = [row for row in rows if not re.match(r"(127\.|\[::1\])", row[4])]
        stunnel = {int(row[4].rpartition(":")[2]) for row in public if "stunnel" in row[-1]}
        others = {(int(row[4].rpartition(":")[2]), row[-1].split('"')[1]) for row in public if "stunnel" not in row[-1]}
        assert stunnel == _OFFERED[machine.name], rows
        assert others == ({(PUBLIC, "nginx")} if machine.name == "bstore" else set()), rows


def _units(farm: Farm, name: str) -> list[str]:
    listed = farm[name].run("systemctl list-unit-files --no-legend 'reimzul*'").out
    return [row.split()[0].replace("@.", "@1.") for row in listed.splitlines()]


def test_units_verify(farm: Farm) -> None:
    """systemd-analyze verify is silent for all units."""
    for machine in farm.farm:
        names = _units(farm, machine.name)
        assert len(names) >= 6, names
        done = machine.run(f"systemd-analyze verify --man=no {' '.join(names)}", check=False)
        ours = [row for row in done.said.splitlines() if row.strip()]
        assert (done.code, ours) == (0, [])


def test_units_exposure(farm: Farm, tell: Tell) -> None:
    """systemd-analyze security: at most 3.0 for every unit but the worker, which mock needs open."""
    for name in _units(farm, "controller"):
        if name.endswith(".service"):
            said = farm.controller.run(f"systemd-analyze security --no-pager {name}").out
            found = re.search(r"Overall exposure level for \S+: ([0-9.]+)", said)
            assert found, said
            tell(f"  {name:36} {found[1]}")
            assert float(found[1]) <= (_EXPOSURE_OF_WORKER if "reimzul-worker" in name else _EXPOSURE), said


@pytest.mark.parametrize("name", ["controller", "bstore", *BUILDERS])
def test_doctor(farm: Farm, name: str) -> None:
    """reimzul doctor finds all well."""
    until(lambda: farm.doctor(name).failed == [], 90, f"doctor is content on {name}: {farm.doctor(name).text}")


def test_canary(farm: Farm, tell: Tell) -> None:
    """reimzul doctor --canary sends a package through the farm, and times each hop."""
    said = farm.controller.run(f"reimzul doctor --canary --target {TARGET}", timeout=600).out
    hops = [row for row in said.splitlines() if "canary" in row]
    tell("\n".join(f"  {row}" for row in hops))
    assert any(re.search(r"\d s\b", row) for row in hops), said
    canary = json.loads(farm.controller.run(f"reimzul doctor --canary --target {TARGET} --json", timeout=600).out)
    assert {(build["arch"], build["state"]) for build in canary["canary"]["builds"]} == {(ARCH, "built")}
    assert canary["failed"] == 0

# SPDX-License-Identifier: Apache-2.0
"""systemctl stop and restart, in the middle of everything."""

from __future__ import annotations

import time

from tests.hosts.farm import BUILDERS, Farm
from tests.waiting import until

#: What is restarted, in this order, while builds are made.
_UNITS = {
    "controller": ("stunnel@reimzul", "beanstalkd", "nginx", "reimzul-notifier"),
    "bstore": ("stunnel@reimzul", "rsync", "nginx", "reimzul-repogen-worker@{1..3}", "reimzul-signer"),
    **dict.fromkeys(BUILDERS, ("stunnel@reimzul", "reimzul-worker@{1..2}")),
}


def test_worker_stopped_in_mid_build(farm: Farm) -> None:
    """systemctl stop of a worker in mid-build ends within its stop time, and another builder has the job."""
    build = farm.submit(farm.slow("stopped", 30))
    builder = farm.building_on(build)
    started = time.monotonic()
    builder.run("systemctl stop 'reimzul-worker@*'", timeout=600)
    print(f"\n  it took {time.monotonic() - started:.1f} s")
    said = builder.run("journalctl -b --no-pager -u 'reimzul-worker@*'").out
    assert "timed out" not in said, said  # systemd's word where it had to kill
    for unit in ("reimzul-worker@1", "reimzul-worker@2"):
        assert builder.property(unit, "Result") == "success"
    assert builder.run("pgrep -u reimzul", check=False).out == "", builder.run("ps -fu reimzul", check=False).out
    until(lambda: farm.building_on(build).name != builder.name, 120, "another builds it")
    builder.run("systemctl start reimzul-worker@{1..2}")
    (leg,) = farm.published(build)
    assert leg["builder_fqdn"] != builder.fqdn
    farm.once(build)


def test_all_restarted_under_load(farm: Farm) -> None:
    """systemctl restart of every unit, one after another while packages are built, loses nothing."""
    builds = [farm.submit(farm.slow(f"load{number}", 6)) for number in range(8)]
    farm.building_on(builds[0])
    for machine in farm.farm:
        for unit in _UNITS[machine.name]:
            machine.run(f"systemctl restart {unit}", timeout=600)
    for build in builds:
        farm.published(build)
    farm.wait_idle()
    for build in builds:
        farm.once(build)
    for machine in farm.farm:
        assert machine.run("systemctl --failed --no-legend").out == ""

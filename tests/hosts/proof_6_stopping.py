# SPDX-License-Identifier: Apache-2.0
"""systemctl stop and restart, in the middle of everything."""

from __future__ import annotations

import time

from tests.hosts.farm import BUILDERS, Farm, Tell
from tests.waiting import until

#: What is restarted, in this order, while builds are made.
_UNITS = {
    "controller": ("stunnel@reimzul", "beanstalkd", "nginx", "reimzul-notifier", "reimzul-batch"),
    "bstore": ("stunnel@reimzul", "rsync", "nginx", "reimzul-repogen-worker@{1..3}", "reimzul-signer"),
    **dict.fromkeys(BUILDERS, ("stunnel@reimzul", "reimzul-worker@{1..2}")),
}


def test_worker_stopped_in_mid_build(farm: Farm, tell: Tell) -> None:
    """systemctl stop of a worker in mid-build ends within its stop time, and another builder has the job."""
    build = farm.submit(farm.slow("stopped", 30))
    builder = farm.building_on(build)
    started = time.monotonic()
    builder.run("systemctl stop 'reimzul-worker@*'", timeout=600)
    tell(f"  it took {time.monotonic() - started:.1f} s")
    said = builder.run("journalctl -b --no-pager -u 'reimzul-worker@*'").out
    assert "timed out" not in said, said  # systemd's word where it had to kill
    for unit in ("reimzul-worker@1", "reimzul-worker@2"):
        assert builder.property(unit, "Result") == "success"
    assert builder.run("pgrep -u reimzul", check=False).out == "", builder.run("ps -fu reimzul", check=False).out
    until(lambda: farm.building_on(build).name != builder.name, 120, "another builds it")
    builder.run("systemctl start reimzul-worker@{1..2}")
    (leg,) = farm.published(build)
    assert leg["builder"] != builder.fqdn
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


def test_upgraded_in_mid_build(farm: Farm) -> None:
    """make install and systemctl reload, in mid-build: the build ends where it began, then the worker is a new one."""
    build = farm.submit(farm.slow("upgraded", 20))
    builder = farm.building_on(build)
    show = "systemctl show --value -p InvocationID reimzul-worker@1 reimzul-worker@2"
    before = builder.run(show).out.split()
    builder.run("cd reimzul && make install ROLE=builder && systemctl reload 'reimzul-*.service'", timeout=600)
    (leg,) = farm.published(build)
    assert (leg["builder"], leg["attempts"][0]["builder"]) == (builder.fqdn, builder.fqdn)
    until(lambda: not set(before) & set(builder.run(show).out.split()), 120, "both workers are new")
    builder.wait_active("reimzul-worker@1", "reimzul-worker@2")
    farm.once(build)


def test_watchdog(farm: Farm) -> None:
    """A daemon that hangs is ended by its watchdog, and restarted."""
    drop_in = "/run/systemd/system/reimzul-signer.service.d/soon.conf"
    farm.bstore.run(
        f"mkdir -p {drop_in.rpartition('/')[0]}; printf '[Service]\\nWatchdogSec=8\\nTimeoutAbortSec=2\\n' >{drop_in};"
        "systemctl daemon-reload; systemctl restart reimzul-signer"
    )
    hung = farm.bstore.property("reimzul-signer", "MainPID")
    farm.bstore.run(f"kill -STOP {hung}")
    until(lambda: farm.bstore.property("reimzul-signer", "MainPID") not in ("0", hung), 120, "it has been started anew")
    farm.bstore.wait_active("reimzul-signer")
    farm.bstore.run(f"rm {drop_in}; systemctl daemon-reload; systemctl restart reimzul-signer")
    build = farm.submit(farm.slow("watched", 1))
    farm.published(build)
    farm.wait_idle()
    farm.once(build)


def test_log_rotated(farm: Farm) -> None:
    """logrotate puts the log of builds aside, and the notifier goes on in a new one."""
    farm.controller.run("logrotate -f /etc/logrotate.d/reimzul")
    farm.published(farm.submit(farm.slow("rotated", 1)))
    farm.wait_idle()
    assert "rotated-1.0-1.src.rpm" in farm.controller.read("/var/log/reimzul/reimzul.log")
    assert "watched-1.0-1.src.rpm" in farm.controller.run("cat /var/log/reimzul/reimzul.log.1*").out

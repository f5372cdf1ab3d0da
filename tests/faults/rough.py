# SPDX-License-Identifier: Apache-2.0
"""More bad things that are done to a farm: what memory, disks, links and attackers do. `kinds` explains the kinds."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from pathlib import Path

import attr

from devfarm.processes import find_program
from reimzul.core.errors import ReimzulError
from tests.faults.kinds import kind, long_builds, reached, running
from tests.faults.ledger import ARCH, FOLLOWER, TARGETS, Build, Recipe
from tests.faults.trial import Trial
from tests.waiting import until

_KIB = 1024


@kind("leg-fault", latest=0.0, builds=(1, 3))
def leg_fault(trial: Trial) -> str:
    """One leg of two is built, and the other is a builder's fault: the build is made again, and neither leg is lost."""
    faulty = trial.chance.choice((ARCH, FOLLOWER))
    recipe = Recipe(source="compiled", legs={ARCH: "Success", FOLLOWER: "Success"}, faults=1, faulty=(faulty,))
    build = Build(name=f"{trial.name}f", recipe=recipe, target=TARGETS[0], seconds=(0.3,))
    trial.submit_all([build])

    def starts() -> int:
        return sum(call.arch == faulty and call.what == "start" for call in trial.ground.calls(build))

    until(lambda: starts() > 1, 60, f"{faulty} is built again")
    return f"the leg {faulty} of {build.name} was a builder's fault once"


@kind("stopped", latest=0.0, builds=(1, 3))
def stopped(trial: Trial) -> str:
    """A worker gets SIGSTOP for longer than its job's ttr, then SIGCONT: what it finishes then does no harm."""
    recipe = Recipe(source="plain", legs={ARCH: "Success"})
    build = Build(name=f"{trial.name}s", recipe=recipe, target=TARGETS[0], seconds=(2.0, 0.3), ttr=5)
    trial.submit_all([build])
    until(lambda: trial.ground.calls(build), 20, "the build has begun")
    builder = trial.ground.calls(build)[0].host.partition(".")[0]
    names = [f"worker-{builder}-{number}" for number in (1, 2)]
    victims = [trial.ground.farm.kill(name, signal.SIGSTOP) for name in names]
    seconds = build.ttr + trial.chance.uniform(1, 5)
    time.sleep(seconds)
    for pid in victims:
        os.kill(pid, signal.SIGCONT)
    return f"both workers of {builder} stopped for {seconds:.1f} s, and the ttr is {build.ttr} s"


@kind("stopped-long", latest=0.0, builds=(3, 5), patience=240, weight=0)
def stopped_long(trial: Trial) -> str:
    """repogen or the notifier is stopped with jobs in hand for longer than the ttr our programs give a job."""
    part = trial.chance.choice(("repogen-1", "notifier"))
    trial.loose = attr.evolve(trial.loose, doubles=part == "notifier")
    trial.submitted.wait(30)
    time.sleep(trial.chance.uniform(0, 1.5))
    pid = trial.ground.farm.kill(part, signal.SIGSTOP)
    time.sleep(trial.chance.uniform(125, 135))
    os.kill(pid, signal.SIGCONT)
    return f"{part} stopped for longer than 120 s"


@kind("oom", latest=0.0, builds=(1, 3))
def oom(trial: Trial) -> str:
    """A worker's whole unit gets SIGKILL at once, mock included, as the OOM killer does with OOMPolicy=kill."""
    (build,) = long_builds(trial, 1, 20)
    until(lambda: trial.ground.calls(build), 20, "the build has begun")
    farm = trial.ground.farm
    builder = trial.ground.calls(build)[0].host.partition(".")[0]
    mocks = set(running(trial, "mock"))
    part = next(name for name in (f"worker-{builder}-1", f"worker-{builder}-2") if mocks & set(farm.pids(name)))
    pids = farm.pids(part)
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    return f"SIGKILL to all {len(pids)} processes of {part}"


@kind("slow-link", latest=0.0, builds=(2, 4), patience=240)
def slow_link(trial: Trial) -> str:
    """A builder's link has 10 kB/s for some seconds, in both directions."""
    seconds = trial.chance.uniform(6, 12)
    trial.ground.cable.throttle("80kbit")
    try:
        long_builds(trial, 4, 0.3)
        time.sleep(seconds)
    finally:
        trial.ground.cable.unthrottle()
    return f"10 kB/s for {seconds:.1f} s"


@kind("parked", latest=0.0, builds=(3, 5))
def parked(trial: Trial) -> str:
    """A slow upload is under way into the folder of a build that is being published: it changes nothing of that."""
    store = trial.ground.farm.layout.store
    known = {path.name for path in store.spool.iterdir()}
    evil = trial.ground.home / "evil"
    evil.mkdir(exist_ok=True)
    (evil / "a-slow-file").write_bytes(b"x" * 200 * _KIB)
    (evil / "build.log").write_bytes(b"another log\n")
    (build,) = long_builds(trial, 1, 0.3)
    found = until(lambda: {path.name for path in store.spool.iterdir()} - known, 30, "an upload has begun")
    url = f"rsync://127.0.0.1:{trial.ground.farm.plan.plain('rsyncd')}/reimzul-bstore/spool/{sorted(found)[0]}/"
    argv = [find_program("rsync"), "-rtWI", "--bwlimit=16", f"{evil}/", url]
    attack = subprocess.Popen(argv, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        attack.wait(60)
    finally:
        attack.kill()
    return (
        f"a slow upload into {sorted(found)[0]} while {build.name} is built: rsync's exit code is {attack.returncode}"
    )


@kind("binlog-torn", latest=2.0)
def binlog_torn(trial: Trial) -> str:
    """The power fails while beanstalkd writes a record that it has not acknowledged: half of it is in the binlog."""
    farm, body = trial.ground.farm, os.urandom(2048).hex().encode()
    for _ in range(20):
        with until(lambda: reached(trial), 20, "beanstalkd is back") as broker:
            number = broker.put_raw("ballast", body, priority=1)
        farm.hold("beanstalkd", kindly=False)
        try:
            is_torn = _tear(trial.ground.disks["binlog"].folder, body)
        finally:
            farm.release("beanstalkd")
        with until(lambda: reached(trial), 20, "beanstalkd is back") as broker, contextlib.suppress(ReimzulError):
            broker.delete(number)
        if is_torn:
            return "the last record of the binlog is cut in half, unacknowledged"
    raise AssertionError("another record always follows")


def _tear(folder: Path, body: bytes) -> bool:
    """Cut a binlog in the middle of a job's body, if nothing follows the job."""
    path = max(folder.glob("binlog.*"), key=lambda each: int(each.suffix[1:]))
    content = path.read_bytes()
    at = content.rfind(body)
    if at < 0 or content[at + len(body) + 2 :].strip(b"\0"):
        return False
    os.truncate(path, at + len(body) // 2)
    return True

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

from devfarm.plan import BSTORE, CONTROLLER
from devfarm.processes import find_program
from reimzul.core.errors import ReimzulError
from reimzul.history import CORRUPT_PATTERN, open_history
from tests.events import event
from tests.faults import checks
from tests.faults.ground import BUILDERS, HOSTS
from tests.faults.kinds import kind, long_builds, running, try_connect
from tests.faults.ledger import ARCH, FOLLOWER, TARGETS, Build, Recipe
from tests.faults.trial import Trial
from tests.waiting import until

_KIB = 1024
_DAY, _HOUR = 86400, 3600
_PAGE = 4096  # SQLite's
#: Builds the history is given before it is damaged, and how many a page has at the most.
_OLD_BUILDS, _BUILDS_A_PAGE = 300, 9


@kind("arch-fault", latest=0.0, builds=(1, 3), weight=0)
def arch_fault(trial: Trial) -> str:
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
        with until(lambda: try_connect(trial), 20, "beanstalkd is back") as broker:
            number = broker.put_raw("ballast", body, priority=1)
        farm.hold("beanstalkd", kindly=False)
        try:
            is_torn = _tear(trial.ground.disks["binlog"].folder, body)
        finally:
            farm.release("beanstalkd")
        with until(lambda: try_connect(trial), 20, "beanstalkd is back") as broker, contextlib.suppress(ReimzulError):
            broker.delete(number)
        if is_torn:
            return "the last record of the binlog is cut in half, unacknowledged"
    raise AssertionError("another record always follows")


@kind("clock", latest=2.0, builds=(3, 5), fresh=True, clocks=True)
def clock(trial: Trial) -> str:
    """The clock of one host, or of all, jumps forwards by a day, and back by an hour, in any order, under builds.

    Files have times by the clock of who looks at them, also those of before the jump: ages of files stay true.
    """
    hosts = trial.chance.choice(([CONTROLLER], [BSTORE], list(BUILDERS), list(HOSTS)))
    ahead, steps = 0, trial.chance.sample((_DAY, -_HOUR), 2)
    recipe = Recipe(source="plain", legs={ARCH: "Success"})
    for number, step in enumerate(steps):
        ahead += step
        for host in hosts:
            trial.ground.set_clock(host, ahead)
        build = Build(name=f"{trial.name}c{number}", recipe=recipe, target=TARGETS[number], seconds=(1.0, 0.2))
        trial.submit_all([build])
        time.sleep(trial.chance.uniform(0, 3))
    return f"the clock of {', '.join(hosts)} jumps by {steps[0]:+d} s, then by {steps[1]:+d} s"


@kind("history-damaged", latest=0.0)
def history_damaged(trial: Trial) -> str:
    """Pages of the history are overwritten, under the notifier or before its start: only what was on them is lost."""
    farm, path = trial.ground.farm, trial.ground.farm.layout.history
    is_running = trial.chance.random() < 0.5
    trial.submitted.wait(30)
    farm.hold("notifier")
    try:
        known = [attr.evolve(event("Success", number), submitter="ballast") for number in range(_OLD_BUILDS)]
        with contextlib.closing(open_history(f"sqlite://{path}")) as history:
            history.record(known)
        if not is_running:
            count = _overwrite_pages(trial, path)
    finally:
        farm.release("notifier")
    if is_running:
        farm.wait_until_ready(within=20)
        count = _overwrite_pages(trial, path)
    trial.later(lambda: _look_at_history(trial, path, count))
    when = "under" if is_running else "before the start of"
    return f"{count} pages of the history are overwritten {when} the notifier"


def _overwrite_pages(trial: Trial, path: Path) -> int:
    """Overwrite pages that have old builds and none of this trial; return how many."""
    content = path.read_bytes()
    pages = [content[at : at + _PAGE] for at in range(0, len(content), _PAGE)]
    old = [at for at, page in enumerate(pages) if b'"ballast"' in page and trial.name.encode() not in page]
    chosen = trial.chance.sample(old, trial.chance.randint(1, 3))
    with path.open("r+b") as stream:
        for at in chosen:
            stream.seek(at * _PAGE)
            stream.write(trial.chance.choice((b"\0" * _PAGE, trial.chance.randbytes(_PAGE))))
    return len(chosen)


def _look_at_history(trial: Trial, path: Path, count: int) -> None:
    """The damaged file is put aside, at the latest after a restart, and all builds of other pages are known."""
    if not list(path.parent.glob(CORRUPT_PATTERN)):  # SQLite had all in its memory
        trial.ground.farm.kill("notifier", signal.SIGTERM)
        trial.ground.farm.wait_until_ready(within=20)
        (build,) = long_builds(trial, 1, 0.3)
        trial.ground.settle(60)
    asides = list(path.parent.glob(CORRUPT_PATTERN))
    said = trial.ground.farm.layout.part_log("notifier").read_text().count(f"the history {path} was damaged")
    if len([each for each in asides if each.suffix.startswith(".corrupt")]) != 1 or not said:
        trial.outcome.faults.append(f"the damage was said {said} times, and put aside as {asides}")
    lost = _OLD_BUILDS - len(checks.history(trial.ground).get("ballast", []))
    trial.measure("old builds lost", lost, count * _BUILDS_A_PAGE)
    for each in asides:
        each.unlink()


def _tear(folder: Path, body: bytes) -> bool:
    """Cut a binlog in the middle of a job's body, if nothing follows the job."""
    path = max(folder.glob("binlog.*"), key=lambda each: int(each.suffix[1:]))
    content = path.read_bytes()
    at = content.rfind(body)
    if at < 0 or content[at + len(body) + 2 :].strip(b"\0"):
        return False
    os.truncate(path, at + len(body) // 2)
    return True

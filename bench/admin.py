# SPDX-License-Identifier: Apache-2.0
"""How long the operator's commands take on a farm with much to do: `python -m bench.admin`.

The history, the list of workers and beanstalkd's tubes are filled as daemons would have done; the commands are whole
processes on them. Nothing is built: who holds the running builds' jobs is this benchmark.
"""

from __future__ import annotations

import random
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path

import click

from bench.report import Figure, progress, tell
from devfarm.processes import own_program
from reimzul.core import validators
from reimzul.core.beanstalk import PRIORITY, Broker, arch_tube
from reimzul.core.message import BuildEvent, BuildRequest, CurrentBuild, Status, WorkerHeartbeat, event_for, new_attempt
from reimzul.history import History, open_history
from reimzul.history.workers import WorkerRecord, WorkerStore
from tests.conftest import Beanstalkd
from tests.events import build_id

TARGET, TUBE = "c9s.00.x86_64", arch_tube("x86_64")
#: Events written in one transaction.
_BATCH = 5_000
#: How many packages there are; each is built again and again.
_PACKAGES = 3_000
_TAB = "Tab behind two digits of an id"


def request(number: int, at: float) -> BuildRequest:
    """The n-th request, submitted then."""
    name = f"package-{number % _PACKAGES:04}"
    return BuildRequest(
        srpm=f"{name}-1.{number}-1.src.rpm",
        arch="x86_64",
        target=TARGET,
        disttag=".el9",
        submitter="johnny",
        build_id=build_id(number),
        timestamp=time.strftime(validators.TIMESTAMP_FORMAT, time.gmtime(at)),
    )


def make_event(asked: BuildRequest, status: str, at: float, **more: object) -> BuildEvent:
    """An event of it."""
    name, evr = asked.srpm[: -len(".src.rpm")].rsplit("-", 2)[0], "1-1"
    return event_for(asked, status, pkgname=name, evr=evr, at=at, **more)


def story(asked: BuildRequest, began: float, rng: random.Random) -> Iterator[BuildEvent]:
    """What is told of a build that is over."""
    attempt, host = f"{int(began)}-{rng.getrandbits(32):08x}", f"builder{rng.randrange(50)}.example.org"
    by = {"attempt": attempt, "builder_fqdn": host}
    took = rng.lognormvariate(5, 1)
    ends = {"started": began, "finished": began + took, "exit_code": 0, **by}
    yield make_event(asked, Status.QUEUED, began - 60, tube=TUBE.name, job=1, priority=PRIORITY)
    yield make_event(asked, Status.PUBLISHED if rng.random() < 0.9 else Status.FAILED, began + took, **ends)


def fill_past(history: History, count: int) -> None:
    """Builds of the last months."""
    rng, now = random.Random(7), time.time()
    batch: list[BuildEvent] = []
    for number in range(count):
        began = now - 86400 - (count - number) * 60
        batch += story(request(number, began - 60), began, rng)
        if len(batch) >= _BATCH:
            history.record(batch)
            batch = []
    history.record(batch)


def fill_running(history: History, presences: WorkerStore, broker: Broker, first: int, count: int) -> None:
    """Builds under way, each with a worker that says so, and its job reserved."""
    now, words, events = time.time(), [], []
    broker.watch([TUBE.name])
    for number in range(first, first + count):
        asked = request(number, now - 600)
        job = broker.put(TUBE, asked, priority=PRIORITY)
        claim = broker.reserve({TUBE.name: TUBE}, 0)
        assert claim
        assert claim.id == job
        attempt, host = new_attempt(), f"builder{number - first}.example.org"
        by = {"attempt": attempt, "builder_fqdn": host, "started": now - 300}
        events.append(make_event(asked, Status.QUEUED, now - 600, tube=TUBE.name, job=job, priority=PRIORITY))
        events.append(make_event(asked, Status.BUILDING, now - 300, **by))
        hand = CurrentBuild(
            build_id=asked.build_id, srpm=asked.srpm, target=TARGET, arch="x86_64", attempt=attempt,
            phase="rpmbuild", since=now - 200, started=now - 300,
        )  # fmt: skip
        here = WorkerHeartbeat(host=host, instance="1", state="building", arches=("x86_64", "i386"), build=hand, at=now)
        words.append(WorkerRecord(heartbeat=here, last_seen=now))
    history.record(events)
    presences.save(words)


def fill_waiting(history: History, broker: Broker, first: int, count: int) -> None:
    """Builds that wait, with their jobs."""
    now, events = time.time(), []
    for number in range(first, first + count):
        asked = request(number, now - 120)
        job = broker.put(TUBE, asked, priority=PRIORITY)
        events.append(make_event(asked, Status.QUEUED, now - 120, tube=TUBE.name, job=job, priority=PRIORITY))
    history.record(events)


def commands(first: int, waiting: int) -> dict[str, list[list[str]]]:
    """What is run, each on builds of its own: those that act would find nothing to do the second time."""
    some = [build_id(first + 1 + each * 7) for each in range(waiting // 8)]
    last = build_id(first + waiting - 1)
    return {
        "reimzul --help": [["--help"]],
        "reimzul queues": [["queues"]],
        "reimzul builds": [["builds"]],
        "reimzul builds --status Queued, all of them": [["builds", "--status", "Queued", "--limit", "5000"]],
        "reimzul builders": [["builders"]],
        "reimzul show": [["show", last]],
        "reimzul explain, the last in the queue": [["explain", last]],
        "reimzul cancel, waiting": [["cancel", each] for each in some[:100]],
        "reimzul raise": [["raise", each] for each in some[100:200]],
        "reimzul stats --since 7d": [["stats", "--since", "7d"]],
        "reimzul metrics": [["metrics"]],
        _TAB: [["show", last[:2]]],
    }


def completed(ini: Path, words: list[str]) -> float:
    """The same of what a shell asks when Tab is hit."""
    line = {"COMP_WORDS": " ".join(["reimzul", *words]), "COMP_CWORD": str(len(words))}
    return timed(ini, [], {"_REIMZUL_COMPLETE": "bash_complete", **line})


def timed(ini: Path, words: list[str], more: Mapping[str, str] | None = None) -> float:
    """Seconds of a whole process, which has to end well."""
    began = time.monotonic()
    env = {"REIMZUL_CONFIG": str(ini), "PATH": "/usr/bin:/bin", **(more or {})}
    done = subprocess.run([own_program("reimzul"), *words], env=env, capture_output=True, check=False)
    if done.returncode:
        raise SystemExit(f"reimzul {' '.join(words)}: {done.returncode}: {done.stderr.decode()}")
    return time.monotonic() - began


def open_farm(stack: ExitStack, more: str = "") -> tuple[Path, Path, Broker, History]:
    """A folder, settings with `more`, a running beanstalkd and an empty history, until the stack is left.

    "FOLDER" in `more` is the folder.
    """
    folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="reimzul-bench-")))
    server = Beanstalkd(folder)
    server.start()
    stack.callback(server.kill)
    ini = folder / "reimzul.ini"
    url = f"sqlite:///{folder}/h.sqlite"
    ini.write_text(
        f"[beanstalkd]\nhost = {server.host}\nport = {server.port}\n[history]\nurl = {url}\n"
        "[bstore]\nbase_url = http://127.0.0.1:9/bstore/repo/\n"
        f"[notifier]\npresence = {folder}/p.sqlite\n" + more.replace("FOLDER", str(folder))
    )
    broker, history = stack.enter_context(server.connect()), open_history(url)
    stack.callback(history.close)
    return folder, ini, broker, history


@click.command()
@click.option("--waiting", default=5_000, show_default=True, help="Builds that wait.")
@click.option("--running", default=50, show_default=True, help="Builds under way, each on a builder of its own.")
@click.option("--past", default=200_000, show_default=True, help="Builds that are over.")
@click.option("--count", default=5, show_default=True, help="How often each command is run.")
def command(waiting: int, running: int, past: int, count: int) -> None:
    """Fill a farm, and ask it."""
    with ExitStack() as stack:
        folder, ini, broker, history = open_farm(stack)
        presences = WorkerStore(folder / "p.sqlite")
        stack.callback(presences.close)
        progress(f"{past} builds that are over, {running} that run, {waiting} that wait")
        fill_past(history, past)
        fill_running(history, presences, broker, past, running)
        fill_waiting(history, broker, past + running, waiting)
        figures = []
        for name, calls in commands(past + running, waiting).items():
            progress(name)
            goal = "0.15 s" if name.endswith("--help") or name.endswith("queues") else "1 s"
            run = completed if name == _TAB else timed
            values = [run(ini, calls[number % len(calls)]) for number in range(count)]
            figures.append(Figure(what=name, unit="s", values=values, goal=goal))
        tell("admin", figures, {"waiting": waiting, "running": running, "past": past})


if __name__ == "__main__":
    command()

# SPDX-License-Identifier: Apache-2.0
"""How far a batch is from the shortest possible schedule: `python -m bench.batch`.

The real beanstalkd, reimzul-notifier and reimzul-batch; the builders are scripted, and so is what repogen announces.
Durations are invented (log-normal, median 5 min) and pass many times as fast. The shortest possible schedule is the
longer of the longest chain and the whole work divided by the builders. Beside it stand, computed for the same batch,
what building level after level reaches, and building all and then all failures again.
"""

from __future__ import annotations

import gzip
import heapq
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path

import attr
import click

from bench.report import Figure, progress, tell
from reimzul.core.batch_message import BatchRequest
from reimzul.core.beanstalk import BATCH, BATCH_REQUEST, Broker, ReservedJob, arch_tube, session_tube
from reimzul.core.message import BuildRequest, Status, WorkerHeartbeat, WorkerState, event_for, new_attempt
from reimzul.plan.arrangement import arrange_sources
from reimzul.plan.document import Member, Plan, plan_path, write_plan
from reimzul.plan.graph import measure_chains, rank_chains
from tests.conftest import Beanstalkd
from tests.notifier import Running
from tests.waiting import until

ARCH, TARGET, BATCH_ID = "x86_64", "c9s", "0a1b2c3d"
PROGRAM = Path(sys.executable).parent / "reimzul-batch"
#: Seconds of a median build.
MEDIAN_SECONDS = 300.0
#: Seconds between two heartbeats of a scripted builder, and the longest that a run may take.
_HEARTBEAT_SECONDS, _RUN_SECONDS = 20.0, 1800.0
Needs = Mapping[str, Sequence[str]]


# --- batches


def invent_needs(count: int, rng: random.Random) -> dict[str, list[str]]:
    """Packages of which each needs a few earlier ones, and those most that many need already."""
    popular: list[str] = []
    needs: dict[str, list[str]] = {}
    for number in range(count):
        name = f"p{number}"
        needs[name] = sorted({rng.choice(popular) for _ in range(rng.choice((0, 1, 2, 3, 5)))}) if popular else []
        popular += [name, *needs[name]]
    return needs


def read_needs(graph: Path, count: int, rng: random.Random) -> dict[str, list[str]]:
    """Take so many sources of a list (name, binaries, BuildRequires, separated by tabs), and break their cycles."""
    with gzip.open(graph, "rt") if graph.suffix == ".gz" else graph.open() as stream:
        rows = [line.rstrip("\n").split("\t") for line in stream]
    chosen = {row[0]: row for row in (rng.sample(rows, count) if count < len(rows) else rows)}
    source_of = {binary: name for name, row in chosen.items() for binary in row[1].split()}
    found = {
        name: {source_of[each]: "" for each in (row[2] if len(row) > 2 else "").split() if each in source_of}
        for name, row in chosen.items()
    }
    for name, needs in found.items():
        needs.pop(name, None)
    return {name: list(needs) for name, needs in arrange_sources(found, dict.fromkeys(found, 1.0)).needs.items()}


def make_plan(needs: Needs, durations: Mapping[str, float]) -> Plan:
    chains = measure_chains(needs, durations)
    ranks = rank_chains(chains)
    members = [
        Member(
            name=name, arch=ARCH, target=f"{TARGET}.{ARCH}", srpm=f"{name}-1-1.src.rpm", srpm_sha256="0" * 64,
            evr="1-1", tube=ARCH, legs=(ARCH,), disttag=".el9", needs=tuple(f"{each}.{ARCH}" for each in needs[name]),
            provides=(name,), seconds=durations[name], chain=chains[name], rank=ranks[name],
        )
        for name in needs
    ]  # fmt: skip
    return Plan(
        batch=BATCH_ID, target=TARGET, arches=(ARCH,), submitter="bench", created=time.time(), priority=8192,
        members=tuple(members),
    )  # fmt: skip


# --- what others reach


def schedule(order: Sequence[str], needs: Needs, durations: Mapping[str, float], builders: int) -> float:
    """The makespan of building these in this order, each as soon as a builder is free; nobody waits for a need."""
    free = [0.0] * builders
    for name in order:
        heapq.heappush(free, heapq.heappop(free) + durations[name])
    return max(free)


def build_by_levels(needs: Needs, durations: Mapping[str, float], builders: int) -> float:
    """The makespan of building level after level: those whose needs are all in earlier levels."""
    levels: dict[str, int] = {}
    for name in topological(needs):
        levels[name] = 1 + max((levels[each] for each in needs[name]), default=-1)
    total = 0.0
    for level in range(1 + max(levels.values())):
        members = sorted((name for name in needs if levels[name] == level), key=lambda each: -durations[each])
        total += schedule(members, needs, durations, builders)
    return total


def build_recursively(needs: Needs, durations: Mapping[str, float], builders: int) -> tuple[float, int]:
    """The makespan of building all and then all failures again, as `mock --chain --recurse`; and how many fail.

    A build fails a tenth into its time if a need is not built when it starts.
    """
    now, wasted = 0.0, 0
    built: dict[str, float] = {}
    left = list(needs)
    while left:
        free = [(now, number) for number in range(builders)]
        failed = []
        for name in left:
            start, builder = heapq.heappop(free)
            is_ready = all(built.get(each, float("inf")) <= start for each in needs[name])
            end = start + durations[name] * (1.0 if is_ready else 0.1)
            if is_ready:
                built[name] = end
            else:
                failed.append(name)
            heapq.heappush(free, (end, builder))
        now, left, wasted = max(end for end, _ in free), failed, wasted + len(failed)
    return now, wasted


def topological(needs: Needs) -> list[str]:
    return sorted(needs, key=measure_chains(needs, dict.fromkeys(needs, 1.0)).__getitem__, reverse=True)


# --- the scripted farm


@attr.define
class Builders:
    """All builders: as many connections that watch the tube, and one more that reserves for whoever is idle."""

    beanstalkd: Beanstalkd
    durations: Mapping[str, float]
    idle: int
    pending: Mapping[str, set[str]]  #: the needs of each that are not published
    speed: float
    running: list[tuple[float, str, ReservedJob[BuildRequest], str]] = attr.field(factory=list)
    #: seconds from a publication to the start of who waited for it, where a builder was idle
    waits: list[float] = attr.field(factory=list)
    starts: Counter[str] = attr.field(factory=Counter)
    _freed: dict[str, float] = attr.field(factory=dict)
    _heartbeats_at: float = float("-inf")

    def run(self, sessions: Sequence[str], is_over: Iterator[bool]) -> float:
        """Build until the batch is over; return how long it took."""
        tube = arch_tube(ARCH)
        began = time.monotonic()
        with self.beanstalkd.connect() as broker:
            broker.watch([ARCH])
            while not next(is_over):
                self._send_heartbeats(broker, sessions)
                self._finish_due(broker)
                if self.idle and (job := broker.reserve({ARCH: tube}, 0)):
                    self._start(broker, job)
                    continue
                broker.touch_all_if_due()
                time.sleep(0.001)
        return time.monotonic() - began

    def _start(self, broker: Broker, job: ReservedJob[BuildRequest]) -> None:
        name, attempt = job.message.srpm.removesuffix("-1-1.src.rpm"), new_attempt()
        now = time.monotonic()
        if name in self._freed:
            self.waits.append(now - self._freed.pop(name))
        self.starts[name] += 1
        assert not self.pending[name], f"{name} was released before {self.pending[name]}"
        self.idle -= 1
        if not self.idle:
            self._freed.clear()  # they wait for a builder from now on
        broker.announce(event_for(job.message, Status.BUILDING, attempt=attempt, builder_fqdn="b1.example.org"))
        heapq.heappush(self.running, (now + self.durations[name] / self.speed, name, job, attempt))

    def _finish_due(self, broker: Broker) -> None:
        while self.running and self.running[0][0] <= time.monotonic():
            _, name, job, attempt = heapq.heappop(self.running)
            place = f"repo/{job.message.target}/{name}/{job.message.timestamp}/1-1.{ARCH}"
            about = {
                "attempt": attempt,
                "builder_fqdn": "b1.example.org",
                "place": place,
                "pkgname": name,
                "evr": "1-1",
            }
            broker.announce(event_for(job.message, Status.PUBLISHED, **about))
            job.delete()
            self.idle += 1
            for other, needs in self.pending.items():
                if name in needs:
                    needs.discard(name)
                    if not needs and self.idle > len(self._freed):
                        self._freed[other] = time.monotonic()

    def _send_heartbeats(self, broker: Broker, sessions: Sequence[str]) -> None:
        if time.monotonic() - self._heartbeats_at < _HEARTBEAT_SECONDS:
            return
        self._heartbeats_at = time.monotonic()
        for number, session in enumerate(sessions):
            heartbeat = WorkerHeartbeat(
                host=f"b{number}.example.org", instance="1", state=WorkerState.IDLE, at=time.time(), arches=(ARCH,),
                session=session, interval=30, version="0.2.0",
            )  # fmt: skip
            broker.announce(heartbeat)


def watch_batch(incoming: Path) -> Iterator[bool]:
    """Yield whether the batch is over; its journal is read twice a second at most."""
    deadline, looked, over = time.monotonic() + _RUN_SECONDS, 0.0, False
    while True:
        assert time.monotonic() < deadline, "the batch is not over"
        if time.monotonic() - looked > 0.5:
            looked, over = time.monotonic(), '"over"' in tail_of(incoming / ".batches" / f"{BATCH_ID}.log")
        yield over


def tail_of(path: Path) -> str:
    with path.open("rb") as stream:
        stream.seek(max(0, path.stat().st_size - 4000))
        return stream.read().decode()


def run_batch(
    folder: Path, needs: Needs, durations: Mapping[str, float], builders: int, speed: float
) -> tuple[float, Builders]:
    beanstalkd, incoming = Beanstalkd(folder / "binlog"), folder / "incoming"
    for each in (folder / "binlog", incoming):
        each.mkdir(parents=True)
    beanstalkd.start()
    notifier = Running(folder, beanstalkd)
    notifier.settings.update({"batch": {"enabled": "true"}, "incoming": {"folder": incoming}})
    notifier.start()
    with ExitStack() as stack:
        stack.callback(beanstalkd.kill)
        stack.callback(notifier.signal, signal.SIGKILL)
        daemon = stack.enter_context(subprocess.Popen([str(PROGRAM), "--config", str(folder / "reimzul.ini")]))
        stack.callback(daemon.terminate)
        sessions = [f"{number:016x}" for number in range(builders)]
        for session in sessions:
            stack.enter_context(beanstalkd.connect()).watch([ARCH, session_tube(session)])
        plan = make_plan(needs, durations)
        sha256 = write_plan(plan_path(incoming, BATCH_ID), plan)
        request = BatchRequest(batch=BATCH_ID, plan_sha256=sha256, target=TARGET, submitter="bench")
        farm = Builders(beanstalkd, durations, builders, {name: set(each) for name, each in needs.items()}, speed)
        with beanstalkd.connect() as broker:
            farm._send_heartbeats(broker, sessions)  # noqa: SLF001  before the batch: its first releases count on them
            until(lambda: not broker.tube_stats("notify").ready, 30, "the heartbeats are known")
            broker.put(BATCH, request, priority=BATCH_REQUEST)
        until((incoming / ".batches" / f"{BATCH_ID}.log").exists, 60, "the batch is accepted")
        return farm.run(sessions, watch_batch(incoming)), farm


def find_percentile(values: Sequence[float], share: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))]


@click.command("bench.batch")
@click.option("--members", default=400, show_default=True)
@click.option("--builders", default=10, show_default=True)
@click.option("--graph", type=click.Path(path_type=Path, exists=True), help="Real needs, instead of invented ones.")
@click.option("--speed", default=400.0, show_default=True, help="How many times as fast time passes as on a farm.")
@click.option("--seed", default=1, show_default=True)
def command(members: int, builders: int, graph: Path | None, speed: float, seed: int) -> None:
    """Build a batch on scripted builders."""
    rng = random.Random(seed)
    needs = read_needs(graph, members, rng) if graph else invent_needs(members, rng)
    durations = {name: rng.lognormvariate(0.0, 1.0) * MEDIAN_SECONDS for name in sorted(needs)}
    bound = max(*measure_chains(needs, durations).values(), sum(durations.values()) / builders)
    progress(f"{len(needs)} members, {sum(map(len, needs.values()))} needs; at least {bound / speed:.1f} s")
    folder = Path(tempfile.mkdtemp(prefix="reimzul-bench-batch-"))
    try:
        took, farm = run_batch(folder, needs, durations, builders, speed)
    finally:
        shutil.rmtree(folder)
    recursive, wasted = build_recursively(needs, durations, builders)
    where = f"{len(needs)} on {builders}"
    figures = [
        Figure(what=f"makespan / shortest, {where}", unit="", values=[took * speed / bound], goal="1.05"),
        Figure(what="level after level", unit="", values=[build_by_levels(needs, durations, builders) / bound]),
        Figure(what="all, then failures again", unit="", values=[recursive / bound]),
        Figure(what="its failures / members", unit="", values=[wasted / len(needs)]),
        Figure(what="builds / members", unit="", values=[sum(farm.starts.values()) / len(needs)], goal="1"),
    ]
    if farm.waits:  # else no builder was idle when a member was freed
        late = find_percentile(farm.waits, 0.99)
        figures += [
            Figure(what="published to dependent reserved", unit="s", values=farm.waits, goal="0.3"),
            Figure(what="the same, 99th", unit="s", values=[late], goal="0.3"),
        ]
    tell("batch", figures)


if __name__ == "__main__":
    command()

# SPDX-License-Identifier: Apache-2.0
"""One seed: a farm, a few builds, faults; then quiet, and the promises are compared with what is there."""

from __future__ import annotations

import gc
import itertools
import random
import shutil
import tempfile
import time
from pathlib import Path
from typing import Callable

import attr

from tests.simulate import batches, beanstalkd, files, promises, scheduler
from tests.simulate import farm as farms
from tests.simulate.farm import BATCH, DAEMONS, SECOND_REPOGEN, Farm
from tests.simulate.scheduler import Process

#: How many of the seeds have a batch.
BATCH_SHARE = 0.2
#: Seconds of virtual time that a farm gets to come to rest.
LIMIT_SECONDS = 4 * 3600.0
FAULTS = (
    *["kill"] * 8,
    "term",
    "pause",
    "cut",
    "half",
    "lost",
    "restart",
    "expire",
    "expire",
    "full",
    "disk",
    "clock",
)


@attr.frozen(kw_only=True)
class Result:
    seed: int
    broken: tuple[str, ...]  #: promises
    faults: tuple[str, ...]
    steps: int
    virtual: float
    seconds: float
    digest: int


class Faults:
    """What goes wrong, and when: at a daemon's step of a number, or at a time."""

    def __init__(self, farm: Farm, own: random.Random) -> None:
        self.farm, self.random = farm, own
        self._of_step: dict[str, list[str]] = {}
        for _ in range(own.randint(0, 8)):
            kind, name = own.choice(FAULTS), own.choice(farm.names)
            self._of_step.setdefault(name, []).append(kind)
        farm.next_faults = self.plan

    def plan(self, process: Process) -> None:
        """Give a process that starts its next fault."""
        kinds = self._of_step.get(process.name)
        if kinds:
            kind = kinds.pop(0)
            number = int(self.random.choice((10, 30, 100, 100, 250)) * self.random.random()) + 1
            process.faults[number] = lambda: self._cause(kind, process)

    def _cause(self, kind: str, process: Process) -> None:
        world, server = scheduler.world, self.farm.server
        self.farm.happened.append(f"{world.now:.3f} {kind} {process.name} at its step {process.steps}")
        getattr(self, f"_{kind}")(process)
        if not process.dead and self._of_step.get(process.name):
            number = process.steps + self.random.randint(1, 100)
            following = self._of_step[process.name].pop(0)
            process.faults[number] = lambda: self._cause(following, process)
        server.clock.changed()

    def _kill(self, process: Process) -> None:
        self.farm.kills.add(process.name)
        scheduler.world.kill(process)

    def _term(self, process: Process) -> None:
        daemon = self.farm.daemons.get(process.name)
        if daemon is None:
            self._kill(process)
        else:
            self.farm.kills.add(process.name)
            daemon.stop.now.set()

    def _pause(self, process: Process) -> None:
        process.paused_until = scheduler.world.now + self.random.choice((5.0, 130.0, 300.0))

    def _cut(self, process: Process) -> None:
        for connection in process.sockets:
            connection.close()

    def _half(self, process: Process) -> None:
        """The client's end is gone, and the server learns it much later."""
        for connection in process.sockets:
            connection.is_cut = True
            scheduler.world.at(scheduler.world.now + self.random.choice((5.0, 60.0)), connection.close)

    def _lost(self, process: Process) -> None:
        for connection in process.sockets:
            connection.cut_after_next = True

    def _restart(self, _: Process) -> None:
        self.farm.server.stop()
        scheduler.world.at(scheduler.world.now + self.random.choice((0.5, 5.0, 60.0)), self.farm.server.start)

    def _expire(self, _: Process) -> None:
        for job in [each for each in self.farm.server.jobs.values() if each.state == beanstalkd.RESERVED]:
            self.farm.server.expire(job)

    def _full(self, _: Process) -> None:
        self.farm.server.full_until = scheduler.world.now + self.random.choice((1.0, 20.0))

    def _disk(self, process: Process) -> None:
        if process.name != "notifier":  # SQLite's writes are no steps
            process.disk_full_until = process.steps + self.random.choice((2, 10, 40))

    def _clock(self, _: Process) -> None:
        scheduler.world.wall_offset += self.random.choice((-3600.0, 3600.0, 30.0))


def memory_folder() -> str | None:
    """Where files cost no disk; None for the usual place of temporary files."""
    return "/dev/shm" if Path("/dev/shm").is_dir() else None


def run_seed(seed: int, trace: Callable[[str], None] | None = None, top: str | None = None) -> Result:
    began = time.perf_counter()
    own = random.Random(f"plan {seed}")
    world = scheduler.begin(seed, trace)
    folder = Path(tempfile.mkdtemp(prefix="simulate-", dir=top or memory_folder()))
    broken: list[str] = []
    try:
        rates = {what: own.choice((0.0, 0.0, 0.2, 0.5)) for what in ("rsync", "createrepo_c", "http")}
        names = (*DAEMONS, SECOND_REPOGEN) if own.random() < 0.5 else DAEMONS
        given = batches.make_batch(own) if own.random() < BATCH_SHARE else None
        farm = _make_farm(folder, seed, own, rates, names, given)
        faults = Faults(farm, own)
        if own.random() < 0.3:
            farm.server.choose = lambda jobs: jobs[int(world.random.random() * len(jobs))]
        with files.watch_files(str(folder), seed), farms.running(farm):
            try:
                _live(farm, faults, own)
                broken = promises.list_broken(farm)
            except scheduler.Stuck as error:
                broken = [str(error), *promises.unsettled(farm)]
            except Exception as error:  # noqa: BLE001  a daemon's
                broken = [f"{type(error).__name__}: {error}"]
                if trace:
                    import traceback

                    trace("".join(traceback.format_exception(error)))
            _end(farm)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    gc.collect(0)
    return Result(
        seed=seed, broken=tuple(broken), faults=tuple(farm.happened), steps=world.steps, virtual=world.now,
        seconds=time.perf_counter() - began, digest=world.digest,
    )  # fmt: skip


def _make_farm(
    folder: Path,
    seed: int,
    own: random.Random,
    rates: dict[str, float],
    names: tuple[str, ...],
    given: batches.Given | None,
) -> Farm:
    if given is None:
        return Farm(folder, seed, farms.make_plan(own), rates, names)
    singles = dict(itertools.islice(farms.make_plan(own).items(), 2))
    for name in singles:
        if own.random() < 0.3:  # it misses a member's package, and waits for it
            given.requirements.of_package[name] = frozenset({own.choice(given.plan.members).packages[0]})
    outcomes = {**singles, **given.outcomes}
    farm = Farm(folder, seed, outcomes, rates, (*names, BATCH), requirements=given.requirements)
    farm.singles = list(singles)
    farm.person = person = batches.Person(farm, given)
    farm.server.on_kick = person.watch_kick
    return farm


def _live(farm: Farm, faults: Faults, own: random.Random) -> None:
    world = scheduler.world
    for name in farm.names:
        farm.start(name)
    if farm.person is not None:
        world.start(Process("person", 2), farm.person.live, "main")
    for name in farm.singles:
        world.sleep(own.random() * 4)
        known = [
            build for build, request in farm.accepted.items() if build not in farm.doubtful and not request.scratch
        ]
        is_last = farm.person is not None and known and own.random() < 0.4
        waits = own.choice((30, 7200)) if name in farm.requirements.of_package else 0
        farm.submit(name, after=tuple(known[:1]) if is_last else (), dep_wait=waits)
    if own.random() < 0.2:
        world.sleep(own.random() * 10)
        farm.cancel(own.choice(list(farm.accepted)))
    _rest(farm)
    for process in farm.processes.values():
        process.faults.clear()
    # what lies about is cleared up after days, and by a repogen that starts
    world.now += 9 * 86400.0
    if "repogen" in farm.daemons:
        farm.daemons["repogen"].stop.now.set()
    world.sleep(1.0)
    while farm.starts_at or "repogen" not in farm.daemons:
        world.sleep(5.0)
    world.sleep(20.0)  # its first idle moment, in which it looks through the spool
    _rest(farm)


def _rest(farm: Farm) -> None:
    """Wait until nothing is left to do."""
    world, limit = scheduler.world, scheduler.world.now + LIMIT_SECONDS
    while not promises.is_quiet(farm):
        if world.now > limit:
            raise scheduler.Stuck(f"not at rest after {LIMIT_SECONDS:g} s")
        world.sleep(3.0)
        farm.collect()
    farm.collect()


def _end(farm: Farm) -> None:
    """End all daemons, without a trace."""
    farm.ends = True
    world = scheduler.world
    world.failure = None
    for process in list(farm.processes.values()):
        world.kill(process)
    world.at(world.now, lambda: None)
    world.sleep(0.0)

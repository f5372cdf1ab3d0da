# SPDX-License-Identifier: Apache-2.0
"""The seeded scheduler: of all threads of all daemons exactly one runs, and hands over where it waits or has an effect.

A task is a thread of a simulated process, and in truth a greenlet: to hand over takes a tenth of what it takes between
threads of the operating system. `step` stands before every effect: there the process may be killed, and
another task may go first. Time passes only when nobody can run. A killed process gets `Killed` at each step and in
each wait, so it has no effect any more; it is unwound before any other task runs again.
"""

from __future__ import annotations

import heapq
import random
import zlib
from typing import Any, Callable, Optional

import attr
from greenlet import getcurrent, greenlet

#: 2026-01-01: where every run begins, so that a seed always sees the same times.
EPOCH = 1_767_225_600.0
#: How often a step lets another task go first, and the most that a step takes, in seconds.
SWITCH_CHANCE, STEP_SECONDS = 0.15, 0.002
#: Steps that change nothing: no fault is aimed at them.
_IDLE = frozenset(f"beanstalkd {command}" for command in ("reserve", "peek_ready", "use", "using", "watch", "watching"))
#: Steps after which a run counts as going round in circles.
MAX_STEPS = 40_000


class Killed(BaseException):
    """The process has been killed."""


class Stuck(Exception):
    """Nobody can run, or nobody comes to an end."""


@attr.define(eq=False)
class Process:
    """A simulated process. `faults` are called before its step of that number; idle ones do not count."""

    name: str
    pid: int
    steps: int = 0
    dead: bool = False
    paused_until: float = 0.0
    disk_full_until: int = 0  #: no file can be made before its step of that number
    faults: dict[int, Callable[[], None]] = attr.field(factory=dict)
    tasks: list[Task] = attr.field(factory=list)
    descriptors: set[int] = attr.field(factory=set)  #: locked or written to: its end closes them
    sockets: list[Any] = attr.field(factory=list)
    on_exit: Callable[[Process], None] = lambda _: None


class Task:
    def __init__(self, process: Process, run: Callable[[], Any], name: str) -> None:
        self.process, self.run, self.name = process, run, name
        self.greenlet = getcurrent()  #: of the main task; others get one of their own
        self.waits = 0  #: the number of its wait; a timer of an earlier one is void
        self.is_waiting = False
        self.is_over = False
        self.error: Optional[BaseException] = None
        self.joiners: list[Task] = []


class Scheduler:
    """What `world` in this module is while a seed runs."""

    def __init__(self, seed: int, trace: Callable[[str], None] | None = None) -> None:
        self.random = random.Random(seed)
        self.now = 0.0  #: seconds since the start
        self.wall_offset = 0.0  #: how far the hosts' clock was set
        self.trace = trace
        self.steps = 0
        self.ready: list[Task] = []
        self._timers: list[tuple[float, int, Callable[[], None]]] = []
        self._count = 0
        self.failure: Optional[BaseException] = None
        self.main = Process("main", 1)
        self.current = self._main_task = Task(self.main, lambda: None, "main")
        self._doomed: list[Process] = []  #: killed, and not unwound yet
        self.digest = 0  #: of all that happened: equal for equal runs

    # --- tasks

    def start(self, process: Process, run: Callable[[], Any], name: str) -> Task:
        task = Task(process, run, name)
        process.tasks.append(task)
        task.greenlet = greenlet(lambda *_: self._body(task), self._main_task.greenlet)
        self.ready.append(task)
        return task

    def _body(self, task: Task) -> None:
        try:
            if not task.process.dead:
                task.run()
        except Killed:
            pass
        except BaseException as error:  # noqa: BLE001  a thread's error must end the run, not the thread alone
            task.error = error
        task.run = lambda: None
        self._finish(task)

    def _finish(self, task: Task) -> None:
        task.is_over = True
        task.process.tasks.remove(task)
        for joiner in task.joiners:
            self.wake(joiner)
        if not task.process.tasks:
            self._exit(task.process)
        if task.error is not None and not task.process.dead and task.name == "main":
            self.failure = self.failure or task.error
        self.current = self._pick()
        task.greenlet.parent = self.current.greenlet  # who goes on where this one ends

    def _exit(self, process: Process) -> None:
        if process in self._doomed:
            self._doomed.remove(process)
        process.on_exit(process)

    # --- handing over

    def step(self, what: str) -> None:
        """Stand before an effect of the current task: it may be killed here, or others may go first."""
        task = self.current
        process = task.process
        if process.dead:
            raise Killed
        self.steps += 1
        process.steps += what not in _IDLE
        self.digest = zlib.crc32(f"{process.pid} {what}".encode(), self.digest)
        if self.trace:
            self.trace(f"{process.name}/{task.name} step {process.steps}: {what}")
        if self.steps > MAX_STEPS:
            self.failure = self.failure or Stuck(f"{MAX_STEPS} steps, and no end")
        fault = process.faults.pop(process.steps, None) if process.faults else None
        if fault is not None:
            fault()
        chance = self.random.random()
        self.now += chance * STEP_SECONDS
        if chance < SWITCH_CHANCE or self.failure or process.paused_until > self.now or process in self._doomed:
            self.ready.append(task)
            self._switch(task)

    def wait(self, until: float, what: str) -> None:
        """Let the current task wait until it is woken, or until a time."""
        task = self.current
        if task.process.dead:
            raise Killed
        task.is_waiting = True
        task.waits += 1
        if until != float("inf"):
            number = task.waits
            self.at(until, lambda: self.wake(task) if task.waits == number else None)
        self._switch(task)

    def wake(self, task: Task) -> None:
        if task.is_waiting:
            task.is_waiting = False
            self.ready.append(task)

    def at(self, when: float, call: Callable[[], None]) -> None:
        self._count += 1
        heapq.heappush(self._timers, (when, self._count, call))

    def _switch(self, task: Task) -> None:
        following = self._pick()
        if following is not task:
            self.current = following
            following.greenlet.switch()
        if task.process.dead:
            raise Killed
        if self.failure is not None and task.process is self.main:
            raise self.failure

    def _pick(self) -> Task:
        if self._doomed:
            for task in self._doomed[0].tasks:
                self.wake(task)
                if task in self.ready:
                    self.ready.remove(task)
                    return task
        while self.failure is None:
            while self._timers and self._timers[0][0] <= self.now:
                heapq.heappop(self._timers)[2]()
            if len(self.ready) == 1 and self.ready[0].process.paused_until <= self.now:
                return self.ready.pop()
            able = [task for task in self.ready if task.process.paused_until <= self.now]
            if able:
                chosen = able[int(self.random.random() * len(able))] if len(able) > 1 else able[0]
                self.ready.remove(chosen)
                return chosen
            times = [self._timers[0][0]] if self._timers else []
            times += [task.process.paused_until for task in self.ready]
            if not times:
                self.failure = Stuck("nobody can run any more")
                break
            self.now = max(self.now, min(times))
        return self._main_task

    def kill(self, process: Process) -> None:
        """Kill a process: from now on it has no effect."""
        if process.dead or not process.tasks:
            return
        process.dead = True
        process.paused_until = 0.0
        self._doomed.append(process)

    # --- what the threads of a process use

    def sleep(self, seconds: float) -> None:
        deadline = self.now + max(0.0, seconds)
        self.wait(deadline, "sleep")

    def time(self) -> float:
        return EPOCH + self.now + self.wall_offset


#: The run in this process; there is never more than one.
world = Scheduler(0)


def begin(seed: int, trace: Callable[[str], None] | None = None) -> Scheduler:
    global world  # noqa: PLW0603  others read it as scheduler.world
    world = Scheduler(seed, trace)
    return world

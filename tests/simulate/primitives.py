# SPDX-License-Identifier: Apache-2.0
"""Stand-ins for the standard library's clock and threads, which the product's modules are imported with."""

from __future__ import annotations

import contextlib
import queue
import sys
import threading
import time
import types
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent import futures
from typing import Any, Callable

from tests.simulate import scheduler
from tests.simulate.scheduler import Task

FOREVER = float("inf")


def _deadline(timeout: float | None) -> float:
    return FOREVER if timeout is None else scheduler.world.now + max(0.0, min(timeout, 1e9))


class _Waitable:
    """Something that tasks wait for."""

    def __init__(self) -> None:
        self._waiters: list[Task] = []

    def _wait_until(self, is_true: Callable[[], bool], timeout: float | None) -> bool:
        world, deadline = scheduler.world, _deadline(timeout)
        while not is_true():
            if world.now >= deadline:
                return False
            self._waiters.append(world.current)
            world.wait(deadline, type(self).__name__)
        return True

    def _wake_all(self) -> None:
        waiters, self._waiters = self._waiters, []
        for task in waiters:
            scheduler.world.wake(task)


class Lock(_Waitable):
    def __init__(self) -> None:
        super().__init__()
        self._is_held = False

    def acquire(self) -> bool:
        scheduler.world.step("lock")
        self._wait_until(lambda: not self._is_held, None)
        self._is_held = True
        return True

    def release(self) -> None:
        self._is_held = False
        self._wake_all()

    def __enter__(self) -> bool:
        return self.acquire()

    def __exit__(self, *_: object) -> None:
        self.release()


class Event(_Waitable):
    def __init__(self) -> None:
        super().__init__()
        self._is_set = False

    def is_set(self) -> bool:
        return self._is_set

    def set(self) -> None:
        self._is_set = True
        self._wake_all()

    def wait(self, timeout: float | None = None) -> bool:
        return self._wait_until(self.is_set, timeout)


class Condition(Lock):
    def __init__(self) -> None:
        super().__init__()
        self._notices = 0

    def notify(self) -> None:
        self._notices += 1
        self._wake_all()

    def wait(self, timeout: float | None = None) -> bool:
        before = self._notices
        return self.wait_for(lambda: self._notices != before, timeout)

    def wait_for(self, is_true: Callable[[], bool], timeout: float | None = None) -> bool:
        self._is_held = False
        self._wake_all()
        happened = self._wait_until(is_true, timeout)
        self._wait_until(lambda: not self._is_held, None)
        self._is_held = True
        return happened


class Thread:
    def __init__(
        self, target: Callable[..., Any], args: Iterable[Any] = (), name: str = "thread", daemon: bool = False
    ) -> None:
        self._run, self._name = lambda: target(*args), name
        self._task: Task | None = None

    def start(self) -> None:
        world = scheduler.world
        self._task = world.start(world.current.process, self._run, self._name)

    def join(self, timeout: float | None = None) -> None:
        world, task, deadline = scheduler.world, self._task, _deadline(timeout)
        while task is not None and not task.is_over and world.now < deadline:
            task.joiners.append(world.current)
            world.wait(deadline, "join")


class Queue(_Waitable):
    def __init__(self) -> None:
        super().__init__()
        self._items: deque[Any] = deque()

    def __class_getitem__(cls, _: object) -> type[Queue]:
        return cls

    def put(self, item: Any) -> None:
        self._items.append(item)
        self._wake_all()

    def empty(self) -> bool:
        return not self._items

    def get(self, timeout: float | None = None) -> Any:
        if not self._wait_until(lambda: bool(self._items), timeout):
            raise queue.Empty
        return self._items.popleft()


class Future(_Waitable):
    def __init__(self) -> None:
        super().__init__()
        self._is_done = False
        self._value: Any = None
        self._error: BaseException | None = None
        self._calls: list[Callable[[Any], Any]] = []

    def __class_getitem__(cls, _: object) -> type[Future]:
        return cls

    def run(self, call: Callable[[], Any]) -> None:
        try:
            self._value = call()
        except scheduler.Killed:
            raise
        except BaseException as error:  # noqa: BLE001  as the original does
            self._error = error
        self._is_done = True
        for each in self._calls:
            each(self)
        self._wake_all()

    def done(self) -> bool:
        return self._is_done

    def add_done_callback(self, call: Callable[[Any], Any]) -> None:
        if self._is_done:
            call(self)
        self._calls.append(call)

    def exception(self) -> BaseException | None:
        self._wait_until(self.done, None)
        return self._error

    def result(self) -> Any:
        error = self.exception()
        if error is not None:
            raise error
        return self._value


class ThreadPoolExecutor:
    """Starts a thread for each call at once: the product's pools are as large as what they are given."""

    def __init__(self, _workers: int, name: str = "pool") -> None:
        self._name, self._futures = name, []  # type: ignore[var-annotated]

    def submit(self, function: Callable[..., Any], *args: Any) -> Future:
        world, future = scheduler.world, Future()
        self._futures.append(future)
        world.start(world.current.process, lambda: future.run(lambda: function(*args)), self._name)
        return future

    def shutdown(self, wait: bool = True) -> None:
        for future in self._futures if wait else ():
            future.exception()

    def __enter__(self) -> ThreadPoolExecutor:
        return self

    def __exit__(self, *_: object) -> None:
        self.shutdown()


def wait(given: Iterable[Future], timeout: float | None = None, return_when: str = futures.ALL_COMPLETED) -> Any:
    world, deadline, each = scheduler.world, _deadline(timeout), list(given)

    def is_enough() -> bool:
        failed = return_when == futures.FIRST_EXCEPTION and any(one.done() and one._error for one in each)
        return failed or all(one.done() for one in each)

    while not is_enough() and world.now < deadline:
        for one in each:
            if not one.done():
                one._waiters.append(world.current)
        world.wait(deadline, "futures")
    done = {one for one in each if one.done()}
    return types.SimpleNamespace(done=done, not_done=set(each) - done)


class StandIn(types.ModuleType):
    """A module with some names replaced."""

    def __init__(self, original: types.ModuleType, **names: Any) -> None:
        super().__init__(original.__name__)
        self.__dict__.update(names)
        self._original = original

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["_original"], name)


def _now_or(seconds: float | None = None) -> float:
    return scheduler.world.time() if seconds is None else seconds


def _sleep(seconds: float) -> None:
    scheduler.world.sleep(seconds)


CLOCK = StandIn(
    time,
    time=_now_or,
    time_ns=lambda: int(scheduler.world.time() * 1e9),
    monotonic=lambda: scheduler.world.now,
    sleep=_sleep,
    gmtime=lambda seconds=None: time.gmtime(_now_or(seconds)),
    localtime=lambda seconds=None: time.localtime(_now_or(seconds)),
    strftime=lambda form, parts=None: time.strftime(form, parts or time.gmtime(_now_or())),
)
MODULES = {
    "time": CLOCK,
    "threading": StandIn(threading, Lock=Lock, Event=Event, Condition=Condition, Thread=Thread),
    "queue": StandIn(queue, Queue=Queue),
    "concurrent.futures": StandIn(futures, Future=Future, ThreadPoolExecutor=ThreadPoolExecutor, wait=wait),
}


@contextlib.contextmanager
def replace_modules() -> Iterator[None]:
    """Let modules that are imported in the block find the stand-ins."""
    originals = {name: sys.modules[name] for name in MODULES}
    sys.modules.update(MODULES)
    try:
        yield
    finally:
        sys.modules.update(originals)

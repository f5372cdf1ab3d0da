# SPDX-License-Identifier: Apache-2.0
"""A beanstalkd in this process, as far as the product uses one, behind greenstalk's interface.

`tests/integration/test_simulated_beanstalkd.py` runs the same cases against this and against the real one.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import attr
import greenstalk

READY, RESERVED, DELAYED, BURIED = "ready", "reserved", "delayed", "buried"
_COUNTS = ("reserves", "timeouts", "releases", "buries", "kicks")
#: beanstalkd warns a client this many seconds before a job of its own runs out of time.
_SAFETY_SECONDS = 1.0


class Clock(Protocol):
    @property
    def now(self) -> float: ...

    def wait_for_change(self, until: float) -> None:
        """Wait until that time, or until `changed` is called."""

    def changed(self) -> None:
        """Jobs may have become ready."""


@attr.define(eq=False)
class Job:
    id: int
    tube: str
    body: bytes
    priority: int
    ttr: int
    put_at: float
    state: str = READY
    due: float = 0.0  #: when its delay or its ttr ends
    delay: int = 0
    holder: Connection | None = None
    order: int = 0  #: of buried jobs
    counts: dict[str, int] = attr.field(factory=lambda: dict.fromkeys(_COUNTS, 0))
    logged: dict[str, int] = attr.field(factory=lambda: dict.fromkeys(_COUNTS, 0))  #: as the binlog has them

    def log(self) -> None:
        """Write it into the binlog, as beanstalkd does where a job is put, released, buried or kicked."""
        self.logged = dict(self.counts)


@attr.define(eq=False)
class Connection:
    """A client's connection; where `is_cut`, the client finds it closed, whatever the server knows."""

    server: Server
    used: str = "default"
    watched: list[str] = attr.field(factory=lambda: ["default"])
    is_closed: bool = False  #: by the server or the client: its jobs are others' again
    is_cut: bool = False
    cut_after_next: bool = False  #: the answer to the next command gets lost

    def close(self) -> None:
        self.is_cut = True
        self.server.disconnect(self)

    def setsockopt(self, *_: object) -> None:
        """For the product, which takes this for a socket."""


@attr.define(eq=False)
class Server:
    clock: Clock
    choose: Callable[[list[Job]], Job] = lambda jobs: min(jobs, key=lambda job: (job.priority, job.id))
    on_kick: Callable[[Job], None] = lambda _: None  #: called before a job is kicked
    jobs: dict[int, Job] = attr.field(factory=dict)
    connections: list[Connection] = attr.field(factory=list)
    is_down: bool = False
    idle_seconds: float = 0.0  #: how long at least a reserve waits that finds no job at once
    full_until: float = 0.0  #: it accepts no put, release or bury before that
    _last: int = 0
    _order: int = 0

    def connect(self) -> Connection:
        if self.is_down:
            raise ConnectionRefusedError(111, "Connection refused")
        connection = Connection(self)
        self.connections.append(connection)
        return connection

    def disconnect(self, connection: Connection) -> None:
        """Make the jobs of a connection ready for others."""
        if connection.is_closed:
            return
        self._update()
        connection.is_closed = True
        self.connections.remove(connection)
        for job in self.jobs.values():
            if job.holder is connection:
                self._make_ready(job)
        self.clock.changed()

    def stop(self) -> None:
        self.is_down = True
        for connection in list(self.connections):
            connection.is_cut = True
            self.disconnect(connection)

    def start(self) -> None:
        """Go on with what the binlog has: all jobs, none of them reserved, and no count of what was not logged."""
        self.is_down = False
        for job in self.jobs.values():
            job.counts = dict(job.logged)

    # --- jobs

    def _update(self) -> None:
        """Do what is due: delays and times to run that have ended."""
        now = self.clock.now
        for job in self.jobs.values():
            if job.state == DELAYED and job.due <= now:
                self._make_ready(job)
            elif job.state == RESERVED and job.due <= now:
                self.expire(job)

    def expire(self, job: Job) -> None:
        job.counts["timeouts"] += 1
        self._make_ready(job)
        self.clock.changed()

    def _make_ready(self, job: Job) -> None:
        job.state, job.holder, job.due = READY, None, 0.0

    def next_due(self) -> float:
        waiting = (job.due for job in self.jobs.values() if job.state in (DELAYED, RESERVED))
        return min(waiting, default=float("inf"))

    def find(self, number: int) -> Job:
        self._update()
        if number not in self.jobs:
            raise greenstalk.NotFoundError([])
        return self.jobs[number]

    def put(self, tube: str, body: bytes, priority: int, delay: int, ttr: int) -> int:
        self._raise_if_full()
        self._last += 1
        job = Job(self._last, tube, body, priority, max(1, ttr), self.clock.now)
        self.jobs[job.id] = job
        self._delay(job, delay)
        return job.id

    def _delay(self, job: Job, delay: int) -> None:
        self._make_ready(job)
        job.delay = delay
        if delay:
            job.state, job.due = DELAYED, self.clock.now + delay
        self.clock.changed()

    def _raise_if_full(self) -> None:
        if self.clock.now < self.full_until:
            raise greenstalk.OutOfMemoryError([])

    def take(self, connection: Connection, job: Job) -> Job:
        job.state, job.holder, job.due = RESERVED, connection, self.clock.now + job.ttr
        job.counts["reserves"] += 1
        return job

    def held(self, connection: Connection, number: int) -> Job:
        job = self.find(number)
        if job.holder is not connection:
            raise greenstalk.NotFoundError([])
        return job

    def reserve(self, connection: Connection, timeout: float) -> Job:
        deadline = self.clock.now + timeout
        if timeout:
            deadline = max(deadline, self.clock.now + self.idle_seconds)
        while True:
            self._update()
            if connection.is_cut or connection.is_closed:
                raise ConnectionError("Unexpected EOF")
            ready = [job for job in self.jobs.values() if job.state == READY and job.tube in connection.watched]
            if ready:
                return self.take(connection, self.choose(ready))
            warn_at = min((job.due for job in self.jobs.values() if job.holder is connection), default=float("inf"))
            if warn_at - _SAFETY_SECONDS <= self.clock.now:
                raise greenstalk.DeadlineSoonError([])
            if self.clock.now >= deadline:
                raise greenstalk.TimedOutError([])
            self.clock.wait_for_change(min(deadline, warn_at - _SAFETY_SECONDS, self.next_due()))

    def release(self, job: Job, priority: int, delay: int) -> None:
        job.counts["releases"] += 1
        job.priority = priority
        job.log()
        self._delay(job, delay)

    def bury(self, job: Job, priority: int) -> None:
        self._order += 1
        job.state, job.holder, job.due, job.order, job.priority = BURIED, None, 0.0, self._order, priority
        job.counts["buries"] += 1
        job.log()

    def kick(self, job: Job) -> None:
        job.counts["kicks"] += 1
        job.log()
        self._make_ready(job)
        self.clock.changed()

    def in_tube(self, tube: str, state: str) -> list[Job]:
        self._update()
        return [job for job in self.jobs.values() if job.tube == tube and job.state == state]

    def tube_names(self) -> list[str]:
        names = {job.tube for job in self.jobs.values()} | {"default"}
        for connection in self.connections:
            names |= {connection.used, *connection.watched}
        return sorted(names)


def _number(job: Any) -> int:
    return int(getattr(job, "id", job))


def _command(method: Any) -> Any:
    def call(client: Client, *arguments: Any, **options: Any) -> Any:
        connection = client.connection
        client.before(method.__name__)
        if connection.is_cut or connection.is_closed:
            raise ConnectionError("Unexpected EOF")
        loses_answer, connection.cut_after_next = connection.cut_after_next, False
        try:
            return method(client, connection.server, *arguments, **options)
        finally:
            if loses_answer:
                connection.close()
                raise ConnectionResetError(104, "Connection reset by peer")

    return call


class Client:
    """greenstalk's client. `before` is called before each command has its effect."""

    before: Callable[[str], None] = staticmethod(lambda _: None)

    def __init__(self, connection: Connection, encoding: None = None) -> None:
        self.connection = connection

    def close(self) -> None:
        self.connection.close()

    @_command
    def put(self, server: Server, body: bytes, priority: int = 65536, delay: int = 0, ttr: int = 60) -> int:
        if len(body) > 65_537:
            raise greenstalk.JobTooBigError([])
        return server.put(self.connection.used, body, priority, delay, ttr)

    @_command
    def use(self, _: Server, tube: str) -> None:
        self.connection.used = tube

    @_command
    def using(self, _: Server) -> str:
        return self.connection.used

    @_command
    def watch(self, server: Server, tube: str) -> int:
        if tube not in self.connection.watched:
            self.connection.watched.append(tube)
        return len(self.connection.watched)

    @_command
    def ignore(self, _: Server, tube: str) -> int:
        if self.connection.watched == [tube]:
            raise greenstalk.NotIgnoredError([])
        if tube in self.connection.watched:
            self.connection.watched.remove(tube)
        return len(self.connection.watched)

    @_command
    def watching(self, _: Server) -> list[str]:
        return list(self.connection.watched)

    @_command
    def reserve(self, server: Server, timeout: int) -> greenstalk.Job[bytes]:
        return _as_seen(server.reserve(self.connection, timeout))

    @_command
    def reserve_job(self, server: Server, number: int) -> greenstalk.Job[bytes]:
        job = server.find(number)
        if job.state == RESERVED:
            raise greenstalk.NotFoundError([])
        return _as_seen(server.take(self.connection, job))

    @_command
    def delete(self, server: Server, job: Any) -> None:
        found = server.find(_number(job))
        if found.state == RESERVED and found.holder is not self.connection:
            raise greenstalk.NotFoundError([])
        del server.jobs[found.id]

    @_command
    def release(self, server: Server, job: Any, priority: int = 65536, delay: int = 0) -> None:
        found = server.held(self.connection, job.id)
        server._raise_if_full()
        server.release(found, priority, delay)

    @_command
    def bury(self, server: Server, job: Any, priority: int = 65536) -> None:
        found = server.held(self.connection, job.id)
        server._raise_if_full()
        server.bury(found, priority)

    @_command
    def touch(self, server: Server, job: Any) -> None:
        found = server.held(self.connection, job.id)
        found.due = server.clock.now + found.ttr

    @_command
    def peek(self, server: Server, number: int) -> greenstalk.Job[bytes]:
        return _as_seen(server.find(number))

    @_command
    def peek_ready(self, server: Server) -> greenstalk.Job[bytes]:
        return _first(server.in_tube(self.connection.used, READY), lambda job: (job.priority, job.id))

    @_command
    def peek_delayed(self, server: Server) -> greenstalk.Job[bytes]:
        return _first(server.in_tube(self.connection.used, DELAYED), lambda job: (job.due, job.id))

    @_command
    def peek_buried(self, server: Server) -> greenstalk.Job[bytes]:
        return _first(server.in_tube(self.connection.used, BURIED), lambda job: job.order)

    @_command
    def kick_job(self, server: Server, number: int) -> None:
        job = server.find(_number(number))
        if job.state not in (BURIED, DELAYED):
            raise greenstalk.NotFoundError([])
        server.on_kick(job)
        server.kick(job)

    @_command
    def stats_job(self, server: Server, number: int) -> dict[str, Any]:
        job = server.find(_number(number))
        return {
            "id": job.id,
            "tube": job.tube,
            "state": job.state,
            "pri": job.priority,
            "age": int(server.clock.now - job.put_at),
            "delay": job.delay,
            "ttr": job.ttr,
            "time-left": max(0, int(job.due - server.clock.now)) if job.state in (RESERVED, DELAYED) else 0,
            **job.counts,
        }

    @_command
    def stats_tube(self, server: Server, tube: str) -> dict[str, Any]:
        if tube not in server.tube_names():
            raise greenstalk.NotFoundError([])
        counts = {f"current-jobs-{state}": len(server.in_tube(tube, state)) for state in (READY, RESERVED, DELAYED)}
        return {
            "name": tube,
            **counts,
            "current-jobs-buried": len(server.in_tube(tube, BURIED)),
            "current-watching": sum(tube in connection.watched for connection in server.connections),
        }

    @_command
    def stats(self, server: Server) -> dict[str, Any]:
        return {"version": "1.12", "draining": "false", "binlog-records-written": server._last, "max-job-size": 65_537}

    @_command
    def tubes(self, server: Server) -> list[str]:
        return server.tube_names()


def _as_seen(job: Job) -> greenstalk.Job[bytes]:
    return greenstalk.Job(job.id, job.body)


def _first(jobs: list[Job], order: Callable[[Job], Any]) -> greenstalk.Job[bytes]:
    if not jobs:
        raise greenstalk.NotFoundError([])
    return _as_seen(min(jobs, key=order))

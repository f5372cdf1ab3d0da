# SPDX-License-Identifier: Apache-2.0
"""reimzul-batch as a process, with a farm beside it whose notifier, builders and store are a thread of the test."""

from __future__ import annotations

import collections
import itertools
import json
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Callable

from reimzul.core.batch_event import BatchEvent
from reimzul.core.batch_message import BatchOrder, BatchRequest
from reimzul.core.beanstalk import (
    BATCH,
    BATCH_ORDER,
    BATCH_REQUEST,
    BATCH_RESULT,
    HELD_SECONDS,
    NOTIFY,
    Broker,
    ReservedJob,
    arch_tube,
)
from reimzul.core.control import cancel_flag
from reimzul.core.errors import ReimzulError
from reimzul.core.message import BuildEvent, BuildRequest, Status, event_for, new_attempt
from reimzul.history import open_history
from reimzul.plan.document import FOLDER, Member, Plan, journal_path, plan_path, write_plan
from reimzul.plan.journal import read_journal
from reimzul.plan.state import BatchState
from tests import commands
from tests.conftest import Beanstalkd
from tests.ini import write_ini
from tests.waiting import until

PROGRAM = Path(sys.executable).parent / "reimzul-batch"
BATCH_ID, ARCH, TARGET = "5f0c12ab", "x86_64", "c9s"
#: What a fake builder does with a build: Published, Failed, or a list of what it misses; or one of these for each arch.
Outcome = Any


def member(name: str, *needs: str, **more: Any) -> Member:
    """A member of a plan that needs others, by their names."""
    given: dict[str, Any] = {
        "name": name,
        "arch": ARCH,
        "target": f"{TARGET}.{ARCH}",
        "srpm": f"{name}-1-1.src.rpm",
        "srpm_sha256": f"{abs(hash(name)):064x}"[-64:],
        "evr": "1-1.el9",
        "tube": ARCH,
        "legs": (ARCH,),
        "disttag": ".el9",
        "needs": tuple(f"{each}.{ARCH}" for each in needs),
        "provides": (name,),
    }
    return Member(**{**given, **more})


def make_plan(*members: Member, batch: str = BATCH_ID, **more: Any) -> Plan:
    given: dict[str, Any] = {
        "batch": batch, "target": TARGET, "arches": (ARCH,), "submitter": "johnny", "created": 1.0, "priority": 8192,
    }  # fmt: skip
    return Plan(**{**given, **more}, members=members)


class Stand:
    """The controller of a farm that has batches."""

    def __init__(self, folder: Path, beanstalkd: Beanstalkd, store: str = "http://127.0.0.1:1/bstore/repo/") -> None:
        self.folder, self.beanstalkd = folder, beanstalkd
        self.incoming = folder / "incoming"
        self.incoming.mkdir(exist_ok=True)
        self.history_url = f"sqlite:///{folder}/history.sqlite"
        self.ini = write_ini(
            folder / "reimzul.ini",
            {
                "beanstalkd": {"host": beanstalkd.host, "port": beanstalkd.port},
                "incoming": {"folder": self.incoming},
                "bstore": {"base_url": store},
                "notifier": {"ledger": folder / "ledger.sqlite", "presence": folder / "presence.sqlite"},
                "history": {"url": self.history_url},
            },
        )
        self.process: commands.Command | subprocess.Popen[bytes] | None = None
        self.orders = 0

    @property
    def log(self) -> str:
        return (self.folder / "batch.log").read_text()

    def start(self) -> None:
        with (self.folder / "batch.log").open("ab") as sink:
            self.process = commands.start([PROGRAM, "--config", self.ini], files=(0, 1, sink.fileno()))

    def kill(self) -> None:
        if self.process is not None:
            self.process.send_signal(signal.SIGKILL)
            self.process.wait()
            self.process = None

    def stop(self) -> int:
        assert self.process
        self.process.terminate()
        code = self.process.wait(15)
        self.process = None
        return code

    def submit(self, broker: Broker, plan: Plan) -> BatchRequest:
        path = plan_path(self.incoming, plan.batch)
        request = BatchRequest(
            batch=plan.batch, plan_sha256=write_plan(path, plan), target=plan.target, submitter=plan.submitter
        )
        broker.put(BATCH, request, priority=BATCH_REQUEST)
        return request

    def order(self, broker: Broker, kind: str, *names: str, batch: str = BATCH_ID, **more: Any) -> BatchOrder:
        self.orders += 1
        order = BatchOrder(
            batch=batch, order=kind, id=f"{self.orders:016x}", by="johnny", at=time.time(),
            members=tuple(f"{name}.{ARCH}" for name in names), **more,
        )  # fmt: skip
        broker.put(BATCH, order, priority=BATCH_ORDER)
        return order

    def state(self, batch: str = BATCH_ID) -> BatchState:
        """What everybody can read of a batch."""
        plan = Plan.from_json(json.loads(plan_path(self.incoming, batch).read_text()))
        path = journal_path(self.incoming, batch)
        entries = list(read_journal(path)) if path.exists() else []

        def load(sha: str) -> Plan:
            return Plan.from_json(json.loads(plan_path(self.incoming, batch, sha).read_text()))

        return BatchState.replay(plan, entries, load)

    def states(self, batch: str = BATCH_ID) -> dict[str, str]:
        return {each.member.name: each.state for each in self.state(batch).members.values()}

    def wait_for(self, states: Mapping[str, str], seconds: float = 15, batch: str = BATCH_ID) -> None:
        """Wait until members are in these states, by their names."""

        def is_reached() -> bool:
            now = self.states(batch)
            return all(now[name] == state for name, state in states.items())

        try:
            until(is_reached, seconds, f"{states}")
        except AssertionError as error:
            raise AssertionError(f"{error}: {self.states(batch)}\n{self.log}") from None

    def count_entries(self, kind: str, batch: str = BATCH_ID) -> int:
        """Count entries of the journal without reading them: cheap while it grows long."""
        path = journal_path(self.incoming, batch)
        return path.read_bytes().count(b'"kind":"%b"' % kind.encode()) if path.exists() else 0

    def wait_until_put(self, names: Sequence[str], seconds: float = 60, batch: str = BATCH_ID) -> None:
        until(lambda: self.count_entries("put", batch) >= len(names), seconds, "all are put")

    def wait_until_over(self, seconds: float = 30, batch: str = BATCH_ID) -> None:
        try:
            until(lambda: self.count_entries("over", batch) and self.state(batch).is_over, seconds, "the batch is over")
        except AssertionError as error:
            raise AssertionError(f"{error}: {self.states(batch)}\n{self.log}") from None

    @property
    def single_log(self) -> Path:
        return self.incoming / FOLDER / "single.log"


class FakeFarm:
    """A notifier, builders and a store in one thread. What a builder does with a package is its outcome."""

    def __init__(self, stand: Stand, outcomes: Mapping[str, list[Outcome]] | None = None, tube: str = ARCH) -> None:
        self.stand = stand
        self.outcomes = collections.defaultdict(list, {name: list(all_) for name, all_ in (outcomes or {}).items()})
        self.is_building = threading.Event()  #: whether builders take jobs
        self.is_building.set()
        self.events: list[BuildEvent] = []
        self.news: list[BatchEvent] = []
        self.started: list[str] = []  #: packages, in the order their builds began
        self.began_after: dict[str, set[str]] = {}  #: what was published when a build began
        self.published: set[str] = set()
        self.before_hold: Callable[[], object] = lambda: None  #: what a builder waits for before it holds a job
        self.faults: list[str] = []
        self.clock_ahead = 0.0  #: seconds that the builders' clocks are ahead
        self._tube = tube
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> FakeFarm:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self._thread.join(20)
        assert not self._thread.is_alive()

    def of(self, name: str, *statuses: str) -> list[BuildEvent]:
        return [each for each in self.events if each.pkgname == name and (not statuses or each.status in statuses)]

    def _run(self) -> None:
        while not self._end.is_set():
            try:
                with self.stand.beanstalkd.connect() as broker:
                    broker.watch([NOTIFY.name])
                    with self.stand.beanstalkd.connect() as builder:
                        builder.watch([self._tube])
                        while not self._end.is_set():
                            self._pass_on(broker)
                            self._build(builder)
            except ReimzulError:
                self._end.wait(0.05)

    def _pass_on(self, broker: Broker) -> None:
        """Pass what was announced on to the history and to `batch`."""
        claims = list(itertools.islice(iter(lambda: broker.reserve({NOTIFY.name: NOTIFY}, 0), None), 500))
        events = [each.message for each in claims if isinstance(each.message, BuildEvent)]
        self.events += events
        self.news += [each.message for each in claims if isinstance(each.message, BatchEvent)]
        self.record(events)
        for event in events:
            if event.batch or event.held is not None or event.status in (*Status.FINAL, Status.PUBLISHED):
                broker.put(BATCH, event, priority=BATCH_RESULT)
        for each in claims:
            each.delete()

    def record(self, events: Sequence[BuildEvent]) -> None:
        """Record events in the history."""
        if events:
            history = open_history(self.stand.history_url)
            history.record(events)
            history.close()

    def _build(self, broker: Broker) -> None:
        if not self.is_building.is_set():
            self._end.wait(0.01)
            return
        job = broker.reserve({self._tube: arch_tube(self._tube)}, 0)
        if job is None:
            self._end.wait(0.005)
            return
        request = job.message
        if (flag := cancel_flag(broker, request.build_id)) is not None:
            self._announce(broker, request, Status.CANCELLED, attempt=new_attempt(), reason=flag.cancel_text)
            job.delete()
            return
        name = request.srpm.rpartition("-")[0].rpartition("-")[0]
        self.started.append(name)
        self.began_after[name] = set(self.published)
        waiting = self.outcomes[name]
        outcome = waiting.pop(0) if waiting else Status.PUBLISHED
        self._finish(broker, job, name, outcome if isinstance(outcome, dict) else {request.arch: outcome})

    def _finish(
        self, broker: Broker, job: ReservedJob[BuildRequest], name: str, outcomes: Mapping[str, Outcome]
    ) -> None:
        request, attempt = job.message, new_attempt()
        for arch in outcomes:
            self._announce(broker, request, Status.BUILDING, attempt=attempt, arch=arch)
        missing = {arch: tuple(outcome) for arch, outcome in outcomes.items() if isinstance(outcome, list)}
        for arch in outcomes.keys() - missing.keys():
            self._announce_result(broker, request, name, outcomes[arch], attempt=attempt, arch=arch)
        for arch, lacking in missing.items():
            about = {"attempt": attempt, "arch": arch, "at": time.time() + self.clock_ahead}
            self._announce(broker, request, Status.QUEUED, held=True, missing=lacking, job=job.id, **about)
        if missing:
            self._pass_on_now(broker)
            self.before_hold()
            job.release(HELD_SECONDS)
        else:
            job.delete()

    def _announce_result(self, broker: Broker, request: BuildRequest, name: str, outcome: str, **about: Any) -> None:
        if outcome == Status.PUBLISHED:
            self._announce(broker, request, Status.SUCCESS, **about)
            if not request.scratch:
                self._announce(broker, request, Status.PUBLISHED, **about)
                self.published.add(name)
        else:
            self._announce(broker, request, outcome, reason=f"{name} does not compile", **about)

    def _pass_on_now(self, builder: Broker) -> None:
        """Let reimzul-batch have the news before the builder holds its job, as on a busy farm."""
        with self.stand.beanstalkd.connect() as broker:
            broker.watch([NOTIFY.name])
            self._pass_on(broker)
            until(lambda: broker.tube_stats(BATCH.name).is_empty, 10, "the news has arrived")

    @staticmethod
    def _announce(broker: Broker, request: BuildRequest, status: str, **more: Any) -> None:
        name = request.srpm.rpartition("-")[0].rpartition("-")[0]
        broker.announce(event_for(request, status, pkgname=name, evr="1-1.el9", builder_fqdn="b1.example.org", **more))


def list_jobs(broker: Broker, tube: str = ARCH) -> Iterator[tuple[int, BuildRequest]]:
    """The requests in a tube's jobs, whatever state they are in, by a look at every number."""
    last = broker.put_raw("last", b"", priority=1)
    broker.delete(last)
    for number in range(1, last):
        try:
            body, stats = broker.peek(number), broker.job_stats(number)
        except ReimzulError:
            continue
        if stats.tube == tube:
            yield number, BuildRequest.decode(body)


def held_names(broker: Broker, tube: str = ARCH) -> list[str]:
    return sorted(
        request.srpm.rpartition("-")[0].rpartition("-")[0]
        for number, request in list_jobs(broker, tube)
        if broker.job_stats(number).is_held
    )

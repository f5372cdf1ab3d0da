# SPDX-License-Identifier: Apache-2.0
"""A small batch on the simulated farm: its packages, and the person who submits and steers it."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator
from typing import Any, Callable

import attr

from tests.simulate import beanstalkd, programs, scheduler
from tests.simulate.farm import ARCH, TARGET, Farm, connect
from tests.simulate.programs import DISTTAG, SEED, TWO_LEGS

# isort: split
# The farm imports the product first, on the virtual clock.
from reimzul.core.batch_message import BatchOrder, BatchRequest, OrderKind
from reimzul.core.beanstalk import BATCH, BATCH_ORDER, BATCH_REQUEST, HELD_SECONDS, Broker
from reimzul.core.errors import ReimzulError
from reimzul.core.message import BuildRequest
from reimzul.core.store_paths import leg_key
from reimzul.plan.document import Member, Plan, journal_path, plan_path, read_plan, write_plan
from reimzul.plan.journal import Entry, read_journal
from reimzul.plan.progress import MemberState
from reimzul.plan.state import BatchState

BATCH_ID = "5f0c12ab"
#: What no package provides.
NOBODYS = "nobodys"
#: The orders of a person, the usual ones more often.
_ORDERS = (
    *[OrderKind.PAUSE] * 4, OrderKind.RETRY, OrderKind.RETRY, OrderKind.RELEASE, OrderKind.SKIP, OrderKind.CANCEL,
    OrderKind.REPLACE,
)  # fmt: skip
#: The release of a source rpm that replaces another.
_LATER_RELEASE = "2"


@attr.frozen(kw_only=True)
class Given:
    """What a seed gives a batch."""

    plan: Plan
    outcomes: dict[str, programs.Outcomes]  #: of each package
    requirements: programs.Requirements
    orders: list[tuple[float, str, int]]  #: the pause before each, its kind, and the number of a member; -1: no member
    pauses: list[float]  #: seconds until a paused batch is resumed
    retries: bool  #: whether what failed is built again at the end
    settles: bool  #: whether some of what is published is built again then


def make_batch(own: random.Random) -> Given:
    """Make a batch of four to six packages that need each other, some in ways that the plan does not know."""
    count = own.randint(4, 6)
    names = [f"{TWO_LEGS if own.random() < 0.15 else ''}dep{number}" for number in range(count)]
    required: dict[str, set[str]] = {name: set() for name in names}
    planned: dict[str, set[str]] = {name: set() for name in names}
    for number, name in enumerate(names):
        for other in names[:number]:
            if own.random() < 0.4:
                required[name].add(other)
                if own.random() < 0.7:
                    planned[name].add(other)
    if own.random() < 0.2:
        _add_seed(own, names, required, planned)
    if own.random() < 0.4:
        required[own.choice(names)].add(NOBODYS)
    odds: list[list[str]] = [[]] * 8 + [[programs.FAILED], [programs.UNFIT], [programs.NOBODY]]
    outcomes = {name: {arch: list(own.choice(odds)) for arch in _legs(name)} for name in names}
    if own.random() < 0.5:
        outcomes[own.choice(names)][ARCH] = [programs.FAILED]
    old = frozenset(name for name in names if own.random() < 0.15)
    members = [_make_member(name, planned[name], name in old) for name in names]
    own.shuffle(members)
    gaps = (0.0, 1.0, 5.0, 20.0)
    return Given(
        plan=Plan(
            batch=BATCH_ID, target=TARGET.rpartition(".")[0], arches=(ARCH,), submitter="someone",
            created=scheduler.EPOCH, priority=8192, last_resort=own.random() < 0.7, members=tuple(members),
        ),
        outcomes=outcomes,
        requirements=programs.Requirements(
            of_package={name: frozenset(each) for name, each in required.items()}, old=old
        ),
        orders=[
            (own.choice(gaps) * own.random(), own.choice(_ORDERS), own.randrange(-1, count))
            for _ in range(own.choice((0, 0, 1, 2, 4)))
        ],
        pauses=[own.choice(gaps) * own.random() * 3 for _ in range(8)],
        retries=own.random() < 0.4,
        settles=own.random() < 0.2,
    )  # fmt: skip


def _add_seed(
    own: random.Random, names: list[str], required: dict[str, set[str]], planned: dict[str, set[str]]
) -> None:
    """Let a package require one that needs it, and break that cycle by a seed."""
    pairs = [(first, last) for last in names for first in sorted(planned[last]) if not first.startswith(TWO_LEGS)]
    if not pairs:
        return
    first, last = own.choice(pairs)
    seed = f"{first}{SEED}"
    required[seed], planned[seed] = set(required[first]), set(planned[first])
    for name in names[: names.index(last) + 1]:
        if first in planned[name]:
            planned[name] = planned[name] - {first} | {seed}
    required[first].add(last)
    planned[first].add(last)
    names.append(seed)


def _legs(name: str) -> tuple[str, ...]:
    return (ARCH, "i386") if name.startswith(TWO_LEGS) else (ARCH,)


def _make_member(name: str, needs: set[str], is_listed: bool) -> Member:
    plain = name.removesuffix(SEED)
    is_seed = name != plain
    return Member(
        name=name, arch=ARCH, target=TARGET, **_name_source(plain, "1"), tube=ARCH, legs=(ARCH,),
        disttag=f"{DISTTAG}~bootstrap" if is_seed else DISTTAG, bconds=("bootstrap",) if is_seed else (),
        needs=tuple(f"{each}.{ARCH}" for each in sorted(needs)), provides=(plain,), packages=(plain,),
        is_listed=is_listed and not is_seed,
    )  # fmt: skip


def _name_source(name: str, release: str) -> dict[str, Any]:
    """What a member has of its source rpm."""
    body = programs.package_text(name, ARCH, is_source=True, release=release)
    digest = hashlib.sha256(body).hexdigest()
    return {"srpm": f"{name}-1-{release}.src.rpm", "srpm_sha256": digest, "evr": f"1-{release}"}


@attr.define(eq=False)
class Person:
    """Submits a batch, steers it, and looks at what everybody can read of it."""

    farm: Farm
    given: Given
    is_done: bool = False
    wrong: list[str] = attr.field(factory=list)  #: what was seen that must never be
    _journal: bytes = b""
    _entries: list[Entry] = attr.field(factory=list)
    _state: BatchState = attr.field(init=False)
    _orders: int = 0

    def __attrs_post_init__(self) -> None:
        self._state = self._begin()

    def _begin(self) -> BatchState:
        def load_plan(sha256: str) -> Plan:
            return read_plan(plan_path(self.farm.incoming, BATCH_ID, sha256), sha256)

        return BatchState(self.given.plan, load_plan)

    @property
    def entries(self) -> list[Entry]:
        """The journal."""
        self._read()
        return self._entries

    @property
    def state(self) -> BatchState:
        """The batch as its journal has it now."""
        self._read()
        return self._state

    def _read(self) -> None:
        path = journal_path(self.farm.incoming, BATCH_ID)
        body = path.read_bytes() if path.exists() else b""
        if body == self._journal:
            return
        is_longer = body.startswith(self._journal)  # else its end was taken back
        self._journal = body
        entries = list(read_journal(path))
        if not is_longer or len(entries) < len(self._entries):
            self._state, self._entries = self._begin(), []
        for entry in entries[len(self._entries) :]:
            self._state.apply(entry)
        self._entries = entries

    # --- acting

    def live(self) -> None:
        """Submit the batch and give all orders, until it is at rest."""
        world = scheduler.world
        world.sleep(world.random.random() * 6)
        sha256 = write_plan(plan_path(self.farm.incoming, BATCH_ID), self.given.plan)
        request = BatchRequest(batch=BATCH_ID, plan_sha256=sha256, target=self.given.plan.target, submitter="someone")
        self._insist(lambda broker: broker.put(BATCH, request, priority=BATCH_REQUEST))
        for gap, kind, number in self.given.orders:
            world.sleep(gap)
            members = (self.given.plan.members[number].key,) if number >= 0 else ()
            if kind == OrderKind.PAUSE:
                self._order(kind)
            elif kind == OrderKind.REPLACE:
                self._replace(number)
            elif kind == OrderKind.CANCEL or members:
                self._order(kind, *members)
            if self.state.is_paused or kind == OrderKind.PAUSE:
                self._resume()
        self._wait_for_rest()
        broken = [key for key, each in self.state.members.items() if each.state in MemberState.BROKEN]
        if self.given.retries and broken:
            self._order(OrderKind.RETRY, *broken)
            self._wait_for_rest()
        published = [key for key, each in self.state.members.items() if each.state == MemberState.PUBLISHED]
        if self.given.settles and published:
            self._order(OrderKind.SETTLE, *published[:2], settle_pass=1)
            self._wait_for_rest()
        self.is_done = True

    def _insist(self, put: Callable[[Broker], int]) -> None:
        """Put something, again and again until beanstalkd confirms it."""
        while True:
            try:
                with connect() as broker:
                    put(broker)
                    return
            except ReimzulError:
                scheduler.world.sleep(1.0)

    def _order(self, kind: str, *members: str, **more: Any) -> None:
        self._orders += 1
        order = BatchOrder(
            batch=BATCH_ID, order=kind, id=f"{self._orders:016x}", by="someone", at=scheduler.world.time(),
            members=members, **more,
        )  # fmt: skip
        self._insist(lambda broker: broker.put(BATCH, order, priority=BATCH_ORDER))
        while order.id not in self.state.orders:
            scheduler.world.sleep(1.0)

    def _replace(self, number: int) -> None:
        """Replace a member's source rpm by a later release, as `reimzul batch replace` does."""
        member, plan = self.state.plan.members[number], self.state.plan
        is_refused = member.evr == f"1-{_LATER_RELEASE}" or member.bconds or self.state.is_over
        if number < 0 or is_refused or self.state.cancel_reason:
            return
        newer = attr.evolve(member, **_name_source(member.name, _LATER_RELEASE))
        text = programs.package_text(member.name, ARCH, is_source=True, release=_LATER_RELEASE)
        self.farm.sources[newer.srpm] = text
        after = attr.evolve(plan, members=tuple(newer if each is member else each for each in plan.members))
        sha256 = hashlib.sha256(after.to_bytes()).hexdigest()
        write_plan(plan_path(self.farm.incoming, BATCH_ID, sha256), after)
        self._order(OrderKind.REPLACE, newer.key, plan_sha256=sha256)

    def _resume(self) -> None:
        scheduler.world.sleep(self.given.pauses[self._orders % len(self.given.pauses)])
        self._order(OrderKind.RESUME)

    def _wait_for_rest(self) -> None:
        while not self.is_at_rest:
            if self.state.is_paused:
                self._resume()
            scheduler.world.sleep(5.0)

    @property
    def is_at_rest(self) -> bool:
        return self.state.is_over or self.state.rests

    def describe(self) -> list[str]:
        """What the batch is like now."""
        members = [f"{key} is {each.state} {each.missing or ''}" for key, each in self.state.members.items()]
        return [f"the batch is {'paused' if self.state.is_paused else 'not at rest'}: {', '.join(members)}"]

    # --- watching

    def watch_kick(self, job: beanstalkd.Job) -> None:
        """Note a job that must not become ready now."""
        request = self.request_of(job)
        if request is None or scheduler.world.current.process.name != "batch":
            return
        for other in self.farm.server.jobs.values():
            if other is job or is_held(other) or (its := self.request_of(other)) is None:
                continue
            record = self.farm.records.history.get(leg_key(its.build_id, ARCH))
            is_over = record is not None and record.is_over  # another worker may still have its job
            # a worker whose reservation has expired may have put the same build again
            is_other = its.srpm == request.srpm and its.build_id != request.build_id and not is_over
            if is_other and self.state.find_member(its.build_id) is self.state.find_member(request.build_id):
                self.wrong.append(f"{request.srpm}: job {job.id} was released beside job {other.id}, {other.state}")
        progress = self.state.find_member(request.build_id)
        if self.state.is_paused and progress is not None and not progress.is_forced:
            self.wrong.append(f"{request.srpm}: was released while the batch was paused")

    def request_of(self, job: beanstalkd.Job) -> BuildRequest | None:
        """The request of a member's job; None for any other job."""
        if job.tube != ARCH:
            return None
        request = BuildRequest.decode(job.body)
        return request if request.batch == BATCH_ID else None

    def list_jobs(self) -> Iterator[tuple[beanstalkd.Job, BuildRequest]]:
        for job in self.farm.server.jobs.values():
            if (request := self.request_of(job)) is not None:
                yield job, request


def is_held(job: beanstalkd.Job) -> bool:
    return job.state == beanstalkd.DELAYED and job.due - scheduler.world.now > HELD_SECONDS / 2

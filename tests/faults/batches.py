# SPDX-License-Identifier: Apache-2.0
"""Bad things that are done to a farm while a batch is built. `kinds` explains the kinds."""

from __future__ import annotations

import contextlib
import json
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import attr

from devfarm.processes import PartFailed, own_program
from reimzul.core.batch_message import BatchOrder, BatchRequest, OrderKind
from reimzul.core.beanstalk import BATCH, BATCH_ORDER, BATCH_REQUEST, BATCH_RESULT
from reimzul.core.errors import ReimzulError
from reimzul.core.message import BuildEvent
from reimzul.history.incoming import copy_source
from reimzul.plan.batches import load_batch
from reimzul.plan.document import Member, Plan, journal_path, plan_path, write_plan
from reimzul.plan.journal import EntryKind, read_journal
from reimzul.plan.progress import MemberState
from reimzul.plan.state import BatchState
from tests.faults import checks
from tests.faults.kinds import kind, signalled
from tests.faults.ledger import ARCH, TARGETS, Build, Recipe
from tests.faults.trial import Trial
from tests.waiting import until

_GOOD = Recipe(source="plain", legs={ARCH: "Success"})
_BAD = Recipe(source="plain", legs={ARCH: "Failed"})
#: Members that are held while beanstalkd is killed; in CI, fewer.
_HELD, _HELD_IN_CI = 4000, 300
#: How many messages tests in CI send, by which such a trial is known.
_CI_MESSAGES = 1000
#: Seconds until a batch of a few members is over.
_PATIENCE = 60.0


@attr.define
class Batch:
    """A batch of a trial. Its members are built of one source, and known by their disttags."""

    trial: Trial
    id: str
    builds: dict[str, Build]  #: by the member's key
    orders: int = 0

    @property
    def journal(self) -> Path:
        return journal_path(self.trial.ground.farm.layout.incoming, self.id)

    def read(self) -> BatchState:
        return load_batch(self.trial.ground.farm.layout.incoming, self.id)

    def states(self) -> dict[str, str]:
        return {key: each.state for key, each in self.read().members.items()}

    def wait_for(self, states: Sequence[str], key: str, seconds: float = _PATIENCE) -> None:
        until(lambda: self.states()[key] in states, seconds, f"{key} is {' or '.join(states)}")

    def wait_for_rest(self, seconds: float = _PATIENCE) -> None:
        try:
            until(lambda: self.read().is_over or self.read().rests, seconds, f"batch {self.id} is at rest")
        except AssertionError as error:
            raise AssertionError(f"{error}: {self.states()}") from None

    def order(self, order_kind: str, *keys: str) -> None:
        self.orders += 1
        order = BatchOrder(
            batch=self.id, order=order_kind, id=f"{self.orders:016x}", by=self.trial.name, at=time.time(), members=keys
        )
        with self.trial.ground.broker() as broker:
            broker.put(BATCH, order, priority=BATCH_ORDER)
        until(lambda: order.id in self.read().orders, 20, f"{order_kind} is noted")

    def end(self) -> None:
        """End what still waits, so that the next trial finds no held jobs."""
        if not self.read().is_over:
            self.order(OrderKind.CANCEL)
            until(lambda: self.read().is_over, 120, f"batch {self.id} is over")

    def check(self) -> None:
        """Have all members looked at when the farm has settled; those that ended as planned have their builds."""

        def look() -> None:
            state, found = self.read(), []
            for key, progress in state.members.items():
                self.builds[key].build_id = progress.build_id
                if not state.is_ended(progress):
                    found.append(f"{key}: is {progress.state} at the end")
            ended = [
                self.builds[key] for key, progress in state.members.items()
                if progress.state in (MemberState.PUBLISHED, MemberState.FAILED)
            ]  # fmt: skip
            found += checks.check_members(self.trial.ground, ended, self.trial.loose)
            found += self._find_doubles()
            self.trial.outcome.faults += found

        self.trial.later(look)

    def _find_doubles(self) -> list[str]:
        """Find builds that were put twice."""
        entries = read_journal(self.journal)
        puts = Counter(entry["build"] for entry in entries if entry["kind"] == EntryKind.PUT)
        return [f"build {build} was put {count} times" for build, count in puts.items() if count > 1]


def submit(trial: Trial, needs: Mapping[str, Sequence[str]], bad: Sequence[str] = (), seconds: float = 0.3) -> Batch:
    """Write a plan as reimzul-submit does, and ask for its builds."""
    ground = trial.ground
    checksum, _ = copy_source(ground.sources["plain"], ground.farm.layout.incoming)
    builds, members = {}, []
    for name, needed in needs.items():
        recipe = _BAD if name in bad else _GOOD
        build = Build(name=f"{trial.name}{name}", recipe=recipe, target=TARGETS[0], seconds=(seconds,))
        (ground.home / "plans" / f"{build.disttag}.json").write_text(json.dumps(ground.plan(build)))
        member = Member(
            name=name, arch=ARCH, target=f"{TARGETS[0]}.{ARCH}", srpm=ground.sources["plain"].name,
            srpm_sha256=checksum, evr="1.0-1", tube=ARCH, legs=(ARCH,), disttag=build.disttag,
            needs=tuple(f"{each}.{ARCH}" for each in needed),
        )  # fmt: skip
        builds[member.key] = build
        members.append(member)
    batch_id = f"{trial.chance.getrandbits(32):08x}"
    plan = Plan(
        batch=batch_id, target=TARGETS[0], arches=(ARCH,), submitter=trial.name, created=round(time.time(), 3),
        priority=8192, members=tuple(members),
    )  # fmt: skip
    sha256 = write_plan(plan_path(ground.farm.layout.incoming, batch_id), plan)
    request = BatchRequest(batch=batch_id, plan_sha256=sha256, target=plan.target, submitter=plan.submitter)
    with ground.broker() as broker:
        broker.put(BATCH, request, priority=BATCH_REQUEST)
    batch = Batch(trial, batch_id, builds)
    batch.check()
    until(lambda: batch.read().is_accepted, 20, "the batch is accepted")
    return batch


#: A chain of three, and one beside it.
_CHAIN: Mapping[str, Sequence[str]] = {"base": (), "mid": ("base",), "top": ("mid",), "side": ()}


@kind("batch-kill", latest=0.0, builds=(0, 2), weight=2)
def batch_kill(trial: Trial) -> str:
    """SIGKILL of reimzul-batch, again and again while a batch is built: each member is built once."""
    batch, kills = submit(trial, _CHAIN), 0
    deadline = time.monotonic() + trial.chance.uniform(2, 5)
    while time.monotonic() < deadline:
        time.sleep(trial.chance.uniform(0, 0.8))
        with contextlib.suppress(PartFailed):
            signalled(trial, "batch", signal.SIGKILL)
            kills += 1
    batch.wait_for_rest()
    return f"{kills} times SIGKILL to batch"


@kind("batch-held", latest=0.0, builds=(0, 0), patience=120)
def batch_held(trial: Trial) -> str:
    """beanstalkd is killed while many jobs are held: all of them come back, held."""
    count = _HELD_IN_CI if trial.messages <= _CI_MESSAGES else _HELD
    names = [f"m{number}" for number in range(count)]
    batch = submit(trial, {"base": (), **dict.fromkeys(names, ("base",))}, bad=["base"])
    until(lambda: batch.journal.read_bytes().count(b'"kind":"put"') > count, 120, "all are put")
    began = time.monotonic()
    trial.ground.farm.kill("beanstalkd")
    jobs = {each.job for each in batch.read().members.values() if each.member.name != "base"}
    until(lambda: count_held(trial, jobs) == count, 60, "all are held again")
    trial.measure("seconds until all held jobs were back", time.monotonic() - began, 60)
    batch.wait_for_rest()
    batch.end()
    return f"SIGKILL to beanstalkd with {count} held jobs"


def count_held(trial: Trial, jobs: set[int]) -> int:
    """How many of these jobs are held; 0 while beanstalkd is away."""
    try:
        with trial.ground.broker() as broker:
            return sum(broker.job_stats(each).is_held for each in jobs)
    except ReimzulError:
        return 0


@kind("batch-failure", latest=0.0, builds=(0, 2))
def batch_failure(trial: Trial) -> str:
    """A member fails in the middle: what needs it waits and is named, its siblings are built, a retry fails again."""
    batch = submit(trial, _CHAIN, bad=["mid"])
    batch.wait_for_rest()
    wanted = {f"base.{ARCH}": "published", f"mid.{ARCH}": "failed", f"top.{ARCH}": "held", f"side.{ARCH}": "published"}
    if batch.states() != wanted:
        trial.outcome.faults.append(f"a member failed: {batch.states()}, not {wanted}")
    trial.ground.farm.kill("batch")
    batch.order(OrderKind.RETRY, f"mid.{ARCH}")
    batch.wait_for_rest()
    if batch.states() != wanted:
        trial.outcome.faults.append(f"a member failed again: {batch.states()}, not {wanted}")
    batch.end()
    return "a member failed in the middle, and again"


@kind("batch-twice", latest=0.0, builds=(0, 2))
def batch_twice(trial: Trial) -> str:
    """Each event of a batch arrives again, and the request too: nothing is built or released twice."""
    batch = submit(trial, _CHAIN)
    batch.wait_for((MemberState.PUBLISHED,), f"base.{ARCH}")
    trial.ground.farm.hold("batch")
    entries = list(read_journal(batch.journal))
    events = [BuildEvent.from_json(entry["event"]) for entry in entries if entry["kind"] == EntryKind.EVENT]
    with trial.ground.broker() as broker:
        for event in trial.chance.sample(events, len(events)):
            broker.put(BATCH, event, priority=BATCH_RESULT)
    trial.ground.farm.release("batch")
    batch.wait_for_rest()
    calls = {key: Counter(each.what for each in trial.ground.calls(build)) for key, build in batch.builds.items()}
    trial.outcome.faults += [
        f"{key} was begun {each['start']} times" for key, each in calls.items() if each["start"] != 1
    ]
    return f"{len(events)} events of a batch came twice"


@kind("batch-plan", latest=0.0, builds=(0, 2))
def batch_plan(trial: Trial) -> str:
    """The plan's file is gone when reimzul-batch starts: it and doctor say so, and with the file the batch goes on."""
    ground = trial.ground
    batch = submit(trial, _CHAIN, seconds=1.0)
    batch.wait_for((MemberState.BUILDING,), f"base.{ARCH}")
    path, log = plan_path(ground.farm.layout.incoming, batch.id), ground.farm.layout.part_log("batch")
    aside = ground.home / path.name
    path.rename(aside)
    ground.farm.kill("batch")
    words = f"batch {batch.id} is not touched"
    until(lambda: words in log.read_text(), 20, "the log says that the batch is not touched")
    if (said := examine(trial)) is None or batch.id not in said:
        trial.outcome.faults.append(f"doctor does not name the batch: {said}")
    until(lambda: "end" in [each.what for each in ground.calls(batch.builds[f"base.{ARCH}"])], 20, "base is built")
    time.sleep(trial.chance.uniform(0, 2))
    aside.rename(path)
    batch.wait_for_rest()
    return "the plan was gone while reimzul-batch was restarted"


def examine(trial: Trial) -> str | None:
    """What doctor says of batches on the controller, if that is a fault."""
    argv = [own_program("reimzul"), "doctor", "--json", "--config", str(trial.ground.farm.ini())]
    done = subprocess.run(argv, stdout=subprocess.PIPE, timeout=60, check=False)
    found = json.loads(done.stdout)["checks"]
    return next((each["message"] for each in found if each["name"] == "batch.plans" and each["level"] == "FAIL"), None)

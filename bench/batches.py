# SPDX-License-Identifier: Apache-2.0
"""How fast commands and reimzul-batch are with many batches in a long history: `python -m bench.batches`.

History, plans, journals and held jobs are written as the daemons would have done. The batches that are not over are
half done. Commands are whole processes; reimzul-batch is one from its start until it has obeyed an order.
"""

from __future__ import annotations

import os
import random
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import attr
import click

from bench.admin import fill_past, open_farm, timed
from bench.batch import ARCH, MEDIAN_SECONDS, invent_needs, make_plan, topological
from bench.report import Figure, progress, resident, tell
from reimzul.core.batch_message import BatchOrder, OrderKind
from reimzul.core.beanstalk import BATCH, BATCH_ORDER, HELD_SECONDS, Broker, arch_tube
from reimzul.core.message import BuildEvent, BuildRequest, Status, event_for, new_attempt
from reimzul.history import History
from reimzul.plan.announcements import announced_entry, find_announcements
from reimzul.plan.document import Member, Plan, journal_path, plan_path, write_plan
from reimzul.plan.journal import Entry, EntryKind, Journal, event_entry
from reimzul.plan.state import BatchState
from tests.waiting import until

PROGRAM = Path(sys.executable).parent / "reimzul-batch"
#: The share of members that fail, and of how many causes.
_FAILED_SHARE, _CAUSES = 0.05, 30
_EVENTS_AT_ONCE = 5_000


@attr.define
class Writer:
    """Writes what a batch leaves in the journal, in the history, and in beanstalkd."""

    plan: Plan
    broker: Broker
    state: BatchState = attr.field(init=False)
    at: float = attr.field(init=False)
    entries: list[Entry] = attr.field(factory=list)
    events: list[BuildEvent] = attr.field(factory=list)

    def __attrs_post_init__(self) -> None:
        self.state, self.at = BatchState(self.plan), self.plan.created

    def note(self, kind: str, **more: Any) -> None:
        self.at += 0.01
        self.add({"kind": kind, "at": self.at, **more})

    def add(self, entry: Entry) -> None:
        self.entries.append(entry)
        self.state.apply(entry)

    def announce(self, request: BuildRequest, member: Member, status: str, **more: Any) -> None:
        self.at += 0.01
        event = event_for(request, status, pkgname=member.name, evr=member.evr, at=self.at, **more)
        self.events.append(event)
        self.add(event_entry(event, self.at))

    def put(self, member: Member, job: int = 0) -> BuildRequest:
        """Put a build held; a job that is not given is real."""
        request = BuildRequest(
            srpm=member.srpm, arch=ARCH, target=member.target, disttag=member.disttag, submitter="bench",
            build_id=self.state.next_build_id(member.key), srpm_sha256=member.srpm_sha256, batch=self.plan.batch,
            timestamp=time.strftime("%Y%m%d%H%M%S", time.gmtime(self.at)),
        )  # fmt: skip
        priority = self.plan.priority + member.rank
        job = job or self.broker.put(arch_tube(ARCH), request, priority=priority, delay=HELD_SECONDS)
        about = {"job": job, "count": 0, "disttag": member.disttag}
        self.note(EntryKind.PUT, member=member.key, build=request.build_id, **about)
        self.events.append(
            event_for(
                request, Status.QUEUED, pkgname=member.name, evr=member.evr, at=self.at, held=True, job=job, tube=ARCH,
                priority=priority, reason=f"held for batch {self.plan.batch}",
            )
        )  # fmt: skip
        return request

    def build(self, request: BuildRequest, member: Member, cause: int) -> None:
        """Build a member, and let it fail for a cause unless that is 0."""
        by = {"attempt": new_attempt(), "builder_fqdn": "b1.example.org"}
        self.note(EntryKind.RELEASED, member=member.key, build=request.build_id)
        self.announce(request, member, Status.BUILDING, **by)
        if cause:
            line = f"x.c:1:2: error: no {'abcdefghijklmnopqrstuvwxyzABCDEFGH'[cause]}"
            self.announce(request, member, Status.FAILED, reason="%build failed", error_line=line, **by)
        else:
            place = f"repo/{member.target}/{member.name}/{request.timestamp}/1-1.{ARCH}"
            self.announce(request, member, Status.PUBLISHED, place=place, **by)


def write_batch(
    incoming: Path, broker: Broker, plan: Plan, needs: Mapping[str, Sequence[str]], *, is_over: bool
) -> Iterator[BuildEvent]:
    """Write the files of a batch, and yield what was announced. Only members that nobody needs fail."""
    rng, writer = random.Random(plan.batch), Writer(plan, broker)
    writer.note(EntryKind.ACCEPTED, plan_sha256=write_plan(plan_path(incoming, plan.batch), plan), job=1)
    members = {each.name: each for each in plan.members}
    needed = {need for each in needs.values() for need in each}
    order = topological(needs)
    built = order if is_over else order[: len(order) // 2]
    requests = {name: writer.put(members[name], number) for number, name in enumerate(built, 1)}
    for name in order[len(built) :]:
        writer.put(members[name])
    for name in built:
        fails = name not in needed and rng.random() < _FAILED_SHARE * len(needs) / (len(needs) - len(needed))
        writer.build(requests[name], members[name], rng.randint(1, _CAUSES) if fails else 0)
    if is_over:
        writer.note(EntryKind.OVER)
    for news in find_announcements(writer.state):
        writer.add(announced_entry(news, writer.at))
    journal = Journal(journal_path(incoming, plan.batch))
    journal.append(writer.entries)
    journal.close()
    yield from writer.events


def fill_batches(folder: Path, history: History, broker: Broker, counts: tuple[int, int, int]) -> list[BatchState]:
    """Write so many batches, the last of them unfinished, each of so many members; return their states."""
    batches, unfinished, members = counts
    states = []
    for number in range(batches):
        rng = random.Random(number)
        needs = invent_needs(members, rng)
        durations = {name: rng.lognormvariate(0.0, 1.0) * MEDIAN_SECONDS for name in needs}
        created = time.time() - 3600.0 * (batches - number)
        plan = attr.evolve(make_plan(needs, durations), batch=f"{number:08x}", created=created)
        is_over = number < batches - unfinished
        events = list(write_batch(folder / "incoming", broker, plan, needs, is_over=is_over))
        for first in range(0, len(events), _EVENTS_AT_ONCE):
            history.record(events[first : first + _EVENTS_AT_ONCE])
        states.append(BatchState(plan))
    return states


def list_commands(states: Sequence[BatchState]) -> dict[str, list[str]]:
    """The commands, by what the report calls them."""
    first, last = states[0], states[-1]
    plan = last.plan
    order = [each.key for each in sorted(plan.members, key=lambda each: each.chain)]
    held, built = last.next_build_id(order[0]), last.next_build_id(order[-1])
    return {
        "reimzul builds": ["builds"],
        "reimzul builds --batch, the newest": ["builds", "--batch", plan.batch],
        "reimzul batch list": ["batch", "list"],
        "reimzul batch show, unfinished": ["batch", "show", plan.batch],
        "reimzul batch show --json, unfinished": ["batch", "show", plan.batch, "--json", "--limit", "100000"],
        "reimzul batch show, over": ["batch", "show", first.plan.batch],
        "reimzul causes --batch": ["causes", "--batch", first.plan.batch],
        "reimzul explain, a held member": ["explain", held],
        "reimzul explain, a published member": ["explain", built],
    }


def measure_command(ini: Path, words: list[str]) -> tuple[float, float]:
    """Seconds that a command took, and seconds of a processor."""
    before = os.times()
    took, after = timed(ini, words), os.times()
    spent = (each.children_user + each.children_system for each in (after, before))
    return took, next(spent) - next(spent)


def measure_daemon(folder: Path, ini: Path, broker: Broker, batch: str) -> tuple[float, float, float]:
    """Seconds from the start of reimzul-batch until it has obeyed an order, and MiB then and after its first checks."""
    order = BatchOrder(batch=batch, order=OrderKind.PAUSE, id="0" * 16, by="bench", at=time.time())
    broker.put(BATCH, order, priority=BATCH_ORDER)
    journal, log = journal_path(folder / "incoming", batch), folder / "batch.log"
    began = time.monotonic()
    with log.open("ab") as sink:
        daemon = subprocess.Popen([PROGRAM, "--config", ini], stderr=sink)
    try:
        until(lambda: b'"kind":"order"' in journal.read_bytes()[-100_000:], 120, "the order is obeyed")
        took, early = time.monotonic() - began, resident(daemon.pid)
        time.sleep(15)
        return took, early, resident(daemon.pid)
    finally:
        daemon.terminate()
        daemon.wait()


@click.command("bench.batches")
@click.option("--past", default=200_000, show_default=True, help="Builds outside batches, which are over.")
@click.option("--batches", default=10, show_default=True)
@click.option("--unfinished", default=1, show_default=True, help="How many of the batches are half done.")
@click.option("--members", default=4_000, show_default=True, help="Members of each batch.")
@click.option("--count", default=3, show_default=True, help="How often each command is run.")
def command(past: int, batches: int, unfinished: int, members: int, count: int) -> None:
    """Fill a farm with batches, and ask it."""
    with ExitStack() as stack:
        more = "ledger = FOLDER/l.sqlite\n[batch]\nenabled = true\n[incoming]\nfolder = FOLDER/incoming\n"
        folder, ini, broker, history = open_farm(stack, more)
        (folder / "incoming").mkdir()
        progress(f"{past} builds, {batches} batches of {members} members, {unfinished} of them unfinished")
        fill_past(history, past)
        states = fill_batches(folder, history, broker, (batches, unfinished, members))
        figures = []
        for name, words in list_commands(states).items():
            progress(name)
            runs = [measure_command(ini, words) for _ in range(count)]
            figures.append(Figure(what=name, unit="s", values=[took for took, _ in runs], goal="1"))
            figures.append(Figure(what="its processor time", unit="s", values=[spent for _, spent in runs]))
        progress("reimzul-batch")
        took, early, late = measure_daemon(folder, ini, broker, states[-1].plan.batch)
        figures += [
            Figure(what="reimzul-batch, start to an order obeyed", unit="s", values=[took], goal="2"),
            Figure(what="its memory then", unit="MiB", values=[early]),
            Figure(what="its memory after the checks", unit="MiB", values=[late]),
        ]
        tell("batches", figures, {"past": past, "batches": batches, "unfinished": unfinished, "members": members})


if __name__ == "__main__":
    command()

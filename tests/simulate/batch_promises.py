# SPDX-License-Identifier: Apache-2.0
"""What the farm promises of batches (docs/promises.md), compared with what a run has left of one."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from tests.simulate import batches, programs
from tests.simulate.batches import NOBODYS, Person
from tests.simulate.farm import ARCH, TRIES

# isort: split
# The farm imports the product first, on the virtual clock.
from reimzul.core.batch_event import BatchStatus
from reimzul.core.batch_message import OrderKind
from reimzul.core.store_paths import leg_key
from reimzul.plan.journal import Entry, EntryKind
from reimzul.plan.progress import MemberProgress, MemberState

#: What the history has of a member's build, by the member's state.
_STATES = {
    MemberState.PUBLISHED: {"published"},
    MemberState.FAILED: {"failed"},
    MemberState.REJECTED: {"rejected"},
    MemberState.CANCELLED: {"cancelled", "published"},  #: an upload may be found after days
    MemberState.SKIPPED: {"cancelled", "failed", "rejected"},
}


def find_broken(person: Person) -> Iterator[str]:
    """Yield a sentence for each promise that is broken."""
    yield from person.wrong
    for progress in person.state.members.values():
        if person.state.is_ended(progress):
            yield from _check_end(person, progress)
        else:
            yield from _check_waiting(person, progress)
    yield from _check_builds(person)
    yield from _check_order(person)
    yield from _check_pauses(person)
    yield from _check_jobs(person)
    yield from _check_news(person)


def _check_end(person: Person, progress: MemberProgress) -> Iterator[str]:
    """A member has ended as its package has to, and its newest build in the history likewise."""
    record = person.farm.records.history.get(leg_key(progress.build_id, ARCH))
    if progress.build_id and (record is None or record.state not in _STATES[progress.state]):
        yield f"{progress.key}: is {progress.state}, and its build {record.state if record else 'unknown'}"
    for leg, state in progress.followers.items():
        record = person.farm.records.history.get(leg_key(progress.build_id, leg))
        if record is None or record.state not in _STATES[state]:
            yield f"{progress.key}: its {leg} is {state}, and in the history {record.state if record else 'unknown'}"
    if progress.state == MemberState.FAILED and not _may_fail(person, progress):
        yield f"{progress.key}: failed ({progress.reason}), though nothing was wrong with it"
    ordered = {OrderKind.CANCEL, OrderKind.SKIP} & {each["order"] for each in _orders(person)}
    if progress.state in (MemberState.CANCELLED, MemberState.SKIPPED) and not ordered:
        yield f"{progress.key}: is {progress.state}, which nobody has ordered"


def _may_fail(person: Person, progress: MemberProgress) -> bool:
    name = progress.member.name
    outcomes = [outcome for each in person.given.outcomes[name].values() for outcome in each]
    lacks = [
        each for each in person.given.requirements.of_package[name]
        if each == NOBODYS or person.state.members[f"{each}.{ARCH}"].state != MemberState.PUBLISHED
    ]  # fmt: skip
    is_faulty = outcomes.count(programs.UNFIT) >= TRIES or any(" disk b" in each for each in person.farm.happened)
    return bool(programs.FAILED in outcomes or lacks or is_faulty)


def _check_waiting(person: Person, progress: MemberProgress) -> Iterator[str]:
    """What has not ended waits behind a member that failed, in a batch that rests."""
    state = person.state
    roots = [state.members[each].state for each in state.find_roots(progress.key)]
    if state.is_over or progress.state not in (MemberState.HELD, MemberState.WAITING):
        yield f"{progress.key}: is {progress.state} in a batch that {'is over' if state.is_over else 'rests'}"
    elif not set(roots) & set(MemberState.BROKEN):
        yield f"{progress.key}: is {progress.state} behind {roots or 'nobody'}; missing {progress.missing}"


def _check_builds(person: Person) -> Iterator[str]:
    """Every build that was put has ended once, unless its member waits; there are no others."""
    builds = Counter(each["build"] for each in person.entries if each["kind"] == EntryKind.PUT)
    yield from (f"build {build}: put {count} times" for build, count in builds.items() if count > 1)
    waiting = {each.build_id for each in person.state.members.values() if not person.state.is_ended(each)}
    for key, record in person.farm.records.history.items():
        if record.batch and record.build_id not in builds:
            yield f"{key}: a build of a batch that its journal does not have"
        elif record.build_id in builds and record.build_id not in waiting and not record.is_over:
            yield f"{key}: is {record.state}, and nobody waits for it"


def _check_order(person: Person) -> Iterator[str]:
    """Nobody was built before what the plan has it need was published, but as a person or the last resort wanted."""
    exempt = {each["members"][0] for each in _orders(person) if each["order"] == OrderKind.RELEASE}
    exempt |= {each["member"] for each in person.entries if each["kind"] == EntryKind.RELEASED and each.get("stale")}
    skipped = {key for each in _orders(person) if each["order"] == OrderKind.SKIP for key in each["members"]}
    for start in person.given.requirements.starts:
        progress = person.state.members.get(f"{start.package}.{ARCH}")
        if progress is None:
            continue  # a build outside the batch
        needs = {each: each.rpartition(".")[0].removesuffix(programs.SEED) for each in progress.member.needs}
        early = {each for each, name in needs.items() if name in start.unlisted} - skipped
        if early and progress.key not in exempt:
            yield f"{progress.key}: was built before {', '.join(sorted(early))} was published"


def _check_pauses(person: Person) -> Iterator[str]:
    """A paused batch releases nobody but whom a person wants to be built."""
    is_paused, forced = False, set()
    for entry in person.entries:
        if entry["kind"] == EntryKind.PAUSED or entry.get("order") == OrderKind.PAUSE:
            is_paused = True
        elif entry.get("order") == OrderKind.RESUME:
            is_paused = False
        elif entry.get("order") == OrderKind.RELEASE:
            forced.update(entry["members"])
        elif entry["kind"] == EntryKind.RELEASED and is_paused and entry["member"] not in forced:
            yield f"{entry['member']}: was released in a batch that was paused"


def _check_jobs(person: Person) -> Iterator[str]:
    """A member that waits has one job, which is held; others have none, but for doubles while the batch rests.

    A worker puts a job again that a full beanstalkd has lost track of, and the lost one comes back with a restart.
    """
    jobs: Counter[str] = Counter()
    for job, request in person.list_jobs():
        progress = person.state.find_member(request.build_id)
        is_double = progress is not None and progress.job != job.id
        if is_double and batches.is_held(job) and not person.state.is_over:
            continue
        if progress is None or is_double or person.state.is_ended(progress):
            yield f"job {job.id} is {job.state}, and nobody's: {request.srpm}"
        else:
            jobs[progress.key] += 1
    for key, progress in person.state.members.items():
        if not person.state.is_ended(progress) and jobs[key] != 1:
            yield f"{key}: is {progress.state}, and has {jobs[key]} jobs"


def _check_news(person: Person) -> Iterator[str]:
    """People were notified that the batch is over, or that it rests."""
    status = BatchStatus.OVER if person.state.is_over else BatchStatus.RESTING
    if not any(each.status == status for each in person.farm.records.mails):
        yield f"nobody was notified: {status}"


def _orders(person: Person) -> list[Entry]:
    return [each for each in person.entries if each["kind"] == EntryKind.ORDER]

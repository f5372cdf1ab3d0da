# SPDX-License-Identifier: Apache-2.0
"""What the farm promises (docs/promises.md), compared with what a run has left."""

from __future__ import annotations

import hashlib
import os
import sqlite3
from collections import Counter
from collections.abc import Iterable, Iterator

from tests.simulate import batch_promises, batches, beanstalkd, programs, scheduler
from tests.simulate.farm import ARCH, FOLLOWER, TARGET, TRIES, Farm, legs_of

# isort: split
# The farm imports the product first, on the virtual clock.
from reimzul.core.beanstalk import is_control_tube
from reimzul.core.manifest import read_manifest
from reimzul.core.message import BuildRequest, Status
from reimzul.core.store_paths import leg_key
from reimzul.history.build_record import BuildRecord
from reimzul.store.listing import read_listing


def _open_jobs(farm: Farm) -> list[beanstalkd.Job]:
    jobs = farm.server.jobs.values()
    return [
        job for job in jobs
        if job.state != beanstalkd.BURIED and not is_control_tube(job.tube) and not batches.is_held(job)
    ]  # fmt: skip


def is_quiet(farm: Farm) -> bool:
    world = scheduler.world
    if farm.server.is_down or farm.starts_at or _open_jobs(farm):
        return False
    if farm.person is not None and not (farm.person.is_done and farm.person.is_at_rest):
        return False
    if len(farm.daemons) < len(farm.names) or any(
        process.paused_until > world.now for process in farm.processes.values()
    ):
        return False
    if any(any((farm.root / name / "builds").iterdir()) for name in ("b1", "b2")):  # one whose job another worker has
        return False
    return not _open_deliveries(farm) and not list(_unfinished_cancels(farm)) and not list(_list_held(farm))


def _open_deliveries(farm: Farm) -> int:
    with sqlite3.connect(farm.root / "outbox.sqlite") as db:
        (count,) = db.execute("SELECT count(*) FROM delivery WHERE state <> 'done'").fetchone()
    db.close()
    return int(count)


def _unfinished_cancels(farm: Farm) -> Iterator[str]:
    """Cancelled builds that the notifier's reaper still has to end."""
    for build_id, record in _legs(farm, farm.cancelled):
        if record is not None and not record.is_over:
            yield build_id


def _list_held(farm: Farm) -> Iterator[str]:
    """Single builds that wait for others, or for what nobody provides yet: their jobs alone show no work."""
    for build_id, request in farm.accepted.items():
        record = farm.records.history.get(leg_key(build_id, ARCH))
        is_known = record is not None or build_id not in farm.doubtful
        if (request.after or request.dep_wait) and is_known and not (record and record.is_over):
            yield build_id


def _legs(farm: Farm, build_ids: Iterable[str]) -> Iterator[tuple[str, BuildRecord | None]]:
    """Every leg of these builds, by its key, with what the history has of it."""
    for build_id in build_ids:
        for arch in legs_of(farm.accepted[build_id].srpm):
            key = leg_key(build_id, arch)
            yield key, farm.records.history.get(key)


def unsettled(farm: Farm) -> list[str]:
    """What a farm that does not come to rest still has."""
    jobs = [f"job {job.id} of {job.tube} is {job.state}: {job.body[:80]!r}" for job in _open_jobs(farm)]
    folders = [str(path) for name in ("b1", "b2") for path in (farm.root / name / "builds").iterdir()]
    return [
        *jobs,
        *folders,
        f"down: {', '.join(farm.starts_at)}",
        *([] if farm.person is None else farm.person.describe()),
        f"{_open_deliveries(farm)} deliveries are open, {len(farm.daemons)} daemons run",
    ]


def list_broken(farm: Farm) -> list[str]:
    found = [*_check_builds(farm), *_check_store(farm), *_check_signing(farm), *_check_mails(farm), *_check_jobs(farm)]
    return found if farm.person is None else [*found, *batch_promises.find_broken(farm.person)]


def _all_legs(farm: Farm) -> Iterator[tuple[str, BuildRecord | None]]:
    """Every leg of all builds, those of a batch too, with what the history has of it."""
    yield from _legs(farm, farm.accepted)
    yield from ((key, record) for key, record in farm.records.history.items() if record.batch)


def _check_builds(farm: Farm) -> Iterator[str]:
    for build_id, request in farm.accepted.items():
        main = farm.records.history.get(leg_key(build_id, ARCH))
        is_unbuilt = main is None or main.state == "queued" and not main.attempts
        if is_unbuilt:
            if build_id not in farm.doubtful:
                yield f"{request.srpm}: accepted, and lost ({main.state if main else 'unknown'})"
            continue
        for key, record in _legs(farm, [build_id]):
            if record is None:  # a follower is unknown until its build has begun
                if build_id not in farm.cancelled and not _has_waited_in_vain(farm, request):
                    yield f"{request.srpm}: {key} is lost"
                continue
            allowed = _allowed_ends(farm, request, record.arch)
            if record.state not in allowed:
                ends = " or ".join(sorted(allowed))
                yield f"{request.srpm}: {record.arch} ended as {record.state} ({record.reason}), not as {ends}"
    # a cancelled build's followers are told as cancelled too, where one may have begun
    known = {key for key, _ in _legs(farm, farm.accepted)} | {leg_key(each, FOLLOWER) for each in farm.cancelled}
    known |= {key for key, record in farm.records.history.items() if record.batch}
    for key in farm.records.history.keys() - known:
        yield f"{key}: {farm.records.history[key].state}, a leg of no build that was submitted"


def _allowed_ends(farm: Farm, request: BuildRequest, arch: str) -> set[str]:
    """The states that a leg may end in: mock's outcome, where no fault made an attempt at it void."""
    outcomes, done = farm.outcomes[request.srpm.rsplit("-", 2)[0]], "built" if request.scratch else "published"
    is_bad = _is_bad(outcomes[arch])
    allowed = {"failed" if is_bad else done}
    others_fail = any(each for other, each in outcomes.items() if other != arch)
    # That attempt may have died with its worker; or another leg's was no result, and the build was tried again before
    # this leg's was in the store. mock's next attempt at it succeeds.
    if is_bad and (farm.happened or others_fail):
        allowed.add(done)
    if farm.happened and sum(each.count(programs.UNFIT) for each in outcomes.values()) >= TRIES:
        allowed.add("failed")  # with its build, of whose tries other legs took some
    if any(" disk b" in each for each in farm.happened):  # each counts as a builder's fault
        allowed.add("failed")
    if _has_waited_in_vain(farm, request):
        allowed = {"failed"} if _list_unpublished(farm, request) else {*allowed, "failed"}
    if request.build_id in farm.cancelled:
        allowed.add("cancelled")
    return allowed


def _has_waited_in_vain(farm: Farm, request: BuildRequest) -> bool:
    """Whether a build may have ended as failed by what it waited for."""
    return bool(request.dep_wait or _list_unpublished(farm, request) or farm.cancelled.intersection(request.after))


def _list_unpublished(farm: Farm, request: BuildRequest) -> list[str]:
    """The builds that a build had to be built after, and that were never published."""
    return [each for each in request.after if farm.records.history[leg_key(each, ARCH)].state != "published"]


def _is_bad(outcomes: list[str]) -> bool:
    return programs.FAILED in outcomes or outcomes.count(programs.UNFIT) >= TRIES


def _check_store(farm: Farm) -> Iterator[str]:
    """Each leg has one place, is whole, and is listed exactly where it is published."""
    target = farm.store.target(TARGET)
    listed = dict(read_listing(target / "repodata")) if (target / "repodata").is_dir() else {}
    places: Counter[str] = Counter()
    for folder in sorted([*farm.store.repo.glob("*/*/*/*"), *farm.store.scratch.glob("*/*/*/*")]):
        if "repodata" in folder.parts or not folder.is_dir() or folder.parts[-3].startswith(".repodata"):
            continue
        manifest = read_manifest(folder)
        key = leg_key(manifest.build_id, manifest.arch)
        places[key] += 1
        place = str(folder.relative_to(farm.store.root))
        state = farm.records.history[key]
        if manifest.status == Status.SUCCESS and not manifest.request.scratch and not state.published:
            yield f"{place}: lies in repo/, and was not announced as published ({state.status})"
        if os.path.realpath(farm.store.index / key) != str(folder):
            yield f"{place}: index/ does not lead there"
        for file in manifest.files:
            path = folder / file.name
            if not path.is_file() or hashlib.sha256(path.read_bytes()).hexdigest() != file.sha256:
                yield f"{place}/{file.name}: is not whole"
            if file.is_rpm and not manifest.request.scratch:
                name = str(path.relative_to(target))
                if listed.pop(name, None) != file.sha256:
                    yield f"{place}/{file.name}: is not listed"
    yield from (f"{key}: was not listed any more after it was published" for key in sorted(farm.unlisted))
    yield from (f"{key}: has {count} places" for key, count in places.items() if count > 1)
    yield from (f"{name}: is listed, and no build's" for name in listed)
    for key, record in _all_legs(farm):
        if record and record.state in ("published", "built") and not places[key]:
            yield f"{record.srpm}: {key} is {record.state}, and has no place"


def _check_signing(farm: Farm) -> Iterator[str]:
    staged = Counter(farm.collected)
    wanted = {key for key, record in _all_legs(farm) if record and record.published}
    for key in wanted | set(staged):
        if staged[key] != (key in wanted):
            yield f"{key}: staged {staged[key]} times, published: {key in wanted}"
    yield from (f"{path} is left" for path in farm.store.staging.iterdir())


def _check_mails(farm: Farm) -> Iterator[str]:
    """Each result is mailed; twice only where the notifier could not know that it was.

    A success that a cancel outranked before it was mailed is not mailed, even if the leg is published after all.
    """
    told: set[tuple[str, str]] = set()
    for mail in farm.records.mails:
        if mail.name in told and not mail.maybe_sent:
            yield f"{mail.name}: mailed twice"
        told.add(mail.name)
    for key, record in farm.records.history.items():
        is_overturned = record.published and ((key, Status.CANCELLED) in told or record.build_id in farm.cancelled)
        if record.is_over and (key, record.status) not in told and not is_overturned:
            yield f"{key}: its {record.status} was never mailed"
        if record.published and (key, Status.PUBLISHED) not in told:
            yield f"{key}: its {Status.PUBLISHED} was never mailed"


def _check_jobs(farm: Farm) -> Iterator[str]:
    yield from (f"job {job.id} of {job.tube} is buried" for job in farm.server.jobs.values() if job.state == "buried")
    yield from (f"a job of {refusal.tube} was refused: {refusal.reason}" for refusal in farm.records.refusals)
    for folder in (farm.store.spool, farm.store.publishing, farm.store.live, farm.store.rejected):
        yield from (f"{path.relative_to(farm.root)} is left" for path in folder.iterdir())
    for name in ("b1", "b2"):
        yield from (f"{path.relative_to(farm.root)} is left" for path in (farm.root / name / "builds").iterdir())

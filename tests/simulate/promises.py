# SPDX-License-Identifier: Apache-2.0
"""What the farm promises (docs/promises.md), compared with what a run has left."""

from __future__ import annotations

import hashlib
import os
import sqlite3
from collections import Counter
from collections.abc import Iterator

from tests.simulate import beanstalkd, programs, scheduler
from tests.simulate.farm import Farm

# isort: split
# The farm imports the product first, on the virtual clock.
from reimzul.core.beanstalk import is_control_tube
from reimzul.core.manifest import read_manifest
from reimzul.core.message import Status
from reimzul.store.listing import read_listing


def _open_jobs(farm: Farm) -> list[beanstalkd.Job]:
    jobs = farm.server.jobs.values()
    return [job for job in jobs if job.state != beanstalkd.BURIED and not is_control_tube(job.tube)]


def is_quiet(farm: Farm) -> bool:
    world = scheduler.world
    if farm.server.is_down or farm.starts_at or _open_jobs(farm):
        return False
    if len(farm.daemons) < 5 or any(process.paused_until > world.now for process in farm.processes.values()):
        return False
    if any(any((farm.root / name / "builds").iterdir()) for name in ("b1", "b2")):  # one whose job another worker has
        return False
    return not _open_deliveries(farm) and not list(_unfinished_cancels(farm))


def _open_deliveries(farm: Farm) -> int:
    with sqlite3.connect(farm.root / "outbox.sqlite") as db:
        (count,) = db.execute("SELECT count(*) FROM delivery WHERE state <> 'done'").fetchone()
    db.close()
    return int(count)


def _unfinished_cancels(farm: Farm) -> Iterator[str]:
    """Cancelled builds that the notifier's reaper still has to end."""
    for build_id in farm.cancelled:
        record = farm.records.history.get(_key(build_id))
        if record is not None and not record.is_over:
            yield build_id


def _key(build_id: str) -> str:
    return f"{build_id}.x86_64"


def unsettled(farm: Farm) -> list[str]:
    """What a farm that does not come to rest still has."""
    jobs = [f"job {job.id} of {job.tube} is {job.state}: {job.body[:80]!r}" for job in _open_jobs(farm)]
    folders = [str(path) for name in ("b1", "b2") for path in (farm.root / name / "builds").iterdir()]
    return [
        *jobs,
        *folders,
        f"down: {', '.join(farm.starts_at)}",
        f"{_open_deliveries(farm)} deliveries are open, {len(farm.daemons)} daemons run",
    ]


def broken(farm: Farm) -> list[str]:
    return [*_check_builds(farm), *_check_store(farm), *_check_signing(farm), *_check_mails(farm), *_check_jobs(farm)]


def _check_builds(farm: Farm) -> Iterator[str]:
    for build_id, request in farm.accepted.items():
        record = farm.records.history.get(_key(build_id))
        state = record.state if record else "unknown"
        if record is None or state == "queued" and not record.attempts:
            if build_id not in farm.doubtful:
                yield f"{request.srpm}: accepted, and lost ({state})"
            continue
        allowed = _allowed_ends(farm, build_id, request.srpm.rsplit("-", 2)[0], is_scratch=request.scratch)
        if state not in allowed:
            yield f"{request.srpm}: ended as {state} ({record.reason}), not as {' or '.join(sorted(allowed))}"
    for key in farm.records.history.keys() - {_key(build_id) for build_id in farm.accepted}:
        yield f"{key}: a build that nobody submitted"


def _allowed_ends(farm: Farm, build_id: str, package: str, *, is_scratch: bool) -> set[str]:
    """The states that a build may end in: mock's outcome, where no fault made an attempt of it void."""
    outcomes, done = farm.outcomes[package], "built" if is_scratch else "published"
    is_bad = programs.FAILED in outcomes or outcomes.count(programs.UNFIT) >= 3
    allowed = {"failed" if is_bad else done}
    if is_bad and farm.happened:  # that attempt may have died with its worker, and mock's next one succeeded
        allowed.add(done)
    if any(" disk b" in each for each in farm.happened):  # each counts as a builder's fault
        allowed.add("failed")
    if build_id in farm.cancelled:
        allowed.add("cancelled")
    return allowed


def _check_store(farm: Farm) -> Iterator[str]:
    """Each leg has one place, is whole, and is listed exactly where it is published."""
    target = farm.store.target("c7.x86_64")
    listed = dict(read_listing(target / "repodata")) if (target / "repodata").is_dir() else {}
    places: Counter[str] = Counter()
    for folder in sorted([*farm.store.repo.glob("*/*/*/*"), *farm.store.scratch.glob("*/*/*/*")]):
        if "repodata" in folder.parts or not folder.is_dir() or folder.parts[-3].startswith(".repodata"):
            continue
        manifest = read_manifest(folder)
        places[_key(manifest.build_id)] += 1
        place = str(folder.relative_to(farm.store.root))
        state = farm.records.history[_key(manifest.build_id)]
        if manifest.status == Status.SUCCESS and not manifest.request.scratch and not state.published:
            yield f"{place}: lies in repo/, and was not announced as published ({state.status})"
        if os.path.realpath(farm.store.index / _key(manifest.build_id)) != str(folder):
            yield f"{place}: index/ does not lead there"
        for file in manifest.files:
            path = folder / file.name
            if not path.is_file() or hashlib.sha256(path.read_bytes()).hexdigest() != file.sha256:
                yield f"{place}/{file.name}: is not whole"
            if file.is_rpm and not manifest.request.scratch:
                name = str(path.relative_to(target))
                if listed.pop(name, None) != file.sha256:
                    yield f"{place}/{file.name}: is not listed"
    yield from (f"{key}: has {count} places" for key, count in places.items() if count > 1)
    yield from (f"{name}: is listed, and no build's" for name in listed)
    for build_id in farm.accepted:
        record = farm.records.history.get(_key(build_id))
        if record and record.state in ("published", "built") and not places[_key(build_id)]:
            yield f"{record.srpm}: is {record.state}, and has no place"


def _check_signing(farm: Farm) -> Iterator[str]:
    staged = Counter(farm.collected)
    wanted = {build_id for build_id in farm.accepted if _is_published(farm, build_id)}
    for build_id in wanted | set(staged):
        if staged[build_id] != (build_id in wanted):
            yield f"{build_id}: staged {staged[build_id]} times, published: {build_id in wanted}"
    yield from (f"{path} is left" for path in farm.store.staging.iterdir())


def _is_published(farm: Farm, build_id: str) -> bool:
    record = farm.records.history.get(_key(build_id))
    return bool(record and record.published)


def _check_mails(farm: Farm) -> Iterator[str]:
    """Each result is mailed; twice only where the notifier could not know that it was."""
    told: set[tuple[str, str]] = set()
    for mail in farm.records.mails:
        if mail.name in told and not mail.maybe_sent:
            yield f"{mail.name}: mailed twice"
        told.add(mail.name)
    for key, record in farm.records.history.items():
        if record.is_over and not any(name == (key, record.status) for name in told):
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

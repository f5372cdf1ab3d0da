# SPDX-License-Identifier: Apache-2.0
"""Compares what a farm shows with what was submitted. Each check yields a sentence for each fault."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import attr

from reimzul.core.errors import InvalidMessage
from reimzul.core.fs import file_lock
from reimzul.core.manifest import Manifest, read_manifest, sha256_of
from reimzul.core.message import Status
from reimzul.core.store_paths import MANIFEST, leg_key
from reimzul.history import BuildFilter, BuildRecord, open_history
from reimzul.store import listing as listing_module
from tests.faults.ground import BUILDERS, Ground, mounts, processes
from tests.faults.ledger import ARCH, TARGETS, Build

#: Topics below the farm's.
_RESULTS, _EVENTS = "reimzul/builds/results", "reimzul/builds/events"
#: Statuses that are no result for those who act on packages.
_UNSAID = (Status.REJECTED, Status.CANCELLED)


@attr.define
class Before:
    """The state before a trial: no fault of that trial."""

    mounts: set[str]
    heard: int
    mailed: int
    buried: dict[str, int]

    @classmethod
    def observe(cls, ground: Ground) -> Before:
        """Look."""
        return cls(mounts(), sum(1 for _ in ground.heard()), len(ground.mail.mailbox.mails), count_buried(ground))


@attr.frozen(kw_only=True)
class Loose:
    """Effects that an injected fault may have, and that would otherwise be our faults; each is documented."""

    doubles: bool = False  #: the notifier was killed between telling and noting it: the same `id` twice
    deaf: bool = False  #: the MQTT broker lost what its listeners had not heard yet
    buried: int = 0  #: jobs that have to be buried by now
    more: int = 0  #: and how many there may be beyond: daemons that look at once each find room for one
    collected: Path | None = None  #: where somebody moves what is staged for signing


def count_buried(ground: Ground) -> dict[str, int]:
    """How many jobs are buried, by tube."""
    with ground.broker() as broker:
        return {tube: broker.tube_stats(tube).buried for tube in broker.list_tubes()}


def faults(ground: Ground, builds: Sequence[Build], before: Before, loose: Loose) -> list[str]:
    """All that is wrong."""
    documents = history(ground)
    found = [*_history(builds, documents)]
    listed = {target: _read_listing(ground, f"{target}.{ARCH}") for target in TARGETS}
    for build in builds:
        if build.build_id:
            for arch, status in build.legs.items():
                found += _leg(ground, build, arch, status, listed[build.target], loose)
    found += _store(ground, listed)
    found += _nothing_left(ground, before)
    found += _mqtt(ground, builds, before, loose)
    found += _mail(ground, builds, before, loose)
    found += _check_buried(ground, before, loose)
    return found


def history(ground: Ground) -> dict[str, list[BuildRecord]]:
    """All that is known of builds, by submitter: each build of ours has one of its own."""
    url = ground.relayed.url if ground.relayed else f"sqlite:///{ground.farm.layout.history}"
    home = open_history(url, reading=True)
    try:
        known: dict[str, list[BuildRecord]] = {}
        for document in home.find_builds(BuildFilter(), 1_000_000):
            known.setdefault(document.submitter, []).append(document)
        return known
    finally:
        home.close()


def _history(builds: Iterable[Build], documents: dict[str, list[BuildRecord]]) -> Iterator[str]:
    """Every accepted build ended once, each leg as planned for its mock; one that was not accepted may have."""
    for build in builds:
        mine = documents.get(build.name, [])
        ids = {document.build_id for document in mine}
        if not mine and not build.accepted:
            continue
        if len(ids) != 1:
            yield f"{build.name}: {len(ids)} builds in history, not one"
            continue
        build.build_id = build.build_id or ids.pop()
        ended = {document.arch: document.status for document in mine}
        if not build.may_end(ended):
            yield f"{build.name} ({build.build_id}): history says {ended}, and it was to be {build.legs}"
        elif build.cancelled:
            build.legs = ended
        for document in mine:
            wanted = document.status == Status.SUCCESS and not build.recipe.scratch
            if bool(document.published) != wanted:
                said = f"published is {document.published}, status {document.status}"
                yield f"{build.name} {document.arch}: {said}"


def _read_listing(ground: Ground, target: str) -> dict[str, str]:
    folder = ground.farm.layout.store.target(target) / "repodata"
    return listing_module.read_listing(folder) if folder.exists() else {}


def _leg(ground: Ground, build: Build, arch: str, status: str, listed: dict[str, str], loose: Loose) -> Iterator[str]:
    """It has its place, whole; what is published is listed and staged, and nothing else is."""
    store = ground.farm.layout.store
    what = f"{build.name} {arch}"
    if status == Status.REJECTED:
        return
    if status == Status.CANCELLED:
        yield from _nowhere(ground, build, arch)
        return
    try:
        place = store.index / leg_key(build.build_id, arch)
        manifest = read_manifest(place)
    except (OSError, InvalidMessage) as error:
        yield f"{what}: no place that can be read: {error}"
        return
    if manifest.status != status:
        yield f"{what}: its place has {manifest.status}, not {status}"
    yield from (f"{what}: {fault}" for fault in _check_files(place, manifest))
    _, area, _, *rest = os.readlink(place).split("/")
    folder = "/".join(rest)
    mine = {path: sha256 for path, sha256 in listed.items() if area == "repo" and path.startswith(f"{folder}/")}
    public = status == Status.SUCCESS and not build.recipe.scratch
    wanted = {f"{folder}/{file.name}": file.sha256 for file in manifest.rpm_files} if public else {}
    if mine != wanted:
        yield f"{what}: the repodata lists {sorted(mine)} and should list {sorted(wanted)}"
    yield from (f"{what}: {fault}" for fault in _check_staged(ground, build, manifest, public, loose))


def _nowhere(ground: Ground, build: Build, arch: str) -> Iterator[str]:
    """Cancelled legs have no place; listed and staged packages are those of the places there are."""
    if (ground.farm.layout.store.index / leg_key(build.build_id, arch)).exists():
        yield f"{build.name} {arch}: it is cancelled, and has a place"


def _check_files(place: Path, manifest: Manifest) -> Iterator[str]:
    there = {path.name for path in place.iterdir()}
    named = {file.name for file in manifest.files} | {MANIFEST}
    if there != named:
        yield f"its place has {sorted(there ^ named)} too many or too few"
    for file in manifest.files:
        if file.name in there and sha256_of(place / file.name) != file.sha256:
            yield f"{file.name} in its place is not what was built"


def _check_staged(ground: Ground, build: Build, manifest: Manifest, public: bool, loose: Loose) -> Iterator[str]:
    target = ground.farm.layout.store.tosign / f"{build.target}.{ARCH}"
    name = f"{manifest.pkgname}-{manifest.evr}.{manifest.arch}.{build.build_id}"
    staged = [path for path in (target / name, (loose.collected or target) / name) if path.exists()]
    if bool(staged) != public:
        yield f"staged for signing is {bool(staged)}, and should be {public}"
    elif loose.collected and len(staged) > 1:
        yield "staged for signing again, after it was collected"
    elif public:
        there = {path.name: sha256_of(path) for path in staged[0].iterdir()}
        if there != {file.name: file.sha256 for file in manifest.rpm_files}:
            yield f"what is staged is not what is published: {sorted(there)}"


def check_members(ground: Ground, builds: Sequence[Build], loose: Loose) -> Iterator[str]:
    """Check the builds of a batch, which have the submitter of their batch and are not mailed about."""
    known = {document.build_id: document for documents in history(ground).values() for document in documents}
    listed = {target: _read_listing(ground, f"{target}.{ARCH}") for target in TARGETS}
    for build in builds:
        for arch, status in build.legs.items():
            record = known.get(build.build_id)
            if record is None or record.status != status or bool(record.published) != (status == Status.SUCCESS):
                yield f"{build.name} {arch}: history says {record}, and it was to be {status}"
            yield from _leg(ground, build, arch, status, listed[build.target], loose)


def _store(ground: Ground, listed: dict[str, dict[str, str]]) -> Iterator[str]:
    """Over all builds there ever were: one place a leg, all that is listed is there as listed, nothing hangs about."""
    store = ground.farm.layout.store
    legs: Counter[str] = Counter()
    for path in [*store.repo.glob(f"*/*/*/*/{MANIFEST}"), *store.scratch.glob(f"*/*/*/*/{MANIFEST}")]:
        manifest = read_manifest(path.parent)
        legs[leg_key(manifest.build_id, manifest.arch)] += 1
    yield from (f"{leg} has {count} places" for leg, count in legs.items() if count > 1)
    for target, packages in listed.items():
        folder = store.target(f"{target}.{ARCH}")
        for package, sha256 in packages.items():
            if not (folder / package).is_file() or sha256_of(folder / package) != sha256:
                yield f"{target}: {package} is listed and not there as it is listed"
    for staged in store.tosign.glob("*/*"):
        build_id, arch = staged.name.rpartition(".")[2], staged.name.split(".")[-2]
        if leg_key(build_id, arch) not in legs:
            yield f"{staged.name} is staged for signing, and published nowhere"
    left = [*store.spool.iterdir(), *store.staging.iterdir()]
    left += [*store.repo.glob("*/.repodata*"), *store.repo.glob("*/*.old.*")]
    yield from (f"{path.relative_to(store.root)} is left" for path in left)
    yield from (f"{lock.name} is held" for lock in (store.state / "locks").iterdir() if _is_held(lock))


def _is_held(lock: Path) -> bool:
    with file_lock(lock) as descriptor:
        return descriptor is None


def _nothing_left(ground: Ground, before: Before) -> Iterator[str]:
    """No process, mount, root or folder that nobody owns."""
    alive, state = processes(), str(ground.state)
    ours = {os.getpid(), *find_descendants(os.getpid(), alive)}
    for pid, (_, words) in alive.items():
        if state in words and pid not in ours:
            yield f"process {pid} is nobody's: {words[:200]}"
    for part in (part for part in ground.farm.parts if part.is_daemon):
        found = ground.farm.pids(part.name)
        if len(found) != 1:
            yield f"{part.name} has {len(found)} processes: {[alive[pid][1][:100] for pid in found if pid in alive]}"
    yield from (f"{path} is mounted" for path in mounts() - before.mounts)
    yield from (f"root {path.name} is left" for path in (ground.home / "roots").glob("[!.]*"))
    for name in BUILDERS:
        folder = ground.farm.layout.results(name)
        yield from (f"{name} has {path.name} left" for path in (folder / "builds").iterdir())


def find_descendants(ancestor: int, alive: Mapping[int, tuple[int, str]]) -> list[int]:
    """The processes below one."""
    found = [ancestor]
    for pid in found:  # grows while we walk it
        found += [child for child, (parent, _) in alive.items() if parent == pid]
    return found[1:]


def _mqtt(ground: Ground, builds: Iterable[Build], before: Before, loose: Loose) -> Iterator[str]:
    """Every result is announced, and none twice."""
    told: Counter[tuple[str, str, str]] = Counter()
    ends: Counter[tuple[str, str, str]] = Counter()
    ids: Counter[str] = Counter()
    names = {build.build_id: build for build in builds if build.build_id}
    for number, (topic, payload) in enumerate(ground.heard()):
        if number >= before.heard and payload.get("build_id") in names:
            ids[f"{topic} {payload['id']}"] += 1
            if ids[f"{topic} {payload['id']}"] == 1:
                (told if topic == _RESULTS else ends)[payload["build_id"], payload["arch"], payload["status"]] += 1
    yield from (f"told {count} times by MQTT: {name}" for name, count in ids.items() if count > 1 and not loose.doubles)
    for build in names.values():
        for arch, status in build.legs.items():
            said = {s: n for (i, a, s), n in told.items() if (i, a) == (build.build_id, arch)}
            wanted = {} if build.recipe.scratch or status in _UNSAID else {status: 1}
            if status == Status.CANCELLED:
                said.pop(Status.SUCCESS, None)  # it was built, and cancelled before it was published
                if ends[build.build_id, arch, status] != 1 and not loose.deaf:
                    yield f"{build.name} {arch}: Cancelled is told {ends[build.build_id, arch, status]} times"
            if said != wanted and not (loose.deaf and not said):
                yield f"{build.name} {arch}: MQTT told {said}, and should have told {wanted}"


def _mail(ground: Ground, builds: Iterable[Build], before: Before, loose: Loose) -> Iterator[str]:
    """A mail for each result but a scratch build's, and no more."""
    mails = ground.mail.mailbox.mails[before.mailed :]
    ids = Counter(str(mail["Message-ID"]) for mail in mails)
    yield from (f"mailed {count} times: {name}" for name, count in ids.items() if count > 1 and not loose.doubles)
    for build in builds:
        if build.build_id:
            mine = {mail["Message-ID"]: mail for mail in mails if mail["X-Reimzul-Build-Id"] == build.build_id}
            said = sorted((mail["X-Reimzul-Arch"], mail["X-Reimzul-Status"]) for mail in mine.values())
            lost = [arch for arch, status in build.legs.items() if status == Status.CANCELLED]
            said = [(arch, status) for arch, status in said if arch not in lost or status != Status.SUCCESS]
            kept = sorted((arch, status) for arch, status in build.legs.items() if arch not in lost)
            wanted = [] if build.recipe.scratch else kept
            if said != wanted:
                yield f"{build.name}: mailed {said}, and should have been {wanted}"


def doubles(ground: Ground, before: Before) -> int:
    """How many messages came more than once, by their `id`."""
    ids = Counter(
        f"{topic} {said.get('id')}" for number, (topic, said) in enumerate(ground.heard()) if number >= before.heard
    )
    ids += Counter(str(mail["Message-ID"]) for mail in ground.mail.mailbox.mails[before.mailed :])
    return sum(count - 1 for count in ids.values())


def _check_buried(ground: Ground, before: Before, loose: Loose) -> Iterator[str]:
    now = count_buried(ground)
    more = {tube: now[tube] - before.buried.get(tube, 0) for tube in now if now[tube] != before.buried.get(tube, 0)}
    if not loose.buried <= sum(more.values()) <= loose.buried + loose.more:
        yield f"buried: {more}, and should be {loose.buried}: {_reasons(ground)}"


def _reasons(ground: Ground) -> list[Any]:
    refused = [said for topic, said in ground.heard() if topic == _EVENTS and said.get("status") == Status.REFUSED]
    return [said.get("reason") for said in refused[-5:]]

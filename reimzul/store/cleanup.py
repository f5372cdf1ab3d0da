# SPDX-License-Identifier: Apache-2.0
"""Removes from the store: old builds by rule, scratch builds, and what is kept only for some days.

A build is removed from the repodata first and from the disk afterwards. Under the target's lock createrepo_c runs once
without the builds to remove, and the new repodata is read back before anything is deleted. If that is killed, the next
run lists the builds again, and the next prune removes them.
"""

from __future__ import annotations

import calendar
import contextlib
import json
import os
import re
import time
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import attr

from reimzul.core import fs, validators
from reimzul.core.clock import EARLIEST_UNIX_TIME
from reimzul.core.errors import ReimzulError
from reimzul.core.message import Status
from reimzul.core.retry import CancelToken
from reimzul.core.setting_parsers import Pruning
from reimzul.core.store_paths import MANIFEST, StorePaths, leg_key
from reimzul.store.createrepo import CreaterepoRunner, hold_lock
from reimzul.store.listing import Listing, folder_of, read_listing, read_records
from reimzul.store.listing_rules import ListingRules, waits_for_signer
from reimzul.store.repodata import REPODATA, REPOMD

_DAY_SECONDS = 86400
_TIMESTAMP = re.compile(r"[0-9]{14}\Z")
#: The suffix of the note beside a rejected upload.
_NOTE = ".json"


# --- builds in repo/ and scratch/


@attr.frozen(kw_only=True)
class StoredBuild:
    place: str  #: relative to the store's root
    target: str
    name: str  #: of its package
    timestamp: str
    arch: str

    @property
    def folder(self) -> str:
        return folder_of(self.place)


@attr.frozen(kw_only=True)
class ManifestSummary:
    """What a build's manifest says, as far as removing it needs to know; empty for builds without one."""

    build_id: str = ""
    attempt: str = ""
    status: str = ""
    submitter: str = ""
    srpm: str = ""
    replaced_by: str = ""  #: the build that is listed in its place
    filed: str = attr.field(default="", eq=False)  #: when it got its place, by this host's clock; as a timestamp


@attr.frozen(kw_only=True)
class BuildDetails:
    leg: StoredBuild
    summary: ManifestSummary
    bytes: int
    held: str = ""  #: why it is not removed, although a rule says so

    @property
    def submitted_at(self) -> float:
        """Seconds since 1970; 0 if its folder's name is no date."""
        try:
            return float(calendar.timegm(time.strptime(self.leg.timestamp, validators.TIMESTAMP_FORMAT)))
        except ValueError:
            return 0.0

    def to_output(self) -> dict[str, Any]:
        """Return the build as commands print it in JSON."""
        about = {**attr.asdict(self.leg), **attr.asdict(self.summary), "pkgname": self.leg.name, "bytes": self.bytes}
        return {name: value for name, value in about.items() if name not in ("name", "filed")}


def list_builds(area: Path, target: str) -> Iterator[StoredBuild]:
    """The builds of a target in `repo/` or `scratch/`, in no order. No file of them is read."""
    for name in _list_folders(area / target):
        if name.startswith((".", REPODATA)):
            continue
        for timestamp in filter(_TIMESTAMP.match, _list_folders(area / target / name)):
            for folder in _list_folders(area / target / name / timestamp):
                yield StoredBuild(
                    place=f"{area.name}/{target}/{name}/{timestamp}/{folder}",
                    target=target,
                    name=name,
                    timestamp=timestamp,
                    arch=folder.rpartition(".")[2],
                )


def list_targets(area: Path) -> list[str]:
    return sorted(name for name in _list_folders(area) if not name.startswith("."))


def _list_folders(path: Path) -> list[str]:
    try:
        with os.scandir(path) as entries:
            return [entry.name for entry in entries if entry.is_dir(follow_symlinks=False)]
    except (FileNotFoundError, NotADirectoryError):
        return []


def read_summary(store: StorePaths, leg: StoredBuild) -> ManifestSummary:
    """Read a build's manifest; it is not verified, since it only decides about the removal."""
    folder, filed = store.place(leg.place), ""
    try:
        filed = _format_timestamp(folder.stat().st_ctime)
        raw = json.loads((folder / MANIFEST).read_bytes())
        request = raw["request"]
        sources = {"build_id": request, "submitter": request, "srpm": request, "attempt": raw, "status": raw}
        return ManifestSummary(**{name: str(source[name]) for name, source in sources.items()}, filed=filed)
    except (OSError, ValueError, KeyError, TypeError):
        return ManifestSummary(filed=filed)


def size_of_build(store: StorePaths, leg: StoredBuild) -> int:
    with contextlib.suppress(OSError), os.scandir(store.place(leg.place)) as entries:
        return sum(entry.stat(follow_symlinks=False).st_size for entry in entries)
    return 0


def drop_build(store: StorePaths, leg: StoredBuild, about: ManifestSummary) -> None:
    """Remove a build, its entry in `index/`, and the logs of its attempts. Safe to repeat."""
    if about.build_id:
        name = leg_key(about.build_id, leg.arch)
        entry = store.index / name
        with contextlib.suppress(OSError):
            if os.readlink(entry) == f"../{leg.place}":
                entry.unlink()
        for attempt in store.attempts.glob(f"{name}.*"):
            fs.remove(attempt)
    folder = store.place(leg.place)
    dropped = store.state / "dropped" / leg.place.replace("/", "+")
    dropped.parent.mkdir(exist_ok=True)
    fs.remove(dropped)
    with contextlib.suppress(FileNotFoundError):
        os.rename(folder, dropped)  # so that nobody ever sees half of it
        fs.sync(folder.parent)
    for parent in (folder.parent, folder.parent.parent):
        with contextlib.suppress(OSError):  # another build of the package lies there
            parent.rmdir()
    fs.remove(dropped)


def find_scratch_builds(store: StorePaths) -> Iterator[BuildDetails]:
    for target in list_targets(store.scratch):
        for leg in sorted(list_builds(store.scratch, target), key=lambda leg: leg.timestamp):
            yield BuildDetails(leg=leg, summary=read_summary(store, leg), bytes=size_of_build(store, leg))


# --- prune rules


class PruneFailed(ReimzulError):
    """Nothing was removed: the new repodata is not what it should be."""


@attr.frozen(kw_only=True)
class PruneResult:
    target: str
    dropped: Sequence[BuildDetails]
    held: Sequence[BuildDetails]


def find_rule(target: str, rules: Mapping[str, Pruning]) -> Pruning | None:
    """The rule for a target, by its whole name or by the name without its arch; None if there is none."""
    return rules.get(target) or rules.get(target.rpartition(".")[0])


def find_candidates(store: StorePaths, target: str, rule: Pruning, now: float) -> list[BuildDetails]:
    """The builds that a rule drops, the oldest first, including those that have a reason to stay."""
    records = read_records(store, target)
    groups: dict[tuple[str, str], list[StoredBuild]] = {}
    for leg in list_builds(store.repo, target):
        groups.setdefault((leg.name, leg.arch), []).append(leg)
    found: list[BuildDetails] = []
    for legs in groups.values():
        if len(legs) <= rule.keep:
            continue  # no manifest has to be read
        summaries = {leg: read_summary(store, leg) for leg in legs}
        for leg, about in summaries.items():
            record = records.get(leg_key(about.build_id, leg.arch))
            if record is not None:
                summaries[leg] = attr.evolve(about, replaced_by=record.replaced_by)
        for leg in choose_builds(summaries, rule, now):
            reason = reason_to_keep(store, leg, summaries[leg], unsigned=rule.unsigned)
            found.append(BuildDetails(leg=leg, summary=summaries[leg], bytes=size_of_build(store, leg), held=reason))
    return sorted(found, key=lambda each: (each.leg.timestamp, each.leg.place))


def choose_builds(legs: Mapping[StoredBuild, ManifestSummary], rule: Pruning, now: float) -> list[StoredBuild]:
    """Of the builds of one package and arch, those that a rule drops.

    The newest successes stay, as many as the rule says, and all failures since the oldest of them; without a success,
    the newest failures. A build that a rebuild has replaced is not listed: it does not count, and its age decides.
    """
    submitted = {leg: _submission_time(leg, about, now) for leg, about in legs.items()}
    newest = sorted(legs, key=lambda leg: (submitted[leg], leg.place), reverse=True)
    successes = [leg for leg in newest if legs[leg].status != Status.FAILED and not legs[leg].replaced_by]
    kept = (successes or newest)[: rule.keep]
    limit = _format_timestamp(max(0.0, now - rule.older))
    return [
        leg
        for leg in newest
        if leg not in kept
        and submitted[leg] < limit
        and (legs[leg].status != Status.FAILED or submitted[leg] < submitted[kept[-1]])
    ]


def _submission_time(leg: StoredBuild, about: ManifestSummary, now: float) -> str:
    """When a build was submitted; if that clock was wrong, when the build came to this host."""
    earliest, latest = _format_timestamp(EARLIEST_UNIX_TIME), _format_timestamp(now + _DAY_SECONDS)
    return leg.timestamp if earliest <= leg.timestamp <= latest else about.filed or leg.timestamp


def _format_timestamp(at: float) -> str:
    return time.strftime(validators.TIMESTAMP_FORMAT, time.gmtime(at))


def reason_to_keep(store: StorePaths, leg: StoredBuild, about: ManifestSummary, *, unsigned: bool) -> str:
    """Why a build stays although a rule drops it: mostly that the signer has not collected it; "" if nothing."""
    if not about.build_id:
        return "it has no manifest: it is of the original's farm, and not ours to judge"
    if about.status == Status.FAILED:
        return ""
    name = leg_key(about.build_id, leg.arch)
    if waits_for_signer(store, name, leg.place):
        return "it waits to be collected and signed"
    if about.replaced_by:
        return ""  # the signer never gets it any more
    if not unsigned and not os.path.lexists(store.staged_marks / name):
        return "it was not laid out for the signer yet"
    return ""


def prune(
    store: StorePaths, createrepo: CreaterepoRunner, target: str, rule: Pruning, cancel: CancelToken, *, dry_run: bool
) -> PruneResult:
    """Remove what a rule drops from a target. If it raises `PruneFailed` or `RetryLater`, nothing was removed."""
    found = find_candidates(store, target, rule, time.time())
    if not dry_run and any(not each.held for each in found):
        with hold_lock(store, target, cancel) as lock:
            found = find_candidates(store, target, rule, time.time())  # nobody changes the target from now on
            doomed = [each for each in found if not each.held]
            listed = [each.leg for each in doomed if each.summary.status != Status.FAILED]
            if listed:
                _remove_from_repodata(createrepo, target, listed, lock, cancel)
            for each in doomed:
                drop_build(store, each.leg, each.summary)
    return PruneResult(
        target=target, dropped=[each for each in found if not each.held], held=[each for each in found if each.held]
    )


def _remove_from_repodata(
    createrepo: CreaterepoRunner, target: str, legs: Iterable[StoredBuild], lock: int, cancel: CancelToken
) -> None:
    """Make the repodata list everything but these builds; check what it lists before it becomes visible."""
    store = createrepo.store
    repodata = store.target(target) / REPODATA
    listing = Listing(read_listing(repodata) if (repodata / REPOMD).exists() else {})
    folders = {leg.folder for leg in legs}
    packages = createrepo.list_packages(target)
    ruled = ListingRules(store=store).apply_rules(target, listing, packages, dropped=folders)
    before = set(listing.packages) - (set(packages) - set(ruled.packages) - _paths_inside(packages, folders))
    createrepo.run(target, lock, cancel, packages=ruled.packages)
    after = set(read_listing(store.output(target) / REPODATA))
    doomed = _paths_inside(before, folders)
    lost = [path for path in before - doomed - after if (store.target(target) / path).exists()]
    if after & doomed or lost:
        raise PruneFailed(
            f"the new repodata of {target} is not as it should be: it lists {len(after & doomed)} packages that were "
            f"to go, and lacks {len(lost)} that were to stay; nothing was removed"
        )
    createrepo.show(createrepo.make_draft(target), cancel)


def _paths_inside(packages: Iterable[str], folders: Collection[str]) -> set[str]:
    return {path for path in packages if path.rpartition("/")[0] in folders}


# --- what is kept for some days


@attr.frozen(kw_only=True)
class Retention:
    """For how many days; 0: for ever."""

    attempts: int = 0
    rejected: int = 0


@attr.frozen(kw_only=True)
class SweepResult:
    attempts: int = 0
    rejected: int = 0
    marks: int = 0

    def __bool__(self) -> bool:
        return bool(self.attempts or self.rejected or self.marks)

    def __str__(self) -> str:
        return (
            f"kept long enough and removed: the logs of {self.attempts} attempts, {self.rejected} uploads put aside, "
            f"{self.marks} marks"
        )


def sweep_expired(store: StorePaths, retention: Retention, now: float, cancel: CancelToken) -> SweepResult:
    """Remove what is too old: logs of attempts, rejected uploads with their notes, and marks of requeued requests.

    A note is removed after its upload, and a mark only if no upload of its leg lies in `rejected/`.
    """
    attempts = rejected = marks = 0
    if retention.attempts:
        attempts = _remove_all(_list_older(store.attempts, now - retention.attempts * _DAY_SECONDS), cancel)
    if retention.rejected:
        before = now - retention.rejected * _DAY_SECONDS
        rejected = _remove_all([each for each in _list_older(store.rejected, before) if each.suffix != _NOTE], cancel)
        notes = (each for each in _list_older(store.rejected, before) if each.suffix == _NOTE)
        _remove_all([each for each in notes if not each.with_suffix("").exists()], cancel)
        legs = {_leg_of(path) for path in store.rejected.iterdir()}
        expired = [each for each in _list_older(store.put_again, before) if _leg_of(each) not in legs]
        marks = _remove_all(expired, cancel)
    return SweepResult(attempts=attempts, rejected=rejected, marks=marks)


def sweep_live_logs(store: StorePaths, before: float) -> int:
    """Remove growing logs that have not grown since a time, as their worker was killed; return how many."""
    return _remove_all(_list_older(store.live, before), CancelToken())


def _list_older(folder: Path, before: float) -> Iterator[Path]:
    for path in sorted(folder.iterdir()):
        with contextlib.suppress(FileNotFoundError):  # another repogen removes it too
            if fs.last_change(path) < before:
                yield path


def _remove_all(paths: Iterable[Path], cancel: CancelToken) -> int:
    count = 0
    for path in paths:
        cancel.raise_if_cancelled()
        fs.remove(path)
        count += 1
    return count


def _leg_of(path: Path) -> str:
    """`<build id>.<arch>`, with which the names of uploads and marks begin."""
    return ".".join(path.name.split(".")[:2])

# SPDX-License-Identifier: Apache-2.0
"""CL"""

from __future__ import annotations

import calendar
import contextlib
import json
import logging
import os
import re
import time
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Callable

import attr

from reimzul.core import fs, validators
from reimzul.core.clock import EARLIEST_UNIX_TIME
from reimzul.core.config import Pruning
from reimzul.core.errors import ReimzulError
from reimzul.core.message import Status
from reimzul.core.store_paths import MANIFEST, StorePaths, leg_key
from reimzul.core.unlisted import Records, read_records
from reimzul.store.createrepo import CreaterepoRunner, hold_lock
from reimzul.store.listing import Listing, read_listing
from reimzul.store.listing_rules import ListingRules
from reimzul.store.repodata import REPODATA

log = logging.getLogger(__name__)

_TIMESTAMP = re.compile(r"[0-9]{14}\Z")


@attr.frozen(kw_only=True)
class StoredBuild:
    """A leg as it lies in the store."""

    place: str  #: seen from the store's root
    target: str
    name: str  #: of its package
    timestamp: str
    arch: str

    @property
    def folder(self) -> str:
        """Seen from its target."""
        return self.place.split("/", 2)[2]


@attr.frozen(kw_only=True)
class ManifestSummary:
    """What a leg's manifest says of it, as far as dropping it asks; of the original's legs, nothing."""

    build_id: str = ""
    attempt: str = ""
    status: str = ""
    submitter: str = ""
    srpm: str = ""
    replaced_by: str = ""  #: the build that is listed in its place
    filed: str = attr.field(default="", eq=False)  #: when it got its place, by this host's clock; as a timestamp


def list_builds(area: Path, target: str) -> Iterator[StoredBuild]:
    """The legs of a target in `repo/` or `scratch/`, in no order. Nothing of them is read."""
    for name in _list_folders(area / target):
        if name.startswith((".", "repodata")):
            continue
        for timestamp in _list_folders(area / target / name):
            if not _TIMESTAMP.match(timestamp):
                continue
            for folder in _list_folders(area / target / name / timestamp):
                place = f"{area.name}/{target}/{name}/{timestamp}/{folder}"
                arch = folder.rpartition(".")[2]
                yield StoredBuild(place=place, target=target, name=name, timestamp=timestamp, arch=arch)


def list_targets(area: Path) -> list[str]:
    """The targets that have anything in an area."""
    return sorted(name for name in _list_folders(area) if not name.startswith("."))


def _list_folders(path: Path) -> list[str]:
    try:
        with os.scandir(path) as entries:
            return [entry.name for entry in entries if entry.is_dir(follow_symlinks=False)]
    except (FileNotFoundError, NotADirectoryError):
        return []


def read_summary(store: StorePaths, leg: StoredBuild) -> ManifestSummary:
    """What its manifest says; not checked as an arriving one is, as nothing is made of it but the choice to drop it."""
    folder, filed = store.place(leg.place), ""
    try:
        filed = time.strftime(validators.TIMESTAMP_FORMAT, time.gmtime(folder.stat().st_ctime))
        raw = json.loads((folder / MANIFEST).read_bytes())
        request = raw["request"]
        names = {"build_id": request, "submitter": request, "srpm": request, "attempt": raw, "status": raw}
        return ManifestSummary(**{name: str(where[name]) for name, where in names.items()}, filed=filed)
    except (OSError, ValueError, KeyError, TypeError):
        return ManifestSummary(filed=filed)


def size_of_build(store: StorePaths, leg: StoredBuild) -> int:
    """Bytes of its files."""
    total = 0
    with contextlib.suppress(OSError), os.scandir(store.place(leg.place)) as entries:
        for entry in entries:
            total += entry.stat(follow_symlinks=False).st_size
    return total


def drop_build(store: StorePaths, leg: StoredBuild, about: ManifestSummary) -> None:
    """Remove a leg, its entry in `index/`, and the logs of the attempts at it. Done before, nothing is left to do."""
    if about.build_id:
        name = leg_key(about.build_id, leg.arch)
        _remove_index_entry(store, name, leg.place)
        for left in store.attempts.glob(f"{name}.*"):
            fs.remove(left)
    folder = store.place(leg.place)
    aside = store.state / "dropped" / leg.place.replace("/", "+")
    aside.parent.mkdir(exist_ok=True)
    fs.remove(aside)
    with contextlib.suppress(FileNotFoundError):
        os.rename(folder, aside)  # whole until now, and not there from now on
        fs.sync(folder.parent)
    for empty in (folder.parent, folder.parent.parent):
        with contextlib.suppress(OSError):  # another build of the package has just come there
            empty.rmdir()
    fs.remove(aside)


def _remove_index_entry(store: StorePaths, name: str, place: str) -> None:
    entry = store.index / name
    with contextlib.suppress(OSError):
        if os.readlink(entry) == f"../{place}":
            entry.unlink()


def to_json(leg: StoredBuild, about: ManifestSummary, count: int) -> dict[str, Any]:
    """A leg for a program; `count` are its bytes."""
    said = attr.asdict(about, filter=lambda field, _: field.name != "filed")
    return {**attr.asdict(leg), **said, "bytes": count}


@attr.frozen(kw_only=True)
class ScratchBuild:
    """A leg of a scratch build."""

    leg: StoredBuild
    told: ManifestSummary
    bytes: int

    @property
    def submitted_at(self) -> float:
        """When, in seconds since 1970; 0 where its folder's name is no date."""
        try:
            return float(calendar.timegm(time.strptime(self.leg.timestamp, validators.TIMESTAMP_FORMAT)))
        except ValueError:
            return 0.0

    def to_json(self) -> dict[str, Any]:
        """For a program."""
        return to_json(self.leg, self.told, self.bytes)


def find_scratch_builds(store: StorePaths) -> Iterator[ScratchBuild]:
    """All there are, by target."""
    for target in list_targets(store.scratch):
        for leg in sorted(list_builds(store.scratch, target), key=lambda leg: leg.timestamp):
            yield ScratchBuild(leg=leg, told=read_summary(store, leg), bytes=size_of_build(store, leg))


def remove_scratch_build(store: StorePaths, scratch: ScratchBuild) -> None:
    """Take one away."""
    drop_build(store, scratch.leg, scratch.told)


_NOTE = ".json"


@attr.frozen(kw_only=True)
class Retention:
    """For how many days; 0: for ever."""

    attempts: int = 0
    rejected: int = 0


@attr.frozen(kw_only=True)
class SweepResult:
    """How much is gone."""

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


def sweep_expired(store: StorePaths, retention: Retention, now: float, heed: Callable[[], None]) -> SweepResult:
    """Remove what is too old. `heed` is called often."""
    attempts = rejected = marks = 0
    if retention.attempts:
        attempts = _remove_all(_list_older(store.attempts, now - retention.attempts * 86400), heed)
    if retention.rejected:
        before = now - retention.rejected * 86400
        folders = [path for path in _list_older(store.rejected, before) if path.suffix != _NOTE]
        rejected = _remove_all(folders, heed)
        _remove_all([path for path in _list_older(store.rejected, before) if _is_orphaned_note(path)], heed)
        legs = {_leg_of(path.name) for path in store.rejected.iterdir()}
        marks = _remove_all(
            [mark for mark in _list_older(store.put_again, before) if _leg_of(mark.name) not in legs], heed
        )
    return SweepResult(attempts=attempts, rejected=rejected, marks=marks)


def _list_older(folder: Path, before: float) -> Iterator[Path]:
    for path in sorted(folder.iterdir()):
        with contextlib.suppress(FileNotFoundError):  # another repogen looks too
            if fs.last_change(path) < before:
                yield path


def _remove_all(paths: list[Path] | Iterator[Path], heed: Callable[[], None]) -> int:
    count = 0
    for path in paths:
        heed()
        fs.remove(path)
        count += 1
    return count


def _is_orphaned_note(note: Path) -> bool:
    """Whether this is a note, and what it is about is gone."""
    return note.suffix == _NOTE and not note.with_name(note.name[: -len(_NOTE)]).exists()


def _leg_of(name: str) -> str:
    """`<build id>.<arch>`, with which the names of uploads and of marks begin."""
    return ".".join(name.split(".")[:2])


class PruneFailed(ReimzulError):
    """Nothing was dropped: the repodata is not what it should be."""


@attr.frozen(kw_only=True)
class PruneCandidate:
    """A leg that a rule would drop."""

    leg: StoredBuild
    told: ManifestSummary
    bytes: int
    held: str = ""  #: why it stays all the same


@attr.frozen(kw_only=True)
class PruneResult:
    """What became of a target."""

    target: str
    dropped: Sequence[PruneCandidate]
    held: Sequence[PruneCandidate]


def find_rule(target: str, rules: Mapping[str, Pruning]) -> Pruning | None:
    """The rule of a target: by its whole name, else by the one without its arch; None where nothing is dropped."""
    return rules.get(target) or rules.get(target.rpartition(".")[0])


def find_candidates(store: StorePaths, target: str, rule: Pruning, now: float) -> list[PruneCandidate]:
    """The legs that a rule drops, the oldest first, and those of them that stay all the same."""
    records = read_records(store, target)
    groups: dict[tuple[str, str], list[StoredBuild]] = {}
    for leg in list_builds(store.repo, target):
        groups.setdefault((leg.name, leg.arch), []).append(leg)
    found: list[PruneCandidate] = []
    for legs in groups.values():
        if len(legs) > rule.keep:  # else nothing of them has to be read
            read_legs = {leg: _read_summary_with_records(store, leg, records) for leg in legs}
            for leg in choose_builds(read_legs, rule, now):
                about = read_legs[leg]
                why = reason_to_keep(store, leg, about, unsigned=rule.unsigned)
                found.append(PruneCandidate(leg=leg, told=about, bytes=size_of_build(store, leg), held=why))
    return sorted(found, key=lambda each: (each.leg.timestamp, each.leg.place))


def _read_summary_with_records(store: StorePaths, leg: StoredBuild, records: Records) -> ManifestSummary:
    about = read_summary(store, leg)
    record = records.get(leg_key(about.build_id, leg.arch)) if about.build_id else None
    return attr.evolve(about, replaced_by=record.replaced_by) if record is not None else about


def choose_builds(legs: Mapping[StoredBuild, ManifestSummary], rule: Pruning, now: float) -> list[StoredBuild]:
    """Of the legs of one package and arch, those that a rule drops.

    The newest that came out well stay, as many as the rule says, and with them all that failed since the oldest of
    these; where none came out well, the newest that failed. A leg that a rebuild replaced is not listed: it counts for
    none, and goes by its age.
    """
    made = {leg: _submission_time(leg, about, now) for leg, about in legs.items()}
    newest = sorted(legs, key=lambda leg: (made[leg], leg.place), reverse=True)
    well = [leg for leg in newest if legs[leg].status != Status.FAILED and not legs[leg].replaced_by]
    kept = (well or newest)[: rule.keep]
    oldest = made[kept[-1]] if kept else ""
    last = _format_timestamp(max(0.0, now - rule.older))

    def is_superseded(leg: StoredBuild) -> bool:
        return legs[leg].status != Status.FAILED or made[leg] < oldest

    return [leg for leg in newest if leg not in kept and is_superseded(leg) and made[leg] < last]


def _submission_time(leg: StoredBuild, about: ManifestSummary, now: float) -> str:
    """When a leg was submitted; where no right clock can have said so, when it came here."""
    said = leg.timestamp
    return (
        said if _format_timestamp(EARLIEST_UNIX_TIME) <= said <= _format_timestamp(now + 86400) else about.filed or said
    )


def _format_timestamp(moment: float) -> str:
    return time.strftime(validators.TIMESTAMP_FORMAT, time.gmtime(moment))


def reason_to_keep(store: StorePaths, leg: StoredBuild, about: ManifestSummary, *, unsigned: bool) -> str:
    """Why a leg stays: it waits for the signer, or may still be laid out for it."""
    if not about.build_id:
        return "it has no manifest: it is of the original's farm, and not ours to judge"
    if about.status == Status.FAILED:
        return ""
    name = leg_key(about.build_id, leg.arch)
    collected = store.tosign / leg.target / f"{leg.name}-{leg.place.rpartition('/')[2]}.{about.build_id}"
    # in the order in which it is renamed: a rename between the two looks does not hide it
    if os.path.lexists(store.staging / name) or os.path.lexists(collected):
        return "it waits to be collected and signed"
    if about.replaced_by:
        return ""  # the signer never gets it any more
    if not unsigned and not os.path.lexists(store.staged_marks / name):
        return "it was not laid out for the signer yet"
    return ""


def prune(
    store: StorePaths, indexer: CreaterepoRunner, target: str, rule: Pruning, heed: Callable[[], None], *, dry_run: bool
) -> PruneResult:
    """Drop what a rule drops from a target. Raises `NotPruned` and `RetryLater`; then nothing was removed."""
    found = find_candidates(store, target, rule, time.time())
    if not dry_run and any(not each.held for each in found):
        with hold_lock(store, target, heed) as lock:
            found = find_candidates(store, target, rule, time.time())  # as it is now that nobody indexes it
            doomed = [each for each in found if not each.held]
            listed = [each.leg for each in doomed if each.told.status != Status.FAILED]
            if listed:
                _remove_from_repodata(store, indexer, target, listed, lock, heed)
            for each in doomed:
                drop_build(store, each.leg, each.told)
    return PruneResult(
        target=target,
        dropped=[each for each in found if not each.held],
        held=[each for each in found if each.held],
    )


def _remove_from_repodata(
    store: StorePaths,
    indexer: CreaterepoRunner,
    target: str,
    legs: Iterable[StoredBuild],
    lock: int,
    heed: Callable[[], None],
) -> None:
    """Have the repodata list all but these; what it does list is looked at, and not what createrepo_c says.

    Where that is not as it should be, nobody has seen it.
    """
    repodata = store.target(target) / REPODATA
    listing = Listing(read_listing(repodata) if (repodata / "repomd.xml").exists() else {})
    folders = {leg.folder for leg in legs}
    there = indexer.list_packages(target)
    ruled = ListingRules(store=store).apply_rules(target, listing, there, dropped=folders)
    before = set(listing.packages) - (set(there) - set(ruled.packages) - _paths_inside(there, folders))
    indexer.run(target, lock, heed, packages=ruled.packages)
    after = set(read_listing(store.output(target) / REPODATA))
    doomed = _paths_inside(before, folders)
    lost = [path for path in before - doomed - after if (store.target(target) / path).exists()]
    if after & doomed or lost:
        said = f"it lists {len(after & doomed)} packages that were to go, and lacks {len(lost)} that were to stay"
        raise PruneFailed(f"the new repodata of {target} is not as it should be: {said}; nothing was removed")
    indexer.show(target, heed)


def _paths_inside(packages: Iterable[str], folders: Collection[str]) -> set[str]:
    return {path for path in packages if path.rpartition("/")[0] in folders}


def sweep_live_logs(store: StorePaths, before: float) -> int:
    """Remove growing logs to which nothing came since a time: their worker was killed. How many."""
    left = [folder for folder in store.live.iterdir() if fs.last_change(folder) < before]
    for folder in left:
        fs.remove(folder)
    return len(left)

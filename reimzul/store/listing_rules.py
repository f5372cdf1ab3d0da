# SPDX-License-Identifier: Apache-2.0
"""LR"""

from __future__ import annotations

import contextlib
import logging
import os
import uuid
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import attr

from reimzul.core import validators
from reimzul.core.config import DUPLICATE_KINDS, DuplicatesSettings
from reimzul.core.errors import InputError, InvalidMessage
from reimzul.core.manifest import File, Manifest, read_manifest, sha256_of
from reimzul.core.message import NAMESPACE
from reimzul.core.rpm_header import is_same_package, read_header
from reimzul.core.store_paths import StorePaths, leg_key
from reimzul.core.unlisted import (
    LeftOutPackage,
    Records,
    UnlistedLeg,
    folder_of,
    read_records,
    replaced_builds,
    write_records,
)
from reimzul.store.listing import Listing, Ruling, StoredLeg

log = logging.getLogger(__name__)


@attr.frozen(kw_only=True)
class ExistingLeg:
    """A leg that lies in its place."""

    place: str
    build_id: str
    arch: str
    parent: str = ""
    srpm_sha256: str = ""
    files: Mapping[str, File] = attr.field(factory=dict)  #: its packages, by file name

    @property
    def name(self) -> str:
        """`<build id>.<arch>`."""
        return leg_key(self.build_id, self.arch)

    def is_sibling_of(self, manifest: Manifest) -> bool:
        """Whether it is another leg of the same build, or of a build that a retry of the same source links to it."""
        request = manifest.request
        if self.arch == manifest.arch:
            return False
        if self.build_id == manifest.build_id:
            return True
        is_linked = bool(request.parent) or self.parent == manifest.build_id
        return is_linked and bool(self.srpm_sha256) and self.srpm_sha256 == request.srpm_sha256


def read_existing_leg(store: StorePaths, place: str) -> ExistingLeg | None:
    """The leg in a folder; None where no leg can lie there. A leg of the original's has no manifest, but packages."""
    try:
        validators.place(place)
        folder = store.place(place)
        arch = validators.arch(place.rpartition(".")[2])
    except ValueError:
        return None
    with contextlib.suppress(OSError, InvalidMessage):
        manifest = read_manifest(folder)
        return ExistingLeg(
            place=place,
            build_id=manifest.build_id,
            arch=manifest.arch,
            parent=manifest.request.parent,
            srpm_sha256=manifest.request.srpm_sha256,
            files={file.name: file for file in manifest.rpm_files},
        )
    if not folder.is_dir():
        return None
    return ExistingLeg(place=place, build_id=uuid.uuid5(NAMESPACE, place).hex, arch=arch, files=_read_packages(folder))


def _read_packages(folder: Path) -> dict[str, File]:
    found = {}
    for path in sorted(folder.glob("*.rpm")):
        with contextlib.suppress(OSError, InputError, ValueError):
            found[path.name] = File(
                name=path.name, size=path.stat().st_size, sha256=sha256_of(path), nevra=read_header(path).nevra
            )
    return found


@attr.define(kw_only=True)
class ListingPlan:
    """What is to be listed of a target, as far as it is decided."""

    store: StorePaths
    target: str
    allowed: frozenset[str]  #: the kinds of duplicates that the target may list (core/config.py)
    listing: Listing  #: what is listed now
    records: dict[str, UnlistedLeg]
    dropped: frozenset[str]  #: folders of which nothing is to be listed
    _held: set[str] = attr.field(factory=set)  #: folders that are not listed yet, or never
    _hidden: set[str] = attr.field(factory=set)  #: folders and packages that the records hide
    _paths: dict[str, list[str]] = attr.field(factory=dict)  #: file name -> packages that are to be listed
    _stored: dict[str, ExistingLeg | None] = attr.field(factory=dict)  #: by folder, as far as it was looked into

    def decide(self, legs: Sequence[StoredLeg], packages: Sequence[str]) -> dict[str, str]:
        """Bring the records up to date; the folders of legs that are refused, and why."""
        self._settle_records()
        new = [leg for leg in legs if not self._is_decided(leg)]
        waiting = self._collect(new, legs, packages)
        refused = {leg.folder: why for leg in new if (why := self._refuse_or_replace(leg))}
        accepted = [leg for leg in new if leg.folder not in refused and leg.folder not in self._hidden]
        for leg in accepted:
            self._remove_paths(leg.folder)
        for leg in accepted:
            self._leave_out(leg)
        self._look_for_keepers()
        self._held.update(refused)
        self._hold_out(waiting)
        return refused

    def filter_packages(self, packages: Sequence[str]) -> Sequence[str]:
        """The packages that are to be listed."""
        if not (self._hidden or self._held or self.dropped):
            return packages
        return [path for path in packages if not self.hides(path)]

    def hides(self, path: str) -> bool:
        """Whether a package is not to be listed."""
        folder = path.rpartition("/")[0]
        return path in self._hidden or folder in self._hidden or folder in self._held or folder in self.dropped

    def _settle_records(self) -> None:
        """Drop what is said of legs that are gone, and what a rebuild was to replace that is gone unlisted."""
        root = self.store.root
        for name, each in list(self.records.items()):
            if each.replaced_by and not each.was_listed:
                self.records[name] = each = self._settle_record(each)
            if not os.path.isdir(f"{root}/{each.place}") or not (each.replaced_by or each.left_out):
                del self.records[name]
        self._hide()

    def _settle_record(self, each: UnlistedLeg) -> UnlistedLeg:
        folder = folder_of(each.replacement) + "/"
        if any(path.startswith(folder) for path in self.listing.packages):
            return attr.evolve(each, was_listed=True)
        if self.store.place(each.replacement).is_dir():
            return each
        return attr.evolve(each, replaced_by="", replacement="")

    def _hide(self) -> None:
        self._hidden = {each.folder for each in self.records.values() if each.replaced_by}
        self._hidden |= {f"{each.folder}/{name}" for each in self.records.values() for name in each.left_out}

    def _is_decided(self, leg: StoredLeg) -> bool:
        """Whether a leg was replaced, or is listed as it was decided."""
        if leg.folder in self._hidden:
            return True
        wanted = {f"{leg.folder}/{file.name}": file.sha256 for file in leg.manifest.rpm_files}
        return all(self.listing.packages.get(path) == sha256 or path in self._hidden for path, sha256 in wanted.items())

    def _collect(self, new: Sequence[StoredLeg], legs: Sequence[StoredLeg], packages: Sequence[str]) -> list[str]:
        """Note where the packages are listed that anything is asked of; the packages that wait for their own run.

        Such a package is of another worker's leg, which has its place, and waits for the lock.
        """
        own, known = {leg.folder for leg in legs}, self.listing.packages
        waiting = [path for path in packages if known and path not in known and not self.hides(path)]
        waiting = [path for path in waiting if path.rpartition("/")[0] not in own]
        wanted = {file.name for leg in new for file in leg.manifest.rpm_files}
        wanted.update(name for each in self.records.values() for name in each.left_out)
        wanted.update(path.rpartition("/")[2] for path in waiting)
        mine = {leg.folder for leg in new}
        for path in packages:  # what is listed and does not lie there any more holds nothing
            folder, _, name = path.rpartition("/")
            if name in wanted and (path in known or not known) and folder not in mine and not self.hides(path):
                self._paths.setdefault(name, []).append(path)
        return waiting

    def _refuse_or_replace(self, leg: StoredLeg) -> str:
        """Why a leg is not listed; where it is, the legs of other builds that it replaces are not, from now on."""
        hits = [] if "builds" in self.allowed else list(self._find_duplicates(leg))
        others = [(file, old) for file, old in hits if not old.is_sibling_of(leg.manifest)]
        if others and not leg.manifest.request.rebuild:
            file, old = others[0]
            return f"the target holds {file.nevra} of build {old.build_id}; submit with --rebuild"
        for _, old in others:
            # of another arch, the leg stays until its own rebuild comes: what both make is left out of the new one
            if old.arch == leg.manifest.arch:
                self._replace(old, leg)
        for file in leg.manifest.rpm_files:
            self._paths.setdefault(file.name, []).append(f"{leg.folder}/{file.name}")
        return ""

    def _replace(self, old: ExistingLeg, leg: StoredLeg) -> None:
        record = self.records.get(old.name, UnlistedLeg(place=old.place))
        self.records[old.name] = attr.evolve(record, replaced_by=leg.manifest.build_id, replacement=leg.place)
        log.info("%s is replaced by build %s", old.place, leg.manifest.build_id)
        self._hide()
        self._remove_paths(folder_of(old.place))

    def _remove_paths(self, folder: str) -> None:
        for name, paths in self._paths.items():
            self._paths[name] = [path for path in paths if path.rpartition("/")[0] != folder]

    def _leave_out(self, leg: StoredLeg) -> None:
        """Leave out of a leg what another one lists already."""
        left_out = {}
        for file in leg.manifest.rpm_files:
            path = f"{leg.folder}/{file.name}"
            keeper = next((old for old in self._find_holders(leg, file) if self._must_leave_out(old, leg)), None)
            if keeper is None:
                self._paths.setdefault(file.name, []).append(path)
            else:
                left_out[file.name] = self._describe_left_out(path, keeper)
        name = leg_key(leg.manifest.build_id, leg.manifest.arch)
        if left_out:
            self.records[name] = UnlistedLeg(place=leg.place, left_out=left_out)
        else:
            self.records.pop(name, None)
        self._hide()

    def _must_leave_out(self, old: ExistingLeg, leg: StoredLeg) -> bool:
        return ("legs" if old.is_sibling_of(leg.manifest) else "builds") not in self.allowed

    def _describe_left_out(self, path: str, keeper: ExistingLeg) -> LeftOutPackage:
        other, differs = self.store.place(keeper.place) / path.rpartition("/")[2], False
        with contextlib.suppress(InputError):  # createrepo_c will say it of the one that is listed
            differs = not is_same_package(self.store.target(self.target) / path, other)
        return LeftOutPackage(leg=keeper.name, place=keeper.place, differs=differs)

    def _look_for_keepers(self) -> None:
        """List what was left out for a leg that is not listed any more, unless yet another leg has it."""
        for leg, record in list(self.records.items()):
            if record.replaced_by or record.folder in self.dropped:
                continue
            left_out = dict(record.left_out)
            for name, kept in record.left_out.items():
                listed = self._paths.get(name, ())
                if f"{folder_of(kept.place)}/{name}" in listed:
                    continue
                holders = (self._stored_at(path.rpartition("/")[0]) for path in listed)
                keeper = next((each for each in holders if each is not None and each.name != leg), None)
                if keeper is None:
                    del left_out[name]
                    self._paths.setdefault(name, []).append(f"{record.folder}/{name}")
                else:
                    left_out[name] = self._describe_left_out(f"{record.folder}/{name}", keeper)
            if left_out != record.left_out:
                self.records[leg] = attr.evolve(record, left_out=left_out)
            if not left_out:
                del self.records[leg]
        self._hide()

    def _hold_out(self, waiting: Sequence[str]) -> None:
        """Leave legs that are not decided to their own run, where they have a package that is listed already."""
        if self.allowed.issuperset(DUPLICATE_KINDS):
            return
        for path in waiting:
            folder, _, name = path.rpartition("/")
            other = next((each for each in self._paths.get(name, ()) if each != path), None)
            if other is not None:
                log.info("%s is not listed before its own run: %s is", folder, other)
                self._held.add(folder)

    def _find_duplicates(self, leg: StoredLeg) -> Iterator[tuple[File, ExistingLeg]]:
        for file in leg.manifest.rpm_files:
            yield from ((file, old) for old in self._find_holders(leg, file))

    def _find_holders(self, leg: StoredLeg, file: File) -> Iterator[ExistingLeg]:
        """The other legs that list a package of the same NEVRA; those of another build only with other content."""
        for path in list(self._paths.get(file.name, ())):
            folder = path.rpartition("/")[0]
            old = self._stored_at(folder) if folder != leg.folder else None
            other = old.files.get(file.name) if old is not None else None
            if old is None or other is None or other.nevra != file.nevra:
                continue
            if other.sha256 != file.sha256 or old.is_sibling_of(leg.manifest):
                yield old

    def _stored_at(self, folder: str) -> ExistingLeg | None:
        if folder not in self._stored:
            self._stored[folder] = read_existing_leg(self.store, f"repo/{self.target}/{folder}")
        return self._stored[folder]


@attr.frozen(kw_only=True)
class RulesResult:
    """What a run is to list, and what the rules say of the legs it is made for."""

    legs: Sequence[StoredLeg]
    packages: Sequence[str]  #: seen from the target


@attr.frozen(kw_only=True)
class ListingRules:
    """The rules of all targets."""

    store: StorePaths
    duplicates: DuplicatesSettings = attr.field(factory=DuplicatesSettings)

    def apply_rules(
        self,
        target: str,
        listing: Listing,
        packages: Sequence[str],
        legs: Sequence[StoredLeg] = (),
        dropped: Collection[str] = (),
    ) -> RulesResult:
        """Decide what of `packages`, all that lie in the target, is listed, and record it.

        `listing` is what is listed now, `legs` are those that the run is made for, `dropped` are folders of which
        nothing is to be listed. Raises `RetryLater` where the record is damaged.
        """
        before = read_records(self.store, target)
        plan = ListingPlan(
            store=self.store,
            target=target,
            allowed=self.duplicates.kinds_for(target),
            listing=listing,
            records=dict(before),
            dropped=frozenset(dropped),
        )
        refused = plan.decide(_in_order(legs), packages)
        if plan.records != before:
            write_records(self.store, target, plan.records)
        ruled = [
            attr.evolve(leg, ruling=Ruling(refused=refused[leg.folder]))
            if leg.folder in refused
            else self._with_ruling(leg, plan.records)
            for leg in legs
        ]
        return RulesResult(legs=ruled, packages=plan.filter_packages(packages))

    def read_rulings(self, target: str, legs: Iterable[StoredLeg]) -> list[StoredLeg]:
        """The same legs with what was decided about them before. Raises `RetryLater`."""
        records = read_records(self.store, target)
        return [self._with_ruling(leg, records) for leg in legs]

    def restore_replaced(self, target: str, failed: Iterable[StoredLeg]) -> bool:
        """List again what legs replaced that createrepo_c did not list; whether there was anything."""
        places = {leg.place for leg in failed}
        records = read_records(self.store, target)
        restored = {
            name: attr.evolve(each, replaced_by="", replacement="")
            for name, each in records.items()
            if each.replacement in places and not each.was_listed
        }
        if restored:
            write_records(self.store, target, {**records, **restored})
        return bool(restored)

    def _with_ruling(self, leg: StoredLeg, records: Records) -> StoredLeg:
        manifest = leg.manifest
        record = records.get(leg_key(manifest.build_id, manifest.arch))
        replaced = bool(record and record.replaced_by)
        names = {file.name for file in manifest.rpm_files} if replaced else record.left_out if record else ()
        return attr.evolve(leg, ruling=Ruling(left_out=frozenset(names), notes=self._make_notes(leg, record, records)))

    def _make_notes(self, leg: StoredLeg, record: UnlistedLeg | None, records: Records) -> str:
        """What everybody is told of a leg that is not listed as a first build is."""
        build_id, notes = leg.manifest.build_id, []
        if record is not None and record.replaced_by:
            notes.append(f"build {record.replaced_by} has replaced it")
        for name, old in replaced_builds(records, build_id, leg.manifest.arch).items():
            notes.append(f"it replaces build {name.partition('.')[0]}{self._collected_suffix(name, old)}")
            notes += self._find_still_listed(name, records)
        for file, kept in record.left_out.items() if record is not None else ():
            other, _, arch = kept.leg.partition(".")
            whose = f"its {arch} leg" if other == build_id else f"the {arch} leg of build {other}"
            differs = ", although the contents differ beyond build time and host" if kept.differs else ""
            notes.append(f"{file} is listed from {whose}{differs}")
        return "; ".join(notes)

    def _collected_suffix(self, name: str, old: UnlistedLeg) -> str:
        """Whether the signer has taken a replaced leg; tosign takes back what still waits."""
        _, target, package, _, folder = old.place.split("/")
        waiting = self.store.tosign / target / f"{package}-{folder}.{name.partition('.')[0]}"
        is_taken = os.path.lexists(self.store.staged_marks / name) and not (
            os.path.lexists(self.store.staging / name) or os.path.lexists(waiting)
        )
        return ", which the signer has collected already" if is_taken else ""

    def _find_still_listed(self, name: str, records: Records) -> list[str]:
        """The legs of a replaced build that nothing has replaced yet."""
        old = records[name]
        around = self.store.place(old.place).parent
        found = []
        for folder in sorted(os.listdir(around)) if around.is_dir() else ():
            leg = read_existing_leg(self.store, f"{old.place.rpartition('/')[0]}/{folder}")
            if leg is None or leg.build_id != name.partition(".")[0] or not leg.files or leg.name == name:
                continue
            record = records.get(leg.name)
            if record is None or not record.replaced_by:
                found.append(f"the {leg.arch} leg of build {leg.build_id} is still listed")
        return found


def _in_order(legs: Sequence[StoredLeg]) -> list[StoredLeg]:
    """As they came, of each build the leg first that was asked for."""
    first: dict[str, int] = {}
    for number, leg in enumerate(legs):
        first.setdefault(leg.manifest.build_id, number)
    return sorted(legs, key=lambda leg: (first[leg.manifest.build_id], leg.manifest.arch != leg.manifest.request.arch))

# SPDX-License-Identifier: Apache-2.0
"""Decides which packages of a target its next repodata lists: one NEVRA has one content.

A leg is refused if the target already lists one of its packages from another build; if a rebuild is meant, it replaces
the whole leg that has the package. A package that two legs of one build (or of a build and its retry) contain is listed
from the leg that was listed first. Decisions are recorded (store/listing.py) before createrepo_c runs. Callers hold the
target's lock.
"""

from __future__ import annotations

import contextlib
import logging
import os
import uuid
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import attr

from reimzul.core import validators
from reimzul.core.errors import InputError, InvalidMessage
from reimzul.core.manifest import File, Manifest, read_manifest, sha256_of
from reimzul.core.message import NAMESPACE
from reimzul.core.rpm_header import is_same_package, read_header
from reimzul.core.setting_parsers import DUPLICATE_KINDS
from reimzul.core.settings import DuplicatesSettings
from reimzul.core.store_paths import StorePaths, leg_key
from reimzul.store.listing import (
    LeftOutPackage,
    Listing,
    Records,
    Ruling,
    StoredLeg,
    UnlistedLeg,
    folder_of,
    read_records,
    replaced_builds,
    write_records,
)

log = logging.getLogger(__name__)


@attr.frozen(kw_only=True)
class ExistingLeg:
    """A leg that lies in a target, also one of the original's farm, which has no manifest."""

    place: str
    build_id: str
    arch: str
    parent: str = ""
    srpm_sha256: str = ""
    files: Mapping[str, File] = attr.field(factory=dict)  #: its packages, by file name

    @property
    def name(self) -> str:
        return leg_key(self.build_id, self.arch)

    def is_sibling_of(self, manifest: Manifest) -> bool:
        """Whether it is another leg of the same build, or of a build that a retry of the same source links to it."""
        request = manifest.request
        if self.arch == manifest.arch:
            return False
        if self.build_id == manifest.build_id:
            return True
        is_linked = request.parent or self.parent == manifest.build_id
        return bool(is_linked and self.srpm_sha256) and self.srpm_sha256 == request.srpm_sha256


def read_existing_leg(store: StorePaths, place: str) -> ExistingLeg | None:
    """Read the leg in a folder, from its manifest or else from its packages; None if this is no leg's place."""
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


@attr.frozen(kw_only=True)
class RulesResult:
    legs: Sequence[StoredLeg]  #: those that the run is made for, with their rulings
    packages: Sequence[str]  #: relative to the target


@attr.frozen(kw_only=True)
class ListingRules:
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
        """Decide which of `packages`, all that lie in the target, are listed, and record the decision.

        `listing` is the current one, `legs` are the new ones, and no package in the folders `dropped` is listed. Raises
        `RetryLater` if the record is damaged.
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
        return RulesResult(legs=ruled, packages=[path for path in packages if not plan.hides(path)])

    def read_rulings(self, target: str, legs: Iterable[StoredLeg]) -> list[StoredLeg]:
        """Return the legs with what was decided about them before. Raises `RetryLater`."""
        records = read_records(self.store, target)
        return [self._with_ruling(leg, records) for leg in legs]

    def restore_replaced(self, target: str, failed: Iterable[StoredLeg]) -> bool:
        """Undo what legs replaced that createrepo_c did not list; return whether there was anything."""
        places = {leg.place for leg in failed}
        records = read_records(self.store, target)
        restored = {
            name: attr.evolve(record, replaced_by="", replacement="")
            for name, record in records.items()
            if record.replacement in places and not record.was_listed
        }
        if restored:
            write_records(self.store, target, {**records, **restored})
        return bool(restored)

    def _with_ruling(self, leg: StoredLeg, records: Records) -> StoredLeg:
        manifest = leg.manifest
        record = records.get(leg_key(manifest.build_id, manifest.arch), UnlistedLeg(place=leg.place))
        names = {file.name for file in manifest.rpm_files} if record.replaced_by else record.left_out
        return attr.evolve(leg, ruling=Ruling(left_out=frozenset(names), notes=self._make_notes(leg, record, records)))

    def _make_notes(self, leg: StoredLeg, record: UnlistedLeg, records: Records) -> str:
        """What the Published event says about a leg that is not listed as a first build is."""
        build_id, notes = leg.manifest.build_id, []
        if record.replaced_by:
            notes.append(f"build {record.replaced_by} has replaced it")
        for name, old in replaced_builds(records, build_id, leg.manifest.arch).items():
            notes.append(f"it replaces build {name.partition('.')[0]}{self._collected_suffix(name, old)}")
            notes += self._find_still_listed(name, records)
        for file, kept in record.left_out.items():
            other, _, arch = kept.leg.partition(".")
            whose = f"its {arch} build" if other == build_id else f"{arch} of build {other}"
            differs = ", although the contents differ beyond build time and host" if kept.differs else ""
            notes.append(f"{file} is listed from {whose}{differs}")
        return "; ".join(notes)

    def _collected_suffix(self, name: str, old: UnlistedLeg) -> str:
        """Say so if the signer has collected a replaced leg; tosign takes back what it has not."""
        is_staged = os.path.lexists(self.store.staged_marks / name)
        is_collected = is_staged and not waits_for_signer(self.store, name, old.place)
        return ", which the signer has collected already" if is_collected else ""

    def _find_still_listed(self, name: str, records: Records) -> list[str]:
        """The legs of a replaced build that nothing has replaced yet."""
        old = records[name]
        parent = self.store.place(old.place).parent
        found = []
        for folder in sorted(os.listdir(parent)) if parent.is_dir() else ():
            leg = read_existing_leg(self.store, f"{old.place.rpartition('/')[0]}/{folder}")
            if leg is None or leg.build_id != name.partition(".")[0] or not leg.files or leg.name == name:
                continue
            if leg.name not in records or not records[leg.name].replaced_by:
                found.append(f"{leg.arch} of build {leg.build_id} is still listed")
        return found


def waits_for_signer(store: StorePaths, name: str, place: str) -> bool:
    """Whether a leg, by `<build id>.<arch>`, is staged and not collected yet."""
    # In the order of tosign's rename, so that a rename between the two checks does not hide it.
    return os.path.lexists(store.staging / name) or os.path.lexists(store.exposed(place, name.partition(".")[0]))


def _in_order(legs: Sequence[StoredLeg]) -> list[StoredLeg]:
    """As they arrived, but the main leg of each build first."""
    first: dict[str, int] = {}
    for number, leg in enumerate(legs):
        first.setdefault(leg.manifest.build_id, number)
    return sorted(legs, key=lambda leg: (first[leg.manifest.build_id], leg.manifest.arch != leg.manifest.request.arch))


@attr.define(kw_only=True)
class ListingPlan:
    """One decision about a target, as far as it is made."""

    store: StorePaths
    target: str
    allowed: frozenset[str]  #: the kinds of duplicates that the target may list (core/config.py)
    listing: Listing  #: what is listed now
    records: dict[str, UnlistedLeg]
    dropped: frozenset[str]  #: folders of which nothing is listed
    _held: set[str] = attr.field(factory=set)  #: folders that are not listed yet, or never
    _hidden: set[str] = attr.field(factory=set)  #: folders and packages that the records hide
    _paths: dict[str, list[str]] = attr.field(factory=dict)  #: file name -> packages to be listed
    _existing: dict[str, ExistingLeg | None] = attr.field(factory=dict)  #: by folder, those read so far

    def decide(self, legs: Sequence[StoredLeg], packages: Sequence[str]) -> dict[str, str]:
        """Bring the records up to date; return the folders of refused legs, and why they are refused."""
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

    def hides(self, path: str) -> bool:
        folder = path.rpartition("/")[0]
        return path in self._hidden or folder in self._hidden or folder in self._held or folder in self.dropped

    def _settle_records(self) -> None:
        """Drop records of legs that are gone, and undo replacements by rebuilds that are gone and were never listed."""
        for name, old in list(self.records.items()):
            record = self._settle_record(old) if old.replaced_by and not old.was_listed else old
            self.records[name] = record
            if not self.store.place(record.place).is_dir() or not (record.replaced_by or record.left_out):
                del self.records[name]
        self._hide()

    def _settle_record(self, record: UnlistedLeg) -> UnlistedLeg:
        folder = folder_of(record.replacement) + "/"
        if any(path.startswith(folder) for path in self.listing.packages):
            return attr.evolve(record, was_listed=True)
        if self.store.place(record.replacement).is_dir():
            return record
        return attr.evolve(record, replaced_by="", replacement="")

    def _hide(self) -> None:
        self._hidden = {record.folder for record in self.records.values() if record.replaced_by}
        self._hidden |= {f"{record.folder}/{name}" for record in self.records.values() for name in record.left_out}

    def _is_decided(self, leg: StoredLeg) -> bool:
        """Whether a leg was replaced, or is listed as it was decided."""
        if leg.folder in self._hidden:
            return True
        wanted = {f"{leg.folder}/{file.name}": file.sha256 for file in leg.manifest.rpm_files}
        return all(self.listing.packages.get(path) == sha256 or path in self._hidden for path, sha256 in wanted.items())

    def _collect(self, new: Sequence[StoredLeg], legs: Sequence[StoredLeg], packages: Sequence[str]) -> list[str]:
        """Note where the packages in question are listed; return the packages that wait for a run of their own.

        Such a package belongs to another worker's leg, which has its place and waits for the lock.
        """
        own, listed = {leg.folder for leg in legs}, self.listing.packages
        waiting = [path for path in packages if listed and path not in listed and not self.hides(path)]
        waiting = [path for path in waiting if path.rpartition("/")[0] not in own]
        wanted = {file.name for leg in new for file in leg.manifest.rpm_files}
        wanted.update(name for record in self.records.values() for name in record.left_out)
        wanted.update(path.rpartition("/")[2] for path in waiting)
        new_folders = {leg.folder for leg in new}
        for path in packages:  # a package that is listed and no longer lies there is not counted
            folder, _, name = path.rpartition("/")
            is_listed = path in listed or not listed
            if name in wanted and is_listed and folder not in new_folders and not self.hides(path):
                self._paths.setdefault(name, []).append(path)
        return waiting

    def _refuse_or_replace(self, leg: StoredLeg) -> str:
        """Return why a leg is refused; if it is not, hide the legs of other builds that it replaces."""
        files = [] if "builds" in self.allowed else leg.manifest.rpm_files
        holders = [(file, old) for file in files for old in self._find_holders(leg, file)]
        others = [(file, old) for file, old in holders if not old.is_sibling_of(leg.manifest)]
        if others and not leg.manifest.request.rebuild:
            file, old = others[0]
            return f"the target holds {file.nevra} of build {old.build_id}; submit with --rebuild"
        for _, old in others:
            # A leg of another arch stays until its own rebuild arrives; the new leg leaves out what both contain.
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
        left_out = {}
        for file in leg.manifest.rpm_files:
            path = f"{leg.folder}/{file.name}"
            holders = ((old, old.is_sibling_of(leg.manifest)) for old in self._find_holders(leg, file))
            keeper = next((old for old, own in holders if ("arches" if own else "builds") not in self.allowed), None)
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

    def _describe_left_out(self, path: str, keeper: ExistingLeg) -> LeftOutPackage:
        other, differs = self.store.place(keeper.place) / path.rpartition("/")[2], False
        with contextlib.suppress(InputError):  # createrepo_c reports a package that cannot be read
            differs = not is_same_package(self.store.target(self.target) / path, other)
        return LeftOutPackage(leg=keeper.name, place=keeper.place, differs=differs)

    def _look_for_keepers(self) -> None:
        """List what was left out for a leg that is no longer listed, unless yet another leg has it."""
        for leg, record in list(self.records.items()):
            if record.replaced_by or record.folder in self.dropped:
                continue
            left_out = dict(record.left_out)
            for name, kept in record.left_out.items():
                listed = self._paths.get(name, ())
                if f"{folder_of(kept.place)}/{name}" in listed:
                    continue
                holders = (self._read_existing(path.rpartition("/")[0]) for path in listed)
                keeper = next((each for each in holders if each is not None and each.name != leg), None)
                if keeper is None:
                    del left_out[name]
                    self._paths.setdefault(name, []).append(f"{record.folder}/{name}")
                else:
                    left_out[name] = self._describe_left_out(f"{record.folder}/{name}", keeper)
            if not left_out:
                del self.records[leg]
            elif left_out != record.left_out:
                self.records[leg] = attr.evolve(record, left_out=left_out)
        self._hide()

    def _hold_out(self, waiting: Sequence[str]) -> None:
        """Leave undecided legs to their own run if another leg already lists one of their packages."""
        if self.allowed.issuperset(DUPLICATE_KINDS):
            return
        for path in waiting:
            folder, _, name = path.rpartition("/")
            other = next((each for each in self._paths.get(name, ()) if each != path), None)
            if other is not None:
                log.info("%s is not listed before its own run: %s is", folder, other)
                self._held.add(folder)

    def _find_holders(self, leg: StoredLeg, file: File) -> Iterator[ExistingLeg]:
        """The other legs that list a package of the same NEVRA; legs of another build only with other content."""
        for path in list(self._paths.get(file.name, ())):
            folder = path.rpartition("/")[0]
            old = self._read_existing(folder) if folder != leg.folder else None
            other = old.files.get(file.name) if old is not None else None
            if old is None or other is None or other.nevra != file.nevra:
                continue
            if other.sha256 != file.sha256 or old.is_sibling_of(leg.manifest):
                yield old

    def _read_existing(self, folder: str) -> ExistingLeg | None:
        if folder not in self._existing:
            self._existing[folder] = read_existing_leg(self.store, f"repo/{self.target}/{folder}")
        return self._existing[folder]

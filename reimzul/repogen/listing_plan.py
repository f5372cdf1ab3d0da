# SPDX-License-Identifier: Apache-2.0
"""One decision about what a target lists: the steps of listing_rules.py, on what is listed now and what has come."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Iterator, Sequence

import attr

from reimzul.core.config import DUPLICATE_KINDS
from reimzul.core.errors import InputError
from reimzul.core.manifest import File
from reimzul.core.rpm_header import is_same_package
from reimzul.core.store_paths import StorePaths, leg_key
from reimzul.core.unlisted import LeftOutPackage, UnlistedLeg, folder_of
from reimzul.repogen.place import Placed
from reimzul.repogen.repodata import Listing
from reimzul.repogen.stored_leg import StoredLeg, read_stored_leg

log = logging.getLogger(__name__)


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
    _stored: dict[str, StoredLeg | None] = attr.field(factory=dict)  #: by folder, as far as it was looked into

    def decide(self, legs: Sequence[Placed], packages: Sequence[str]) -> dict[str, str]:
        """Bring the records up to date; the folders of legs that are refused, and why."""
        self._settle_records()
        new = [leg for leg in legs if not self._is_decided(leg)]
        waiting = self._collect(new, legs, packages)
        refused = {leg.folder: why for leg in new if (why := self._refuse_or_replace(leg))}
        accepted = [leg for leg in new if leg.folder not in refused and leg.folder not in self._hidden]
        for leg in accepted:
            self._forget(leg.folder)
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
                self.records[name] = each = self._settled(each)
            if not os.path.isdir(f"{root}/{each.place}") or not (each.replaced_by or each.left_out):
                del self.records[name]
        self._hide()

    def _settled(self, each: UnlistedLeg) -> UnlistedLeg:
        folder = folder_of(each.replacement) + "/"
        if any(path.startswith(folder) for path in self.listing.packages):
            return attr.evolve(each, was_listed=True)
        if self.store.place(each.replacement).is_dir():
            return each
        return attr.evolve(each, replaced_by="", replacement="")

    def _hide(self) -> None:
        self._hidden = {each.folder for each in self.records.values() if each.replaced_by}
        self._hidden |= {f"{each.folder}/{name}" for each in self.records.values() for name in each.left_out}

    def _is_decided(self, leg: Placed) -> bool:
        """Whether a leg was replaced, or is listed as it was decided."""
        if leg.folder in self._hidden:
            return True
        wanted = {f"{leg.folder}/{file.name}": file.sha256 for file in leg.manifest.rpm_files}
        return all(self.listing.packages.get(path) == sha256 or path in self._hidden for path, sha256 in wanted.items())

    def _collect(self, new: Sequence[Placed], legs: Sequence[Placed], packages: Sequence[str]) -> list[str]:
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

    def _refuse_or_replace(self, leg: Placed) -> str:
        """Why a leg is not listed; where it is, the legs of other builds that it replaces are not, from now on."""
        hits = [] if "builds" in self.allowed else list(self._hits(leg))
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

    def _replace(self, old: StoredLeg, leg: Placed) -> None:
        record = self.records.get(old.name, UnlistedLeg(place=old.place))
        self.records[old.name] = attr.evolve(record, replaced_by=leg.manifest.build_id, replacement=leg.place)
        log.info("%s is replaced by build %s", old.place, leg.manifest.build_id)
        self._hide()
        self._forget(folder_of(old.place))

    def _forget(self, folder: str) -> None:
        for name, paths in self._paths.items():
            self._paths[name] = [path for path in paths if path.rpartition("/")[0] != folder]

    def _leave_out(self, leg: Placed) -> None:
        """Leave out of a leg what another one lists already."""
        left_out = {}
        for file in leg.manifest.rpm_files:
            path = f"{leg.folder}/{file.name}"
            keeper = next((old for old in self._holders(leg, file) if self._keeps(old, leg)), None)
            if keeper is None:
                self._paths.setdefault(file.name, []).append(path)
            else:
                left_out[file.name] = self._left_out(path, keeper)
        name = leg_key(leg.manifest.build_id, leg.manifest.arch)
        if left_out:
            self.records[name] = UnlistedLeg(place=leg.place, left_out=left_out)
        else:
            self.records.pop(name, None)
        self._hide()

    def _keeps(self, old: StoredLeg, leg: Placed) -> bool:
        return ("legs" if old.is_sibling_of(leg.manifest) else "builds") not in self.allowed

    def _left_out(self, path: str, keeper: StoredLeg) -> LeftOutPackage:
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
                    left_out[name] = self._left_out(f"{record.folder}/{name}", keeper)
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

    def _hits(self, leg: Placed) -> Iterator[tuple[File, StoredLeg]]:
        for file in leg.manifest.rpm_files:
            yield from ((file, old) for old in self._holders(leg, file))

    def _holders(self, leg: Placed, file: File) -> Iterator[StoredLeg]:
        """The other legs that list a package of the same NEVRA; those of another build only with other content."""
        for path in list(self._paths.get(file.name, ())):
            folder = path.rpartition("/")[0]
            old = self._stored_at(folder) if folder != leg.folder else None
            other = old.files.get(file.name) if old is not None else None
            if old is None or other is None or other.nevra != file.nevra:
                continue
            if other.sha256 != file.sha256 or old.is_sibling_of(leg.manifest):
                yield old

    def _stored_at(self, folder: str) -> StoredLeg | None:
        if folder not in self._stored:
            self._stored[folder] = read_stored_leg(self.store, f"repo/{self.target}/{folder}")
        return self._stored[folder]

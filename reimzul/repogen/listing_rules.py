# SPDX-License-Identifier: Apache-2.0
"""One NEVRA, one content: which of the packages that lie in a target its next repodata lists.

A leg whose package the target already lists from another build is refused, or, where a rebuild is meant, replaces the
whole leg that has it. A package that two legs of one build (or of a build and its retry) make is listed from the leg
that was listed first. What follows is recorded (core/unlisted.py) before createrepo_c runs. Who calls this holds the
target's lock.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Sequence

import attr

from reimzul.core.config import DuplicatesSettings
from reimzul.core.store_paths import StorePaths, leg_key
from reimzul.core.unlisted import Records, UnlistedLeg, read_records, replaced_builds, write_records
from reimzul.repogen.listing_plan import ListingPlan
from reimzul.repogen.place import Placed, Ruling
from reimzul.repogen.repodata import Listing
from reimzul.repogen.stored_leg import read_stored_leg


@attr.frozen(kw_only=True)
class Ruled:
    """What a run is to list, and what the rules say of the legs it is made for."""

    legs: Sequence[Placed]
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
        legs: Sequence[Placed] = (),
        dropped: Collection[str] = (),
    ) -> Ruled:
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
            else self._ruled(leg, plan.records)
            for leg in legs
        ]
        return Ruled(legs=ruled, packages=plan.filter_packages(packages))

    def read_rulings(self, target: str, legs: Iterable[Placed]) -> list[Placed]:
        """The same legs with what was decided about them before. Raises `RetryLater`."""
        records = read_records(self.store, target)
        return [self._ruled(leg, records) for leg in legs]

    def restore_replaced(self, target: str, failed: Iterable[Placed]) -> bool:
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

    def _ruled(self, leg: Placed, records: Records) -> Placed:
        manifest = leg.manifest
        record = records.get(leg_key(manifest.build_id, manifest.arch))
        replaced = bool(record and record.replaced_by)
        names = {file.name for file in manifest.rpm_files} if replaced else record.left_out if record else ()
        return attr.evolve(leg, ruling=Ruling(left_out=frozenset(names), notes=self._notes(leg, record, records)))

    def _notes(self, leg: Placed, record: UnlistedLeg | None, records: Records) -> str:
        """What everybody is told of a leg that is not listed as a first build is."""
        build_id, notes = leg.manifest.build_id, []
        if record is not None and record.replaced_by:
            notes.append(f"build {record.replaced_by} has replaced it")
        for name, old in replaced_builds(records, build_id, leg.manifest.arch).items():
            notes.append(f"it replaces build {name.partition('.')[0]}{self._collected(name, old)}")
            notes += self._still_listed(name, records)
        for file, kept in record.left_out.items() if record is not None else ():
            other, _, arch = kept.leg.partition(".")
            whose = f"its {arch} leg" if other == build_id else f"the {arch} leg of build {other}"
            differs = ", although the contents differ beyond build time and host" if kept.differs else ""
            notes.append(f"{file} is listed from {whose}{differs}")
        return "; ".join(notes)

    def _collected(self, name: str, old: UnlistedLeg) -> str:
        """Whether the signer has taken a replaced leg; tosign takes back what still waits."""
        _, target, package, _, folder = old.place.split("/")
        waiting = self.store.tosign / target / f"{package}-{folder}.{name.partition('.')[0]}"
        is_taken = os.path.lexists(self.store.staged_marks / name) and not (
            os.path.lexists(self.store.staging / name) or os.path.lexists(waiting)
        )
        return ", which the signer has collected already" if is_taken else ""

    def _still_listed(self, name: str, records: Records) -> list[str]:
        """The legs of a replaced build that nothing has replaced yet."""
        old = records[name]
        around = self.store.place(old.place).parent
        found = []
        for folder in sorted(os.listdir(around)) if around.is_dir() else ():
            leg = read_stored_leg(self.store, f"{old.place.rpartition('/')[0]}/{folder}")
            if leg is None or leg.build_id != name.partition(".")[0] or not leg.files or leg.name == name:
                continue
            record = records.get(leg.name)
            if record is None or not record.replaced_by:
                found.append(f"the {leg.arch} leg of build {leg.build_id} is still listed")
        return found


def _in_order(legs: Sequence[Placed]) -> list[Placed]:
    """As they came, of each build the leg first that was asked for."""
    first: dict[str, int] = {}
    for number, leg in enumerate(legs):
        first.setdefault(leg.manifest.build_id, number)
    return sorted(legs, key=lambda leg: (first[leg.manifest.build_id], leg.manifest.arch != leg.manifest.request.arch))

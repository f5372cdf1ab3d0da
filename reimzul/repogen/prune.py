# SPDX-License-Identifier: Apache-2.0
"""Old builds dropped from a target: chosen, left out of the repodata, and only then removed.

Who calls this writes as the store's owner. Under the target's lock createrepo_c is run once without them, the new
repodata is read back, and what it does not list any more is removed: nothing is ever listed that is not there. Killed
before that, they are listed again by the next run, and dropped by the next prune.
"""

from __future__ import annotations

import contextlib
import logging
import os
import time
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Callable

import attr

from reimzul.core import fs, validators
from reimzul.core.clock import EARLIEST_UNIX_TIME
from reimzul.core.config import Pruning
from reimzul.core.errors import ReimzulError
from reimzul.core.message import Status
from reimzul.core.store_paths import StorePaths, leg_key
from reimzul.core.unlisted import Records, read_records
from reimzul.repogen.drop import Lying, Told, drop, lying, size, told
from reimzul.repogen.listing_rules import ListingRules
from reimzul.repogen.repodata import Indexer, Listing, read
from reimzul.repogen.swap import REPODATA

log = logging.getLogger(__name__)

#: Seconds between two looks at a lock that another has.
_LOOK = 0.1


class NotPruned(ReimzulError):
    """Nothing was dropped: the repodata is not what it should be."""


@attr.frozen(kw_only=True)
class Old:
    """A leg that a rule would drop."""

    leg: Lying
    told: Told
    bytes: int
    held: str = ""  #: why it stays all the same


@attr.frozen(kw_only=True)
class Pruned:
    """What became of a target."""

    target: str
    dropped: Sequence[Old]
    held: Sequence[Old]


def rule_of(target: str, rules: Mapping[str, Pruning]) -> Pruning | None:
    """The rule of a target: by its whole name, else by the one without its arch; None where nothing is dropped."""
    return rules.get(target) or rules.get(target.rpartition(".")[0])


def old(store: StorePaths, target: str, rule: Pruning, now: float) -> list[Old]:
    """The legs that a rule drops, the oldest first, and those of them that stay all the same."""
    records = read_records(store, target)
    groups: dict[tuple[str, str], list[Lying]] = {}
    for leg in lying(store.repo, target):
        groups.setdefault((leg.name, leg.arch), []).append(leg)
    found: list[Old] = []
    for legs in groups.values():
        if len(legs) > rule.keep:  # else nothing of them has to be read
            read_legs = {leg: _told(store, leg, records) for leg in legs}
            for leg in chosen(read_legs, rule, now):
                about = read_legs[leg]
                why = held(store, leg, about, unsigned=rule.unsigned)
                found.append(Old(leg=leg, told=about, bytes=size(store, leg), held=why))
    return sorted(found, key=lambda each: (each.leg.timestamp, each.leg.place))


def _told(store: StorePaths, leg: Lying, records: Records) -> Told:
    about = told(store, leg)
    record = records.get(leg_key(about.build_id, leg.arch)) if about.build_id else None
    return attr.evolve(about, replaced_by=record.replaced_by) if record is not None else about


def chosen(legs: Mapping[Lying, Told], rule: Pruning, now: float) -> list[Lying]:
    """Of the legs of one package and arch, those that a rule drops.

    The newest that came out well stay, as many as the rule says, and with them all that failed since the oldest of
    these; where none came out well, the newest that failed. A leg that a rebuild replaced is not listed: it counts for
    none, and goes by its age.
    """
    made = {leg: _made(leg, about, now) for leg, about in legs.items()}
    newest = sorted(legs, key=lambda leg: (made[leg], leg.place), reverse=True)
    well = [leg for leg in newest if legs[leg].status != Status.FAILED and not legs[leg].replaced_by]
    kept = (well or newest)[: rule.keep]
    oldest = made[kept[-1]] if kept else ""
    last = _stamp(max(0.0, now - rule.older))

    def is_superseded(leg: Lying) -> bool:
        return legs[leg].status != Status.FAILED or made[leg] < oldest

    return [leg for leg in newest if leg not in kept and is_superseded(leg) and made[leg] < last]


def _made(leg: Lying, about: Told, now: float) -> str:
    """When a leg was submitted; where no right clock can have said so, when it came here."""
    said = leg.timestamp
    return said if _stamp(EARLIEST_UNIX_TIME) <= said <= _stamp(now + 86400) else about.filed or said


def _stamp(moment: float) -> str:
    return time.strftime(validators.TIMESTAMP_FORMAT, time.gmtime(moment))


def held(store: StorePaths, leg: Lying, about: Told, *, unsigned: bool) -> str:
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
    store: StorePaths, indexer: Indexer, target: str, rule: Pruning, heed: Callable[[], None], *, dry_run: bool
) -> Pruned:
    """Drop what a rule drops from a target. Raises `NotPruned` and `RetryLater`; then nothing was removed."""
    found = old(store, target, rule, time.time())
    if not dry_run and any(not each.held for each in found):
        with hold_lock(store, target, heed) as lock:
            found = old(store, target, rule, time.time())  # as it is now that nobody indexes it
            doomed = [each for each in found if not each.held]
            listed = [each.leg for each in doomed if each.told.status != Status.FAILED]
            if listed:
                _unlist(store, indexer, target, listed, lock, heed)
            for each in doomed:
                drop(store, each.leg, each.told)
    return Pruned(
        target=target,
        dropped=[each for each in found if not each.held],
        held=[each for each in found if each.held],
    )


def _unlist(
    store: StorePaths, indexer: Indexer, target: str, legs: Iterable[Lying], lock: int, heed: Callable[[], None]
) -> None:
    """Have the repodata list all but these; what it does list is looked at, and not what createrepo_c says.

    Where that is not as it should be, nobody has seen it.
    """
    repodata = store.target(target) / REPODATA
    listing = Listing(read(repodata) if (repodata / "repomd.xml").exists() else {})
    folders = {leg.folder for leg in legs}
    there = indexer.packages(target)
    ruled = ListingRules(store=store).apply_rules(target, listing, there, dropped=folders)
    before = set(listing.packages) - (set(there) - set(ruled.packages) - _inside(there, folders))
    indexer.make(target, lock, heed, packages=ruled.packages)
    after = set(read(store.output(target) / REPODATA))
    doomed = _inside(before, folders)
    lost = [path for path in before - doomed - after if (store.target(target) / path).exists()]
    if after & doomed or lost:
        said = f"it lists {len(after & doomed)} packages that were to go, and lacks {len(lost)} that were to stay"
        raise NotPruned(f"the new repodata of {target} is not as it should be: {said}; nothing was removed")
    indexer.show(target, heed)


def _inside(packages: Iterable[str], folders: Collection[str]) -> set[str]:
    return {path for path in packages if path.rpartition("/")[0] in folders}


@contextlib.contextmanager
def hold_lock(store: StorePaths, target: str, heed: Callable[[], None]) -> Iterator[int]:
    """Hold the target's lock, however long another has it."""
    said = False
    while True:
        with fs.file_lock(store.lock(target)) as lock:
            if lock is not None:
                yield lock
                return
        if not said:
            log.info("%s is being indexed: waiting until that is done", target)
            said = True
        heed()
        time.sleep(_LOOK)

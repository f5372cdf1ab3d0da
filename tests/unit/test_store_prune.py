# SPDX-License-Identifier: Apache-2.0
"""Which old builds a rule drops, and which of them stay all the same. No program is run."""

from __future__ import annotations

import calendar
import json
import os
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reimzul.core.setting_parsers import Pruning
from reimzul.core.store_paths import StorePaths
from reimzul.store.cleanup import (
    ManifestSummary,
    StoredBuild,
    choose_builds,
    drop_build,
    find_candidates,
    find_rule,
    find_scratch_builds,
    list_builds,
    list_targets,
    read_summary,
    reason_to_keep,
    size_of_build,
)

TARGET = "c7.1708.u.x86_64"
NOW = calendar.timegm(time.strptime("20261122", "%Y%m%d"))
ID = "{:032x}".format


def leg(day: int, name: str = "time", arch: str = "x86_64") -> StoredBuild:
    """A build of the first days of November 2026."""
    timestamp = f"202611{day:02}000000"
    place = f"repo/{TARGET}/{name}/{timestamp}/1.7-{day}.{arch}"
    return StoredBuild(place=place, target=TARGET, name=name, timestamp=timestamp, arch=arch)


def well(number: int = 1) -> ManifestSummary:
    return ManifestSummary(build_id=ID(number), status="Success", attempt="1-0000000a")


def days(*which: int, failed: tuple[int, ...] = ()) -> dict[StoredBuild, ManifestSummary]:
    return {
        leg(day): ManifestSummary(build_id=ID(day), status="Failed" if day in failed else "Success") for day in which
    }


def choose_dropped(legs: dict[StoredBuild, ManifestSummary], **rule: Any) -> list[int]:
    return sorted(int(each.timestamp[6:8]) for each in choose_builds(legs, Pruning(**rule), NOW))


@pytest.mark.parametrize(("keep", "gone"), [(1, [1, 2, 3, 4]), (3, [1, 2]), (5, []), (9, [])])
def test_the_newest_stay(keep: int, gone: list[int]) -> None:
    assert choose_dropped(days(1, 2, 3, 4, 5), keep=keep) == gone


def test_none_that_is_younger_goes() -> None:
    assert choose_dropped(days(1, 5, 10, 20), keep=1, older=15 * 86400) == [1, 5]
    assert choose_dropped(days(1, 5, 10, 20), keep=1, older=40 * 86400) == []


def test_what_failed_goes_with_those_of_its_age() -> None:
    legs = days(1, 2, 3, 4, 5, failed=(1, 3, 5))
    assert choose_dropped(legs, keep=1) == [1, 2, 3]
    assert choose_dropped(legs, keep=2) == [1]


def test_where_none_came_out_well_the_newest_that_failed_stay() -> None:
    assert choose_dropped(days(1, 2, 3, failed=(1, 2, 3)), keep=1) == [1, 2]


@given(st.dictionaries(st.integers(1, 20), st.booleans(), min_size=1), st.integers(1, 5), st.integers(0, 30))
def test_the_newest_that_came_out_well_never_goes(failed: dict[int, bool], keep: int, older: int) -> None:
    legs = days(*failed, failed=tuple(day for day, lost in failed.items() if lost))
    gone = choose_dropped(legs, keep=keep, older=older * 86400)
    good = sorted((day for day, lost in failed.items() if not lost), reverse=True)
    assert not set(gone) & set(good[:keep])
    assert len(gone) < len(legs)


@pytest.mark.parametrize(
    ("target", "keep"), [("c7.1708.u.x86_64", 5), ("c7.1708.u.i386", 3), ("c7.1708.x86_64", None), ("c7.1708.u", 3)]
)
def test_a_rule_is_of_the_whole_target_before_the_one_without_its_arch(target: str, keep: int | None) -> None:
    rules = {"c7.1708.u": Pruning(keep=3), "c7.1708.u.x86_64": Pruning(keep=5)}
    found = find_rule(target, rules)
    assert (found.keep if found else None) == keep


# --- in a store


@pytest.fixture
def store(tmp_path: Path) -> StorePaths:
    """An empty one."""
    made = StorePaths(tmp_path / "bstore")
    for folder in made.folders():
        folder.mkdir(parents=True)
    return made


def lay(store: StorePaths, which: StoredBuild, about: ManifestSummary | None) -> Path:
    """Put a leg into the store, with its entry in the index and the logs of an attempt that was lost."""
    folder = store.place(which.place)
    folder.mkdir(parents=True)
    (folder / f"{which.name}.rpm").write_bytes(b"x" * 1000)
    if about:
        request = {"build_id": about.build_id, "submitter": "johnny", "srpm": f"{which.name}-1.src.rpm"}
        manifest = {"request": request, "attempt": "1-0000000a", "status": about.status}
        (folder / "build.json").write_text(json.dumps(manifest))
        name = f"{about.build_id}.{which.arch}"
        (store.index / name).symlink_to(f"../{which.place}")
        (store.attempts / f"{name}.1-0000000b").mkdir()
    return folder


def mark_staged(store: StorePaths, which: StoredBuild, about: ManifestSummary) -> None:
    (store.staged_marks / f"{about.build_id}.{which.arch}").write_text("")


def test_only_legs_are_found(store: StorePaths) -> None:
    lay(store, leg(1), well())
    for other in ("repodata", ".repodata", "time/notes", f"time/{leg(1).timestamp}/file"):
        (store.repo / TARGET / other).mkdir(parents=True)
    (store.repo / TARGET / "time" / "README").write_text("")
    assert {each.place.rpartition("/")[2] for each in list_builds(store.repo, TARGET)} == {"1.7-1.x86_64", "file"}
    assert list_targets(store.repo) == [TARGET]
    assert list(list_builds(store.repo, "no.such")) == []


def test_what_waits_for_the_signer_stays(store: StorePaths) -> None:
    about = well()
    lay(store, leg(1), about)
    assert reason_to_keep(store, leg(1), about, unsigned=False) == "it was not laid out for the signer yet"
    assert reason_to_keep(store, leg(1), about, unsigned=True) == ""
    mark_staged(store, leg(1), about)
    assert reason_to_keep(store, leg(1), about, unsigned=False) == ""
    waits = store.tosign / TARGET / f"time-1.7-1.x86_64.{about.build_id}"
    waits.mkdir(parents=True)
    for unsigned in (False, True):
        assert reason_to_keep(store, leg(1), about, unsigned=unsigned) == "it waits to be collected and signed"
    waits.rmdir()
    (store.staging / f"{about.build_id}.x86_64").mkdir()
    assert "collected" in reason_to_keep(store, leg(1), about, unsigned=True), "it is just being laid out"


def test_what_is_collected_between_two_looks_is_seen(store: StorePaths, monkeypatch: pytest.MonkeyPatch) -> None:
    about = well()
    lay(store, leg(1), about)
    staging = store.staging / f"{about.build_id}.x86_64"
    staging.mkdir(parents=True)
    collected = store.tosign / TARGET / f"time-{leg(1).place.rpartition('/')[2]}.{about.build_id}"
    collected.parent.mkdir(parents=True, exist_ok=True)
    look = os.path.lexists

    def look_and_rename(path: os.PathLike[str]) -> bool:
        found = look(path)
        if look(staging):
            staging.rename(collected)
        return found

    monkeypatch.setattr(os.path, "lexists", look_and_rename)
    assert "collected" in reason_to_keep(store, leg(1), about, unsigned=True)


def test_what_failed_is_never_signed_and_what_is_the_originals_is_not_judged(store: StorePaths) -> None:
    assert reason_to_keep(store, leg(1), ManifestSummary(build_id=ID(1), status="Failed"), unsigned=False) == ""
    assert "original" in reason_to_keep(store, leg(1), ManifestSummary(), unsigned=True)


def test_each_package_and_arch_has_its_own_builds(store: StorePaths) -> None:
    for day in (1, 2):
        for name in ("time", "tar"):
            lay(store, leg(day, name), well(day * 100 + len(name)))
    lay(store, leg(1, "time", "i386"), well(7))
    found = find_candidates(store, TARGET, Pruning(keep=1, unsigned=True), NOW)
    assert [(each.leg.name, each.leg.timestamp[6:8], each.leg.arch) for each in found] == [
        ("tar", "01", "x86_64"), ("time", "01", "x86_64"),
    ]  # fmt: skip
    assert found[0].bytes > 1000
    assert not found[0].held


def test_a_leg_is_dropped_with_all_that_belongs_to_it(store: StorePaths) -> None:
    about, other = well(1), well(2)
    lay(store, leg(1), about)
    kept = lay(store, leg(2), other)
    for _ in range(2):  # the second time nothing is left to do
        drop_build(store, leg(1), about)
        assert list(store.index.iterdir()) == [store.index / f"{other.build_id}.x86_64"]
        assert [path.name for path in store.attempts.iterdir()] == [f"{other.build_id}.x86_64.1-0000000b"]
        assert [path.name for path in (store.repo / TARGET / "time").iterdir()] == [leg(2).timestamp]
        assert list((store.state / "dropped").iterdir()) == []
    assert kept.is_dir()
    drop_build(store, leg(2), other)
    assert not (store.repo / TARGET / "time").exists()


def test_the_index_of_a_build_that_lies_elsewhere_is_left_alone(store: StorePaths) -> None:
    about = well()
    lay(store, leg(1), about)
    entry = store.index / f"{about.build_id}.x86_64"
    entry.unlink()
    entry.symlink_to(f"../{leg(3).place}")
    drop_build(store, leg(1), about)
    assert os.readlink(entry) == f"../{leg(3).place}"


@pytest.mark.parametrize("said", ["", "{]", "[]", '{"request": 5}', '{"request": {}}'])
def test_a_manifest_that_cannot_be_read_says_nothing(store: StorePaths, said: str) -> None:
    folder = lay(store, leg(1), None)
    (folder / "build.json").write_text(said)
    assert read_summary(store, leg(1)) == ManifestSummary()
    assert size_of_build(store, leg(1)) == 1000 + len(said)


def test_scratch_builds_are_found_and_removed(store: StorePaths) -> None:
    for day in (2, 1):
        folder = leg(day)
        place = folder.place.replace("repo/", "scratch/", 1)
        about = well(day)
        lay(store, StoredBuild(**{**_plain(folder), "place": place}), about)
    first, second = find_scratch_builds(store)
    assert (first.summary.build_id, second.summary.build_id) == (ID(1), ID(2))
    assert first.submitted_at == calendar.timegm((2026, 11, 1, 0, 0, 0))
    assert first.to_output()["submitter"] == "johnny"
    drop_build(store, first.leg, first.summary)
    assert [each.summary.build_id for each in find_scratch_builds(store)] == [ID(2)]


def _plain(which: StoredBuild) -> dict[str, str]:
    names = ("place", "target", "name", "timestamp", "arch")
    return {name: getattr(which, name) for name in names}

# SPDX-License-Identifier: Apache-2.0
"""A power cut after any effect loses nothing that was announced; each fsync is needed for that."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from reimzul.core import fs
from reimzul.submit import submission
from tests.powercut import Recorder, write_tree

NEW = "new\n"


def copy_in(top: Path) -> None:
    source = top.parent / "source"
    source.write_text(NEW)
    submission._copy_in(source, top / "a.src.rpm")


def write(top: Path) -> None:
    fs.write_atomic(top / "a.src.rpm", NEW)


def link(top: Path) -> None:
    fs.symlink_atomic(top / "a.src.rpm", NEW)


def content(path: Path) -> str | None:
    if path.is_symlink():
        return str(path.readlink())
    return path.read_text() if path.exists() else None


def record(run: Callable[[Path], None], top: Path, omitted: str | None = None) -> Recorder:
    top.mkdir(parents=True)
    with pytest.MonkeyPatch.context() as patch:
        recorder = Recorder(top, patch, omitted)
        run(top)
        recorder.announce()
    return recorder


def faults(recorder: Recorder, run: Callable[[Path], None], folder: Path) -> Iterator[str]:
    """Cut the power after each effect, recover, and yield what breaks a promise."""
    for number, cut in enumerate(recorder.cuts):
        for which, (variant, tree) in enumerate(cut.states()):
            goal = folder / f"{number}.{which}" / "top"
            goal.mkdir(parents=True)
            write_tree(tree, goal)
            survived = content(goal / "a.src.rpm")
            if survived not in (NEW, None) or (cut.announced and survived != NEW):
                yield f"after {cut.effect}, {variant}: {survived!r}"
                continue
            run(goal)
            if content(goal / "a.src.rpm") != NEW:
                yield f"after {cut.effect}, {variant}: cannot be repeated"


@pytest.mark.parametrize("run", [copy_in, write, link])
def test_power_cut_keeps_promises_and_needs_each_fsync(run: Callable[[Path], None], tmp_path: Path) -> None:
    whole = record(run, tmp_path / "whole")
    assert list(faults(whole, run, tmp_path / "whole-after")) == []
    assert whole.sites
    for number, site in enumerate(sorted(set(whole.sites))):
        without = record(run, tmp_path / str(number), site)
        assert any(faults(without, run, tmp_path / f"{number}-after")), f"nothing fails without the fsync at {site}"


# --- the model itself


def survivors(run: Callable[[Path], None], folder: Path) -> set[frozenset[str]]:
    """The sets of names that may survive at the end."""
    return {frozenset(tree) for _, tree in record(run, folder).cuts[-1].states()}


def test_a_folder_that_was_renamed_is_in_one_place_and_needs_the_sync_of_its_parents(tmp_path: Path) -> None:
    def move(top: Path) -> None:
        (top / "from" / "it").mkdir(parents=True)
        (top / "from" / "it" / "file").write_bytes(b"x")
        (top / "to").mkdir()
        for each in ("from/it", "from", "to", ""):
            fs.sync(top / each)
        (top / "from" / "it").rename(top / "to" / "it")

    before, after = {"from", "from/it", "from/it/file", "to"}, {"from", "to", "to/it", "to/it/file"}
    assert survivors(move, tmp_path / "unsynced") == {frozenset(before), frozenset(after)}

    def move_and_sync(top: Path) -> None:
        move(top)
        fs.sync(top / "to")

    assert survivors(move_and_sync, tmp_path / "synced") == {frozenset(after)}


def test_what_is_synced_in_a_folder_that_is_not_is_lost_with_it(tmp_path: Path) -> None:
    def make(top: Path) -> None:
        (top / "folder").mkdir()
        (top / "folder" / "file").write_bytes(b"x")
        fs.sync(top / "folder")

    assert frozenset() in survivors(make, tmp_path / "top")

# SPDX-License-Identifier: Apache-2.0
"""A power cut after any effect loses nothing that was announced; each fsync is needed for that."""

from __future__ import annotations

import contextlib
import shutil
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from reimzul.core import fs
from reimzul.core.sqlite import transaction
from reimzul.history import incoming
from reimzul.notifier.outbox import Outbox, SinkDeliveries
from tests.events import event
from tests.powercut import Recorder, write_tree

NEW = "new\n"


def copy_in(top: Path) -> None:
    source = top.parent / "source"
    source.write_text(NEW)
    incoming._copy_in(source, top / "a.src.rpm")


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


# --- the outbox: each commit is atomic; with synchronous=FULL it survives, with NORMAL the last ones may be lost


class Commits:
    """What the outbox's file may hold after a power cut."""

    def __init__(self, folder: Path, patch: pytest.MonkeyPatch) -> None:
        self.survivors: list[Path] = []
        self._folder, self._count = folder, 0
        patch.setattr("reimzul.notifier.outbox.transaction", self._recorded)

    @contextlib.contextmanager
    def _recorded(self, db: sqlite3.Connection) -> Iterator[None]:
        with transaction(db):
            yield
        self._count += 1
        path = self._folder / str(self._count) / "ledger.sqlite"
        path.parent.mkdir(parents=True)
        with contextlib.closing(sqlite3.connect(path)) as copy:
            db.backup(copy)
        if db.execute("PRAGMA synchronous").fetchone() == (2,):  # FULL: its WAL is synced, with all that is before
            self.survivors = []
        self.survivors.append(path)

    def read_pending(self) -> list[list[str]]:
        """By each file that may survive: the events that the sink still gets after the restart."""
        found = []
        for path in self.survivors:
            aside = path.parent / "again" / path.name
            shutil.rmtree(aside.parent, ignore_errors=True)
            aside.parent.mkdir()
            shutil.copy(path, aside)
            Outbox(aside).close()
            deliveries = SinkDeliveries(aside, "log")
            found.append([notice.word for notice in deliveries.read_due()[0]])
            deliveries.close()
        return found


def test_an_event_whose_job_is_deleted_survives_a_power_cut_until_its_sink_has_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    outbox = Outbox(tmp_path / "ledger.sqlite")
    sink = SinkDeliveries(outbox.path, "log")
    commits = Commits(tmp_path / "commits", monkeypatch)
    for status in ("Success", "Published"):
        new = outbox.accept([event(status)], lambda _: ("log",))["log"]
        # The notifier deletes the job now.
        assert all(new[0].word in words for words in commits.read_pending())
        (begun,) = sink.begin(new)
        assert all(new[0].word in words for words in commits.read_pending())
        # The sink has it now, and gets it twice if that is forgotten.
        sink.mark_delivered([begun.seq])
        assert all(set(words) <= {new[0].word} for words in commits.read_pending())
    sink.close()
    outbox.close()

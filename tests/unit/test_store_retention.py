# SPDX-License-Identifier: Apache-2.0
"""What bstore removes by age, and what it leaves whatever its age."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from reimzul.core import fs
from reimzul.core.retry import CancelToken
from reimzul.core.store_paths import StorePaths
from reimzul.store.cleanup import Retention, SweepResult, sweep_expired
from tests.uploads import make_store, tree

LEG = f"{'a' * 32}.x86_64"
OTHER = f"{'b' * 32}.i386"
NAME, OTHER_NAME = f"{LEG}.1700000000-0123abcd", f"{OTHER}.1700000000-0123abcd"
DAY = 86400


@pytest.fixture
def store(tmp_path: Path) -> StorePaths:
    """One in which something was put aside today."""
    store = make_store(tmp_path)
    for folder in (store.attempts / NAME, store.rejected / NAME, store.spool / NAME, store.repo / "c7.x86_64"):
        folder.mkdir()
        (folder / "build.log").write_text("log")
    (store.rejected / f"{NAME}.json").write_text("{}")
    for leg in (LEG, OTHER):
        (store.put_again / f"{leg}.1").write_text("why")
    (store.index / LEG).symlink_to("../repo/c7.x86_64")
    return store


def sweep_later(store: StorePaths, days: float, **kept: int) -> SweepResult:
    """A sweep after so many days."""
    return sweep_expired(store, Retention(**kept), time.time() + days * DAY, CancelToken())


def test_what_is_old_enough_goes_and_nothing_else(store: StorePaths) -> None:
    before = tree(store.root)
    assert not sweep_later(store, 29, attempts=30, rejected=30)
    assert tree(store.root) == before
    removed = sweep_later(store, 31, attempts=30, rejected=30)
    assert (removed.attempts, removed.rejected, removed.marks) == (1, 1, 2)
    gone = before - tree(store.root)
    assert gone == {
        f"attempts/{NAME}/build.log", f"rejected/{NAME}/build.log", f"rejected/{NAME}.json",
        f"state/again/{LEG}.1", f"state/again/{OTHER}.1",
    }  # fmt: skip
    assert not list(store.attempts.iterdir())
    assert not list(store.rejected.iterdir())
    assert not sweep_later(store, 31, attempts=30, rejected=30)


def test_each_has_its_own_time(store: StorePaths) -> None:
    removed = sweep_later(store, 31, attempts=30, rejected=60)
    assert (removed.attempts, removed.rejected) == (1, 0)
    assert (store.rejected / NAME).is_dir()


def test_zero_days_is_for_ever(store: StorePaths) -> None:
    before = tree(store.root)
    assert not sweep_later(store, 100_000)
    assert tree(store.root) == before


def test_a_note_and_a_mark_stay_as_long_as_what_they_are_about(
    store: StorePaths, monkeypatch: pytest.MonkeyPatch
) -> None:
    def check() -> None:
        raise InterruptedError

    with pytest.raises(InterruptedError):
        sweep_expired(store, Retention(rejected=30), time.time() + 31 * DAY, CancelToken(check))
    assert (store.rejected / NAME).is_dir()
    assert (store.rejected / f"{NAME}.json").exists()
    second = store.rejected / f"{LEG}.1700000001-0123abcd"
    (store.attempts / NAME).rename(second)
    monkeypatch.setattr(fs, "last_change", lambda path: time.time() if path == second else 0.0)
    sweep_expired(store, Retention(rejected=30), time.time(), CancelToken())
    assert second.is_dir()
    assert not (store.rejected / NAME).exists()
    assert (store.put_again / f"{LEG}.1").exists()
    assert not (store.put_again / f"{OTHER}.1").exists()


def test_what_was_removed_is_said_in_numbers(store: StorePaths) -> None:
    assert str(sweep_later(store, 31, attempts=30, rejected=30)) == (
        "kept long enough and removed: the logs of 1 attempts, 1 uploads put aside, 2 marks"
    )

# SPDX-License-Identifier: Apache-2.0
"""The packages of a target, found by looking only where something changed."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from reimzul.store.listing import PackageTree

_OLD = 1_600_000_000


def add(target: Path, *paths: str) -> None:
    for path in paths:
        (target / path).parent.mkdir(parents=True, exist_ok=True)
        (target / path).touch()


def age(target: Path) -> None:
    """As if all folders had last changed long ago."""
    for path in [target, *target.rglob("*")]:
        if path.is_dir():
            os.utime(path, (_OLD, _OLD))


def test_what_createrepo_would_find_in_its_own_order(tmp_path: Path) -> None:
    add(tmp_path, *(f"{name}/1-1.x86_64/{name[0]}-1-1.x86_64.rpm" for name in ("b/1", "a/1")))
    add(tmp_path, "z/2/1-1.x86_64/a-1-1.x86_64.rpm", "a/1/1-1.x86_64/build.log", "top.rpm")
    add(tmp_path, "repodata/repomd.xml", ".repodata/x.rpm", "repodata.old.1/x.rpm")
    (tmp_path / "linked.rpm").symlink_to("gone")
    assert PackageTree().list_packages(tmp_path) == [
        "a/1/1-1.x86_64/a-1-1.x86_64.rpm",
        "z/2/1-1.x86_64/a-1-1.x86_64.rpm",
        "b/1/1-1.x86_64/b-1-1.x86_64.rpm",
        "top.rpm",
    ]


@pytest.mark.parametrize("old", [True, False])
def test_what_comes_and_goes_is_seen(tmp_path: Path, old: bool) -> None:
    add(tmp_path, "a/1/1-1.x86_64/a.rpm", "b/1/1-1.x86_64/b.rpm")
    known = PackageTree()
    if old:
        age(tmp_path)
    assert known.list_packages(tmp_path) == ["a/1/1-1.x86_64/a.rpm", "b/1/1-1.x86_64/b.rpm"]
    add(tmp_path, "a/1/1-1.i686/c.rpm")  # another leg of the same build
    assert known.list_packages(tmp_path)[2] == "a/1/1-1.i686/c.rpm"
    add(tmp_path, "a/2/1-1.x86_64/d.rpm")  # another build of the same package
    assert known.list_packages(tmp_path)[3] == "a/2/1-1.x86_64/d.rpm"
    shutil.rmtree(tmp_path / "b")
    shutil.rmtree(tmp_path / "a" / "1" / "1-1.x86_64")
    assert known.list_packages(tmp_path) == ["a/1/1-1.i686/c.rpm", "a/2/1-1.x86_64/d.rpm"]


def test_a_leg_in_another_ones_place_is_looked_into(tmp_path: Path) -> None:
    add(tmp_path, "a/1/1-1.x86_64/build.json")
    age(tmp_path)
    known = PackageTree()
    assert known.list_packages(tmp_path) == []
    add(tmp_path / "aside", "a.rpm")
    place = tmp_path / "a" / "1" / "1-1.x86_64"
    place.rename(tmp_path.parent / f"{tmp_path.name}-failed")
    (tmp_path / "aside").rename(place)
    assert known.list_packages(tmp_path) == ["a/1/1-1.x86_64/a.rpm"]


def test_what_has_not_changed_is_not_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    add(tmp_path, *(f"n{number}/1/1-1.x86_64/n{number}.rpm" for number in range(20)))
    age(tmp_path)
    known = PackageTree()
    known.list_packages(tmp_path)
    read: list[str] = []
    scandir = os.scandir

    def note_scandir(path: str) -> Any:
        read.append(path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", note_scandir)
    add(tmp_path, "n7/2/1-1.x86_64/new.rpm")
    assert len(known.list_packages(tmp_path)) == 21
    assert set(read) == {str(tmp_path / path) for path in ("n7", "n7/2", "n7/2/1-1.x86_64")}


def test_only_a_few_targets_are_remembered(tmp_path: Path) -> None:
    known = PackageTree()
    for number in range(9):
        add(tmp_path / f"t{number}", "a.rpm")
        assert known.list_packages(tmp_path / f"t{number}") == ["a.rpm"]
    assert len(known._known) == 4

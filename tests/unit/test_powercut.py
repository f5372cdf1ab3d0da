# SPDX-License-Identifier: Apache-2.0
"""A power cut after any effect loses nothing that was announced; each fsync is needed for that."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from reimzul.core import fs
from reimzul.notifier.outbox import Outbox
from reimzul.submit import submission
from tests.powercut import Recorder

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


def faults(run: Callable[[Path], None], folder: Path, omitted: str | None = None) -> tuple[list[str], set[str]]:
    """Run, cut the power after each effect, recover; return what breaks a promise, and the fsyncs met."""
    top = folder / "live"
    top.mkdir(parents=True)
    with pytest.MonkeyPatch.context() as patch:
        recorder = Recorder(top, patch, omitted)
        run(top)
        recorder.announce()
    found = []
    for number, cut in enumerate(recorder.cuts):
        for which, (variant, names) in enumerate(cut.variants()):
            goal = folder / f"{number}.{which}" / "top"
            goal.mkdir(parents=True)
            cut.replay(names, goal)
            survived = content(goal / "a.src.rpm")
            if survived not in (NEW, None) or (cut.announced and survived != NEW):
                found.append(f"after {cut.effect}, {variant}: {survived!r}")
                continue
            run(goal)
            if content(goal / "a.src.rpm") != NEW:
                found.append(f"after {cut.effect}, {variant}: cannot be repeated")
    return found, recorder.sites


@pytest.mark.parametrize("run", [copy_in, write, link])
def test_power_cut_keeps_promises_and_needs_each_fsync(run: Callable[[Path], None], tmp_path: Path) -> None:
    found, sites = faults(run, tmp_path / "whole")
    assert found == []
    assert sites
    for number, site in enumerate(sorted(sites)):
        assert faults(run, tmp_path / str(number), site)[0], f"nothing fails without the fsync at {site}"


def test_outbox_intake_commits_with_synchronous_full(tmp_path: Path) -> None:
    outbox = Outbox(tmp_path / "ledger.sqlite")
    try:
        assert outbox._db.execute("PRAGMA synchronous").fetchone() == (2,)  # 2 is FULL
    finally:
        outbox.close()

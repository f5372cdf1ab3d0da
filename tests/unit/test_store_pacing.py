# SPDX-License-Identifier: Apache-2.0
"""How runs on a target rest: by their own duration, and never more of them than seconds pass."""

from __future__ import annotations

from pathlib import Path

import pytest

from reimzul.store.createrepo import RunRecord, read_run, write_run


def runs_of(duration: float, until: float, wanted: float = 0.0) -> list[float]:
    """The starts of runs that each last as long, where the next is wanted that long after the end of one."""
    run, now, starts = RunRecord(), 1000.0, []
    while now < 1000.0 + until:
        if run.allows_next(now):
            starts.append(now - 1000.0)
            run = run.followed_by(now, now + duration)
            now += duration + wanted
        else:
            now += 0.01
    return starts


def test_two_runs_come_at_once_and_the_third_rests() -> None:
    first, second, third = runs_of(0.05, 1.2)
    assert (first, round(second, 2)) == (0.0, 0.05)
    assert 1.05 < third < 1.15


@pytest.mark.parametrize(("duration", "rest"), [(0.1, 1.0), (1.0, 1.0), (7.0, 7.0), (29.0, 29.0), (300.0, 30.0)])
def test_a_run_rests_as_long_as_the_last_one_took(duration: float, rest: float) -> None:
    run = RunRecord().followed_by(0.0, duration).followed_by(duration, 2 * duration)
    end = run.end
    assert not run.allows_next(end + rest - 0.01)
    assert run.allows_next(end + rest + 0.01)


@pytest.mark.parametrize("duration", [0.0, 0.05, 0.5, 1.0, 4.0, 40.0])
@pytest.mark.parametrize("wanted", [0.0, 0.3, 0.99, 1.0, 1.5, 2.0, 2.6])
def test_there_are_never_more_runs_than_seconds(duration: float, wanted: float) -> None:
    starts = runs_of(duration, 300.0, wanted)
    for number, start in enumerate(starts, 1):
        assert number <= max(3.0, start + 1.5), "three may begin a row: two at once, and one after a rest"
        assert number <= start + 1.0 or start < 7.0, "then there is none ahead"


def test_after_a_pause_a_row_begins_again() -> None:
    run = RunRecord().followed_by(0.0, 0.1)
    assert run.followed_by(5.0, 5.1).row == 1
    for start in (0.2, 1.3, 2.9):
        run = run.followed_by(start, start + 0.1)
    assert run.row == 4
    assert run.followed_by(run.end + 1.6, run.end + 1.7).row == 5, "it rested, and no longer"
    assert run.followed_by(run.end + 2.6, run.end + 2.7).row == 1


def test_an_end_in_the_future_is_ignored() -> None:
    run = RunRecord(start=9000.0, end=9001.0, row=7)
    assert run.allows_next(100.0)
    assert run.followed_by(100.0, 100.1).row == 1


def test_a_run_is_kept_in_a_file(tmp_path: Path) -> None:
    path = tmp_path / "c7.runs"
    assert read_run(path) == RunRecord()
    run = RunRecord(start=5.0, end=6.5, row=2)
    write_run(path, run)
    assert read_run(path) == run
    assert [each.name for each in tmp_path.iterdir()] == ["c7.runs"]


@pytest.mark.parametrize(
    "content",
    ["", "{", "[]", "7", "null", '{"start": 1}', '{"start": "x", "end": 2, "row": 1}',
     '{"start": 3, "end": 2, "row": 1}',
     '{"start": NaN, "end": NaN, "row": 1}', '{"start": 1, "end": 2, "row": 1e999}'],
)  # fmt: skip
def test_a_damaged_file_keeps_nothing_waiting(tmp_path: Path, content: str) -> None:
    (tmp_path / "runs").write_text(content)
    assert read_run(tmp_path / "runs") == RunRecord()
    assert read_run(tmp_path / "runs").allows_next(0.0)

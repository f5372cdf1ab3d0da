# SPDX-License-Identifier: Apache-2.0
"""What a build is at, read from mock's state.log: against what real mock wrote."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from reimzul.worker.build import BuildProgress
from reimzul.worker.mock import StateLog, read_state_log

SAMPLES = Path(__file__).parents[1] / "samples" / "mock-logs"


def log(case: str) -> Path:
    return SAMPLES / case / "state.log"


def lasted(case: str) -> dict[str, float]:
    """The seconds of each phase; None of one that did not end."""
    return {
        each.name: round(each.end - each.start, 1) if each.end else -1 for each in read_state_log(log(case)).phases()
    }


def test_the_phases_of_a_build_are_its_outermost_steps() -> None:
    assert lasted("hello") == {"chroot init": 11.2, "build setup": 0.9, "rpmbuild": 0.5, "clean chroot": 12.7}


@pytest.mark.parametrize("case", sorted(folder.name for folder in SAMPLES.iterdir() if (folder / "state.log").exists()))
def test_every_build_has_phases_in_order(case: str) -> None:
    phases = read_state_log(log(case)).phases()
    assert phases[0].name == "chroot init"
    assert [each.start for each in phases] == sorted(each.start for each in phases)
    assert len(phases) <= 20
    assert not any("src.rpm" in each.name for each in phases)


def test_what_did_not_end_has_no_end() -> None:
    assert lasted("nospace") == {"chroot init": -1, "clean chroot": 0.2}


def test_times_are_local_ones() -> None:
    started = read_state_log(log("hello")).phases()[0].start
    assert time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(started)) == "2026-11-22 08:53:21"
    assert round(started % 1, 3) == 0.137


def test_what_goes_on_is_known_at_each_line() -> None:
    lines = log("hello").read_text().splitlines()
    seen = [StateLog().add_lines(lines[: count + 1]).current_phase for count in range(len(lines))]
    names = list(dict.fromkeys(now.name for now in seen if now))
    assert names == [
        "chroot init", "chroot init: installing minimal buildroot with dnf4", "build setup", "rpmbuild",
        "rpmbuild: Outputting list of installed packages", "clean chroot",
    ]  # fmt: skip


def test_a_bootstrap_chroot_has_phases_of_its_own() -> None:
    lines = [
        "2026-11-22 08:53:21,137 - Start(bootstrap): chroot init",
        "2026-11-22 08:53:25,137 - Finish(bootstrap): chroot init",
        "2026-11-22 08:53:25,200 - Start: chroot init",
    ]
    assert [each.name for each in StateLog().add_lines(lines).phases()] == ["bootstrap chroot init", "chroot init"]


@pytest.mark.parametrize(
    "line", ["", "noise", "2026-11-22 08:53:21,137 - Mock Version: 6.7", "2026-11-22 08:53:21,137 - Finish: rpmbuild x"]
)
def test_what_is_no_step_says_nothing(line: str) -> None:
    assert StateLog().add_lines([line]).phases() == []
    assert StateLog().add_lines([line]).current_phase is None


@pytest.fixture
def in_berlin(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A zone in which an hour comes twice on 2026-10-25, and one is left out on 2026-03-29."""
    monkeypatch.setenv("TZ", "CET-1CEST,M3.5.0,M10.5.0/3")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


def line(when: str, words: str) -> str:
    return f"2026-{when},500 - {words}"


@pytest.mark.usefixtures("in_berlin")
def test_the_hour_that_comes_twice_makes_no_phase_negative() -> None:
    lines = [
        line("10-25 02:50:00", "Start: chroot init"),
        line("10-25 02:10:00", "Finish: chroot init"),  # twenty minutes later
        line("10-25 02:10:00", "Start: rpmbuild a-1-1.src.rpm"),
        line("10-25 03:10:00", "Finish: rpmbuild a-1-1.src.rpm"),
    ]
    first, second = StateLog().add_lines(lines).phases()
    assert first.end - first.start == 20 * 60
    assert second.end - second.start == 3600
    assert time.localtime(first.start).tm_isdst == 1


@pytest.mark.usefixtures("in_berlin")
def test_the_hour_that_is_left_out_is_no_fault() -> None:
    lines = [line("03-29 01:59:00", "Start: chroot init"), line("03-29 03:01:00", "Finish: chroot init")]
    (phase,) = StateLog().add_lines(lines).phases()
    assert phase.end - phase.start == 120
    assert len(StateLog().add_lines([line("03-29 02:30:00", "Start: chroot init")]).phases()) == 1


def test_a_clock_that_is_set_back_makes_no_phase_negative() -> None:
    lines = [line("11-22 08:53:21", "Start: chroot init"), line("11-22 07:00:00", "Finish: chroot init")]
    (phase,) = StateLog().add_lines(lines).phases()
    assert phase.start == phase.end > 0


@pytest.mark.parametrize(
    "when",
    ["2026-02-30 08:53:21", "2026-13-01 08:53:21", "2026-11-22 25:00:00", "0000-00-00 00:00:00", "1800-01-01 00:00:00"],
)
def test_a_time_that_does_not_exist_is_passed_over(when: str) -> None:
    lines = [f"{when},137 - Start: chroot init", line("11-22 08:53:21", "Start: rpmbuild a-1-1.src.rpm")]
    assert [each.name for each in StateLog().add_lines(lines).phases()] == ["rpmbuild"]


def test_a_course_has_what_was_before_and_after_mock(tmp_path: Path) -> None:
    course = BuildProgress(1000.0)
    assert course.current_phase("x86_64")[1].name == "source"
    assert course.current_phase("x86_64")[1].start == 1000.0
    results = tmp_path / "result"
    results.mkdir()
    course.start_leg("x86_64", results)
    (results / "state.log").write_bytes(log("term").read_bytes())
    assert course.current_phase("x86_64")[1].name == "rpmbuild"
    course.start_upload("x86_64")
    arch, now = course.current_phase("x86_64")
    assert (arch, now.name) == ("x86_64", "upload")
    names = [each.name for each in course.phases_of_leg("x86_64", results)]
    assert names == ["source", "chroot init", "build setup", "rpmbuild", "upload"]


def test_of_several_legs_the_main_one_is_told_of_while_it_lasts(tmp_path: Path) -> None:
    course = BuildProgress(1000.0)
    for arch, case in (("x86_64", "term"), ("i386", "nospace")):
        (tmp_path / arch).mkdir()
        (tmp_path / arch / "state.log").write_bytes(log(case).read_bytes())
        course.start_leg(arch, tmp_path / arch)
    assert course.current_phase("x86_64")[0] == "x86_64"
    course.end_leg("x86_64")
    arch, now = course.current_phase("x86_64")
    assert (arch, now.name) == ("i386", "clean chroot")

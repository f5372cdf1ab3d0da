# SPDX-License-Identifier: Apache-2.0
"""What `reimzul watch` shows, and when it ends."""

from __future__ import annotations

from typing import Any

import attr
import click
import pytest

from reimzul.admin.lookup import BuildLegs, group_by_build
from reimzul.admin.watch import (
    LegRow,
    TableScreen,
    expected_arches,
    is_build_over,
    make_row,
    make_unrecorded_row,
    queue_positions,
    row_cells,
    rows_exit_code,
)
from reimzul.core.arch import read_arches
from reimzul.core.message import CurrentBuild
from reimzul.history import BuildRecord
from reimzul.history.build_record import apply_events
from reimzul.history.estimates import duration_stats
from tests.events import ATTEMPT, BEGINNING, build_id, event

KNOWN = read_arches()
NOW = BEGINNING + 100


def leg(status: str, arch: str = "x86_64", **more: Any) -> BuildRecord:
    events = [event("Queued", 1, at=BEGINNING, tube="x86_64", job=7, priority=8192)] if arch == "x86_64" else []
    (document,) = apply_events({}, [*events, event(status, 1, arch=arch, **more)]).values()
    return document


def rows(*legs: BuildRecord) -> list[LegRow]:
    return [make_row(each, NOW, None, None, None) for each in legs]


def build(*legs: BuildRecord) -> BuildLegs:
    (found,) = group_by_build(legs)
    return found


@pytest.mark.parametrize(
    ("document", "state", "words"),
    [
        (leg("Building"), "building", "building"),
        (leg("Success"), "built", "built, to be published"),
        (leg("Success", scratch=True), "built", "built (scratch)"),
        (leg("Published"), "published", "published"),
        (leg("Failed", reason="%build failed"), "failed", "failed: %build failed"),
        (leg("Cancelled", reason="cancelled by johnny"), "cancelled", "cancelled: cancelled by johnny"),
        (leg("Rejected", reason="a checksum"), "rejected", "rejected: a checksum"),
        (leg("Override", reason="by hand"), "override", "override: by hand"),
        (
            leg("Published", claimed=True),
            "queued",
            "queued; published (claimed: not signed by bstore)",
        ),
        (
            leg("Published", "i386", claimed=True),
            "claimed",
            "claimed: not recorded by the notifier yet; published (claimed: not signed by bstore)",
        ),
    ],
)
def test_each_status_has_a_state_and_a_text(document: BuildRecord, state: str, words: str) -> None:
    (found,) = rows(document)
    assert (found.state, found.message) == (state, words)
    goes_on = ("claimed", "queued", "building", "built, to be published")
    assert found.is_over == (not words.startswith(goes_on))


def test_a_place_in_the_queue_and_the_time_waited_are_shown() -> None:
    waits = leg("Queued")
    usually = duration_stats([60.0] * 3)
    words = [make_row(waits, NOW, ahead, None, usually).message for ahead in (None, 0, 1, 12)]
    assert words == ["queued", "queued, next", "queued, 1 build ahead", "queued, 12 builds ahead"]
    assert row_cells(make_row(waits, NOW, 0, None, usually))[4:6] == ["1 min 40 s", "1 min 00 s"]


def test_a_phase_is_shown_only_for_the_leg_that_the_worker_reports() -> None:
    hand = CurrentBuild(
        build_id=build_id(1), srpm="time-1.7-45.el7.src.rpm", target="c7.1708.u.x86_64", arch="i386", attempt=ATTEMPT,
        phase="rpmbuild", since=NOW, started=NOW,
    )  # fmt: skip
    assert make_row(leg("Building", started=NOW - 10), NOW, None, hand, None).message == "building"
    mine = make_row(leg("Building", "i386", started=NOW - 10), NOW, None, hand, None)
    assert (mine.message, mine.elapsed) == ("building: rpmbuild", 10)
    assert mine.line_key != make_row(leg("Building", "i386"), NOW, None, None, None).line_key


def test_a_heartbeat_that_still_names_the_phase_gives_an_ended_leg_no_second_line() -> None:
    current = CurrentBuild(
        build_id=build_id(1), srpm="x-1-1.src.rpm", target="c9.x86_64", arch="x86_64", attempt=ATTEMPT,
        phase="upload", since=NOW, started=NOW,
    )  # fmt: skip
    ended = leg("Published")
    assert make_row(ended, NOW, None, current, None).line_key == make_row(ended, NOW, None, None, None).line_key


def test_growing_time_is_not_a_change() -> None:
    document = leg("Building", started=NOW - 10)
    assert make_row(document, NOW, 3, None, None).line_key == make_row(document, NOW + 60, 2, None, None).line_key


def test_all_legs_of_a_request_but_skipped_ones_are_expected() -> None:
    assert expected_arches(build(leg("Building")), KNOWN) == {"x86_64", "i386"}
    assert expected_arches(build(leg("Building", skipped={"i386": "noarch"})), KNOWN) == {"x86_64"}
    assert expected_arches(build(leg("Building", pkgname="kernel", evr="1-1")), KNOWN) == {"x86_64", "i386", "noarch"}
    assert expected_arches(build(leg("Building", "i386")), KNOWN) == {"i386"}, "that leg alone was asked for"


@pytest.mark.parametrize(
    ("legs", "gone", "over"),
    [
        ([leg("Published"), leg("Published", "i386")], False, True),
        ([leg("Published"), leg("Building", "i386")], False, False),
        ([leg("Published")], False, False),
        ([leg("Failed")], True, True),
        ([leg("Published", skipped={"i386": "noarch"})], False, True),
        ([leg("Success"), leg("Published", "i386")], True, False),
    ],
)
def test_a_build_is_over_when_all_its_legs_are(legs: list[BuildRecord], gone: bool, over: bool) -> None:
    assert is_build_over(build(*legs), rows(*legs), KNOWN, gone=gone) is over


def test_the_exit_code_is_0_only_if_all_builds_succeeded() -> None:
    assert rows_exit_code(rows(leg("Published"), leg("Success", scratch=True))) == 0
    assert rows_exit_code(rows(leg("Published"), leg("Failed"))) == 1
    assert rows_exit_code(rows(leg("Override"))) == 1
    assert rows_exit_code([]) == 0


def test_an_unrecorded_build_is_not_over() -> None:
    assert not make_unrecorded_row(build_id(1)).is_over


def test_queue_positions_are_counted_per_tube() -> None:
    def waits(number: int, tube: str, priority: int = 8192) -> BuildRecord:
        queued = event("Queued", number, tube=tube, job=number, priority=priority)
        return apply_events({}, [queued])[queued.key]

    found = queue_positions([waits(3, "x86_64"), waits(1, "x86_64"), waits(2, "i386"), waits(9, "x86_64", 1024)])
    assert found == {build_id(9): 0, build_id(1): 1, build_id(3): 2, build_id(2): 0}
    again = attr.evolve(waits(1, "x86_64"), arch="i386")  # another leg of the same job
    assert queue_positions([waits(1, "x86_64"), again, waits(3, "x86_64")]) == {build_id(1): 0, build_id(3): 1}


def draw_screen(capsys: pytest.CaptureFixture[str], *legs: BuildRecord) -> list[str]:
    TableScreen().show(rows(*legs), "")
    return click.unstyle(capsys.readouterr().out).replace("\r", "").splitlines()


def test_a_small_screen_prefers_running_and_failed_builds(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.setenv("LINES", "5")
    well, failed, runs = leg("Published"), leg("Failed", reason="%build failed"), leg("Building")
    told = draw_screen(capsys, well, well, runs, well, failed)
    assert len(told) == 4
    assert "building" in told[1]
    assert "failed" in told[2]
    assert "and 3 more" in told[3]
    told = draw_screen(capsys, *[well] * 5)
    assert "published" in told[1]
    assert "published" in told[2]
    assert "and 3 more" in told[3]

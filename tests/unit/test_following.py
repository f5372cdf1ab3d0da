# SPDX-License-Identifier: Apache-2.0
"""What is shown of builds that are followed, and when that is all."""

from __future__ import annotations

from typing import Any

import attr
import pytest

from reimzul.admin.estimates import duration_stats
from reimzul.admin.following import Row, as_object, cells, exit_code, expected, is_over, row, unheard
from reimzul.admin.lookup import BuildLegs, group_by_build
from reimzul.admin.screen import Table
from reimzul.admin.watch import places
from reimzul.core.arch import read_arches
from reimzul.core.message import CurrentBuild
from reimzul.history import BuildRecord
from reimzul.history.build_record import apply_events
from tests.events import ATTEMPT, BEGINNING, build_id, event

KNOWN = read_arches()
NOW = BEGINNING + 100


def leg(status: str, arch: str = "x86_64", **more: Any) -> BuildRecord:
    events = [event("Queued", 1, at=BEGINNING, tube="x86_64", job=7, priority=8192)] if arch == "x86_64" else []
    (document,) = apply_events({}, [*events, event(status, 1, arch=arch, **more)]).values()
    return document


def rows(*legs: BuildRecord) -> list[Row]:
    return [row(each, NOW, None, None, None) for each in legs]


def build(*legs: BuildRecord) -> BuildLegs:
    (found,) = group_by_build(legs)
    return found


@pytest.mark.parametrize(
    ("document", "state", "words"),
    [
        (leg("Building"), "building", "builds"),
        (leg("Success"), "built", "built, to be published"),
        (leg("Success", scratch=True), "built and not to be published", "built (scratch)"),
        (leg("Published"), "published", "published"),
        (leg("Failed", reason="%build failed"), "failed", "failed: %build failed"),
        (leg("Cancelled", reason="cancelled by johnny"), "cancelled", "cancelled: cancelled by johnny"),
        (leg("Rejected", reason="a checksum"), "rejected", "rejected: a checksum"),
        (leg("Override", reason="by hand"), "override", "override: by hand"),
    ],
)
def test_each_state_has_its_word(document: BuildRecord, state: str, words: str) -> None:
    (found,) = rows(document)
    assert (found.state, found.words) == (state, words)
    assert found.over == (state not in ("building", "built"))


def test_a_place_in_the_queue_and_the_time_waited_are_shown() -> None:
    waits = leg("Queued")
    usually = duration_stats([60.0] * 3)
    words = [row(waits, NOW, ahead, None, usually).words for ahead in (None, 0, 1, 12)]
    assert words == ["waits", "waits, next", "waits, 1 build ahead", "waits, 12 builds ahead"]
    assert cells(row(waits, NOW, 0, None, usually))[4:6] == ["1 min 40 s", "1 min 00 s"]


def test_the_phase_is_that_of_the_leg_which_the_worker_speaks_of() -> None:
    hand = CurrentBuild(
        build_id=build_id(1), srpm="time-1.7-45.el7.src.rpm", target="c7.1708.u.x86_64", arch="i386", attempt=ATTEMPT,
        phase="rpmbuild", since=NOW, started=NOW,
    )  # fmt: skip
    assert row(leg("Building", started=NOW - 10), NOW, None, hand, None).words == "builds"
    mine = row(leg("Building", "i386", started=NOW - 10), NOW, None, hand, None)
    assert (mine.words, mine.elapsed) == ("rpmbuild", 10)
    assert mine.changed != row(leg("Building", "i386"), NOW, None, None, None).changed


def test_a_time_that_grows_is_no_change() -> None:
    document = leg("Building", started=NOW - 10)
    assert row(document, NOW, 3, None, None).changed == row(document, NOW + 60, 2, None, None).changed


def test_the_legs_of_a_request_are_expected_but_those_it_skips() -> None:
    assert expected(build(leg("Building")), KNOWN) == {"x86_64", "i386"}
    assert expected(build(leg("Building", skipped={"i386": "noarch"})), KNOWN) == {"x86_64"}
    assert expected(build(leg("Building", pkgname="kernel", evr="1-1")), KNOWN) == {"x86_64", "i386", "noarch"}
    assert expected(build(leg("Building", "i386")), KNOWN) == {"i386"}, "that leg alone was asked for"


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
def test_a_build_is_over_when_nothing_more_comes(legs: list[BuildRecord], gone: bool, over: bool) -> None:
    assert is_over(build(*legs), rows(*legs), KNOWN, gone=gone) is over


def test_the_exit_code_is_good_where_all_came_out_well() -> None:
    assert exit_code(rows(leg("Published"), leg("Success", scratch=True))) == 0
    assert exit_code(rows(leg("Published"), leg("Failed"))) == 1
    assert exit_code(rows(leg("Override"))) == 1
    assert exit_code([]) == 0


def test_what_nobody_has_told_of_yet_is_not_over() -> None:
    assert not unheard(build_id(1)).over
    assert as_object(unheard(build_id(1)), 1.5)["at"] == 1.5
    assert "changed" not in as_object(unheard(build_id(1)), 1.5)


def test_places_are_counted_in_each_tube_by_itself() -> None:
    def waits(number: int, tube: str, priority: int = 8192) -> BuildRecord:
        queued = event("Queued", number, tube=tube, job=number, priority=priority)
        return apply_events({}, [queued])[queued.key]

    found = places([waits(3, "x86_64"), waits(1, "x86_64"), waits(2, "i386"), waits(9, "x86_64", 1024)])
    assert found == {build_id(9): 0, build_id(1): 1, build_id(3): 2, build_id(2): 0}
    again = attr.evolve(waits(1, "x86_64"), arch="i386")  # another leg of the same job
    assert places([waits(1, "x86_64"), again, waits(3, "x86_64")]) == {build_id(1): 0, build_id(3): 1}


def drawn(capsys: pytest.CaptureFixture[str], *legs: BuildRecord) -> list[str]:
    Table().show(rows(*legs), "")
    return capsys.readouterr().out.replace("\r", "").splitlines()


def test_a_screen_that_is_too_small_shows_first_what_goes_on_and_what_failed(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.setenv("LINES", "5")
    well, failed, runs = leg("Published"), leg("Failed", reason="%build failed"), leg("Building")
    told = drawn(capsys, well, well, runs, well, failed)
    assert len(told) == 5 and "builds" in told[1] and "failed" in told[2] and "and 3 more" in told[3]
    told = drawn(capsys, *[well] * 5)
    assert "published" in told[1] and "published" in told[2] and "and 3 more" in told[3]

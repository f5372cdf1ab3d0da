# SPDX-License-Identifier: Apache-2.0
"""What the notifier adds to a result: its cause, and how it differs from the package's previous result."""

from __future__ import annotations

import contextlib
import sqlite3
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from reimzul.core.failure_cause import CAUSE_VERSION, find_cause
from reimzul.core.message import BuildEvent
from reimzul.history import open_history
from reimzul.notifier.outbox import KEEP_SECONDS, Outbox
from reimzul.notifier.package_results import ResultSeed
from tests.events import OTHER_ATTEMPT, build_id, event


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "ledger.sqlite"


@pytest.fixture
def outbox(path: Path) -> Iterator[Outbox]:
    opened = Outbox(path)
    yield opened
    opened.close()


def deliver(outbox: Outbox, *events: BuildEvent) -> list[BuildEvent]:
    """Accept events; return those that a sink gets."""
    found = [each.event for each in outbox.accept(events, lambda _: ["log"]).get("log", [])]
    assert all(isinstance(each, BuildEvent) for each in found)
    return found  # type: ignore[return-value]


def compare(outbox: Outbox, status: str, number: int, **more: Any) -> tuple[Any, Any, str]:
    """Return what a sink gets of the comparison of the last event."""
    got = deliver(outbox, event(status, number, **more))[-1]
    return got.newly_failing, got.fixed, got.previous_build


UNKNOWN = (None, None, "")


# --- newly failing and fixed


def test_a_result_is_compared_with_the_packages_previous_one(outbox: Outbox) -> None:
    assert compare(outbox, "Failed", 1) == UNKNOWN, "nobody knows what was before"
    assert compare(outbox, "Failed", 2) == (False, None, build_id(1))
    assert compare(outbox, "Published", 3) == (None, True, build_id(2))
    assert compare(outbox, "Success", 4) == (None, False, build_id(3))
    assert compare(outbox, "Failed", 5, evr="1.8-1.el7") == (True, None, build_id(4))
    (got,) = deliver(outbox, event("Failed", 6))
    assert (got.newly_failing, got.previous_build, got.previous_evr) == (False, build_id(5), "1.8-1.el7")


@pytest.mark.parametrize(
    "other", [{"arch": "i386"}, {"target": "c9s.x86_64"}, {"pkgname": "bash"}, {"pkgname": "", "srpm": "b-1-1.src.rpm"}]
)
def test_each_package_target_and_arch_has_its_own(outbox: Outbox, other: dict[str, Any]) -> None:
    compare(outbox, "Success", 1)
    assert compare(outbox, "Failed", 2, **other) == UNKNOWN
    assert compare(outbox, "Failed", 3) == (True, None, build_id(1))


def test_a_package_whose_header_was_not_read_is_known_by_its_source_rpm(outbox: Outbox) -> None:
    compare(outbox, "Success", 1)
    assert compare(outbox, "Failed", 2, pkgname="", evr="") == (True, None, build_id(1))


def test_scratch_builds_neither_count_nor_are_compared(outbox: Outbox) -> None:
    compare(outbox, "Success", 1)
    assert compare(outbox, "Failed", 2, scratch=True) == UNKNOWN
    assert compare(outbox, "Failed", 3) == (True, None, build_id(1))


@pytest.mark.parametrize("status", ["Cancelled", "Rejected"])
def test_a_build_that_was_cancelled_or_rejected_neither_counts_nor_is_compared(outbox: Outbox, status: str) -> None:
    compare(outbox, "Failed", 1)
    assert compare(outbox, status, 2) == UNKNOWN
    assert compare(outbox, "Success", 3) == (None, True, build_id(1))


def test_a_claim_decides_nothing(outbox: Outbox) -> None:
    compare(outbox, "Failed", 1)
    assert compare(outbox, "Published", 2, claimed=True) == UNKNOWN
    assert compare(outbox, "Failed", 3) == (False, None, build_id(1))


def test_what_a_sender_says_of_it_is_overwritten(outbox: Outbox) -> None:
    lie: dict[str, Any] = {"newly_failing": True, "fixed": True, "previous_build": build_id(9), "previous_evr": "9-9"}
    for number, status in enumerate(("Queued", "Building", "Cancelled", "Success"), 1):
        (got,) = deliver(outbox, event(status, number, **lie))
        assert (got.newly_failing, got.fixed, got.previous_build, got.previous_evr) == (None, None, "", "")
    assert compare(outbox, "Failed", 5, **lie) == (True, None, build_id(4))


def test_an_event_that_comes_again_gets_the_same_answer(outbox: Outbox, path: Path) -> None:
    compare(outbox, "Failed", 1)
    assert compare(outbox, "Success", 2) == (None, True, build_id(1))
    assert deliver(outbox, event("Success", 2), event("Failed", 2, attempt=OTHER_ATTEMPT)) == []
    assert compare(outbox, "Failed", 3) == (True, None, build_id(2))
    outbox.close()
    again = Outbox(path)
    assert compare(again, "Published", 2) == (None, True, build_id(1)), "another build has come between"
    assert compare(again, "Failed", 4) == (False, None, build_id(3)), "an earlier build changes the last result no more"
    again.close()


def test_published_gives_its_success_the_same_answer(outbox: Outbox) -> None:
    compare(outbox, "Failed", 1)
    got = deliver(outbox, event("Published", 2))
    assert [(each.status, each.fixed) for each in got] == [("Success", True), ("Published", True)]


def test_a_result_that_is_outranked_counts_no_more(outbox: Outbox) -> None:
    compare(outbox, "Success", 1)
    assert compare(outbox, "Failed", 2) == (True, None, build_id(1))
    assert compare(outbox, "Published", 2, attempt=OTHER_ATTEMPT) == (None, False, build_id(1))
    assert compare(outbox, "Failed", 3) == (True, None, build_id(2))


def test_of_a_late_result_nobody_knows_what_was_before(outbox: Outbox) -> None:
    compare(outbox, "Success", 1)
    compare(outbox, "Failed", 5)
    assert compare(outbox, "Success", 3) == UNKNOWN
    assert compare(outbox, "Failed", 6) == (False, None, build_id(5))


def test_what_a_leg_was_compared_with_is_forgotten_and_the_last_result_is_not(outbox: Outbox) -> None:
    compare(outbox, "Success", 1)
    outbox.purge(time.time() + KEEP_SECONDS + 1)
    assert compare(outbox, "Failed", 2) == (True, None, build_id(1))


# --- causes


def test_a_failure_without_a_cause_gets_one(outbox: Outbox) -> None:
    for number, status in enumerate(("Failed", "Rejected"), 1):
        (got,) = deliver(outbox, event(status, number, reason="%build failed", error_line="a.c:1: error: no"))
        cause = find_cause("%build failed", "a.c:1: error: no", "time")
        assert (got.cause, got.cause_text, got.cause_version) == (cause.id, cause.text, CAUSE_VERSION)
    (got,) = deliver(outbox, event("Success", 3, reason="built before"))
    assert got.cause == ""


@pytest.mark.parametrize(("version", "kept"), [(CAUSE_VERSION, True), (CAUSE_VERSION + 1, False), (0, False)])
def test_a_workers_cause_is_kept_if_it_is_by_this_rule(outbox: Outbox, version: int, kept: bool) -> None:
    (got,) = deliver(outbox, event("Failed", cause="0123abcd", cause_text="a step: a line", cause_version=version))
    assert (got.cause == "0123abcd", got.cause_version) == (kept, CAUSE_VERSION)


# --- earlier versions


def test_an_outbox_of_an_earlier_version_is_taken_over(path: Path) -> None:
    opened = Outbox(path)
    deliver(opened, event("Success", 1))
    opened.close()
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as db:
        for table in ("last_result", "compared", "seeded"):
            db.execute(f"DROP TABLE {table}")
    opened = Outbox(path)
    assert compare(opened, "Published", 1) == UNKNOWN
    assert compare(opened, "Failed", 2) == (True, None, build_id(1))
    opened.close()


def test_the_last_results_come_from_the_history_once(tmp_path: Path, outbox: Outbox, path: Path) -> None:
    url = f"sqlite:///{tmp_path}/history.sqlite"
    with contextlib.closing(open_history(url)) as history:
        history.record([event("Failed", 1), event("Success", 2), event("Failed", 3, scratch=True), event("Queued", 4)])
        history.record([event("Failed", 5, arch="i386"), event("Success", 5, arch="ppc64le")])
    compare(outbox, "Failed", 6, arch="ppc64le")
    ResultSeed(path, url).run()
    assert compare(outbox, "Failed", 7) == (True, None, build_id(2))
    assert compare(outbox, "Success", 8, arch="i386") == (None, True, build_id(5))
    assert compare(outbox, "Failed", 9, arch="ppc64le") == (False, None, build_id(6)), "what came since is newer"
    (tmp_path / "history.sqlite").write_bytes(b"no database, and nobody looks" * 1000)
    ResultSeed(path, url).run()


def test_without_a_history_nothing_is_known(tmp_path: Path, outbox: Outbox, path: Path) -> None:
    ResultSeed(path, f"sqlite:///{tmp_path}/none.sqlite").run()
    assert compare(outbox, "Failed", 1) == UNKNOWN


def test_a_history_that_is_away_is_tried_again(
    tmp_path: Path, outbox: Outbox, path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "history.sqlite").write_bytes(b"these are only words" * 1000)
    url = f"sqlite:///{tmp_path}/history.sqlite"
    ResultSeed(path, url).run()
    assert "are not read from the history today" in caplog.text
    (tmp_path / "history.sqlite").unlink()
    with contextlib.closing(open_history(url)) as history:
        history.record([event("Success", 1)])
    ResultSeed(path, url).run()
    assert compare(outbox, "Failed", 2) == (True, None, build_id(1))

# SPDX-License-Identifier: Apache-2.0
"""The ledger: what is news, to whom, and what is told to nobody any more."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from reimzul.core.errors import ReimzulError, RetryLater
from reimzul.core.message import BuildEvent, Event
from reimzul.notifier.ledger import KEPT, Ledger
from tests.events import ATTEMPT, OTHER_ATTEMPT, build_id, event, refusal


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    """An empty one."""
    opened = Ledger(tmp_path / "notifier" / "ledger.sqlite")
    yield opened
    opened.close()


def due(ledger: Ledger, *events: Event, sinks: tuple[str, ...] = ("log",)) -> list[str]:
    """The words due to the first sink."""
    return [notice.word for notice in ledger.due(events, lambda _: sinks).get(sinks[0], [])]


def tell(ledger: Ledger, *events: Event, sink: str = "log") -> list[str]:
    """Tell the sink what it is due; the words of it."""
    notices = ledger.due(events, lambda _: (sink,)).get(sink, [])
    ledger.told(sink, notices)
    return [notice.word for notice in notices]


def test_nobody_is_told_twice(ledger: Ledger, tmp_path: Path) -> None:
    assert tell(ledger, event("Success"), event("Success")) == ["Success"]
    assert tell(ledger, event("Success")) == []
    ledger.close()
    again = Ledger(tmp_path / "notifier" / "ledger.sqlite")
    assert tell(again, event("Success")) == [], "after a restart neither"
    again.close()


def test_each_sink_has_its_own_rows(ledger: Ledger) -> None:
    tell(ledger, event("Success"), sink="log")
    assert tell(ledger, event("Success"), sink="mqtt") == ["Success"]


def test_what_was_begun_and_not_told_is_due_again_and_doubtful(ledger: Ledger) -> None:
    (first,) = ledger.due([event("Success")], lambda _: ("log",))["log"]
    (second,) = ledger.due([event("Success")], lambda _: ("log",))["log"]
    assert (first.maybe_sent, second.maybe_sent) == (False, True)
    ((count, since),) = ledger.owing().values()
    assert (count, since) == (1, pytest.approx(time.time(), abs=60))
    ledger.told("log", [second])
    assert ledger.owing() == {}


def test_another_attempt_is_news_while_it_builds_and_no_news_when_it_ends_alike(ledger: Ledger) -> None:
    other = {"attempt": OTHER_ATTEMPT}
    assert tell(ledger, event("Building"), event("Building", **other)) == [
        f"Building/{ATTEMPT}",
        f"Building/{OTHER_ATTEMPT}",
    ]
    assert tell(ledger, event("Failed"), event("Failed", **other)) == ["Failed"]


@pytest.mark.parametrize(
    ("statuses", "told"),
    [
        (["Failed", "Success"], ["Failed"]),
        (["Success", "Failed"], ["Success"]),
        (["Cancelled", "Success", "Failed"], ["Cancelled"]),
        (["Success", "Published"], ["Success", "Published"]),
        (["Failed", "Published"], ["Failed", "Success", "Published"]),
        (["Published", "Success"], ["Success", "Published"]),
        (["Published", "Failed"], ["Success", "Published"]),
        (["Success", "Rejected"], ["Success", "Rejected"]),
        (["Rejected", "Success"], ["Rejected"]),
        (["Rejected", "Published"], ["Rejected", "Success", "Published"]),
        (["Published", "Rejected"], ["Success", "Published"]),
        (["Success", "Building", "Queued"], ["Success", f"Building/{ATTEMPT}", "Queued"]),
    ],
)
@pytest.mark.parametrize("together", [True, False])
def test_which_results_are_told(ledger: Ledger, statuses: list[str], told: list[str], together: bool) -> None:
    events = [event(status) for status in statuses]
    batches = [events] if together else [[each] for each in events]
    assert [said for batch in batches for said in tell(ledger, *batch)] == told


def test_the_result_is_decided_once_for_all_sinks(ledger: Ledger) -> None:
    tell(ledger, event("Failed"), sink="log")
    assert tell(ledger, event("Success"), sink="mqtt") == [], "the log says Failed"
    assert tell(ledger, event("Failed"), sink="mqtt") == ["Failed"]


def test_what_is_owed_of_a_result_that_holds_no_more_is_dropped(ledger: Ledger) -> None:
    due(ledger, event("Failed"))
    tell(ledger, event("Published", attempt=OTHER_ATTEMPT))
    assert due(ledger, event("Failed", owed={"log": 3})) == []
    assert ledger.owing() == {}


def test_events_of_the_original_are_known_by_their_words(ledger: Ledger) -> None:
    old = BuildEvent(
        srpm="time-1.7-45.el7.src.rpm",
        arch="armhfp",
        target="c7.1708.u.armhfp",
        status="Success",
        submitter="root",
        timestamp="20180101000000",
    )
    assert tell(ledger, old, old) == ["Success"]


def test_a_refusal_is_told_once(ledger: Ledger) -> None:
    assert tell(ledger, refusal(1), refusal(2), refusal(1)) == ["Refused", "Refused"]
    assert tell(ledger, refusal(1)) == []


def test_what_is_too_old_is_forgotten(ledger: Ledger) -> None:
    tell(ledger, event("Failed"))
    ledger.forget(time.time())
    assert tell(ledger, event("Failed")) == []
    ledger.forget(time.time() + KEPT + 60)
    assert tell(ledger, event("Success")) == ["Success"]


def test_a_ledger_that_cannot_be_written_tells_nobody(ledger: Ledger, tmp_path: Path) -> None:
    other = sqlite3.connect(tmp_path / "notifier" / "ledger.sqlite", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(RetryLater, match="locked"):
        due(ledger, event("Success"))
    other.execute("ROLLBACK")
    other.close()
    assert due(ledger, event("Success")) == ["Success"]


def test_what_is_no_ledger_is_said_at_the_start(tmp_path: Path) -> None:
    (tmp_path / "ledger.sqlite").write_text("these are only words, and many of them\n" * 100)
    with pytest.raises(ReimzulError, match="cannot be used as the ledger"):
        Ledger(tmp_path / "ledger.sqlite")


# --- where a build waits


def test_the_job_a_build_waits_as_is_known_until_it_is_over(ledger: Ledger) -> None:
    tell(ledger, event("Queued", job=7, tube="x86_64", at=1.0), event("Queued", arch="i386", job=7, at=1.0))
    tell(ledger, event("Queued", job=9, tube="x86_64", attempt=ATTEMPT, at=2.0), event("Queued", 2, job=8, at=1.0))
    assert [(each.arch, each.job) for each in ledger.queued(build_id(1))] == [("i386", 7), ("x86_64", 9)]
    assert not ledger.is_over(build_id(1))
    tell(ledger, event("Cancelled", at=3.0))
    assert [each.arch for each in ledger.queued(build_id(1))] == ["i386"]
    assert ledger.is_over(build_id(1)) and not ledger.is_over(build_id(2))


def test_an_older_word_on_the_job_covers_no_newer_one(ledger: Ledger) -> None:
    tell(ledger, event("Queued", job=9, attempt=ATTEMPT, at=2.0))
    tell(ledger, event("Queued", job=7, at=1.0))
    assert [each.job for each in ledger.queued(build_id(1))] == [9]


def test_a_build_that_is_put_first_is_news(ledger: Ledger) -> None:
    assert tell(ledger, event("Queued", job=7)) == ["Queued/7"]
    assert tell(ledger, event("Queued", job=7), event("Queued", job=8)) == ["Queued/8"]


# --- cancelled


@pytest.mark.parametrize(
    ("statuses", "told"),
    [
        (["Cancelled", "Success"], ["Cancelled"]),
        (["Cancelled", "Failed"], ["Cancelled"]),
        (["Success", "Cancelled", "Cancelled"], ["Success", "Cancelled"]),
        (["Failed", "Cancelled"], ["Failed"]),
        (["Success", "Cancelled", "Published"], ["Success", "Cancelled", "Published"]),
        (["Cancelled", "Rejected"], ["Cancelled"]),
        (["Success", "Published", "Cancelled"], ["Success", "Published"]),
    ],
)
def test_a_cancel_ends_what_is_not_over(ledger: Ledger, statuses: list[str], told: list[str]) -> None:
    assert [word for status in statuses for word in tell(ledger, event(status))] == told

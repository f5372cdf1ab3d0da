# SPDX-License-Identifier: Apache-2.0
"""The outbox: what is news, to whom, and what is delivered to nobody any more."""

from __future__ import annotations

import contextlib
import os
import sqlite3
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from reimzul.core.errors import ReimzulError, RetryLater
from reimzul.core.message import BuildEvent, Event
from reimzul.core.pending import read_pending
from reimzul.notifier.outbox import KEEP_SECONDS, PAGE, Outbox, SinkDeliveries
from tests.events import ATTEMPT, OTHER_ATTEMPT, build_id, event, refusal


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "notifier" / "ledger.sqlite"


@pytest.fixture
def outbox(path: Path) -> Iterator[Outbox]:
    """An empty one."""
    opened = Outbox(path)
    yield opened
    opened.close()


def accept(outbox: Outbox, *events: Event, sinks: tuple[str, ...] = ("log",)) -> list[str]:
    """The words that are new for the first sink."""
    return [each.word for each in outbox.accept(events, lambda _: sinks).get(sinks[0], [])]


def tell(outbox: Outbox, *events: Event, sink: str = "log") -> list[str]:
    """Accept events for a sink, and deliver them; the words of those it got."""
    file = SinkDeliveries(outbox.path, sink)
    begun = file.begin(outbox.accept(events, lambda _: (sink,)).get(sink, []))
    file.mark_delivered([notice.seq for notice in begun])
    file.close()
    return [notice.word for notice in begun]


def pending(outbox: Outbox) -> dict[str, int]:
    return {each.sink: each.count for each in read_pending(outbox.path)}


def doubts(outbox: Outbox, sink: str = "log") -> list[tuple[str, bool]]:
    """What a sink's thread finds after a start: each word, and whether the sink may have it."""
    file = SinkDeliveries(outbox.path, sink)
    page, _ = file.read_due()
    found = [(notice.word, notice.maybe_sent) for notice in file.begin(page)]
    file.close()
    return found


def test_nobody_is_told_twice(outbox: Outbox, path: Path) -> None:
    assert tell(outbox, event("Success"), event("Success")) == ["Success"]
    assert tell(outbox, event("Success")) == []
    outbox.close()
    again = Outbox(path)
    assert tell(again, event("Success")) == [], "after a restart neither"
    again.close()


def test_each_sink_has_its_own_deliveries(outbox: Outbox, path: Path) -> None:
    new = outbox.accept([event("Success")], lambda _: ("log", "mqtt"))
    assert {sink: [each.word for each in rows] for sink, rows in new.items()} == {
        "log": ["Success"],
        "mqtt": ["Success"],
    }
    file = SinkDeliveries(path, "log")
    file.mark_delivered([new["log"][0].seq])
    assert [(each.sink, each.count) for each in read_pending(path)] == [("mqtt", 1)]
    assert bodies(path) == 1, "a body goes with the last delivery"
    other = SinkDeliveries(path, "mqtt")
    other.mark_delivered([new["mqtt"][0].seq])
    assert read_pending(path) == []
    assert bodies(path) == 0
    file.close()
    other.close()


def bodies(path: Path) -> int:
    with contextlib.closing(sqlite3.connect(path)) as db:
        (count,) = db.execute("SELECT count(*) FROM event WHERE body <> ''").fetchone()
        return int(count)


def test_what_was_begun_before_a_kill_may_have_been_delivered(outbox: Outbox, path: Path) -> None:
    file = SinkDeliveries(path, "log")
    (first, second) = outbox.accept([event("Success"), event("Failed", 2)], lambda _: ("log",))["log"]
    assert [notice.maybe_sent for notice in file.begin([first])] == [False]
    assert doubts(outbox) == [("Success", True), ("Failed", False)], "in the order of their arrival"
    (found,) = read_pending(path)
    assert found.count == 2
    assert found.oldest == pytest.approx(time.time(), abs=60)
    file.mark_delivered([first.seq, second.seq])
    assert read_pending(path) == []
    assert file.begin([first, second]) == []
    file.close()


def test_a_kill_between_the_commit_and_the_deletion_of_the_job_doubles_nothing(outbox: Outbox) -> None:
    assert accept(outbox, event("Success")) == ["Success"]
    assert accept(outbox, event("Success")) == [], "the job came again, and the sink has it in hand"
    assert pending(outbox) == {"log": 1}


def test_what_was_deferred_is_due_later_and_later(outbox: Outbox, path: Path) -> None:
    (row,) = outbox.accept([event("Success")], lambda _: ("log",))["log"]
    file = SinkDeliveries(path, "log")
    assert [file.defer([row.seq]) for _ in range(10)] == [2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 300.0, 300.0]
    page, pause = file.read_due()
    assert page == []
    assert pause == pytest.approx(300, abs=2)
    (found,) = read_pending(path)
    assert found.next_try == pytest.approx(time.time() + 300, abs=2)
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as db:
        db.execute("UPDATE delivery SET next_try = next_try + 86400")
    assert len(file.read_due()[0]) == 1, "our clock was put back"
    file.close()


def test_a_sink_reads_a_page_at_a_time(outbox: Outbox, path: Path) -> None:
    outbox.accept([event("Success", number) for number in range(PAGE + 7)], lambda _: ("log",))
    file = SinkDeliveries(path, "log")
    page, _ = file.read_due()
    assert [each.event.key for each in page] == [event("Success", number).key for number in range(PAGE)]
    file.mark_delivered([each.seq for each in page])
    assert len(file.read_due()[0]) == 7
    file.close()


def test_a_sink_that_is_switched_off_loses_what_is_pending(
    outbox: Outbox, path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    outbox.accept([event("Success"), event("Failed", 2)], lambda _: ("log", "pigeon"))
    outbox.drop_sinks_except({"log"})
    assert pending(outbox) == {"log": 2}
    assert "pigeon is switched off: 2 events for it are dropped" in caplog.text
    outbox.drop_sinks_except(set())
    assert pending(outbox) == {}
    assert bodies(path) == 0


def test_another_attempt_is_news_while_it_builds_and_no_news_when_it_ends_alike(outbox: Outbox) -> None:
    assert tell(outbox, event("Building"), event("Building", attempt=OTHER_ATTEMPT)) == [
        f"Building/{ATTEMPT}",
        f"Building/{OTHER_ATTEMPT}",
    ]
    assert tell(outbox, event("Failed"), event("Failed", attempt=OTHER_ATTEMPT)) == ["Failed"]


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
def test_which_results_are_delivered(outbox: Outbox, statuses: list[str], told: list[str], together: bool) -> None:
    events = [event(status) for status in statuses]
    batches = [events] if together else [[each] for each in events]
    if together:  # what holds no more by the end of the batch is delivered to nobody
        outranked = {"Published": ("Failed", "Rejected", "Cancelled"), "Rejected": ("Success",)}.get(told[-1], ())
        told = [said for said in told if said not in outranked]
    assert [said for batch in batches for said in tell(outbox, *batch)] == told


def test_the_result_is_decided_once_for_all_sinks(outbox: Outbox) -> None:
    tell(outbox, event("Failed"), sink="log")
    assert tell(outbox, event("Success"), sink="mqtt") == [], "the log has Failed"


def test_what_is_pending_of_a_result_that_holds_no_more_is_dropped(outbox: Outbox, path: Path) -> None:
    accept(outbox, event("Building"), event("Failed"))
    assert tell(outbox, event("Published", attempt=OTHER_ATTEMPT)) == ["Success", "Published"]
    assert [word for word, _ in doubts(outbox)] == [f"Building/{ATTEMPT}"]
    assert bodies(path) == 1
    assert accept(outbox, event("Failed")) == []


@pytest.mark.parametrize(
    ("weaker", "stronger", "delivered"),
    [
        ("Failed", "Published", ["Success", "Published"]),
        ("Failed", "Rejected", ["Rejected"]),
        ("Success", "Rejected", ["Rejected"]),
        ("Success", "Cancelled", ["Cancelled"]),
        ("Cancelled", "Published", ["Success", "Published"]),
    ],
)
def test_a_result_that_is_outranked_in_its_own_commit_is_covered_by_the_stronger_one(
    outbox: Outbox, weaker: str, stronger: str, delivered: list[str]
) -> None:
    sinks = ("log", "history", "mail", "mqtt")
    outbox.accept([event(weaker), event(stronger)], lambda _: sinks)
    assert {sink: [word for word, _ in doubts(outbox, sink)] for sink in sinks} == dict.fromkeys(sinks, delivered)


def test_a_success_stays_pending_when_it_is_published(outbox: Outbox) -> None:
    assert accept(outbox, event("Success")) == ["Success"]
    assert accept(outbox, event("Published")) == ["Published"]
    assert [word for word, _ in doubts(outbox)] == ["Success", "Published"]


@pytest.mark.parametrize(
    ("given", "told", "holds"),
    [
        (["Success", "claim"], ["Success", "Published/claimed"], "Success"),
        (["claim", "Failed"], ["Published/claimed", "Failed"], "Failed"),
        (["claim", "claim", "Published"], ["Published/claimed", "Success", "Published"], "Published"),
        (["Published", "claim"], ["Success", "Published"], "Published"),
        (["Rejected", "claim"], ["Rejected", "Published/claimed"], "Rejected"),
        (["Published", "claimed rejection"], ["Success", "Published"], "Published"),
        (["Success", "claimed rejection"], ["Success", "Rejected/claimed"], "Success"),
    ],
)
def test_a_claim_is_told_once_and_decides_nothing(
    outbox: Outbox, given: list[str], told: list[str], holds: str
) -> None:
    claims = {"claim": "Published", "claimed rejection": "Rejected"}
    events = [event(claims.get(each, each), claimed=True if each in claims else None) for each in given]
    assert [word for each in events for word in accept(outbox, each)] == told
    assert outbox.results_of([build_id(1)]) == {build_id(1): holds}


def test_events_of_the_original_are_known_by_their_words(outbox: Outbox) -> None:
    old = BuildEvent(
        srpm="time-1.7-45.el7.src.rpm",
        arch="armhfp",
        target="c7.1708.u.armhfp",
        status="Success",
        submitter="root",
        timestamp="20180101000000",
    )
    assert tell(outbox, old, old) == ["Success"]


def test_a_refusal_is_told_once(outbox: Outbox) -> None:
    assert tell(outbox, refusal(1), refusal(2), refusal(1)) == ["Refused", "Refused"]
    assert tell(outbox, refusal(1)) == []


def test_what_is_too_old_is_forgotten(outbox: Outbox) -> None:
    tell(outbox, event("Failed"))
    accept(outbox, event("Success", 2))
    outbox.purge(time.time())
    assert tell(outbox, event("Failed")) == []
    outbox.purge(time.time() + KEEP_SECONDS + 60)
    assert tell(outbox, event("Success")) == ["Success"]
    assert pending(outbox) == {"log": 1}, "what is pending is not forgotten"


def test_nothing_is_left_of_what_is_forgotten(outbox: Outbox, path: Path) -> None:
    tell(outbox, event("Success"), event("Queued", 2, job=7))
    outbox.purge(time.time() + KEEP_SECONDS + 60)
    assert outbox.results_of([build_id(1)]) == {}
    assert outbox.queued_events(build_id(2)) == []
    with contextlib.closing(sqlite3.connect(path)) as db:
        for table in ("event", "delivery"):
            assert db.execute(f"SELECT count(*) FROM {table}").fetchone() == (0,), table


@pytest.mark.usefixtures("impatient")
def test_an_outbox_that_cannot_be_written_accepts_nothing(outbox: Outbox, path: Path) -> None:
    (row,) = outbox.accept([event("Failed", 7)], lambda _: ("log",))["log"]
    file = SinkDeliveries(path, "log")
    file.begin([])
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(RetryLater, match="locked"):
        accept(outbox, event("Success"))
    with pytest.raises(RetryLater, match="locked"):
        file.begin([row])
    other.execute("ROLLBACK")
    other.close()
    assert accept(outbox, event("Success")) == ["Success"]
    assert [notice.maybe_sent for notice in file.begin([row])] == [False], "it was not asked"
    file.close()


# --- damaged, old and new files


@pytest.mark.parametrize("content", [b"these are only words, and many of them\n" * 100, None], ids=["text", "torn"])
def test_a_damaged_file_is_put_aside_and_what_can_be_read_is_kept(path: Path, content: bytes | None) -> None:
    outbox = Outbox(path)
    outbox.accept([event("Success", number, build_log="x" * 9000) for number in range(40)], lambda _: ("log", "mqtt"))
    outbox.close()
    whole = path.read_bytes()
    middle = len(whole) // 2 // 4096 * 4096
    path.write_bytes(content or whole[:middle] + b"\xff" * 40_960 + whole[middle + 40_960 :])
    outbox = Outbox(path)
    (aside,) = path.parent.glob("outbox.corrupt-*")
    assert aside.exists()
    assert str(aside) in outbox.damage
    assert "damaged" in outbox.damage
    kept = pending(outbox).get("log", 0)
    assert f"and {sum(pending(outbox).values())} pending deliveries could be read from it" in outbox.damage
    assert kept == 0 if content else 20 <= kept < 40
    assert [word for word, _ in doubts(outbox)] == ["Success"] * kept, "each can be read"
    assert accept(outbox, event("Failed", 99)) == ["Failed"]
    outbox.close()
    outbox = Outbox(path)
    assert outbox.damage == ""
    outbox.close()


def test_a_file_that_cannot_be_opened_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    with pytest.raises(ReimzulError, match="cannot be used as the outbox"):
        Outbox(tmp_path / "folder")
    assert [path.name for path in tmp_path.iterdir()] == ["folder"], "it is not taken for damaged"


def test_a_file_of_a_newer_version_is_left_alone(path: Path) -> None:
    Outbox(path).close()
    with contextlib.closing(sqlite3.connect(path)) as db:
        db.execute("PRAGMA user_version = 3")
    with pytest.raises(ReimzulError, match="newer than version 2") as error:
        Outbox(path)
    assert open_files(path) == [], f"who gets {error.value!r} has nothing to close"


def open_files(path: Path) -> list[str]:
    """The files of this process whose names begin with a path; SQLite has a WAL beside the file."""
    links = (Path("/proc/self/fd") / name for name in os.listdir("/proc/self/fd"))
    return [str(link.readlink()) for link in links if link.is_symlink() and str(link.readlink()).startswith(str(path))]


def test_closing_lets_go_of_the_file(path: Path) -> None:
    outbox = Outbox(path)
    assert outbox.damage == "", "it is new"
    file = SinkDeliveries(path, "log")
    file.close()  # it never opened the file
    file.read_due()
    outbox.close()
    assert open_files(path)
    file.close()
    assert open_files(path) == []


def test_an_event_that_cannot_be_read_is_dropped_and_asks_for_nothing_more(
    outbox: Outbox, path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    accept(outbox, event("Success"), event("Failed", 2))
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as db:
        db.execute("UPDATE event SET body = '{' WHERE word = 'Success'")
    assert doubts(outbox) == [("Failed", False)]
    assert "cannot be read from the outbox and is dropped" in caplog.text
    assert pending(outbox) == {"log": 1}


OLD = """
CREATE TABLE told (
    key TEXT NOT NULL, word TEXT NOT NULL, sink TEXT NOT NULL, begun REAL NOT NULL, told REAL,
    PRIMARY KEY (key, word, sink)
) WITHOUT ROWID;
CREATE TABLE verdict (key TEXT PRIMARY KEY, status TEXT NOT NULL, at REAL NOT NULL) WITHOUT ROWID;
"""


@pytest.fixture
def updated(path: Path) -> Iterator[Outbox]:
    """The ledger of an earlier version: the log has the first build, MQTT was asked for it, mail was not."""
    path.parent.mkdir()
    key = event("Success").key
    with contextlib.closing(sqlite3.connect(path)) as db:
        db.executescript(OLD)
        db.execute("INSERT INTO told VALUES (?, 'Success', 'log', 1, 2)", (key,))
        db.execute("INSERT INTO told VALUES (?, 'Success', 'mqtt', 1, NULL)", (key,))
        db.execute("INSERT INTO verdict VALUES (?, 'Success', ?)", (key, time.time()))
        db.commit()
    opened = Outbox(path)
    yield opened
    opened.close()


def test_an_event_that_an_earlier_version_told_is_delivered_to_the_others(updated: Outbox) -> None:
    new = updated.accept([event("Success")], lambda _: ("log", "mqtt", "mail"))
    assert {sink: [each.maybe_sent for each in rows] for sink, rows in new.items()} == {"mail": [False], "mqtt": [True]}
    assert doubts(updated, "mqtt") == [("Success", True)]
    assert doubts(updated, "mail") == [("Success", False)]


def test_what_an_earlier_version_put_back_is_for_the_sinks_it_names(updated: Outbox) -> None:
    everybody = ("log", "mqtt", "mail", "history")
    new = updated.accept([event("Success", owed={"log": 1, "mqtt": 3, "pigeon": 1})], lambda _: everybody)
    assert sorted(new) == ["mqtt"]
    assert new["mqtt"][0].event == event("Success")
    assert sorted(updated.accept([event("Success", owed={"history": 1, "mqtt": 4})], lambda _: everybody)) == [
        "history"
    ]
    assert pending(updated) == {"mqtt": 1, "history": 1}
    updated.purge(time.time())
    assert updated.accept([event("Success")], lambda _: everybody) == {}


def test_a_sink_that_an_earlier_version_owed_gets_an_event_that_all_others_have(outbox: Outbox) -> None:
    assert tell(outbox, event("Success")) == ["Success"]
    assert sorted(outbox.accept([event("Success", owed={"mail": 1})], lambda _: ("log", "mail"))) == ["mail"]
    assert doubts(outbox, "mail") == [("Success", False)]


def test_what_an_earlier_version_told_too_long_ago_is_forgotten(updated: Outbox) -> None:
    updated.purge(time.time())
    assert sorted(updated.accept([event("Success")], lambda _: ("log", "mail"))) == ["log", "mail"]


# --- where a build waits


def test_the_job_a_build_waits_as_is_known_until_it_is_over(outbox: Outbox) -> None:
    tell(outbox, event("Queued", job=7, tube="x86_64", at=1.0), event("Queued", arch="i386", job=7, at=1.0))
    tell(outbox, event("Queued", job=9, tube="x86_64", attempt=ATTEMPT, at=2.0), event("Queued", 2, job=8, at=1.0))
    assert [(each.arch, each.job) for each in outbox.queued_events(build_id(1))] == [("i386", 7), ("x86_64", 9)]
    assert outbox.results_of([build_id(1)]) == {}
    tell(outbox, event("Building", arch="noarch", at=2.0))
    assert outbox.unfinished_arches(build_id(1)) == ["i386", "noarch", "x86_64"]
    tell(outbox, event("Cancelled", at=3.0))
    assert outbox.unfinished_arches(build_id(1)) == ["i386", "noarch"]
    assert [each.arch for each in outbox.queued_events(build_id(1))] == ["i386"]
    assert outbox.results_of([build_id(1), build_id(2)]) == {build_id(1): "Cancelled"}


def test_an_older_word_on_the_job_covers_no_newer_one(outbox: Outbox) -> None:
    tell(outbox, event("Queued", job=9, attempt=ATTEMPT, at=2.0))
    tell(outbox, event("Queued", job=7, at=1.0))
    assert [each.job for each in outbox.queued_events(build_id(1))] == [9]


def test_a_held_job_is_known_however_long_it_is_held(outbox: Outbox) -> None:
    tell(outbox, event("Queued", 1, job=7, held=True), event("Queued", 2, job=8))
    outbox.purge(time.time() + 2 * KEEP_SECONDS)
    assert [each.job for number in (1, 2) for each in outbox.queued_events(build_id(number))] == [7]
    assert outbox.unfinished_arches(build_id(1)) == ["x86_64"], "a cancel of it can be finished"
    tell(outbox, event("Cancelled", 1))
    assert outbox.queued_events(build_id(1)) == []


def test_a_build_that_is_put_first_is_news(outbox: Outbox) -> None:
    assert tell(outbox, event("Queued", job=7)) == ["Queued/7"]
    assert tell(outbox, event("Queued", job=7), event("Queued", job=8)) == ["Queued/8"]


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
def test_a_cancel_ends_what_is_not_over(outbox: Outbox, statuses: list[str], told: list[str]) -> None:
    assert [word for status in statuses for word in tell(outbox, event(status))] == told

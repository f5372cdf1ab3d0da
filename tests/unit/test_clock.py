# SPDX-License-Identifier: Apache-2.0
"""Hosts whose clock is wrong: in 1970, in 2099, or put back. Nothing is refused for it, lost, or kept too short."""

from __future__ import annotations

import calendar
import os
import time
from pathlib import Path
from typing import Any, cast

import pytest

from reimzul.admin import output
from reimzul.admin.builds import format_build
from reimzul.admin.lookup import BuildLegs
from reimzul.admin.output import format_skew
from reimzul.admin.stats import compute_stats
from reimzul.admin.watch import make_row
from reimzul.core import fs, json_message, message, validators
from reimzul.core.beanstalk import ReservedJob
from reimzul.core.clock import MAX_SKEW_SECONDS, measure_skew
from reimzul.core.errors import ReservationLost
from reimzul.core.manifest import Manifest
from reimzul.core.message import BuildEvent, BuildRequest, WorkerHeartbeat, decode_event, event_for
from reimzul.core.retry import CancelToken
from reimzul.core.setting_parsers import Pruning
from reimzul.core.store_paths import MANIFEST, StorePaths
from reimzul.history import BuildRecord
from reimzul.history.build_record import apply_events
from reimzul.history.result_rules import Notification, news_kind
from reimzul.history.workers import WorkerRecord
from reimzul.notifier.housekeeping import correct_clock, shift_times
from reimzul.notifier.quarantine import QuarantinedBuilder, QuarantineTables
from reimzul.notifier.sinks.logfile import LogSink
from reimzul.repogen.verify import scan_spool
from reimzul.store.cleanup import ManifestSummary, Retention, StoredBuild, choose_builds, sweep_expired, sweep_live_logs
from reimzul.worker.daemon import seconds_since_fault
from tests.events import ATTEMPT, BEGINNING, OTHER_ATTEMPT, event

NOW = BEGINNING + 1000
FUTURE = float(calendar.timegm((2099, 1, 1, 0, 0, 0)))
#: What a clock may say that is wrong.
WRONG = (7.5, -3600.0, FUTURE)


def test_a_clock_is_off_from_five_seconds_on() -> None:
    assert measure_skew(NOW + MAX_SKEW_SECONDS, NOW) == measure_skew(NOW - MAX_SKEW_SECONDS, NOW) == 0
    assert measure_skew(NOW + 7200, NOW) == 7200
    assert measure_skew(NOW - 6, NOW) == -6
    assert measure_skew(0.0, NOW) == 0, "who says no time has no wrong one"
    assert format_skew(7200.0) == "2 h 00 min ahead of the controller's"
    assert format_skew(-6.0) == "6.0 s behind the controller's"


# --- nothing is refused


@pytest.mark.parametrize("said", [*WRONG, 10**400, -(10**400), 1e300])
def test_no_time_that_a_clock_may_say_is_refused(said: float) -> None:
    assert 0 <= validators.unix_time(said) <= validators.LAST_UNIX_TIME
    assert time.gmtime(validators.unix_time(said))


@pytest.mark.parametrize("said", WRONG)
def test_all_that_a_host_with_a_wrong_clock_says_is_read(said: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "time", lambda: said)
    asked = BuildRequest(srpm="a-1-1.src.rpm", arch="x86_64", target="c9.x86_64", disttag=".el9", submitter="j")
    whole = asked.with_id(1, "x86_64", b"", said).with_failed_attempt("b1.example.org", "no space left")
    assert BuildRequest.decode(whole.encode()) == whole
    attempt = message.new_attempt()
    times = {"started": said, "finished": said + 5, "due": said}
    told = event_for(whole, "Queued", attempt=attempt, phases=[{"name": "source", "start": said}], **times)
    assert decode_event(told.encode()) == told
    about: dict[str, Any] = {"pkgname": "a", "evr": "1-1", "builder_fqdn": "b1", "status": "Success", "arch": "x86_64"}
    made = Manifest(request=whole, attempt=attempt, started=said, finished=said + 5, **about)
    assert Manifest.from_json(json_message.parse_json(made.to_text().encode())) == made
    there = WorkerHeartbeat(host="b1", instance="1", state="idle", at=said)
    assert decode_event(there.encode()) == there


def test_looking_back_farther_than_there_are_builds_finds_them_all() -> None:
    for days in (7, 25_000, 550_000, 900_000):
        assert output.build_timestamp(NOW - days * 86400) < "2026", f"{days} days"


# --- an event that arrives


class Waited:
    """A claim on a job that was put some seconds ago."""

    def __init__(self, age: int = 0) -> None:
        self.age = age

    @property
    def stats(self) -> Waited:
        if self.age < 0:
            raise ReservationLost("gone")
        return self


def arrives(told: BuildEvent, age: int = 0) -> BuildEvent:
    found = correct_clock(cast("ReservedJob[Any]", Waited(age)), told)
    assert isinstance(found, BuildEvent)
    return found


@pytest.fixture
def today(monkeypatch: pytest.MonkeyPatch) -> None:
    """The controller's clock stands still."""
    monkeypatch.setattr(time, "time", lambda: NOW)


def test_an_event_of_a_right_clock_stays_as_it_is_however_long_it_waited(today: None) -> None:
    for age in (0, 5, 86400):
        told = event("Building", at=NOW - age - 1.5)
        assert arrives(told, age) is told
    late = event("Building", at=NOW - 7200)
    assert arrives(late, -1) is late, "its job is another's by now"


@pytest.mark.parametrize("ahead", [-NOW + 67, -7200.0, 6.0, FUTURE - NOW])
def test_the_time_of_a_wrong_clock_is_replaced_and_said(today: None, ahead: float) -> None:
    told = arrives(event("Building", at=NOW - 30 + ahead, started=NOW - 60 + ahead), 30)
    assert told.at == NOW - 30
    assert told.skew == pytest.approx(ahead, abs=0.01)
    assert told.started == NOW - 60 + ahead, "what it measured is its own"
    again = arrives(event("Queued", attempt=ATTEMPT, at=NOW + ahead, due=max(0.1, NOW + 10 + ahead)))
    assert again.at == NOW
    assert again.due == pytest.approx(NOW + 10, abs=0.2)
    assert again.skew == 0, "of no builder's times"


def test_what_was_put_right_stays_so_while_it_is_owed(today: None) -> None:
    owed = event("Building", at=NOW - 9000, skew=-7200.0, owed={"mqtt": 2})
    assert arrives(owed) is owed
    assert arrives(event("Building", at=NOW, skew=9.0)).skew == 0, "nobody else says it"
    word_of_a_person = event("Override", at=NOW - 9000)
    assert arrives(word_of_a_person) is word_of_a_person, "its time is a part of its name"


def test_a_line_of_a_wrong_clock_is_written_once_though_its_time_is_reckoned_anew(tmp_path: Path) -> None:
    sink = LogSink(tmp_path / "log")
    told = event("Success", at=7.0)
    first, second = shift_times(told, NOW), shift_times(told, NOW + 0.9)
    assert isinstance(first, BuildEvent)
    assert isinstance(second, BuildEvent)
    list(sink.deliver([Notification(first, news_kind(first))]))
    list(sink.deliver([Notification(second, news_kind(second), maybe_sent=True)]))
    sink.close()
    assert len((tmp_path / "log").read_text().splitlines()) == 1


# --- what the history makes of it


def leg(*events: tuple[float, BuildEvent]) -> BuildRecord:
    """The document after events, each put at a time by our clock."""
    (found,) = apply_events({}, [shift_times(told, put_at) for put_at, told in events]).values()
    return found


@pytest.mark.parametrize("clock", [7.0, NOW - 7200, FUTURE])
def test_the_last_put_holds_whatever_the_clock_of_who_put_it(clock: float) -> None:
    first = event("Queued", tube="x86_64", job=7, priority=1, at=NOW)
    again = event("Queued", tube="x86_64", job=9, priority=1, at=clock + 60, due=clock + 70, attempt=ATTEMPT)
    third = event("Queued", tube="x86_64", job=11, priority=1, at=NOW + 90, attempt=OTHER_ATTEMPT)
    found = leg((NOW, first), (NOW + 60, again))
    assert (found.job, found.queued_at, found.put_at, found.due) == (9, NOW, NOW + 60, NOW + 70)
    assert leg((NOW, first), (NOW + 60, again), (NOW + 90, third)).job == 11


def test_attempts_are_in_the_order_they_were_heard_of() -> None:
    ahead, behind = f"{int(FUTURE)}-0000000a", "60-0000000b"
    found = leg(
        (NOW, event("Building", at=FUTURE, started=FUTURE, attempt=ahead)),
        (NOW + 50, event("Queued", at=FUTURE + 50, attempt=ahead, reason="full", job=3)),
        (NOW + 60, event("Building", at=60, started=60, attempt=behind)),
    )
    assert [(each.attempt, each.heard) for each in found.attempts] == [(ahead, NOW), (behind, NOW + 60)]
    assert found.attempt == behind
    assert found.status == "Building"


def make_skewed(clock: float, took: float = 60, *, right_since: bool = False) -> BuildRecord:
    """Make a build of a builder whose clock showed this time at the start, after a wait of ten seconds."""
    end = NOW + took if right_since else clock + took
    return leg(
        (NOW - 10, event("Queued", at=NOW - 10, tube="x86_64", job=1, priority=1)),
        (NOW, event("Building", at=clock, started=clock)),
        (NOW + took, event("Success", at=end, started=clock, finished=end, exit_code=0)),
        (NOW + took + 1, event("Published", at=NOW + took + 1, started=clock, finished=end)),
    )


@pytest.mark.parametrize("clock", [7.0, NOW - 7200, NOW + 30, FUTURE])
def test_a_builder_whose_clock_is_off_is_counted_in_no_duration(clock: float) -> None:
    for right_since in (False, True):
        found = make_skewed(clock, right_since=right_since)
        assert found.skew
        assert found.attempts[0].skew
        assert found.duration is None
        assert found.wait is None
        told = compute_stats([found, make_skewed(NOW)]).every.to_dict()
        assert told["results"] == {"published": 2}
        assert told["build"]["count"] == told["wait"]["count"] == 1
        assert (told["build"]["total"], told["wait"]["total"]) == (60, 10)


def test_what_is_shown_of_it_is_timed_by_the_controller() -> None:
    building = leg(
        (NOW - 10, event("Queued", at=NOW - 10, tube="x86_64", job=1, priority=1)),
        (NOW, event("Building", at=7.0, started=7.0)),
    )
    assert building.attempt_start == NOW
    assert make_row(building, NOW + 42, None, None, None).elapsed == 42
    assert make_row(make_skewed(7.0), NOW + 99, None, None, None).elapsed is None
    assert make_row(make_skewed(NOW), NOW + 99, None, None, None).elapsed == 60
    right = leg((NOW, event("Building", at=NOW, started=NOW - 3)))
    assert right.attempt_start == NOW - 3


def test_it_is_said_where_the_times_of_a_build_are_shown() -> None:
    shown = "\n".join(format_build(BuildLegs(legs=[make_skewed(7200.0 + NOW)]), {"x86_64": "nothing"}, {}))
    assert "on builder1.example.org (its clock is 2 h 00 min ahead of the controller's)\n" in shown
    for line in shown.splitlines():
        assert not line.lstrip().startswith(("started", "finished", "published")) or "after" not in line


@pytest.mark.parametrize("clock", [60.0, NOW, FUTURE])
def test_a_span_of_a_worker_is_measured_by_one_clock_at_a_time(clock: float) -> None:
    there = WorkerHeartbeat(host="b1", instance="1", state="idle", at=clock)
    seen = WorkerRecord(heartbeat=there, last_seen=NOW)
    assert seen.seconds_since(clock - 50, NOW + 20) == 70
    assert seen.skew == (0 if clock == NOW else pytest.approx(clock - NOW))
    assert (
        WorkerRecord(heartbeat=WorkerHeartbeat(host="b1", instance="1", state="idle"), last_seen=NOW).seconds_since(
            NOW - 50, NOW
        )
        == 50
    )


# --- a builder that was at fault


@pytest.mark.parametrize(
    ("fault", "now", "age", "rests"),
    [
        (NOW, NOW + 1800, 900.0, 1800),  # another was at fault after it
        (NOW, NOW + 1800, 1800.0, 1800),
        (NOW, 60.0, 30.0, 30),  # started again without a clock
        (60.0, NOW + 40, 40.0, 40),  # its clock was set since
        (FUTURE, NOW + 40, 40.0, 40),
        (NOW, FUTURE, 40.0, FUTURE - NOW),  # nothing says that the clock is not right
    ],
)
def test_how_long_a_builder_rests_is_not_its_clocks_to_say(fault: float, now: float, age: float, rests: float) -> None:
    submitted = time.strftime(validators.TIMESTAMP_FORMAT, time.gmtime(NOW - 100))
    assert seconds_since_fault(submitted, fault, now, age) == rests


# --- the controller's own clock was put back


def test_what_builders_came_to_in_the_future_counts_as_now(tmp_path: Path) -> None:
    tables = QuarantineTables(tmp_path / "presence.sqlite")
    tables.add_attempt(event("Success", exit_code=0), FUTURE)
    tables.release("builder2.example.org", FUTURE)
    tables.save(QuarantinedBuilder(host="builder3.example.org", since=FUTURE, next=FUTURE))
    tables.limit_times(NOW, 86400.0)
    assert [ward.next for ward in tables.builders()] == [NOW]
    tables.add_attempt(
        event("Success", 2, exit_code=0, builder_fqdn="builder2.example.org", attempt=OTHER_ATTEMPT), NOW + 5
    )
    assert len(tables.attempts()) == 2
    tables.purge(NOW + 1)
    assert len(tables.attempts()) == 1
    tables.save(QuarantinedBuilder(host="builder3.example.org", since=NOW, next=NOW + 3600))
    tables.limit_times(NOW, 86400.0)
    assert tables.builders()[0].next == NOW + 3600, "as it was meant"
    tables.close()


# --- bstore


def lying(timestamp: str, filed: str = "20261101000000") -> tuple[StoredBuild, ManifestSummary]:
    place = f"repo/t.x86_64/time/{timestamp}/1.7-{timestamp}.x86_64"
    about = ManifestSummary(build_id="0" * 32, status="Success", filed=filed)
    return StoredBuild(place=place, target="t.x86_64", name="time", timestamp=timestamp, arch="x86_64"), about


def test_a_timestamp_that_no_right_clock_says_makes_a_build_neither_the_oldest_nor_the_newest() -> None:
    now = calendar.timegm((2026, 11, 22, 0, 0, 0))
    old, newest = lying("20261001000000"), lying("20261120000000")
    for timestamp in ("19700101000100", "19691231235900", "20990101000000"):
        between = lying(timestamp, "20261110000000")
        legs = dict([old, newest, between])
        assert choose_builds(legs, Pruning(keep=1), now) == [between[0], old[0]]
        assert choose_builds(legs, Pruning(keep=2), now) == [old[0]]
        assert choose_builds(legs, Pruning(keep=1, older=20 * 86400), now) == [old[0]]
    assert choose_builds(dict([old, newest]), Pruning(keep=1, older=86400), 60.0) == [], "a clock in 1970 drops nothing"


@pytest.fixture
def store(tmp_path: Path) -> StorePaths:
    made = StorePaths(tmp_path)
    fs.create_store_dirs(made)
    return made


def test_what_was_written_by_a_clock_that_was_not_set_is_kept_as_long_as_all_else(
    store: StorePaths, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As to this clock all that is there now was written in 1970, or is still to be written."""
    real = time.time()
    for folder in (store.attempts / "a", store.rejected / "b", store.live / "c", store.spool / "d"):
        folder.mkdir()
        (folder / "build.log").write_text("words")
    monkeypatch.setattr(fs, "EARLIEST_UNIX_TIME", real + 3600)
    for _ in range(2):
        assert not sweep_expired(store, Retention(attempts=1, rejected=1), real, CancelToken())
        assert sweep_live_logs(store, real - 2 * 86400) == 0
        assert not list(scan_spool(store, 1, real))
    monkeypatch.undo()
    before = os.lstat(store.live / "c").st_ctime
    monkeypatch.setattr(time, "time", lambda: real - 30 * 86400)  # the clock was ahead for a month
    assert fs.last_change(store.live / "c") == real - 30 * 86400
    monkeypatch.undo()
    assert os.lstat(store.live / "c").st_ctime > before, "it counts from then on"


def test_an_upload_of_the_future_is_taken_up_all_the_same(store: StorePaths, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = store.spool / "x"
    folder.mkdir()
    (folder / MANIFEST).write_text("{}")
    monkeypatch.setattr(time, "time", lambda: 1e9)
    fs.last_change(folder / MANIFEST)
    monkeypatch.undo()
    assert fs.last_change(folder / MANIFEST) == os.lstat(folder / MANIFEST).st_ctime

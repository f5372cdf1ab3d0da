# SPDX-License-Identifier: Apache-2.0
"""The history in a SQLite file."""

from __future__ import annotations

import contextlib
import os
import sqlite3
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from reimzul.core.failure_cause import find_cause
from reimzul.history import BuildFilter, History, HistoryUnavailable, NoHistory, open_history
from reimzul.history.sqlite import SqliteHistory, path_of
from tests.events import build_id, event
from tests.history_contract import HistoryContract


@pytest.fixture
def url(tmp_path: Path) -> str:
    """Of a file that is not there yet."""
    return f"sqlite:///{tmp_path}/notifier/history.sqlite"


@pytest.fixture
def history(url: str) -> Iterator[History]:
    """An empty one."""
    opened = open_history(url)
    yield opened
    opened.close()


@pytest.fixture
def age_causes(history: History, url: str) -> Callable[[], None]:
    """Have all causes stored by version 0 of the rule."""
    assert history is not None

    def age() -> None:
        aged = "json_set(document, '$.cause', '00000000', '$.cause_version', 0)"
        with contextlib.closing(sqlite3.connect(url[len("sqlite://") :], isolation_level=None)) as db:
            statement = f"UPDATE builds SET cause = '00000000', cause_version = 0, document = {aged} WHERE cause <> ''"
            db.execute(statement)

    return age


class TestSqlite(HistoryContract):
    """The suite."""


def test_a_reader_sees_what_the_writer_has_recorded_by_then(history: History, url: str) -> None:
    history.record([event("Building")])
    reader = open_history(url, reading=True)
    assert [document.status for document in reader.find_builds(BuildFilter(), 10)] == ["Building"]
    history.record([event("Success")])
    assert [document.status for document in reader.find_builds(BuildFilter(), 10)] == ["Success"]
    with pytest.raises(HistoryUnavailable, match="readonly"):
        reader.record([event("Success", 2)])
    reader.close()


def test_what_was_never_made_is_said_to_be_so(url: str) -> None:
    with pytest.raises(NoHistory, match=r"no builds are known yet.*history\.sqlite"):
        open_history(url, reading=True)


def test_what_is_no_database_is_away(tmp_path: Path) -> None:
    (tmp_path / "history.sqlite").write_text("these are only words, and many of them\n" * 100)
    with pytest.raises(HistoryUnavailable, match="not a database"):
        open_history(f"sqlite:///{tmp_path}/history.sqlite")


@contextlib.contextmanager
def as_somebody_else() -> Iterator[None]:
    """Root may read and write everything; a reader is not root."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


def test_who_may_only_read_can_read_while_no_notifier_runs() -> None:
    with tempfile.TemporaryDirectory() as folder:  # pytest's own lies below one that only its user may enter
        writer = open_history(f"sqlite:///{folder}/history.sqlite")
        writer.record([event("Success")])
        writer.close()
        os.chmod(folder, 0o555)
        with as_somebody_else():
            reader = open_history(f"sqlite:///{folder}/history.sqlite", reading=True)
            assert len(reader.find_builds(BuildFilter(), 10)) == 1
            reader.close()
        os.chmod(folder, 0o755)


@pytest.mark.usefixtures("impatient")
def test_a_writer_that_is_busy_is_waited_for(history: History, url: str) -> None:
    other = sqlite3.connect(url[len("sqlite:///") :], isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    began = time.monotonic()
    with pytest.raises(HistoryUnavailable, match="locked"):
        history.record([event("Success")])
    assert time.monotonic() - began < 10
    other.execute("ROLLBACK")
    history.record([event("Success")])
    other.close()


def test_the_builds_of_a_file_of_an_earlier_version_are_numbered(history: History, url: str) -> None:
    history.record([event("Success", 1), event("Success", 2)])
    history.close()
    with contextlib.closing(sqlite3.connect(url[len("sqlite://") :])) as db:
        db.executescript("DROP INDEX builds_changed; ALTER TABLE builds DROP COLUMN changed;")
    with (
        pytest.raises(HistoryUnavailable, match="no such column"),
        contextlib.closing(open_history(url, reading=True)) as reader,
    ):
        reader.last_change()
    with contextlib.closing(open_history(url)) as upgraded:
        assert len(upgraded.find_changed(0, 10)) == upgraded.last_change() == 2
        upgraded.record([event("Failed", 3, arch="i386")])
        assert [record.status for _, record in upgraded.find_changed(2, 10)] == ["Failed"]


def test_changes_are_found_by_an_index(history: History, url: str) -> None:
    history.record([event("Success")])
    with contextlib.closing(sqlite3.connect(url[len("sqlite://") :])) as db:
        plan = db.execute("EXPLAIN QUERY PLAN SELECT key FROM builds WHERE changed > 5 ORDER BY changed").fetchall()
    assert "USING INDEX builds_changed" in plan[0][-1] or "USING COVERING INDEX builds_changed" in plan[0][-1]


def make_earlier_version(url: str) -> None:
    """Take out of a history what an earlier version did not have."""
    with contextlib.closing(sqlite3.connect(url[len("sqlite://") :], isolation_level=None)) as db:
        db.execute("DROP INDEX builds_cause")
        for column in ("cause", "cause_version", "package"):
            db.execute(f"ALTER TABLE builds DROP COLUMN {column}")
        for name in (
            "cause",
            "cause_text",
            "cause_version",
            "newly_failing",
            "fixed",
            "previous_build",
            "previous_evr",
        ):
            db.execute(f"UPDATE builds SET document = json_remove(document, '$.{name}')")


def test_the_failures_of_a_file_of_an_earlier_version_get_their_causes(history: History, url: str) -> None:
    history.record([event("Failed", 1, reason="%build failed"), event("Rejected", 2, reason="x"), event("Success", 3)])
    history.record([event("Failed", 4, reason="damaged")])
    number = history.last_change()
    history.close()
    make_earlier_version(url)
    with contextlib.closing(sqlite3.connect(url[len("sqlite://") :], isolation_level=None)) as db:
        db.execute("UPDATE builds SET document = '{' WHERE key = ?", [event("Failed", 4).key])
    cause = find_cause("%build failed", "").id
    with contextlib.closing(open_history(url, reading=True)) as reader:
        assert [each.cause for each in reader.iterate_failures(BuildFilter(), cause)] == [cause]
        assert list(reader.iterate_failures(BuildFilter(), "00000000")) == []
    for _ in range(2):
        with contextlib.closing(open_history(url)) as upgraded:
            found = {each.build_id: each.cause for each in upgraded.find_builds(BuildFilter(), 10)}
            assert found == {build_id(1): cause, build_id(2): find_cause("x", "").id, build_id(3): ""}
            assert [each.build_id for each in upgraded.iterate_failures(BuildFilter())] == [build_id(1)]
            assert (upgraded.count_old_causes(), upgraded.last_change()) == (0, number), "no page shows anything else"
    with contextlib.closing(open_history(url)) as upgraded:
        upgraded.record([event("Failed", 5, reason="%build failed")])
        assert len(list(upgraded.iterate_failures(BuildFilter(), cause))) == 2


def test_a_record_that_is_damaged_does_not_stop_the_renewal_of_causes(
    history: History, url: str, age_causes: Callable[[], None]
) -> None:
    history.record([event("Failed", 1, reason="a"), event("Failed", 2, reason="b")])
    age_causes()
    with contextlib.closing(sqlite3.connect(url[len("sqlite://") :], isolation_level=None)) as db:
        db.execute("UPDATE builds SET document = '{' WHERE key = ?", [event("Failed", 1).key])
    found = history.find_old_causes(1)
    history.store_causes(found)
    assert (len(found), history.find_old_causes(1), history.count_old_causes()) == (1, {}, 0)
    assert [each.cause for each in history.find_builds(BuildFilter(), 10)] == [find_cause("b", "").id]


def test_a_salvaged_history_has_its_causes(history: History, url: str, tmp_path: Path) -> None:
    history.record([event("Failed", 1, reason="a")])
    history.close()
    make_earlier_version(url)
    with contextlib.closing(SqliteHistory(f"sqlite:///{tmp_path}/fresh.sqlite")) as fresh:
        assert fresh.salvage(path_of(url)) == 1
        assert [each.cause for each in fresh.iterate_failures(BuildFilter())] == [find_cause("a", "").id]

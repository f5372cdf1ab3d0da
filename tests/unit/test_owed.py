# SPDX-License-Identifier: Apache-2.0
"""What is owed to whom, as it is written beside the history."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from reimzul.history import NoHistory, PendingCount, open_history
from reimzul.notifier import owed
from reimzul.notifier.owed import Slate, Tries, summary
from tests.waiting import until

MQTT = PendingCount(sink="mqtt", count=3, oldest=10.0)
FEWER = PendingCount(sink="mqtt", count=1, oldest=12.0)


@pytest.fixture
def url(tmp_path: Path) -> str:
    """Of a history that is not there yet."""
    return f"sqlite:///{tmp_path}/notifier/history.sqlite"


@pytest.fixture
def slate(url: str) -> Iterator[Slate]:
    """One that writes there."""
    opened = Slate(url)
    yield opened
    opened.close()


def written(url: str) -> list[PendingCount]:
    """What is there to be read."""
    try:
        history = open_history(url, reading=True)
    except NoHistory:
        return []
    try:
        return history.pending_counts()
    finally:
        history.close()


def test_the_next_try_is_the_soonest_that_is_still_to_come() -> None:
    tries = Tries()
    tries.add(["mqtt", "log"], 20.0)
    tries.add(["mqtt"], 10.0)
    assert [tries.next("mqtt", now) for now in (5.0, 15.0, 25.0)] == [10, 20, None]
    assert (tries.next("log", 5.0), tries.next("mail", 5.0)) == (20, None)


def test_a_summary_is_by_sink() -> None:
    tries = Tries()
    tries.add(["mqtt"], 40.0)
    assert summary({"mqtt": (3, 10.25), "log": (1, 9.0)}, tries, 20.0) == [
        PendingCount(sink="log", count=1, oldest=9),
        PendingCount(sink="mqtt", count=3, oldest=10, next_try=40),
    ]


def test_the_newest_is_written(slate: Slate, url: str) -> None:
    slate.write([MQTT])
    until(lambda: written(url) == [MQTT], 5, "it is written")
    slate.write([FEWER])
    until(lambda: written(url) == [FEWER], 5, "so is the next")
    slate.write([])
    until(lambda: written(url) == [], 5, "and that nothing is owed")


def test_no_history_is_made_only_to_say_that_nothing_is_owed(slate: Slate, url: str, tmp_path: Path) -> None:
    slate.write([])
    slate.close()
    assert not (tmp_path / "notifier").exists()


def test_what_a_notifier_before_us_wrote_does_not_stay(url: str) -> None:
    before = open_history(url)
    before.save_pending_counts([MQTT])
    before.close()
    slate = Slate(url)
    slate.write([])
    slate.close()
    assert written(url) == []


def test_the_last_word_is_written_on_leaving(url: str) -> None:
    slate = Slate(url)
    slate.write([MQTT])
    slate.close()
    assert written(url) == [MQTT]


def test_a_history_that_cannot_be_written_is_tried_again(
    slate: Slate, url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(owed, "REST", 0.05)
    (tmp_path / "notifier").write_text("this is no folder\n")
    slate.write([MQTT])
    slate.write([FEWER])
    (tmp_path / "notifier").unlink()
    until(lambda: written(url) == [FEWER], 5, "the newest is written when that can be")

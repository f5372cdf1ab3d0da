# SPDX-License-Identifier: Apache-2.0
"""reimzul-pages with more to render than a round allows: what changes now comes first, and nothing waits for ever."""

from __future__ import annotations

import itertools
import json
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from reimzul.pages import daemon, follower
from reimzul.pages.index import Urgency
from tests.pages_batches import add_over, record_builds
from tests.pages_stand import PagesStand, build_events

_OLD_BUILDS = 120
#: Rounds after which the last changes of the old builds are shown.
_FIRST_ROUNDS = 3


@pytest.fixture
def stand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[PagesStand]:
    """A farm with old builds; a round renders some ten pages, and takes over a few changes."""
    ticks = itertools.count()
    monkeypatch.setattr(time, "process_time", lambda: 0.02 * next(ticks))
    monkeypatch.setattr(daemon, "_RENDER_BATCH", 1)
    stand = PagesStand(tmp_path)
    ended = time.time() - 90 * 86400
    for number in range(_OLD_BUILDS):
        stand.record(*build_events(number, ended + 60 * number, "Published", f"package{number % 9}"))
    yield stand
    stand.close()


def _state(stand: PagesStand, number: int) -> str:
    page = stand.page(number).with_suffix(".json")
    return json.loads(page.read_text())["arches"][0]["state"] if page.exists() else "no page"


def test_what_changes_now_is_shown_before_the_old_builds(stand: PagesStand) -> None:
    with stand.daemon() as running:
        for _ in range(_FIRST_ROUNDS):
            running.run_round()
        for number in range(200, 206):
            stand.record(*build_events(number, time.time(), "Building"))
            running.run_round()
            assert _state(stand, number) == "building", f"after {number - 199} rounds"
        assert running.sources.index.count_due(), "old builds are left"
        while running.sources.index.count_due():
            running.run_round()
    assert {_state(stand, number) for number in range(_OLD_BUILDS)} == {"published"}


def test_what_happens_now_is_shown_while_the_old_history_is_read(
    stand: PagesStand, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(follower, "_BATCH", 1)
    monkeypatch.setattr(follower, "_OVERLAP", 0)
    stand.record(*build_events(200, time.time(), "Building"))
    with stand.daemon() as running:
        running.run_round()
        assert int(running.sources.index.get_fact("followed")) < _OLD_BUILDS
        assert _state(stand, 200) == "building"


def test_pages_that_nobody_watches_are_rendered_although_there_are_always_others(stand: PagesStand) -> None:
    with stand.daemon() as running:
        running.run_round()
        index = running.sources.index
        index._execute("UPDATE pages SET due = 0 WHERE due IS NOT NULL")
        left = len(index.list_due(Urgency.BACKLOG, 1000))
        for number in range(0, 400, 20):
            for build in range(number, number + 20):
                stand.record(*build_events(1000 + build, time.time(), "Building", f"new{build}"))
            index._execute("UPDATE pages SET due = 0 WHERE due IS NOT NULL")
            running.run_round()
        assert len(index.list_due(Urgency.WATCHED, 1000)) > 100, "there are always others"
        assert len(index.list_due(Urgency.BACKLOG, 1000)) < left
        assert list((stand.pages / "packages").glob("new*.html"))


def test_the_builds_of_a_batch_that_gets_its_page_wait_for_changes_of_now(stand: PagesStand) -> None:
    batch = add_over(stand)
    record_builds(stand, batch)
    with stand.daemon() as running:
        while not (stand.pages / "batches" / f"{batch.plan.batch}.html").exists():
            running.run_round()
        for number in (200, 201):
            stand.record(*build_events(number, time.time(), "Building"))
            running.run_round()
            assert _state(stand, number) == "building"

# SPDX-License-Identifier: Apache-2.0
"""The pages of batches: what they show, and when they are rendered."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from reimzul.core.batch_message import OrderKind
from reimzul.pages import batch_pages
from reimzul.plan.document import journal_path, plan_path
from reimzul.plan.state import BatchState
from tests.batches import key, member
from tests.pages_batches import (
    OVER,
    OVER_MEMBERS,
    RESTING,
    RUNNING,
    add_batch,
    add_over,
    add_resting,
    add_running,
    record_builds,
)
from tests.pages_stand import PagesStand, build_events


@pytest.fixture
def stand(tmp_path: Path) -> Iterator[PagesStand]:
    stand = PagesStand(tmp_path)
    yield stand
    stand.close()


def _read(stand: PagesStand, path: str) -> Any:
    return json.loads((stand.pages / path).read_text())


def _html(stand: PagesStand, batch: str) -> str:
    return (stand.pages / f"batches/{batch}.html").read_text()


def _build_page(stand: PagesStand, build_id: str) -> str:
    return f"builds/{build_id[:2]}/{build_id}.html"


def _check_links(stand: PagesStand) -> None:
    for path in stand.pages.rglob("*.html"):
        for href in re.findall(r'href="([^"#?/][^"#?]*)["#?]', path.read_text()):
            assert (path.parent / href).resolve().exists(), f"{path}: {href}"


# --- what they show


def test_a_batch_is_shown_with_its_counts_causes_and_members(stand: PagesStand) -> None:
    batch = add_running(stand)
    stand.beat("b1.example.org")
    stand.render()
    value = _read(stand, f"batches/{RUNNING}.json")
    assert (value["state"], value["total"], value["good"]) == ("running", 33, 1)
    assert value["counts"] == {"held": 28, "released": 1, "building": 1, "published": 1, "failed": 2}
    assert value["chain"][:2] == [key("qt6-qtbase"), key("dolphin")]
    assert value["expected_end"]
    assert [(each["members"], each["blocked"]) for each in value["causes"]] == [([key("six")], 5), ([key("boost")], 1)]
    assert [each["member"] for each in value["members"][:2]] == [key("qt6-qtbase"), key("krb5")]
    html = _html(stand, RUNNING)
    assert "nobody provides python3dist(hatchling)" in html
    assert f'href="../{_build_page(stand, batch.state.members[key("six")].build_id)}"' in html


def test_the_tree_shows_who_waits_for_whom_and_says_where_it_is_cut(stand: PagesStand) -> None:
    add_running(stand)
    stand.render()
    tree = re.search(r'<ul class="tree">(.*?)</section>', _html(stand, RUNNING), re.DOTALL)
    assert tree
    rows = re.findall(r"<li(?: class=\"cut\")?>(?:<a [^>]*>)?([\w. -]+)", tree[1])
    assert [each.strip() for each in rows[:3]] == [key("qt6-qtbase"), key("dolphin"), key("kde-app0")]
    assert "22 behind it" in tree[1]
    assert rows.count("and more") == 1
    assert tree[1].count("<ul>") == tree[1].count("</ul>") - 1


def test_a_batch_of_more_members_has_all_of_them_on_parts(stand: PagesStand) -> None:
    add_over(stand)
    stand.render()
    value = _read(stand, f"batches/{OVER}.json")
    assert len(value["members"]) == batch_pages.MAX_MEMBERS
    parts = [_read(stand, path.replace(".html", ".json")) for path in value["parts"]]
    names = [one["member"] for each in parts for one in each["members"]]
    assert names == [key(f"perl-{number:03}") for number in range(OVER_MEMBERS)]
    assert parts[1]["before"] == f"batches/{OVER}-1.html"
    assert parts[1]["after"] == f"batches/{OVER}-3.html"
    assert all(path.stat().st_size < 100_000 for path in stand.pages.glob("batches/*.html"))


def test_batches_are_listed_with_the_newest_first_and_unfinished_ones_on_the_first_page(stand: PagesStand) -> None:
    add_over(stand)
    add_resting(stand)
    add_running(stand)
    stand.render()
    rows = _read(stand, "batches.json")["batches"]
    assert [(each["batch"], each["state"]) for each in rows] == [
        (RUNNING, "running"), (RESTING, "resting"), (OVER, "over"),
    ]  # fmt: skip
    assert [each["batch"] for each in _read(stand, "index.json")["batches"]] == [RUNNING, RESTING]
    assert f'href="./batches/{RUNNING}.html"' in (stand.pages / "index.html").read_text()
    _check_links(stand)


def test_a_scratch_batch_names_the_members_that_fail_newly(stand: PagesStand) -> None:
    """One package was built before and fails now, one failed before, one is new, and one had only a scratch build."""
    batch = add_batch(stand, RESTING, *map(member, ("built", "broken", "new", "tried")), scratch=True)
    about = {"target": "c9s.x86_64", "arch": "x86_64"}
    earlier: tuple[tuple[str, str, dict[str, Any]], ...]
    earlier = (("built", "Published", {}), ("broken", "Failed", {}), ("tried", "Published", {"scratch": True}))
    for number, (name, result, more) in enumerate(earlier):
        stand.record(*build_events(number, time.time() - 90_000, result, name, **about, **more))
    for name in ("built", "broken", "new", "tried"):
        batch.fail(key(name), "boom")
    record_builds(stand, batch)
    stand.render()
    assert _read(stand, f"batches/{RESTING}.json")["newly_failing"] == [key("built")]
    text = re.sub(r"<[^>]*>|\s+", " ", _html(stand, RESTING))
    assert re.search(r"Newly failing: built before +1 of 4 that failed: +built\.x86_64", text)


def test_a_batch_is_found_by_its_id_until_its_files_are_gone(stand: PagesStand) -> None:
    add_running(stand)
    stand.render()
    assert _read(stand, "search.json")["batch"] == [RUNNING]
    plan_path(stand.incoming, RUNNING).unlink()
    stand.render()
    assert _read(stand, "search.json")["batch"] == []


def test_a_long_list_of_batches_is_cut(stand: PagesStand, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batch_pages, "MAX_BATCHES", 2)
    for number in range(5):
        add_batch(stand, f"{number:08x}", member("gcc"), ago=100.0 * number)
    stand.render()
    paths, path = [], "batches.json"
    while path:
        found = _read(stand, path)
        paths += [each["batch"] for each in found["batches"]]
        path = (found["older"] or "").replace(".html", ".json")
    assert paths == [f"{number:08x}" for number in range(5)]
    plan_path(stand.incoming, f"{4:08x}").unlink()
    stand.render()
    assert not (stand.pages / "batches/older-3.html").exists()


def test_a_build_and_its_batch_link_each_other_whichever_is_known_first(stand: PagesStand) -> None:
    stand.start_nginx_without_pages()  # a page that waits for its files would be rendered again anyway
    batch = add_batch(stand, RUNNING, member("gcc"))
    batch.build(key("gcc"))
    batch.finish()
    stand.render()
    build_id = batch.state.members[key("gcc")].build_id
    assert build_id not in _html(stand, RUNNING)
    record_builds(stand, batch)
    stand.render()
    link = f'href="../../batches/{RUNNING}.html"'
    assert f"{build_id}.html" in _html(stand, RUNNING)
    assert link in (stand.pages / _build_page(stand, build_id)).read_text()
    plan = plan_path(stand.incoming, RUNNING)
    plan.rename(stand.folder / "plan")
    stand.render()
    assert link not in (stand.pages / _build_page(stand, build_id)).read_text()
    (stand.folder / "plan").rename(plan)
    stand.render()
    assert link in (stand.pages / _build_page(stand, build_id)).read_text()


# --- when they are rendered


def test_a_batch_is_rendered_when_its_journal_grows_and_no_more_when_it_is_over(stand: PagesStand) -> None:
    batch = add_batch(stand, RUNNING, member("gcc"), member("qt", "gcc"))
    batch.order(OrderKind.PAUSE, why="the night")  # one that runs is rendered again anyway
    with stand.daemon() as daemon:
        stand.render(daemon)
        assert _read(stand, f"batches/{RUNNING}.json")["good"] == 0
        assert "pause by johnny: the night" in _html(stand, RUNNING)
        batch.build(key("gcc"))
        stand.render(daemon)
        assert _read(stand, f"batches/{RUNNING}.json")["good"] == 1
        batch.order(OrderKind.RESUME)
        batch.build(key("qt"))
        batch.finish()
        stand.render(daemon)
        made = (stand.pages / f"batches/{RUNNING}.html").stat().st_ino
        stand.beat("b1.example.org")
        stand.render(daemon)
        assert daemon.sources.index.select("SELECT due FROM pages WHERE kind = 'batch'") == [(None,)]
    stand.render()
    assert (stand.pages / f"batches/{RUNNING}.html").stat().st_ino == made


def test_a_journal_is_read_once(stand: PagesStand, monkeypatch: pytest.MonkeyPatch) -> None:
    applied = []
    apply = BatchState.apply
    batch = add_batch(stand, RUNNING, member("gcc"))

    def note_and_apply(state: BatchState, entry: Mapping[str, Any]) -> None:
        applied.append(entry["kind"])
        apply(state, entry)

    monkeypatch.setattr(BatchState, "apply", note_and_apply)
    with stand.daemon() as daemon:
        stand.render(daemon)
        assert applied == ["accepted", "put"]
        batch.release(key("gcc"))
        stand.render(daemon)
    assert applied == ["accepted", "put", "released", "released"]  # the test's own state, and the daemon's


def test_a_batch_whose_files_are_gone_loses_its_pages(stand: PagesStand) -> None:
    over, running = add_over(stand), add_running(stand)
    stand.render()
    assert len(list(stand.pages.glob("batches/*.html"))) == 5
    for each in (over, running):
        plan_path(stand.incoming, each.plan.batch).unlink()
        journal_path(stand.incoming, each.plan.batch).unlink()
    stand.render()
    assert list(stand.pages.glob("batches/*")) == []
    assert _read(stand, "batches.json")["batches"] == _read(stand, "index.json")["batches"] == []
    build_id = running.state.members[key("six")].build_id
    _check_links(stand)
    assert "batches/" not in (stand.pages / _build_page(stand, build_id)).read_text()


def test_a_batch_that_cannot_be_read_stays_as_it_was_and_stops_no_other(stand: PagesStand) -> None:
    add_resting(stand)
    add_running(stand)
    stand.render()
    before = _html(stand, RUNNING)
    plan_path(stand.incoming, RUNNING).write_text("{}")
    add_batch(stand, OVER, member("gcc"))
    stand.render()
    assert _html(stand, RUNNING) == before
    assert _read(stand, f"batches/{OVER}.json")["total"] == 1
    assert RUNNING in [each["batch"] for each in _read(stand, "batches.json")["batches"]]


def test_a_host_without_incoming_has_all_other_pages(stand: PagesStand) -> None:
    stand.render()
    assert "There is no batch." in (stand.pages / "batches.html").read_text()
    assert (stand.pages / "index.html").exists()


def test_the_pages_of_a_folder_that_cannot_be_listed_stay(stand: PagesStand, monkeypatch: pytest.MonkeyPatch) -> None:
    add_resting(stand)
    with stand.daemon() as daemon:
        stand.render(daemon)

        def fail(*_: object) -> None:
            raise PermissionError(13, "Permission denied")

        monkeypatch.setattr("reimzul.pages.sources.list_batch_stamps", fail)
        stand.render(daemon)
    assert (stand.pages / f"batches/{RESTING}.html").exists()


def test_a_retried_member_is_shown_with_its_new_build(stand: PagesStand) -> None:
    batch = add_running(stand)
    stand.render()
    batch.order(OrderKind.RETRY, key("six"))
    batch.put(key("six"))
    batch.fail(key("six"), "the disk is full")
    record_builds(stand, batch)
    stand.render()
    assert f"{batch.state.members[key('six')].build_id}.html" in _html(stand, RUNNING)
    assert "hatchling" not in _html(stand, RUNNING)

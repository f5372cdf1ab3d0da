# SPDX-License-Identifier: Apache-2.0
"""reimzul-pages: what it renders when, and what is left where it is killed or the history is away."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import random
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Callable

import attr
import pytest

from reimzul.history import open_history
from reimzul.pages.index import PageIndex
from reimzul.pages.page_kinds import PAGE_KINDS
from tests.events import build_id
from tests.mongo import mongo_or_say_so
from tests.pages_stand import PagesStand, build_events
from tests.waiting import until

PROGRAM = Path(sys.executable).parent / "reimzul-pages"
_HOUR = 3600.0


@pytest.fixture
def stand(tmp_path: Path) -> Iterator[PagesStand]:
    stand = PagesStand(tmp_path)
    yield stand
    stand.close()


def _record(stand: PagesStand, count: int, result: str = "Published", first: int = 0) -> None:
    """Builds that ended two hours ago and before, an hour apart."""
    now = time.time()
    events = [
        each
        for number in range(first, first + count)
        for each in build_events(number, now - _HOUR * (first + count + 1 - number), result)
    ]
    stand.record(*events)


def _links(path: Path) -> set[str]:
    return set(re.findall(r'href="([^"#?/][^"#?]*)["#?]', path.read_text()))


def _check_whole(stand: PagesStand) -> None:
    """No page is half, has no JSON beside it, or leads nowhere."""
    for path in stand.pages.rglob("*.html"):
        assert path.read_text().endswith("</html>\n") or path.read_text().endswith("</html>"), path
        json.loads(path.with_suffix(".json").read_text())
        for href in _links(path):
            assert (path.parent / href).resolve().exists(), f"{path}: {href}"
    for path in [*stand.pages.rglob("*.atom"), *stand.pages.rglob("*.svg")]:
        ElementTree.parse(path)


# --- what is rendered when


def test_a_build_is_shown_from_its_submission_to_its_end(stand: PagesStand) -> None:
    now = time.time()
    states = []
    for result in ("Queued", "Building", "Failed"):
        stand.record(*build_events(1, now, result))
        stand.render()
        states.append(json.loads(stand.page(1).with_suffix(".json").read_text())["arches"][0]["state"])
    assert states == ["queued", "building", "failed"]
    _check_whole(stand)


def test_a_page_of_a_build_that_is_over_is_rendered_once(stand: PagesStand) -> None:
    stand.start_nginx_without_pages()
    _record(stand, 3)
    stand.render()
    before = stand.page(1).stat().st_ino
    stand.record(*build_events(9, time.time(), "Failed"))
    stand.render()
    assert stand.page(1).stat().st_ino == before
    assert "1.9-1.el9" in (stand.pages / "packages/time.html").read_text()


def test_how_long_a_build_usually_takes_is_what_others_took(stand: PagesStand) -> None:
    _record(stand, 1)
    stand.render()
    assert "usually" not in stand.page(0).read_text()
    _record(stand, 1, first=1)
    stand.render()
    assert "5 min 00 s (usually 5 min 00 s)" in stand.page(1).read_text()


def test_feeds_and_badges_say_what_failed(stand: PagesStand) -> None:
    now = time.time()
    stand.record(*build_events(1, now - 500, "Published"), *build_events(2, now - 400, "Failed", "bash"))
    stand.render()
    feed = ElementTree.parse(stand.pages / "feeds/c9s.x86_64.atom").getroot()
    atom = "{http://www.w3.org/2005/Atom}"
    (entry,) = feed.findall(f"{atom}entry")
    assert "bash 1.2-1.el9 failed on x86_64" in (entry.findtext(f"{atom}title") or "")
    link = entry.find(f"{atom}link")
    assert link is not None
    assert link.get("href") == stand.url_of(2)
    assert ">published<" in (stand.pages / "badges/c9s.x86_64/time.svg").read_text()
    assert ">failed<" in (stand.pages / "badges/c9s.x86_64/bash.svg").read_text()


def test_causes_group_what_failed_alike(stand: PagesStand) -> None:
    now = time.time()
    missing = {"reason": "nobody provides: six", "error_line": "", "first_error": "no six"}
    for number in range(3):
        stand.record(*build_events(number, now - number, "Failed", f"p{number}", **missing))
    stand.record(*build_events(7, now - 90, "Failed"))
    stand.render()
    first, second = json.loads((stand.pages / "causes.json").read_text())["causes"]
    assert (first["message"], first["builds"], first["packages"]) == ("nobody provides six", 3, 3)
    assert second["builds"] == 1
    assert f'id="c-{first["cause"]}"' in (stand.pages / "causes.html").read_text()
    assert f"causes.html#c-{first['cause']}" in stand.page(0).read_text()


def test_a_page_says_what_is_newly_failing_and_what_is_fixed(stand: PagesStand) -> None:
    now, before = time.time(), {"previous_build": build_id(9), "previous_evr": "1.1-1.el9"}
    stand.record(*build_events(1, now - 90, "Failed", newly_failing=True, **before))
    stand.record(*build_events(2, now - 80, "Failed", newly_failing=False, **before))
    stand.render()
    assert f"Newly failing; last built 1.1-1.el9 as build {build_id(9)[:8]}" in stand.page(1).read_text()
    assert "ewly failing" not in stand.page(2).read_text()


def test_a_worker_is_shown_with_what_it_does_and_why_it_does_nothing(stand: PagesStand) -> None:
    stand.beat("b1.example.org")
    stand.beat("b2.example.org", "drained", why="drained by johnny: new disk")
    stand.render()
    now = (stand.pages / "index.html").read_text()
    assert "nothing waits for x86_64" in now
    assert "drained by johnny: new disk" in (stand.pages / "builders/b2.example.org.html").read_text()
    assert json.loads((stand.pages / "search.json").read_text())["builder"] == ["b1.example.org", "b2.example.org"]


def test_a_page_that_cannot_be_rendered_stops_no_other(stand: PagesStand, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise KeyError("a bug")

    monkeypatch.setitem(PAGE_KINDS, "package", attr.evolve(PAGE_KINDS["package"], render=fail))
    _record(stand, 2)
    stand.render()
    assert stand.page(0).exists()
    assert not (stand.pages / "packages/time.html").exists()


# --- long lists


def test_a_long_list_is_cut_and_every_build_is_on_one_part(stand: PagesStand) -> None:
    _record(stand, 450)
    stand.render()
    head = stand.pages / "targets/c9s.x86_64.html"
    seen: list[str] = []
    page, pages = head, []
    while True:
        rows = re.findall(r'<td><a href="[^"]*builds/../([0-9a-f]{32})\.html"', page.read_text())
        assert 0 < len(rows) <= 200
        seen += rows
        pages.append(page)
        older = re.search(r'rel="next" href="([^"]+)"', page.read_text())
        if not older:
            break
        page = (page.parent / older[1]).resolve()
    assert sorted(seen) == sorted(build_id(number) for number in range(450))
    assert len(pages) == 4
    _check_whole(stand)
    inodes = [each.stat().st_ino for each in pages]
    stand.history.override("time-1.449-1.el9.src.rpm", "c9s.x86_64", "x86_64", "known")  # the latest
    stand.history.override("time-1.5-1.el9.src.rpm", "c9s.x86_64", "x86_64", "known", build_id(5))  # of the oldest part
    stand.render()
    changed = [each.stat().st_ino != inode for each, inode in zip(pages, inodes)]
    assert changed == [True, False, False, True]


# --- the store


def test_files_are_listed_until_they_are_pruned(stand: PagesStand) -> None:
    folder = stand.add_files(0, "time-1.0-1.el9.x86_64.rpm", "mock.cfg")
    stand.start_nginx()
    _record(stand, 1)
    stand.render()
    page = stand.page(0).read_text()
    assert re.search(
        r'href="/bstore/repo/c9s\.x86_64/time/\d+/1\.0-1\.el9\.x86_64/time-1\.0-1\.el9\.x86_64\.rpm"', page
    )
    assert "a" * 64 in page
    assert "mock.cfg" in page
    assert "mock.cfg</a>" not in page, "it may have credentials of version 0.1"
    shutil.rmtree(folder)
    with sqlite3.connect(stand.pages / ".index/pages.sqlite") as index:
        index.execute("UPDATE checks SET due = 0")
    stand.render()
    page = stand.page(0).read_text()
    assert "Pruned:" in page
    assert "/bstore/" not in page
    assert json.loads(stand.page(0).with_suffix(".json").read_text())["pruned"] is True


def test_builds_that_are_pruned_together_are_noticed_together(stand: PagesStand) -> None:
    folders = [stand.add_files(number, "time.rpm") for number in range(12)]
    stand.start_nginx()
    _record(stand, 12)
    stand.render()
    for folder in folders[2:]:
        shutil.rmtree(folder)
    with sqlite3.connect(stand.pages / ".index/pages.sqlite") as index:
        index.execute("UPDATE checks SET checked = checked - 7200")
        index.execute("UPDATE checks SET due = 0 WHERE build_id = ?", [build_id(5)])
    with stand.daemon() as daemon:
        for _ in range(6):
            daemon.run_round()
        stand.render(daemon)
    pruned = [json.loads(stand.page(number).with_suffix(".json").read_text())["pruned"] for number in range(12)]
    assert pruned == [False] * 2 + [True] * 10
    with sqlite3.connect(stand.pages / ".index/pages.sqlite") as index:
        left = index.execute("SELECT count(*) FROM checks WHERE gone = 0 AND due < ?", [time.time() + 3600]).fetchone()
        assert left == (0,), "a build is not looked for again and again"


def test_without_the_store_a_page_says_so_and_is_rendered_again(stand: PagesStand) -> None:
    _record(stand, 1)
    stand.render()
    assert "The store does not answer now" in stand.page(0).read_text()
    with sqlite3.connect(stand.pages / ".index/pages.sqlite") as index:
        assert index.execute("SELECT count(*) FROM pages WHERE kind = 'build' AND due IS NOT NULL").fetchone() == (1,)


# --- the history


def test_a_history_that_is_away_leaves_the_pages_with_a_line_about_their_age(stand: PagesStand) -> None:
    _record(stand, 2)
    with stand.daemon() as daemon:
        stand.render(daemon)
        before = stand.page(0).read_text()
        file, aside = stand.folder / "history.sqlite", stand.folder / "aside"
        stand.history.close()
        file.rename(aside)
        stand.render(daemon)
        page = (stand.pages / "index.html").read_text()
        assert "The history cannot be read" in page
        assert re.search(r"These pages are as of <time", page)
        assert stand.page(0).read_text() == before
        aside.rename(file)
        stand.history = open_history(stand.history_url)
        stand.record(*build_events(7, time.time(), "Failed"))
        stand.render(daemon)
        assert "cannot be read" not in (stand.pages / "index.html").read_text()
        assert stand.page(7).exists()


def test_a_farm_that_has_built_nothing_yet_has_pages_that_are_fresh(stand: PagesStand) -> None:
    for file in stand.folder.glob("history.sqlite*"):
        file.unlink()
    stand.render()
    status = json.loads((stand.pages / "status.json").read_text())
    assert status["problem"] is None
    assert "cannot be read" not in (stand.pages / "index.html").read_text()
    assert re.fullmatch(r"20\d\d-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z", status["made"])


def test_builds_that_the_history_has_no_more_lose_their_pages(stand: PagesStand) -> None:
    _record(stand, 4)
    stand.record(*build_events(9, time.time() - 9000, "Failed", "bash"))
    stand.render()
    with sqlite3.connect(stand.folder / "history.sqlite") as db:
        db.execute("DELETE FROM builds WHERE key LIKE ? OR key LIKE ?", [f"{build_id(9)}%", f"{build_id(2)}%"])
    with sqlite3.connect(stand.pages / ".index/pages.sqlite") as index:
        index.execute("DELETE FROM facts WHERE name LIKE 'sw%'")
    for _ in range(3):
        stand.render()
    assert not stand.page(9).exists()
    assert not stand.page(2).exists()
    assert not (stand.pages / "packages/bash.html").exists()
    assert json.loads((stand.pages / "search.json").read_text())["package"] == ["time"]
    _check_whole(stand)


def test_a_history_from_a_backup_is_followed_from_its_beginning(stand: PagesStand) -> None:
    _record(stand, 2)
    stand.history.close()
    shutil.copy(stand.folder / "history.sqlite", stand.folder / "backup")
    stand.history = open_history(stand.history_url)
    _record(stand, 3, first=10)
    stand.render()
    stand.history.close()
    for suffix in ("", "-wal", "-shm"):
        (stand.folder / f"history.sqlite{suffix}").unlink(missing_ok=True)
    shutil.copy(stand.folder / "backup", stand.folder / "history.sqlite")
    stand.history = open_history(stand.history_url)
    stand.record(*build_events(20, time.time() - 5000, "Failed"))
    for _ in range(4):
        stand.render()
    assert [stand.page(number).exists() for number in (0, 1, 10, 11, 12, 20)] == [True, True, False, False, False, True]
    _check_whole(stand)


def test_names_that_are_no_file_names_have_no_page_and_no_link(stand: PagesStand) -> None:
    _record(stand, 1)
    _record(stand, 1, first=1)
    stand.forge(0, pkgname="../../escaped", target="/etc", builder_fqdn="..")
    stand.forge(1, build_id="../../escaped")
    stand.render()
    _check_whole(stand)
    assert not list(stand.folder.rglob("*escaped*"))
    assert not (stand.pages / "packages").exists()
    assert not stand.page(1).exists()
    assert "../../escaped" in stand.page(0).read_text()


# --- the program


def _start(stand: PagesStand) -> subprocess.Popen[bytes]:
    return subprocess.Popen([PROGRAM, "--config", stand.ini], stderr=subprocess.DEVNULL)


@pytest.mark.slow
def test_killed_at_any_moment_it_leaves_no_half_page_and_catches_up(stand: PagesStand) -> None:
    _record(stand, 200)
    stand.start_nginx_without_pages()
    chance = random.Random(4)
    for turn in range(8):
        process = _start(stand)
        time.sleep(chance.uniform(0.3, 1.2))  # any moment: nothing is waited for
        process.kill()
        process.wait()
        for path in stand.pages.rglob("*.html"):
            assert path.read_text().rstrip().endswith("</html>"), path
        stand.record(*build_events(1000 + turn, time.time() - 8000, "Failed"))
    process = _start(stand)
    until(lambda: all(stand.page(number).exists() for number in [*range(200), *range(1000, 1008)]), 60, "it catches up")
    process.send_signal(signal.SIGTERM)
    assert process.wait(10) == 0
    stand.render()
    _check_whole(stand)
    rows = {row["build_id"] for row in json.loads((stand.pages / "targets/c9s.x86_64.json").read_text())["rows"]}
    assert {build_id(number) for number in range(1000, 1008)} <= rows


class _Killed(BaseException):
    """Stands for SIGKILL: nothing of the daemon handles it."""


def _kill_at(patch: pytest.MonkeyPatch, step: int) -> None:
    """Have the daemon killed before its n-th rename of a file, or change of its index."""
    left = [step]

    def count(function: Callable[..., Any]) -> Callable[..., Any]:
        def call_or_die(*given: Any, **more: Any) -> Any:
            left[0] -= 1
            if left[0] == 0:
                raise _Killed
            return function(*given, **more)

        return call_or_die

    patch.setattr(os, "replace", count(os.replace))
    patch.setattr(PageIndex, "_execute", count(PageIndex._execute))


@pytest.mark.slow
def test_killed_before_any_write_it_catches_up(stand: PagesStand) -> None:
    _record(stand, 3)
    stand.record(*build_events(9, time.time() - 9000, "Failed", "bash"))
    stand.start_nginx_without_pages()
    for step in itertools.count(1, 17):
        shutil.rmtree(stand.pages)
        with pytest.MonkeyPatch.context() as patch:
            _kill_at(patch, step)
            try:
                stand.render()
                break  # there are no more steps
            except _Killed:
                pass
        stand.render()
        assert all(stand.page(number).exists() for number in (0, 1, 2, 9)), step
        for name in ("packages/time", "packages/bash", "targets/c9s.x86_64", "causes", "stats", "search", "index"):
            assert (stand.pages / f"{name}.json").exists(), f"{name} at {step}"
        _check_whole(stand)
    assert step > 50


def test_a_page_that_cannot_be_written_stays_as_it_was(stand: PagesStand, monkeypatch: pytest.MonkeyPatch) -> None:
    _record(stand, 1)
    stand.render()
    before = stand.page(0).read_text()
    stand.history.override("time-1.0-1.el9.src.rpm", "c9s.x86_64", "x86_64", "known")
    with monkeypatch.context() as patch, stand.daemon() as daemon:
        patch.setattr(os, "replace", _fail_to_write)
        with pytest.raises(OSError, match="no room"):
            daemon.run_round()
        assert stand.page(0).read_text() == before
        assert not list(stand.pages.rglob("builds/*/.*.new"))
    stand.render()
    assert "known" in stand.page(0).read_text()


def _fail_to_write(*_: object) -> None:
    raise OSError("no room")


def test_the_history_may_be_in_mongodb(stand: PagesStand) -> None:
    mongo = mongo_or_say_so()
    mongo.start()
    try:
        with contextlib.closing(open_history(mongo.url)) as history:
            history.record(build_events(1, time.time(), "Building"))
            text = stand.ini.read_text().replace(stand.history_url, mongo.url)
            stand.ini.write_text(text)
            with stand.daemon() as daemon:
                stand.render(daemon)
                assert json.loads(stand.page(1).with_suffix(".json").read_text())["arches"][0]["state"] == "building"
                history.record(build_events(1, time.time(), "Failed"))
                stand.render(daemon)
                assert json.loads(stand.page(1).with_suffix(".json").read_text())["arches"][0]["state"] == "failed"
    finally:
        mongo.stop()


def test_a_second_daemon_is_refused(stand: PagesStand) -> None:
    with stand.daemon():
        done = subprocess.run([PROGRAM, "--config", stand.ini], capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 3
    assert "another reimzul-pages writes to" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("first", [0, 3], ids=["header", "middle"])
def test_a_damaged_index_is_made_again(stand: PagesStand, first: int) -> None:
    _record(stand, 60)
    stand.render()
    index = stand.pages / ".index/pages.sqlite"
    whole = index.read_bytes()
    index.write_bytes(whole[: first * 4096] + b"\xa5" * (len(whole) - first * 4096))
    stand.page(1).unlink()
    process = _start(stand)
    until(lambda: stand.page(1).exists(), 60, "the page is made again")
    process.send_signal(signal.SIGTERM)
    assert process.wait(10) == 0

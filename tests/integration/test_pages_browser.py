# SPDX-License-Identifier: Apache-2.0
"""The pages in a headless Chromium: what a person sees and can do, with scripts and without."""

from __future__ import annotations

import gzip
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Callable

import pytest

from reimzul.core.message import CurrentBuild, Phase
from reimzul.pages.rendering import render_json
from tests.browser import LAPTOP, TELEPHONE, Tab, open_browser
from tests.events import ATTEMPT, build_id
from tests.pages_batches import OVER, RESTING, RUNNING, add_over, add_resting, add_running
from tests.pages_stand import ERROR_LINE, PagesStand, build_events
from tests.waiting import until

_CHECKERS = Path(sys.prefix) / "share"
AXE, VNU = _CHECKERS / "axe-core" / "axe.min.js", _CHECKERS / "vnu-jar" / "vnu.jar"
_FAILED, _PUBLISHED, _RUNNING, _QUEUED, _HOSTILE, _GZIPPED, _LONG = 3, 2, 40, 41, 42, 43, 44
#: A name, a reason or a line of a log of somebody who wants a page to do something.
_EVIL = "<script>alert(1)</script>\"'><img src=x onerror=alert(2)>\u202egnp.exe\u2066 {{ 7*7 }}"
Browser = Callable[[], AbstractContextManager[Tab]]


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with open_browser() as opened:
        yield opened


@pytest.fixture
def tab(browser: Browser) -> Iterator[Tab]:
    with browser() as opened:
        yield opened


@pytest.fixture(scope="module")
def stand(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PagesStand]:
    """A farm with builds of every kind."""
    stand = PagesStand(tmp_path_factory.mktemp("pages"))
    now = time.time()
    for number in range(12):
        ended = now - 86400 * 5 + 3600 * number
        phases = (Phase(name="chroot init", start=ended - 300, end=ended - 200),)
        name = ("time", "bash", "zlib")[number % 3]
        stand.record(*build_events(number, ended, "Failed" if number % 4 == 3 else "Published", name, phases=phases))
    stand.record(*build_events(_RUNNING, now + 200, "Building"), *build_events(_QUEUED, now + 300, "Queued"))
    stand.record(*build_events(_GZIPPED, now - 5000, "Failed"), *build_events(_LONG, now - 6000, "Failed"))
    evil = {"first_error": f"{_EVIL}\n\x1b[31mred", "error_line": _EVIL, "reason": f"failed: {_EVIL}"}
    stand.record(*build_events(_HOSTILE, now - 7000, "Failed", **evil))
    stand.forge(_HOSTILE, submitter=_EVIL, pkgname=f"../{_EVIL}", evr=f"{_EVIL}\n", builder_fqdn=f"/{_EVIL}")
    current = CurrentBuild(
        build_id=build_id(_RUNNING), srpm="time-1.40-1.el9.src.rpm", target="c9s.x86_64", arch="x86_64",
        attempt=ATTEMPT, phase="<i>build</i>", started=now - 100,
    )  # fmt: skip
    stand.beat("builder1.example.org", "building", current)
    stand.beat("builder2.example.org", "drained", why="drained by <u>johnny</u>")
    add_running(stand, _EVIL)
    add_resting(stand, _EVIL)
    add_over(stand)
    _fill_store(stand)
    stand.start_nginx()
    stand.render()
    yield stand
    stand.close()


def _fill_store(stand: PagesStand) -> None:
    live = stand.log_folder("live", _RUNNING)
    (live / "build.log").write_text(f"\x1b[32mgcc\x1b[0m one.c\n{_EVIL}\x07\x1b]0;title\x07\n")
    kept = stand.log_folder("attempts", _GZIPPED)
    (kept / "build.log.gz").write_bytes(gzip.compress(f"packed\n{ERROR_LINE}\nend of it\n".encode()))
    log = [f"line {number} of a long log, which goes on and on\n" for number in range(200_000)]
    log[50_000] = f"{ERROR_LINE}\n"
    (stand.log_folder("attempts", _LONG) / "build.log").write_text("".join(log))


def _open_all(stand: PagesStand, tab: Tab) -> Iterator[str]:
    for url in stand.url_of_pages:
        tab.open(url)
        yield url


def test_every_page_loads_without_a_complaint_and_asks_nobody_else(stand: PagesStand, tab: Tab) -> None:
    for url in _open_all(stand, tab):
        tab.wait_for("document.documentElement.classList.contains('js')")
        if url != stand.url_of(_RUNNING):  # whose log is looked for in several folders
            assert tab.problems == [], url
        assert [each for each in tab.requests if not each.startswith(stand.url)] == [], url
        assert tab.evaluate("document.querySelectorAll('script:not([src]), style, [style], [onclick]').length") == 0


def test_every_page_and_image_is_valid(stand: PagesStand) -> None:
    """By the checker of the W3C, which also knows style sheets and what ARIA allows."""
    if not VNU.exists():
        pytest.fail(f"{VNU} is missing: tools/setup fetches it")
    files = [path for suffix in ("html", "css", "svg") for path in sorted(stand.pages.rglob(f"*.{suffix}"))]
    argv: list[str | Path] = ["java", "-Xss2m", "-jar", VNU, "--also-check-css", "--also-check-svg", "--format", "gnu"]
    done = subprocess.run([*argv, *files], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_every_page_can_be_used_by_everybody(stand: PagesStand, tab: Tab) -> None:
    if not AXE.exists():
        pytest.fail(f"{AXE} is missing: tools/setup fetches it")
    kinds = {re.sub(r"[^/]*$", "", url.removeprefix(stand.url)) or url: url for url in stand.url_of_pages}
    some = [*kinds.values(), *(f"{stand.url}{name}.html" for name in ("index", "batches", "causes", "stats", "search"))]
    some += [f"{stand.url}batches/{name}.html" for name in (RUNNING, RESTING, OVER, f"{OVER}-1")]
    for url in [*some, *(stand.url_of(number) for number in (_FAILED, _PUBLISHED, _RUNNING, _HOSTILE))]:
        for dark in (False, True):
            tab.set_dark(dark)
            tab.open(url)
            tab.evaluate(AXE.read_text(encoding="utf-8") + "; null")
            found = tab.evaluate(
                "axe.run().then((r) => r.violations.map((v) => v.id + ': ' + v.nodes.map((n) => n.html).join(' | ')))"
            )
            assert found == [], f"{url} dark={dark}"


@pytest.mark.parametrize("size", [LAPTOP, TELEPHONE, (360, 640), (3840, 2160)])
def test_no_page_is_wider_than_the_screen(stand: PagesStand, tab: Tab, size: tuple[int, int]) -> None:
    tab.resize(*size)
    for url in _open_all(stand, tab):
        assert tab.evaluate("document.documentElement.scrollWidth <= innerWidth"), url


def test_the_first_error_is_seen_without_scrolling(stand: PagesStand, tab: Tab) -> None:
    tab.resize(*LAPTOP)
    for number in (_FAILED, _HOSTILE, _LONG):
        tab.open(stand.url_of(number))
        bottom = tab.evaluate("document.querySelector('pre.error mark').getBoundingClientRect().bottom")
        assert 0 < bottom < LAPTOP[1], number


def test_the_cause_of_a_failure_in_a_list_is_seen_on_a_telephone(stand: PagesStand, tab: Tab) -> None:
    tab.resize(*TELEPHONE)
    for page in ("index", "packages/time", "targets/c9s.x86_64", "builders/builder1.example.org"):
        tab.open(f"{stand.url}{page}.html")
        right = (
            "Math.max(...[...document.querySelectorAll('.builds .why')].map((e) => e.getBoundingClientRect().right))"
        )
        assert 0 < tab.evaluate(right) <= TELEPHONE[0], page
        wide = tab.evaluate("document.querySelectorAll('.builds .why:not(:empty)')[0].getBoundingClientRect().width")
        assert wide > TELEPHONE[0] / 2, page


def test_all_but_the_live_log_works_without_scripts(stand: PagesStand, tab: Tab) -> None:
    with tab.without_scripts():
        tab.open(f"{stand.url}index.html")
        tab.open(_link(stand, "index.html", r'href="\./(builds/[^"]+)"'))
    page = stand.page(_FAILED).read_text()
    log = re.findall(r'href="(/bstore/[^"]+/build\.log)"', page)
    assert log
    assert ERROR_LINE.split("'")[0] in page
    # every link of every page that leads to a page leads to one that is there
    for path in stand.pages.rglob("*.html"):
        for href in re.findall(r'href="([^"#?/][^"#?]*)["#?]', path.read_text()):
            assert (path.parent / href).resolve().exists(), f"{path}: {href}"


def _link(stand: PagesStand, page: str, pattern: str) -> str:
    found = re.search(pattern, (stand.pages / page).read_text())
    assert found, page
    return stand.url + found[1]


def test_a_hostile_build_is_text(stand: PagesStand, tab: Tab) -> None:
    names = ("index", "causes", "batches", f"batches/{RUNNING}", f"batches/{RESTING}")
    for url in (*(f"{stand.url}{name}.html" for name in names), stand.url_of(_HOSTILE), stand.url_of(_RUNNING)):
        tab.open(url)
        tab.wait_for("document.documentElement.classList.contains('js')")
        assert not [each for each in tab.problems if "dialog" in each], url
        assert (
            tab.evaluate("document.querySelectorAll('main script, main img:not([alt]), main b, main i, main u').length")
            == 0
        )
        shown = tab.evaluate("document.body.innerText")
        assert not re.search("[\u202a-\u202e\u2066-\u2069\x1b\x07]", shown), url
    tab.open(f"{stand.url}batches/{RUNNING}.html")
    assert "<script>alert(1)</script>" in tab.evaluate("document.querySelector('.causes').textContent")
    tab.open(stand.url_of(_HOSTILE))
    assert "<script>alert(1)</script>" in tab.evaluate("document.querySelector('pre.error').textContent")
    assert "{{ 7*7 }}" in tab.evaluate("document.querySelector('pre.error').textContent")


# --- logs


def _log_text(tab: Tab) -> str:
    return str(tab.evaluate("(document.querySelector('.viewer .text') || {textContent: ''}).textContent"))


def test_a_live_log_grows_survives_the_store_and_ends_where_it_is_kept(stand: PagesStand, tab: Tab) -> None:
    tab.open(stand.url_of(_RUNNING))
    until(lambda: "gcc one.c" in _log_text(tab), 20, "the log is shown")
    assert tab.evaluate("document.querySelector('.viewer .c32').textContent") == "gcc"
    assert _EVIL.split("\u202e")[0] in _log_text(tab)
    assert not re.search("[\u202e\x1b\x07]", _log_text(tab))
    live = stand.log_folder("live", _RUNNING) / "build.log"
    with live.open("a") as stream:
        stream.write("more of it\n")
    until(lambda: "more of it\n" in _log_text(tab), 20, "what was added is shown")
    stand.stop_nginx()
    tab.wait_for("document.querySelector('.viewer .about').textContent.includes('does not answer')")
    with live.open("a") as stream:
        stream.write("written meanwhile\n")
    stand.start_nginx()
    until(lambda: "written meanwhile\n" in _log_text(tab), 20, "the log goes on")
    _end_build(stand, live.read_bytes() + b"the end\n")
    until(lambda: "the end\n" in _log_text(tab), 30, "the rest is read where the log is kept")
    tab.wait_for("document.querySelector('.viewer .about').textContent === 'Complete'")
    tab.wait_for("document.querySelector('.leg .state').textContent.includes('failed')")  # the page, too, by itself
    plain = re.sub("\x1b\\][^\x07]*\x07|\x1b\\[[0-9;]*m", "", (live.parent.parent.parent / "whole.log").read_text())
    assert _log_text(tab) == re.sub("[\u202e\u2066\x07]", "?", plain)


def _end_build(stand: PagesStand, log: bytes) -> None:
    """The build ends: its log has another folder, and its page says so."""
    (stand.log_folder("attempts", _RUNNING) / "build.log").write_bytes(log)
    (stand.store / "whole.log").write_bytes(log)
    folder = stand.log_folder("live", _RUNNING)
    (folder / "build.log").unlink()
    folder.rmdir()
    stand.record(*build_events(_RUNNING, time.time(), "Failed"))
    stand.render()


def test_a_long_log_is_shown_from_its_end_and_its_first_error_is_found(stand: PagesStand, tab: Tab) -> None:
    tab.open(stand.url_of(_LONG))
    tab.evaluate("document.querySelector('a[data-log=\"build.log\"]').click()")
    until(lambda: "line 199999 " in _log_text(tab), 20, "the end is shown")
    assert "line 190000 " not in _log_text(tab)
    before = len(_log_text(tab))
    assert before <= 65536
    tab.evaluate(
        "[...document.querySelectorAll('.viewer button')].find((b) => b.textContent === 'Load earlier').click()"
    )
    until(lambda: len(_log_text(tab)) > before, 20, "more is shown")
    lines = [int(number) for number in re.findall(r"^line (\d+) of", _log_text(tab), re.MULTILINE)]
    assert lines == list(range(lines[0], 200_000)), "no line is lost or shown twice"
    tab.evaluate(
        "[...document.querySelectorAll('.viewer button')].find((b) => b.textContent === 'First error').click()"
    )
    tab.wait_for("document.querySelector('.viewer .hit') !== null")
    assert tab.evaluate("document.querySelector('.viewer .hit').textContent").strip() == ERROR_LINE


def test_a_log_that_was_gzipped_is_unpacked(stand: PagesStand, tab: Tab) -> None:
    tab.open(stand.url_of(_GZIPPED))
    tab.evaluate("document.querySelector('a[data-log=\"build.log\"]').click()")
    until(lambda: "end of it\n" in _log_text(tab), 20, "the log is shown")


# --- search, age


def test_names_are_found_as_they_are_typed(stand: PagesStand, tab: Tab) -> None:
    tab.open(f"{stand.url}search.html?q=ba")
    tab.wait_for("document.querySelector('#results a') !== null")
    assert tab.evaluate("document.querySelector('#results a').getAttribute('href')") == "./packages/bash.html"
    tab.evaluate(f"query.value = '{RUNNING[:5]}'; query.dispatchEvent(new Event('input'))")
    assert tab.evaluate("document.querySelector('#results a').getAttribute('href')") == f"./batches/{RUNNING}.html"
    tab.evaluate(
        f"query.value = '{build_id(_FAILED)}'; query.dispatchEvent(new Event('input'));"
        " document.querySelector('#results a').click()"
    )
    tab.wait_for(f"location.pathname.endsWith('{build_id(_FAILED)}.html')")


def test_all_can_be_reached_by_the_keyboard(stand: PagesStand, tab: Tab) -> None:
    tab.open(f"{stand.url}index.html")
    tab.press("Tab", 9)
    assert tab.evaluate("document.activeElement.className") == "skip"
    tab.press("Tab", 9)
    assert tab.evaluate("document.activeElement.textContent") == "Reimzul"


def test_a_page_says_that_nobody_makes_pages_any_more(stand: PagesStand, tab: Tab) -> None:
    status = stand.pages / "status.json"
    kept = status.read_text()
    try:
        for problem, shown in (
            ("", "These pages are 2 h old: reimzul-pages"),
            ("it is locked", "these pages are 2 h old."),
        ):
            made = {"made": time.time() - 7200, "since": 0.0, "problem": problem}
            status.write_text(render_json("status.json", made).text)  # as the daemon writes it
            tab.open(f"{stand.url}causes.html")
            tab.wait_for(f"document.getElementById('outage').textContent.includes({shown!r})")
    finally:
        status.write_text(kept)

# SPDX-License-Identifier: Apache-2.0
"""A log of many megabytes in the browser: its end first, its first error, and a bound on what the page keeps.

With REIMZUL_LOG_MIB=200 in the environment the log is that large.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.browser import Tab, open_browser
from tests.pages_stand import ERROR_LINE, PagesStand, build_events
from tests.waiting import until

_MIB = int(os.environ.get("REIMZUL_LOG_MIB", "16"))
#: As gcc writes it to a terminal: with colours in the middle.
_COLOURED_ERROR = ERROR_LINE.replace("error:", "\x1b[01;31m\x1b[Kerror:\x1b[m\x1b[K")
#: What the page may keep: characters of its text, and MiB of its scripts.
_MOST_CHARACTERS, _MOST_HEAP_MIB = 3 << 20, 48
_NUMBER = 7


def _write_log(path: Path) -> int:
    """Write a log with long lines, colours and control characters; return the number of the line after its error."""
    size, number, written, error_at = _MIB << 20, 0, 0, 0
    with path.open("w", encoding="utf-8", newline="") as log:
        while written < size:
            if not error_at and written > size // 2:
                error_at = number
                log.write(f"{_COLOURED_ERROR}\n")
            file = "x" * (20_000 if number % 997 == 0 else 60)
            written += log.write(f"line {number} \x1b[32mgcc\x1b[0m -c é{file}.c\x07\x08 \x1b[1mnote\x1b[m\r\n")
            number += 1
    return error_at


@pytest.fixture(scope="module")
def stand(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PagesStand]:
    stand = PagesStand(tmp_path_factory.mktemp("pages"))
    stand.record(*build_events(_NUMBER, time.time() - 6000, "Failed"))
    stand.start_nginx()
    stand.render()
    yield stand
    stand.close()


@pytest.fixture(scope="module")
def error_at(stand: PagesStand) -> int:
    """The number of the line after the error."""
    return _write_log(stand.log_folder("attempts", _NUMBER) / "build.log")


@pytest.fixture
def tab(stand: PagesStand, error_at: int) -> Iterator[Tab]:
    """The log is open, its end is shown."""
    with open_browser() as browser, browser() as opened:
        opened.send("Performance.enable")
        opened.open(stand.url_of(_NUMBER))
        opened.evaluate("document.querySelector('a[data-log=\"build.log\"]').click()")
        until(lambda: "line " in _text(opened), 30, "the log is shown")
        yield opened


def _text(tab: Tab) -> str:
    return str(tab.evaluate("(document.querySelector('.viewer .text') || {textContent: ''}).textContent"))


def _press(tab: Tab, name: str) -> None:
    tab.evaluate(f"[...document.querySelectorAll('.viewer button')].find((b) => b.textContent === {name!r}).click()")


def _numbers(text: str) -> list[int]:
    return [int(number) for number in re.findall(r"^line (\d+) ", text, re.MULTILINE)]


def _load(tab: Tab, which: str) -> None:
    def read_edge() -> str:
        cut = "slice(0, 200)" if which == "earlier" else "slice(-200)"
        return str(tab.evaluate(f"document.querySelector('.viewer .text').textContent.{cut}"))

    before = read_edge()
    _press(tab, f"Load {which}")
    until(lambda: read_edge() != before, 20, f"{which} lines are shown")


def _check_whole(text: str) -> None:
    numbers = _numbers(text)
    assert numbers == list(range(numbers[0], numbers[-1] + 1)), "a line is lost or shown twice"
    assert not re.search("[\x07\x08\x1b\r]", text)


def _heap_mib(tab: Tab) -> float:
    tab.send("HeapProfiler.collectGarbage")
    metrics = {each["name"]: each["value"] for each in tab.send("Performance.getMetrics")["metrics"]}
    return float(metrics["JSHeapUsedSize"]) / (1 << 20)


def test_the_end_is_shown_first(tab: Tab) -> None:
    assert len(_text(tab)) <= 65536
    _check_whole(_text(tab))
    assert tab.evaluate("document.querySelector('.viewer .c32').textContent") == "gcc"


def test_the_first_error_is_found_and_the_log_is_read_from_there(tab: Tab, error_at: int) -> None:
    _press(tab, "First error")
    tab.wait_for("document.querySelector('.viewer .hit') !== null", 120)
    assert tab.evaluate("document.querySelector('.viewer .hit').textContent").strip() == ERROR_LINE
    numbers = _numbers(_text(tab))
    assert numbers[0] < error_at <= numbers[-1]
    _load(tab, "later")
    _load(tab, "earlier")
    _check_whole(_text(tab))
    _press(tab, "End")
    until(lambda: len(_text(tab)) <= 65536, 20, "only the end is shown")


def test_a_page_keeps_no_more_than_a_part_of_the_log(tab: Tab) -> None:
    for _ in range(24):
        _load(tab, "earlier")
    _check_whole(_text(tab))
    assert len(_text(tab)) < _MOST_CHARACTERS
    assert _heap_mib(tab) < _MOST_HEAP_MIB
    _load(tab, "later")
    _check_whole(_text(tab))

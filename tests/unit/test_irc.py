# SPDX-License-Identifier: Apache-2.0
"""What reimzul-irc says and where, how fast, and what it remembers. No server and no library is needed for that."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reimzul.core.config import parse_settings
from reimzul.irc.inbox import REMEMBERED, Inbox
from reimzul.irc.line import LONGEST, Saying, Speaker
from reimzul.irc.pace import BURST, Pace
from reimzul.irc.pauses import LONGEST as LONGEST_PAUSE
from reimzul.irc.pauses import Pauses

RESULT = {
    "id": "one", "schema": 1, "status": "Failed", "srpm": "time-1.7-45.el7.src.rpm", "arch": "x86_64",
    "target": "c7.1708.u.x86_64", "submitter": "johnny", "reason": "%build failed", "url": "http://localhost/place/",
}  # fmt: skip


def speaker(rows: str = "") -> Speaker:
    """One with these settings."""
    settings = parse_settings(f"[irc]\nchannels = #all\n{rows}", "here")
    return Speaker(settings=settings.irc, rows=settings.irc_channels)


def saying(rows: str = "", **more: Any) -> Saying:
    """What is said of the result."""
    said = speaker(rows).saying(json.dumps({**RESULT, **more}).encode())
    assert said is not None
    return said


def test_a_line_says_all_that_matters() -> None:
    assert saying("colours = no\n").line == (
        "Failed: time-1.7-45.el7.src.rpm on x86_64 for c7.1708.u.x86_64 (johnny), %build failed http://localhost/place/"
    )


def test_a_status_has_its_colour() -> None:
    assert saying().line.startswith("\x0304Failed\x0f: ")
    assert saying(status="Success").line.startswith("\x0303Success\x0f: ")


@pytest.mark.parametrize(
    ("more", "channels"),
    [
        ({}, ("#seven", "#intel")),
        ({"target": "c7.1804.x86_64"}, ("#intel", "#seven")),
        ({"target": "C7.1708.U.i386", "arch": "i386"}, ("#seven",)),
        ({"target": "c8.x86_64", "arch": "aarch64"}, ("#eight",)),
        ({"target": "c8.aarch64", "arch": "aarch64"}, ("#all",)),
        ({"target": None, "arch": "ppc"}, ("#all",)),
    ],
)
def test_where_it_is_said(more: dict[str, Any], channels: tuple[str, ...]) -> None:
    rows = "[irc_channels]\nc7.1708.u = #seven\nx86_64 = #intel, #seven\nc8.x86_64 = #eight\n"
    assert saying(rows, **more).channels == channels


@given(st.dictionaries(st.sampled_from(sorted(RESULT)), st.text(max_size=600) | st.integers() | st.none()))
def test_no_field_breaks_a_line_or_makes_it_too_long(more: dict[str, Any]) -> None:
    said = speaker("colours = no\n").saying(json.dumps({**RESULT, **more}).encode())
    if said is not None:
        assert len(said.line.encode()) <= LONGEST
        assert not any(sign < " " or sign in "\x7f\x85\u2028\u2029" for sign in said.line)


def test_a_long_reason_is_cut_and_not_the_url() -> None:
    url = "http://localhost/" + "p" * 100 + "/"
    line = saying("colours = no\n", reason="é" * 250, url=url).line
    assert line.endswith(f"é… {url}")
    assert len(line.encode()) <= LONGEST


@given(st.binary(max_size=60))
def test_garbage_says_nothing(payload: bytes) -> None:
    assert speaker().saying(payload) is None


def test_deep_garbage_says_nothing() -> None:
    assert speaker().saying(b"[" * 100_000) is None


# --- how fast


def test_a_few_lines_at_once_then_one_every_so_often() -> None:
    pace, now, said = Pace(2.0, 100.0), 100.0, []
    while len(said) < BURST + 3:
        if pace.ready(now):
            pace.spend(now)
            said.append(now)
        else:
            now += 0.5
    assert said == [100.0] * BURST + [102.0, 104.0, 106.0]
    assert not pace.ready(106.0)
    assert pace.ready(200.0)


def test_each_channel_has_a_line_of_the_allowance() -> None:
    pace = Pace(2.0, 100.0)
    pace.spend(100.0, 5)
    assert (pace.ready(103.0), pace.ready(104.0)) == (False, True)


def test_a_pace_of_none_is_always_ready() -> None:
    pace = Pace(0, 0.0)
    for _ in range(100):
        pace.spend(0.0)
    assert pace.ready(0.0)


def test_pauses_grow_until_it_works() -> None:
    pauses = Pauses()
    assert pauses.due(0.0)
    assert [pauses.failed(0.0) for _ in range(9)] == [2, 4, 8, 16, 32, 64, 128, 256, LONGEST_PAUSE]
    assert (pauses.due(299.0), pauses.due(300.0)) == (False, True)
    pauses.worked()
    assert pauses.failed(0.0) == 2


# --- what it remembers


def named(name: str) -> Saying:
    """A saying of that name."""
    return Saying(name=name, line=name, channels=("#all",))


def test_the_broker_is_told_when_it_was_said_and_not_before() -> None:
    inbox, told = Inbox(), []
    for name in ("a", "b"):
        inbox.arrive(named(name), lambda name=name: told.append(name))  # type: ignore[misc]
    assert inbox.next(set()) == named("a")
    assert inbox.next({"a"}) == named("b")
    assert inbox.next({"a", "b"}) is None
    assert told == []
    inbox.done("a")
    assert told == ["a"]
    assert inbox.next(set()) == named("b")


def test_what_is_delivered_again_is_said_once_and_acknowledged_by_its_last_number() -> None:
    inbox, told = Inbox(), []
    inbox.arrive(named("a"), lambda: told.append(1))
    inbox.arrive(named("a"), lambda: told.append(2))
    inbox.done("a")
    assert (told, inbox.next(set())) == ([2], None)
    inbox.arrive(named("a"), lambda: told.append(3))
    assert (told, inbox.next(set())) == ([2, 3], None)


def test_it_does_not_remember_for_ever() -> None:
    inbox = Inbox()
    for number in range(REMEMBERED + 1):
        inbox.arrive(named(str(number)), lambda: None)
        inbox.done(str(number))
    inbox.arrive(named("0"), lambda: None)
    assert inbox.next(set()) == named("0")
    inbox.arrive(named("1"), lambda: None)
    assert inbox.next({"0"}) is None

# SPDX-License-Identifier: Apache-2.0
"""What reimzul-irc says and where, how fast, and what it remembers. No server is needed for that."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reimzul.core.config import parse_settings
from reimzul.irc.bot import (
    BURST_LINES,
    MAX_BYTES,
    REMEMBERED_IDS,
    Formatter,
    IrcMessage,
    PendingMessages,
    RateLimiter,
)
from tests.events import batch_event

RESULT = {
    "id": "one", "schema": 1, "status": "Failed", "srpm": "time-1.7-45.el7.src.rpm", "arch": "x86_64",
    "target": "c7.1708.u.x86_64", "submitter": "johnny", "reason": "%build failed", "url": "http://localhost/place/",
}  # fmt: skip


def formatter(rows: str = "") -> Formatter:
    """One with these settings."""
    settings = parse_settings(f"[irc]\nchannels = #all\n{rows}", "here")
    return Formatter(settings=settings.irc, rows=settings.irc_channels)


def message(rows: str = "", **more: Any) -> IrcMessage:
    """What is said of the result."""
    said = formatter(rows).format(json.dumps({**RESULT, **more}).encode())
    assert said is not None
    return said


def test_a_line_says_all_that_matters() -> None:
    assert message("colours = no\n").line == (
        "Failed: time-1.7-45.el7.src.rpm on x86_64 for c7.1708.u.x86_64 (johnny), %build failed http://localhost/place/"
    )


def test_a_line_says_what_is_newly_failing_and_what_is_fixed() -> None:
    newly = message("colours = no\n", newly_failing=True).line
    assert newly.startswith("Failed, newly failing: time-1.7-45.el7.src.rpm on x86_64")
    assert message("colours = no\n", status="Success", fixed=True).line.startswith("Success, fixed: time-1.7")
    for odd in (False, None, 1, "yes", [True]):
        assert message("colours = no\n", newly_failing=odd, fixed=odd).line.startswith("Failed: time-1.7")


def test_without_a_link_a_line_says_where_the_logs_are() -> None:
    place = "repo/c7.1708.u.x86_64/time/20251122000001/1.7-45.el7.x86_64"
    assert message("colours = no\n", url="", place=place).line.endswith(f"%build failed on bstore: {place}")
    assert message(url="", place=place * 3, reason="é" * 250).line.endswith(place * 3), "a path is not cut either"
    assert message("colours = no\n", url="").line.endswith("(johnny), %build failed")


def test_a_batch_is_announced_where_each_of_its_arches_is() -> None:
    rows = "[irc_channels]\nx86_64 = #intel\nc9s.aarch64 = #arm, #intel\n"
    payload = {**batch_event().to_json(), "id": "two", "schema": 1}
    said = formatter(rows).format(json.dumps(payload).encode())
    assert said == IrcMessage(id="two", line=batch_event().text, channels=("#intel", "#arm"))


def test_a_result_of_a_batchs_build_is_not_announced() -> None:
    assert formatter().format(json.dumps({**RESULT, "batch": "5f0c12ab"}).encode()) is None
    assert formatter().format(json.dumps({**RESULT, "batch": ""}).encode()) is not None


def test_a_status_has_its_colour() -> None:
    assert message().line.startswith("\x0304Failed\x0f: ")
    assert message(status="Success").line.startswith("\x0303Success\x0f: ")


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
    assert message(rows, **more).channels == channels


@given(st.dictionaries(st.sampled_from(sorted(RESULT)), st.text(max_size=600) | st.integers() | st.none()))
def test_no_field_breaks_a_line_or_makes_it_too_long(more: dict[str, Any]) -> None:
    said = formatter("colours = no\n").format(json.dumps({**RESULT, **more}).encode())
    if said is not None:
        assert len(said.line.encode()) <= MAX_BYTES
        assert not any(sign < " " or sign in "\x7f\x85\u2028\u2029" for sign in said.line)


def test_a_long_reason_is_cut_and_not_the_url() -> None:
    url = "http://localhost/" + "p" * 100 + "/"
    line = message("colours = no\n", reason="é" * 250, url=url).line
    assert line.endswith(f"é… {url}")
    assert len(line.encode()) <= MAX_BYTES


@given(st.binary(max_size=60))
def test_garbage_says_nothing(payload: bytes) -> None:
    assert formatter().format(payload) is None


def test_deep_garbage_says_nothing() -> None:
    assert formatter().format(b"[" * 100_000) is None


# --- how fast


def test_a_few_lines_at_once_then_one_every_so_often() -> None:
    limiter, now = RateLimiter(2.0, 100.0), 100.0
    said: list[float] = []
    while len(said) < BURST_LINES + 3:
        if limiter.allows(now):
            limiter.spend(now)
            said.append(now)
        else:
            now += 0.5
    assert said == [100.0] * BURST_LINES + [102.0, 104.0, 106.0]
    assert not limiter.allows(106.0)
    assert limiter.allows(200.0)


def test_each_channel_has_a_line_of_the_allowance() -> None:
    limiter = RateLimiter(2.0, 100.0)
    limiter.spend(100.0, 5)
    assert (limiter.allows(103.0), limiter.allows(104.0)) == (False, True)


def test_a_pace_of_none_is_always_ready() -> None:
    limiter = RateLimiter(0, 0.0)
    for _ in range(100):
        limiter.spend(0.0)
    assert limiter.allows(0.0)


# --- what it remembers


def make_message(name: str) -> IrcMessage:
    """A saying of that name."""
    return IrcMessage(id=name, line=name, channels=("#all",))


def test_the_broker_is_told_when_it_was_said_and_not_before() -> None:
    pending, told = PendingMessages(), []
    for name in ("a", "b"):
        pending.add(make_message(name), lambda name=name: told.append(name))  # type: ignore[misc]
    assert pending.oldest(set()) == make_message("a")
    assert pending.oldest({"a"}) == make_message("b")
    assert pending.oldest({"a", "b"}) is None
    assert told == []
    pending.mark_sent("a")
    assert told == ["a"]
    assert pending.oldest(set()) == make_message("b")


def test_what_is_delivered_again_is_said_once_and_acknowledged_by_its_last_number() -> None:
    pending, told = PendingMessages(), []
    pending.add(make_message("a"), lambda: told.append(1))
    pending.add(make_message("a"), lambda: told.append(2))
    pending.mark_sent("a")
    assert (told, pending.oldest(set())) == ([2], None)
    pending.add(make_message("a"), lambda: told.append(3))
    assert (told, pending.oldest(set())) == ([2, 3], None)


def test_it_does_not_remember_for_ever() -> None:
    pending = PendingMessages()
    for number in range(REMEMBERED_IDS + 1):
        pending.add(make_message(str(number)), lambda: None)
        pending.mark_sent(str(number))
    pending.add(make_message("0"), lambda: None)
    assert pending.oldest(set()) == make_message("0")
    pending.add(make_message("1"), lambda: None)
    assert pending.oldest({"0"}) is None

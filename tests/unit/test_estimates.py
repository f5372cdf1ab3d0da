# SPDX-License-Identifier: Apache-2.0
"""How long builds usually take, and when a waiting build is expected to start."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reimzul.history import BuildRecord
from reimzul.history.estimates import (
    IDLE,
    ArchStats,
    DurationStats,
    Forecast,
    duration_stats,
    estimate_rest,
    estimate_start,
    quantile,
)

spans = st.floats(0.1, 100_000)
some = st.lists(spans, min_size=1, max_size=30)


def make_built(name: str, seconds: float, **more: Any) -> BuildRecord:
    return BuildRecord(**{"pkgname": name, "started": 1000.0, "finished": 1000.0 + seconds, **more})


def takes(seconds: float, spread: float = 0.0) -> DurationStats:
    low, high = seconds - spread, seconds + spread
    return DurationStats(low=low, median=seconds, high=high, mean=seconds, count=10)


def busy(seconds: float) -> Forecast:
    return Forecast(low=seconds, likely=seconds, high=seconds)


@given(some)
def test_the_figures_are_in_order_and_within_what_was_seen(seconds: list[float]) -> None:
    found = duration_stats(seconds)
    assert found
    assert found.low <= found.median <= found.high
    assert found.count == len(seconds)
    assert min(seconds) - 1e-6 <= found.median <= max(seconds) + 1e-6
    assert min(seconds) - 1e-6 <= found.mean <= max(seconds) + 1e-6


def test_a_quantile_lies_between_its_neighbours() -> None:
    assert quantile([1.0, 2.0, 3.0], 0.5) == 2.0
    assert quantile([1.0, 2.0], 0.5) == 1.5
    assert quantile([7.0], 0.9) == 7.0
    assert duration_stats([]) is None


def test_of_one_or_two_builds_the_doubt_is_large() -> None:
    found = duration_stats([100.0])
    assert found
    assert (found.low, found.median, found.high) == (50.0, 100.0, 200.0)
    exact = duration_stats([100.0] * 3)
    assert exact
    assert exact.low == exact.high == 100.0


@pytest.mark.parametrize(
    ("document", "seconds"),
    [
        (make_built("time", 5.0), 5.0),
        (make_built("time", 5.0, started=0.0), None),
        (make_built("time", 5.0, finished=0.0), None),
        (make_built("time", -5.0), None),
        (BuildRecord(), None),
    ],
)
def test_a_duration_needs_both_its_ends(document: BuildRecord, seconds: float | None) -> None:
    assert document.duration == seconds
    found = duration_stats([document.duration])
    assert (found and found.median) == seconds


def test_a_package_that_was_never_built_takes_what_the_others_do() -> None:
    arch = ArchStats([make_built("time", 5.0), make_built("kernel", 5000.0), make_built("kernel", 5001.0)])
    own, others = arch.stats_for("kernel"), arch.stats_for("tar")
    assert own
    assert own.own
    assert own.median == 5000.5
    assert others
    assert not others.own
    assert others.count == 3
    assert ArchStats(()).stats_for("tar") is None


def test_a_build_starts_when_those_ahead_have_had_their_turn() -> None:
    assert _likely([], [IDLE]) == 0
    assert _likely([], [busy(30), busy(10)]) == 10
    assert _likely([takes(100), takes(100)], [IDLE]) == 200
    assert _likely([takes(100), takes(100)], [IDLE, IDLE]) == 100
    assert _likely([takes(100)], [busy(30), IDLE]) == 30


def _likely(ahead: list[DurationStats | None], free_in: list[Forecast]) -> float:
    found = estimate_start(ahead, free_in)
    assert found
    return found.likely


def test_nothing_can_be_said_where_nobody_builds_or_nothing_is_known() -> None:
    assert estimate_start([], []) is None
    assert estimate_start([takes(5), None], [IDLE]) is None


@given(st.lists(st.builds(takes, spans, st.floats(0, 0.1)), max_size=40), st.lists(st.builds(busy, spans), min_size=1))
def test_a_forecast_is_in_order_and_one_more_ahead_makes_it_no_sooner(
    ahead: list[DurationStats], free: list[Forecast]
) -> None:
    found, more = estimate_start(ahead, free), estimate_start([*ahead, takes(60)], free)
    assert found
    assert more
    assert 0 <= found.low <= found.likely <= found.high
    assert more.likely >= found.likely


def test_many_ahead_are_surer_than_one_of_them_times_their_number() -> None:
    one, hundred = estimate_start([takes(100, 50)], [IDLE]), estimate_start([takes(100, 50)] * 100, [IDLE])
    assert one
    assert hundred
    assert hundred.likely == 100 * one.likely
    assert hundred.high - hundred.low < 20 * (one.high - one.low)


def test_what_is_left_is_less_by_what_was_spent() -> None:
    rest = estimate_rest(takes(100, 20), 50)
    assert (rest.low, rest.likely, rest.high) == (30, 50, 70)
    assert estimate_rest(takes(100, 20), 90).low == 0


def test_what_takes_longer_than_it_ever_did_may_take_as_long_again() -> None:
    rest = estimate_rest(takes(100, 20), 1000)
    assert (rest.low, rest.likely, rest.high) == (0, 500, 2000)

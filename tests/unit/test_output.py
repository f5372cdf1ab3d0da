# SPDX-License-Identifier: Apache-2.0
"""How numbers and durations are formatted, and how durations are parsed."""

from __future__ import annotations

import time
from pathlib import Path

import click
import pytest

from reimzul.admin import output
from reimzul.core import formatting
from reimzul.core.fs import FreeSpace
from reimzul.core.setting_parsers import Pruning, parse_pruning, parse_span


@pytest.mark.parametrize(
    ("seconds", "said"),
    [
        (-3, "0.0 s"), (0.04, "0.0 s"), (4.24, "4.2 s"), (9.96, "10 s"), (59.4, "59 s"), (59.6, "1 min 00 s"),
        (187, "3 min 07 s"), (3599.7, "1 h 00 min"), (12_000, "3 h 20 min"), (100_000, "1 d 3 h"),
    ],
)  # fmt: skip
def test_a_duration_has_at_most_two_units(seconds: float, said: str) -> None:
    assert formatting.format_duration(seconds) == said


@pytest.mark.parametrize(
    ("count", "said"),
    [(0, "0 bytes"), (1023, "1023 bytes"), (1536, "1.5 KiB"), (3 << 30, "3.0 GiB"), (1 << 50, "1024.0 TiB")],
)
def test_a_size_is_in_the_largest_unit_that_fits(count: int, said: str) -> None:
    assert formatting.format_size(count) == said


def test_a_size_has_the_same_form_in_a_reason() -> None:
    free = FreeSpace(folder=Path("/srv"), mib=17, inodes=None)
    assert list(free.shortfalls(4096, 0)) == ["disk under /srv: 17.0 MiB free, 4.0 GiB are needed"]


def test_counts_and_lists_are_formatted() -> None:
    assert (formatting.pluralize(1, "build"), formatting.pluralize(5000, "build")) == ("1 build", "5,000 builds")
    assert [formatting.pluralize(count, "batch") for count in (0, 1)] == ["0 batches", "1 batch"]
    listed = [formatting.join_words(list(each)) for each in ("", "a", "ab", "abc")]
    assert listed == ["", "a", "a and b", "a, b and c"]


@pytest.mark.parametrize(("text", "seconds"), [("5m", 300), ("12h", 43_200), ("90d", 7_776_000), ("2w", 1_209_600)])
def test_a_duration_is_parsed(text: str, seconds: int) -> None:
    assert parse_span(text) == seconds


@pytest.mark.parametrize("text", ["", "5", "d", "-5d", "5 d", "5y", "5.5d", "1234567d"])
def test_an_invalid_duration_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is not a span of time"):
        parse_span(text)


def _parse_since(text: str) -> float | None:
    command = click.Command("x", params=[click.Option(["--since"])])
    return output.parse_moment_option(click.Context(command), command.params[0], text)


def test_since_is_a_duration_before_now_or_a_date_in_utc() -> None:
    assert _parse_since("2h") == pytest.approx(time.time() - 7200, abs=60)
    assert _parse_since("2026-11-22") == 1_795_305_600
    assert _parse_since("2026-11-22T00:00:01Z") == 1_795_305_601
    assert output.build_timestamp(1_795_305_601) == "20261122000001"
    with pytest.raises(click.BadParameter, match="neither a duration"):
        _parse_since("yesterday")


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ("keep 3", Pruning(keep=3)),
        ("older 90d", Pruning(older=7_776_000)),
        ("older 1w keep 2", Pruning(keep=2, older=604_800)),
        ("keep 2 unsigned", Pruning(keep=2, unsigned=True)),
    ],
)
def test_a_pruning_rule_is_parsed(text: str, rule: Pruning) -> None:
    assert parse_pruning(text) == rule


@pytest.mark.parametrize("text", ["", "keep", "keep 0", "older 3", "unsigned", "keep 3 keep 4", "last 3", "keep 3 4"])
def test_an_invalid_pruning_rule_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"is not a (rule|whole number|span)"):
        parse_pruning(text)


def test_json_has_times_in_rfc_3339_and_null_for_the_unknown() -> None:
    heartbeat = {"at": 1_763_800_000.5, "started": 0.0, "job": 0, "attempts": 0, "load": 1.23456, "reason": ""}
    assert formatting.to_output({"builder_fqdn": "b1", "build": heartbeat, "argv": ["x", ""]}) == {
        "builder": "b1",
        "build": {
            "at": "2025-11-22T08:26:40.500Z", "started": None, "job": None, "attempts": 0, "load": 1.235,
            "reason": None,
        },
        "argv": ["x", ""],
    }  # fmt: skip
    assert formatting.to_output({"results": {"published": 3}}) == {"results": {"published": 3}}
    assert formatting.to_output({"reasons": {"no disk": 3}}) == {"reasons": {"no disk": 3}}

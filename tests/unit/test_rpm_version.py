# SPDX-License-Identifier: Apache-2.0
"""The order of versions, and which capabilities meet which."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reimzul.core.rpm_version import Capability, Evr, compare_versions

#: From old to new.
ORDERED = ["0.9", "1.0~~", "1.0~rc1", "1.0~rc2", "1.0", "1.0^git1", "1.0a", "1.0.1", "1.1", "1.9", "1.10", "2"]
versions = st.lists(st.sampled_from(["1", "2", "10", "01", "a", "rc", "~", "^", ".", "_"]), min_size=1).map("".join)


@pytest.mark.parametrize(("older", "newer"), list(zip(ORDERED, ORDERED[1:])))
def test_versions_are_in_this_order(older: str, newer: str) -> None:
    assert compare_versions(older, newer) == -1
    assert compare_versions(newer, older) == 1


@pytest.mark.parametrize(("one", "other"), [("1.0", "1.00"), ("1.0", "1_0"), ("1.a", "1a"), ("", "")])
def test_these_are_equal(one: str, other: str) -> None:
    assert compare_versions(one, other) == 0


@given(versions, versions, versions)
def test_it_is_an_order(one: str, other: str, third: str) -> None:
    assert compare_versions(one, other) == -compare_versions(other, one)
    if compare_versions(one, other) >= 0 and compare_versions(other, third) >= 0:
        assert compare_versions(one, third) >= 0


def test_epochs_come_first_and_releases_last() -> None:
    assert Evr.parse("1:1.0-1").compare(Evr.parse("2.0-1")) == 1
    assert Evr.parse("2.0-1").compare(Evr.parse("1:1.0-1")) == -1
    assert Evr.parse("1.0-2").compare(Evr.parse("1.0-10")) == -1
    assert Evr.parse("1.0-2").compare(Evr.parse("1.0")) == 0


@pytest.mark.parametrize("text", ["zlib-devel", "pkgconfig(zlib) >= 1.2", "a = 1:2-3.el9", "/usr/bin/perl", "a < 2"])
def test_a_capability_is_written_as_it_is_read(text: str) -> None:
    assert str(Capability.parse(text)) == text


@pytest.mark.parametrize(
    ("required", "provided", "is_met"),
    [
        ("a", "a = 1", True),
        ("a >= 2", "a", True),
        ("a >= 2", "a = 2-1", True),
        ("a >= 2", "a = 1-9", False),
        ("a > 2-1", "a = 2-1", False),
        ("a > 2-1", "a = 2-2", True),
        ("a < 2", "a = 2-1", False),
        ("a < 2", "a = 1-1", True),
        ("a = 2", "a = 2-7", True),
        ("a = 2-6", "a = 2-7", False),
        ("a = 2", "a >= 1", True),
        ("a <= 2-1", "a = 3", False),
        ("a > 1-1", "a = 1", True),
    ],
)
def test_a_requirement_is_met_if_the_ranges_overlap(required: str, provided: str, is_met: bool) -> None:
    assert Capability.parse(required).is_met_by(Capability.parse(provided)) is is_met

# SPDX-License-Identifier: Apache-2.0
"""Which failures have one cause, and which do not."""

from __future__ import annotations

from typing import Any

import pytest

from reimzul.core.failure_cause import (
    CAUSE_VERSION,
    FailureCause,
    cause_of,
    find_cause,
    missing_capabilities,
    normalize_line,
)
from reimzul.history.build_record import BuildRecord
from tests.events import event

BUILD = "%build failed"


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("main.c:12:5: error: unknown type name 'bool'", "src/a/util.c:900:17: error: unknown type name ‘bool’"),
        ("/usr/bin/ld: cannot find -lz", "ld: cannot find -lz"),
        ("configure: error: zlib 1.2.13 or later is needed", "configure: error: zlib 1.3 or later is needed"),
        ("Segmentation fault at 0x7ffe0123", "Segmentation fault at 0xdeadbeef"),
        ("error: File not found: /builddir/build/BUILDROOT/a-1-1.x86_64/usr/bin/tool",
         "error: File not found: /builddir/build/BUILDROOT/b-22-3.aarch64/usr/bin/tool"),
    ],
)  # fmt: skip
def test_places_folders_and_numbers_do_not_count(one: str, other: str) -> None:
    assert find_cause(BUILD, one).id == find_cause(BUILD, other).id


def test_the_packages_own_name_does_not_count() -> None:
    one = find_cause("%check failed", "ImportError: cannot import name x from six", "six")
    other = find_cause("%check failed", "ImportError: cannot import name x from toml", "toml")
    assert one.id == other.id
    assert normalize_line("libsix and six2 by six", "six") == "libsix and PACKAGE0 by PACKAGE"


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ((BUILD, "error: unknown type name 'bool'"), (BUILD, "error: unknown type name 'u8'")),
        ((BUILD, "error: x"), ("%check failed", "error: x")),
        (("BuildRequires that nobody provides: a", ""), ("BuildRequires that nobody provides: b", "")),
        (("BuildRequires that nobody provides: a >= 1", ""), ("BuildRequires that nobody provides: a >= 2", "")),
    ],
)
def test_another_step_error_or_capability_is_another_cause(one: tuple[str, str], other: tuple[str, str]) -> None:
    assert find_cause(*one).id != find_cause(*other).id


def test_a_missing_capability_is_the_cause_whatever_the_log_says() -> None:
    one = find_cause("BuildRequires that nobody provides: python3dist(six)", "No match for argument: python3dist(six)")
    other = find_cause("the buildroot could not be installed: nobody provides python3dist(six)", "")
    assert (one.id, one.text) == (other.id, "nobody provides python3dist(six)")
    assert missing_capabilities("BuildRequires that nobody provides: a >= 1, b") == ("a >= 1", "b")
    assert missing_capabilities("nobody provides a-devel; nothing left in the batch could") == ("a-devel",)
    assert find_cause(BUILD, "error: x").missing == ()


def test_without_a_line_the_reason_is_the_cause() -> None:
    assert find_cause("", "").text == "no reason was given"
    assert find_cause("rpmbuild -bs failed: line 3: Unknown tag", "").text == "rpmbuild -bs failed: line 3: Unknown tag"
    assert find_cause(BUILD, "").text == BUILD


def test_a_stored_cause_counts_if_it_is_by_this_version_of_the_rule() -> None:
    known: dict[str, Any] = {"reason": BUILD, "error_line": "error: x", "cause": "5f0c12ab", "cause_text": "as it was"}
    stored = FailureCause("5f0c12ab", "as it was")
    assert cause_of(event("Failed", **known, cause_version=CAUSE_VERSION)) == stored
    assert cause_of(BuildRecord(**known, cause_version=CAUSE_VERSION)) == stored
    for version in (0, CAUSE_VERSION + 1):
        assert cause_of(event("Failed", **known, cause_version=version)) == find_cause(BUILD, "error: x", "time")
    assert cause_of(event("Failed", reason=BUILD)) == find_cause(BUILD, "")


def test_another_rule_has_another_version() -> None:
    """Stored causes are compared with computed ones: what changes these ids needs another `CAUSE_VERSION`."""
    rows = [
        ("BuildRequires that nobody provides: python3dist(six), zlib-devel", "", "time"),
        ("%build failed", "time/a.c:1:22: error: unknown type name ‘bool’ in /usr/include/x.h", "time"),
        ("%check failed", "FAILED tests/test_time.py::test_12 0x7f00aa", "time"),
        ("no builder could build it: b1: no space", "", ""),
    ]
    ids = [find_cause(*row).id for row in rows]
    assert (CAUSE_VERSION, ids) == (1, ["0f683335", "e5ef7dcc", "a13a52bb", "53096920"])

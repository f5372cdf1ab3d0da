# SPDX-License-Identifier: Apache-2.0
"""Whether what a repository provides satisfies a requirement: names, versions, files, rich dependencies."""

from __future__ import annotations

import re

import pytest

from reimzul.core import capability
from reimzul.core.capability import Provide, is_satisfied, list_names


@pytest.fixture(autouse=True)
def compare(monkeypatch: pytest.MonkeyPatch) -> None:
    """Compares numbers alone: unit tests have no rpm."""

    def numbers(text: str) -> list[int]:
        return [int(each) for each in re.findall("[0-9]+", text)]

    def compare_versions(one: str, other: str) -> int:
        return (numbers(one) > numbers(other)) - (numbers(one) < numbers(other))

    monkeypatch.setattr(capability, "compare_versions", compare_versions)


PROVIDES = {
    "zlib-devel": [Provide("zlib-devel", "EQ", "1.2")],
    "pkgconfig(zlib)": [Provide("pkgconfig(zlib)", "EQ", "1.2")],
    "perl(Foo::Bar)": [Provide("perl(Foo::Bar)")],
    "/usr/bin/awk": [Provide("/usr/bin/awk")],
    "newer": [Provide("newer", "GE", "3")],
}


@pytest.mark.parametrize(
    ("requirement", "expected"),
    [
        ("zlib-devel", True),
        ("zlib", False),
        ("zlib-devel >= 1.2", True),
        ("zlib-devel > 1.2", False),
        ("zlib-devel = 1.2", True),
        ("zlib-devel < 1.3", True),
        ("zlib-devel <= 1.1", False),
        ("pkgconfig(zlib) >= 1.3", False),
        ("perl(Foo::Bar) >= 7", True),  # without a version it is of any
        ("newer = 4", True),
        ("newer < 3", False),
        ("newer <= 3", True),
        ("/usr/bin/awk", True),
        ("zlib-devel >=", False),  # no requirement
        ("(zlib-devel and perl(Foo::Bar))", True),
        ("(zlib-devel and absent)", False),
        ("(absent or zlib-devel >= 1.2)", True),
        ("(zlib-devel if absent)", True),
        ("(absent if zlib-devel)", False),
    ],
)
def test_a_requirement_is_satisfied_as_rpm_compares_it(requirement: str, expected: bool) -> None:
    assert is_satisfied(requirement, PROVIDES) is expected


@pytest.mark.parametrize(
    ("requirement", "names"),
    [
        ("pkgconfig(zlib) >= 1.2", ["pkgconfig(zlib)"]),
        ("(libfoo.so.1()(64bit) or (b >= 2 and perl(C)))", ["libfoo.so.1()(64bit)", "b", "perl(C)"]),
        ("(a if b else c)", ["a", "c"]),
    ],
)
def test_all_names_of_a_requirement_are_listed(requirement: str, names: list[str]) -> None:
    assert list_names(requirement) == names

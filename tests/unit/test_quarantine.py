# SPDX-License-Identifier: Apache-2.0
"""When a builder is put into quarantine, and which events report an attempt."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from reimzul.history.workers import WorkersUnavailable
from reimzul.notifier.quarantine import (
    AttemptRecord,
    QuarantinedBuilder,
    QuarantineTables,
    find_fault_series,
    is_fault,
)
from tests.events import ATTEMPT, event


def series(text: str) -> list[AttemptRecord]:
    """Attempts in order: `bad a-` is a fault of bad at package a, `good a` an attempt without one."""
    return [
        AttemptRecord(builder=builder, package=f"{package.rstrip('-')} c9 x86_64", fault=package.endswith("-"), at=at)
        for at, (builder, package) in enumerate(each.split() for each in text.split(", "))
    ]


@pytest.mark.parametrize(
    "attempts",
    [
        "bad a-, bad b-, bad c-, good a, good b",
        "bad a-, good a, bad b-, good b, bad c-, good c",
        "bad x, bad a-, bad a-, bad b-, bad c-, good a, good b",
        "bad a-, bad b-, bad c-, bad d-, good a, good d",
    ],
)
def test_faults_in_a_row_at_packages_that_others_build_are_a_series(attempts: str) -> None:
    assert "by its own fault" in find_fault_series(series(attempts), "bad", 3)


@pytest.mark.parametrize(
    "attempts",
    [
        "bad a-, bad b-, good a, good b",
        "bad a-, bad b-, bad b-, bad a-, good a, good b",
        "bad a-, bad b-, bad x, bad c-, good a, good b, good c",
        "bad a-, bad b-, bad c-, good a",
        "bad a-, bad b-, bad c-, good a-, good b-, good c-",
        "good a, good b, good c, bad a-, bad b-, bad c-",
        "bad a-, bad b-, bad c-, bad a, good a, good b, good c",
    ],
    ids=["too few", "one package", "not in a row", "less than half", "nobody builds them", "built before", "over"],
)
def test_what_is_no_series(attempts: str) -> None:
    assert find_fault_series(series(attempts), "bad", 3) == ""


def test_the_legs_of_one_source_are_one_package() -> None:
    legs = [
        AttemptRecord(builder=builder, package=f"a c9 {arch}", fault=builder == "bad", at=at)
        for at, builder in enumerate(("bad", "good"))
        for arch in ("x86_64", "i386", "noarch")
    ]
    assert find_fault_series(legs, "bad", 2) == ""
    assert find_fault_series(legs, "bad", 1).startswith("1 packages")


@pytest.mark.parametrize(
    ("given", "fault"),
    [
        (event("Queued", attempt=ATTEMPT, builder_fqdn="b1.example.org", reason="no space left"), True),
        (event("Queued", attempt=ATTEMPT, builder_fqdn="b1.example.org", reason="upload: cut; built again"), None),
        (event("Queued"), None),
        (event("Building"), None),
        (event("Success", exit_code=0), False),
        (event("Failed", exit_code=1), False),
        (event("Failed", reason="no builder could build it: b1: no space left"), None),
        (event("Queued", attempt=ATTEMPT, builder_fqdn="b1.example.org", reason="nobody's fault: x86_64: x"), None),
        (event("Queued", attempt=ATTEMPT, builder_fqdn="b1.example.org", held=True, missing=("b-devel",)), None),
        (event("Cancelled"), None),
        (event("Published", exit_code=0), None),
        (event("Success", exit_code=0, attempt=""), None),
    ],
)
def test_what_is_a_builders_fault(given: Any, fault: bool | None) -> None:
    assert is_fault(given) is fault


# --- the tables


@pytest.fixture
def tables(tmp_path: Path) -> Iterator[QuarantineTables]:
    opened = QuarantineTables(tmp_path / "notifier" / "presence.sqlite")
    yield opened
    opened.close()


def test_an_attempt_counts_once_and_not_for_ever(tables: QuarantineTables) -> None:
    for _ in range(2):
        tables.add_attempt(event("Success", exit_code=0), 100.0)
    tables.add_attempt(event("Success", exit_code=0, arch="i386"), 100.0)
    assert len(tables.attempts()) == 2
    tables.purge(101.0)
    assert tables.attempts() == []


def test_attempts_before_a_release_do_not_count(tables: QuarantineTables) -> None:
    tables.add_attempt(event("Success", exit_code=0), 100.0)
    tables.save(QuarantinedBuilder(host="builder1.example.org", since=150.0, next=160.0))
    assert [builder.host for builder in tables.builders()] == ["builder1.example.org"]
    tables.release("builder1.example.org", 200.0)
    assert tables.builders() == []
    assert tables.attempts() == []
    tables.add_attempt(event("Success", exit_code=0, attempt="1763800009-0000000c"), 210.0)
    assert len(tables.attempts()) == 1


def test_a_file_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(WorkersUnavailable, match=r"/proc/nowhere/x: builders' attempts cannot be recorded"):
        QuarantineTables(Path("/proc/nowhere/x")).builders()

# SPDX-License-Identifier: Apache-2.0
"""Whether a builder's faults stand out from its peers', and what of events is a try at all."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from reimzul.notifier.conduct import Conduct, NoConduct, Ward, fault_of
from reimzul.notifier.standing import Tried, standing
from tests.events import ATTEMPT, event


def rows(builder: str, package: str, *faults: int) -> list[Tried]:
    return [Tried(builder=builder, package=package, fault=bool(fault)) for fault in faults]


def test_who_fails_what_others_build_stands_out() -> None:
    mine = [*rows("bad", "a", 1, 1), *rows("bad", "b", 1, 1), *rows("bad", "c", 1, 0)]
    theirs = [*rows("good", "a", 0), *rows("good", "b", 0, 0), *rows("other", "c", 0)]
    how = standing([*mine, *theirs], "bad")
    assert (how.tries, how.faults, how.others_tries, how.others_faults) == (6, 5, 4, 0)
    assert how.stands_out(faults=5, ratio=3)
    assert not how.stands_out(faults=6, ratio=3), "too few to be sure"
    assert "5 of its 6 tries" in how.words and "of the 4 of others 0" in how.words


def test_a_package_that_no_builder_can_build_says_nothing_of_any() -> None:
    tries = [*rows("one", "a", 1, 1, 1), *rows("two", "a", 1, 1, 1), *rows("three", "a", 1, 1, 1)]
    assert not any(standing(tries, builder).stands_out(faults=3, ratio=3) for builder in ("one", "two", "three"))


def test_packages_that_nobody_else_has_tried_say_nothing() -> None:
    tries = [*rows("bad", "a", *[1] * 9), *rows("good", "b", 0)]
    assert standing(tries, "bad").tries == 0
    assert not standing(tries, "bad").stands_out(faults=1, ratio=1)


def test_one_fault_in_many_tries_is_usual() -> None:
    tries = [*rows("big", "a", *[0] * 95, *[1] * 5), *rows("small", "a", *[0] * 10)]
    assert not standing(tries, "big").stands_out(faults=5, ratio=3)


def test_half_the_tries_are_too_many_where_others_have_a_tenth() -> None:
    tries = [*rows("bad", "a", *[1] * 5, *[0] * 5), *rows("good", "a", 1, *[0] * 9)]
    assert standing(tries, "bad").stands_out(faults=5, ratio=3)
    assert not standing(tries, "bad").stands_out(faults=5, ratio=6)


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
        (event("Cancelled"), None),
        (event("Published", exit_code=0), None),
        (event("Success", exit_code=0, attempt=""), None),
    ],
)
def test_what_is_a_builders_fault(given: Any, fault: bool | None) -> None:
    assert fault_of(given) is fault


# --- the tables


@pytest.fixture
def conduct(tmp_path: Path) -> Iterator[Conduct]:
    opened = Conduct(tmp_path / "notifier" / "presence.sqlite")
    yield opened
    opened.close()


def test_a_try_counts_once_and_not_for_ever(conduct: Conduct) -> None:
    for _ in range(2):
        conduct.note(event("Success", exit_code=0), 100.0)
    conduct.note(event("Success", exit_code=0, arch="i386"), 100.0)
    assert len(conduct.tried(50.0)) == 2 and conduct.tried(101.0) == []
    conduct.forget(101.0)
    assert conduct.tried(50.0) == []


def test_what_was_before_a_release_is_forgotten(conduct: Conduct) -> None:
    conduct.note(event("Success", exit_code=0), 100.0)
    conduct.keep(Ward(host="builder1.example.org", since=150.0, next=160.0))
    assert [ward.host for ward in conduct.wards()] == ["builder1.example.org"]
    conduct.release("builder1.example.org", 200.0)
    assert conduct.wards() == [] and conduct.tried(50.0) == []
    conduct.note(event("Success", exit_code=0, attempt="1763800009-0000000c"), 210.0)
    assert len(conduct.tried(50.0)) == 1


def test_a_file_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(NoConduct, match=r"/proc/nowhere/x: what builders came to cannot be kept"):
        Conduct(Path("/proc/nowhere/x")).wards()

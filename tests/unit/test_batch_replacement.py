# SPDX-License-Identifier: Apache-2.0
"""The needs of a member whose source rpm is replaced."""

from __future__ import annotations

from typing import Any

import pytest

from reimzul.admin.batch_replace import replace_source
from reimzul.core.errors import InputError
from reimzul.core.rpm_header import Header
from reimzul.plan.document import Plan
from tests.batches import key, make_plan, member


def header(name: str, *requires: str, version: str = "2.0", **more: Any) -> Header:
    return Header(
        name=name, epoch=None, version=version, release="1", arch="x86_64", is_source=True, requires=requires, **more
    )


def replace(plan: Plan, before: Header | None, after: Header) -> dict[str, tuple[str, ...]]:
    """Replace; return what each member needs then."""
    changed = replace_source(plan, before, after, f"{after.name}-{after.evr}.src.rpm", "1" * 64)
    return {each.key: each.needs for each in changed.members}


PLAN = make_plan((member("lib"), member("app", "lib"), member("tool"), member("user", "app")))
OLD = header("app", "lib-devel", version="1.0")


def test_what_the_new_source_rpm_requires_is_needed_and_nothing_else() -> None:
    needs = replace(PLAN, OLD, header("app", "tool >= 2", "bash"))
    assert needs[key("app")] == (key("tool"),)
    assert needs[key("user")] == (key("app"),), "who waits for it goes on waiting"


def test_the_changed_member_has_the_new_file() -> None:
    changed = replace_source(PLAN, OLD, header("app", provides=("app-new",)), "app-2.0-1.src.rpm", "1" * 64)
    (found,) = [each for each in changed.members if each.name == "app"]
    assert (found.srpm, found.evr, found.srpm_sha256) == ("app-2.0-1.src.rpm", "2.0-1", "1" * 64)
    assert "app-new" in found.provides
    assert [each for each in changed.members if each.name != "app"] == [
        each for each in PLAN.members if each.name != "app"
    ]


def test_a_learned_need_stays() -> None:
    """One that no BuildRequires explains, as a runtime requirement of a last build."""
    plan = make_plan((member("lib"), member("run"), member("app", "lib", "run")))
    assert replace(plan, OLD, header("app", "lib-devel"))[key("app")] == (key("lib"), key("run"))


def test_a_need_that_closes_a_cycle_is_refused() -> None:
    with pytest.raises(InputError, match="its BuildRequires user-devel closes a cycle: app.x86_64 needs user.x86_64"):
        replace(PLAN, OLD, header("app", "lib-devel", "user-devel"))


def test_a_need_that_the_first_plan_left_out_stays_left_out() -> None:
    before = header("app", "lib-devel", "user-devel", version="1.0")
    assert replace(PLAN, before, header("app", "lib-devel", "user-devel"))[key("app")] == (key("lib"),)


def test_a_seed_is_needed_where_the_plain_member_closes_a_cycle() -> None:
    plan = make_plan((member("gcc~seed"), member("app"), member("gcc", "app")))
    assert replace(plan, header("app", version="1.0"), header("app", "gcc-devel"))[key("app")] == (key("gcc~seed"),)


def test_needs_do_not_cross_arches() -> None:
    plan = make_plan((member("lib", arch="aarch64"), member("app")))
    assert replace(plan, header("app", version="1.0"), header("app", "lib-devel"))[key("app")] == ()


@pytest.mark.parametrize(
    ("after", "says"),
    [
        (header("app", version="1.0"), "has the same release as the member that it is to replace: 1.0-1"),
        (header("nobody"), "batch 5f0c12ab has no member nobody"),
    ],
)
def test_what_replaces_nothing_is_refused(after: Header, says: str) -> None:
    with pytest.raises(InputError, match=says):
        replace(PLAN, None, after)


def test_a_plan_of_a_list_keeps_its_order() -> None:
    plan = make_plan((member("lib"), member("app", "lib"), member("tool")), order="listed")
    assert replace(plan, OLD, header("app", "tool-devel"))[key("app")] == (key("lib"),)

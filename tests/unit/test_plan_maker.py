# SPDX-License-Identifier: Apache-2.0
"""The members of a plan, and when they are expected to be built."""

from __future__ import annotations

import json

import attr
from hypothesis import given
from hypothesis import strategies as st

from reimzul.core.arch import read_arches
from reimzul.plan.document import Member, OrderRule, Plan
from reimzul.plan.edges import CapabilityIndex
from reimzul.plan.graph import MAX_RANK
from reimzul.plan.maker import ArchPlan, MemberMaker, plan_arch
from reimzul.submit.planning import Span, forecast_members
from tests.unit.test_plan_edges import index_of, make_listed, source

ARCHES = read_arches()


def plan(index: CapabilityIndex, arch: str = "x86_64", seeds: dict[str, str] | None = None) -> ArchPlan:
    seconds = {name: 60.0 for name in index.sources}
    return plan_arch(arch, f"c9s.{arch}", index, seconds, OrderRule.REBUILT, seeds or {})


def make(*plans: ArchPlan, seeds: dict[str, str] | None = None) -> dict[str, Member]:
    maker = MemberMaker(plans=plans, known=ARCHES, disttag=".el9", seeds=seeds or {})
    return {each.key: each for each in maker.make_members()}


def test_a_member_has_what_its_header_and_its_last_build_provide() -> None:
    target = make_listed("a-libs", of="a", provides="liba.so.1()(64bit)", files="/usr/bin/a")
    found = make(plan(index_of([source("a"), source("b", "a-devel")], target)))
    member = found["a.x86_64"]
    assert member.provides == ("/usr/bin/a", "a", "a-devel", "a-libs", "liba.so.1()(64bit)")
    assert member.packages == ("a", "a-devel", "a-libs")
    assert (member.is_listed, member.target) == (True, "c9s.x86_64")
    assert (member.seconds, member.chain, member.rank) == (60, 120, 0)
    after = found["b.x86_64"]
    assert (after.needs, after.is_listed, after.chain, after.rank) == (("a.x86_64",), False, 60, 2048)


def test_needs_never_cross_arches_and_ranks_are_those_of_the_whole_batch() -> None:
    found = make(plan(index_of([source("a"), source("b", "a")])), plan(index_of([source("b", "a")]), arch="aarch64"))
    assert found["b.aarch64"].needs == ()
    assert (found["a.x86_64"].rank, found["b.aarch64"].rank) == (0, 2048)


def test_a_kernel_is_published_with_its_noarch_leg_and_others_with_their_main_leg() -> None:
    found = make(plan(index_of([source("kernel"), source("a")])))
    assert found["kernel.x86_64"].legs == ("x86_64", "noarch")
    assert found["a.x86_64"].legs == ("x86_64",)
    assert make(plan(index_of([source("kernel")]), arch="noarch"))["kernel.noarch"].legs == ("noarch",)


def test_an_arch_is_built_from_its_tube() -> None:
    assert make(plan(index_of([source("a")]), arch="armhfp"))["a.armhfp"].tube == "armv7l"


def test_a_seed_has_a_disttag_and_a_bcond_of_its_own() -> None:
    seeds = {"a": "bootstrap"}
    found = make(plan(index_of([source("a", "b"), source("b", "a")]), seeds=seeds), seeds=seeds)
    seed, plain = found["a~seed.x86_64"], found["a.x86_64"]
    assert (seed.disttag, seed.bconds, seed.needs) == (".el9~bootstrap", ("bootstrap",), ())
    assert (plain.disttag, plain.bconds, plain.needs) == (".el9", (), ("b.x86_64",))
    assert (seed.srpm, seed.rank, seed.chain) == (plain.srpm, 0, 180)


def test_a_plan_is_read_as_it_was_written() -> None:
    members = tuple(make(plan(index_of([source("a"), source("b", "a")]))).values())
    written = Plan(
        batch="0123abcd", target="c9s", arches=("x86_64",), submitter="j", created=1.0, priority=8192, members=members
    )
    assert Plan.from_json(json.loads(written.to_bytes())) == written
    assert attr.evolve(written, members=()).to_bytes() != written.to_bytes()


# --- forecasts


def test_builders_work_side_by_side_and_needs_are_waited_for() -> None:
    index = index_of([source("a"), source("b"), source("c", "a"), source("d", "c")])
    members = [*make(plan(index)).values()]
    assert forecast_members(members, [["x86_64"]] * 2) == {
        "a.x86_64": Span(0, 60), "b.x86_64": Span(0, 60), "c.x86_64": Span(60, 120), "d.x86_64": Span(120, 180),
    }  # fmt: skip
    alone = forecast_members(members, [["x86_64"]])
    assert [key for key, _ in sorted(alone.items(), key=lambda each: each[1].start)] == [
        "a.x86_64", "c.x86_64", "b.x86_64", "d.x86_64",
    ]  # fmt: skip


def test_without_a_builder_nothing_is_expected() -> None:
    members = [*make(plan(index_of([source("a")])), plan(index_of([source("a")]), arch="aarch64")).values()]
    assert set(forecast_members(members, [["x86_64", "i386"]])) == {"a.x86_64"}


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(1, 50)), min_size=1, max_size=10), st.integers(1, 4))
def test_no_builder_builds_two_at_once(given_members: list[tuple[int, int]], count: int) -> None:
    members = [
        Member(
            name=f"m{number}", arch="x86_64", target="c9s.x86_64", srpm="a-1-1.src.rpm", srpm_sha256="1" * 64,
            evr="1-1", tube="x86_64", legs=("x86_64",), disttag=".el9", seconds=float(seconds), rank=MAX_RANK,
            needs=tuple(f"m{need}.x86_64" for need in [need] if need < number),
        )
        for number, (need, seconds) in enumerate(given_members)
    ]  # fmt: skip
    spans = forecast_members(members, [["x86_64"]] * count)
    assert set(spans) == {each.key for each in members}
    for member in members:
        span = spans[member.key]
        assert span.end - span.start == member.seconds
        assert all(spans[need].end <= span.start for need in member.needs)
        assert sum(each.start <= span.start < each.end for each in spans.values()) <= count

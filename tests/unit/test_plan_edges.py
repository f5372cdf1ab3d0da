# SPDX-License-Identifier: Apache-2.0
"""What needs what on one arch, and how cycles of it are broken: by the target's old builds, or by seeds."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reimzul.core import capability
from reimzul.core.capability import Provide
from reimzul.core.listed_packages import PackageContent
from reimzul.plan import contents
from reimzul.plan.arrangement import Arrangement, arrange_sources
from reimzul.plan.contents import TargetContents, list_required_names
from reimzul.plan.document import OrderRule
from reimzul.plan.edges import CapabilityIndex, Needs, PlannedSource, find_needs
from reimzul.plan.graph import find_cycles


@pytest.fixture(autouse=True)
def compare(monkeypatch: pytest.MonkeyPatch) -> None:
    """Compares the first digits alone: unit tests have no rpm."""

    def compare_versions(one: str, other: str) -> int:
        first, second = (int(each.removeprefix("0:")[0]) for each in (one, other))
        return (first > second) - (first < second)

    for module in (capability, contents):
        monkeypatch.setattr(module, "compare_versions", compare_versions)


def source(name: str, *requires: str, provides: Iterable[str] = ()) -> PlannedSource:
    packages = provides or (name, f"{name}-devel")
    return PlannedSource(name=name, srpm=f"{name}-2-1.src.rpm", evr="2-1", requires=requires, provides=tuple(packages))


def make_listed(
    name: str, *, of: str = "", provides: str = "", requires: str = "", files: str = "", release: str = "1-1",
    arch: str = "x86_64",
) -> PackageContent:  # fmt: skip
    """A package in the target; several words are separated by commas."""

    def split(words: str) -> tuple[str, ...]:
        return tuple(filter(None, map(str.strip, words.split(","))))

    return PackageContent(
        name=name, arch=arch, epoch="0", evr=release, source=of or name, source_evr=release,
        location=f"{of or name}/20260101000000/{release}.x86_64/{name}.rpm", files=split(files),
        requires=split(requires),
        provides=(Provide(name, "EQ", f"0:{release}"), *map(Provide, split(provides))),
    )  # fmt: skip


def index_of(sources: Iterable[PlannedSource], *packages: PackageContent) -> CapabilityIndex:
    return CapabilityIndex({each.name: each for each in sources}, TargetContents(packages))


def needs_of(sources: Iterable[PlannedSource], *packages: PackageContent, order: str = OrderRule.REBUILT) -> Needs:
    return find_needs(index_of(sources, *packages), order)


# --- requirements


@pytest.mark.parametrize(
    ("requirement", "names"),
    [
        ("gcc", ["gcc"]),
        ("pkgconfig(zlib) >= 1.2", ["pkgconfig(zlib)"]),
        ("/usr/bin/perl", ["/usr/bin/perl"]),
        ("rpmlib(CompressedFileNames) <= 3.0.4-1", []),
        ("(a if b)", ["a"]),
        ("(a >= 1 with a < 2)", ["a", "a"]),
        ("((python3dist(six) or b(x)) if c else d)", ["python3dist(six)", "b(x)", "d"]),
        ("(a and (b unless c))", ["a", "b"]),
    ],
)
def test_the_names_in_a_requirement(requirement: str, names: list[str]) -> None:
    assert list_required_names(requirement) == names


# --- edges


def test_a_requirement_is_looked_up_in_headers_first() -> None:
    sources = [source("app", "lib-devel >= 2"), source("lib"), source("other")]
    assert needs_of(sources, make_listed("lib-devel", of="other"))["app"] == {"lib": "lib-devel >= 2"}


def test_then_in_what_the_last_builds_provide() -> None:
    sources = [source("app", "pkgconfig(lib)", "/usr/bin/tool", "gcc"), source("lib"), source("tools")]
    target = [
        make_listed("lib-devel", of="lib", provides="pkgconfig(lib)"),
        make_listed("tools", files="/usr/bin/tool"),
    ]
    assert needs_of(sources, *target)["app"] == {"lib": "", "tools": ""}


def test_only_the_newest_build_counts_for_that() -> None:
    target = [make_listed("lib", provides="old(lib)"), make_listed("lib", provides="new(lib)", release="2-1")]
    sources = [source("app", "old(lib)"), source("user", "new(lib)"), source("lib")]
    for packages in (target, target[::-1]):
        assert needs_of(sources, *packages)["app"] == {}
        assert needs_of(sources, *packages)["user"] == {"lib": ""}


def test_a_source_does_not_need_itself() -> None:
    assert needs_of([source("gcc", "gcc")]) == {"gcc": {}}


def test_needed_leaves_out_what_the_target_satisfies_in_that_version() -> None:
    sources = [source("app", "lib-devel", "more-devel >= 2"), source("lib"), source("more")]
    target = [make_listed("lib-devel", of="lib"), make_listed("more-devel", of="more")]
    assert needs_of(sources, *target, order=OrderRule.NEEDED)["app"] == {"more": "more-devel >= 2"}
    assert needs_of(sources, *target)["app"] == {"lib": "", "more": "more-devel >= 2"}


def test_what_several_provide_or_a_rich_dependency_names_can_be_dropped() -> None:
    sources = [source("app", "java", "(b or c)"), source("j1", provides=["java"]), source("j2", provides=["java"])]
    assert needs_of([*sources, source("b")])["app"] == {"j1": "", "j2": "", "b": ""}


def test_the_other_rules() -> None:
    sources = [source("c", "a"), source("a"), source("b")]
    assert needs_of(sources, order=OrderRule.NONE) == {"c": {}, "a": {}, "b": {}}
    assert needs_of(sources, order=OrderRule.LISTED) == {"c": {}, "a": {"c": ""}, "b": {"a": ""}}


def test_what_last_builds_require_at_runtime_is_needed_too() -> None:
    sources = [source("app", "lib-devel"), source("lib"), source("core"), source("base")]
    target = [
        make_listed("lib-devel", of="lib", requires="core(x86-64)"),
        make_listed("core", provides="core(x86-64)", requires="base"),
        make_listed("base"),
    ]
    assert needs_of(sources, *target)["app"] == {"lib": "", "core": "", "base": ""}
    assert needs_of(sources, *target, order=OrderRule.NEEDED)["app"] == {}


def test_what_nobody_provides_is_listed() -> None:
    sources = [source("app", "lib-devel", "gcc", "old-devel >= 3", "(x or y)"), source("user", "gcc"), source("lib")]
    index = index_of(sources, make_listed("old-devel"))
    assert index.list_unprovided() == {"gcc": ["app", "user"], "old-devel >= 3": ["app"]}
    assert index.list_names() == {"app", "app-devel", "user", "user-devel", "lib", "lib-devel", "old-devel"}


# --- cycles

names = st.sampled_from("abcdef")
needs_maps = st.dictionaries(names, st.dictionaries(names, st.sampled_from(["", "x-devel"])), max_size=6).map(
    lambda found: {
        name: {need: why for need, why in found.get(name, {}).items() if need != name}
        for name in {*found, *itertools.chain(*found.values())}
    }
)


def arrange(needs: Needs, seeds: Iterable[str] = (), seconds: Mapping[str, float] | None = None) -> Arrangement:
    return arrange_sources(needs, seconds or dict.fromkeys(needs, 1.0), set(seeds))


@given(needs_maps)
def test_no_cycle_is_left_and_certain_needs_stay_where_that_is_possible(needs: Needs) -> None:
    found = arrange(needs)
    assert find_cycles(found.needs) == []
    certain = {name: [need for need, why in each.items() if why] for name, each in needs.items()}
    is_possible = not find_cycles(certain)
    assert is_possible is not any(each.blocking for each in found.cycles)
    for name, kept in found.needs.items():
        dropped = {need for each in found.cycles for who, need in each.dropped if who == name}
        assert dropped | set(kept) == set(needs[name])
        if is_possible:
            assert not dropped.intersection(certain[name])


@given(needs_maps)
def test_needs_that_close_no_cycle_are_kept(needs: Needs) -> None:
    together = {frozenset((one, other)) for each in find_cycles(needs) for one in each for other in each}
    for name, kept in arrange(needs).needs.items():
        assert {need for need in needs[name] if frozenset((name, need)) not in together} <= set(kept)


@given(needs_maps)
def test_it_is_the_same_in_any_order(needs: Needs) -> None:
    backwards = {name: dict(reversed(each.items())) for name, each in reversed(needs.items())}
    assert arrange(backwards).needs == arrange(needs).needs


def test_the_longest_chain_comes_first() -> None:
    needs: Needs = {"a": {"b": ""}, "b": {"a": ""}, "after": {"b": ""}}
    assert arrange(needs, seconds={"a": 5.0, "b": 1.0, "after": 9.0}).needs == {"a": ["b"], "b": [], "after": ["b"]}
    assert arrange(needs, seconds={"a": 20.0, "b": 1.0, "after": 9.0}).needs == {"a": [], "b": ["a"], "after": ["b"]}


def test_a_cycle_that_nothing_satisfies_names_its_requirements() -> None:
    needs: Needs = {"a": {"b": "b-devel"}, "b": {"c": "c-devel"}, "c": {"a": "a-devel", "b": "b-devel >= 2"}}
    (cycle,) = arrange(needs).cycles
    assert (cycle.names, cycle.blocking) == (["a", "b", "c"], [("b", "c-devel"), ("c", "b-devel >= 2")])


def test_a_seed_breaks_it_and_is_built_again_at_the_end() -> None:
    needs: Needs = {
        "a": {"b": "b-devel", "base": "base"}, "b": {"a": "a-devel"}, "base": {}, "after": {"a": "a-devel"},
    }  # fmt: skip
    found = arrange(needs, seeds=["a"])
    assert [(each.names, each.seeds, each.blocking) for each in found.cycles] == [(["a", "b"], ["a"], ())]
    assert found.needs == {
        "a": ["b", "base"], "a~seed": ["base"], "b": ["a~seed"], "base": [], "after": ["a"],
    }  # fmt: skip


def test_seeds_that_do_not_suffice_leave_a_cycle() -> None:
    needs: Needs = {
        "a": {"b": "b", "c": "c"},
        "b": {"a": "a"},
        "c": {"b": "b", "a": "a"},
        "d": {"e": "e"},
        "e": {"d": "d"},
    }
    found = arrange(needs, seeds=["a"])
    assert [each.names for each in found.cycles if each.blocking] == [["d", "e"]]
    found = arrange({**needs, "b": {"a": "a", "c": "c"}}, seeds=["a"])
    assert [each.names for each in found.cycles if each.blocking] == [["b", "c"], ["d", "e"]]


def test_a_seed_in_no_cycle_changes_nothing() -> None:
    needs: Needs = {"a": {"b": "b"}, "b": {}}
    assert arrange(needs, seeds=["a"]).needs == {"a": ["b"], "b": []}

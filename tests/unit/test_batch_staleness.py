# SPDX-License-Identifier: Apache-2.0
"""Which builds count as stale."""

from __future__ import annotations

from typing import Any

import pytest

from reimzul.admin import batch_settle
from reimzul.admin.batch_settle import PublishedPackages, find_last_pass, parse_installed
from reimzul.core.batch_message import OrderKind
from reimzul.core.capability import Provide
from reimzul.core.listed_packages import PackageContent
from tests.batches import ScriptedBatch, key, make_plan, member

#: When the batch began.
SINCE = 1_000.0


@pytest.fixture(autouse=True)
def compare(monkeypatch: pytest.MonkeyPatch) -> None:
    """Compares releases as numbers: unit tests have no rpm."""

    def compare_versions(one: str, other: str) -> int:
        first, second = (float(each.rpartition("-")[2]) for each in (one, other))
        return (first > second) - (first < second)

    monkeypatch.setattr(batch_settle, "compare_versions", compare_versions)


def package(release: str, built: int = 2_000, name: str = "lib-devel", **more: Any) -> PackageContent:
    given: dict[str, Any] = {
        "location": "", "source": "lib", "source_evr": f"1.0-{release}", "requires": (f"lib = 1.0-{release}",),
        "provides": (Provide(name, "EQ", f"0:1.0-{release}"),), "files": (),
    }  # fmt: skip
    return PackageContent(name=name, arch="x86_64", epoch="0", evr=f"1.0-{release}", built=built, **{**given, **more})


def reason(installed: str, *published: PackageContent, source: str = "app") -> str:
    found = PublishedPackages(published, ["lib", "app"])
    return found.find_stale_reason(source, parse_installed(installed), SINCE)


def test_a_newer_version_makes_stale() -> None:
    assert reason("lib-devel-1.0-1.x86_64 500 1 x installed", package("2")) == (
        "built against lib-devel-1.0-1.x86_64, and lib-devel-1.0-2.x86_64 is published now"
    )
    assert reason("lib-devel-1.0-2.x86_64 2000 1 x installed", package("2"), package("1", 500)) == ""


def test_the_same_build_makes_nothing_stale() -> None:
    assert reason("lib-devel-1.0-2.x86_64 500 1 x installed", package("2", 500)) == ""
    assert reason("lib-devel-1.0-2.x86_64 900 1 x installed", package("2", 500)) == ""


def test_the_same_version_built_later_makes_stale() -> None:
    assert "built later, is published now" in reason("lib-devel-1.0-2.x86_64 500 1 x installed", package("2"))


def test_what_is_newer_than_the_targets_own_makes_nothing_stale() -> None:
    """As a package of the distribution that outranks the member's."""
    assert reason("lib-devel-1.0-3.x86_64 500 1 x installed", package("2")) == ""


def test_a_member_is_not_stale_by_its_own_package_nor_by_one_of_no_member() -> None:
    assert reason("lib-devel-1.0-1.x86_64 500 1 x installed", package("2"), source="lib") == ""
    foreign = package("2", source="bash")
    assert reason("lib-devel-1.0-1.x86_64 500 1 x installed", foreign) == ""


def test_packages_that_the_batch_has_built_and_that_are_equal_make_nothing_stale() -> None:
    built = "lib-devel-1.0-2.x86_64 2000 1 x installed"
    assert reason(built, package("2"), package("2.1", 3_000)) == ""
    assert reason(built, package("2"), package("2.1", 3_000, files=("/usr/bin/x",)))
    assert reason(built, package("2"), package("2.1", 3_000, requires=("lib = 1.0-2.1", "libz.so.2")))
    assert reason(built, package("2.1", 3_000)), "what was installed is not listed any more"
    old = "lib-devel-1.0-2.x86_64 500 1 x installed"
    assert reason(old, package("2", 500), package("2.1", 3_000)), "a build from before the batch is no pass of it"


@pytest.mark.parametrize(
    "line", ["", "bash", "libc6:amd64 x", "x-1.x86_64 5", "lib-devel-1.0-1.x86_64 never 1", "a-1-1.x86_64"]
)
def test_lines_of_another_form_are_skipped(line: str) -> None:
    assert list(parse_installed(line)) == []


def test_an_epoch_is_read() -> None:
    (found,) = parse_installed("vim-common-2:9.0-1.el9.x86_64 5 1 x installed")
    assert (found.name, found.version, found.nevra) == (
        "vim-common", "2:9.0-1.el9", "vim-common-2:9.0-1.el9.x86_64",
    )  # fmt: skip


def test_the_last_pass_is_known_from_the_disttags() -> None:
    batch = ScriptedBatch(make_plan((member("lib"), member("app", disttag=".el9_2.1"))))
    batch.put_all()
    batch.build(key("lib"), key("app"))
    assert find_last_pass(batch.state) == 0
    batch.order(OrderKind.SETTLE, key("lib"), settle_pass=2)
    assert find_last_pass(batch.state) == 2

# SPDX-License-Identifier: Apache-2.0
"""The table of arches: the shipped one, what a package allows, and a replaced one's faults by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import attr
import pytest

from reimzul.core.arch import Arches, read_arches
from reimzul.core.errors import ConfigError
from reimzul.core.rpm_header import Header

SHIPPED = read_arches()


def limits(**tags: Any) -> Header:
    """A header with these tags of arches."""
    header = Header(name="hello", epoch=None, version="1", release="1", arch="x86_64", is_source=True)
    return attr.evolve(header, **tags)


# --- the shipped table is the original's


@pytest.mark.parametrize(
    ("arch", "tube", "legs"),
    [
        ("x86_64", "x86_64", ("x86_64", "i386")),
        ("i386", "i386", ("i386",)),
        ("i686", "i386", ("i686",)),
        ("aarch64", "aarch64", ("aarch64",)),
        ("armhfp", "armv7l", ("armhfp",)),
        ("ppc64", "ppc64", ("ppc64", "ppc")),
        ("ppc64le", "ppc64le", ("ppc64le",)),
        ("noarch", "noarch", ("noarch",)),
    ],
)
def test_an_arch_has_its_tube_and_its_legs(arch: str, tube: str, legs: tuple[str, ...]) -> None:
    assert SHIPPED.tube_of(arch) == tube
    assert SHIPPED.legs_of(arch, "time") == legs


@pytest.mark.parametrize("package", ["kernel", "kernel-plus"])
def test_a_kernel_ends_with_noarch(package: str) -> None:
    assert SHIPPED.legs_of("x86_64", package) == ("x86_64", "i386", "noarch")
    assert SHIPPED.legs_of("noarch", package) == ("noarch",)


@pytest.mark.parametrize(
    ("machine", "tubes"),
    [
        ("x86_64", ["x86_64", "i386", "noarch"]),
        ("ppc64", ["ppc64", "ppc"]),
        ("armv7l", ["armv7l"]),
        ("aarch64", ["aarch64"]),
    ],
)
def test_a_builder_watches_its_own_tube_first(machine: str, tubes: list[str]) -> None:
    assert SHIPPED.tubes_of_machine(machine) == tubes


def test_every_tube_is_listed_once() -> None:
    assert sorted(SHIPPED.tubes()) == sorted({arch.tube for arch in SHIPPED.known.values()})


# --- what a package allows


@pytest.mark.parametrize(
    ("arch", "limits", "why"),
    [
        ("x86_64", limits(), None),
        ("x86_64", limits(exclusive_arch=("x86_64", "aarch64")), None),
        ("i386", limits(exclusive_arch=("i686",)), None),
        ("armhfp", limits(exclusive_arch=("armv7hl",)), None),
        ("x86_64", limits(exclusive_arch=("ppc64le", "s390x")), "ExclusiveArch is ppc64le s390x"),
        ("i386", limits(exclusive_arch=("x86_64",)), "ExclusiveArch is x86_64"),
        ("x86_64", limits(exclude_arch=("x86_64",)), "ExcludeArch is x86_64"),
        ("i386", limits(exclude_arch=("i686", "ppc")), "ExcludeArch is i686 ppc"),
        ("aarch64", limits(exclude_arch=("x86_64",)), None),
        ("x86_64", limits(exclusive_arch=("noarch",), build_archs=("noarch",)), None),
        ("x86_64", limits(exclusive_arch=("noarch",)), "ExclusiveArch is noarch"),
        ("x86_64", limits(exclusive_arch=("x86_64",), exclude_arch=("x86_64",)), "ExcludeArch is x86_64"),
        # what rpmbuild calls "No compatible architectures found for build"
        ("x86_64", limits(build_archs=("x86_64",)), None),
        ("i386", limits(build_archs=("x86_64",)), "BuildArch is x86_64"),
        ("i386", limits(build_archs=("i686", "x86_64")), None),
        ("x86_64", limits(build_archs=("i686",)), "BuildArch is i686"),
        ("aarch64", limits(build_archs=("noarch",)), None),
        ("aarch64", limits(build_archs=("x86_64", "noarch")), None),
        ("noarch", limits(build_archs=("x86_64",)), None),
        # macros that the packager's host did not know
        ("x86_64", limits(exclusive_arch=("%{zig_arches}",)), None),
        ("x86_64", limits(exclusive_arch=("aarch64", "%{zig_arches}")), None),
        ("x86_64", limits(exclude_arch=("%{zig_arches}",)), None),
        ("x86_64", limits(exclude_arch=("%{zig_arches}", "x86_64")), "ExcludeArch is %{zig_arches} x86_64"),
        ("i386", limits(build_archs=("x86_64", "%my_arch")), None),
    ],
)
def test_a_package_says_where_it_is_built(arch: str, limits: Header, why: str | None) -> None:
    assert SHIPPED.exclusion_reason(arch, limits) == why


@pytest.mark.parametrize(
    ("arch", "limits", "doubt"),
    [
        ("x86_64", limits(exclusive_arch=("x86_64", "%{zig_arches}")), ""),
        ("i386", limits(exclusive_arch=("x86_64", "%{zig_arches}")), "ExclusiveArch has %{zig_arches}"),
        ("x86_64", limits(exclude_arch=("s390x", "%{a}", "%b")), "ExcludeArch has %{a} %b"),
        ("i386", limits(build_archs=("x86_64", "%my_arch")), "BuildArch has %my_arch"),
        ("i386", limits(build_archs=("noarch", "%my_arch")), ""),
        (
            "i386",
            limits(exclusive_arch=("%{a}",), exclude_arch=("%{b}",)),
            "ExclusiveArch has %{a}, ExcludeArch has %{b}",
        ),
        ("x86_64", limits(exclusive_arch=("ppc64le",), exclude_arch=("i686",)), ""),
    ],
)
def test_macros_that_decide_are_named(arch: str, limits: Header, doubt: str) -> None:
    assert SHIPPED.exclusion_doubt(arch, limits) == doubt


# --- a table of one's own


def table(tmp_path: Path, text: str) -> Arches:
    path = tmp_path / "arches.yml"
    path.write_text(text)
    return read_arches(path)


def test_a_replaced_table_holds_alone(tmp_path: Path) -> None:
    own = table(tmp_path, "arches: {riscv64: {tube: rv, follows: [riscv32]}, riscv32: }\nserves: {riscv64: [rv]}\n")
    assert list(own.known) == ["riscv64", "riscv32"]
    assert own.legs_of("riscv64", "kernel") == ("riscv64", "riscv32")
    assert own.tubes() == ["rv", "riscv32"]
    assert own.tubes_of_machine("riscv64") == ["riscv64", "rv"]


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("[a, b]", "the file: must be a mapping"),
        ("archs: {}", "the file: archs is not known; arches, noarch_last, serves are"),
        ("arches: []", "arches: must be a mapping"),
        ("arches: {x86_64: i386}", "arches: x86_64: must be a mapping, not 'i386'"),
        ("arches: {x86_64: {folows: []}}", "arches: x86_64: folows is not known"),
        ("arches: {x86_64: {follows: i386}}", "arches: x86_64: follows: must be a list"),
        ("arches: {x86_64: {follows: [i386]}}", "x86_64 is followed by i386, which is no arch of the table"),
        ("arches: {../x: }", "'../x' is no name of an arch"),
        ("arches: {x86_64: {tube: 'x y'}}", "'x y' is no name of an arch or a tube"),
        ("arches: {x86_64: {tube: -x}}", "'-x' is no name of an arch or a tube"),
        ("arches: {386: }", "386 is no name of an arch"),
        ("serves: {x86_64: i386}", "serves: x86_64: must be a list"),
        ("noarch_last: kernel", "noarch_last: must be a list of package names"),
        ("arches: {x86_64: [}", "cannot be read as the table of arches"),
        ("arches: !!python/object/apply:os.system [id]", "cannot be read as the table of arches"),
    ],
)
def test_a_fault_is_named_with_the_file(tmp_path: Path, text: str, fault: str) -> None:
    with pytest.raises(ConfigError) as refused:
        table(tmp_path, text)
    said = str(refused.value)
    assert said.startswith(f"{tmp_path}/arches.yml: ")
    assert fault in said
    assert len(said.splitlines()) == 1


def test_a_table_that_is_not_there_or_not_text_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="No such file"):
        read_arches(tmp_path / "none.yml")
    (tmp_path / "binary.yml").write_bytes(b"\xff\xfe\xfd")
    with pytest.raises(ConfigError, match="binary.yml"):
        read_arches(tmp_path / "binary.yml")

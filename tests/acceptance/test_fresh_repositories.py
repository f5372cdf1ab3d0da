# SPDX-License-Identifier: Apache-2.0
"""What a package is built against: the newest that is published when its build begins, on every arch."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from typing import Callable

import pytest

from devfarm.farm import Farm
from tests import srpms
from tests.acceptance.conftest import TARGET, Witness, submit

Package = Callable[[str, str], Path]


@pytest.fixture
def build(farm: Farm, witness: Witness, package: Package) -> Callable[..., dict[str, str]]:
    """Builds a compiled package and waits until it is published; by arch, what its buildroot had."""

    def build_package(name: str, version: str, requires: str = "gcc", target: str = TARGET) -> dict[str, str]:
        srpm = package(name, srpms.compiled(name, version=version, requires=requires))
        assert submit(farm, srpm, target=target).returncode == 0
        published = witness.published(srpm.name, "x86_64", "i386", seconds=120)
        logs = {event.arch: farm.layout.store.place(event.place) / "installed_pkgs.log" for event in published}
        return {arch: log.read_text() for arch, log in logs.items()}

    return build_package


def find_installed(installed: str, name: str) -> list[str]:
    return re.findall(rf"^({name}-\d\S*) \d+ \d+ installed$", installed, re.MULTILINE)


def test_a_dependent_is_built_against_what_was_published_last(build: Callable[..., dict[str, str]]) -> None:
    build("libfoo-devel", "1.0")
    first = build("usefoo", "1.0", "libfoo-devel >= 1")
    assert find_installed(first["x86_64"], "libfoo-devel") == ["libfoo-devel-1.0-1.demo.x86_64"]
    # an i386 leg is published with the x86_64 leg that it follows, and is found there
    assert find_installed(first["i386"], "libfoo-devel") == ["libfoo-devel-1.0-1.demo.i686"]

    build("libfoo-devel", "2.0")
    second = build("usefoo", "2.0", "libfoo-devel >= 1")
    assert find_installed(second["x86_64"], "libfoo-devel") == ["libfoo-devel-2.0-1.demo.x86_64"]
    assert find_installed(second["i386"], "libfoo-devel") == ["libfoo-devel-2.0-1.demo.i686"]


def test_a_requirement_is_met_once_it_is_published(build: Callable[..., dict[str, str]]) -> None:
    build("libbar-devel", "1.0")
    build("usebar", "1.0", "libbar-devel")  # by now all builders have metadata of before
    build("usebar", "1.1", "libbar-devel")
    build("libbar-devel", "2.0")
    assert find_installed(build("usebar", "2.0", "libbar-devel >= 2.0")["i386"], "libbar-devel") == [
        "libbar-devel-2.0-1.demo.i686"
    ]


def test_a_requirement_that_is_too_new_is_the_packages_fault(farm: Farm, witness: Witness, package: Package) -> None:
    newest = package("libbaz-devel", srpms.noarch("libbaz-devel"))
    submit(farm, newest)
    witness.published(newest.name, "x86_64")
    srpm = package("usebaz", srpms.compiled("usebaz", requires="libbaz-devel >= 9"))
    submit(farm, srpm)
    assert witness.failed(srpm.name, "x86_64").reason == "BuildRequires that nobody provides: libbaz-devel >= 9"


def test_a_direct_i386_request_of_a_target_that_never_was(farm: Farm, witness: Witness, package: Package) -> None:
    farm.configs.add_target("fresh.1", farm.arches)

    def build_dependent(name: str, requires: str) -> str:
        srpm = package(name, srpms.compiled(name, requires=requires))
        argv = ["i386" if word == farm.arch else word for word in farm.submit_command(srpm, "fresh.1")]
        subprocess.run(argv, check=True, timeout=30)
        (event,) = witness.published(srpm.name, "i386", seconds=120)
        assert event.target == "fresh.1.i386"
        return (farm.layout.store.place(event.place) / "installed_pkgs.log").read_text()

    build_dependent("libqux-devel", "gcc")
    assert find_installed(build_dependent("usequx", "libqux-devel"), "libqux-devel") == ["libqux-devel-1.0-1.demo.i686"]

# SPDX-License-Identifier: Apache-2.0
"""reimzul.spec agrees with the rest of the tree: versions, libraries and their least versions, programs, units."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from reimzul import __version__

TREE = Path(__file__).parents[2]
SPEC = (TREE / "reimzul.spec").read_text(encoding="utf-8")
PROJECT = (TREE / "pyproject.toml").read_text(encoding="utf-8")
#: What a library of PyPI is called in Fedora and EL, where it is not python3-<name>. greenstalk is bundled.
PACKAGES = {"attrs": "python3-attrs", "pyyaml": "python3-pyyaml"}


def read_declared(name: str) -> dict[str, str]:
    """The libraries of a list in pyproject.toml, and the least version of each."""
    found = re.search(rf"^{name} = \[\n(.*?)^\]", PROJECT, re.MULTILINE | re.DOTALL)
    assert found, name
    return dict(re.findall(r'^ *"([a-z0-9-]+)>=([0-9.]+)', found[1], re.MULTILINE))


def required(package: str) -> dict[str, str]:
    """What a package of the spec asks for: name -> least version, or nothing."""
    part = SPEC.partition(f"\n%package {package}\n")[2].partition("\n%description")[0]
    assert part, package
    rows = re.findall(r"^(?:Requires|Recommends):\s+(\S+)(?: >?= (\S+))?$", part, re.MULTILINE)
    return {name.replace("%{name}", "reimzul"): least for name, least in rows}


def test_the_version_is_the_same_everywhere() -> None:
    assert re.search(rf"^Version: +{re.escape(__version__)}$", SPEC, re.MULTILINE)
    assert f'\nversion = "{__version__}"\n' in PROJECT
    assert f" - {__version__}-1\n" in SPEC.partition("%changelog")[2]


def test_the_bundled_library_is_the_one_that_is_fetched() -> None:
    version = re.search(r"^%global greenstalk (\S+)$", SPEC, re.MULTILINE)
    assert version
    assert f"GREENSTALK=greenstalk-{version[1]}-py3-none-any.whl\n" in (TREE / "tools/rpm").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("package", "library_list"), [("common", "dependencies"), ("controller", "controller"), ("irc", "irc")]
)
def test_a_package_asks_for_its_libraries_as_new_as_they_have_to_be(package: str, library_list: str) -> None:
    asked = required(package)
    for other in [name.partition("-")[2] for name in asked if name.startswith("reimzul-")]:
        asked = {**required(other), **asked}
    for library, least in read_declared(library_list).items():
        if library == "greenstalk":
            assert "bundled(python3dist(greenstalk))" in SPEC
        elif library == "rpm":
            assert "python3-rpm" in asked  # the distribution's own bindings, and no shim that shows them
        else:
            assert asked[PACKAGES.get(library, f"python3-{library}")] == least


def test_every_program_is_packaged() -> None:
    for program in re.findall(r'^(reimzul[\w-]*) = "[\w.]+:main"$', PROJECT, re.MULTILINE):
        assert f"%{{_bindir}}/{program}\n" in SPEC, program


def test_every_component_is_packaged() -> None:
    rooms = {path.name for path in (TREE / "reimzul").iterdir() if (path / "__init__.py").exists()}
    named = re.search(r"^%global rooms (.+)$", SPEC, re.MULTILINE)
    assert named
    assert set(named[1].split()) == rooms


def test_no_network_is_asked_for_while_it_builds() -> None:
    build = SPEC.partition("%prep")[2].partition("%files")[0]
    assert not re.search(r"\b(pip|curl|wget|git|dnf)\b", build)

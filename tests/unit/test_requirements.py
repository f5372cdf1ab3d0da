# SPDX-License-Identifier: Apache-2.0
"""What tools/install and tools/setup take from PyPI is locked: one version with hashes, for every Python we promise."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from packaging.requirements import Requirement

TREE = Path(__file__).parents[2]
PYTHONS = ("3.9", "3.10", "3.11", "3.12", "3.13")
#: Lock -> the extras of pyproject.toml that it is made of.
LOCKS = {
    "builder": (),
    "controller": ("controller", "irc"),
    "unit": ("controller", "irc", "unit"),
    "dev": ("controller", "dev", "unit", "irc"),
}


def read_lock(name: str) -> dict[Requirement, int]:
    """The requirements of a lock, with the number of their hashes."""
    text = (TREE / f"requirements/{name}.txt").read_text(encoding="utf-8").replace("\\\n", " ")
    lines = (line for line in text.splitlines() if line and not line.startswith("#"))
    return {Requirement(line.partition(" --hash")[0]): line.count("--hash=sha256:") for line in lines}


def read_declared(extras: tuple[str, ...]) -> list[Requirement]:
    """What pyproject.toml asks for: Python 3.9 has no reader of TOML."""
    text = (TREE / "pyproject.toml").read_text(encoding="utf-8")
    keys = ("dependencies", *extras)
    blocks = [re.search(rf"^{key} = \[\n(.*?)^\]", text, re.MULTILINE | re.DOTALL) for key in keys]
    found = [
        Requirement(each) for block in blocks if block for each in re.findall(r'^    "(.+)",', block[1], re.MULTILINE)
    ]
    return [each for each in found if each.name != "reimzul"]


@pytest.mark.parametrize("name", [*LOCKS, "mongo"])
def test_every_version_is_exact_and_has_a_hash(name: str) -> None:
    for requirement, hashes in read_lock(name).items():
        assert [each.operator for each in requirement.specifier] == ["=="], requirement
        assert hashes, requirement


@pytest.mark.parametrize("python", PYTHONS)
@pytest.mark.parametrize("name", LOCKS)
def test_a_lock_has_all_that_is_asked_for(name: str, python: str) -> None:
    environment = {"python_version": python, "python_full_version": f"{python}.0", "sys_platform": "linux"}
    found = [each for each in read_lock(name) if not each.marker or each.marker.evaluate(environment)]
    for wanted in read_declared(LOCKS[name]):
        if wanted.marker and not wanted.marker.evaluate(environment):
            continue
        versions = [next(iter(each.specifier)).version for each in found if each.name.lower() == wanted.name.lower()]
        assert len(versions) == 1, f"{wanted} on {python}: {versions}"
        assert wanted.specifier.contains(versions[0]), f"{wanted} on {python}: {versions}"


def test_nothing_is_taken_from_pypi_without_its_hash() -> None:
    for name in ("install", "setup"):
        for line in (TREE / "tools" / name).read_text(encoding="utf-8").splitlines():
            if re.search(r"pip\[@\]\}\"|pip install -[^q]", line):
                assert "--require-hashes" in line or "--no-deps --no-build-isolation" in line, f"tools/{name}: {line}"

# SPDX-License-Identifier: Apache-2.0
"""The commands of `reimzul setup` on the pages about installing, run as they are written, one after the other."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

from reimzul.admin.setup import roles
from tests.setuphost import Host
from tests.unit.test_docs import blocks_of

_DOCS = Path(__file__).parents[2] / "docs"


class Farm:
    """Hosts, and the keys that the controller has printed, by the name that each has."""

    def __init__(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.hosts = {role: Host(tmp_path / role, tmp_path / f"{role}.state", monkeypatch) for role in ("bstore", "b3")}
        self.controller = Host(tmp_path / "controller", tmp_path / "controller.state", monkeypatch)
        self.keys: dict[str, str] = {}

    def run_on_controller(self, *words: str) -> str:
        printed = self.controller.done("controller", *words)
        self.keys.update((line.partition(":")[0], line) for line in printed.splitlines() if ":" in line)
        return printed

    def run_page(self, page: str, host: Host, role: str) -> Iterator[str]:
        """Run each command of a page; yield it once it is done."""
        for line in blocks_of(_DOCS / page):
            words = shlex.split(line)
            if words[:3] == ["reimzul", "setup", role]:
                given = "\n".join(self._choose_keys(words)) if "--psk-file" in words else ""
                host.done(*words[2:], given=given)
                yield line

    def _choose_keys(self, words: list[str]) -> Iterator[str]:
        """The lines that the page says one pastes there."""
        wanted = {
            "--add-builder": ("b3",),
            "--new-event-key": ("events",),
            "--name": ("b3",),
        }  # fmt: skip
        option = next((each for each in wanted if each in words), "")
        for name in wanted.get(option, ("bstore.example.org", "controller", "events")):
            yield self.keys[name]


@pytest.fixture
def farm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Farm:
    farm = Farm(tmp_path, monkeypatch)
    farm.run_on_controller("--controller", "controller.example.org")
    farm.run_on_controller("--add-bstore", "bstore.example.org", "--add-builder", "b3")
    return farm


def test_the_page_of_bstore(farm: Farm) -> None:
    bstore, done = farm.hosts["bstore"], []
    for line in farm.run_page("install-bstore.md", bstore, "bstore"):
        done.append(line)
        if "--add-builder b3" in line:
            assert farm.keys["b3"] in bstore.text(roles.ACCEPTED)
            farm.run_on_controller("--new-event-key")
        elif line.endswith("--revoke b3"):
            assert farm.keys["b3"] not in bstore.text(roles.ACCEPTED)
    assert len(done) >= 9
    assert bstore.text(roles.PUBLIC_URL) == "https://farm.example.org/\n"


def test_the_page_of_builders(farm: Farm) -> None:
    assert len(list(farm.run_page("install-builder.md", farm.hosts["b3"], "builder"))) >= 2
    assert "\nmock = reimzul-standin-mock\n" in farm.hosts["b3"].text(roles.SETTINGS)


def test_the_page_of_the_controller(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    farm = Farm(tmp_path, monkeypatch)
    done = list(farm.run_page("install-controller.md", farm.controller, "controller"))
    assert len(done) >= 12
    settings = farm.controller.text(roles.SETTINGS)
    assert "\nurl = mongodb://localhost:27017/\n" in settings
    assert "\npublic_url = https://farm.example.org/\n" in settings

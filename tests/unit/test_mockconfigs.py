# SPDX-License-Identifier: Apache-2.0
"""The configurations that a farm on one machine generates: which repositories of its own each arch reads."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from devfarm import mockconfigs
from devfarm.mockconfigs import MockConfigs
from reimzul.core.store_paths import StorePaths


@pytest.fixture
def commands(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The programs that were run, none of them for real."""
    called: list[list[str]] = []

    def capture(argv: list[object], **_: object) -> str:
        called.append([str(word) for word in argv])
        return ""

    monkeypatch.setattr(mockconfigs, "output_of", capture)
    monkeypatch.setattr(mockconfigs, "find_program", lambda name: name)
    return called


def added(configs: MockConfigs, *arches: str) -> dict[str, str]:
    (configs.folder / "mock").mkdir(parents=True)
    configs.add_target("c9", list(arches))
    return {arch: (configs.folder / "mock" / f"c9.{arch}.cfg").read_text() for arch in arches}


def urls(text: str) -> list[str]:
    return re.findall("^baseurl=(.*)$", text.split("config_opts['dnf.conf']")[-1], re.MULTILINE)


def test_an_arch_that_follows_reads_where_it_is_published_first(tmp_path: Path, commands: list[list[str]]) -> None:
    texts = added(MockConfigs(tmp_path / "git", StorePaths(tmp_path / "store")), "x86_64", "i386", "aarch64")
    assert urls(texts["x86_64"]) == ["http://repohost/repo/c9.x86_64/"]
    assert urls(texts["i386"]) == ["http://repohost/repo/c9.x86_64/", "http://repohost/repo/c9.i386/"]
    assert urls(texts["aarch64"]) == ["http://repohost/repo/c9.aarch64/"]


def test_an_arch_that_has_nobody_to_follow_reads_its_own(tmp_path: Path, commands: list[list[str]]) -> None:
    texts = added(MockConfigs(tmp_path / "git", StorePaths(tmp_path / "store")), "i386")
    assert urls(texts["i386"]) == ["http://repohost/repo/c9.i386/"]


def test_nothing_is_skipped_where_each_target_has_repodata(tmp_path: Path, commands: list[list[str]]) -> None:
    store = StorePaths(tmp_path / "store")
    texts = added(MockConfigs(tmp_path / "git", store), "x86_64", "i386")
    assert not [text for text in texts.values() if "skip_if_unavailable" in text or "metadata_expire" in text]
    made = [argv[-1] for argv in commands if argv[0] == "createrepo_c"]
    assert made == [str(store.target("c9.x86_64")), str(store.target("c9.i386"))]


def test_repodata_that_is_there_is_left_alone(tmp_path: Path, commands: list[list[str]]) -> None:
    store = StorePaths(tmp_path / "store")
    (store.target("c9.x86_64") / "repodata").mkdir(parents=True)
    added(MockConfigs(tmp_path / "git", store), "x86_64")
    assert not [argv for argv in commands if argv[0] == "createrepo_c"]


def test_a_store_elsewhere_may_not_have_the_target_yet(tmp_path: Path, commands: list[list[str]]) -> None:
    texts = added(MockConfigs(tmp_path / "git"), "x86_64", "i386")
    assert [text.count("skip_if_unavailable=1") for text in texts.values()] == [1, 2]

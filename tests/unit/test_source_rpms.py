# SPDX-License-Identifier: Apache-2.0
"""A .nosrc.rpm is a source rpm wherever one is looked for by its name."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

from reimzul.core.validators import is_source_rpm
from reimzul.history import BuildFilter
from reimzul.worker.mock_result import Fault
from reimzul.worker.upload import prune_results

SOURCES = ["a-1-1.src.rpm", "a-1-1.nosrc.rpm"]


@pytest.mark.parametrize("name", SOURCES)
@pytest.mark.parametrize("main", [True, False])
def test_only_the_main_leg_uploads_the_source_rpm(tmp_path: Path, name: str, main: bool) -> None:
    for file in (name, "a-1-1.noarch.rpm"):
        (tmp_path / file).touch()
    prune_results(SimpleNamespace(results=tmp_path, is_main=main), SimpleNamespace(fault=Fault.NONE))  # type: ignore[arg-type]
    assert (tmp_path / name).exists() == main
    assert (tmp_path / "a-1-1.noarch.rpm").exists()


@pytest.mark.parametrize("name", SOURCES)
def test_its_whole_name_is_looked_for_as_one(name: str) -> None:
    assert is_source_rpm(name)
    assert BuildFilter(srpm=name).is_whole_srpm


def test_a_package_whose_name_ends_alike_is_none() -> None:
    assert not is_source_rpm("src.rpm")
    assert not is_source_rpm("a-nosrc-1-1.noarch.rpm")

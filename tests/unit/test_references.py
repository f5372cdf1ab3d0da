# SPDX-License-Identifier: Apache-2.0
"""What code and units say about other files is true: a file that a comment, a docstring or a message names exists."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

TREE = Path(__file__).parents[2]
SOURCES = sorted(
    path
    for folder in ("reimzul", "devfarm", "bench", "tools", "systemd", "conf")
    for path in (TREE / folder).rglob("*")
    if path.suffix in ("", ".py", ".yml", ".conf", ".service", ".target") and path.is_file()
)
#: A page or a module of ours, as `docs/wire.md`, `core/fs.py` or `mock.py`.
_FILE = re.compile(r"(?<![\w./<>*{}-])((?:[\w-]+/)*[\w-]+\.(?:md|py))\b(?![\w/(])")
#: Files of other programs that are named too.
_FOREIGN = {"reimzul_submit.py", "reimzul_worker.py", "util.py", "exception.py", "format_v4.md", "format_lead.md"}


pytestmark = pytest.mark.sources


def named_files(path: Path) -> Iterator[str]:
    for name in _FILE.findall(path.read_text(encoding="utf-8", errors="replace")):
        if Path(name).name not in _FOREIGN and not name.startswith("http"):
            yield name


def exists(name: str, beside: Path) -> bool:
    folders = (TREE, TREE / "reimzul", TREE / "docs", beside, beside.parent)
    return any((folder / name).exists() for folder in folders)


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(TREE)))
def test_files_that_are_named_exist(path: Path) -> None:
    assert [name for name in named_files(path) if not exists(name, path.parent)] == []


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(TREE)))
def test_sections_are_named_by_their_heading(path: Path) -> None:
    assert not re.search(r"\.md,? section \d", path.read_text(encoding="utf-8", errors="replace"))

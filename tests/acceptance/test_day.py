# SPDX-License-Identifier: Apache-2.0
"""A working day, as docs/operating.md has it, on a farm that lives: every command of it, and what it prints."""

from __future__ import annotations

import getpass
from pathlib import Path

import pytest

from tests import walk


@pytest.mark.slow
def test_the_day_on_the_page_is_a_day_on_a_farm(tmp_path: Path) -> None:
    (tmp_path / "srpms").mkdir()
    with walk.farm(tmp_path / "farm") as farm:
        told = list(walk.Day(farm, walk.sources(tmp_path / "srpms")).run())
    page = walk.blocks(walk.of_page())
    steps = [step for step, typed, _ in told if typed]
    day = walk.blocks(walk.text(iter(told), tmp_path / "farm").replace(getpass.getuser(), "root"))
    how = "the page is another day: python -m tests.walk"
    assert [walk.alike(command) for command, _ in day] == [walk.alike(command) for command, _ in page], how
    for step, (command, seen), (_, written) in zip(steps, day, page):
        assert walk.compared(step, seen) == walk.compared(step, written), f"{command}: {how}"


def test_the_words_between_the_commands_are_on_the_page() -> None:
    page = walk.of_page()
    assert all(step.words in page for step in walk.STEPS)
    assert len(walk.blocks(page)) == sum(bool(step.command) for step in walk.STEPS)

# SPDX-License-Identifier: Apache-2.0
"""A wrong value of an option is answered with what would be right, in every command."""

from __future__ import annotations

import click
import pytest

from reimzul.core.option_types import NearestChoice, Seconds, WholeNumber
from tests.unit.test_help import ALL


@pytest.mark.parametrize("text", ["0", "101", "-1", "x", "1.5", ""])
def test_a_whole_number_has_limits(text: str) -> None:
    assert WholeNumber(1, 100).convert("100", None, None) == 100
    with pytest.raises(click.BadParameter, match=rf"^'{text}' is not a whole number from 1 to 100$"):
        WholeNumber(1, 100).convert(text, None, None)


@pytest.mark.parametrize("text", ["-1", "nan", "inf", "soon", ""])
def test_seconds_are_from_0_on(text: str) -> None:
    assert Seconds().convert("0.5", None, None) == 0.5
    with pytest.raises(click.BadParameter, match=rf"^'{text}' is not a number of seconds from 0 on$"):
        Seconds().convert(text, None, None)
    with pytest.raises(click.BadParameter, match="^'3601' is not a number of seconds from 0 to 3,600$"):
        Seconds(3600).convert("3601", None, None)


def test_an_unknown_word_is_answered_with_the_nearest() -> None:
    choice = NearestChoice(("list", "show"))
    assert choice.convert("SHOW", None, None) == "show"
    with pytest.raises(click.BadParameter, match="^'shw' is unknown; is show meant\\?$"):
        choice.convert("shw", None, None)
    with pytest.raises(click.BadParameter, match="^'zzzz' is unknown; there are list, show$"):
        choice.convert("zzzz", None, None)


@pytest.mark.parametrize("name", ALL)
def test_no_command_has_types_that_answer_otherwise(name: str) -> None:
    ours = (NearestChoice, Seconds, WholeNumber)
    theirs = (click.Choice, click.types.IntParamType, click.types.FloatParamType)
    wrong = [each for each in ALL[name].command.params if isinstance(each.type, theirs)]
    assert [each.name for each in wrong if not isinstance(each.type, ours)] == []

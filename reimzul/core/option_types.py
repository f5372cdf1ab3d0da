# SPDX-License-Identifier: Apache-2.0
"""The types of options: what is wrong with a value is answered with what would be right."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import click

from reimzul.core import validators
from reimzul.core.formatting import suggest_nearest

if TYPE_CHECKING:
    _Choice = click.Choice[str]
else:  # not generic before click 8.4
    _Choice = click.Choice


class NearestChoice(_Choice):
    """A choice that answers an unknown word with the nearest known one."""

    def __init__(self, choices: Iterable[str]) -> None:
        super().__init__(list(choices), case_sensitive=False)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        known = {each.lower(): each for each in self.choices}
        word = str(value).lower()
        if word not in known:
            hint = suggest_nearest(word, known) or f"; there are {', '.join(self.choices)}"
            self.fail(f"{validators.quoted(str(value))} is unknown{hint}", param, ctx)
        return known[word]


class WholeNumber(click.IntRange):
    """A whole number between two others."""

    def __init__(self, least: int, most: int, what: str = "") -> None:
        super().__init__(least, most)
        self._what = what or f"a whole number from {least:,} to {most:,}"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        try:
            return int(super().convert(value, None, None))
        except click.BadParameter:
            self.fail(f"{validators.quoted(str(value))} is not {self._what}", param, ctx)

    def _describe_range(self) -> str:  # what click's help shows
        return f"{self.min} to {self.max}"


class Seconds(click.FloatRange):
    """A number of seconds, from 0 on."""

    def __init__(self, most: float | None = None) -> None:
        super().__init__(0, most)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        try:
            seconds = float(super().convert(value, None, None))
        except click.BadParameter:
            seconds = math.nan
        if not math.isfinite(seconds):
            limits = "from 0 on" if self.max is None else f"from 0 to {self.max:,.0f}"
            self.fail(f"{validators.quoted(str(value))} is not a number of seconds {limits}", param, ctx)
        return seconds

    def _describe_range(self) -> str:
        return "0 or more" if self.max is None else f"0 to {self.max:,.0f}"

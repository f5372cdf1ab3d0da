# SPDX-License-Identifier: Apache-2.0
"""Where what is followed is shown: a table that is drawn anew in its place, or a line for each change."""

from __future__ import annotations

import abc
import json
import shutil
import sys
import time
from collections.abc import Sequence

import click

from reimzul.admin.following import GOOD, HEADS, Row, as_object, cells
from reimzul.admin.table import fitted, when

#: How many columns the narrowest terminal shows.
_NEEDED = 6


class Screen(abc.ABC):
    """Something that rows are shown on."""

    @abc.abstractmethod
    def show(self, rows: Sequence[Row], note: str) -> None:
        """Show how things stand; `note` is about all of them."""


class Table(Screen):
    """A terminal."""

    def __init__(self) -> None:
        self._drawn = 0

    def show(self, rows: Sequence[Row], note: str) -> None:
        """Draw over what was drawn before."""
        size = shutil.get_terminal_size((100, 24))
        room = max(1, size.lines - 3)
        # those that are over make room first, and of them those that went well; the order stays
        chosen = sorted(range(len(rows)), key=lambda number: (rows[number].over, rows[number].state in GOOD))[:room]
        shown = [rows[number] for number in sorted(chosen)]
        lines = list(fitted([HEADS, *map(cells, shown)], size.columns, _NEEDED))
        if len(shown) < len(rows):
            lines.append(f"and {len(rows) - len(shown)} more")
        if note:
            lines.append(note[: size.columns])
        back = f"\x1b[{self._drawn}A" if self._drawn else ""
        # each line is cleared behind its end, and what was below the last one too
        sys.stdout.write(back + "".join(f"\r{line}\x1b[K\n" for line in lines) + "\x1b[J")
        sys.stdout.flush()
        self._drawn = len(lines)


class Lines(Screen):
    """A pipe."""

    def __init__(self, *, as_json: bool) -> None:
        self._as_json = as_json
        self._said: dict[tuple[str, str], tuple[str, ...]] = {}
        self._note = ""

    def show(self, rows: Sequence[Row], note: str) -> None:
        """Say what has changed: of each leg its state, its attempt and its phase."""
        now = time.time()
        for each in rows:
            key = (each.build_id, each.arch)
            if self._said.get(key) != each.changed:
                self._said[key] = each.changed
                self._say(each, now)
        if note and note != self._note:
            click.echo(note, err=True)
        self._note = note

    def _say(self, row: Row, now: float) -> None:
        if self._as_json:
            click.echo(json.dumps(as_object(row, now), sort_keys=True))
        else:
            where = [row.url] if row.over and row.url else []
            click.echo("\t".join([when(now), *cells(row), *where]))
        sys.stdout.flush()


def screen(*, as_json: bool) -> Screen:
    """What fits where our output goes."""
    return Table() if sys.stdout.isatty() and not as_json else Lines(as_json=as_json)

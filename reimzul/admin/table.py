# SPDX-License-Identifier: Apache-2.0
"""Rows for people on a terminal, and for programs in a pipe."""

from __future__ import annotations

import json
import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from typing import Any

import click

#: What stands between two columns.
GAP = "  "
#: No column gets narrower than this for want of space.
NARROWEST = 6


def show(heads: Sequence[str], rows: Sequence[Sequence[str]], *, needed: int | None = None) -> None:
    """A table that fits the terminal; elsewhere a line a row, tabs between, no heads.

    Where the terminal is too narrow, columns are left out from the right, but not the first `needed` ones.
    """
    if sys.stdout.isatty():
        width = shutil.get_terminal_size((100, 24)).columns
        lines = fitted([list(heads), *rows], width, needed or len(heads))
        click.secho(next(lines), bold=True)
    else:
        lines = ("\t".join(row) for row in rows)
    for line in lines:
        click.echo(line)


def when(moment: float | None) -> str:
    """A time in seconds since 1970 as a cell: in UTC, as all times of the farm."""
    return "-" if not moment else time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(moment))


def show_json(value: Any) -> None:
    """The same for a program, with everything that is known."""
    click.echo(json.dumps(value, indent=2, sort_keys=True))


def fitted(rows: Sequence[Sequence[str]], width: int, needed: int) -> Iterator[str]:
    """Rows in columns; while those that are needed are wider than `width`, the widest of them gives way."""
    widths = [max(len(cell) for cell in column) for column in zip(*rows)]
    while _whole(widths) > width and len(widths) > needed:
        widths.pop()
    while _whole(widths) > width and max(widths) > NARROWEST:
        widths[widths.index(max(widths))] -= 1
    for row in rows:
        yield GAP.join(_cut(cell, size).ljust(size) for cell, size in zip(row, widths)).rstrip()


def _whole(widths: Sequence[int]) -> int:
    return sum(widths) + len(GAP) * (len(widths) - 1)


def _cut(cell: str, size: int) -> str:
    return cell if len(cell) <= size else cell[: size - 1] + "…"

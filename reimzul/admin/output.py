# SPDX-License-Identifier: Apache-2.0
"""Input and output that all commands share: options, questions, tables, JSON, times, sizes and counts.

Tables and lists are for people on a terminal and for programs in a pipe.
"""

from __future__ import annotations

import functools
import json
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Callable, TypeVar

import click

from reimzul.core import setting_parsers, validators
from reimzul.core.cli import load_settings, shared_options
from reimzul.core.errors import EXIT_USAGE, InputError, ReimzulError

F = TypeVar("F", bound=Callable[..., Any])

_COLUMN_GAP = "  "
#: No column is made narrower than this many characters.
_MIN_COLUMN_WIDTH = 6
_DATE_FORMATS = ("%Y-%m-%d", "%Y-%m-%dT%H:%M", "%Y-%m-%dT%H:%M:%SZ")


# --- options


def pass_settings(function: F) -> Any:
    """Add the options of every command; the function gets the settings of that configuration as its first argument."""

    @functools.wraps(function)
    def run(config: Path | None, verbose: bool, **given: Any) -> Any:
        return function(load_settings(config, verbose), **given)

    return shared_options(run)


yes_option = click.option("--yes", is_flag=True, help="Do not ask for confirmation. Required without a terminal.")


def json_option(output: str) -> Callable[[F], F]:
    return click.option("--json", "as_json", is_flag=True, help=f"Print JSON: {output}. See docs/json.md.")


def check_input(check: Callable[[Any], str], value: str, prefix: str = "") -> str:
    """What a person gave, as a check of core.validators accepts it. Raises `InputError`."""
    try:
        return check(value)
    except ValueError as error:
        raise InputError(f"{prefix}{error}") from None


class NoTerminal(ReimzulError):
    exit_code = EXIT_USAGE


def confirm(question: str, yes: bool) -> None:
    """Ask a person, unless --yes was given. Raises `NoTerminal`, and `ReimzulError` where the answer is no."""
    if not yes and not sys.stdin.isatty():
        raise NoTerminal(f"there is no terminal to ask for confirmation on: give --yes ({question})")
    if not yes and not click.confirm(question, err=True):
        raise ReimzulError("nothing was done")


def parse_duration_option(_: click.Context, __: click.Parameter, value: str | None) -> int | None:
    """Callback of an option that is a duration, as 12h or 7d: its seconds."""
    try:
        return None if value is None else setting_parsers.parse_span(value)
    except ValueError as error:
        raise click.BadParameter(str(error)) from None


def parse_since_option(_: click.Context, __: click.Parameter, value: str) -> float:
    """Callback of an option that is a duration before now, or a date in UTC: seconds since 1970."""
    try:
        return time.time() - setting_parsers.parse_span(value)
    except ValueError:
        pass
    for form in _DATE_FORMATS:
        try:
            return datetime.strptime(value, form).replace(tzinfo=timezone.utc).timestamp()
        except ValueError:
            continue
    raise click.BadParameter(f"{validators.quoted(value)} is neither a duration, as 12h or 7d, nor a date (2026-11-22)")


def since_option(text: str) -> Callable[[F], F]:
    return click.option(
        "--since", "begin", callback=parse_since_option, default="7d", show_default=True, metavar="WHEN", help=text
    )


def build_timestamp(at: float) -> str:
    """Format seconds since 1970 as the timestamp of a build.

    Times before 1970 count as 1970: no build is older, and a year of three digits would sort behind all others.
    """
    return time.strftime(validators.TIMESTAMP_FORMAT, time.gmtime(max(0.0, at)))


# --- tables and JSON


def print_table(heads: Sequence[str], rows: Sequence[Sequence[str]], *, needed: int | None = None) -> None:
    """Print a table that fits the terminal; in a pipe one line for each row, with tabs and without heads.

    On a narrow terminal, columns are left out from the right, but never the first `needed` ones.
    """
    if sys.stdout.isatty():
        import shutil  # it imports all compressors, which no pipe needs

        width = shutil.get_terminal_size((100, 24)).columns
        lines = fit_columns([list(heads), *rows], width, needed or len(heads))
        click.secho(next(lines), bold=True)
    else:
        lines = ("\t".join(row) for row in rows)
    for line in lines:
        click.echo(validators.make_printable(line))


def print_json(value: Any) -> None:
    click.echo(json.dumps(value, indent=2, sort_keys=True))


def print_result(value: Any, lines: Iterable[str], as_json: bool) -> None:
    """Print what a command has done or found, as JSON or as lines for a person."""
    if as_json:
        print_json(value)
    else:
        for line in lines:
            click.echo(validators.make_printable(line))


def fit_columns(rows: Sequence[Sequence[str]], width: int, needed: int) -> Iterator[str]:
    """Align rows in columns; while the needed columns are wider than `width`, shorten the widest of them."""
    widths = [max(len(cell) for cell in column) for column in zip(*rows)]
    while _total_width(widths) > width and len(widths) > needed:
        widths.pop()
    while _total_width(widths) > width and max(widths) > _MIN_COLUMN_WIDTH:
        widths[widths.index(max(widths))] -= 1
    for row in rows:
        cells = (cell if len(cell) <= size else cell[: size - 1] + "…" for cell, size in zip(row, widths))
        yield _COLUMN_GAP.join(cell.ljust(size) for cell, size in zip(cells, widths)).rstrip()


def _total_width(widths: Sequence[int]) -> int:
    return sum(widths) + len(_COLUMN_GAP) * (len(widths) - 1)


# --- times, sizes and counts


def format_time(moment: float | None) -> str:
    """Format seconds since 1970 in UTC, as all times of the farm."""
    return "-" if not moment else time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(moment))


def format_duration(seconds: float) -> str:
    """Format a duration in its two largest units: `4.2 s`, `38 s`, `5 min 07 s`, `3 h 20 min`, `2 d 4 h`."""
    seconds = max(0.0, seconds)
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    minutes, whole = divmod(round(seconds), 60)
    if not minutes:
        return f"{whole} s"
    hours, minutes = divmod(minutes, 60)
    if not hours:
        return f"{minutes} min {whole:02} s"
    return f"{hours} h {minutes:02} min" if hours < 24 else f"{hours // 24} d {hours % 24} h"


def format_skew(seconds: float) -> str:
    """Format how far a clock is off: `2 h 00 min ahead of the controller's`."""
    return f"{format_duration(abs(seconds))} {'ahead of' if seconds > 0 else 'behind'} the controller's"


def format_size(count: float) -> str:
    for unit in ("bytes", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "bytes" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"


def pluralize(number: int, thing: str) -> str:
    """Format a count with its noun: `1 build`, `2 builds`."""
    return f"{number:,} {thing}" + ("" if number == 1 else "s")


def join_words(words: list[str]) -> str:
    """Join words as in a sentence: `a`, `a and b`, `a, b and c`."""
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}" if words else ""


def join_parts(*parts: str) -> str:
    """Join the parts of a sentence, of which some may be empty."""
    return "".join(parts)

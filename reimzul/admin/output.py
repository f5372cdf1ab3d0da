# SPDX-License-Identifier: Apache-2.0
"""Input and output that all commands share: options, questions, tables, JSON, times, sizes and counts.

Tables and lists are for people on a terminal and for programs in a pipe.
"""

from __future__ import annotations

import functools
import json
import os
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Callable, TypeVar, cast

import attr
import click
from click.core import ParameterSource

from reimzul.core import setting_parsers, validators
from reimzul.core.cli import NEEDS_CONTROLLER, load_settings, shared_options
from reimzul.core.errors import EXIT_USAGE, InputError, ReimzulError
from reimzul.core.formatting import format_duration, join_words, suggest_nearest, to_output
from reimzul.core.option_types import NearestChoice
from reimzul.core.roles import require_controller

F = TypeVar("F", bound=Callable[..., Any])

_COLUMN_GAP = "  "
#: A column is shortened to this many characters before any is left out, and after that to the second number.
_READABLE_COLUMN_WIDTH, _MIN_COLUMN_WIDTH = 20, 6
#: The heads of columns with a state, and the colours of states.
_STATE_HEADS = ("STATE", "RESULT", "LAST RESULT")
_STATE_COLOURS = {
    **dict.fromkeys(("failed", "rejected", "buried", "unfit", "quarantined", "silent", "gone"), "red"),
    **dict.fromkeys(("published", "idle"), "green"),
    **dict.fromkeys(("building", "busy", "draining", "paused", "resting"), "yellow"),
}
#: More characters than the first sentence of any help has.
_MAX_SENTENCE = 1000
_DATE_FORMATS = ("%Y-%m-%d", "%Y-%m-%dT%H:%M", "%Y-%m-%dT%H:%M:%SZ")


# --- options


def pass_settings(function: F) -> Any:
    """Add the options of every command; the function gets the settings of that configuration as its first argument."""

    @functools.wraps(function)
    def run(config: Path | None, verbose: bool, **given: Any) -> Any:
        settings = load_settings(config, verbose)
        if program := click.get_current_context().meta.get(NEEDS_CONTROLLER):
            require_controller(program, settings, config)
        return function(settings, **given)

    return shared_options(color_option(run))


def _choose_colour(context: click.Context, _: click.Parameter, when: str) -> None:
    """Let click print colours always or never; by default it prints them on a terminal alone."""
    no_colour = when == "auto" and os.environ.get("NO_COLOR")
    context.color = {"always": True, "never": False}.get(when, False if no_colour else None)


color_option = click.option(
    "--color",
    type=NearestChoice(("auto", "always", "never")),
    default="auto",
    expose_value=False,
    callback=_choose_colour,
    help="When to colour states; auto: on a terminal, unless $NO_COLOR is set.",
)


def is_given(name: str) -> bool:
    """Whether a parameter of the running command was given, and has not just its default value."""
    return click.get_current_context().get_parameter_source(name) == ParameterSource.COMMANDLINE


yes_option = click.option("--yes", is_flag=True, help="Do not ask for confirmation. Required without a terminal.")


def json_option(output: str) -> Callable[[F], F]:
    return click.option("--json", "as_json", is_flag=True, help=f"Print JSON: {output}. See docs/json.md.")


def refuse_ignored(reason: str, *names: str) -> None:
    """Raise `UsageError` if one of these parameters is on the command line, where it has no effect for this reason.

    `reason` ends the sentence: `with --json`, `without --canary`.
    """
    context = click.get_current_context()
    ignored = [
        max(each.opts, key=len) if isinstance(each, click.Option) else each.human_readable_name
        for each in context.command.params
        if each.name in names and context.get_parameter_source(each.name) == ParameterSource.COMMANDLINE
    ]
    if ignored:
        has, them = ("has", "it") if len(ignored) == 1 else ("have", "them")
        raise click.UsageError(f"{join_words(ignored)} {has} no effect {reason}: leave {them} out")


def refuse_others(option: str, *names: str) -> None:
    """Raise `UsageError` if the command line has more than this option, `names`, and what all commands have."""
    allowed = {option.strip("-"), *names, "config", "verbose", "color"}
    ignored = [each.name or "" for each in click.get_current_context().command.params if each.name not in allowed]
    refuse_ignored(f"with {option}", *ignored)


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


def parse_moment_option(_: click.Context, __: click.Parameter, value: str | None) -> float | None:
    """Callback of an option that is a duration before now, or a date in UTC: seconds since 1970."""
    if value is None:
        return None
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


def period_options(what: str, *, default: str | None = "7d") -> Callable[[F], F]:
    """Add --since and --until, which say when builds were submitted; they are passed as `begin` and `end`."""

    def decorate(function: F) -> F:
        until = f"{what} submitted before then."
        since = f"{what} submitted since then: 12h, 7d, 2026-11-22, 2026-11-22T09:30 (UTC)."
        when: dict[str, Any] = {"callback": parse_moment_option, "metavar": "WHEN"}

        @functools.wraps(function)
        def run(*arguments: Any, **given: Any) -> Any:
            _check_period(given["begin"], given["end"], default)
            return function(*arguments, **given)

        run = click.option("--until", "end", help=until, **when)(run)
        return cast(F, click.option("--since", "begin", default=default, show_default=True, help=since, **when)(run))

    return decorate


def _check_period(begin: float | None, end: float | None, default: str | None) -> None:
    """Raise `UsageError` if the period ends before it begins: nothing can be in it."""
    if begin is not None and end is not None and end <= begin:
        hint = "" if is_given("begin") else f", which is {default} unless it is given"
        raise click.UsageError(f"--until is before --since{hint}")


def build_timestamp(at: float) -> str:
    """Format seconds since 1970 as the timestamp of a build.

    Times before 1970 count as 1970: no build is older, and a year of three digits would sort behind all others.
    """
    return time.strftime(validators.TIMESTAMP_FORMAT, time.gmtime(max(0.0, at)))


def period_filter(begin: float | None, end: float | None) -> dict[str, str | None]:
    """Return the fields of a `BuildFilter` for what --since and --until gave."""
    moments = {"since": begin, "until": end}
    return {name: None if at is None else build_timestamp(at) for name, at in moments.items()}


class NearestGroup(click.Group):
    """A group that answers an unknown subcommand with the nearest known one."""

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        known = self.list_commands(ctx)
        if args and not args[0].startswith("-") and args[0] not in known and not ctx.resilient_parsing:
            hint = suggest_nearest(args[0], known) or f"; `{ctx.command_path} --help` lists them"
            ctx.fail(f"there is no command {validators.quoted(args[0])}{hint}")
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List the subcommands with the whole first sentence of each; click would cut it to a line."""
        found = ((name, self.get_command(ctx, name)) for name in self.list_commands(ctx))
        with formatter.section("Commands"):
            formatter.write_dl([(name, each.get_short_help_str(_MAX_SENTENCE)) for name, each in found if each])


# --- tables and JSON


@attr.frozen
class Table:
    """The columns of a command's table."""

    heads: Sequence[str]  #: the first column is never shortened or left out
    dispensable: Sequence[str] = ()  #: those left out where the terminal is too narrow, the least important first

    def select(self, chosen: Sequence[str], rows: Iterable[Sequence[str]]) -> tuple[Table, list[Sequence[str]]]:
        """Return the table and the rows with the chosen columns alone, in that order."""
        places = [self.heads.index(head) for head in chosen]
        return Table(heads=chosen), [[row[place] for place in places] for row in rows]


def table_options(table: Table) -> Callable[[F], F]:
    """Add --columns and --wide to a command that prints this table; they are passed as `columns` and `wide`."""

    def parse_columns(_: click.Context, __: click.Parameter, given: str | None) -> list[str]:
        names = {head.lower().replace(" ", "-"): head for head in table.heads if head}
        chosen = [each.strip().lower() for each in given.split(",")] if given else []
        for name in chosen:
            if name not in names:
                hint = suggest_nearest(name, names) or f"; there are {', '.join(names)}"
                raise click.BadParameter(f"there is no column {validators.quoted(name)}{hint}")
        return [names[name] for name in chosen]

    def decorate(function: F) -> F:
        @functools.wraps(function)
        def run(*arguments: Any, **given: Any) -> Any:
            if given.get("as_json"):
                refuse_ignored("with --json", "columns", "wide")
            return function(*arguments, **given)

        wide = click.option("--wide", is_flag=True, help="Print every column in full, however narrow the terminal is.")
        names = "Print these columns, separated by commas, as " + ",".join(head.lower() for head in table.heads[:3])
        return click.option("--columns", callback=parse_columns, metavar="NAMES", help=f"{names}.")(wide(cast(F, run)))

    return decorate


def print_table(
    table: Table, rows: Iterable[Sequence[str]], *, columns: Sequence[str] = (), wide: bool = False
) -> None:
    """Print a table that fits the terminal; in a pipe one line for each row, with tabs and without heads.

    A last line on a terminal names the columns that were left out.
    """
    if columns:
        table, rows = table.select(columns, rows)
    if not sys.stdout.isatty():
        for row in rows:
            cells = zip(map(validators.make_printable, row), table.heads)
            click.echo("\t".join(colour_state(cell) if head in _STATE_HEADS else cell for cell, head in cells))
        return
    import shutil  # it imports all compressors, which no pipe needs

    width = sys.maxsize if wide else shutil.get_terminal_size((100, 24)).columns
    lines, left_out = fit_table(table, list(rows), width)
    click.secho(lines[0], bold=True)
    for line in lines[1:]:
        click.echo(line)
    if left_out:
        click.secho(f"{name_left_out(left_out)} (--wide, or --columns)", dim=True)


def name_left_out(heads: Sequence[str]) -> str:
    """Return the line that names the columns which a terminal has no room for; "" if it has room for all."""
    return f"left out for lack of room: {', '.join(heads)}" if heads else ""


def print_note(text: str, *, as_json: bool = False) -> None:
    """Print a line about a list: below it on a terminal, on stderr in a pipe and beside JSON."""
    click.secho(text, dim=True, err=as_json or not sys.stdout.isatty())


def print_none_found(thing: str, reason: str = "", *, as_json: bool = False) -> None:
    """Print that a list is empty, in the same words in every command, or the reason why it can have nothing."""
    print_note(reason or f"no {thing} found", as_json=as_json)


def print_json(value: Any, indent: int | None = 2) -> None:
    click.echo(json.dumps(to_output(value), indent=indent, sort_keys=True))


def print_result(value: Any, lines: Iterable[str], as_json: bool) -> None:
    """Print what a command has done or found, as JSON or as lines for a person."""
    if as_json:
        print_json(value)
    else:
        for line in lines:
            click.echo(validators.make_printable(line))


def fit_table(table: Table, rows: Sequence[Sequence[str]], width: int) -> tuple[list[str], list[str]]:
    """Return a table's lines, heads first and states coloured, and the heads that were left out.

    Long cells are shortened first; if that is not enough, the dispensable columns go, one by one.
    """
    kept = list(range(len(table.heads)))
    natural = [max(len(cell) for cell in column) for column in zip(table.heads, *rows)]
    left_out: list[str] = []
    widths = _shorten(natural, width, _READABLE_COLUMN_WIDTH)
    for head in table.dispensable:
        if _total_width(widths) <= width:
            break
        left_out.append(head)
        kept.remove(table.heads.index(head))
        widths = _shorten([natural[each] for each in kept], width, _READABLE_COLUMN_WIDTH)
    widths = _shorten(widths, width, _MIN_COLUMN_WIDTH)
    heads = [table.heads[each] for each in kept]
    lines = [_format_row([row[each] for each in kept], heads, widths) for row in rows]
    return [_format_row(heads, [""] * len(heads), widths), *lines], left_out


def shorten_line(line: str, width: int) -> str:
    """A line, or a cell, that is no longer than the room there is."""
    return line if len(line) <= width else f"{line[: width - 1]}…"


def _shorten(widths: Sequence[int], width: int, least: int) -> list[int]:
    """Make the widest columns behind the first narrower until all fit, or each has at most `least` characters."""
    first, rest = widths[0], list(widths[1:])
    while rest and _total_width([first, *rest]) > width and max(rest) > least:
        rest[rest.index(max(rest))] -= 1
    return [first, *rest]


def _total_width(widths: Sequence[int]) -> int:
    return sum(widths) + len(_COLUMN_GAP) * (len(widths) - 1)


def _format_row(cells: Sequence[str], heads: Sequence[str], widths: Sequence[int]) -> str:
    """Format one line; cells below a head of states are coloured."""
    parts = []
    for cell, head, size in zip(cells, heads, widths):
        fitted = shorten_line(cell, size)
        printable = validators.make_printable(fitted.replace("\t", " ").replace("\n", " "))
        padding = " " * (size - len(printable))
        parts.append((colour_state(printable) if head in _STATE_HEADS else printable) + padding)
    return _COLUMN_GAP.join(parts).rstrip()


def colour_state(text: str) -> str:
    """Colour a state, or a text that begins with one: red failed, green published, yellow running."""
    colour = _STATE_COLOURS.get(text.partition(" ")[0].rstrip(",:").lower())
    return click.style(text, fg=colour) if colour else text


class LiveScreen:
    """Lines on a terminal, redrawn in their place."""

    def __init__(self) -> None:
        self._drawn_lines = 0

    def draw(self, lines: Sequence[str]) -> None:
        cursor_up = f"\x1b[{self._drawn_lines}A" if self._drawn_lines else ""
        context = click.get_current_context(silent=True)
        if context and context.color is False:  # click.echo would drop the moves of the cursor as well
            lines = list(map(click.unstyle, lines))
        # clear behind the end of each line, and all that is below the last one
        sys.stdout.write(cursor_up + "".join(f"\r{line}\x1b[K\n" for line in lines) + "\x1b[J")
        sys.stdout.flush()
        self._drawn_lines = len(lines)


# --- sentences


def format_facts(*facts: tuple[str, str | None]) -> Iterator[str]:
    """Format facts with their labels; None: there is no such fact."""
    for label, text in facts:
        if text is not None:
            yield f"  {label:14}{text}"


def format_skew(seconds: float) -> str:
    """Format how far a clock is off: `2 h 00 min ahead of the controller's`."""
    return f"{format_duration(abs(seconds))} {'ahead of' if seconds > 0 else 'behind'} the controller's"


def join_parts(*parts: str) -> str:
    """Join the parts of a sentence, of which some may be empty."""
    return "".join(parts)

# SPDX-License-Identifier: Apache-2.0
"""Options that several commands share, their values, and the question before something that cannot be undone."""

from __future__ import annotations

import sys
import time
from datetime import datetime, timezone
from typing import Any, Callable, TypeVar

import click

from reimzul.core import setting_parsers, validators
from reimzul.core.errors import EXIT_USAGE, ReimzulError

F = TypeVar("F", bound=Callable[..., Any])

_DATE_FORMATS = ("%Y-%m-%d", "%Y-%m-%dT%H:%M", "%Y-%m-%dT%H:%M:%SZ")

yes_option = click.option("--yes", is_flag=True, help="Do not ask for confirmation. Required without a terminal.")
now_option = click.option("--now", is_flag=True, help="Queue before all other jobs (priority 1024 instead of 8192).")


def json_option(output: str) -> Callable[[F], F]:
    """The option `--json`; `output` is what it prints."""
    return click.option("--json", "as_json", is_flag=True, help=f"Print JSON: {output}. See docs/json.md.")


class NoTerminal(ReimzulError):
    """A command has to ask for confirmation, and there is no terminal."""

    exit_code = EXIT_USAGE


def confirm(question: str, yes: bool) -> bool:
    """Return True where a person confirms, now or by --yes. Raises `ReimzulError` where the answer is no."""
    if yes:
        return True
    if not sys.stdin.isatty():
        raise NoTerminal(f"there is no terminal to ask for confirmation on: give --yes ({question})")
    if not click.confirm(question, err=True):
        raise ReimzulError("nothing was done")
    return True


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


def build_timestamp(at: float) -> str:
    """Format seconds since 1970 as the timestamp of a build.

    Times before 1970 count as 1970: no build is older, and a year of three digits would sort behind all others.
    """
    return time.strftime(validators.TIMESTAMP_FORMAT, time.gmtime(max(0.0, at)))

# SPDX-License-Identifier: Apache-2.0
"""How far back a person wants to look: `36h`, `7d`, `2w`, or a date, as an option of a command."""

from __future__ import annotations

import time
from datetime import datetime, timezone

import click

from reimzul.core import config, validators

_DATES = ("%Y-%m-%d", "%Y-%m-%dT%H:%M", "%Y-%m-%dT%H:%M:%SZ")


def span(_: click.Context, __: click.Parameter, value: str | None) -> int | None:
    """An option that is a span of time: its seconds. For `callback=`."""
    try:
        return None if value is None else config.parse_span(value)
    except ValueError as error:
        raise click.BadParameter(str(error)) from None


def moment(_: click.Context, __: click.Parameter, value: str) -> float:
    """An option that is a span before now, or a date in UTC: seconds since 1970. For `callback=`."""
    try:
        return time.time() - config.parse_span(value)
    except ValueError:
        pass
    for form in _DATES:
        try:
            return datetime.strptime(value, form).replace(tzinfo=timezone.utc).timestamp()
        except ValueError:
            continue
    raise click.BadParameter(f"{validators.quoted(value)} is neither a span, as 12h or 7d, nor a date, as 2026-11-22")


def timestamp(at: float) -> str:
    """A moment as builds carry it; none of them is of before 1970, and a year of three digits would sort behind all."""
    return time.strftime(validators.TIMESTAMP_FORMAT, time.gmtime(max(0.0, at)))

# SPDX-License-Identifier: Apache-2.0
"""`reimzul prune --incoming` removes source rpms that no build needs, on the controller."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable

import attr
import click

from reimzul.admin import lookup
from reimzul.admin.output import Table, confirm, print_json, print_table
from reimzul.core.errors import InputError
from reimzul.core.formatting import format_size, format_time, pluralize
from reimzul.core.roles import require_controller
from reimzul.core.settings import Settings
from reimzul.history.incoming import OldSource, find_old_sources, remove_old_sources

_TABLE = Table(("SRPM", "SIZE", "LAST USED", ""), dispensable=("SIZE", "LAST USED"))


def prune_incoming(settings: Settings, older: int | None, *, dry_run: bool, yes: bool, as_json: bool) -> int:
    """Remove source rpms that were last needed longer ago than `older` seconds, by default [incoming] keep_days."""
    require_controller("`reimzul prune --incoming`", settings, click.get_current_context().params.get("config"))
    mine = settings.incoming
    if older is None and not mine.keep_days:
        raise InputError("no age says what to remove: give --older, or set [incoming] keep_days")
    before = time.time() - (mine.keep_days * 86400 if older is None else older)
    with lookup.reading_history(settings.history.url) as history:
        found = find_old_sources(history, mine.folder, before)
    unneeded = [each for each in found if not each.message]
    kept = [each for each in found if each.message]
    if unneeded and not dry_run:
        confirm(f"Remove {pluralize(len(unneeded), 'source rpm')}, {_total_size(unneeded)}?", yes)
        unneeded = remove_old_sources(mine.folder, unneeded, before)
    if as_json:
        print_json({"removed": [_to_json(each) for each in unneeded], "kept": [attr.asdict(each) for each in kept]})
        return 0
    if found:
        print_table(_TABLE, [_format_row(each) for each in (*unneeded, *kept)])
    verb = "would be removed" if dry_run else "removed"
    summary = f"{pluralize(len(unneeded), 'source rpm')} {verb}, {_total_size(unneeded)}"
    click.echo(summary, err=not sys.stdout.isatty())
    return 0


def _total_size(sources: Iterable[OldSource]) -> str:
    return format_size(sum(each.bytes for each in sources))


def _to_json(source: OldSource) -> dict[str, object]:
    return {"srpm": source.srpm, "bytes": source.bytes, "since": source.since}


def _format_row(source: OldSource) -> list[str]:
    reason = f"stays: {source.message}" if source.message else ""
    return [source.srpm, format_size(source.bytes), format_time(source.since), reason]

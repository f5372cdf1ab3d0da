# SPDX-License-Identifier: Apache-2.0
"""`reimzul scratch`: the scratch builds in the store, on bstore."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

import click

from reimzul.admin import since
from reimzul.admin.asking import agreed
from reimzul.admin.owner import store as own_store
from reimzul.admin.table import show, show_json
from reimzul.admin.words import counted, size, span
from reimzul.core.cli import EXIT_CODES, load_settings, shared_options
from reimzul.core.errors import InputError
from reimzul.store.cleanup import BuildDetails, drop_build, find_scratch_builds

_HEADS = ("BUILD ID", "TARGET", "PACKAGE", "ARCH", "STATUS", "AGE", "SIZE", "SUBMITTER")
_NEEDED = 4


@click.group("scratch", epilog=EXIT_CODES)
def command() -> None:
    """List scratch builds, and take them away. Run on bstore.

    \b
    Example:
      reimzul scratch list
    """


@command.command("list", epilog=EXIT_CODES)
@click.option("--json", "as_json", is_flag=True, help="A list of legs. docs/json.md has its keys.")
@shared_options
def listed(config: Path | None, verbose: bool, as_json: bool) -> None:
    """Show the scratch builds that the store has, the oldest of a target first.

    \b
    Examples:
      reimzul scratch list
      reimzul scratch list --json
    """
    found = list(find_scratch_builds(own_store(load_settings(config, verbose))))
    if as_json:
        show_json([each.to_json() for each in found])
    elif found:
        show(_HEADS, [_row(each) for each in found], needed=_NEEDED)
    else:
        click.echo("There are no scratch builds.", err=True)


@command.command("rm", epilog=EXIT_CODES)
@click.argument("given", metavar="[ID]...", nargs=-1)
@click.option("--older", callback=since.span, metavar="SPAN", help="Those submitted longer ago: 14d, 2w.")
@click.option("--all", "everything", is_flag=True, help="All of them.")
@click.option("--yes", is_flag=True, help="Do not ask. Needed where there is no terminal to ask on.")
@click.option("--json", "as_json", is_flag=True, help="A list of the legs taken away. docs/json.md has its keys.")
@shared_options
def rm(
    config: Path | None,
    verbose: bool,
    given: Sequence[str],
    older: int | None,
    everything: bool,
    yes: bool,
    as_json: bool,
) -> None:
    """Take scratch builds away: their packages and their logs. IDs may be shortened to what no other build has.

    \b
    Examples:
      reimzul scratch rm 72b893f8
      reimzul scratch rm --older 14d --yes
    """
    if bool(given) + (older is not None) + everything != 1:
        raise click.UsageError("say which scratch builds: their ids, or --older SPAN, or --all.")
    store = own_store(load_settings(config, verbose))
    found = list(find_scratch_builds(store))
    if given:
        found = meant(found, given)
    elif older is not None:
        found = [each for each in found if each.submitted_at < time.time() - older]
    room = size(sum(each.bytes for each in found))
    if found and agreed(f"Remove {counted(len(found), 'scratch build')}, {room}?", yes):
        for each in found:
            drop_build(store, each.leg, each.summary)
    if as_json:
        show_json([each.to_json() for each in found])
    else:
        click.echo(f"{counted(len(found), 'scratch build')} removed, {room}")


def meant(found: Sequence[BuildDetails], given: Sequence[str]) -> list[BuildDetails]:
    """The legs of the builds that ids name. Raises `InputError` for one that names none, or several."""
    chosen: list[BuildDetails] = []
    for word in given:
        mine = [each for each in found if word and each.summary.build_id.startswith(word.lower())]
        ids = {each.summary.build_id for each in mine}
        if not ids:
            raise InputError(f"no scratch build's id begins with {word}; `reimzul scratch list` shows which there are")
        if len(ids) > 1:
            raise InputError(f"more than one scratch build's id begins with {word}: {', '.join(sorted(ids))}")
        chosen += [each for each in mine if each not in chosen]
    return chosen


def _row(each: BuildDetails) -> list[str]:
    leg, told = each.leg, each.summary
    age = span(time.time() - each.submitted_at) if each.submitted_at else "-"
    return [
        told.build_id or "-", leg.target, leg.name, leg.arch, told.status or "-", age, size(each.bytes),
        told.submitter or "-",
    ]  # fmt: skip

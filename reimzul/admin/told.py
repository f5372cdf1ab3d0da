# SPDX-License-Identifier: Apache-2.0
"""What `reimzul drain` and `reimzul resume` share: which builder is meant, and how it is said what it was told."""

from __future__ import annotations

import contextlib
import difflib

import attr
import click

from reimzul.admin import lookup
from reimzul.admin.table import show_json
from reimzul.core import validators
from reimzul.core.config import Settings, load_file
from reimzul.core.errors import InputError, ReimzulError
from reimzul.history.workers import WorkerRecord, WorkersUnavailable


@attr.frozen(kw_only=True)
class Told:
    """What a builder was told."""

    builder: str
    drained: bool  #: how it is now
    changed: bool
    words: str
    building: list[str]  #: what its workers still finish


def _complete(context: click.Context, _: click.Parameter, incomplete: str) -> list[str]:
    """The builders that are there and begin so; nothing where they cannot be known."""
    with contextlib.suppress(ReimzulError, OSError):
        hosts = {seen.heartbeat.host for seen in lookup.load_workers(load_file(context.params.get("config")))}
        return sorted(host for host in hosts if host.startswith(incomplete))
    return []


BUILDER = click.argument("name", metavar="BUILDER", shell_complete=_complete)
JSON = click.option("--json", "as_json", is_flag=True, help="An object. docs/json.md has its keys.")


def known(settings: Settings, name: str, force: bool) -> tuple[str, list[WorkerRecord]]:
    """A builder's whole name, and its workers. Raises `InputError` for one that nobody has heard of."""
    try:
        validators.host(name)
    except ValueError as error:
        raise InputError(str(error)) from None
    try:
        seen = lookup.load_workers(settings)
    except WorkersUnavailable as error:
        if force:
            return name, []
        raise InputError(f"{error}; --force takes the name as it is") from None
    hosts = sorted({each.heartbeat.host for each in seen})
    whole = [host for host in hosts if host == name] or [host for host in hosts if host.split(".")[0] == name]
    if len(whole) == 1:
        return whole[0], [each for each in seen if each.heartbeat.host == whole[0]]
    if force:
        return name, []
    if whole:
        raise InputError(f"more than one builder is called {name}: {', '.join(whole)}")
    close = difflib.get_close_matches(name, [*hosts, *(host.split(".")[0] for host in hosts)], 1)
    meant = f"; is {close[0]} meant?" if close else f"; there are {', '.join(hosts)}" if hosts else ""
    raise InputError(f"no builder {name} has been heard of{meant} (--force drains it all the same)")


def say(told: Told, as_json: bool) -> None:
    """Say it to a person, or to a program."""
    if as_json:
        show_json(attr.asdict(told))
        return
    click.echo(f"{told.builder}: {told.words}")
    for srpm in told.building:
        click.echo(f"  it finishes {srpm} first")

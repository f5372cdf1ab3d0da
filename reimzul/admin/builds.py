# SPDX-License-Identifier: Apache-2.0
"""`reimzul builds`: what became of builds, out of the history."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

from reimzul.admin import reading
from reimzul.admin.table import show, show_json
from reimzul.core.cli import EXIT_CODES, load_settings, shared_options
from reimzul.core.message import Status
from reimzul.history import BuildFilter, Document, NoHistory

_HEADS = ("TIMESTAMP", "STATUS", "SRPM", "ARCH", "TARGET", "SUBMITTER", "BUILDER", "BUILD ID")
#: How many of them are shown on the narrowest terminal.
_NEEDED = 5


@click.command("builds", epilog=EXIT_CODES)
@click.option(
    "--status",
    type=click.Choice(Status.BUILD, case_sensitive=False),
    help="Published asks for a Success that is published.",
)
@click.option("--target", metavar="TARGET", help="With its arch, as c7.1708.u.x86_64.")
@click.option("--arch", metavar="ARCH")
@click.option("--srpm", metavar="NAME", help="A file's whole name, or its beginning.")
@click.option("--submitter", metavar="NAME")
@click.option("--build", "build_id", metavar="ID", help="A build id, or its beginning.")
@click.option("--limit", type=click.IntRange(1, 1_000_000), default=50, show_default=True, metavar="COUNT")
@click.option("--json", "as_json", is_flag=True, help="A list with all that is known of each.")
@shared_options
def command(config: Path | None, verbose: bool, as_json: bool, limit: int, **wanted: str | None) -> None:
    """Show what became of builds, newest first; more than one condition narrows it down.

    On a terminal a table as wide as that is; in a pipe a line each, all columns, tabs between.

    \b
    Examples:
      reimzul builds --status failed --target c7.1708.u.x86_64
      reimzul builds --srpm time-1.7 --json
    """
    found = newest(load_settings(config, verbose).history.url, BuildFilter(**wanted), limit)
    if as_json:
        show_json(found)
    elif found or not sys.stdout.isatty():
        show(_HEADS, [_row(document) for document in found], needed=_NEEDED)
    else:
        click.echo("No build is known that matches.")


def newest(url: str, wanted: BuildFilter, limit: int) -> list[Document]:
    """The builds; none where nothing was ever recorded, and a line that says so."""
    try:
        with reading.reading_history(url) as history:
            return history.find_builds(wanted, limit)
    except NoHistory as nothing:
        click.echo(str(nothing), err=True)
        return []


def _row(document: Document) -> list[str]:
    names = ("timestamp", "status", "srpm", "arch", "target", "submitter", "builder_fqdn", "build_id")
    return [_status(document) if name == "status" else _cell(document.get(name)) for name in names]


def _status(document: Document) -> str:
    """The status in the original's words, and whether the package is published."""
    if document["status"] == Status.SUCCESS and document.get("published"):
        return f"{Status.SUCCESS}, {Status.PUBLISHED.lower()}"
    return _cell(document["status"])


def _cell(value: Any) -> str:
    return str(value) if value not in (None, "") else "-"

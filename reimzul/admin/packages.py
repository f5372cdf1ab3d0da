# SPDX-License-Identifier: Apache-2.0
"""`reimzul packages` lists the latest published build of each package of a target."""

from __future__ import annotations

from collections.abc import Sequence

import click

from reimzul.admin import target_lookup
from reimzul.admin.output import (
    Table,
    json_option,
    pass_settings,
    print_json,
    print_none_found,
    print_table,
    table_options,
)
from reimzul.admin.target_lookup import PublishedBuild
from reimzul.admin.target_option import complete_package, target_option
from reimzul.core.cli import EXIT_CODES
from reimzul.core.formatting import format_time
from reimzul.core.http_client import HttpSession
from reimzul.core.settings import Settings

_TABLE = Table(
    ("ID", "PACKAGE", "VERSION-RELEASE", "ARCH", "TARGET", "PUBLISHED", "SUBMITTER"),
    dispensable=("SUBMITTER", "PUBLISHED", "TARGET"),
)


@click.command("packages", epilog=EXIT_CODES)
@target_option("The target", required=True)
@click.argument("pattern", metavar="[PATTERN]", required=False, default="*", shell_complete=complete_package)
@table_options(_TABLE)
@json_option("a list of builds")
@pass_settings
def command(settings: Settings, target: str, pattern: str, columns: Sequence[str], wide: bool, as_json: bool) -> None:
    """List the latest published build of each package of a target, as the store lists them now.

    PATTERN is a package's name or name-version-release, and may have the wildcards *, ? and [...]; quote it. The latest
    build is the one that was submitted last. Without a terminal: one line each, all columns, separated by tabs.

    \b
    Examples:
      reimzul packages -t c9s
      reimzul packages -t c9s.x86_64 "python3-*" --json
    """
    with HttpSession(target_lookup.STORE_TIMEOUT_SECONDS) as session:
        targets = target_lookup.find_known_targets(settings, session, target)
        found = target_lookup.find_latest_builds(settings, session, targets, pattern)
    if as_json:
        print_json([build.to_dict() for build in found])
    elif found:
        print_table(_TABLE, [_to_row(build) for build in found], columns=columns, wide=wide)
    else:
        print_none_found("package")


def _to_row(build: PublishedBuild) -> list[str]:
    listed, record = build.listed, build.record
    about = (record.build_id[:8], format_time(record.published), record.submitter) if record else ("-", "-", "-")
    return [about[0], listed.name, listed.evr, listed.arch, build.target, about[1], about[2]]

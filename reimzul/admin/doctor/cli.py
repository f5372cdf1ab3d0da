# SPDX-License-Identifier: Apache-2.0
"""The command line of `reimzul doctor`: collects all checks, runs them, and prints the findings."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import click

from reimzul import __version__
from reimzul.admin.doctor import (
    FAIL,
    OK,
    WARN,
    Check,
    Finding,
    builder,
    controller,
    farm,
    host,
    links,
    network,
    run_checks,
    services,
)
from reimzul.admin.doctor.canary import NEEDED, Canary, prepare_canary
from reimzul.admin.doctor.host import ALL, Host, find_host
from reimzul.admin.output import color_option, json_option, print_json, refuse_ignored
from reimzul.core.cli import EXIT_CODES, load_settings, shared_options
from reimzul.core.config import find_file
from reimzul.core.errors import EXIT_FAILED
from reimzul.core.option_types import NearestChoice, WholeNumber
from reimzul.core.roles import BSTORE, BUILDER, CONTROLLER, ROLES

#: The checks in the order of their output, after those they need, and the roles that have them.
_GROUPS = (
    (host.checks, ROLES),
    (network.tunnel_checks, ROLES),
    (network.link_checks, ROLES),
    (network.checks, ROLES),
    (services.checks, ROLES),
    (host.folder_checks, ROLES),
    (controller.beanstalkd_checks, (CONTROLLER,)),
    (services.web_checks, ROLES),
    (services.clock_checks, ROLES),
    (links.public_checks, (CONTROLLER,)),
    (links.pages_checks, (CONTROLLER,)),
    (controller.batch_checks, (CONTROLLER,)),
    (controller.checks, (CONTROLLER,)),
    (controller.certificate_checks, (CONTROLLER,)),
    (services.upload_checks, (BUILDER, BSTORE)),
    (builder.checks, (BUILDER,)),
    (host.store_checks, (BSTORE,)),
)
_LEVEL_WIDTH = 4
_COLOURS = {OK: "green", WARN: "yellow", FAIL: "red"}
#: A long name of a check, for the width of the column: the names of a canary's stages are not known before.
_LONG_NAME = "canary.aarch64.placed"


@click.command("doctor", epilog=EXIT_CODES)
@click.option(
    "--role",
    "roles",
    type=NearestChoice([*ROLES, ALL]),
    multiple=True,
    help="Check this host as one with this role instead of detecting its roles. May be repeated.",
)
@click.option(
    "--stunnel",
    "stunnel_file",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    help="Read this stunnel configuration instead of /etc/stunnel/reimzul.conf.",
)
@click.option(
    "--canary", "sends_canary", is_flag=True, help="Then send a tiny package through the farm; time each stage."
)
@click.option(
    "--arch", "arches", multiple=True, metavar="ARCH", help="Build the canary for ARCH only. May be repeated."
)
@click.option(
    "--target",
    default="",
    metavar="TARGET",
    help="Build the canary for TARGET (with or without its arch), not [farm] canary_target.",
)
@click.option(
    "--timeout",
    type=WholeNumber(1, 86_400),
    default=900,
    show_default=True,
    metavar="SECONDS",
    help="Give the canary this much time.",
)
@click.option("--all", "show_all", is_flag=True, help="On the controller: list all hosts of the farm, also good ones.")
@json_option("an object: roles, checks, failed, canary")
@color_option
@shared_options
def command(
    config: Path | None,
    verbose: bool,
    roles: Sequence[str],
    stunnel_file: Path | None,
    show_all: bool,
    as_json: bool,
    sends_canary: bool,
    arches: Sequence[str],
    target: str,
    timeout: int,
) -> int:
    """Check this host and its links to the others, with a hint for each problem.

    Prints a line per check: ok, warn or FAIL, the check, what was found, what to do. The exit code is 0 if nothing is
    FAIL, else 1. Run it as root to check everything; otherwise it reports what it may not examine. On the controller it
    also has a line for each other host of the farm that has a problem, by what that host reports.

    \b
    Examples:
      reimzul doctor
      reimzul doctor --all
      reimzul doctor --role builder --json
      reimzul doctor --canary --arch x86_64 --target c9s
    """
    if not sends_canary:
        refuse_ignored("without --canary", "arches", "target", "timeout")
    examined = find_host(load_settings(config, verbose), find_file(config), roles, stunnel_file)
    canary = prepare_canary(examined, arches, target, timeout) if sends_canary else None
    checks = collect_checks(examined)
    width = max(map(len, [_LONG_NAME, *(check.name for check in checks)]))
    found = []
    for finding in find_problems(examined, checks, canary, show_all=show_all):
        found.append(finding)
        if not as_json:
            click.echo(format_for_terminal(finding, width) if sys.stdout.isatty() else format_for_pipe(finding))
    failed, warned = (sum(finding.level == level for finding in found) for level in (FAIL, WARN))
    if as_json:
        result = {
            "host": examined.name,
            "version": __version__,
            "roles": list(examined.roles),
            "checks": [finding.to_dict() for finding in found],
            "failed": failed,
            "warned": warned,
            "canary": canary and canary.to_dict(),
        }
        print_json(result)
    elif sys.stdout.isatty():
        click.echo(f"{failed} FAIL, {warned} warn, of {len(found)} ({', '.join(examined.roles)})")
    return EXIT_FAILED if failed else 0


def collect_checks(host: Host) -> list[Check]:
    return [check for make_checks, roles in _GROUPS if host.has_role(*roles) for check in make_checks(host)]


def find_problems(
    examined: Host, checks: Sequence[Check], canary: Canary | None, *, show_all: bool
) -> Iterator[Finding]:
    """Run all checks, check the farm's hosts, then send the canary unless a check that it needs fails."""
    blocking, is_linked = [], True
    for finding in run_checks(checks):
        if finding.level == FAIL and finding.name in NEEDED:
            blocking.append(finding.name)
        is_linked &= finding.level != FAIL or finding.name != "link.beanstalkd"
        yield finding
    if examined.has_role(CONTROLLER) and is_linked:
        yield from farm.check_hosts(examined.settings, show_all=show_all)
    if canary and blocking:
        yield Finding(WARN, f"not sent because {min(blocking, key=NEEDED.index)} fails", name="canary")
    elif canary:
        yield from canary.send()


def format_for_terminal(finding: Finding, width: int) -> str:
    bold = True if finding.level == FAIL else None
    level = click.style(finding.level.ljust(_LEVEL_WIDTH), fg=_COLOURS[finding.level], bold=bold)
    indent = " " * (_LEVEL_WIDTH + 2 + width + 2)
    hint = f"\n{indent}-> {finding.hint}" if finding.hint else ""
    return f"{level}  {finding.name.ljust(width)}  {finding.message}{hint}"


def format_for_pipe(finding: Finding) -> str:
    return "\t".join((finding.level, finding.name, finding.message, finding.hint))

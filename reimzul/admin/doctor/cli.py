# SPDX-License-Identifier: Apache-2.0
"""`reimzul doctor`: the command line."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import click

from reimzul import __version__
from reimzul.admin.doctor.canary import NEEDED, Canary, order
from reimzul.admin.doctor.check import FAIL, WARN, Check, Finding, examine
from reimzul.admin.doctor.host import ALL, ROLES, Host, find
from reimzul.admin.doctor.report import as_json, count, show
from reimzul.admin.doctor.rounds import checks
from reimzul.admin.output import print_json
from reimzul.core.cli import EXIT_CODES, load_settings, shared_options
from reimzul.core.config import find_file
from reimzul.core.errors import EXIT_FAILED


@click.command("doctor", epilog=EXIT_CODES)
@click.option(
    "--role",
    "roles",
    type=click.Choice([*ROLES, ALL]),
    multiple=True,
    help="What this host is for, where that is not to be found out; may be given again.",
)
@click.option(
    "--stunnel",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    help="stunnel's configuration, where it is not /etc/stunnel/reimzul.conf.",
)
@click.option("--canary", "sent", is_flag=True, help="Then send a tiny package through the farm, and time each hop.")
@click.option("--arch", "arches", multiple=True, metavar="ARCH", help="The canary's, may be given again; all watched.")
@click.option("--target", default="", metavar="TARGET", help="The canary's, without an arch; [farm] canary_target.")
@click.option(
    "--timeout",
    type=click.IntRange(1, 86_400),
    default=900,
    show_default=True,
    metavar="SECONDS",
    help="The canary's time.",
)
@click.option("--json", "json_wanted", is_flag=True, help="An object: host, version, roles, checks, failed, warned.")
@shared_options
def command(
    config: Path | None,
    verbose: bool,
    roles: Sequence[str],
    stunnel: Path | None,
    json_wanted: bool,
    sent: bool,
    arches: Sequence[str],
    target: str,
    timeout: int,
) -> int:
    """Look at every link and every part of this host, and say what to do where one fails.

    A line each: ok, warn or FAIL, the check, what was found, what to do. The exit code is 0 where nothing is FAIL,
    and 1 where something is. Run as root it sees all; else it says what it may not look at.

    \b
    Examples:
      reimzul doctor
      reimzul doctor --role builder --json
      reimzul doctor --canary --arch x86_64 --target c9s
    """
    if (arches or target) and not sent:
        raise click.UsageError("--arch and --target are the canary's: give --canary too")
    host = find(load_settings(config, verbose), find_file(config), roles, stunnel)
    bird = Canary(host, order(host, arches, target, timeout)) if sent else None
    wanted = checks(host)
    names = [check.name for check in wanted] + ([] if bird is None else bird.names())
    findings = examined(wanted, bird)
    found = list(findings) if json_wanted else show(findings, names)
    if json_wanted:
        print_json({**summary(host, found), **({} if bird is None else {"canary": bird.told()})})
    elif sys.stdout.isatty():
        click.echo(f"{count(found, FAIL)} FAIL, {count(found, WARN)} warn, of {len(found)} ({', '.join(host.roles)})")
    return EXIT_FAILED if count(found, FAIL) else 0


def examined(wanted: Sequence[Check], bird: Canary | None) -> Iterator[Finding]:
    """All checks, and then the canary, unless something fails that it stands on."""
    failed = []
    for finding in examine(wanted):
        failed += [finding.name] if finding.level == FAIL else []
        yield finding
    if bird is None:
        return
    if missing := [name for name in NEEDED if name in failed]:
        yield Finding(name="canary", level=WARN, words=f"not sent, since {missing[0]} fails", remedy="", seconds=0.0)
    else:
        yield from bird.send()


def summary(host: Host, found: Sequence[Finding]) -> dict[str, object]:
    """What was found, for a program."""
    return {
        "host": host.name,
        "version": __version__,
        "roles": list(host.roles),
        "checks": as_json(found),
        "failed": count(found, FAIL),
        "warned": count(found, WARN),
    }

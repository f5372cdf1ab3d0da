# SPDX-License-Identifier: Apache-2.0
"""`reimzul log`: a log of a build, while it is written and afterwards."""

from __future__ import annotations

from pathlib import Path

import click

from reimzul.admin import lookup
from reimzul.admin.logs import Logs
from reimzul.admin.paper import paper
from reimzul.core.cli import EXIT_CODES, load_settings, shared_options
from reimzul.core.errors import EXIT_FAILED
from reimzul.core.store_paths import StoreUrls


@click.command("log", epilog=EXIT_CODES)
@lookup.build_ids_argument(many=False)
@click.argument("log", type=click.Choice(["build", "root", "state"]), required=False)
@click.option("-f", "--follow", is_flag=True, help="Go on as it grows, to its end, and to the attempts after it.")
@click.option("--arch", metavar="ARCH", help="Of this leg; of the one that was asked for when left out.")
@click.option("--attempt", metavar="NUMBER", help="Of this attempt, by number or name; of the last when left out.")
@shared_options
def command(
    config: Path | None, verbose: bool, given: str, log: str | None, follow: bool, arch: str | None, attempt: str | None
) -> int:
    """Print a log of a build: build.log, root.log or state.log of mock; without a name the one that has the cause.

    The cause of a failure is in root.log where packages could not be installed, and in build.log else.
    While a build runs its logs are some 3 s behind. Logs of every attempt are kept, those that failed too; `reimzul
    show` names them. On a terminal control characters are shown as `?`. ID may be shortened to what no other build has.

    \b
    Examples:
      reimzul log 72b893f8
      reimzul log 72b893f8 root -f --arch i386
      reimzul log 72b893f8 --attempt 1
    """
    settings = load_settings(config, verbose)
    with lookup.reading_history(settings.history.url) as history:
        build = lookup.find_build(history, given)
    urls = StoreUrls.from_settings(settings.bstore.base_url, settings.bstore.upload_url)
    logs = Logs(settings.history.url, urls, build.build_id, arch, log and f"{log}.log")
    return 0 if logs.print(paper(), attempt, follow=follow) else EXIT_FAILED

# SPDX-License-Identifier: Apache-2.0
"""`reimzul drain`: a builder that is to take no more jobs, told from here.

The mark is in beanstalkd, so it outlives a restart of either host; no login on the builder is needed.
"""

from __future__ import annotations

import time
from pathlib import Path

import click

from reimzul.core import mark
from reimzul.core.command import EXIT_CODES, shared_options, start, submitter
from reimzul.core.tube import PRIORITY, Broker, worker_tube
from reimzul.notifier.history.presence import connected
from reimzul.operator.facts import is_silent
from reimzul.operator.table import when
from reimzul.operator.told import BUILDER, JSON, Told, known, say


@click.command("drain", epilog=EXIT_CODES)
@BUILDER
@click.option("--why", default="", metavar="WORDS", help="Shown by `reimzul builders`.")
@click.option("--force", is_flag=True, help="Also a builder that nobody has heard of.")
@JSON
@shared_options
def command(config: Path | None, verbose: bool, name: str, why: str, force: bool, as_json: bool) -> None:
    """Have a builder finish what it does and take nothing more, until `reimzul resume`.

    It holds for all workers of that host, and outlives a restart of it, and of beanstalkd.

    \b
    Examples:
      reimzul drain builder3.example.org --why "new disk"
      reimzul resume builder3.example.org
    """
    settings = start(config, verbose)
    host, seen = known(settings, name, force)
    with Broker(settings.beanstalkd.host, settings.beanstalkd.port) as broker:
        there, holds = put(broker, host, mark.mark(submitter(), why))
        here = [each for each in connected(broker, seen) if not is_silent(each, time.time())]
    building = [each.presence.build.srpm for each in here if each.presence.build]
    if there:
        words = f"takes nothing already, since {when(there.at)}: {there.drains}"
    else:
        words = f"takes nothing from now on: {holds.drains}"
    say(Told(builder=host, drained=True, changed=there is None, words=words, building=building), as_json)


def put(broker: Broker, host: str, wanted: mark.Mark) -> tuple[mark.Mark | None, mark.Mark]:
    """Put a person's mark: the one that was there already, and the one that holds.

    The notifier's does not count, which it takes away again by itself: ours is put behind it before it is deleted, so
    that at no moment there is none.
    """
    there = mark.drained(broker, host)
    if there is None or not there.quarantined:
        return there, there or mark.put(broker, worker_tube(host), wanted)
    broker.put_raw(worker_tube(host), wanted.encode(), priority=PRIORITY)
    mark.lift_quarantine(broker, host)
    return None, wanted

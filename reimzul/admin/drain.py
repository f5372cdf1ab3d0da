# SPDX-License-Identifier: Apache-2.0
"""`reimzul drain`: a builder that is to take no more jobs, told from here.

The mark is in beanstalkd, so it outlives a restart of either host; no login on the builder is needed.
"""

from __future__ import annotations

import time
from pathlib import Path

import click

from reimzul.admin.table import when
from reimzul.admin.told import BUILDER, JSON, Told, known, say
from reimzul.core import control
from reimzul.core.beanstalk import PRIORITY, Broker, drain_tube
from reimzul.core.cli import EXIT_CODES, current_user, load_settings, shared_options
from reimzul.history.workers import drop_disconnected


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
    settings = load_settings(config, verbose)
    host, seen = known(settings, name, force)
    with Broker(settings.beanstalkd.host, settings.beanstalkd.port) as broker:
        there, holds = put(broker, host, control.new_flag(current_user(), why))
        here = [each for each in drop_disconnected(broker, seen) if not each.is_silent(time.time())]
    building = [each.heartbeat.build.srpm for each in here if each.heartbeat.build]
    if there:
        words = f"takes nothing already, since {when(there.at)}: {there.drain_text}"
    else:
        words = f"takes nothing from now on: {holds.drain_text}"
    say(Told(builder=host, drained=True, changed=there is None, words=words, building=building), as_json)


def put(
    broker: Broker, host: str, wanted: control.ControlFlag
) -> tuple[control.ControlFlag | None, control.ControlFlag]:
    """Put a person's mark: the one that was there already, and the one that holds.

    The notifier's does not count, which it takes away again by itself: ours is put behind it before it is deleted, so
    that at no moment there is none.
    """
    there = control.drain_flag(broker, host)
    if there is None or not there.is_quarantine:
        return there, there or control.set_flag(broker, drain_tube(host), wanted)
    broker.put_raw(drain_tube(host), wanted.encode(), priority=PRIORITY)
    control.clear_quarantine(broker, host)
    return None, wanted

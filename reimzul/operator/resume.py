# SPDX-License-Identifier: Apache-2.0
"""`reimzul resume`: a builder that was drained takes jobs again."""

from __future__ import annotations

from pathlib import Path

import click

from reimzul.core import mark
from reimzul.core.command import EXIT_CODES, shared_options, start
from reimzul.core.tube import Broker, worker_tube
from reimzul.operator.told import BUILDER, JSON, Told, known, say


@click.command("resume", epilog=EXIT_CODES)
@BUILDER
@JSON
@shared_options
def command(config: Path | None, verbose: bool, name: str, as_json: bool) -> None:
    """Have a builder take jobs again that was drained, or put in quarantine.

    \b
    Examples:
      reimzul resume builder3.example.org
    """
    settings = start(config, verbose)
    host, _ = known(settings, name, force=True)
    with Broker(settings.beanstalkd.host, settings.beanstalkd.port) as broker:
        there = mark.drained(broker, host)
        lifted = mark.lift(broker, worker_tube(host))
    if lifted:
        words = f"takes jobs again; it was {there.drains}" if there else "takes jobs again"
    else:
        words = "was not drained"
    say(Told(builder=host, drained=False, changed=lifted, words=words, building=[]), as_json)

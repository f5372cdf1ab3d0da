# SPDX-License-Identifier: Apache-2.0
"""`reimzul resume`: a builder that was drained takes jobs again."""

from __future__ import annotations

from pathlib import Path

import click

from reimzul.admin.told import BUILDER, JSON, Told, known, say
from reimzul.core import control
from reimzul.core.beanstalk import Broker, drain_tube
from reimzul.core.cli import EXIT_CODES, load_settings, shared_options


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
    settings = load_settings(config, verbose)
    host, _ = known(settings, name, force=True)
    with Broker(settings.beanstalkd.host, settings.beanstalkd.port) as broker:
        there = control.drain_flag(broker, host)
        lifted = control.clear_flag(broker, drain_tube(host))
    if lifted:
        words = f"takes jobs again; it was {there.drain_text}" if there else "takes jobs again"
    else:
        words = "was not drained"
    say(Told(builder=host, drained=False, changed=lifted, words=words, building=[]), as_json)

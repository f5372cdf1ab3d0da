# SPDX-License-Identifier: Apache-2.0
"""`reimzul-notifier`: the daemon that tells who cares, on the controller."""

from __future__ import annotations

import functools
from pathlib import Path

import click

from reimzul.core.arch import read_arches
from reimzul.core.beanstalk import Broker
from reimzul.core.cli import EXIT_CODES, load_settings, local_hostname, run_command, shared_options
from reimzul.core.config import Settings
from reimzul.notifier.daemon import Notifier
from reimzul.notifier.ledger import Ledger
from reimzul.notifier.owed import Slate
from reimzul.notifier.quarantine import Quarantine, Rules
from reimzul.notifier.refusals import Refusals
from reimzul.notifier.roll import Roll
from reimzul.notifier.sinks import wanted


@click.command("reimzul-notifier", epilog=EXIT_CODES)
@shared_options
def notifier(config: Path | None, verbose: bool) -> None:
    """Tell every event of the farm to the log file, the history and, by setting, by mail and to an MQTT broker.

    Runs on the controller until SIGTERM, which it heeds within a second. One is enough. A listener that is away is
    told later, the others meanwhile.

    \b
    Example:
      reimzul-notifier --config /etc/reimzul/reimzul.ini
    """
    notify(load_settings(config, verbose))


def notify(settings: Settings) -> None:
    """Run until told to stop."""
    sinks = wanted(settings)
    connect = functools.partial(Broker, settings.beanstalkd.host, settings.beanstalkd.port)
    daemon = Notifier(
        connect,
        local_hostname(),
        Ledger(settings.notifier.ledger),
        sinks,
        Slate(settings.history.url),
        Roll(settings.notifier.presence),
        Refusals(connect, settings.history.url, settings.history.refused_days),
        quarantine(settings),
    )
    try:
        daemon.run()
    finally:
        daemon.close()


def quarantine(settings: Settings) -> Quarantine | None:
    """Who judges builders, where the settings want that. Raises `ConfigError`."""
    mine = settings.notifier
    if not mine.quarantine:
        return None
    rules = Rules(
        faults=mine.quarantine_faults,
        ratio=mine.quarantine_ratio,
        window=mine.quarantine_hours * 3600,
        pause=mine.quarantine_pause,
        target=settings.farm.canary_target,
        incoming=settings.incoming.folder,
        arches=read_arches(settings.farm.arches),
    )
    return Quarantine(rules, mine.presence)


def main() -> None:
    """The program."""
    run_command(notifier)


if __name__ == "__main__":
    main()

# SPDX-License-Identifier: Apache-2.0
"""`reimzul-notifier`: the daemon that delivers events to the log, the history, mail and MQTT, on the controller."""

from __future__ import annotations

import functools
from typing import NoReturn

from reimzul.core.arch import read_arches
from reimzul.core.beanstalk import Broker
from reimzul.core.cli import daemon_command, local_hostname, run_command
from reimzul.core.event_signature import EventKeys
from reimzul.core.settings import Settings
from reimzul.notifier.daemon import Notifier
from reimzul.notifier.housekeeping import HeartbeatIntake, RefusalCleanup, SourceCleanup
from reimzul.notifier.outbox import Outbox
from reimzul.notifier.package_results import ResultSeed
from reimzul.notifier.quarantine import Quarantine, QuarantineRules
from reimzul.notifier.sinks import enabled_sinks


@daemon_command("reimzul-notifier")
def command(settings: Settings) -> None:
    """Deliver every event of the farm to the log file, the history and, by setting, by mail and to an MQTT broker.

    Runs on the controller until SIGTERM, which it obeys within a second. One is enough. A listener that is unavailable
    gets its events later, the others meanwhile.

    \b
    Example:
      reimzul-notifier --config /etc/reimzul/reimzul.ini
    """
    sinks = enabled_sinks(settings)  # reports a wrong setting before the outbox is opened
    connect = functools.partial(Broker.from_settings, settings.beanstalkd)
    daemon = Notifier(
        connect,
        local_hostname(),
        Outbox(settings.notifier.ledger),
        sinks,
        HeartbeatIntake(settings.notifier.presence),
        [
            RefusalCleanup(connect, settings.history.url, settings.history.refused_days),
            SourceCleanup(folder=settings.incoming.folder, url=settings.history.url, days=settings.incoming.keep_days),
            ResultSeed(settings.notifier.ledger, settings.history.url),
        ],
        make_quarantine(settings),
        EventKeys.load(settings.farm.event_keys),
    )
    try:
        daemon.run()
    finally:
        daemon.close()


def make_quarantine(settings: Settings) -> Quarantine | None:
    """Make the quarantine if the settings want it. Raises `ConfigError`."""
    mine = settings.notifier
    if not mine.quarantine:
        return None
    rules = QuarantineRules(
        faults=mine.quarantine_faults,
        pause=mine.quarantine_pause,
        target=settings.farm.canary_target,
        incoming=settings.incoming.folder,
        arches=read_arches(settings.farm.arches),
    )
    return Quarantine(rules, mine.presence)


def main() -> NoReturn:
    run_command(command)

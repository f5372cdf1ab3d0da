# SPDX-License-Identifier: Apache-2.0
"""`reimzul metrics`: the farm's figures as OpenMetrics text, for Prometheus."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

import click

from reimzul.admin import reading, since
from reimzul.admin.figures import figures
from reimzul.admin.gauges import Sight, gauges
from reimzul.admin.openmetrics import text
from reimzul.admin.tubes import all_there_are
from reimzul.core import fs
from reimzul.core.beanstalk import Broker, is_control_tube
from reimzul.core.cli import EXIT_CODES, load_settings, shared_options
from reimzul.core.config import Settings
from reimzul.core.errors import EXIT_FAILED, BrokerUnavailable, InputError
from reimzul.core.pending import OutboxUnreadable, PendingDeliveries, read_pending
from reimzul.history import BuildFilter, Document, HistoryAway, NoHistory
from reimzul.history.presence import NoPresences

_DAY = 86400


@click.command("metrics", epilog=EXIT_CODES)
@click.option(
    "--output",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    help="Write it there, in one step: node_exporter's textfile collector reads *.prom of a folder.",
)
@shared_options
def command(config: Path | None, verbose: bool, output: Path | None) -> int:
    """Print the farm's figures as OpenMetrics text: tubes, workers, and the builds of the last day.

    A part that does not answer is left out, said, and told as `reimzul_part_up` 0; the exit code is 1 then. The unit
    reimzul-metrics.timer does this every minute.

    \b
    Examples:
      reimzul metrics
      reimzul metrics --output /var/lib/reimzul-metrics/reimzul.prom
    """
    sight, faults = look(load_settings(config, verbose))
    said = text(gauges(sight))
    if output is None:
        click.echo(said, nl=False)
    else:
        try:
            fs.write_atomic(output, said)
        except OSError as error:
            raise InputError(f"{output}: {(error.strerror or str(error)).lower()}") from error
    for fault in faults:
        click.echo(f"reimzul: {fault}", err=True)
    return EXIT_FAILED if faults else 0


def look(settings: Settings) -> tuple[Sight, list[str]]:
    """What there is to be told, and which part of it is missing, and why."""
    now, faults = time.time(), []
    tubes = workers = day = None
    waiting: Sequence[Document] = ()
    owed: list[PendingDeliveries] = []
    try:
        with Broker(settings.beanstalkd.host, settings.beanstalkd.port) as broker:
            names = [
                name for name in all_there_are(broker, settings) if name != "default" and not is_control_tube(name)
            ]
            tubes = [broker.tube_stats(name) for name in names]
    except BrokerUnavailable as error:
        faults.append(str(error))
    try:
        workers = reading.workers(settings)
    except NoPresences as error:
        faults.append(str(error))
    try:
        with reading.history(settings.history.url) as history:
            day = figures(history.each(BuildFilter(since=since.timestamp(now - _DAY))))
            waiting = history.unfinished()
    except (HistoryAway, NoHistory) as error:
        faults.append(str(error))
    try:
        owed = read_pending(settings.notifier.ledger)
    except OutboxUnreadable as error:
        faults.append(str(error))
    return Sight(now=now, tubes=tubes, workers=workers, day=day, waiting=waiting, owed=owed), faults

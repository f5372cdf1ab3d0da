# SPDX-License-Identifier: Apache-2.0
"""`reimzul queues`: the jobs in each tube, the watchers of each, and the events that sinks still lack."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

import attr
import click

from reimzul.admin.output import format_time, print_json, print_table
from reimzul.admin.tubes import all_tubes
from reimzul.core.beanstalk import Broker, TubeStats, is_control_tube
from reimzul.core.cli import EXIT_CODES, load_settings, shared_options
from reimzul.core.errors import EXIT_FAILED
from reimzul.core.pending import OutboxUnreadable, PendingDeliveries, read_pending

_HEADS = ("TUBE", "READY", "RESERVED", "DELAYED", "BURIED", "WATCHERS", "")
_PENDING_HEADS = ("PENDING", "EVENTS", "SINCE", "NEXT TRY")
#: beanstalkd creates this tube, and every connection watches it at first.
_DEFAULT = "default"


@click.command("queues", epilog=EXIT_CODES)
@click.option("--json", "as_json", is_flag=True, help="An object: tubes, owed.")
@shared_options
def command(config: Path | None, verbose: bool, as_json: bool) -> int:
    """List all tubes with their ready, reserved, delayed and buried jobs, and their watchers.

    A tube that has jobs and no watcher is marked: `nobody watches it`. Below, if there are any: events that the log,
    the history, mail or MQTT does not have yet, from the notifier's outbox. The tubes that hold a control flag instead
    of work (a cancelled build, a drained builder) are in the JSON only.

    \b
    Examples:
      reimzul queues
      reimzul queues --json
    """
    settings = load_settings(config, verbose)
    with Broker(settings.beanstalkd.host, settings.beanstalkd.port) as broker:
        tubes = [broker.tube_stats(name) for name in all_tubes(broker, settings)]
    tubes = [tube for tube in tubes if tube.name != _DEFAULT or _jobs(tube)]
    pending = pending_deliveries(settings.notifier.ledger)
    (_as_json if as_json else _as_tables)(tubes, pending)
    return EXIT_FAILED if pending is None else 0


def pending_deliveries(outbox: Path) -> list[PendingDeliveries] | None:
    """Return what each sink still lacks; None, after printing why, if that cannot be read."""
    try:
        return read_pending(outbox)
    except OutboxUnreadable as error:
        click.echo(f"the pending deliveries are not known: {error}", err=True)
        return None


def is_unwatched(tube: TubeStats) -> bool:
    """Whether a tube has jobs, and nobody to take them."""
    return bool(tube.ready + tube.delayed) and not tube.watchers and not is_control_tube(tube.name)


def _jobs(tube: TubeStats) -> int:
    return tube.ready + tube.reserved + tube.delayed + tube.buried


def _as_json(tubes: Iterable[TubeStats], pending: Sequence[PendingDeliveries] | None) -> None:
    rows = [{**attr.asdict(tube), "unwatched": is_unwatched(tube)} for tube in tubes]
    print_json({"tubes": rows, "owed": None if pending is None else list(map(attr.asdict, pending))})


def _as_tables(tubes: Iterable[TubeStats], pending: Sequence[PendingDeliveries] | None) -> None:
    print_table(_HEADS, [_row(tube) for tube in tubes if not is_control_tube(tube.name)])
    if pending:
        if sys.stdout.isatty():
            click.echo()
        print_table(_PENDING_HEADS, [_pending_row(each) for each in pending])


def _pending_row(pending: PendingDeliveries) -> list[str]:
    # with spaces, which no tube's name has: in a pipe nothing else distinguishes these lines from the tubes'
    return [
        f"pending for {pending.sink}",
        str(pending.count),
        format_time(pending.oldest),
        format_time(pending.next_try),
    ]


def _row(tube: TubeStats) -> list[str]:
    numbers = (tube.ready, tube.reserved, tube.delayed, tube.buried, tube.watchers)
    return [tube.name, *map(str, numbers), "nobody watches it" if is_unwatched(tube) else ""]

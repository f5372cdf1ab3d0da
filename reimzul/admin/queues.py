# SPDX-License-Identifier: Apache-2.0
"""The farm's tubes; `reimzul queues`: the jobs and watchers of each, and the events that sinks still lack."""

from __future__ import annotations

import difflib
import sys
from collections.abc import Iterable, Sequence

import attr
import click

from reimzul.admin.output import format_time, json_option, pass_settings, print_json, print_table
from reimzul.core import validators
from reimzul.core.arch import read_arches
from reimzul.core.beanstalk import CREATEREPO, NOTIFY, TOSIGN, Broker, TubeStats, is_control_tube
from reimzul.core.cli import EXIT_CODES
from reimzul.core.errors import EXIT_FAILED, InputError
from reimzul.core.pending import OutboxUnreadable, PendingDeliveries, read_pending
from reimzul.core.settings import Settings

_HEADS = ("TUBE", "READY", "RESERVED", "DELAYED", "BURIED", "WATCHERS", "")
_PENDING_HEADS = ("PENDING", "EVENTS", "SINCE", "NEXT TRY")
#: beanstalkd creates this tube, and every connection watches it at first.
_DEFAULT = "default"


@click.command("queues", epilog=EXIT_CODES)
@json_option("an object: tubes, owed")
@pass_settings
def command(settings: Settings, as_json: bool) -> int:
    """List all tubes with their ready, reserved, delayed and buried jobs, and their watchers.

    A tube that has jobs and no watcher is marked: `nobody watches it`. Below, if there are any: events that the log,
    the history, mail or MQTT does not have yet, from the notifier's outbox. The tubes that hold a control flag instead
    of work (a cancelled build, a drained builder) are in the JSON only.

    \b
    Examples:
      reimzul queues
      reimzul queues --json
    """
    with Broker.from_settings(settings.beanstalkd) as broker:
        tubes = [broker.tube_stats(name) for name in all_tubes(broker, settings)]
    tubes = [tube for tube in tubes if tube.name != _DEFAULT or any(_job_counts(tube))]
    pending: list[PendingDeliveries] | None = None
    try:
        pending = read_pending(settings.notifier.ledger)
    except OutboxUnreadable as error:
        click.echo(f"the pending deliveries are not known: {error}", err=True)
    if as_json:
        rows = [{**attr.asdict(tube), "unwatched": is_unwatched(tube)} for tube in tubes]
        print_json({"tubes": rows, "owed": None if pending is None else list(map(attr.asdict, pending))})
    else:
        _print_tables(tubes, pending or ())
    return EXIT_FAILED if pending is None else 0


def is_unwatched(tube: TubeStats) -> bool:
    return bool(tube.ready + tube.delayed) and not tube.watchers and not is_control_tube(tube.name)


def _job_counts(tube: TubeStats) -> list[int]:
    return [tube.ready, tube.reserved, tube.delayed, tube.buried]


def _print_tables(tubes: Iterable[TubeStats], pending: Sequence[PendingDeliveries]) -> None:
    rows = [
        [tube.name, *map(str, (*_job_counts(tube), tube.watchers)), "nobody watches it" if is_unwatched(tube) else ""]
        for tube in tubes
        if not is_control_tube(tube.name)
    ]
    print_table(_HEADS, rows)
    if pending:
        if sys.stdout.isatty():
            click.echo()
        # with spaces, which no tube's name has: in a pipe nothing else distinguishes these lines from the tubes'
        pending_rows = [
            [f"pending for {each.sink}", str(each.count), format_time(each.oldest), format_time(each.next_try)]
            for each in pending
        ]
        print_table(_PENDING_HEADS, pending_rows)


# --- which tubes there are


def farm_tubes(settings: Settings) -> list[str]:
    """The arches' tubes and the daemons', whether beanstalkd has them now or not."""
    return [*read_arches(settings.farm.arches).tubes(), CREATEREPO.name, TOSIGN.name, NOTIFY.name]


def all_tubes(broker: Broker, settings: Settings) -> list[str]:
    """The farm's tubes, then all others that beanstalkd has."""
    known = farm_tubes(settings)
    return [*known, *(name for name in broker.list_tubes() if name not in known)]


def select_tubes(broker: Broker, settings: Settings, tube: str | None) -> list[str]:
    """The given tube, or all. Raises `InputError` for a tube that neither beanstalkd nor the farm has."""
    tubes = all_tubes(broker, settings)
    if tube is None:
        return tubes
    if tube not in tubes:
        close = difflib.get_close_matches(tube, tubes, 1)
        raise InputError(f"there is no tube {validators.quoted(tube)}" + (f"; is {close[0]} meant?" if close else ""))
    return [tube]


def count_buried(broker: Broker, tubes: Iterable[str]) -> dict[str, int]:
    counts = {tube: broker.tube_stats(tube).buried for tube in tubes}
    return {tube: count for tube, count in counts.items() if count}

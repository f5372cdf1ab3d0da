# SPDX-License-Identifier: Apache-2.0
"""`reimzul queues`: what waits in each tube, whether anybody watches it, and what the notifier owes to whom."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

import attr
import click

from reimzul.admin import lookup
from reimzul.admin.output import format_time, print_json, print_table
from reimzul.admin.tubes import all_tubes
from reimzul.core.beanstalk import Broker, TubeStats, is_control_tube
from reimzul.core.cli import EXIT_CODES, load_settings, shared_options
from reimzul.core.errors import EXIT_FAILED, ConfigError
from reimzul.history import HistoryUnavailable, NoHistory, PendingCount

_HEADS = ("TUBE", "READY", "RESERVED", "DELAYED", "BURIED", "WATCHERS", "")
_OWED_HEADS = ("OWED", "EVENTS", "SINCE", "NEXT TRY")
#: beanstalkd makes it by itself, and every connection watches it at first.
_DEFAULT = "default"


@click.command("queues", epilog=EXIT_CODES)
@click.option("--json", "as_json", is_flag=True, help="An object: tubes, owed.")
@shared_options
def command(config: Path | None, verbose: bool, as_json: bool) -> int:
    """Show every tube: jobs that wait, are worked on, wait for their time, were put aside; and how many watch it.

    A tube that has jobs and nobody to take them is marked: `nobody watches it`. Below that, where there are any:
    events that the log, the history, mail or MQTT has not taken yet, as the notifier last wrote it down. The tubes
    that hold a mark instead of work (a cancelled build, a drained builder) are in the JSON alone.

    \b
    Examples:
      reimzul queues
      reimzul queues --json
    """
    settings = load_settings(config, verbose)
    with Broker(settings.beanstalkd.host, settings.beanstalkd.port) as broker:
        tubes = [broker.tube_stats(name) for name in all_tubes(broker, settings)]
    tubes = [tube for tube in tubes if tube.name != _DEFAULT or _jobs(tube)]
    owed = all_owed(settings.history.url)
    (_as_json if as_json else _as_tables)(tubes, owed)
    return EXIT_FAILED if owed is None else 0


def all_owed(url: str) -> list[PendingCount] | None:
    """What is owed to each sink; None where that cannot be known, and a line that says so."""
    try:
        with lookup.reading_history(url) as history:
            return history.pending_counts()
    except NoHistory:  # nothing was ever told
        return []
    except (HistoryUnavailable, ConfigError) as error:
        click.echo(f"what is owed to whom cannot be known: {error}", err=True)
        return None


def is_unwatched(tube: TubeStats) -> bool:
    """Whether it has jobs to be taken, and nobody to take them."""
    return bool(tube.ready + tube.delayed) and not tube.watchers and not is_control_tube(tube.name)


def _jobs(tube: TubeStats) -> int:
    return tube.ready + tube.reserved + tube.delayed + tube.buried


def _as_json(tubes: Iterable[TubeStats], owed: Sequence[PendingCount] | None) -> None:
    rows = [{**attr.asdict(tube), "unwatched": is_unwatched(tube)} for tube in tubes]
    print_json({"tubes": rows, "owed": None if owed is None else list(map(attr.asdict, owed))})


def _as_tables(tubes: Iterable[TubeStats], owed: Sequence[PendingCount] | None) -> None:
    print_table(_HEADS, [_row(tube) for tube in tubes if not is_control_tube(tube.name)])
    if owed:
        if sys.stdout.isatty():
            click.echo()
        print_table(_OWED_HEADS, [_owed_row(each) for each in owed])


def _owed_row(owed: PendingCount) -> list[str]:
    # with spaces, which no tube's name has: in a pipe nothing else tells these lines from the tubes'
    return [f"owed to {owed.sink}", str(owed.count), format_time(owed.oldest), format_time(owed.next_try)]


def _row(tube: TubeStats) -> list[str]:
    numbers = (tube.ready, tube.reserved, tube.delayed, tube.buried, tube.watchers)
    return [tube.name, *map(str, numbers), "nobody watches it" if is_unwatched(tube) else ""]

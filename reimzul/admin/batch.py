# SPDX-License-Identifier: Apache-2.0
"""`reimzul batch`: shows and steers batches, which `reimzul-submit --batch` makes and `reimzul-batch` carries out."""

from __future__ import annotations

import click

from reimzul.admin import batch_orders, batch_replace, batch_settle, batch_show, batch_watch
from reimzul.admin.output import NearestGroup
from reimzul.core.cli import EXIT_CODES


@click.group("batch", cls=NearestGroup, invoke_without_command=True, epilog=EXIT_CODES)
@click.pass_context
def command(context: click.Context) -> int | None:
    """Show and steer batches: many source rpms that are built in an order which the farm computes.

    Without a command the newest batches are listed. Names are those of sources, and mean all arches of the batch
    unless --arch says which.

    \b
    Examples:
      reimzul batch
      reimzul batch show 5f0c12ab
      reimzul batch watch 5f0c12ab
      reimzul batch skip 5f0c12ab qt6-qtwebengine
    """
    if context.invoked_subcommand is None:
        return int(context.invoke(batch_show.list_command))
    return None


_COMMANDS = (
    batch_show.list_command,
    batch_show.show_command,
    batch_watch.watch,
    batch_orders.pause,
    batch_orders.resume,
    batch_orders.cancel,
    batch_orders.release,
    batch_orders.skip,
    batch_replace.replace,
    batch_orders.retry,
    batch_settle.settle,
)
for each in _COMMANDS:
    command.add_command(each)

# SPDX-License-Identifier: Apache-2.0
"""`reimzul discard`: delete buried jobs."""

from __future__ import annotations

from typing import Any

import click

from reimzul.core.command import EXIT_CODES, shared_options
from reimzul.core.tube import Broker
from reimzul.operator import selection

_DEED = selection.Deed(verb="Delete", past="deleted", act=Broker.delete)


@click.command("discard", epilog=EXIT_CODES)
@selection.options
@shared_options
def command(**given: Any) -> int:
    """Delete buried jobs for good; which there are and why, `reimzul buried` tells.

    Asks first. A build whose request is deleted is never built: submit it again.

    \b
    Examples:
      reimzul discard 17 23
      reimzul discard --tube x86_64
      reimzul discard --all --yes
    """
    return selection.run(_DEED, **given)

# SPDX-License-Identifier: Apache-2.0
"""`reimzul kick`: have buried jobs tried again."""

from __future__ import annotations

from typing import Any

import click

from reimzul.admin import selection
from reimzul.core.beanstalk import Broker
from reimzul.core.cli import EXIT_CODES, shared_options

_DEED = selection.Deed(verb="Put back", past="put back", act=Broker.kick)


@click.command("kick", epilog=EXIT_CODES)
@selection.options
@shared_options
def command(**given: Any) -> int:
    """Put buried jobs back into their tubes, to be tried again; which there are and why, `reimzul buried` tells.

    Asks first. Jobs that only wait for their time are left alone.

    \b
    Examples:
      reimzul kick 17 23
      reimzul kick --tube createrepo
      reimzul kick --all --yes
    """
    return selection.run(_DEED, **given)

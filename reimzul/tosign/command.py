# SPDX-License-Identifier: Apache-2.0
"""`reimzul-tosign`: the daemon that lays out packages for the signer, on bstore."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import NoReturn

import click

from reimzul.core.bstore import Bstore
from reimzul.core.command import EXIT_CODES, entry, own_name, shared_options, start
from reimzul.core.config import Settings
from reimzul.core.disk import prepare
from reimzul.core.refused import Overflow
from reimzul.core.tube import Broker
from reimzul.tosign.daemon import Tosign

EXAMPLES = """\b
Examples:
  reimzul-tosign
  reimzul-tosign --config /etc/reimzul/reimzul.ini -v

What it lays out in tosign/<target>/ is complete and may be moved away at any time; it is not laid out again.
SIGTERM gives back what is in hand; SIGUSR1 finishes it, takes no more, and ends.
"""


@click.command("reimzul-tosign", epilog=EXAMPLES + "\n" + EXIT_CODES)
@shared_options
def command(config: Path | None, verbose: bool) -> None:
    """Copy the packages of each published build to where they wait for being collected and signed."""
    tosign(start(config, verbose)).run()


def tosign(settings: Settings) -> Tosign:
    """The daemon as the settings say, its folders made."""
    store = Bstore(settings.bstore.root)
    prepare(store)
    beanstalkd = settings.beanstalkd
    connect = functools.partial(Broker, beanstalkd.host, beanstalkd.port)
    return Tosign(connect, own_name(), store, overflow=Overflow(settings.farm.refused))


def main() -> NoReturn:
    """The console script."""
    entry(command)

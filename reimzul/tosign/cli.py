# SPDX-License-Identifier: Apache-2.0
"""`reimzul-tosign`: the daemon that lays out packages for the signer, on bstore."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import NoReturn

import click

from reimzul.core.beanstalk import Broker
from reimzul.core.cli import EXIT_CODES, load_settings, local_hostname, run_command, shared_options
from reimzul.core.config import Settings
from reimzul.core.fs import create_store_dirs
from reimzul.core.refused import Overflow
from reimzul.core.store_paths import StorePaths
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
    make_daemon(load_settings(config, verbose)).run()


def make_daemon(settings: Settings) -> Tosign:
    """The daemon as the settings say, its folders made."""
    store = StorePaths(settings.bstore.root)
    create_store_dirs(store)
    beanstalkd = settings.beanstalkd
    connect = functools.partial(Broker, beanstalkd.host, beanstalkd.port)
    return Tosign(connect, local_hostname(), store, overflow=Overflow(settings.farm.refused))


def main() -> NoReturn:
    """The console script."""
    run_command(command)

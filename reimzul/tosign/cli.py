# SPDX-License-Identifier: Apache-2.0
"""`reimzul-tosign`: the daemon that lays out packages for the signer, on bstore."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import NoReturn

import click

from reimzul.core.beanstalk import Broker
from reimzul.core.cli import EXIT_CODES, load_settings, local_hostname, run_command, shared_options
from reimzul.core.fs import create_store_dirs
from reimzul.core.settings import Settings
from reimzul.core.store_paths import StorePaths
from reimzul.tosign.daemon import Tosign

EXAMPLES = """\b
Examples:
  reimzul-tosign
  reimzul-tosign --config /etc/reimzul/reimzul.ini -v

Folders in tosign/<target>/ are complete and may be moved away at any time; they are not laid out again.
SIGTERM requeues the job in hand; SIGUSR1 finishes it, takes no more, and ends.
"""


@click.command("reimzul-tosign", epilog=EXAMPLES + "\n" + EXIT_CODES)
@shared_options
def command(config: Path | None, verbose: bool) -> None:
    """Copy the packages of each published build to where they are collected and signed."""
    make_daemon(load_settings(config, verbose)).run()


def make_daemon(settings: Settings) -> Tosign:
    store, beanstalkd = StorePaths(settings.bstore.root), settings.beanstalkd
    create_store_dirs(store)
    connect = functools.partial(Broker, beanstalkd.host, beanstalkd.port)
    return Tosign(connect, local_hostname(), store)


def main() -> NoReturn:
    run_command(command)

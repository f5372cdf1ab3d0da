# SPDX-License-Identifier: Apache-2.0
"""`reimzul-repogen`: the daemon that publishes and indexes, on bstore."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import NoReturn

import click

from reimzul.core.arch import read_arches
from reimzul.core.beanstalk import Broker
from reimzul.core.cli import EXIT_CODES, load_settings, local_hostname, run_command, shared_options
from reimzul.core.config import Settings
from reimzul.core.fs import create_store_dirs
from reimzul.core.rpm_header import import_rpm
from reimzul.core.store_paths import StorePaths, StoreUrls
from reimzul.repogen.aside import Teller
from reimzul.repogen.daemon import Repogen, Tools
from reimzul.repogen.listing_rules import ListingRules
from reimzul.repogen.originals import make_room
from reimzul.repogen.repodata import Indexer
from reimzul.repogen.retention import Retention

EXAMPLES = """\b
Examples:
  reimzul-repogen
  reimzul-repogen --config /etc/reimzul/reimzul.ini -v

Any number may run on one store. SIGTERM gives back what is in hand; SIGUSR1 finishes it, takes no more, and ends.
"""


@click.command("reimzul-repogen", epilog=EXAMPLES + "\n" + EXIT_CODES)
@shared_options
def command(config: Path | None, verbose: bool) -> None:
    """Bring what builders upload to its place, index it with createrepo_c, and announce what is published."""
    settings = load_settings(config, verbose)
    import_rpm()  # said now, in one line, rather than at the first package
    repogen(settings).run()


def repogen(settings: Settings) -> Repogen:
    """The daemon as the settings say, its folders made."""
    store = StorePaths(settings.bstore.root)
    create_store_dirs(store)
    if settings.farm.original_workers:
        make_room(store)
    beanstalkd = settings.beanstalkd
    urls = StoreUrls.from_settings(settings.bstore.base_url, settings.bstore.upload_url)
    tools = Tools(
        store=store,
        urls=urls,
        indexer=Indexer(store=store, settings=settings.repogen),
        teller=Teller(store=store, urls=urls, arches=read_arches(settings.farm.arches), host=local_hostname()),
        spool_days=settings.repogen.spool_days,
        originals=settings.farm.original_workers,
        rules=ListingRules(store=store, duplicates=settings.duplicates),
        retention=Retention(attempts=settings.repogen.attempts_days, rejected=settings.repogen.rejected_days),
    )
    connect = functools.partial(Broker, beanstalkd.host, beanstalkd.port)
    return Repogen(connect, local_hostname(), tools)


def main() -> NoReturn:
    """The console script."""
    run_command(command)

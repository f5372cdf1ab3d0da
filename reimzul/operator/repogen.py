# SPDX-License-Identifier: Apache-2.0
"""`reimzul repogen`: have a target indexed anew."""

from __future__ import annotations

from pathlib import Path

import click

from reimzul.core import fields
from reimzul.core.bstore import StoreUrls
from reimzul.core.command import EXIT_CODES, complain, shared_options, start
from reimzul.core.config import Settings
from reimzul.core.errors import InputError
from reimzul.core.message import RepogenRequest
from reimzul.core.tube import CREATEREPO, PRIORITY, PRIORITY_NOW, Broker
from reimzul.core.web import NotThere, Site, WebAway
from reimzul.notifier.history import BuildFilter, HistoryAway, NoHistory
from reimzul.operator import reading
from reimzul.operator.table import show_json

#: Bytes; a repomd.xml has some 3 kB.
_LIMIT = 1 << 20


@click.command("repogen", epilog=EXIT_CODES)
@click.argument("target", metavar="TARGET")
@click.option("--now", is_flag=True, help="Before what else is to be indexed.")
@click.option("--force", is_flag=True, help="Also a target of which nobody has heard.")
@click.option("--json", "as_json", is_flag=True, help="An object: target, job, watchers.")
@shared_options
def command(config: Path | None, verbose: bool, target: str, now: bool, force: bool, as_json: bool) -> None:
    """Ask for the repodata of a target, named with its arch, to be made anew from what lies in it.

    \b
    Examples:
      reimzul repogen c7.1708.u.x86_64
    """
    settings = start(config, verbose)
    try:
        fields.target(target)
    except ValueError as error:
        raise InputError(str(error)) from None
    if not force and not _is_known(settings, target):
        raise InputError(f"nothing was ever built for {target}, and the store does not have it (--force makes it)")
    with Broker(settings.beanstalkd.host, settings.beanstalkd.port) as broker:
        priority = PRIORITY_NOW if now else PRIORITY
        job = broker.put(CREATEREPO, RepogenRequest(target=target), priority=priority)
        tube = broker.stats(CREATEREPO.name)
    if as_json:
        show_json({"target": target, "job": job, "watchers": tube.watchers})
    else:
        click.echo(f"{target} is indexed anew: job {job} of tube {CREATEREPO.name}")
    if not tube.watchers:
        complain(command, f"warning: nobody watches the tube {CREATEREPO.name}; it waits there until a repogen does")


def _is_known(settings: Settings, target: str) -> bool:
    """Whether something was built for a target, or the store has its repodata; a store that is away counts as yes."""
    try:
        with reading.history(settings.history.url) as history:
            if history.builds(BuildFilter(target=target), 1):
                return True
    except (NoHistory, HistoryAway):
        pass
    urls = StoreUrls.of(settings.bstore.base_url, settings.bstore.upload_url)
    try:
        with Site(timeout=5) as site:
            site.get(urls.target(target) + "repodata/repomd.xml", _LIMIT)
    except NotThere:
        return False
    except WebAway:
        pass
    return True

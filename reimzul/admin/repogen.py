# SPDX-License-Identifier: Apache-2.0
"""`reimzul repogen`: regenerate a target's repodata, or add metadata to it that createrepo_c does not make."""

from __future__ import annotations

from pathlib import Path

import click

from reimzul.admin import lookup
from reimzul.admin.table import show_json
from reimzul.core import validators
from reimzul.core.beanstalk import CREATEREPO, PRIORITY, PRIORITY_NOW, Broker
from reimzul.core.cli import EXIT_CODES, load_settings, print_error, shared_options
from reimzul.core.config import Settings
from reimzul.core.errors import InputError
from reimzul.core.http_client import HttpSession, HttpUnavailable, NotFound
from reimzul.core.message import RepogenRequest
from reimzul.core.store_paths import StoreUrls
from reimzul.history import BuildFilter, HistoryUnavailable, NoHistory

#: Bytes; a repomd.xml has some 3 kB.
_LIMIT = 1 << 20


@click.command("repogen", epilog=EXIT_CODES)
@click.argument("target", metavar="TARGET")
@click.option("--now", is_flag=True, help="Before what else is to be indexed.")
@click.option("--force", is_flag=True, help="Also a target of which nobody has heard.")
@click.option(
    "--add-metadata",
    "added",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    metavar="FILE",
    help="On bstore: add a file as comps.xml, updateinfo.xml or modules.yaml; it stays in every later run.",
)
@click.option("--type", "type_", metavar="TYPE", help="Its type in repomd.xml, where the name does not tell it.")
@click.option("--remove-metadata", "removed", metavar="TYPE", help="On bstore: remove such metadata, as group.")
@click.option("--json", "as_json", is_flag=True, help="An object. docs/json.md has its keys.")
@shared_options
def command(
    config: Path | None,
    verbose: bool,
    target: str,
    now: bool,
    force: bool,
    added: Path | None,
    type_: str | None,
    removed: str | None,
    as_json: bool,
) -> None:
    """Ask for the repodata of a target, named with its arch, to be made anew from what lies in it.

    With --add-metadata or --remove-metadata nothing is made anew: on bstore, the target's repodata gets or loses that
    metadata at once. Adding a type that is there replaces it.

    \b
    Examples:
      reimzul repogen c7.1708.u.x86_64
      reimzul repogen c7.1708.u.x86_64 --add-metadata comps.xml
      reimzul repogen c9s.x86_64 --add-metadata c9s-advisories.xml --type updateinfo
      reimzul repogen c7.1708.u.x86_64 --remove-metadata group
    """
    settings = load_settings(config, verbose)
    try:
        validators.target(target)
    except ValueError as error:
        raise InputError(str(error)) from None
    if type_ is not None and added is None:
        raise InputError("--type says what --add-metadata adds; there is no --add-metadata")
    if added is not None or removed is not None:
        _change(settings, target, added, type_, removed, as_json=as_json)
        return
    _ask(settings, target, now=now, force=force, as_json=as_json)


def _change(
    settings: Settings, target: str, added: Path | None, type_: str | None, removed: str | None, *, as_json: bool
) -> None:
    """Add or remove metadata in the store on this host, as its owner."""
    from reimzul.admin.owner import store as own_store
    from reimzul.repogen import metadata, repomd
    from reimzul.repogen.repodata import Indexer

    without = [repomd.check_type(removed)] if removed is not None else []
    addition = None
    if added is not None:
        try:  # before we are another, who may not read it
            raw = added.read_bytes()
        except OSError as error:
            raise InputError(f"{added}: {(error.strerror or str(error)).lower()}") from None
        addition = metadata.read_addition(added.name, raw, type_ or "")
    store = own_store(settings)
    indexer = Indexer(store=store, settings=settings.repogen)
    metadata.change_metadata(store, indexer, target, lambda: None, addition=addition, without=without)
    said = {"target": target, "added": addition.record.type if addition else None, "removed": removed}
    if as_json:
        show_json(said)
        return
    if addition:
        click.echo(f"{target} has {added} as {addition.record.type} now, and keeps it")
    if removed:
        click.echo(f"{target} has no {removed} any more")


def _ask(settings: Settings, target: str, *, now: bool, force: bool, as_json: bool) -> None:
    """Put a request for a target into the tube that repogen watches."""
    if not force and not _is_known(settings, target):
        raise InputError(f"nothing was ever built for {target}, and the store does not have it (--force makes it)")
    with Broker(settings.beanstalkd.host, settings.beanstalkd.port) as broker:
        priority = PRIORITY_NOW if now else PRIORITY
        job = broker.put(CREATEREPO, RepogenRequest(target=target), priority=priority)
        tube = broker.tube_stats(CREATEREPO.name)
    if as_json:
        show_json({"target": target, "job": job, "watchers": tube.watchers})
    else:
        click.echo(f"{target} is indexed anew: job {job} of tube {CREATEREPO.name}")
    if not tube.watchers:
        print_error(command, f"warning: nobody watches the tube {CREATEREPO.name}; it waits there until a repogen does")


def _is_known(settings: Settings, target: str) -> bool:
    """Whether something was built for a target, or the store has its repodata; a store that is away counts as yes."""
    try:
        with lookup.reading_history(settings.history.url) as history:
            if history.find_builds(BuildFilter(target=target), 1):
                return True
    except (NoHistory, HistoryUnavailable):
        pass
    urls = StoreUrls.from_settings(settings.bstore.base_url, settings.bstore.upload_url)
    try:
        with HttpSession(timeout=5) as site:
            site.get(urls.target(target) + "repodata/repomd.xml", _LIMIT)
    except NotFound:
        return False
    except HttpUnavailable:
        pass
    return True

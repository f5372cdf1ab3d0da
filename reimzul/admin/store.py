# SPDX-License-Identifier: Apache-2.0
"""`reimzul prune` and `reimzul scratch` remove builds from the store; `reimzul repogen` regenerates repodata.

Commands that write in the store run as its owner: repogen could not replace files that belong to root.

`reimzul prune --incoming` removes source rpms that no build needs, on the controller.
"""

from __future__ import annotations

import contextlib
import os
import pwd
import sys
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import attr
import click

from reimzul.admin import lookup
from reimzul.admin.output import (
    NearestGroup,
    Table,
    check_input,
    confirm,
    json_option,
    parse_duration_option,
    pass_settings,
    print_json,
    print_none_found,
    print_result,
    print_table,
    refuse_ignored,
    table_options,
    yes_option,
)
from reimzul.admin.target_option import complete_repository, list_recorded_targets, target_option
from reimzul.core import validators
from reimzul.core.arch import read_arches
from reimzul.core.beanstalk import CREATEREPO, PRIORITY, PRIORITY_NOW, Broker
from reimzul.core.cli import EXIT_CODES, print_error
from reimzul.core.errors import EXIT_FAILED, InputError, ReimzulError, describe_os_error
from reimzul.core.formatting import format_duration, format_size, format_time, format_timestamp, pluralize
from reimzul.core.http_client import HttpSession, HttpUnavailable, NotFound
from reimzul.core.message import RepogenRequest
from reimzul.core.option_types import WholeNumber
from reimzul.core.retry import CancelToken
from reimzul.core.roles import require_controller
from reimzul.core.setting_parsers import Pruning
from reimzul.core.settings import Settings
from reimzul.core.store_paths import StorePaths, StoreUrls
from reimzul.core.targets import UnknownTarget, find_one_target, find_targets
from reimzul.history import HistoryUnavailable, NoHistory
from reimzul.history.build_record import BuildState
from reimzul.history.incoming import OldSource, find_old_sources, remove_old_sources
from reimzul.store import repodata
from reimzul.store.cleanup import (
    BuildDetails,
    PruneResult,
    drop_build,
    find_rule,
    find_scratch_builds,
    list_targets,
    prune,
)
from reimzul.store.createrepo import CreaterepoRunner

_PRUNE_TABLE = Table(("ID", "TARGET", "PACKAGE", "SUBMITTED", "ARCH", "SIZE", ""), dispensable=("SIZE",))
_SCRATCH_TABLE = Table(
    ("ID", "TARGET", "PACKAGE", "ARCH", "STATE", "AGE", "SIZE", "SUBMITTER"), dispensable=("SUBMITTER", "SIZE", "AGE")
)
#: The largest repomd.xml that is read; one has some 3 kB.
_MAX_REPOMD_BYTES = 1 << 20


class StoreNotLocal(InputError):
    """The store is not on this host, or this user may not write in it: run it elsewhere, or as somebody else."""


def open_store_as_owner(settings: Settings) -> StorePaths:
    """The store on this host; root becomes its owner for good. Raises `StoreNotLocal`."""
    store = StorePaths(settings.bstore.root)
    try:
        owner = os.stat(store.repo)
    except OSError as error:
        reason = describe_os_error(error)
        raise StoreNotLocal(f"{store.repo}: {reason}: run this on bstore ([bstore] root)") from None
    os.umask(0o022)  # the web server reads the files as another user
    if os.geteuid() == 0 and owner.st_uid != 0:
        _become(owner)
    if not os.access(store.repo, os.W_OK | os.X_OK):
        name = _user_name(owner.st_uid)
        raise StoreNotLocal(f"{store.repo} belongs to {name}: run it as root, or as sudo -u {name} reimzul …")
    return store


def _become(owner: os.stat_result) -> None:
    """Switch to a user; groups first, while root still may."""
    try:
        os.initgroups(_user_name(owner.st_uid), owner.st_gid)
    except OSError:  # the number has no name
        os.setgroups([])
    os.setgid(owner.st_gid)
    os.setuid(owner.st_uid)


def _user_name(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


# --- prune


@click.command("prune", epilog=EXIT_CODES)
@target_option(many=True)
@click.option("--keep", type=WholeNumber(1, 100_000), metavar="COUNT", help="Keep the newest of a package and arch.")
@click.option("--older", callback=parse_duration_option, metavar="TIME", help="Only builds older than this: 90d, 12w.")
@click.option("--unsigned", is_flag=True, help="Also builds that were never staged for signing, where none are signed.")
@click.option("--incoming", is_flag=True, help="On the controller: remove source rpms that no build needs instead.")
@click.option("--dry-run", is_flag=True, help="Only list what would be dropped.")
@yes_option
@table_options(_PRUNE_TABLE)
@json_option("a list of targets; with --incoming an object")
@pass_settings
def prune_builds(
    settings: Settings,
    target: Sequence[str],
    keep: int | None,
    older: int | None,
    unsigned: bool,
    incoming: bool,
    dry_run: bool,
    yes: bool,
    **output: Any,
) -> int:
    """Drop old builds of packages from repositories, and regenerate each repository's repodata once.

    Run this on bstore. Without --keep and --older the rules of [prune] apply, and targets without a rule are skipped.
    The newest successful build of a package and arch always stays; failed builds are dropped with those of their age.
    Builds that wait to be collected and signed stay, and those not staged for signing yet.

    With --incoming, on the controller, source rpms are removed that came or were last submitted longer ago than
    --older or [incoming] keep_days. What a build needs stays: one that waits or runs, or failed within that time.

    \b
    Examples:
      reimzul prune --dry-run
      reimzul prune --target c7.1708.u --keep 3 --older 90d
      reimzul prune --incoming --older 90d --dry-run
      reimzul prune --yes
    """
    if incoming:
        if target or keep or unsigned:
            raise click.UsageError("--incoming goes by age alone: --target, --keep and --unsigned are for builds")
        refuse_ignored("with --incoming", "columns", "wide")
        return prune_incoming(settings, older, dry_run=dry_run, yes=yes, as_json=output["as_json"])
    given = Pruning(keep=keep or 1, older=older or 0, unsigned=unsigned) if keep or older is not None else None
    store = open_store_as_owner(settings)
    rules = _rules_by_target(list_targets(store.repo), target, given, settings, unsigned)
    indexer = CreaterepoRunner(store=store, settings=settings.repogen)
    planned = [prune(store, indexer, name, rule, CancelToken(), dry_run=True) for name, rule in rules.items()]
    if dry_run:
        _print_pruned(planned, **output, dry_run=True)
        return 0
    dropped = [each for plan in planned for each in plan.dropped]
    if dropped:
        confirm(f"Drop {pluralize(len(dropped), 'build')}, {_total_size(dropped)}?", yes)
    done, code = [], 0
    for name, rule in rules.items():
        try:
            done.append(prune(store, indexer, name, rule, CancelToken(), dry_run=False))
        except ReimzulError as error:
            print_error(str(error))
            code = EXIT_FAILED
    _print_pruned(done, **output, dry_run=False)
    return code


def _rules_by_target(
    known: Sequence[str], wanted: Sequence[str], given: Pruning | None, settings: Settings, unsigned: bool
) -> Mapping[str, Pruning]:
    arches = read_arches(settings.farm.arches)
    matching = {target for each in wanted for target in find_targets(each, known, arches)}
    chosen = [target for target in known if not wanted or target in matching]
    rules = {target: given or find_rule(target, settings.prune.targets) for target in chosen}
    found = {
        target: attr.evolve(rule, unsigned=unsigned or rule.unsigned)
        for target, rule in rules.items()
        if rule is not None
    }
    if not found:
        raise InputError("no rule says what to drop: give --keep or --older, or a line in [prune]")
    return found


def _total_size(builds: Iterable[BuildDetails]) -> str:
    return format_size(sum(each.bytes for each in builds))


def _print_pruned(
    done: Sequence[PruneResult], *, columns: Sequence[str], wide: bool, as_json: bool, dry_run: bool
) -> None:
    if as_json:
        print_json(
            [
                {
                    "target": target.target,
                    "dropped": [each.to_output() for each in target.dropped],
                    "held": [{**each.to_output(), "reason": each.held} for each in target.held],
                }
                for target in done
            ]
        )
        return
    terminal = sys.stdout.isatty()
    dropped = [each for target in done for each in target.dropped]
    held = [each for target in done for each in target.held]
    if dropped or held:
        rows = [_prune_row(each) for each in (dropped if terminal else [*dropped, *held])]
        print_table(_PRUNE_TABLE, rows, columns=columns, wide=wide)
    verb = "would be dropped" if dry_run else "dropped"
    click.echo(f"{pluralize(len(dropped), 'build')} {verb}, {_total_size(dropped)}", err=not terminal)
    for reason, count in Counter(each.held for each in held).items():
        click.echo(f"{count} more would be dropped, but: {reason}", err=not terminal)


def _prune_row(old: BuildDetails) -> list[str]:
    leg = old.leg
    cells = [old.summary.build_id[:8] or "-", leg.target, leg.name, format_timestamp(leg.timestamp), leg.arch]
    return [*cells, format_size(old.bytes), f"stays: {old.held}" if old.held else ""]


# --- scratch


@click.group("scratch", cls=NearestGroup, epilog=EXIT_CODES)
def scratch() -> None:
    """List scratch builds, and remove them. Run this on bstore.

    \b
    Example:
      reimzul scratch list
    """


@scratch.command("list", epilog=EXIT_CODES)
@table_options(_SCRATCH_TABLE)
@json_option("a list of builds, one for each arch")
@pass_settings
def list_scratch(settings: Settings, columns: Sequence[str], wide: bool, as_json: bool) -> None:
    """List the scratch builds in the store, the oldest of a target first.

    \b
    Examples:
      reimzul scratch list
      reimzul scratch list --json
    """
    found = list(find_scratch_builds(open_store_as_owner(settings)))
    if as_json:
        print_json([each.to_output() for each in found])
    elif found:
        print_table(_SCRATCH_TABLE, [_scratch_row(each) for each in found], columns=columns, wide=wide)
    else:
        print_none_found("scratch build")


@scratch.command("rm", epilog=EXIT_CODES)
@click.argument("given", metavar="[ID]...", nargs=-1)
@click.option("--older", callback=parse_duration_option, metavar="TIME", help="Those submitted longer ago: 14d, 2w.")
@click.option("--all", "everything", is_flag=True, help="All of them.")
@yes_option
@json_option("a list of the removed builds, one for each arch")
@pass_settings
def remove_scratch(
    settings: Settings,
    given: Sequence[str],
    older: int | None,
    everything: bool,
    yes: bool,
    as_json: bool,
) -> None:
    """Remove scratch builds: their packages and their logs. IDs may be shortened to what no other build has.

    \b
    Examples:
      reimzul scratch rm 72b893f8
      reimzul scratch rm --older 14d --yes
    """
    if bool(given) + (older is not None) + everything != 1:
        raise click.UsageError("say which scratch builds: their ids, or --older TIME, or --all.")
    store = open_store_as_owner(settings)
    found = list(find_scratch_builds(store))
    if given:
        found = _select_scratch(found, given)
    elif older is not None:
        found = [each for each in found if each.submitted_at < time.time() - older]
    what, size = pluralize(len(found), "scratch build"), _total_size(found)
    if found:
        confirm(f"Remove {what}, {size}?", yes)
    for each in found:
        drop_build(store, each.leg, each.summary)
    print_result([each.to_output() for each in found], [f"{what} removed, {size}"], as_json)


def _select_scratch(found: Sequence[BuildDetails], given: Sequence[str]) -> list[BuildDetails]:
    """The legs of the given builds. Raises `InputError` for an id that fits none, or several."""
    chosen: list[BuildDetails] = []
    for prefix in given:
        legs = [each for each in found if prefix and each.summary.build_id.startswith(prefix.lower())]
        ids = {each.summary.build_id for each in legs}
        if not ids:
            raise InputError(f"no scratch build's id begins with {prefix}; `reimzul scratch list` lists them")
        if len(ids) > 1:
            raise InputError(f"more than one scratch build's id begins with {prefix}: {', '.join(sorted(ids))}")
        chosen += [each for each in legs if each not in chosen]
    return chosen


def _scratch_row(each: BuildDetails) -> list[str]:
    leg, summary = each.leg, each.summary
    age = format_duration(time.time() - each.submitted_at) if each.submitted_at else "-"
    build = [summary.build_id[:8] or "-", leg.target, leg.name, leg.arch, BuildState.from_status(summary.status) or "-"]
    return [*build, age, format_size(each.bytes), summary.submitter or "-"]


# --- repogen


@click.command("repogen", epilog=EXIT_CODES)
@click.argument("target", metavar="TARGET", shell_complete=complete_repository)
@click.option("--now", is_flag=True, help="Before all other targets.")
@click.option("--force", is_flag=True, help="Also a target that nothing was ever built for.")
@click.option(
    "--add-metadata",
    "added",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    metavar="FILE",
    help="On bstore: add a file as comps.xml, updateinfo.xml or modules.yaml; later runs keep it.",
)
@click.option("--type", "type_", metavar="TYPE", help="The file's type in repomd.xml, if its name does not give it.")
@click.option("--remove-metadata", "removed", metavar="TYPE", help="On bstore: remove such metadata, as group.")
@json_option("an object")
@pass_settings
def repogen(
    settings: Settings,
    target: str,
    now: bool,
    force: bool,
    added: Path | None,
    type_: str | None,
    removed: str | None,
    as_json: bool,
) -> None:
    """Regenerate the repodata of a target from the packages in it.

    The target's arch may be left out if only one is known.

    With --add-metadata or --remove-metadata nothing is regenerated: on bstore, that metadata is added to the target's
    repodata or removed from it at once. Adding a type that exists replaces it.

    \b
    Examples:
      reimzul repogen c7.1708.u.x86_64
      reimzul repogen c7.1708.u.x86_64 --add-metadata comps.xml
      reimzul repogen c9s.x86_64 --add-metadata c9s-advisories.xml --type updateinfo
      reimzul repogen c7.1708.u.x86_64 --remove-metadata group
    """
    if type_ is not None and added is None:
        raise click.UsageError("--type is the type of what --add-metadata adds; there is no --add-metadata")
    if added is not None or removed is not None:
        refuse_ignored(f"with {'--add-metadata' if added else '--remove-metadata'}", "now", "force")
        _change_metadata(settings, target, added, type_, removed, as_json=as_json)
        return
    check_input(validators.target, target)
    target = target if force else _find_known_target(settings, target)
    _request_repodata(settings, target, now=now, as_json=as_json)


def _change_metadata(
    settings: Settings, target: str, added: Path | None, type_: str | None, removed: str | None, *, as_json: bool
) -> None:
    without = [repodata.check_type(removed)] if removed is not None else []
    addition = None
    if added is not None:
        try:  # before becoming the store's owner, who may not be allowed to read it
            raw = added.read_bytes()
        except OSError as error:
            raise InputError(f"{added}: {describe_os_error(error)}") from None
        addition = repodata.read_addition(added.name, raw, type_ or "")
    store = open_store_as_owner(settings)
    target = find_one_target(target, list_targets(store.repo), read_arches(settings.farm.arches))
    indexer = CreaterepoRunner(store=store, settings=settings.repogen)
    indexer.change_metadata(target, CancelToken(), addition=addition, without=without)
    result = {"target": target, "added": addition.record.type if addition else None, "removed": removed}
    lines = [f"{target} has {added} as {addition.record.type} now, and keeps it"] if addition else []
    if removed:
        lines.append(f"{target} has no {removed} any more")
    print_result(result, lines, as_json)


def _request_repodata(settings: Settings, target: str, *, now: bool, as_json: bool) -> None:
    with Broker.from_settings(settings.beanstalkd) as broker:
        job = broker.put(CREATEREPO, RepogenRequest(target=target), priority=PRIORITY_NOW if now else PRIORITY)
        watchers = broker.tube_stats(CREATEREPO.name).watchers
    result = {"target": target, "job": job, "watchers": watchers}
    print_result(result, [f"{target} is queued for regeneration: job {job} of tube {CREATEREPO.name}"], as_json)
    if not watchers:
        print_error(f"warning: no repogen watches the tube {CREATEREPO.name}; the job waits until one does")


def _find_known_target(settings: Settings, given: str) -> str:
    """Return the target that is meant: one that anything was built for, or that workers or the store have.

    Raises `InputError` if there is none, or more than one.
    """
    known = list_recorded_targets(settings, None)
    with contextlib.suppress(NoHistory, HistoryUnavailable), lookup.reading_history(settings.history.url) as history:
        known = list_recorded_targets(settings, history)
    try:
        return find_one_target(given, known, read_arches(settings.farm.arches))
    except UnknownTarget as error:
        if _is_in_store(settings, given):
            return given
        raise InputError(f"{error} (--force takes the name as it is)") from None


def _is_in_store(settings: Settings, target: str) -> bool:
    """Whether the store answers that it has repodata of a target."""
    urls = StoreUrls.from_settings(settings.bstore.base_url, settings.bstore.upload_url)
    with contextlib.suppress(NotFound, HttpUnavailable), HttpSession(timeout=5) as session:
        session.get(urls.target(target) + "repodata/repomd.xml", _MAX_REPOMD_BYTES)
        return True
    return False


# --- incoming/

_SOURCES_TABLE = Table(("SRPM", "SIZE", "LAST USED", ""), dispensable=("SIZE", "LAST USED"))


def prune_incoming(settings: Settings, older: int | None, *, dry_run: bool, yes: bool, as_json: bool) -> int:
    """Remove source rpms that were last needed longer ago than `older` seconds, by default [incoming] keep_days."""
    require_controller("`reimzul prune --incoming`", settings, click.get_current_context().params.get("config"))
    mine = settings.incoming
    if older is None and not mine.keep_days:
        raise InputError("no age says what to remove: give --older, or set [incoming] keep_days")
    before = time.time() - (mine.keep_days * 86400 if older is None else older)
    with lookup.reading_history(settings.history.url) as history:
        found = find_old_sources(history, mine.folder, before)
    unneeded = [each for each in found if not each.message]
    kept = [each for each in found if each.message]
    if unneeded and not dry_run:
        confirm(f"Remove {pluralize(len(unneeded), 'source rpm')}, {_total_source_size(unneeded)}?", yes)
        unneeded = remove_old_sources(mine.folder, unneeded, before)
    if as_json:
        print_json(
            {"removed": [_source_to_json(each) for each in unneeded], "kept": [attr.asdict(each) for each in kept]}
        )
        return 0
    if found:
        print_table(_SOURCES_TABLE, [_format_source(each) for each in (*unneeded, *kept)])
    verb = "would be removed" if dry_run else "removed"
    summary = f"{pluralize(len(unneeded), 'source rpm')} {verb}, {_total_source_size(unneeded)}"
    click.echo(summary, err=not sys.stdout.isatty())
    return 0


def _total_source_size(sources: Iterable[OldSource]) -> str:
    return format_size(sum(each.bytes for each in sources))


def _source_to_json(source: OldSource) -> dict[str, object]:
    return {"srpm": source.srpm, "bytes": source.bytes, "since": source.since}


def _format_source(source: OldSource) -> list[str]:
    reason = f"stays: {source.message}" if source.message else ""
    return [source.srpm, format_size(source.bytes), format_time(source.since), reason]

# SPDX-License-Identifier: Apache-2.0
"""`reimzul prune`: drop old builds from the repositories, on bstore."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import attr
import click

from reimzul.admin import since
from reimzul.admin.asking import agreed
from reimzul.admin.owner import store as own_store
from reimzul.admin.table import show, show_json
from reimzul.admin.words import counted, size
from reimzul.core import validators
from reimzul.core.cli import EXIT_CODES, load_settings, print_error, shared_options
from reimzul.core.config import Pruning, Settings
from reimzul.core.errors import EXIT_FAILED, InputError, ReimzulError
from reimzul.core.retry import CancelToken
from reimzul.store.cleanup import BuildDetails, PruneResult, find_rule, list_targets, prune
from reimzul.store.createrepo import CreaterepoRunner

_HEADS = ("TARGET", "PACKAGE", "SUBMITTED", "ARCH", "BUILD ID", "SIZE")
_NEEDED = 5


@click.command("prune", epilog=EXIT_CODES)
@click.option("--target", "wanted", multiple=True, metavar="TARGET", help="Only this one, with its arch or without.")
@click.option(
    "--keep", type=click.IntRange(1, 100_000), metavar="COUNT", help="The newest of a package and arch that stay."
)
@click.option("--older", callback=since.span, metavar="SPAN", help="Drop none that is younger: 90d, 12w.")
@click.option("--unsigned", is_flag=True, help="Also builds never laid out for the signer, where nothing is signed.")
@click.option("--dry-run", is_flag=True, help="Only say what would be dropped.")
@click.option("--yes", is_flag=True, help="Do not ask. Needed where there is no terminal to ask on.")
@click.option("--json", "as_json", is_flag=True, help="A list of targets. docs/json.md has its keys.")
@shared_options
def command(
    config: Path | None,
    verbose: bool,
    wanted: Sequence[str],
    keep: int | None,
    older: int | None,
    unsigned: bool,
    dry_run: bool,
    yes: bool,
    as_json: bool,
) -> int:
    """Drop old builds of packages from repositories, and index each repository once anew without them.

    Run on bstore. Without --keep and --older the rules of [prune] hold, and targets without one are left alone. The
    newest build of a package and arch that came out well always stays; what failed goes with those of its age. What
    waits to be collected and signed stays, and what was not laid out for the signer yet.

    \b
    Examples:
      reimzul prune --dry-run
      reimzul prune --target c7.1708.u --keep 3 --older 90d
      reimzul prune --yes
    """
    settings = load_settings(config, verbose)
    given = Pruning(keep=keep or 1, older=older or 0, unsigned=unsigned) if keep or older is not None else None
    store = own_store(settings)
    rules = _rules(list_targets(store.repo), wanted, given, settings, unsigned)
    indexer = CreaterepoRunner(store=store, settings=settings.repogen)
    planned = [prune(store, indexer, target, rule, CancelToken(), dry_run=True) for target, rule in rules.items()]
    if dry_run or not _agreed(planned, yes):
        return _say(planned, as_json, dry_run=True)
    done, fault = [], ""
    for target, rule in rules.items():
        try:
            done.append(prune(store, indexer, target, rule, CancelToken(), dry_run=False))
        except ReimzulError as error:
            fault = str(error)
            print_error(command, fault)
    return _say(done, as_json, dry_run=False) or (EXIT_FAILED if fault else 0)


def _rules(
    there: Sequence[str], wanted: Sequence[str], given: Pruning | None, settings: Settings, unsigned: bool
) -> Mapping[str, Pruning]:
    """The rule of each target that is meant and has one. Raises `InputError`."""
    meant = list(there)
    if wanted:
        meant = [target for target in there if target in wanted or target.rpartition(".")[0] in wanted]
        for word in wanted:
            if not any(word in (target, target.rpartition(".")[0]) for target in meant):
                raise InputError(
                    f"there is no target {validators.quoted(word)} in the store; there are {', '.join(there)}"
                )
    rules = {target: given or find_rule(target, settings.prune.targets) for target in meant}
    found = {target: rule for target, rule in rules.items() if rule is not None}
    if not found:
        raise InputError("no rule says what to drop: give --keep or --older, or a line in [prune]")
    if unsigned:
        found = {target: attr.evolve(rule, unsigned=True) for target, rule in found.items()}
    return found


def _agreed(planned: Sequence[PruneResult], yes: bool) -> bool:
    doomed = [each for target in planned for each in target.dropped]
    room = size(sum(each.bytes for each in doomed))
    return not doomed or agreed(f"Drop {counted(len(doomed), 'build')}, {room}?", yes)


def _say(done: Sequence[PruneResult], as_json: bool, *, dry_run: bool) -> int:
    if as_json:
        show_json([_plain(each) for each in done])
        return 0
    terminal = sys.stdout.isatty()
    dropped = [each for target in done for each in target.dropped]
    held = [each for target in done for each in target.held]
    if dropped or held:
        show(_HEADS, [_row(each, terminal) for each in (dropped if terminal else [*dropped, *held])], needed=_NEEDED)
    verb = "would be dropped" if dry_run else "dropped"
    room = size(sum(each.bytes for each in dropped))
    click.echo(f"{counted(len(dropped), 'build')} {verb}, {room}", err=not terminal)
    for why, count in Counter(each.held for each in held).items():
        click.echo(f"{count} more would go, but: {why}", err=not terminal)
    return 0


def _row(old: BuildDetails, terminal: bool) -> list[str]:
    leg = old.leg
    cells = [leg.target, leg.name, leg.timestamp, leg.arch, old.summary.build_id or "-", size(old.bytes)]
    return cells if terminal else [*cells, f"stays: {old.held}" if old.held else ""]


def _plain(target: PruneResult) -> dict[str, Any]:
    return {
        "target": target.target,
        "dropped": [each.to_json() for each in target.dropped],
        "held": [{**each.to_json(), "why": each.held} for each in target.held],
    }

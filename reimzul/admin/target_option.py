# SPDX-License-Identifier: Apache-2.0
"""The option --target of `reimzul`'s commands: its completion, and the refusal of a target that is unknown.

It reads the history and the workers' heartbeats alone: most commands that have it need no HTTP.
"""

from __future__ import annotations

import contextlib
from typing import Any, Callable

import click

from reimzul.admin import lookup
from reimzul.core import validators
from reimzul.core.arch import read_arches
from reimzul.core.config import load_file
from reimzul.core.errors import InputError, ReimzulError
from reimzul.core.formatting import list_known, suggest_nearest
from reimzul.core.settings import Settings
from reimzul.core.targets import drop_arches, expand_target, find_targets
from reimzul.history import BuildFilter, History
from reimzul.history.build_record import BuildState
from reimzul.history.workers import WorkersUnavailable, map_targets

#: Records that are read to complete a package's name.
_MAX_COMPLETED_RECORDS = 1000


def list_recorded_targets(settings: Settings, history: History | None) -> set[str]:
    """Return the targets that something was ever submitted for, or that workers have reported."""
    recorded = set(history.list_targets()) if history else set()
    with contextlib.suppress(WorkersUnavailable):
        recorded |= _read_reported(settings)
    return recorded


def refuse_unknown(settings: Settings, history: History, *, target: str | None = None, arch: str | None = None) -> None:
    """Raise `InputError` for an unknown target, or an arch that nothing was ever submitted for; for empty results."""
    arches = read_arches(settings.farm.arches)
    if target is not None:
        find_targets(target, list_recorded_targets(settings, history), arches)
    known = arches.known
    if arch is not None and arch not in known and not history.find_builds(BuildFilter(arch=arch), 1):
        raise InputError(
            f"there is no arch {validators.quoted(arch)}{suggest_nearest(arch, known) or list_known(known)}"
        )


def _read_reported(settings: Settings) -> set[str]:
    return set(map_targets(lookup.load_workers(settings)))


def target_option(
    text: str = "Only this target", *, required: bool = False, many: bool = False
) -> Callable[[Any], Any]:
    """Return the option --target of a command that takes a target, all arches of one, or a pattern of targets."""
    return click.option(
        "-t",
        "--target",
        metavar="TARGET",
        required=required,
        multiple=many,
        shell_complete=complete_target,
        help=f"{text}: c9s, c9s.x86_64, or a pattern as 'c9*'.{' May be repeated.' if many else ''}",
    )


def expand_option(settings: Settings, given: str | None) -> list[str] | None:
    """Return the names and patterns that the value of `target_option` stands for in a `BuildFilter`."""
    return None if given is None else expand_target(given, read_arches(settings.farm.arches))


def complete_target(context: click.Context, _: click.Parameter, incomplete: str) -> list[str]:
    """Return the targets that workers have reported, with their arches and without."""
    with contextlib.suppress(ReimzulError, OSError):
        settings = load_file(context.params.get("config"))
        names, arches = _read_reported(settings), read_arches(settings.farm.arches)
        return sorted(each for each in names | drop_arches(names, arches) if each.startswith(incomplete))
    return []


def complete_repository(context: click.Context, _: click.Parameter, incomplete: str) -> list[str]:
    """Return the targets that workers have reported, with their arches."""
    with contextlib.suppress(ReimzulError, OSError):
        names = _read_reported(load_file(context.params.get("config")))
        return sorted(each for each in names if each.startswith(incomplete))
    return []


def complete_package(context: click.Context, _: click.Parameter, incomplete: str) -> list[str]:
    """Return the packages of the target given by -t, of those that were published last."""
    with contextlib.suppress(ReimzulError, OSError):
        settings = load_file(context.params.get("config"))
        targets = expand_option(settings, context.params.get("target") or "")
        wanted = BuildFilter(states=[BuildState.PUBLISHED], srpm=incomplete or None, targets=targets)
        with lookup.reading_history(settings.history.url) as history:
            return sorted({each.pkgname for each in history.find_builds(wanted, _MAX_COMPLETED_RECORDS)})
    return []

# SPDX-License-Identifier: Apache-2.0
"""Look-ups of batches: a batch by its id, members by their names, and the workers that build them; and the words by
which commands describe a batch or a member in one line.
"""

from __future__ import annotations

import contextlib
import re
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Optional

import click

from reimzul.admin import lookup
from reimzul.admin.output import Table
from reimzul.core import validators
from reimzul.core.config import load_file
from reimzul.core.errors import InputError, ReimzulError, describe_os_error
from reimzul.core.formatting import list_known, pluralize, suggest_nearest
from reimzul.core.settings import Settings
from reimzul.history import BuildRecord
from reimzul.history.workers import WorkersUnavailable, list_live
from reimzul.plan import batches, overview
from reimzul.plan.batches import BatchFiles, BatchSummary, list_batch_ids, load_batch, read_summary, summarize
from reimzul.plan.document import FOLDER, SEED_SUFFIX, Plan, plan_path, read_plan
from reimzul.plan.overview import (
    BatchPhase,
    count_blocked,
    describe_counts,
    describe_held,
    describe_member,
    describe_wait,
    walk_tree,
)
from reimzul.plan.progress import MemberProgress, MemberState
from reimzul.plan.state import BatchState

_ID = re.compile(r"[0-9a-f]{1,8}")
#: Batches and members offered for one Tab.
_MAX_COMPLETIONS = 50


def list_batches(settings: Settings) -> list[str]:
    """Return the ids of all batches, the newest first. Raises `InputError`."""
    try:
        return list_batch_ids(settings.incoming.folder)
    except OSError as error:
        raise InputError(f"{settings.incoming.folder / FOLDER}: {describe_os_error(error)}") from None


def find_batch(settings: Settings, given: str | None) -> BatchFiles:
    """Return the batch whose id has this prefix; without one the newest that is not over. Raises `InputError`."""
    if given is None:
        return _find_newest_unfinished(settings, list_batches(settings))
    return _open_batch(settings, _find_id(settings, given))


def find_plan(settings: Settings, given: str) -> Plan:
    """Return the plan of the batch whose id has this prefix; its journal is not read. Raises `InputError`."""
    batch = _find_id(settings, given)
    try:
        return read_plan(plan_path(settings.incoming.folder, batch))
    except InputError as error:
        raise InputError(f"batch {batch} cannot be read: {error}") from None


def _find_id(settings: Settings, given: str) -> str:
    known, prefix = list_batches(settings), given.lower()
    if not _ID.fullmatch(prefix):
        raise InputError(f"{validators.quoted(given)} is no batch id, nor the beginning of one: up to 8 hex digits")
    found = [each for each in known if each.startswith(prefix)]
    if not found:
        hint = suggest_nearest(prefix, known) or "; `reimzul batch list` shows which there are"
        raise InputError(f"no batch's id begins with {prefix}{hint}")
    if len(found) > 1:
        raise InputError(f"more than one batch's id begins with {prefix}{list_known(found)}")
    return found[0]


def _open_batch(settings: Settings, batch: str) -> BatchFiles:
    try:
        return BatchFiles(settings.incoming.folder, batch)
    except InputError as error:
        raise InputError(f"batch {batch} cannot be read: {error}") from None


def _find_newest_unfinished(settings: Settings, known: Iterable[str]) -> BatchFiles:
    newest = ""
    for batch in known:
        files = _open_batch(settings, batch)
        if not files.state.is_over:
            return files
        newest = newest or batch
    hint = f"; the newest is {newest}" if newest else ": `reimzul-submit --batch` makes one"
    raise InputError(f"no batch is unfinished{hint}")


def read_summaries(settings: Settings, batches: Iterable[str]) -> tuple[list[BatchSummary], list[str]]:
    """Return summaries of batches, and a line for each batch that cannot be read."""
    found, faults = [], []
    for batch in batches:
        try:
            found.append(read_summary(settings.incoming.folder, batch))
        except (InputError, OSError) as error:
            faults.append(f"batch {batch} cannot be read: {error}")
    return found, faults


def match_members(state: BatchState, names: Sequence[str], arch: str | None = None) -> list[str]:
    """Return the keys of the members that sources are on all arches, or on one.

    Raises `InputError` with a line for each name of no member.
    """
    by_name: dict[str, list[str]] = {}
    for key, progress in state.members.items():
        if arch in (None, progress.member.arch):
            by_name.setdefault(progress.member.name, []).append(key)
    if arch is not None and not by_name:
        arches = {progress.member.arch for progress in state.members.values()}
        hint = suggest_nearest(arch, arches) or list_known(arches)
        raise InputError(f"batch {state.plan.batch} has no arch {validators.quoted(arch)}{hint}")
    faults = [
        f"batch {state.plan.batch} has no member {validators.quoted(name)}{suggest_nearest(name, by_name)}"
        for name in dict.fromkeys(names)
        if name not in by_name
    ]
    if faults:
        raise InputError("\n".join(faults))
    return [key for name in dict.fromkeys(names) for key in by_name[name]]


def find_state_of_build(settings: Settings, batch: str) -> BatchState | None:
    """Return the batch that a build belongs to; None if its files are gone, or this user cannot read them."""
    with contextlib.suppress(InputError):
        return load_batch(settings.incoming.folder, batch)
    return None


def count_builders(settings: Settings, state: BatchState) -> Optional[int]:
    """Count the live workers that take jobs of a batch's tubes; None if they are unknown."""
    try:
        workers = list_live(lookup.load_workers(settings))
    except WorkersUnavailable:
        return None
    return batches.count_builders(state, [each.heartbeat for each in workers])


def describe_batch(state: BatchState) -> str:
    sources = {each.member.name.removesuffix(SEED_SUFFIX) for each in state.members.values()}
    return f"batch of {pluralize(len(sources), 'source')}"


# --- arguments


def batch_argument(*, required: bool = False) -> Callable[[Any], Any]:
    """Return the argument that is a batch's id, with completion; the parameter is called `batch`."""
    metavar = "BATCH" if required else "[BATCH]"
    return click.argument("batch", metavar=metavar, required=required, shell_complete=complete_batch)


def names_argument(*, required: bool = True) -> Callable[[Any], Any]:
    """Return the argument that is names of sources, with completion; the parameter is called `names`."""
    metavar = "NAME..." if required else "[NAME...]"
    return click.argument("names", metavar=metavar, nargs=-1, required=required, shell_complete=complete_member)


def complete_batch(context: click.Context, _: click.Parameter, incomplete: str) -> list[Any]:
    """Return the newest batches whose id has this prefix, with what they do now."""
    from click.shell_completion import CompletionItem

    with contextlib.suppress(ReimzulError, OSError):
        settings = _load_settings(context)
        known = [each for each in list_batches(settings) if each.startswith(incomplete.lower())]
        found, _faults = read_summaries(settings, known[:_MAX_COMPLETIONS])
        return [CompletionItem(each.batch, help=f"{each.target}, {each.phase}, {each.total}") for each in found]
    return []


def complete_member(context: click.Context, _: click.Parameter, incomplete: str) -> list[str]:
    """Return the sources of the batch that was typed before."""
    with contextlib.suppress(ReimzulError, OSError):
        state = find_batch(_load_settings(context), context.params.get("batch")).state
        names = {each.member.name for each in state.members.values()}
        return sorted(name for name in names if name.startswith(incomplete))[:_MAX_COMPLETIONS]
    return []


def _load_settings(context: click.Context) -> Settings:
    config: Path | None = context.params.get("config")
    return load_file(config)


# --- members in words

MEMBER_TABLE = Table(("MEMBER", "STATE", "BUILD", "BEHIND", "WHY"), dispensable=("BUILD", "BEHIND"))


def describe_membership(state: BatchState | None, build: BuildRecord, now: float) -> Iterator[str]:
    """Say, in sentences for `reimzul explain`, which batch a build belongs to and what that means for it."""
    if not build.batch:
        return
    if state is None or (progress := state.find_member(build.build_id)) is None:
        yield f"It belongs to batch {build.batch}, whose files cannot be read."
        return
    phase = overview.find_phase(state)
    why = f": {state.pause_reason}" if phase == overview.BatchPhase.PAUSED else ""
    yield f"It is a build of {progress.key} of batch {build.batch}, which is {phase}{why}."
    if progress.build_id != build.build_id:
        yield f"A later build of that member is {progress.build_id[:8]}."
        return
    if progress.state == MemberState.HELD:
        wait = describe_wait(state, progress.key, now)
        yield f"It {wait}." if wait else f"It is held: {describe_held(state, progress)}."
    if progress.state in (MemberState.HELD, MemberState.WAITING):
        yield f"To have it built all the same: reimzul batch release {build.batch} {progress.member.name} --anyway"
    blocked = count_blocked(state, progress)
    if blocked:
        yield f"{pluralize(blocked, 'member')} behind it: reimzul batch show {build.batch} --tree"
    if blocked and progress.state in MemberState.BROKEN:
        yield f"To go on: reimzul batch retry, replace or skip {build.batch} {progress.member.name}"


def to_row(state: BatchState, progress: MemberProgress, now: float) -> list[str]:
    blocked = count_blocked(state, progress)
    behind = "-" if blocked is None else f"{blocked:,}"
    why = describe_member(state, progress, now) or "-"
    return [progress.key, progress.state, progress.build_id[:8] or "-", behind, why]


def format_tree(state: BatchState, now: float) -> Iterator[str]:
    """Draw who waits for whom, from the members that wait for none."""
    for line in walk_tree(state):
        progress = line.progress
        if line.depth:
            again = "  (see above)" if line.is_repeated else ""
            yield f"{'  ' * line.depth}{progress.key}  {progress.state}{again}"
        else:
            why = describe_member(state, progress, now)
            yield f"{progress.key}  {progress.state}{f': {why}' if why else ''}  ({line.behind:,} behind it)"


# --- a batch among builds

#: Seconds that a batch is shown after its end where all that runs is followed.
_SHOWN_AFTER_END_SECONDS = 60.0


def describe_summary(summary: BatchSummary) -> str:
    return f"batch of {pluralize(summary.total, 'member')}: {describe_counts(summary.counts)}"


def iterate_summaries(settings: Settings, target: str | None, begin: float, end: float) -> Iterator[BatchSummary]:
    """Yield the batches that were submitted in a period, the newest first; those that cannot be read are left out."""
    for batch in list_batches(settings):
        summaries, _faults = read_summaries(settings, [batch])
        for each in summaries:
            if each.created < begin:
                return
            if each.created < end and (target is None or target in _list_targets(each)):
                yield each


def _list_targets(summary: BatchSummary) -> list[str]:
    return [summary.target, *(f"{summary.target}.{arch}" for arch in summary.arches)]


class BatchFollower:
    """Follows all batches that are not over."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._files: dict[str, BatchFiles] = {}
        self._over: dict[str, float] = {}  #: when each was first found to be over

    def poll(self) -> list[BatchSummary]:
        """Return the batches that are not over, or have been for a short time only."""
        now = time.monotonic()
        for batch in list_batches(self._settings):
            if batch not in self._over and batch not in self._files:
                self._open(batch)
        found = []
        for batch, files in list(self._files.items()):
            summary = self._refresh(files)
            if summary is None or now - self._over.get(batch, now) > _SHOWN_AFTER_END_SECONDS:
                del self._files[batch]
            else:
                found.append(summary)
            if summary is not None and summary.phase == BatchPhase.OVER:
                self._over.setdefault(batch, now)
        return found

    def _open(self, batch: str) -> None:
        summaries, _faults = read_summaries(self._settings, [batch])
        if not summaries or summaries[0].phase == BatchPhase.OVER:
            self._over[batch] = float("-inf")
            return
        self._files[batch] = BatchFiles(self._settings.incoming.folder, batch)

    def _refresh(self, files: BatchFiles) -> BatchSummary | None:
        try:
            return summarize(files.refresh())
        except InputError:
            return None

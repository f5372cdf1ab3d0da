# SPDX-License-Identifier: Apache-2.0
"""`reimzul batch`: lists, shows and watches batches; the commands that steer them are in the modules beside this one.

`reimzul-submit --batch` makes batches, and `reimzul-batch` carries them out.
"""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from typing import Any, Callable, TypeVar, Union

import click

from reimzul.admin import batch_lookup, batch_orders, batch_replace, batch_settle, lookup, output
from reimzul.admin.causes import find_build_before
from reimzul.admin.output import NearestGroup
from reimzul.admin.watch import WatchTimeout
from reimzul.core.cli import EXIT_CODES, print_error
from reimzul.core.errors import EXIT_FAILED, EXIT_INTERRUPTED
from reimzul.core.formatting import format_duration, format_time, list_first, pluralize
from reimzul.core.message import Status
from reimzul.core.option_types import Seconds, WholeNumber
from reimzul.core.settings import Settings
from reimzul.history import NoHistory
from reimzul.plan import overview
from reimzul.plan.batches import (
    BatchFiles,
    BatchSummary,
    BatchView,
    describe_phase,
    describe_progress,
    make_view,
    summary_to_dict,
    view_to_dict,
)
from reimzul.plan.overview import BatchPhase, Outlook, describe_member, sort_members
from reimzul.plan.progress import MemberProgress, MemberState
from reimzul.plan.state import BatchState

F = TypeVar("F", bound=Callable[..., Any])

_LIST_TABLE = output.Table(
    ("BATCH", "STATE", "TARGET", "MEMBERS", "DONE", "FAILED", "SUBMITTED", "SUBMITTER"),
    dispensable=("SUBMITTER", "SUBMITTED"),
)
#: Members of a chain, and causes, that are printed.
_MAX_CHAIN, _MAX_CAUSES = 6, 10


# --- reimzul batch list


@click.command("list", epilog=EXIT_CODES)
@click.option(
    "--limit", type=WholeNumber(1, 100_000), default=10, show_default=True, metavar="COUNT",
    help="List no more than this; the last line says if there are more.",
)  # fmt: skip
@output.table_options(_LIST_TABLE)
@output.json_option("a list of batches")
@output.pass_settings
def list_command(settings: Settings, limit: int, columns: Sequence[str], wide: bool, as_json: bool) -> int:
    """List batches, the newest first: what each does, and how many of its members are done and failed.

    \b
    Examples:
      reimzul batch list
      reimzul batch list --limit 50 --json
    """
    known = batch_lookup.list_batches(settings)
    found, faults = batch_lookup.read_summaries(settings, known[:limit])
    if as_json:
        output.print_json([summary_to_dict(each) for each in found])
    elif found:
        output.print_table(_LIST_TABLE, map(_summary_row, found), columns=columns, wide=wide)
    elif not faults:
        output.print_none_found("batch")
    if len(known) > limit:
        output.print_note(f"{limit:,} shown, there are more: --limit", as_json=as_json)
    for fault in faults:
        print_error(fault)
    return EXIT_FAILED if faults else 0


def _summary_row(summary: BatchSummary) -> list[str]:
    numbers = (summary.total, summary.good, summary.failed_count)
    about = (format_time(summary.created), summary.submitter)
    return [summary.batch, summary.phase, summary.target, *map(str, numbers), *about]


# --- reimzul batch show

#: The options that choose members, and what each shows.
_FILTERS = {
    "failed": "Show members that failed or were rejected.",
    "waiting": "Show members that miss a requirement which nobody provides.",
    "held": "Show members that wait for others.",
    "stale": "Show members that were built against an old build of another.",
}


def filter_options(function: F) -> F:
    for name, text in reversed(_FILTERS.items()):
        function = click.option(f"--{name}", is_flag=True, help=text)(function)
    return function


@click.command("show", epilog=EXIT_CODES)
@batch_lookup.batch_argument()
@click.option("--tree", is_flag=True, help="Draw who waits for whom, instead of the members.")
@filter_options
@click.option("--limit", type=WholeNumber(1, 1_000_000), default=30, show_default=True, metavar="COUNT",
              help="Members, or lines of the tree, that are printed.")  # fmt: skip
@output.json_option("an object: the batch, its causes of failure, its members")
@output.pass_settings
def show_command(settings: Settings, batch: str | None, tree: bool, limit: int, as_json: bool, **given: bool) -> None:
    """Show a batch: what it does, how long still, why members failed and how many wait behind them, and its members.

    BATCH is a batch's id, or a prefix that no other batch has; without it, the newest batch that is not over. The
    table leaves out what is published.

    \b
    Examples:
      reimzul batch show
      reimzul batch show 5f0c12ab --failed
      reimzul batch show 5f0c12ab --tree
    """
    filters = [name for name in _FILTERS if given[name]]
    if tree and (filters or as_json):
        raise click.UsageError("--tree shows all members that are waited for: leave --json and the other options out")
    view = read_view(settings, batch_lookup.find_batch(settings, batch).state)
    chosen = list(_choose(view.state, filters))
    if as_json:
        output.print_json(view_to_dict(view, chosen))
        return
    output.print_result(None, format_view(view), False)
    click.echo()
    if tree:
        lines = list(batch_lookup.format_tree(view.state, view.now))
        output.print_result(None, lines[:limit] or ["nobody waits for another member"], False)
        left_out = len(lines) - limit
    else:
        left_out = _print_members(view, chosen, limit, is_filtered=bool(filters))
    if left_out > 0:
        output.print_note(f"and {left_out:,} more: --limit")


def read_view(settings: Settings, state: BatchState) -> BatchView:
    newly_failing = _find_newly_failing(settings, state) if state.plan.scratch else None
    return make_view(state, batch_lookup.count_builders(settings, state), newly_failing)


def _find_newly_failing(settings: Settings, state: BatchState) -> list[str] | None:
    """Return the failed members whose package was built by its last build before; None if nobody knows."""
    failed = {each.build_id: each.key for each in overview.find_failed(state)}
    try:
        with lookup.reading_history(settings.history.url) as history:
            records = [build.main for build in lookup.find_recorded_builds(history, failed)]
            before = {each.build_id: find_build_before(history, each) for each in records}
    except NoHistory:
        return None
    return sorted(failed[each] for each, last in before.items() if last is not None and last.status == Status.SUCCESS)


def _choose(state: BatchState, filters: Sequence[str]) -> Iterator[MemberProgress]:
    states = {"failed": (MemberState.FAILED, MemberState.REJECTED), "waiting": (MemberState.WAITING,)}
    wanted = {state for each in filters for state in states.get(each, (each,))}
    stale = {each.key for each in overview.find_stale(state)} if "stale" in filters else set()
    for key, progress in state.members.items():
        if not filters or progress.state in wanted or key in stale:
            yield progress


def _print_members(view: BatchView, chosen: Sequence[MemberProgress], limit: int, *, is_filtered: bool) -> int:
    """Print members, those that are published only if they were asked for; return how many were left out."""
    shown = [each for each in chosen if is_filtered or not overview.is_good(view.state, each)]
    if not shown:
        output.print_none_found("such member" if is_filtered else "unfinished member")
        return 0
    ordered = sort_members(view.state, shown)
    rows = [batch_lookup.to_row(view.state, each, view.now) for each in ordered[:limit]]
    output.print_table(batch_lookup.MEMBER_TABLE, rows)
    return len(shown) - limit


def format_view(view: BatchView) -> Iterator[str]:
    state, plan = view.state, view.state.plan
    scratch = ", scratch" * plan.scratch
    yield f"batch {plan.batch}: {batch_lookup.describe_batch(state)} for {plan.target} on {', '.join(plan.arches)}"
    yield from output.format_facts(
        ("state", describe_phase(state)),
        ("members", f"{len(state.members):,}: {overview.describe_counts(overview.count_states(state))}"),
        ("done", describe_progress(state)),
        ("submitted", f"{format_time(plan.created)} by {plan.submitter}, order {plan.order}{scratch}"),
        ("expected end", _describe_end(view)),
        ("longest chain", _describe_chain(view.outlook)),
        ("newly failing", _describe_newly_failing(view)),
        *_describe_causes(state),
    )


def _describe_end(view: BatchView) -> str | None:
    if overview.find_phase(view.state) == BatchPhase.OVER:
        return None
    seconds, builders = view.seconds_left, view.builders
    if seconds is None:
        return "unknown" if view.state.rests is False and not view.state.is_paused else None
    return f"{format_time(view.now + seconds)}, in {format_duration(seconds)} with {pluralize(builders or 0, 'worker')}"


def _describe_chain(outlook: Outlook) -> str | None:
    if not outlook.chain:
        return None
    return f"{format_duration(outlook.chain_seconds)}: {list_first(outlook.chain, _MAX_CHAIN)}"


def _describe_newly_failing(view: BatchView) -> str | None:
    if view.newly_failing is None:
        return None
    names = overview.list_names([view.state.members[key] for key in view.newly_failing])
    others = len(overview.find_failed(view.state)) - len(view.newly_failing)
    old = f"; {others:,} failed before too, or were never built" if others else ""
    return f"{len(view.newly_failing):,} of {len(view.state.members):,}{f': {names}' if names else ''}{old}"


def _describe_causes(state: BatchState) -> Iterator[tuple[str, str]]:
    groups = overview.group_failures_by_cause(state)
    for number, group in enumerate(groups[:_MAX_CAUSES]):
        yield "" if number else "failed", f"{len(group.members):,} x {group.text}"
    if len(groups) > _MAX_CAUSES:
        yield "", f"and {pluralize(len(groups) - _MAX_CAUSES, 'more cause')}: reimzul causes --batch {state.plan.batch}"


# --- watching

#: Seconds between two looks at the journal.
_POLL_SECONDS = 1.0
#: The phases in which nothing goes on by itself.
_ENDS = (BatchPhase.OVER, BatchPhase.RESTING)
#: States of members that a terminal shows: those that run, and those that need a person.
_SHOWN_STATES = (MemberState.BUILDING, MemberState.RELEASED, MemberState.WAITING, *MemberState.BROKEN)


@click.command("watch", epilog=EXIT_CODES)
@batch_lookup.batch_argument()
@click.option(
    "--timeout",
    type=Seconds(),
    metavar="SECONDS",
    help="Stop after this time with exit code 1; the batch goes on.",
)
@output.json_option("an object for each change")
@output.pass_settings
def watch(settings: Settings, batch: str | None, timeout: float | None, as_json: bool) -> int:
    """Follow a batch until it is over, or rests since members wait behind failed ones.

    A terminal shows what the batch does, how long still, and the members that run or failed. A pipe gets a line for
    each change of a member and of the batch. The exit code is 0 if all members were built (and published), or skipped,
    otherwise 1. Ctrl-C leaves the batch running.

    \b
    Examples:
      reimzul batch watch
      reimzul batch watch 5f0c12ab --json
    """
    files = batch_lookup.find_batch(settings, batch)
    is_live = sys.stdout.isatty() and not as_json
    screen: Union[BatchScreen, ChangeLines] = BatchScreen(settings) if is_live else ChangeLines(as_json=as_json)
    try:
        code, reason = follow(files, screen, timeout), ""
    except KeyboardInterrupt:
        code, reason = EXIT_INTERRUPTED, "\n"
    except WatchTimeout as error:
        code, reason = EXIT_FAILED, f"{error}; "
    if reason:
        click.echo(f"{reason}the batch goes on; to follow it again: reimzul batch watch {files.batch}", err=True)
    return code


def follow(files: BatchFiles, screen: BatchScreen | ChangeLines, timeout: float | None) -> int:
    """Show a batch until it is over or rests; returns the exit code. Raises `WatchTimeout`, `InputError`."""
    deadline = float("inf") if timeout is None else time.monotonic() + timeout
    state = files.state
    while True:
        screen.show(state)
        if overview.find_phase(state) in _ENDS:
            return 0 if all(overview.is_good(state, each) for each in state.members.values()) else EXIT_FAILED
        if time.monotonic() > deadline:
            raise WatchTimeout(f"not over after {format_duration(timeout or 0)}")
        time.sleep(min(_POLL_SECONDS, max(0.0, deadline - time.monotonic())))
        state = files.refresh()


class BatchScreen(output.LiveScreen):
    """A summary on a terminal, and below it the members that run or need a person."""

    def __init__(self, settings: Settings) -> None:
        super().__init__()
        self._settings = settings

    def show(self, state: BatchState) -> None:
        size = shutil.get_terminal_size((100, 24))
        view = read_view(self._settings, state)
        facts = [output.shorten_line(line, size.columns) for line in format_view(view)]
        shown = [each for each in state.members.values() if each.state in _SHOWN_STATES]
        room = max(1, size.lines - len(facts) - 4)
        rows = [batch_lookup.to_row(state, each, view.now) for each in sort_members(state, shown)[:room]]
        table, _ = output.fit_table(batch_lookup.MEMBER_TABLE, rows, size.columns) if rows else ([], [])
        more = [f"and {len(shown) - room:,} more"] if len(shown) > room else []
        self.draw([*facts, "", *table, *more])


class ChangeLines:
    """A line for each change of a member's state, and of the batch's."""

    def __init__(self, *, as_json: bool) -> None:
        self._as_json = as_json
        self._printed: dict[str, tuple[str, str]] = {}  #: member's key, "" for the batch -> state and build

    def show(self, state: BatchState) -> None:
        now, batch = time.time(), state.plan.batch
        for each in self._find_changed(state):
            message = describe_member(state, each, now)
            self._print(
                batch=batch, member=each.key, state=each.state, build_id=each.build_id, at=each.at, message=message
            )
        phase = overview.find_phase(state)
        if self._printed.get("") != (phase, ""):
            self._printed[""] = (phase, "")
            message = f"{describe_phase(state)}; {describe_progress(state)} done"
            self._print(batch=batch, state=phase, at=state.at, message=message, over=phase in _ENDS)

    def _find_changed(self, state: BatchState) -> Iterator[MemberProgress]:
        """Yield members whose state or build has changed; those that only wait are no news at first."""
        for key, progress in state.members.items():
            value = (progress.state, progress.build_id if progress.state != MemberState.HELD else "")
            if self._printed.get(key, (MemberState.HELD, "")) != value:
                yield progress
            self._printed[key] = value

    def _print(
        self,
        *,
        batch: str,
        state: str,
        at: float,
        message: str,
        member: str = "",
        build_id: str = "",
        over: bool = False,
    ) -> None:
        if self._as_json:
            about = {"batch": batch, "member": member, "state": state, "build_id": build_id}
            output.print_json({**about, "at": at, "message": message, "over": over}, indent=None)
        else:
            cells = (format_time(at), member or f"batch {batch}", output.colour_state(state), build_id[:8] or "-")
            click.echo("\t".join([*cells, message or "-"]))


# --- the group


@click.group("batch", cls=NearestGroup, invoke_without_command=True, epilog=EXIT_CODES)
@click.pass_context
def command(context: click.Context) -> int | None:
    """Show and steer batches: many source rpms that are built in an order which the farm computes.

    Without a command the newest batches are listed. Names are those of sources, and mean all arches of the batch
    unless --arch says which.

    \b
    Examples:
      reimzul batch
      reimzul batch show 5f0c12ab
      reimzul batch watch 5f0c12ab
      reimzul batch skip 5f0c12ab qt6-qtwebengine
    """
    if context.invoked_subcommand is None:
        return int(context.invoke(list_command))
    return None


_COMMANDS = (
    list_command,
    show_command,
    watch,
    batch_orders.pause,
    batch_orders.resume,
    batch_orders.cancel,
    batch_orders.release,
    batch_orders.skip,
    batch_replace.replace,
    batch_orders.retry,
    batch_settle.settle,
)
for each in _COMMANDS:
    command.add_command(each)

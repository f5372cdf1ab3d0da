# SPDX-License-Identifier: Apache-2.0
"""`reimzul batch watch`: shows a batch as it goes on, until it is over or rests."""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Iterator
from typing import Union

import click

from reimzul.admin import batch_lookup, batch_members, batch_show, output
from reimzul.admin.watch import WatchTimeout
from reimzul.core.cli import EXIT_CODES
from reimzul.core.errors import EXIT_FAILED, EXIT_INTERRUPTED
from reimzul.core.formatting import format_duration, format_time
from reimzul.core.option_types import Seconds
from reimzul.core.settings import Settings
from reimzul.plan import overview
from reimzul.plan.batches import BatchFiles
from reimzul.plan.members import describe_member, sort_members
from reimzul.plan.overview import BatchPhase
from reimzul.plan.progress import MemberProgress, MemberState
from reimzul.plan.state import BatchState
from reimzul.plan.view import describe_phase, describe_progress

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
        view = batch_show.read_view(self._settings, state)
        facts = [output.shorten_line(line, size.columns) for line in batch_show.format_view(view)]
        shown = [each for each in state.members.values() if each.state in _SHOWN_STATES]
        room = max(1, size.lines - len(facts) - 4)
        rows = [batch_members.to_row(state, each, view.now) for each in sort_members(state, shown)[:room]]
        table, _ = output.fit_table(batch_members.MEMBER_TABLE, rows, size.columns) if rows else ([], [])
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

# SPDX-License-Identifier: Apache-2.0
"""`reimzul watch`: shows builds as they go on, until they are over."""

from __future__ import annotations

import contextlib
import itertools
import json
import re
import shutil
import sys
import time
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Optional

import attr
import click

from reimzul.admin import lookup
from reimzul.admin.lookup import GONE, BuildLegs, job_state, queue_order
from reimzul.admin.output import Table, fit_table, json_option, pass_settings
from reimzul.admin.stats import PACKAGE_SAMPLE, DurationStats, duration_stats
from reimzul.core.arch import Arches, read_arches
from reimzul.core.beanstalk import Broker
from reimzul.core.cli import EXIT_CODES
from reimzul.core.errors import EXIT_FAILED, EXIT_INTERRUPTED, InputError, ReimzulError
from reimzul.core.formatting import format_duration, format_time, pluralize
from reimzul.core.links import PublicUrl, describe_files, relink
from reimzul.core.message import CurrentBuild
from reimzul.core.settings import Settings
from reimzul.history import BuildRecord, History, HistoryUnavailable, NoHistory
from reimzul.history.build_record import CLAIMED, BuildState
from reimzul.history.workers import WorkersUnavailable

_POLL_SECONDS = 1.0
#: Seconds between two counts of positions in the queue: these read all waiting builds.
_POSITIONS_SECONDS = 5.0
#: Seconds after which a worker's last event before it deleted its job is in the history.
_SETTLE_SECONDS = 3.0
#: Seconds that a build is shown after its end where all builds are followed.
_SHOWN_AFTER_END_SECONDS = 60.0

#: States of a leg that goes on, in this order; then it gets one of those that are final.
NOT_RECORDED, WAITING, BUILDING, BUILT = "unheard", "waiting", "building", "built"
SUCCESS_STATES = ("published", "built and not to be published")
_TABLE = Table(
    ("ID", "SRPM", "ARCH", "STATE", "TIME", "USUALLY", "BUILDER", "TARGET"), dispensable=("TARGET", "BUILDER")
)


@click.command("watch", epilog=EXIT_CODES)
@lookup.build_ids_argument(required=False)
@click.option(
    "--new", is_flag=True, help="The builds were just submitted: wait until they are recorded. Full IDs only."
)
@json_option("an object for each change")
@pass_settings
def watch(settings: Settings, given: tuple[str, ...], new: bool, as_json: bool) -> int:
    """Follow builds until they are published, failed or cancelled; without IDs, all that wait or run now.

    A terminal shows a table that is kept up to date: position in the queue, phase, and time taken beside the usual time
    of that package. A pipe gets a line for each change. The exit code is 0 if all builds succeeded, otherwise 1. Ctrl-C
    leaves the builds running. IDs may be shortened to what no other build has.

    \b
    Examples:
      reimzul watch 72b893f8 4a1eee11
      reimzul watch
    """
    build_ids = _full_ids(settings, given, new)
    screen = TableScreen() if sys.stdout.isatty() and not as_json else LineScreen(as_json=as_json)
    try:
        return BuildWatcher(settings, build_ids).run(screen)
    except KeyboardInterrupt:
        ids = "".join(f" {each[:8]}" for each in build_ids)
        click.echo(f"\nthe builds go on; to follow them again: reimzul watch{ids}", err=True)
        return EXIT_INTERRUPTED


def _full_ids(settings: Settings, given: Sequence[str], new: bool) -> list[str]:
    """The full ids of the builds to follow; empty for all."""
    if not new:
        return [build.build_id for build in lookup.read_builds(settings, given)] if given else []
    for build_id in given:
        if not re.fullmatch("[0-9a-f]{32}", build_id):
            raise InputError(f"{build_id}: with --new an id is given in full, 32 hex digits")
    return list(dict.fromkeys(given))


class BuildWatcher:
    """Polls the history, the workers and beanstalkd, and shows the builds until all are over."""

    def __init__(self, settings: Settings, build_ids: Sequence[str]) -> None:
        self._settings = settings
        self._public_url = PublicUrl(settings.bstore)
        self._arches = read_arches(settings.farm.arches)
        self._build_ids = list(build_ids)
        self._usual: dict[tuple[str, str], DurationStats | None] = {}
        self._positions: dict[str, int] = {}
        self._positions_at = float("-inf")
        self._running: set[str] = set()  #: builds that ran at the last poll, where all are followed
        self._ended: dict[str, float] = {}  #: of those, when each was first found not to run any more
        self._gone: dict[str, float] = {}  #: when the job of a build was first found deleted

    def run(self, screen: TableScreen | LineScreen) -> int:
        """Show the builds until all that were named are over; returns the exit code."""
        rows: list[LegRow] = []
        while True:
            note, is_over = "", False
            try:
                rows, is_over = self._poll()
            except NoHistory as error:
                rows, note = rows or [make_unrecorded_row(each) for each in self._build_ids], str(error)
            except HistoryUnavailable as error:
                if not rows:  # never read so far: this user may not be allowed to
                    raise
                note = str(error)
            screen.show(rows, note)
            if is_over:
                return rows_exit_code(rows)
            time.sleep(_POLL_SECONDS)

    def _poll(self) -> tuple[list[LegRow], bool]:
        with lookup.reading_history(self._settings.history.url) as history:
            builds = self._read_builds(history)
            self._update_positions(history, builds)
            current, now = self._read_current_builds(), time.time()
            rows = {
                build.build_id: [self._make_row(history, leg, current, now) for leg in build.legs] for build in builds
            }
        missing = [make_unrecorded_row(each) for each in self._build_ids if each not in rows]
        is_over = not missing and bool(self._build_ids) and all(self._is_over(b, rows[b.build_id]) for b in builds)
        return [*missing, *itertools.chain.from_iterable(rows.values())], is_over

    def _read_builds(self, history: History) -> list[BuildLegs]:
        if self._build_ids:
            return lookup.find_recorded_builds(history, self._build_ids)
        running = lookup.group_by_build(history.find_unfinished())
        running.sort(key=lambda build: (build.main.is_queued, *queue_order(build.main)))
        now, ids = time.monotonic(), {build.build_id for build in running}
        self._ended = {each: at for each, at in self._ended.items() if now - at < _SHOWN_AFTER_END_SECONDS}
        self._ended.update({each: now for each in self._running - ids})
        self._running = ids
        return [*running, *lookup.find_recorded_builds(history, self._ended)]

    def _make_row(self, history: History, leg: BuildRecord, current: Mapping[str, CurrentBuild], now: float) -> LegRow:
        position, usual = self._positions.get(leg.build_id), self._usual_duration(history, leg)
        return make_row(relink(leg, self._public_url.get()), now, position, current.get(leg.build_id), usual)

    def _usual_duration(self, history: History, leg: BuildRecord) -> DurationStats | None:
        key = (leg.pkgname, leg.arch)
        if key not in self._usual:
            past = history.recent_successes(*key, PACKAGE_SAMPLE) if key[0] else []
            self._usual[key] = duration_stats(each.duration for each in past)
        return self._usual[key]

    def _update_positions(self, history: History, builds: Iterable[BuildLegs]) -> None:
        if not any(build.main.is_queued for build in builds):
            self._positions = {}
        elif time.monotonic() - self._positions_at > _POSITIONS_SECONDS or not self._positions:
            self._positions_at = time.monotonic()
            self._positions = queue_positions(history.find_unfinished())

    def _read_current_builds(self) -> dict[str, CurrentBuild]:
        try:
            seen = lookup.load_workers(self._settings)
        except WorkersUnavailable:
            return {}
        current = [each.heartbeat.build for each in sorted(seen, key=lambda each: each.last_seen)]
        return {build.build_id: build for build in current if build}

    def _is_over(self, build: BuildLegs, rows: Sequence[LegRow]) -> bool:
        if is_build_over(build, rows, self._arches, gone=False):
            return True
        return is_build_over(build, rows, self._arches, gone=True) and self._is_settled(build.main)

    def _is_settled(self, leg: BuildRecord) -> bool:
        """Whether a build's job was deleted so long ago that nothing more is to come."""
        if self._job_state(leg) != GONE:
            self._gone.pop(leg.build_id, None)
            return False
        now = time.monotonic()
        return now - self._gone.setdefault(leg.build_id, now) > _SETTLE_SECONDS

    def _job_state(self, leg: BuildRecord) -> str:
        """The state of a job in beanstalkd; empty while that cannot be reached."""
        if not leg.job:
            return GONE
        with contextlib.suppress(ReimzulError), Broker.from_settings(self._settings.beanstalkd) as broker:
            return job_state(broker, leg)
        return ""


def queue_positions(unfinished: Iterable[BuildRecord]) -> dict[str, int]:
    """How many builds are before each waiting one in its own tube."""
    tubes: defaultdict[str, dict[int, BuildRecord]] = defaultdict(dict)
    for leg in unfinished:
        if leg.is_queued and leg.job:
            tubes[leg.tube][leg.job] = leg  # legs that were queued together are one job
    ordered = (sorted(legs.values(), key=queue_order) for legs in tubes.values())
    return {leg.build_id: number for legs in ordered for number, leg in enumerate(legs)}


# --- rows


@attr.frozen(kw_only=True)
class LegRow:
    leg: BuildRecord
    state: str  #: one of the states above; else failed, rejected, cancelled, override
    message: str  #: the state for a person: position, phase, reason
    phase: str = ""  #: that its worker reports
    elapsed: Optional[float] = None  #: seconds it has waited, has been built for, or took
    usual: Optional[float] = None  #: seconds such a build takes

    @property
    def is_over(self) -> bool:
        return self.state not in (NOT_RECORDED, WAITING, BUILDING, BUILT)

    @property
    def line_key(self) -> tuple[str, ...]:
        """The values whose change is worth a new line. A heartbeat still names the phase of a build that has ended."""
        phase = self.phase if self.state == BUILDING else ""
        return (self.state, self.leg.attempt, phase, self.leg.claim_text)


def make_unrecorded_row(build_id: str) -> LegRow:
    """A build that was just submitted and is not in the history yet."""
    leg = BuildRecord(build_id=build_id, srpm="-", arch="-", target="-")
    return LegRow(leg=leg, state=NOT_RECORDED, message="submitted; not recorded by the notifier yet")


def make_row(
    leg: BuildRecord, now: float, ahead: int | None, current: CurrentBuild | None, usual: DurationStats | None
) -> LegRow:
    """A leg as it is now. `ahead`: builds before it in its tube; `current`: what its worker reports of the build."""
    phase = current.phase if current is not None and current.arch == leg.arch else ""
    state, message = _describe_state(leg, ahead, phase)
    return LegRow(
        leg=leg,
        state=state,
        message=message,
        phase=phase,
        elapsed=_elapsed_seconds(leg, state, now),
        usual=usual.median if usual and state in (WAITING, BUILDING) else None,
    )


def _describe_state(leg: BuildRecord, ahead: int | None, phase: str) -> tuple[str, str]:
    state, text = _describe_progress(leg, ahead, phase)
    return state, f"{text}; {leg.claim_text}" if leg.claimed else text


def _describe_progress(leg: BuildRecord, ahead: int | None, phase: str) -> tuple[str, str]:
    if leg.is_queued:
        position = "" if ahead is None else ", next" if not ahead else f", {pluralize(ahead, 'build')} ahead"
        reason = f"; {leg.reason}" if leg.attempts and leg.reason else ""
        return WAITING, f"waits{position}{reason}"
    if leg.is_unfinished:
        return BUILDING, phase or "builds"
    if leg.status == CLAIMED:
        return NOT_RECORDED, "not recorded by the notifier yet"
    if leg.state == BuildState.PUBLISHED:
        return leg.state, "published"
    if leg.state == BuildState.BUILT:
        return (SUCCESS_STATES[1], "built (scratch)") if leg.scratch else (BUILT, "built, to be published")
    return leg.state, f"{leg.state}: {leg.comment or leg.reason or '-'}"


def _elapsed_seconds(leg: BuildRecord, state: str, now: float) -> float | None:
    since = {WAITING: leg.queued_at, BUILDING: leg.attempt_start}
    if state not in since:
        return leg.duration
    return now - since[state] if since[state] else None


def expected_arches(build: BuildLegs, known: Arches) -> set[str]:
    """The arches of the legs that the build's request has, as far as that is known."""
    main, legs = build.main, {leg.arch for leg in build.legs}
    if main.arch not in known.known or not main.target.endswith(f".{main.arch}"):
        return legs  # the request was restricted to some legs
    return legs | (set(known.legs_of(main.arch, main.pkgname)) - set(main.skipped))


def is_build_over(build: BuildLegs, rows: Sequence[LegRow], known: Arches, *, gone: bool) -> bool:
    """Whether a build is over; `gone`: its job is deleted, so no further leg is begun."""
    if not all(each.is_over for each in rows):
        return False
    return gone or expected_arches(build, known) <= {each.leg.arch for each in rows}


def rows_exit_code(rows: Sequence[LegRow]) -> int:
    return 0 if all(each.state in SUCCESS_STATES for each in rows) else EXIT_FAILED


def row_cells(row: LegRow) -> list[str]:
    leg = row.leg
    elapsed, usually = ("-" if each is None else format_duration(each) for each in (row.elapsed, row.usual))
    return [leg.build_id[:8], leg.srpm, leg.arch, row.message, elapsed, usually, leg.builder_fqdn or "-", leg.target]


def row_to_dict(row: LegRow, at: float) -> dict[str, Any]:
    leg = row.leg
    return {
        **{name: getattr(leg, name) for name in ("build_id", "srpm", "arch", "target", "url")},
        **{name: getattr(row, name) for name in ("state", "message", "elapsed", "usual")},
        "builder": leg.builder_fqdn,
        "at": round(at, 3),
        "over": row.is_over,
    }


# --- screens


class TableScreen:
    """A table on a terminal, redrawn in its place; the note below it is about all rows."""

    def __init__(self) -> None:
        self._drawn_lines = 0

    def show(self, rows: Sequence[LegRow], note: str) -> None:
        size = shutil.get_terminal_size((100, 24))
        # legs that are over make room first, and of them those that succeeded; the order stays
        ranked = sorted(range(len(rows)), key=lambda each: (rows[each].is_over, rows[each].state in SUCCESS_STATES))
        shown = [rows[each] for each in sorted(ranked[: max(1, size.lines - 3)])]
        lines = fit_table(_TABLE, [row_cells(each) for each in shown], size.columns)[0]
        if len(shown) < len(rows):
            lines.append(f"and {len(rows) - len(shown)} more")
        if note:
            lines.append(note[: size.columns])
        cursor_up = f"\x1b[{self._drawn_lines}A" if self._drawn_lines else ""
        # clear behind the end of each line, and all that is below the last one
        click.echo(cursor_up + "".join(f"\r{line}\x1b[K\n" for line in lines) + "\x1b[J", nl=False)
        self._drawn_lines = len(lines)


class LineScreen:
    """A line for each change of a leg's state, attempt or phase."""

    def __init__(self, *, as_json: bool) -> None:
        self._as_json = as_json
        self._printed: dict[tuple[str, str], tuple[str, ...]] = {}
        self._note = ""

    def show(self, rows: Sequence[LegRow], note: str) -> None:
        now = time.time()
        for each in rows:
            key = (each.leg.build_id, each.leg.arch)
            if self._printed.get(key) != each.line_key:
                self._printed[key] = each.line_key
                self._print_row(each, now)
        if note and note != self._note:
            click.echo(note, err=True)
        self._note = note

    def _print_row(self, row: LegRow, now: float) -> None:
        if self._as_json:
            click.echo(json.dumps(row_to_dict(row, now), sort_keys=True))
        else:
            where = describe_files(row.leg) if row.is_over else ""
            click.echo("\t".join([format_time(now), *row_cells(row), *([where] if where else [])]))

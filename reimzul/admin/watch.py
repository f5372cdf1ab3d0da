# SPDX-License-Identifier: Apache-2.0
"""`reimzul watch`: shows builds as they go on, until they are over."""

from __future__ import annotations

import contextlib
import itertools
import re
import shutil
import sys
import time
from collections import defaultdict
from collections.abc import Collection, Iterable, Sequence
from typing import Any, Optional

import attr
import click

from reimzul.admin import lookup
from reimzul.admin.batch_lookup import BatchFollower
from reimzul.admin.lookup import GONE, BuildLegs, job_state, queue_order
from reimzul.admin.output import (
    LiveScreen,
    Table,
    colour_state,
    fit_table,
    json_option,
    name_left_out,
    pass_settings,
    print_json,
    print_none_found,
    refuse_ignored,
    shorten_line,
)
from reimzul.core.arch import Arches, read_arches
from reimzul.core.beanstalk import CREATEREPO, Broker
from reimzul.core.cli import EXIT_CODES
from reimzul.core.errors import EXIT_FAILED, EXIT_INTERRUPTED, InputError, ReimzulError
from reimzul.core.formatting import format_duration, format_time, pluralize
from reimzul.core.links import LinkSource, describe_files, relink
from reimzul.core.message import CurrentBuild
from reimzul.core.option_types import Seconds
from reimzul.core.settings import Settings
from reimzul.history import BuildRecord, History, HistoryUnavailable, NoHistory
from reimzul.history.build_record import BuildState
from reimzul.history.estimates import PACKAGE_SAMPLE, DurationStats, duration_stats
from reimzul.history.workers import WorkerRecord, WorkersUnavailable, find_leg_errors
from reimzul.plan.batches import BatchSummary
from reimzul.plan.overview import BatchPhase, describe_counts

_POLL_SECONDS = 1.0
#: Seconds between two counts of positions in the queue: these read all waiting builds.
_POSITIONS_SECONDS = 5.0
#: Seconds after which a worker's last event before it deleted its job is in the history.
_SETTLE_SECONDS = 3.0
#: States after which a build goes on, unless it is a scratch build that is built.
_GOES_ON = (BuildState.QUEUED, BuildState.HELD, BuildState.BUILDING, BuildState.BUILT, BuildState.CLAIMED)
#: Seconds that a build is shown after its end where all builds are followed.
_SHOWN_AFTER_END_SECONDS = 60.0

_TABLE = Table(
    ("ID", "SRPM", "ARCH", "STATE", "TIME", "USUALLY", "BUILDER", "TARGET"), dispensable=("TARGET", "BUILDER")
)


@click.command("watch", epilog=EXIT_CODES)
@lookup.build_ids_argument(required=False)
@click.option(
    "--new", is_flag=True, help="The builds were just submitted: wait until they are recorded. Full IDs only."
)
@click.option(
    "--timeout",
    type=Seconds(),
    metavar="SECONDS",
    help="Stop after this time with exit code 1; the builds go on.",
)
@json_option("an object for each change")
@pass_settings
def watch(settings: Settings, given: tuple[str, ...], new: bool, timeout: float | None, as_json: bool) -> int:
    """Follow builds until they are published, failed or cancelled; without IDs, all that wait or run.

    A terminal shows a table that is kept up to date: position in the queue, phase, and time taken beside the usual time
    of that package. A pipe gets a line for each change. The exit code is 0 if all builds succeeded, otherwise 1.
    Without IDs it goes on until Ctrl-C, unless no build waits or runs, and a batch is one line (`reimzul batch watch`
    shows its members). Ctrl-C leaves the builds running. IDs may be shortened to what no other build has.

    \b
    Examples:
      reimzul watch 72b893f8 4a1eee11
      reimzul watch
    """
    if not given:
        refuse_ignored("without IDs", "new")
    build_ids = _full_ids(settings, given, new)
    if not build_ids and not _has_unfinished(settings, as_json):
        return 0
    screen = TableScreen() if sys.stdout.isatty() and not as_json else LineScreen(as_json=as_json)
    try:
        code, reason = BuildWatcher(settings, build_ids).run(screen, timeout), ""
    except KeyboardInterrupt:
        code, reason = EXIT_INTERRUPTED, "\n"
    except WatchTimeout as error:
        code, reason = EXIT_FAILED, f"{error}; "
    if reason:
        ids = "".join(f" {each[:8]}" for each in build_ids)
        click.echo(f"{reason}the builds go on; to follow them again: reimzul watch{ids}", err=True)
    return code


def _full_ids(settings: Settings, given: Sequence[str], new: bool) -> list[str]:
    """The full ids of the builds to follow; empty for all."""
    if not new:
        return [build.build_id for build in lookup.read_builds(settings, given)] if given else []
    for build_id in given:
        if not re.fullmatch("[0-9a-f]{32}", build_id):
            raise InputError(f"{build_id}: with --new an id is given in full, 32 hex digits")
    return list(dict.fromkeys(given))


def _has_unfinished(settings: Settings, as_json: bool) -> bool:
    """Whether any build waits or runs; if not, print that."""
    found, reason = False, ""
    try:
        with lookup.reading_history(settings.history.url) as history:
            found = bool(history.find_unfinished())
    except NoHistory as error:
        reason = str(error)
    if not found:
        print_none_found("waiting or running build", reason, as_json=as_json)
    return found


class WatchTimeout(ReimzulError):
    """The builds did not end in the time given."""


class BuildWatcher:
    """Polls the history, the workers and beanstalkd, and shows the builds until all are over."""

    def __init__(self, settings: Settings, build_ids: Sequence[str]) -> None:
        self._settings = settings
        self._links = LinkSource(settings)
        self._arches = read_arches(settings.farm.arches)
        self._build_ids = list(build_ids)
        self._usual: dict[tuple[str, str], DurationStats | None] = {}
        self._positions: dict[str, int] = {}
        self._positions_at = float("-inf")
        self._unwatched: set[str] = set()  #: tubes that nobody watches
        self._unwatched_at = float("-inf")
        self._running: set[str] = set()  #: builds that ran at the last poll, where all are followed
        self._ended: dict[str, float] = {}  #: of those, when each was first found not to run any more
        self._batches = BatchFollower(settings)
        self._gone: dict[str, float] = {}  #: when the job of a build was first found deleted

    def run(self, screen: TableScreen | LineScreen, timeout: float | None) -> int:
        """Show the builds until all that were named are over; returns the exit code. Raises `WatchTimeout`."""
        rows: list[LegRow] = []
        deadline = float("inf") if timeout is None else time.monotonic() + timeout
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
            if time.monotonic() > deadline:
                raise WatchTimeout(f"not over after {format_duration(timeout or 0)}")
            time.sleep(min(_POLL_SECONDS, max(0.0, deadline - time.monotonic())))

    def _poll(self) -> tuple[list[LegRow], bool]:
        batches = [] if self._build_ids else self._batches.poll()
        with lookup.reading_history(self._settings.history.url) as history:
            builds = self._read_builds(history, {each.batch for each in batches})
            self._update_positions(history, builds)
            self._update_unwatched(builds)
            known, now = self._read_processes(), time.time()
            rows = {
                build.build_id: [self._make_row(history, leg, known, now) for leg in build.legs] for build in builds
            }
        missing = [make_unrecorded_row(each) for each in self._build_ids if each not in rows]
        is_over = not missing and bool(self._build_ids) and all(self._is_over(b, rows[b.build_id]) for b in builds)
        folded = [make_batch_row(each, now) for each in batches]
        return [*missing, *folded, *itertools.chain.from_iterable(rows.values())], is_over

    def _read_builds(self, history: History, folded: Collection[str]) -> list[BuildLegs]:
        """Return the builds that are followed; without ids, all that wait or run, but for those of `folded` batches."""
        if self._build_ids:
            return lookup.find_recorded_builds(history, self._build_ids)
        running = lookup.group_by_build(leg for leg in history.find_unfinished() if leg.batch not in folded)
        running.sort(key=lambda build: (build.main.is_held, build.main.is_queued, *queue_order(build.main)))
        now, ids = time.monotonic(), {build.build_id for build in running}
        self._ended = {each: at for each, at in self._ended.items() if now - at < _SHOWN_AFTER_END_SECONDS}
        self._ended.update({each: now for each in self._running - ids})
        self._running = ids
        return [*running, *lookup.find_recorded_builds(history, self._ended)]

    def _make_row(self, history: History, leg: BuildRecord, known: Sequence[WorkerRecord], now: float) -> LegRow:
        position, usual = self._positions.get(leg.build_id), self._usual_duration(history, leg)
        current = {build.build_id: build for each in known if (build := each.heartbeat.build)}
        obstacle = find_obstacle(leg, self._unwatched, known)
        return make_row(relink(leg, self._links.get()), now, position, current.get(leg.build_id), usual, obstacle)

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

    def _update_unwatched(self, builds: Sequence[BuildLegs]) -> None:
        if time.monotonic() - self._unwatched_at < _POSITIONS_SECONDS:
            return
        self._unwatched_at = time.monotonic()
        tubes = {build.main.tube for build in builds if build.main.is_queued and build.main.tube}
        with contextlib.suppress(ReimzulError), Broker.from_settings(self._settings.beanstalkd) as broker:
            self._unwatched = {tube for tube in (*tubes, CREATEREPO.name) if not broker.tube_stats(tube).watchers}

    def _read_processes(self) -> list[WorkerRecord]:
        """Return all processes that have sent heartbeats, the latest last."""
        with contextlib.suppress(WorkersUnavailable):
            return sorted(lookup.load_processes(self._settings), key=lambda each: each.last_seen)
        return []

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
        if leg.is_queued and leg.job and not leg.held:
            tubes[leg.tube][leg.job] = leg  # legs that were queued together are one job
    ordered = (sorted(legs.values(), key=queue_order) for legs in tubes.values())
    return {leg.build_id: number for legs in ordered for number, leg in enumerate(legs)}


# --- rows


@attr.frozen(kw_only=True)
class LegRow:
    leg: BuildRecord
    message: str  #: the state for a person, with position, phase or reason
    phase: str = ""  #: that its worker reports
    elapsed: Optional[float] = None  #: seconds it has waited, has been built for, or took
    usual: Optional[float] = None  #: seconds such a build takes
    obstacle: str = ""  #: what holds it up
    batch: Optional[BatchSummary] = None  #: the batch that the row is about, instead of a build

    @property
    def state(self) -> str:
        """A `BuildState`, empty while the build is not recorded; of a batch its phase."""
        return self.leg.state if self.batch is None else self.batch.phase

    @property
    def is_over(self) -> bool:
        if self.batch is not None:
            return self.batch.phase == BatchPhase.OVER
        return self.is_success or self.state not in ("", *_GOES_ON)

    @property
    def is_success(self) -> bool:
        if self.batch is not None:
            return self.is_over and self.batch.good == self.batch.total
        return self.state == BuildState.PUBLISHED or (self.state == BuildState.BUILT and self.leg.scratch)

    @property
    def line_key(self) -> tuple[str, ...]:
        """The values whose change is worth a new line. A heartbeat still names the phase of a build that has ended."""
        if self.batch is not None:
            return (self.batch.phase, str(self.batch.good), str(self.batch.failed_count))
        phase = self.phase if self.state == BuildState.BUILDING else ""
        return (self.state, self.leg.attempt, phase, self.obstacle, self.leg.claim_text)


def make_unrecorded_row(build_id: str) -> LegRow:
    """A build that was just submitted and is not in the history yet."""
    leg = BuildRecord(build_id=build_id)
    return LegRow(leg=leg, message="submitted; not recorded by the notifier yet")


def make_batch_row(summary: BatchSummary, now: float) -> LegRow:
    name = f"batch of {pluralize(summary.total, 'member')}"
    leg = BuildRecord(build_id=summary.batch, srpm=name, arch=",".join(summary.arches), target=summary.target)
    message = f"{summary.phase}: {describe_counts(summary.counts)}"
    return LegRow(leg=leg, message=message, elapsed=max(0.0, now - summary.created), batch=summary)


def find_obstacle(leg: BuildRecord, unwatched: Collection[str], known: Iterable[WorkerRecord]) -> str:
    """Return what holds up a leg: nobody watches its tube, or what processes report as failing; "" if nothing."""
    if leg.is_queued:
        return f"nobody watches tube {leg.tube}" if leg.tube in unwatched and not leg.held else ""
    is_built = leg.state == BuildState.BUILT and not leg.scratch
    if is_built and CREATEREPO.name in unwatched:
        return f"nobody watches tube {CREATEREPO.name}"
    if not leg.is_unfinished and not is_built:
        return ""
    recent = [each for each in known if each.is_worker != is_built and not each.is_silent(time.time())]
    return "; ".join(
        f"{error.what} fails on {each.heartbeat.host}: {error.message}"
        for each, error in find_leg_errors(recent, leg.build_id, leg.arch, leg.target)
    )


def make_row(
    leg: BuildRecord,
    now: float,
    ahead: int | None,
    current: CurrentBuild | None,
    usual: DurationStats | None,
    obstacle: str = "",
) -> LegRow:
    """A leg as it is now. `ahead`: builds before it in its tube; `current`: what its worker reports of the build."""
    phase = current.phase if current is not None and current.arch == leg.arch else ""
    text = _describe_progress(leg, ahead, phase, obstacle)
    if obstacle and not leg.is_queued:
        text = f"{text}; {obstacle}"
    return LegRow(
        obstacle=obstacle,
        leg=leg,
        message=f"{text}; {leg.claim_text}" if leg.claimed else text,
        phase=phase,
        elapsed=_elapsed_seconds(leg, now),
        usual=usual.median if usual and leg.is_unfinished else None,
    )


def _describe_progress(leg: BuildRecord, ahead: int | None, phase: str, obstacle: str) -> str:
    """Return the state, and what is known beside it."""
    if leg.is_held:
        return f"{leg.state}: waits for {leg.waits_for}" if leg.waits_for else leg.state
    if leg.is_queued:
        position = "" if ahead is None else ", next" if not ahead else f", {pluralize(ahead, 'build')} ahead"
        position = f": {obstacle}" if obstacle else position
        reason = f"; {leg.current_reason}" if leg.attempts and leg.current_reason else ""
        return f"{leg.state}{position}{reason}"
    if leg.is_unfinished:
        return leg.state + (phase and f": {phase}")
    if leg.state == BuildState.PUBLISHED:
        return leg.state
    if leg.state == BuildState.BUILT:
        return leg.state + (" (scratch)" if leg.scratch else ", to be published")
    if leg.state == BuildState.CLAIMED:
        return f"{leg.state}: not recorded by the notifier yet"
    return f"{leg.state}: {leg.comment or leg.reason or '-'}"


def _elapsed_seconds(leg: BuildRecord, now: float) -> float | None:
    if not leg.is_unfinished:
        return leg.duration
    since = leg.put_at if leg.is_held else leg.waits_since if leg.is_queued else leg.attempt_start
    return now - since if since else None


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
    return 0 if all(each.is_success for each in rows) else EXIT_FAILED


def row_cells(row: LegRow) -> list[str]:
    leg = row.leg
    elapsed, usually = ("-" if each is None else format_duration(each) for each in (row.elapsed, row.usual))
    about = (leg.srpm, leg.arch, row.message, elapsed, usually, leg.builder_fqdn, leg.target)
    return [leg.build_id[:8], *(each or "-" for each in about)]


def row_to_dict(row: LegRow, at: float) -> dict[str, Any]:
    leg = row.leg
    return {
        **{name: getattr(leg, name) for name in ("srpm", "arch", "target", "url", "page")},
        **{name: getattr(row, name) for name in ("state", "message", "elapsed", "usual")},
        "build_id": leg.build_id if row.batch is None else None,
        "batch": leg.batch if row.batch is None else row.batch.batch,
        "builder": leg.builder_fqdn,
        "at": at,
        "over": row.is_over,
    }


# --- screens


class TableScreen(LiveScreen):
    """A table on a terminal; the note below it is about all rows."""

    def show(self, rows: Sequence[LegRow], note: str) -> None:
        size = shutil.get_terminal_size((100, 24))
        # legs that are over make room first, and of them those that succeeded; the order stays
        ranked = sorted(range(len(rows)), key=lambda each: (rows[each].is_over, rows[each].is_success))
        (heads, *rest), left_out = fit_table(_TABLE, list(map(row_cells, rows)), size.columns)
        note = note or name_left_out(left_out)
        shown = sorted(ranked[: max(1, size.lines - 3 - bool(note))])
        lines = [heads, *(rest[each] for each in shown)]
        if len(shown) < len(rows):
            lines.append(f"and {len(rows) - len(shown)} more")
        if note:
            lines.append(shorten_line(note, size.columns))
        self.draw(lines)


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
            print_json(row_to_dict(row, now), indent=None)
        else:
            where = describe_files(row.leg) if row.is_over else ""
            cells = row_cells(row)
            place = _TABLE.heads.index("STATE")
            cells[place] = colour_state(cells[place])
            click.echo("\t".join([format_time(now), *cells, *([where] if where else [])]))

# SPDX-License-Identifier: Apache-2.0
"""`reimzul watch`: builds as they go on, until they are over."""

from __future__ import annotations

import re
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import click

from reimzul.admin import lookup
from reimzul.admin.estimates import PACKAGE_SAMPLE, DurationStats, duration_stats
from reimzul.admin.following import Row, exit_code, is_over, row, unheard
from reimzul.admin.lookup import GONE, BuildLegs, job_state, queue_order
from reimzul.admin.screen import screen
from reimzul.core.arch import read_arches
from reimzul.core.beanstalk import Broker
from reimzul.core.cli import EXIT_CODES, load_settings, shared_options
from reimzul.core.config import Settings
from reimzul.core.errors import EXIT_INTERRUPTED, BrokerUnavailable, InputError, ReimzulError
from reimzul.core.message import CurrentBuild, Status
from reimzul.history import BuildFilter, BuildRecord, History, HistoryUnavailable, NoHistory
from reimzul.history.workers import WorkersUnavailable

#: Seconds between two looks, and between two reckonings of places in the queue: these read all that waits.
_LOOK, _RECKON = 1.0, 5.0
#: Seconds after which what a worker has said before it deleted the job is in the history.
_TOLD = 3.0
#: Seconds that a build is shown after it has ended, where all are followed.
_SHOWN = 60.0
#: Legs that a build may have.
_LEGS = 50


@click.command("watch", epilog=EXIT_CODES)
@lookup.build_ids_argument(required=False)
@click.option("--new", is_flag=True, help="The ids, in full, are of builds just submitted: wait to hear of them.")
@click.option("--json", "as_json", is_flag=True, help="A line for each change, an object. docs/json.md has its keys.")
@shared_options
def command(config: Path | None, verbose: bool, given: tuple[str, ...], new: bool, as_json: bool) -> int:
    """Follow builds until they are published, failed or cancelled; without IDs, all that wait or are built now.

    On a terminal a table that is kept up to date: the place in the queue, the phase, the time it takes against the
    usual time of that package. In a pipe a line for each change. The exit code is 0 where all builds came out well,
    and 1 where one did not. Ctrl-C leaves the builds running. IDs may be shortened to what no other build has.

    \b
    Examples:
      reimzul watch 72b893f8 4a1eee11
      reimzul watch
    """
    settings = load_settings(config, verbose)
    wanted = _wanted(settings, given, new)
    try:
        return Follower(settings, wanted).run(as_json=as_json)
    except KeyboardInterrupt:
        again = " ".join(["reimzul watch", *(each[:8] for each in wanted)])
        click.echo(f"\nthe builds go on; to look again: {again}", err=True)
        return EXIT_INTERRUPTED


def _wanted(settings: Settings, given: Sequence[str], new: bool) -> list[str]:
    """The whole ids of the builds that are meant; none means all."""
    if new:
        for word in given:
            if not re.fullmatch("[0-9a-f]{32}", word):
                raise InputError(f"{word}: with --new an id is given in full, 32 hex digits")
        return list(dict.fromkeys(given))
    if not given:
        return []
    with lookup.reading_history(settings.history.url) as history:
        return [build.build_id for build in lookup.find_builds(history, given)]


class Follower:
    """Looks, and shows what it saw, until all is over."""

    def __init__(self, settings: Settings, wanted: Sequence[str]) -> None:
        self._settings = settings
        self._known = read_arches(settings.farm.arches)
        self._wanted = list(wanted)
        self._usual: dict[tuple[str, str], DurationStats | None] = {}
        self._places: dict[str, int] = {}
        self._reckoned = float("-inf")
        self._broker: Broker | None = None
        self._running: set[str] = set()  #: where all are followed: those that ran at the last look,
        self._ended: dict[str, float] = {}  #: and when those had ended that did not any more
        self._gone: dict[str, float] = {}  #: when the job of a build was first found deleted

    def run(self, *, as_json: bool) -> int:
        """Until all of those that were named are over; without names, until somebody ends us."""
        shown = screen(as_json=as_json)
        rows: list[Row] = []
        while True:
            note, over = "", False
            try:
                rows, over = self._look()
            except (HistoryUnavailable, NoHistory) as error:
                if not rows and isinstance(
                    error, HistoryUnavailable
                ):  # it never could be read: it may not be ours to read
                    raise
                rows, note = rows or [unheard(each) for each in self._wanted], str(error)
            shown.show(rows, note)
            if over:
                return exit_code(rows)
            time.sleep(_LOOK)

    def _look(self) -> tuple[list[Row], bool]:
        with lookup.reading_history(self._settings.history.url) as history:
            builds = self._builds(history)
            self._reckon(history, builds)
            hands = self._hands()
            now = time.time()
            rows = {build.build_id: self._rows(history, build, hands, now) for build in builds}
        missing = [unheard(each) for each in self._wanted if each not in rows]
        over = not missing and bool(self._wanted) and all(self._is_over(each, rows[each.build_id]) for each in builds)
        return [*missing, *(each for build in builds for each in rows[build.build_id])], over

    def _builds(self, history: History) -> list[BuildLegs]:
        if self._wanted:
            return _read(history, self._wanted)
        running = sorted(lookup.group_by_build(history.find_unfinished()), key=_running_first)
        now, there = time.monotonic(), {build.build_id for build in running}
        self._ended = {each: at for each, at in self._ended.items() if now - at < _SHOWN}
        self._ended.update({each: now for each in self._running - there})
        self._running = there
        return [*running, *_read(history, self._ended)]

    def _rows(self, history: History, build: BuildLegs, hands: Mapping[str, CurrentBuild], now: float) -> list[Row]:
        hand = hands.get(build.build_id)
        return [row(leg, now, self._places.get(leg.build_id), hand, self._takes(history, leg)) for leg in build.legs]

    def _takes(self, history: History, leg: BuildRecord) -> DurationStats | None:
        key = (leg.pkgname, leg.arch)
        if key not in self._usual:
            past = history.recent_successes(*key, PACKAGE_SAMPLE) if key[0] else []
            self._usual[key] = duration_stats(each.duration for each in past)
        return self._usual[key]

    def _reckon(self, history: History, builds: Iterable[BuildLegs]) -> None:
        """Whose turn it is when, now and then."""
        waits = [build for build in builds if build.main.status == Status.QUEUED]
        if not waits:
            self._places = {}
        elif time.monotonic() - self._reckoned > _RECKON or not self._places:
            self._reckoned = time.monotonic()
            self._places = places(history.find_unfinished())

    def _hands(self) -> dict[str, CurrentBuild]:
        try:
            seen = lookup.load_workers(self._settings)
        except WorkersUnavailable:
            return {}
        hands = [each.heartbeat.build for each in sorted(seen, key=lambda each: each.last_seen)]
        return {hand.build_id: hand for hand in hands if hand}

    def _is_over(self, build: BuildLegs, rows: Sequence[Row]) -> bool:
        if is_over(build, rows, self._known, gone=False):
            return True
        if not is_over(build, rows, self._known, gone=True):
            return False
        if self._job(build.main) != GONE:
            self._gone.pop(build.build_id, None)
            return False
        return time.monotonic() - self._gone.setdefault(build.build_id, time.monotonic()) > _TOLD

    def _job(self, leg: BuildRecord) -> str:
        """What beanstalkd says of a job; nothing while it is away."""
        try:
            if self._broker is None:
                self._broker = Broker(self._settings.beanstalkd.host, self._settings.beanstalkd.port)
            return job_state(self._broker, leg) if leg.job else GONE
        except BrokerUnavailable:
            self._broker = None
        except ReimzulError:
            pass
        return ""


def _read(history: History, build_ids: Iterable[str]) -> list[BuildLegs]:
    found: list[BuildRecord] = []
    for each in build_ids:
        found += history.find_builds(BuildFilter(build_id=each), _LEGS)
    return lookup.group_by_build(found)


def places(unfinished: Iterable[BuildRecord]) -> dict[str, int]:
    """How many builds are before each that waits, in its own tube."""
    tubes: dict[str, dict[int, BuildRecord]] = {}
    for leg in unfinished:
        if leg.status == Status.QUEUED and leg.job:
            tubes.setdefault(leg.tube, {})[leg.job] = leg  # legs that were put again together are one job
    found: dict[str, int] = {}
    for legs in tubes.values():
        for number, leg in enumerate(sorted(legs.values(), key=queue_order)):
            found[leg.build_id] = number
    return found


def _running_first(build: BuildLegs) -> tuple[bool, int, int]:
    return build.main.status == Status.QUEUED, *queue_order(build.main)

# SPDX-License-Identifier: Apache-2.0
"""`reimzul cancel`: end builds, whether they wait or run; nothing of them is published.

The mark is put first and the waiting job deleted after that: whoever puts the request anew in between looks for the
mark, so no job of it is left that nobody knows. Who runs it heeds the mark, ends it and says so. The mark is left to
the notifier, which also sees to it that what we began comes to its end, should we be killed.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

import attr
import click

from reimzul.admin import lookup
from reimzul.admin.lookup import GONE, BuildLegs
from reimzul.admin.table import show_json
from reimzul.core import control
from reimzul.core.beanstalk import Broker, cancel_tube
from reimzul.core.cli import EXIT_CODES, current_user, load_settings, shared_options
from reimzul.core.config import Settings
from reimzul.core.errors import EXIT_FAILED, ReservationLost
from reimzul.core.message import BuildEvent, Status
from reimzul.history import BuildRecord

#: Seconds between two looks whether a running build has ended.
_LOOK = 0.25


@attr.frozen(kw_only=True)
class Cancelled:
    """What became of one build."""

    build_id: str
    outcome: str  #: cancelled, already, too late, told
    words: str

    @property
    def done(self) -> bool:
        """Whether the build is cancelled now."""
        return self.outcome in ("cancelled", "already")


@click.command("cancel", epilog=EXIT_CODES)
@lookup.build_ids_argument()
@click.option("--why", default="", metavar="WORDS", help="Told with it.")
@click.option(
    "--wait",
    "patience",
    type=click.FloatRange(0, 3600),
    default=10,
    show_default=True,
    metavar="SECONDS",
    help="How long a running build is watched for its end, which takes up to 5 s.",
)
@click.option("--json", "as_json", is_flag=True, help="A list of what became of each. docs/json.md has its keys.")
@shared_options
def command(
    config: Path | None, verbose: bool, given: tuple[str, ...], why: str, patience: float, as_json: bool
) -> int:
    """End builds: one that waits is gone at once, one that runs within 5 s, and nothing of it is published.

    A build that is published already, or has failed, stays as it is. To cancel what is cancelled changes nothing.
    IDs may be shortened to what no other build has.

    \b
    Examples:
      reimzul cancel 72b893f8
      reimzul cancel 72b893f8 4a1eee11 --why "wrong branch"
    """
    settings = load_settings(config, verbose)
    builds = _found(settings, given)
    wanted = control.new_flag(current_user(), why)
    with Broker(settings.beanstalkd.host, settings.beanstalkd.port) as broker:
        results = {build.build_id: _tell(broker, build, wanted) for build in builds}
        _await(settings, builds, results, patience)
        told = [results[build.build_id] or _still(broker, build) for build in builds]
    if as_json:
        show_json([attr.asdict(each) for each in told])
    else:
        for build, each in zip(builds, told):
            click.echo(f"{build.label}: {each.words}", err=not each.done)
    return 0 if all(each.done for each in told) else EXIT_FAILED


def _found(settings: Settings, given: Sequence[str]) -> list[BuildLegs]:
    with lookup.reading_history(settings.history.url) as history:
        return lookup.find_builds(history, given)


def _tell(broker: Broker, build: BuildLegs, wanted: control.ControlFlag) -> Cancelled | None:
    """Cancel what waits, and mark what runs; None where it runs, or its job is gone."""
    over = _over(build)
    if over is not None:
        return over
    holds = control.set_flag(broker, cancel_tube(build.build_id), wanted)
    leg = build.main
    found = lookup.find_job(broker, leg)
    if found is not None:
        try:
            if found.stats.state == "reserved":
                return None
            broker.delete(found.job)
        except ReservationLost:  # taken in this moment: by one who looks for the mark before he begins
            return None
    else:  # somebody had it, or has put it anew: what became of it is the history's to say, which may lag
        return None
    for each in build.legs:
        if each.status in (Status.QUEUED, Status.BUILDING):
            broker.announce(event(each, holds.cancel_text))
    return Cancelled(build_id=build.build_id, outcome="cancelled", words="cancelled; it had not begun")


def event(leg: BuildRecord, reason: str) -> BuildEvent:
    """That a leg is cancelled."""
    names = ("srpm", "arch", "target", "disttag", "scratch", "submitter", "build_id", "timestamp", "pkgname", "evr")
    known = {name: value for name in names if (value := getattr(leg, name))}
    return BuildEvent(status=Status.CANCELLED, reason=reason, at=round(time.time(), 3), **known)


def _over(build: BuildLegs) -> Cancelled | None:
    """What became of a build that is over; None of one that is not. A success is over when it is published."""
    states = {_state(leg) for leg in build.legs}
    if "" in states:
        return None
    if Status.CANCELLED.lower() in states:
        words, outcome = "it was cancelled already", "already"
    else:
        each = [f"{_state(leg)} for {leg.arch}" for leg in build.legs]
        words, outcome = f"too late: {', '.join(each)}", "too late"
    return Cancelled(build_id=build.build_id, outcome=outcome, words=words)


def _state(leg: BuildRecord) -> str:
    """How a leg ended; nothing where it can still be cancelled."""
    status: str = leg.status
    if status == Status.SUCCESS:
        return "published" if leg.published else "built" if leg.scratch else ""
    return "" if status in (Status.QUEUED, Status.BUILDING) else status.lower()


def _await(
    settings: Settings, builds: Sequence[BuildLegs], results: dict[str, Cancelled | None], patience: float
) -> None:
    """Look at the history until all that run have ended, or the time is over."""
    deadline = time.monotonic() + patience
    while None in results.values():
        running = [build for build in builds if results[build.build_id] is None]
        for build in _found(settings, [build.build_id for build in running]):
            over = _over(build)
            if over is not None and over.outcome == "already":
                hosts = sorted({leg.builder_fqdn for leg in build.legs if leg.builder_fqdn})
                where = f"; {', '.join(hosts)} has ended it" if hosts else ""
                over = attr.evolve(over, outcome="cancelled", words=f"cancelled{where}")
            results[build.build_id] = over
        if time.monotonic() > deadline:
            return
        time.sleep(_LOOK)


def _still(broker: Broker, build: BuildLegs) -> Cancelled:
    host = build.main.builder_fqdn or "its worker"
    words = f"marked; {host} has not ended it yet, and does when it sees the mark"
    if build.main.status == Status.QUEUED and lookup.job_state(broker, build.main) == GONE:
        words = "marked; its job is gone, and what became of it is still to be told"
    return Cancelled(build_id=build.build_id, outcome="told", words=words)

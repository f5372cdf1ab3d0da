# SPDX-License-Identifier: Apache-2.0
"""`reimzul cancel` ends builds, `reimzul raise` moves them to the front, `reimzul override` sets a status by hand.

Cancelling sets the cancel flag first and then deletes the waiting job: whoever requeues the request in between checks
the flag, so no unknown job of the build is left. The worker that runs the build sees the flag, ends the build and
announces that. The notifier clears the flag, and finishes the cancellation if this command is killed.

beanstalkd cannot change a job's priority, so raising puts the request again and deletes the old job. The new job is
put with a delay: no worker can take it before the old one is deleted, and it can always be withdrawn. If this command
is killed in between, the new job becomes ready when its delay is over.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Callable, Union

import attr
import click

from reimzul.admin import lookup
from reimzul.admin.lookup import GONE, BuildLegs
from reimzul.admin.options import json_option
from reimzul.admin.output import print_json
from reimzul.core import control, validators
from reimzul.core.beanstalk import PRIORITY_NOW, Broker, arch_tube, cancel_tube
from reimzul.core.cli import EXIT_CODES, current_user, load_settings, shared_options
from reimzul.core.errors import EXIT_FAILED, InputError, ReservationLost
from reimzul.core.message import BuildEvent, Status, event_for
from reimzul.core.settings import Settings
from reimzul.history import BuildRecord, open_history

#: Seconds between two looks at the history while `cancel` waits.
_POLL_SECONDS = 0.25
#: Seconds until the new job of a raised build becomes ready by itself.
_RAISE_DELAY_SECONDS = 30
_UNFINISHED = (Status.QUEUED, Status.BUILDING)


# --- cancel


@attr.frozen(kw_only=True)
class CancelResult:
    """The outcome for one build."""

    build_id: str
    outcome: str  #: cancelled, already, too late, told
    words: str

    @property
    def succeeded(self) -> bool:
        """Whether the build is cancelled now."""
        return self.outcome in ("cancelled", "already")


@attr.frozen(kw_only=True)
class RaiseResult:
    build_id: str
    done: bool
    words: str
    job: int | None = None  #: its number now
    priority: int | None = None

    @property
    def succeeded(self) -> bool:
        """Whether the build is the first of its tube now."""
        return self.done


def _print_results(
    builds: Sequence[BuildLegs], results: Sequence[Union[CancelResult, RaiseResult]], as_json: bool
) -> int:
    """Print the outcome for each build; returns the exit code."""
    if as_json:
        print_json([attr.asdict(each) for each in results])
    else:
        for build, each in zip(builds, results):
            click.echo(f"{build.label}: {each.words}", err=not each.succeeded)
    return 0 if all(each.succeeded for each in results) else EXIT_FAILED


@click.command("cancel", epilog=EXIT_CODES)
@lookup.build_ids_argument()
@click.option("--why", default="", metavar="TEXT", help="The reason, shown with the build.")
@click.option(
    "--wait",
    "timeout",
    type=click.FloatRange(0, 3600),
    default=10,
    show_default=True,
    metavar="SECONDS",
    help="How long to wait for running builds to end, which takes up to 5 s.",
)
@json_option("the outcome for each build")
@shared_options
def cancel(config: Path | None, verbose: bool, given: tuple[str, ...], why: str, timeout: float, as_json: bool) -> int:
    """End builds: a waiting one at once, a running one within 5 s; nothing of them is published.

    A build that is published or has failed stays as it is. Cancelling twice changes nothing. IDs may be shortened to
    what no other build has.

    \b
    Examples:
      reimzul cancel 72b893f8
      reimzul cancel 72b893f8 4a1eee11 --why "wrong branch"
    """
    settings = load_settings(config, verbose)
    builds = _read_builds(settings, given)
    flag = control.new_flag(current_user(), why)
    with Broker(settings.beanstalkd.host, settings.beanstalkd.port) as broker:
        results = {build.build_id: _cancel_build(broker, build, flag) for build in builds}
        _wait_for_end(settings, builds, results, timeout)
        outcomes = [results[build.build_id] or _still_running_result(broker, build) for build in builds]
    return _print_results(builds, outcomes, as_json)


def _read_builds(settings: Settings, ids: Sequence[str]) -> list[BuildLegs]:
    with lookup.reading_history(settings.history.url) as history:
        return lookup.find_builds(history, ids)


def _cancel_build(broker: Broker, build: BuildLegs, flag: control.ControlFlag) -> CancelResult | None:
    """Set the cancel flag and delete the waiting job; None where the build runs or its job is gone."""
    finished = _finished_result(build)
    if finished is not None:
        return finished
    flag = control.set_flag(broker, cancel_tube(build.build_id), flag)
    found = lookup.find_job(broker, build.main)
    if found is None or found.stats.state == "reserved":  # where it is gone, the history learns later what became of it
        return None
    try:
        broker.delete(found.job)
    except ReservationLost:  # just taken, by a worker that checks the flag before it starts
        return None
    for leg in build.legs:
        if leg.status in _UNFINISHED:
            broker.announce(cancelled_event(leg, flag.cancel_text))
    return CancelResult(build_id=build.build_id, outcome="cancelled", words="cancelled; it had not begun")


def cancelled_event(leg: BuildRecord, reason: str) -> BuildEvent:
    names = ("srpm", "arch", "target", "disttag", "scratch", "submitter", "build_id", "timestamp", "pkgname", "evr")
    known = {name: getattr(leg, name) for name in names if getattr(leg, name)}
    return BuildEvent(status=Status.CANCELLED, reason=reason, at=round(time.time(), 3), **known)


def _finished_result(build: BuildLegs) -> CancelResult | None:
    """The result for a build that cannot be cancelled any more; None for others. A success ends when published."""
    states = [_final_state(leg) for leg in build.legs]
    if "" in states:
        return None
    if Status.CANCELLED.lower() in states:
        return CancelResult(build_id=build.build_id, outcome="already", words="it was cancelled already")
    each = ", ".join(f"{state} for {leg.arch}" for state, leg in zip(states, build.legs))
    return CancelResult(build_id=build.build_id, outcome="too late", words=f"too late: {each}")


def _final_state(leg: BuildRecord) -> str:
    """How a leg ended; empty where it can still be cancelled."""
    status: str = leg.status
    if status == Status.SUCCESS:
        return "published" if leg.published else "built" if leg.scratch else ""
    return "" if status in _UNFINISHED else status.lower()


def _wait_for_end(
    settings: Settings, builds: Sequence[BuildLegs], results: dict[str, CancelResult | None], timeout: float
) -> None:
    """Poll the history until all running builds have ended, or the time is over; fills in `results`."""
    deadline = time.monotonic() + timeout
    while None in results.values():
        running = [build.build_id for build in builds if results[build.build_id] is None]
        for build in _read_builds(settings, running):
            result = _finished_result(build)
            if result is not None and result.outcome == "already":
                hosts = sorted({leg.builder_fqdn for leg in build.legs if leg.builder_fqdn})
                where = f"; {', '.join(hosts)} has ended it" if hosts else ""
                result = attr.evolve(result, outcome="cancelled", words=f"cancelled{where}")
            results[build.build_id] = result
        if time.monotonic() > deadline:
            return
        time.sleep(_POLL_SECONDS)


def _still_running_result(broker: Broker, build: BuildLegs) -> CancelResult:
    host = build.main.builder_fqdn or "its worker"
    words = f"flagged; {host} has not ended it yet, and does so when it sees the flag"
    if build.main.status == Status.QUEUED and lookup.job_state(broker, build.main) == GONE:
        words = "flagged; its job is gone, and its outcome has not been announced yet"
    return CancelResult(build_id=build.build_id, outcome="told", words=words)


# --- raise


@click.command("raise", epilog=EXIT_CODES)
@lookup.build_ids_argument()
@json_option("the outcome for each build")
@shared_options
def raise_builds(config: Path | None, verbose: bool, given: tuple[str, ...], as_json: bool) -> int:
    """Move waiting builds to the front of their tubes; of several, the one named last comes first.

    A build that a worker has already taken is left to it. IDs may be shortened to what no other build has.

    \b
    Examples:
      reimzul raise 72b893f8
      reimzul raise 72b893f8 4a1eee11 --json
    """
    settings = load_settings(config, verbose)
    with lookup.reading_history(settings.history.url) as history:
        builds = lookup.find_builds(history, given)
        unfinished = history.find_unfinished()
    with Broker(settings.beanstalkd.host, settings.beanstalkd.port) as broker:
        fronts: dict[str, int] = {}
        results = [_raise_build(broker, build, unfinished, fronts) for build in builds]
    return _print_results(builds, results, as_json)


def _raise_build(
    broker: Broker, build: BuildLegs, unfinished: list[BuildRecord], fronts: dict[str, int]
) -> RaiseResult:
    """Move one build to the front; `fronts` has the lowest priority used so far in each tube."""
    leg = build.main
    found = lookup.find_job(broker, leg) if leg.status in _UNFINISHED else None
    if found is None or found.stats.state not in ("ready", "delayed"):
        return RaiseResult(build_id=build.build_id, done=False, words=_explain_not_waiting(leg, found))
    tube, priority = found.stats.tube, found.stats.priority
    others = lookup.lowest_priority((each for each in unfinished if each.build_id != build.build_id), tube)
    front = min(fronts.get(tube, PRIORITY_NOW), others, PRIORITY_NOW)
    if found.stats.state == "ready" and priority < front:
        words = "it is the first already"
        return RaiseResult(build_id=build.build_id, done=True, words=words, job=found.job, priority=priority)
    fronts[tube] = max(0, front - 1)
    return move_to_front(broker, leg, found, fronts[tube])


def _explain_not_waiting(leg: BuildRecord, found: lookup.QueuedJob | None) -> str:
    if found and found.stats.state == "reserved":
        return f"a worker has taken it already{': ' + leg.builder_fqdn if leg.builder_fqdn else ''}"
    if found is not None:
        return f"its job {found.job} was refused and buried: `reimzul kick {found.job}` has it tried again"
    if leg.status in _UNFINISHED:
        return "its job is not in its tube any more; `reimzul explain` says more"
    return f"it does not wait any more: {leg.status}"


def move_to_front(broker: Broker, leg: BuildRecord, found: lookup.QueuedJob, priority: int) -> RaiseResult:
    """Put a job again with a priority and delete the old one; if a worker takes that meanwhile, delete the new one."""
    tube, request = found.stats.tube, found.request
    about = {"pkgname": leg.pkgname, "evr": leg.evr}
    queued = [event_for(request, Status.QUEUED, arch=arch, **about) for arch in request.announced_arches]
    job, forbidden = control.requeue_unless_cancelled(
        broker, arch_tube(tube), request, priority=priority, delay=_RAISE_DELAY_SECONDS, ttr=found.stats.ttr
    )
    if forbidden:
        return RaiseResult(build_id=request.build_id, done=False, words="it is being cancelled")
    try:
        broker.delete(found.job)
    except ReservationLost:
        with contextlib.suppress(ReservationLost):
            broker.delete(job)
        return RaiseResult(build_id=request.build_id, done=False, words="a worker has just taken it")
    with contextlib.suppress(ReservationLost):  # cancelled at this moment
        broker.kick(job)
    reason = f"moved to the front: job {job} of tube {tube}"
    for event in queued:
        broker.announce(attr.evolve(event, reason=reason, tube=tube, job=job, priority=priority))
    words = f"first in tube {tube}, as job {job}"
    return RaiseResult(build_id=request.build_id, done=True, words=words, job=job, priority=priority)


# --- override


_OVERRIDE_CHECKS: dict[str, Callable[[Any], str]] = {
    "srpm": validators.srpm,
    "target": validators.target,
    "arch": validators.arch,
    "comment": validators.line(1000),
}


@click.command("override", epilog=EXIT_CODES)
@click.option("-s", "--srpm", required=True, metavar="SRPM", help="The full file name.")
@click.option("-t", "--target", required=True, metavar="TARGET", help="With its arch, as c7.1810.00.armhfp.")
@click.option("-a", "--arch", required=True, metavar="ARCH")
@click.option("-c", "--comment", required=True, metavar="COMMENT", help="Why.")
@json_option("the build as the history has it now")
@shared_options
def override(config: Path | None, verbose: bool, as_json: bool, **given: str) -> None:
    """Set the status of the latest build of a source rpm to Override, in the history, with a comment.

    No later event of that build changes the status again.

    \b
    Example:
      reimzul override -s time-1.7-45.el7.src.rpm -t c7.1810.00.armhfp -a armhfp -c "built against devtoolset-7"
    """
    for name, check in _OVERRIDE_CHECKS.items():
        try:
            given[name] = check(given[name])
        except ValueError as error:
            raise InputError(f"--{name}: {error}") from None
    if not given["comment"]:
        raise InputError("--comment: is empty; give a reason")
    url = load_settings(config, verbose).history.url
    open_history(url, reading=True).close()  # opening it to write would create a missing history
    with contextlib.closing(open_history(url)) as history:
        record = history.override(given["srpm"], given["target"], given["arch"], given["comment"])
    if record is None:
        raise InputError(
            f"no finished build of {given['srpm']} on {given['arch']} for {given['target']} is recorded; "
            f"`reimzul builds --srpm {given['srpm']}` lists those that are"
        )
    if as_json:
        print_json(record.to_document())
    else:
        click.echo(f"{record.srpm} ({record.timestamp}) on {record.arch}: {record.status}")

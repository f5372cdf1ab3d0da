# SPDX-License-Identifier: Apache-2.0
"""`reimzul cancel` ends builds, `reimzul raise` moves them to the front, `reimzul retry` submits them again.

Cancelling sets the cancel flag first and then deletes the waiting job: whoever requeues the request in between checks
the flag, so no unknown job of the build is left. The worker that runs the build sees the flag, ends the build and
announces that. The notifier clears the flag, and finishes the cancellation if this command is killed.

beanstalkd cannot change a job's priority, so raising puts the request again and deletes the old job. The new job is
put with a delay: no worker can take it before the old one is deleted, and it can always be withdrawn. If this command
is killed in between, the new job becomes ready when its delay is over.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Sequence
from pathlib import Path

import attr
import click

from reimzul.admin import lookup
from reimzul.admin.causes import find_builds_of_cause
from reimzul.admin.held import change_priority
from reimzul.admin.lookup import GONE, BuildLegs
from reimzul.admin.output import (
    confirm,
    json_option,
    pass_settings,
    period_options,
    print_json,
    print_result,
    refuse_ignored,
)
from reimzul.core import control, validators
from reimzul.core.arch import Arches, read_arches
from reimzul.core.beanstalk import PRIORITY, PRIORITY_NOW, Broker, arch_tube, cancel_tube
from reimzul.core.cli import EXIT_CODES, current_user, print_error
from reimzul.core.errors import (
    EXIT_FAILED,
    InputError,
    InvalidMessage,
    ReimzulError,
    ReservationLost,
    describe_os_error,
)
from reimzul.core.fs import find_unreadable
from reimzul.core.message import BuildEvent, BuildRequest, Status, event_for, new_build_id
from reimzul.core.option_types import Seconds
from reimzul.core.settings import Settings
from reimzul.core.store_paths import StoreUrls
from reimzul.history import BuildRecord
from reimzul.history.build_record import BuildState
from reimzul.history.incoming import mark_source
from reimzul.history.workers import submitter_for_workers

log = logging.getLogger(__name__)

#: Seconds between two looks at the history while `cancel` waits.
_POLL_SECONDS = 0.25
#: Seconds until the new job of a raised build becomes ready by itself.
_RAISE_DELAY_SECONDS = 30
#: The statuses of a leg that `retry --failed` builds again.
_FAILED = (Status.FAILED, Status.REJECTED, Status.CANCELLED)


# --- cancel


@attr.frozen(kw_only=True)
class CancelResult:
    build_id: str
    outcome: str  #: cancelled, already cancelled, too late, flagged
    message: str


@attr.frozen(kw_only=True)
class RaiseResult:
    build_id: str
    done: bool  #: it is the first of its tube now
    message: str
    job: int | None = None  #: its number now
    priority: int | None = None


def _print_results(
    builds: Sequence[BuildLegs],
    results: Sequence[CancelResult | RaiseResult],
    succeeded: Sequence[bool],
    as_json: bool,
) -> int:
    """Print the outcome for each build; returns the exit code."""
    if as_json:
        print_json([attr.asdict(each) for each in results])
    else:
        for build, each, is_good in zip(builds, results, succeeded):
            click.echo(f"{build.label}: {each.message}", err=not is_good)
    return 0 if all(succeeded) else EXIT_FAILED


@click.command("cancel", epilog=EXIT_CODES)
@lookup.build_ids_argument()
@click.option("--why", default="", metavar="TEXT", help="The reason, shown with the build.")
@click.option("--wait/--no-wait", default=True, show_default=True, help="Wait until running builds have ended.")
@click.option(
    "--timeout",
    type=Seconds(3600),
    default=10,
    show_default=True,
    metavar="SECONDS",
    help="How long to wait; a running build ends within 5 s.",
)
@json_option("the outcome for each build")
@pass_settings
def cancel(settings: Settings, given: tuple[str, ...], why: str, wait: bool, timeout: float, as_json: bool) -> int:
    """End builds: a waiting one at once, a running one within 5 s; nothing of them is published.

    A build that is published or has failed stays as it is. Cancelling twice changes nothing. IDs may be shortened to
    what no other build has.

    \b
    Examples:
      reimzul cancel 72b893f8
      reimzul cancel 72b893f8 4a1eee11 --why "wrong branch"
    """
    if not wait:
        refuse_ignored("with --no-wait", "timeout")
    builds, flag = lookup.read_builds(settings, given), control.new_flag(current_user(), why)
    with Broker.from_settings(settings.beanstalkd) as broker:
        results = {build.build_id: _cancel_build(broker, build, flag) for build in builds}
        _wait_for_end(settings, builds, results, timeout if wait else 0)
        outcomes = [results[build.build_id] or _still_running_result(broker, build) for build in builds]
    succeeded = [each.outcome in ("cancelled", "already cancelled") for each in outcomes]
    return _print_results(builds, outcomes, succeeded, as_json)


def _cancel_build(broker: Broker, build: BuildLegs, flag: control.ControlFlag) -> CancelResult | None:
    """Set the cancel flag and delete the waiting job; None where the build runs or its job is gone."""
    if finished := _finished_result(build):
        return finished
    flag = control.set_flag(broker, cancel_tube(build.build_id), flag)
    found = lookup.find_job(broker, build.main)
    if found is None or found.stats.state == "reserved":  # where it is gone, the history learns later what became of it
        return None
    try:
        broker.delete(found.job)
    except ReservationLost:  # just taken, by a worker that checks the flag before it starts
        return None
    announce_cancelled(broker, build, flag.cancel_text)
    return CancelResult(build_id=build.build_id, outcome="cancelled", message="cancelled; it had not begun")


def announce_cancelled(broker: Broker, build: BuildLegs, reason: str) -> None:
    names = ("srpm", "arch", "target", "disttag", "scratch", "submitter", "build_id", "timestamp", "pkgname", "evr")
    for leg in build.legs:
        if leg.is_unfinished:
            known = {name: getattr(leg, name) for name in names if getattr(leg, name)}
            broker.announce(BuildEvent(status=Status.CANCELLED, reason=reason, at=round(time.time(), 3), **known))


def _finished_result(build: BuildLegs) -> CancelResult | None:
    """The result for a build that cannot be cancelled any more; None for others. A success ends when published."""
    if any(leg.is_unfinished or (leg.state == BuildState.BUILT and not leg.scratch) for leg in build.legs):
        return None
    if any(leg.status == Status.CANCELLED for leg in build.legs):
        return CancelResult(build_id=build.build_id, outcome="already cancelled", message="it was cancelled already")
    message = f"too late: {', '.join(f'{leg.state} for {leg.arch}' for leg in build.legs)}"
    return CancelResult(build_id=build.build_id, outcome="too late", message=message)


def _wait_for_end(
    settings: Settings, builds: Sequence[BuildLegs], results: dict[str, CancelResult | None], timeout: float
) -> None:
    """Poll the history until all running builds have ended, or the time is over; fills in `results`."""
    deadline = time.monotonic() + timeout
    while None in results.values():
        running = [build.build_id for build in builds if results[build.build_id] is None]
        for build in lookup.read_builds(settings, running):
            result = _finished_result(build)
            if result is not None and result.outcome == "already cancelled":
                hosts = sorted({leg.builder_fqdn for leg in build.legs if leg.builder_fqdn})
                where = f"; {', '.join(hosts)} has ended it" if hosts else ""
                result = attr.evolve(result, outcome="cancelled", message=f"cancelled{where}")
            results[build.build_id] = result
        if time.monotonic() > deadline:
            return
        time.sleep(_POLL_SECONDS)


def _still_running_result(broker: Broker, build: BuildLegs) -> CancelResult:
    host = build.main.builder_fqdn or "its worker"
    message = f"flagged; {host} has not ended it yet, and does so when it sees the flag"
    if build.main.is_queued and lookup.job_state(broker, build.main) == GONE:
        message = "flagged; its job is gone, and its outcome has not been announced yet"
    return CancelResult(build_id=build.build_id, outcome="flagged", message=message)


# --- raise


@click.command("raise", epilog=EXIT_CODES)
@lookup.build_ids_argument()
@json_option("the outcome for each build")
@pass_settings
def raise_builds(settings: Settings, given: tuple[str, ...], as_json: bool) -> int:
    """Move waiting builds to the front of their tubes; of several, the one named last comes first.

    A build that a worker has already taken is left to it. A held build stays held, and is the first once it is
    released. IDs may be shortened to what no other build has.

    \b
    Examples:
      reimzul raise 72b893f8
      reimzul raise 72b893f8 4a1eee11 --json
    """
    with lookup.reading_history(settings.history.url) as history:
        builds = lookup.find_builds(history, given)
        unfinished = history.find_unfinished()
    with Broker.from_settings(settings.beanstalkd) as broker:
        fronts: dict[str, int] = {}
        results = [_raise_build(broker, build, unfinished, fronts) for build in builds]
    return _print_results(builds, results, [each.done for each in results], as_json)


def _raise_build(
    broker: Broker, build: BuildLegs, unfinished: list[BuildRecord], fronts: dict[str, int]
) -> RaiseResult:
    """Move one build to the front; `fronts` has the lowest priority used so far in each tube."""
    leg = build.main
    found = lookup.find_job(broker, leg) if leg.is_unfinished else None
    if found is None or found.stats.state not in ("ready", "delayed"):
        return RaiseResult(build_id=build.build_id, done=False, message=_explain_not_waiting(leg, found))
    tube, priority = found.stats.tube, found.stats.priority
    others = lookup.lowest_priority((each for each in unfinished if each.build_id != build.build_id), tube)
    front = min(fronts.get(tube, PRIORITY_NOW), others, PRIORITY_NOW)
    if (found.stats.state == "ready" or found.stats.is_held) and priority < front:
        return RaiseResult(
            build_id=build.build_id, done=True, message="it is the first already", job=found.job, priority=priority
        )
    fronts[tube] = max(0, front - 1)
    if found.stats.is_held:
        return _raise_held(broker, build, found, fronts[tube])
    return move_to_front(broker, leg, found, fronts[tube])


def _raise_held(broker: Broker, build: BuildLegs, found: lookup.QueuedJob, priority: int) -> RaiseResult:
    try:
        job = change_priority(broker, build.legs, found, priority)
    except ReservationLost:
        return RaiseResult(build_id=build.build_id, done=False, message="it was just released, or cancelled")
    message = f"held; first in tube {found.stats.tube} once it is released, as job {job}"
    return RaiseResult(build_id=build.build_id, done=True, message=message, job=job, priority=priority)


def _explain_not_waiting(leg: BuildRecord, found: lookup.QueuedJob | None) -> str:
    if found and found.stats.state == "reserved":
        return f"a worker has taken it already{': ' + leg.builder_fqdn if leg.builder_fqdn else ''}"
    if found is not None:
        return f"its job {found.job} was refused and buried: `reimzul kick {found.job}` has it tried again"
    if leg.is_unfinished:
        return "its job is not in its tube any more; `reimzul explain` says more"
    return f"it does not wait any more: {leg.state}"


def move_to_front(broker: Broker, leg: BuildRecord, found: lookup.QueuedJob, priority: int) -> RaiseResult:
    """Put a job again with a priority and delete the old one; if a worker takes that meanwhile, delete the new one."""
    tube, request = found.stats.tube, found.request
    about = {"pkgname": leg.pkgname, "evr": leg.evr}
    queued = [event_for(request, Status.QUEUED, arch=arch, **about) for arch in request.announced_arches]
    job, forbidden = control.requeue_unless_cancelled(
        broker, arch_tube(tube), request, priority=priority, delay=_RAISE_DELAY_SECONDS, ttr=found.stats.ttr
    )
    if forbidden:
        return RaiseResult(build_id=request.build_id, done=False, message="it is being cancelled")
    try:
        broker.delete(found.job)
    except ReservationLost:
        with contextlib.suppress(ReservationLost):
            broker.delete(job)
        return RaiseResult(build_id=request.build_id, done=False, message="a worker has just taken it")
    with contextlib.suppress(ReservationLost):  # cancelled at this moment
        broker.kick(job)
    reason = f"moved to the front: job {job} of tube {tube}"
    for event in queued:
        broker.announce(attr.evolve(event, reason=reason, tube=tube, job=job, priority=priority))
    message = f"first in tube {tube}, as job {job}"
    return RaiseResult(build_id=request.build_id, done=True, message=message, job=job, priority=priority)


# --- retry


@attr.frozen(kw_only=True)
class RetryResult:
    parent: str
    build_id: str
    arches: Sequence[str]  #: of its legs, where not all are built again; else the arch it is queued for
    tube: str
    job: int
    target: str
    timestamp: str

    @property
    def text(self) -> str:
        arches = ", ".join(self.arches)
        return f"{self.build_id[:8]} repeats {self.parent[:8]}: {arches} for {self.target}, tube {self.tube}"


@click.command("retry", epilog=EXIT_CODES)
@lookup.build_ids_argument(required=False)
@click.option("--cause", metavar="CAUSE", help="All builds that failed for this cause, if nothing newer was built.")
@period_options("With --cause: builds")
@click.option("--failed", is_flag=True, help="Only on the arches where they failed, were rejected or cancelled.")
@click.option("--now", is_flag=True, help="Queue before all other jobs (priority 1024 instead of 8192).")
@click.option("--yes", is_flag=True, help="Replace published builds without asking. Required without a terminal.")
@json_option("the queued builds")
@pass_settings
def retry(
    settings: Settings,
    given: tuple[str, ...],
    cause: str | None,
    begin: float,
    end: float | None,
    failed: bool,
    now: bool,
    yes: bool,
    as_json: bool,
) -> int:
    """Submit builds again with the same source rpm, target, disttag and arch, as new builds that name the old ones.

    The source rpm has to be in incoming/, unchanged. Everything is checked before anything is queued. If the build is
    published on an arch, the rebuild replaces it in the repodata; this asks for confirmation. IDs may be shortened to
    what no other build has.

    \b
    Examples:
      reimzul retry 72b893f8
      reimzul retry 72b893f8 --failed --now
      reimzul retry --cause 5f0c12ab
    """
    if bool(given) == bool(cause):
        raise click.UsageError("say which builds: their ids, or --cause CAUSE.")
    if not cause:
        refuse_ignored("without --cause", "begin", "end")
    known, user = read_arches(settings.farm.arches), current_user()
    with lookup.reading_history(settings.history.url) as history:
        builds = find_builds_of_cause(history, cause, begin, end) if cause else lookup.find_builds(history, given)
    requests = retry_requests(settings, builds, known, user, failed=failed or bool(cause))
    if published := [build.label for build, request in requests if _is_published(build, request)]:
        confirm(f"{', '.join(published)}: published; replace it by a rebuild?", yes)
    with Broker.from_settings(settings.beanstalkd) as broker:
        name = submitter_for_workers(broker, user, settings.notifier.presence)
        requests = [(build, attr.evolve(request, submitter=name)) for build, request in requests]
        done, fault = queue_retries(broker, requests, known, PRIORITY_NOW if now else PRIORITY)
    print_result([attr.asdict(each) for each in done], [each.text for each in done], as_json)
    if fault:
        print_error(fault)
    return EXIT_FAILED if fault else 0


def retry_requests(
    settings: Settings, builds: Sequence[BuildLegs], known: Arches, user: str, *, failed: bool
) -> list[tuple[BuildLegs, BuildRequest]]:
    """The requests to queue. Raises `InputError` with a line for each build that cannot be submitted again."""
    found, faults = [], []
    urls = StoreUrls.from_settings(settings.bstore.base_url, settings.bstore.upload_url)
    for build in builds:
        try:
            before = _read_request(build, urls)
            legs = _failed_legs(build, before) if failed else _requested_legs(build, before)
            request = _new_request(build, legs, _check_source(settings.incoming.folder, build, before), user, known)
            if before is not None:
                request = attr.evolve(request, bconds=before.bconds, dep_wait=before.dep_wait)
            is_rebuild = _is_published(build, request) or (before is not None and before.rebuild)
            found.append((build, attr.evolve(request, rebuild=is_rebuild or bool(request.batch))))
        except InputError as error:
            faults.append(f"{build.label}: {error}")
    if faults:
        raise InputError("\n".join(faults))
    return found


def _is_published(build: BuildLegs, request: BuildRequest) -> bool:
    """Whether a leg that a request builds again is published, or about to be."""
    legs = [leg for leg in build.legs if leg.arch in (request.legs or _arches_of(build))]
    return not build.main.scratch and any(leg.status == Status.SUCCESS or leg.published for leg in legs)


def _requested_legs(build: BuildLegs, before: BuildRequest | None) -> tuple[str, ...]:
    """The legs that the build was restricted to; empty for all of them."""
    if before is not None:  # a retry of one leg may have been of the arch that stands for all legs
        return before.legs
    return () if _requested_arch(build) in _arches_of(build) else _arches_of(build)


def _arches_of(build: BuildLegs) -> tuple[str, ...]:
    return tuple(leg.arch for leg in build.legs)


def _requested_arch(build: BuildLegs) -> str:
    main = build.main
    return main.arch if main.target.endswith(f".{main.arch}") else main.target.rpartition(".")[2]


def _failed_legs(build: BuildLegs, before: BuildRequest | None) -> tuple[str, ...]:
    """The legs that failed; empty where all of them did."""
    failed = [leg.arch for leg in build.legs if leg.status in _FAILED]
    if not failed:
        raise InputError(f"it has failed on no arch: {', '.join(f'{leg.arch} is {leg.state}' for leg in build.legs)}")
    return _requested_legs(build, before) if len(failed) == len(build.legs) else tuple(failed)


def _check_source(incoming: Path, build: BuildLegs, before: BuildRequest | None) -> str:
    """The sha256 of the source rpm. Raises `InputError` where it is not the file that was built before."""
    from reimzul.core.manifest import sha256_of  # `reimzul cancel` starts sooner without

    path = incoming / build.main.srpm
    try:
        mark_source(path)
        sha256 = sha256_of(path)
    except OSError as error:
        raise InputError(f"{path}: {describe_os_error(error)}") from None
    if bar := find_unreadable(path, incoming):
        raise InputError(f"no builder can download it: {bar}")
    if before and before.srpm_sha256 not in ("", sha256):
        raise InputError(f"{path} is not the file that was built: its sha256 was {before.srpm_sha256}, and is {sha256}")
    return sha256


def _read_request(build: BuildLegs, urls: StoreUrls) -> BuildRequest | None:
    """The build's request as a leg's manifest in the store has it; None where no leg got there or the store is down."""
    from reimzul.admin.builds import fetch_manifest  # `reimzul cancel` starts sooner without
    from reimzul.core.http_client import HttpSession, HttpUnavailable, NotFound

    with HttpSession(timeout=5) as session:
        for leg in build.legs:
            try:
                return fetch_manifest(session, urls.manifest(build.build_id, leg.arch)).request
            except (NotFound, InvalidMessage):
                continue
            except HttpUnavailable:
                break
    return None


def _new_request(build: BuildLegs, legs: Sequence[str], sha256: str, user: str, known: Arches) -> BuildRequest:
    main, arch = build.main, _requested_arch(build)
    if arch not in known.known:
        raise InputError(f"arch {validators.quoted(arch)} is not known any more")
    return BuildRequest(
        srpm=main.srpm,
        arch=arch,
        target=main.target,
        disttag=main.disttag,
        scratch=bool(main.scratch),
        submitter=user,
        build_id=new_build_id(),
        timestamp=validators.now_timestamp(),
        srpm_sha256=sha256,
        parent=build.build_id,
        batch=main.batch,
        legs=tuple(legs),
    )


def queue_retries(
    broker: Broker, requests: Sequence[tuple[BuildLegs, BuildRequest]], known: Arches, priority: int
) -> tuple[list[RetryResult], str]:
    """Queue each request until one fails; returns those queued before and the fault. Raises if the first one fails."""
    done: list[RetryResult] = []
    for build, request in requests:
        try:
            done.append(_queue(broker, build, request, known.tube_of(request.arch), priority))
        except ReimzulError as error:
            if not done:
                raise
            return done, f"not queued: {', '.join(each.label for each, _ in requests[len(done) :])}: {error}"
    return done, ""


def _queue(broker: Broker, build: BuildLegs, request: BuildRequest, tube: str, priority: int) -> RetryResult:
    job = broker.put(arch_tube(tube), request, priority=priority)
    about = {name: getattr(build.main, name) for name in ("pkgname", "evr")}
    reason = f"job {job} of tube {tube}; it repeats build {build.build_id}"
    where = {"tube": tube, "job": job, "priority": priority, "at": round(time.time(), 3)}
    try:
        for arch in request.announced_arches:
            broker.announce(event_for(request, Status.QUEUED, arch=arch, reason=reason, **about, **where))
    except ReimzulError as error:  # the request is queued all the same: retrying would build it twice
        log.warning("%s: queued, but not announced: %s", request.build_id, error)
    return RetryResult(
        parent=build.build_id, build_id=request.build_id, arches=request.announced_arches, tube=tube, job=job,
        target=request.target, timestamp=request.timestamp,
    )  # fmt: skip

# SPDX-License-Identifier: Apache-2.0
"""`reimzul raise`: put a waiting build first in its tube.

beanstalkd cannot change a job's priority, so the request is put anew and the old job deleted. The new one is put with
a delay first: until the old one is known to be ours to delete, nobody can take the new one, and it can always be
withdrawn. Killed in between, it comes by itself when its delay is over.
"""

from __future__ import annotations

import contextlib
from pathlib import Path

import attr
import click

from reimzul.admin import lookup
from reimzul.admin.lookup import BuildLegs
from reimzul.admin.table import show_json
from reimzul.core import control
from reimzul.core.beanstalk import PRIORITY_NOW, Broker, arch_tube
from reimzul.core.cli import EXIT_CODES, load_settings, shared_options
from reimzul.core.errors import EXIT_FAILED, ReservationLost
from reimzul.core.message import Status, event_for
from reimzul.history import BuildRecord

#: Seconds until a job put anew comes by itself, where we did not live to say that it may.
_BY_ITSELF = 30


@attr.frozen(kw_only=True)
class Raised:
    """What became of one build."""

    build_id: str
    done: bool
    words: str  #: what was done, or why not
    job: int | None = None  #: its number now
    priority: int | None = None


@click.command("raise", epilog=EXIT_CODES)
@lookup.build_ids_argument()
@click.option("--json", "as_json", is_flag=True, help="A list of what became of each. docs/json.md has its keys.")
@shared_options
def command(config: Path | None, verbose: bool, given: tuple[str, ...], as_json: bool) -> int:
    """Put builds that wait before all others of their tubes; of several, the one named last comes first.

    A build that a worker has already is left to it. IDs may be shortened to what no other build has.

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
        raised = [_raise(broker, build, unfinished, fronts) for build in builds]
    if as_json:
        show_json([attr.asdict(each) for each in raised])
    else:
        for build, each in zip(builds, raised):
            click.echo(f"{build.label}: {each.words}", err=not each.done)
    return 0 if all(each.done for each in raised) else EXIT_FAILED


def _raise(broker: Broker, build: BuildLegs, unfinished: list[BuildRecord], fronts: dict[str, int]) -> Raised:
    leg = build.main
    found = lookup.find_job(broker, leg) if leg.status in (Status.QUEUED, Status.BUILDING) else None
    if found is None or found.stats.state not in ("ready", "delayed"):
        return Raised(build_id=build.build_id, done=False, words=_why_not(leg, found))
    tube = found.stats.tube
    known = lookup.lowest_priority((each for each in unfinished if each.build_id != build.build_id), tube)
    front = min(fronts.get(tube, PRIORITY_NOW), known, PRIORITY_NOW)
    if found.stats.state == "ready" and found.stats.priority < front:
        return Raised(
            build_id=build.build_id, done=True, words="it is the first already", job=found.job,
            priority=found.stats.priority,
        )  # fmt: skip
    fronts[tube] = max(0, front - 1)
    return put_first(broker, leg, found, fronts[tube])


def _why_not(leg: BuildRecord, found: lookup.QueuedJob | None) -> str:
    if found and found.stats.state == "reserved":
        return f"a worker has it already{': ' + leg.builder_fqdn if leg.builder_fqdn else ''}"
    if found is not None:
        return f"its job {found.job} was refused and put aside: `reimzul kick {found.job}` has it tried again"
    if leg.status in (Status.QUEUED, Status.BUILDING):
        return "its job is not in its tube any more; `reimzul explain` says more"
    return f"it does not wait any more: {leg.status}"


def put_first(broker: Broker, leg: BuildRecord, found: lookup.QueuedJob, priority: int) -> Raised:
    """Put a job anew with a priority, and delete the old one; where a worker takes that meanwhile, the new one goes."""
    tube, request = found.stats.tube, found.request
    about = {"pkgname": leg.pkgname, "evr": leg.evr}
    queued = [event_for(request, Status.QUEUED, arch=arch, **about) for arch in request.announced_arches]
    job, forbidden = control.requeue_unless_cancelled(
        broker, arch_tube(tube), request, priority=priority, delay=_BY_ITSELF, ttr=found.stats.ttr
    )
    if forbidden:
        return Raised(build_id=request.build_id, done=False, words="it is being cancelled")
    try:
        broker.delete(found.job)
    except ReservationLost:
        with contextlib.suppress(ReservationLost):
            broker.delete(job)
        return Raised(build_id=request.build_id, done=False, words="a worker has taken it just now")
    with contextlib.suppress(ReservationLost):  # cancelled in this moment
        broker.kick(job)
    reason = f"put first: job {job} of tube {tube}"
    for event in queued:
        broker.announce(attr.evolve(event, reason=reason, tube=tube, job=job, priority=priority))
    return Raised(
        build_id=request.build_id, done=True, words=f"first in tube {tube}, as job {job}", job=job, priority=priority
    )

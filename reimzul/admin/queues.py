# SPDX-License-Identifier: Apache-2.0
"""The farm's tubes and the jobs in them: `reimzul queues`, `buried`, `kick` and `discard`.

beanstalkd shows only the job of a tube that was buried first, and keeps no reasons; the notifier records those. A
recorded refusal counts while its job is still buried in that tube and begins with the same bytes, because beanstalkd
starts its job numbers again from 1 when it loses its binlog.

Jobs are kicked and deleted one by one, by number and only while they are buried. beanstalkd's own `kick` of a tube is
not used: it moves the delayed jobs where no buried ones are left. No tube gets more jobs kicked than it had buried at
first, so a job that is refused again at once is not kicked without end.
"""

from __future__ import annotations

import itertools
import logging
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Callable

import attr
import click

from reimzul.admin import lookup
from reimzul.admin.actions import announce_cancelled
from reimzul.admin.held import read_held_counts, release_job, separate_held
from reimzul.admin.output import (
    F,
    NoTerminal,
    Table,
    confirm,
    json_option,
    pass_settings,
    print_json,
    print_none_found,
    print_table,
    table_options,
    yes_option,
)
from reimzul.core import validators
from reimzul.core.arch import read_arches
from reimzul.core.beanstalk import CREATEREPO, NOTIFY, TOSIGN, Broker, is_control_tube
from reimzul.core.beanstalk_stats import TubeStats
from reimzul.core.cli import EXIT_CODES, current_user
from reimzul.core.errors import EXIT_FAILED, ConfigError, InputError, InvalidMessage, ReimzulError, ReservationLost
from reimzul.core.formatting import format_time, pluralize, suggest_nearest
from reimzul.core.message import BuildRequest, first_bytes
from reimzul.core.option_types import WholeNumber
from reimzul.core.pending import OutboxUnreadable, PendingDeliveries, read_pending
from reimzul.core.settings import Settings
from reimzul.history import HistoryUnavailable, NoHistory
from reimzul.history.build_record import RefusalRecord

log = logging.getLogger(__name__)

#: How many recorded refusals are read, the newest first.
_MAX_REFUSALS = 50_000
_QUEUES_TABLE = Table(
    ("TUBE", "READY", "RESERVED", "DELAYED", "HELD", "BURIED", "WATCHERS", "NOTE"), dispensable=("DELAYED", "RESERVED")
)
_BURIED_TABLE = Table(
    ("TUBE", "JOB", "SINCE", "REASON", "REFUSED BY", "BEGINS"), dispensable=("BEGINS", "REFUSED BY", "SINCE")
)


# --- which tubes there are


def farm_tubes(settings: Settings) -> list[str]:
    """The arches' tubes and the daemons', whether beanstalkd has them now or not."""
    return [*read_arches(settings.farm.arches).tubes(), CREATEREPO.name, TOSIGN.name, NOTIFY.name]


def all_tubes(broker: Broker, settings: Settings) -> list[str]:
    """The farm's tubes, then all others that beanstalkd has."""
    known = farm_tubes(settings)
    return [*known, *(name for name in broker.list_tubes() if name not in known)]


def select_tubes(broker: Broker, settings: Settings, tube: str | None) -> list[str]:
    """The given tube, or all. Raises `InputError` for a tube that neither beanstalkd nor the farm has."""
    tubes = all_tubes(broker, settings)
    if tube is None:
        return tubes
    if tube not in tubes:
        raise InputError(f"there is no tube {validators.quoted(tube)}{suggest_nearest(tube, tubes)}")
    return [tube]


def count_buried(broker: Broker, tubes: Iterable[str]) -> dict[str, int]:
    counts = {tube: broker.tube_stats(tube).buried for tube in tubes}
    return {tube: count for tube, count in counts.items() if count}


# --- queues


@click.command("queues", epilog=EXIT_CODES)
@click.option("--all", "everything", is_flag=True, help="Also list the tubes of control flags and connections.")
@table_options(_QUEUES_TABLE)
@json_option("an object: tubes, pending")
@pass_settings
def list_queues(settings: Settings, everything: bool, columns: Sequence[str], wide: bool, as_json: bool) -> int:
    """List all tubes with their ready, reserved, delayed, held and buried jobs, and their watchers.

    A tube that has jobs and no watcher is marked: `nobody watches it`; held jobs need none. Below, if there are any:
    events that the log, the history, mail or MQTT does not have yet, from the notifier's outbox. The tubes that --all
    adds hold control flags (a cancelled build, a drained builder, a failing hook), or show which processes are
    connected.

    \b
    Examples:
      reimzul queues
      reimzul queues --json
    """
    with Broker.from_settings(settings.beanstalkd) as broker:
        names = [name for name in all_tubes(broker, settings) if everything or not is_control_tube(name)]
        tubes = [broker.tube_stats(name) for name in names]
    # beanstalkd creates `default`, and every connection watches it at first
    tubes = [tube for tube in tubes if tube.name != "default" or any(_job_counts(tube))]
    pending: list[PendingDeliveries] | None = None
    held: Mapping[str, int] | None = None
    try:
        held = read_held_counts(settings)
        tubes = separate_held(tubes, held)
    except (HistoryUnavailable, ConfigError) as error:
        click.echo(f"the held jobs are not known, and counted as delayed: {error}", err=True)
    try:
        pending = read_pending(settings.notifier.ledger)
    except OutboxUnreadable as error:
        click.echo(f"the pending deliveries are not known: {error}", err=True)
    if as_json:
        sinks = None if pending is None else list(map(attr.asdict, pending))
        unknown = {"held": None} if held is None else {}
        rows = [{**attr.asdict(tube), **unknown, "unwatched": is_unwatched(tube)} for tube in tubes]
        print_json({"tubes": rows, "pending": sinks})
    else:
        _print_tables(tubes, pending or (), columns, wide)
    return EXIT_FAILED if pending is None or held is None else 0


def is_unwatched(tube: TubeStats) -> bool:
    return bool(tube.ready + tube.delayed) and not tube.watchers and not is_control_tube(tube.name)


def _job_counts(tube: TubeStats) -> list[int]:
    return [tube.ready, tube.reserved, tube.delayed, tube.held, tube.buried]


def _print_tables(
    tubes: Iterable[TubeStats], pending: Sequence[PendingDeliveries], columns: Sequence[str], wide: bool
) -> None:
    rows = [
        [tube.name, *map(str, (*_job_counts(tube), tube.watchers)), "nobody watches it" if is_unwatched(tube) else ""]
        for tube in tubes
    ]
    print_table(_QUEUES_TABLE, rows, columns=columns, wide=wide)
    if pending and sys.stdout.isatty():
        click.echo()
    # with spaces, which no tube's name has: in a pipe nothing else distinguishes these lines from the tubes'
    rows = [
        [f"pending for {each.sink}", str(each.count), format_time(each.oldest), format_time(each.next_try)]
        for each in pending
    ]
    if rows:
        print_table(Table(("PENDING", "EVENTS", "SINCE", "NEXT TRY")), rows)


# --- buried


@attr.frozen(kw_only=True)
class BuriedJob:
    tube: str
    job: int
    begins: str
    reason: str = ""  #: empty if nobody recorded it
    host: str = ""  #: that refused it
    since: float | None = None
    recorded: bool = True


@attr.define
class BuriedReport:
    jobs: list[BuriedJob] = attr.field(factory=list)
    unrecorded: dict[str, int] = attr.field(factory=dict)  #: tube -> number of its jobs without a recorded refusal
    fault: str = ""  #: why the history could not be read


@click.command("buried", epilog=EXIT_CODES)
@click.option("--tube", metavar="TUBE", help="Only the jobs of this tube, as x86_64 or notify.")
@table_options(_BURIED_TABLE)
@json_option("an object: jobs, unrecorded")
@pass_settings
def list_buried(settings: Settings, tube: str | None, columns: Sequence[str], wide: bool, as_json: bool) -> int:
    """List refused jobs, newest first: since when, the reason, the host that refused them, their first bytes.

    Jobs without a recorded reason are counted, and the first one of each tube is shown.

    \b
    Examples:
      reimzul buried
      reimzul buried --tube x86_64 --json
    """
    with Broker.from_settings(settings.beanstalkd) as broker:
        tubes = count_buried(broker, select_tubes(broker, settings, tube))
        report = _collect_buried(broker, tubes, settings.history.url)
    if as_json:
        print_json({"jobs": list(map(attr.asdict, report.jobs)), "unrecorded": report.unrecorded})
    elif report.jobs:
        print_table(_BURIED_TABLE, list(map(_row_cells, report.jobs)), columns=columns, wide=wide)
    else:
        print_none_found("buried job")
    if report.fault:
        click.echo(f"the reasons cannot be read: {report.fault}", err=True)
    for name, count in report.unrecorded.items():
        more = count - sum(each.tube == name and not each.recorded for each in report.jobs)
        if more > 0:
            click.echo(
                f"{name}: {more} more buried without a recorded reason; beanstalkd shows only the first", err=True
            )
    return EXIT_FAILED if report.fault else 0


def _collect_buried(broker: Broker, tubes: dict[str, int], url: str) -> BuriedReport:
    """Report the buried jobs of tubes with so many of them each; without reasons where the history has none."""
    report = BuriedReport(unrecorded=dict(tubes))
    try:
        if tubes:
            with lookup.reading_history(url) as history:
                _match_refusals(broker, history.iterate_refusals(), report)
    except NoHistory:
        pass
    except (HistoryUnavailable, ConfigError) as error:
        report.fault = str(error)
    known = {each.job for each in report.jobs}
    for tube in report.unrecorded:
        first = broker.first_buried(tube)
        if first is not None and first[0] not in known:
            report.jobs.append(BuriedJob(tube=tube, job=first[0], begins=first_bytes(first[1]), recorded=False))
    return report


def _match_refusals(broker: Broker, refusals: Iterable[RefusalRecord], report: BuriedReport) -> None:
    found: dict[int, BuriedJob] = {}
    for each in itertools.islice(refusals, _MAX_REFUSALS):
        if each.tube not in report.unrecorded or each.job in found or not _is_still_buried(broker, each):
            continue
        found[each.job] = BuriedJob(
            tube=each.tube, job=each.job, begins=each.begins, reason=each.reason, host=each.host, since=each.at
        )
        report.jobs.append(found[each.job])
        report.unrecorded[each.tube] -= 1
        if not report.unrecorded[each.tube]:
            del report.unrecorded[each.tube]
            if not report.unrecorded:
                return


def _is_still_buried(broker: Broker, refusal: RefusalRecord) -> bool:
    try:
        stats = broker.job_stats(refusal.job)
        if (stats.state, stats.tube) != ("buried", refusal.tube):
            return False
        return first_bytes(broker.peek(refusal.job)) == refusal.begins
    except ReservationLost:
        return False


def _row_cells(each: BuriedJob) -> list[str]:
    reason, begins = validators.line(500)(each.reason or "nobody recorded why"), validators.quoted(each.begins, 80)
    return [each.tube, str(each.job), format_time(each.since), reason, each.host or "-", begins]


# --- kick and discard


@attr.frozen(kw_only=True)
class JobAction:
    verb: str  #: as in the question: Put back, Delete, Release
    past: str  #: as in the report: put back, deleted, released
    state: str = "buried"  #: of the jobs that it is for
    act: Callable[[Broker, Settings, str, int], None]  #: called with the tube and the job


@attr.define
class ActionResult:
    done: list[tuple[str, int]] = attr.field(factory=list)  #: tube and number of the jobs that were acted on
    left: dict[int, str] = attr.field(factory=dict)  #: number of a job -> why it was left alone


def _selection_options(function: F) -> F:
    for decorate in (
        json_option("an object: done (tube and job), left (job and reason)"),
        yes_option,
        click.option("--all", "everything", is_flag=True, help="All buried jobs of all tubes."),
        click.option("--tube", metavar="TUBE", help="All buried jobs of this tube."),
        click.argument("jobs", metavar="[JOB]...", nargs=-1, type=WholeNumber(1, 2**64 - 1, "the number of a job")),
    ):
        function = decorate(function)
    return function


@click.command("kick", epilog=EXIT_CODES)
@_selection_options
@click.option("--held", is_flag=True, help="Release held jobs instead, by their numbers: `reimzul show` has them.")
@pass_settings
def kick(settings: Settings, held: bool, **given: Any) -> int:
    """Put buried jobs back into their tubes, to be tried again; `reimzul buried` lists them with their reasons.

    Asks for confirmation. Delayed jobs are left alone. With --held, builds are released that wait for a requirement or
    for others of their batch: they are built as soon as a worker is free.

    \b
    Examples:
      reimzul kick 17 23
      reimzul kick --tube createrepo
      reimzul kick --all --yes
      reimzul kick --held 17
    """
    if held and not given["jobs"]:
        raise click.UsageError("--held needs the numbers of the jobs.")
    if held:
        return _run_action(
            JobAction(verb="Release", past="released", state="held", act=_release_job), settings, **given
        )
    return _run_action(JobAction(verb="Put back", past="put back", act=_kick_job), settings, **given)


@click.command("discard", epilog=EXIT_CODES)
@_selection_options
@pass_settings
def discard(settings: Settings, **given: Any) -> int:
    """Delete buried jobs for good; `reimzul buried` lists them with their reasons.

    Asks for confirmation. A build whose request is deleted is never built, and is announced as cancelled: submit it
    again.

    \b
    Examples:
      reimzul discard 17 23
      reimzul discard --tube x86_64
      reimzul discard --all --yes
    """
    return _run_action(JobAction(verb="Delete", past="deleted", act=_discard_job), settings, **given)


def _release_job(broker: Broker, settings: Settings, tube: str, job: int) -> None:
    release_job(broker, settings, job)


def _kick_job(broker: Broker, settings: Settings, tube: str, job: int) -> None:
    broker.kick(job)


def _discard_job(broker: Broker, settings: Settings, tube: str, job: int) -> None:
    """Delete a job and announce its build as cancelled; otherwise that would be shown as waiting for ever."""
    body = broker.peek(job)
    broker.delete(job)
    try:
        if tube in read_arches(settings.farm.arches).tubes():
            _announce_discarded(broker, settings, BuildRequest.decode(body))
    except (InvalidMessage, NoHistory):  # the job is no build, or no build was ever recorded
        pass
    except ReimzulError as error:
        log.warning("a build's request is deleted, but that is not announced: %s", error)


def _announce_discarded(broker: Broker, settings: Settings, request: BuildRequest) -> None:
    with lookup.reading_history(settings.history.url) as history:
        found = lookup.find_recorded_builds(history, [request.build_id] if request.build_id else [])
    for build in found:
        if lookup.find_job(broker, build.main) is None:  # else the request was queued again; only a copy was deleted
            announce_cancelled(broker, build, f"discarded by {current_user()}")


def _run_action(
    action: JobAction,
    settings: Settings,
    jobs: Sequence[int],
    tube: str | None,
    everything: bool,
    yes: bool,
    as_json: bool,
) -> int:
    if bool(jobs) + (tube is not None) + everything != 1:
        raise click.UsageError(f"say which {action.state} jobs: their numbers, or --tube TUBE, or --all.")
    if not yes and not sys.stdin.isatty():
        raise NoTerminal(
            f"there is no terminal to ask for confirmation on: give --yes to {action.verb.lower()} {action.state} jobs"
        )
    result = ActionResult()
    with Broker.from_settings(settings.beanstalkd) as broker:
        if jobs:
            counts: dict[str, int] = Counter(of for _, of in _find_jobs(broker, action, jobs, result))
        else:
            counts = count_buried(broker, select_tubes(broker, settings, tube))
        if counts:
            each = ", ".join(f"{count} of {of}" for of, count in counts.items())
            confirm(f"{action.verb} {pluralize(sum(counts.values()), f'{action.state} job')} ({each})?", yes)
            # looked up again: a person may take long to answer, and others may have kicked a job meanwhile
            remaining = [job for job in jobs if job not in result.left]
            found = _find_jobs(broker, action, remaining, result) if jobs else _oldest_buried(broker, counts)
            for job, of in found:
                try:
                    action.act(broker, settings, of, job)
                    result.done.append((of, job))
                except ReservationLost:
                    result.left[job] = "it is gone meanwhile"
    _print_action_result(action, result, jobs, as_json)
    return EXIT_FAILED if result.left else 0


def _find_jobs(
    broker: Broker, action: JobAction, numbers: Iterable[int], result: ActionResult
) -> list[tuple[int, str]]:
    """The jobs in the action's state, each with its tube; the others are added to those left alone."""
    found = {}
    for job in numbers:
        try:
            stats = broker.job_stats(job)
            state = lookup.HELD if stats.is_held else stats.state
            hint = ": --held releases it" if state == lookup.HELD and action.verb == "Put back" else ""
            if state == action.state:
                found[job] = stats.tube
            else:
                result.left[job] = f"not {action.state}, but {state} in {stats.tube}{hint}"
        except ReservationLost:
            result.left[job] = "there is no such job"
    return list(found.items())


def _oldest_buried(broker: Broker, counts: dict[str, int]) -> Iterator[tuple[int, str]]:
    """As many jobs of each tube as it had, oldest first. Each has to leave the tube before the next is asked for."""
    for tube, count in counts.items():
        for _ in range(count):
            first = broker.first_buried(tube)
            if first is None:
                break
            yield first[0], tube


def _print_action_result(action: JobAction, result: ActionResult, jobs: Sequence[int], as_json: bool) -> None:
    if as_json:
        left = [{"job": job, "reason": reason} for job, reason in result.left.items()]
        print_json({"done": [{"tube": of, "job": job} for of, job in result.done], "left": left})
        return
    counts = Counter(of for of, _ in result.done)
    if jobs:
        lines = [f"job {job} of {of}: {action.past}" for of, job in result.done]
    elif counts or result.left:
        lines = [f"{of}: {pluralize(count, 'job')} {action.past}" for of, count in counts.items()]
    else:
        print_none_found("buried job")
        lines = []
    click.echo("".join(f"{line}\n" for line in lines), nl=False)
    for job, reason in result.left.items():
        click.echo(f"job {job}: {reason}", err=True)

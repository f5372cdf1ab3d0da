# SPDX-License-Identifier: Apache-2.0
"""Look-ups that most commands share: the history, the workers, builds by id, and the jobs of builds in beanstalkd."""

from __future__ import annotations

import contextlib
import re
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Callable

import attr
import click

from reimzul.core import control, validators
from reimzul.core.beanstalk import Broker, drain_tube
from reimzul.core.beanstalk_stats import JobStats
from reimzul.core.config import load_file
from reimzul.core.control import ControlFlag
from reimzul.core.errors import InputError, InvalidMessage, ReimzulError, ReservationLost
from reimzul.core.formatting import suggest_nearest
from reimzul.core.links import LinkSource, relink
from reimzul.core.message import BuildRequest
from reimzul.core.settings import Settings
from reimzul.history import BuildFilter, BuildRecord, History, open_history
from reimzul.history.workers import WorkerRecord, WorkerStore

#: The state of a job that beanstalkd does not have, of one whose number is unknown, and of one that beanstalkd calls
#: delayed; beside beanstalkd's own states.
GONE, UNKNOWN, HELD = "gone", "unknown", "held"

#: Hex digits of a whole build id.
ID_LENGTH = 32
_ID = re.compile(rf"[0-9a-f]{{1,{ID_LENGTH}}}\Z")
#: Records that are read of the builds whose ids begin alike, and of one build.
_MAX_RECORDS, _MAX_LEGS = 200, 50
#: Builds offered for one Tab, and ids listed in an error message.
_MAX_COMPLETIONS, _MAX_LISTED = 50, 4
#: Higher than every priority and every job number of beanstalkd.
_NO_PRIORITY, _NO_JOB = 2**32, 2**64


# --- the history and the workers


@contextlib.contextmanager
def reading_history(url: str) -> Iterator[History]:
    """Open the history for reading. Raises `NoHistory`, `HistoryUnavailable` and `ConfigError`."""
    with contextlib.closing(open_history(url, reading=True)) as opened:
        yield opened


def load_workers(settings: Settings) -> list[WorkerRecord]:
    """Return all workers, also those whose connection has ended. Raises `WorkersUnavailable`."""
    return WorkerStore(settings.notifier.presence).load_workers()


def load_processes(settings: Settings) -> list[WorkerRecord]:
    """Return all workers, repogens and tosigns, also those whose connection has ended. Raises `WorkersUnavailable`."""
    return WorkerStore(settings.notifier.presence).load_all()


def read_drain_flags(broker: Broker, hosts: Iterable[str]) -> dict[str, ControlFlag]:
    tubes = set(broker.list_tubes())
    found = {host: control.drain_flag(broker, host) for host in hosts if drain_tube(host) in tubes}
    return {host: each for host, each in found.items() if each is not None}


# --- builds by their ids


@attr.frozen
class BuildLegs:
    """The records of one build, one per arch; first the arch that was asked for."""

    legs: Sequence[BuildRecord]

    @property
    def build_id(self) -> str:
        return self.main.build_id

    @property
    def main(self) -> BuildRecord:
        """The leg that was asked for: it alone was queued."""
        return self.legs[0]

    @property
    def label(self) -> str:
        return f"{self.build_id[:8]} ({self.main.srpm} for {self.main.target})"


def require_build(history: History, given: str) -> list[BuildLegs]:
    """Return the builds whose ids have this prefix. Raises `InputError` if there is none."""
    prefix = given.lower()
    if not _ID.match(prefix):
        raise InputError(f"{validators.quoted(given)} is no build id, nor the beginning of one: up to 32 hex digits")
    found = group_by_build(history.find_builds(BuildFilter(build_id=prefix), _MAX_RECORDS))
    if not found:
        raise InputError(f"no build's id begins with {prefix}; `reimzul builds` shows which there are")
    return found


def find_build(history: History, given: str) -> BuildLegs:
    """Return the build whose id has this prefix. Raises `InputError` if there is none, or more than one."""
    found = require_build(history, given)
    if len(found) > 1:
        more = f" and {len(found) - _MAX_LISTED} more" if len(found) > _MAX_LISTED else ""
        listed = ", ".join(build.label for build in found[:_MAX_LISTED])
        raise InputError(f"more than one build's id begins with {given.lower()}: {listed}{more}")
    return found[0]


def find_builds(history: History, given: Iterable[str]) -> list[BuildLegs]:
    """Return each build once. Raises `InputError` with a line for each prefix of no build, or of more than one."""
    found, faults = {}, []
    for prefix in given:
        try:
            build = find_build(history, prefix)
            found[build.build_id] = build
        except InputError as error:
            faults.append(str(error))
    if faults:
        raise InputError("\n".join(dict.fromkeys(faults)))
    return list(found.values())


def find_recorded_builds(history: History, build_ids: Iterable[str]) -> list[BuildLegs]:
    """Return the builds with these full ids; one that is not recorded is left out."""
    legs = [leg for each in build_ids for leg in history.find_builds(BuildFilter(build_id=each), _MAX_LEGS)]
    return group_by_build(legs)


def read_builds(settings: Settings, given: Iterable[str]) -> list[BuildLegs]:
    with reading_history(settings.history.url) as history:
        return find_builds(history, given)


def add_links(settings: Settings, records: Iterable[BuildRecord]) -> list[BuildRecord]:
    """Return records with the links to their files as people reach them now; what the history has may be older."""
    roots = LinkSource(settings).get()
    return [
        attr.evolve(relink(each, roots), attempts=tuple(relink(one, roots) for one in each.attempts))
        for each in records
    ]


def group_by_build(records: Iterable[BuildRecord]) -> list[BuildLegs]:
    """Group records by build, in the order of the first of each; those without an id (the original's) are left out."""
    legs: defaultdict[str, list[BuildRecord]] = defaultdict(list)
    for record in records:
        if record.build_id:
            legs[record.build_id].append(record)
    for each in legs.values():
        each.sort(key=lambda record: (not (record.queued_at or record.target.endswith(f".{record.arch}")), record.arch))
    return list(map(BuildLegs, legs.values()))


def build_ids_argument(required: bool = True, many: bool = True) -> Callable[[Any], Any]:
    """Return the argument of a command that takes build ids, with completion; the parameter is called `given`."""
    name = "ID..." if many else "ID"
    return click.argument(
        "given",
        metavar=name if required else f"[{name}]",
        nargs=-1 if many else 1,
        required=required,
        shell_complete=complete_build_id,
    )


def complete_build_id(context: click.Context, _: click.Parameter, incomplete: str) -> list[Any]:
    """Return the newest builds whose id has this prefix; none, and no error message, if the history is unreadable."""
    from click.shell_completion import CompletionItem

    with contextlib.suppress(ReimzulError, OSError):
        config: Path | None = context.params.get("config")
        with reading_history(load_file(config).history.url) as history:
            found = group_by_build(history.find_builds(BuildFilter(build_id=incomplete.lower()), _MAX_COMPLETIONS))
        return [CompletionItem(build.build_id, help=build.label[9:]) for build in found]
    return []


# --- hosts by their names


def match_hosts(hosts: Iterable[str], name: str) -> list[str]:
    """Return the hosts that a person means: the one of that full name, or else those whose name begins with it."""
    ordered = sorted(set(hosts))
    return [host for host in ordered if host == name] or [host for host in ordered if host.split(".")[0] == name]


def suggest_host(hosts: Collection[str], name: str) -> str:
    return suggest_nearest(name, [*hosts, *(host.split(".")[0] for host in hosts)])


# --- the jobs of builds: beanstalkd cannot list a tube, so their numbers come from the history


@attr.frozen(kw_only=True)
class QueuedJob:
    job: int
    request: BuildRequest
    stats: JobStats


def find_job(broker: Broker, leg: BuildRecord) -> QueuedJob | None:
    """Return the job of a build in whatever state; None if its number is unknown, or beanstalkd has no such job."""
    if not leg.job:
        return None
    with contextlib.suppress(ReservationLost, InvalidMessage):
        request = BuildRequest.decode(broker.peek(leg.job))
        if request.build_id == leg.build_id:  # beanstalkd starts to number again when it loses its binlog
            return QueuedJob(job=leg.job, request=request, stats=broker.job_stats(leg.job))
    return None


def job_state(broker: Broker, leg: BuildRecord) -> str:
    """Return the state of a build's job in beanstalkd, `GONE`, `UNKNOWN` or `HELD`."""
    if not leg.job:
        return UNKNOWN
    found = find_job(broker, leg)
    if found is None:
        return GONE
    return HELD if found.stats.is_held else found.stats.state


def queue_order(leg: BuildRecord) -> tuple[int, int]:
    """Return the sort key by which beanstalkd orders ready jobs."""
    return (leg.priority if leg.priority is not None else _NO_PRIORITY, leg.job or _NO_JOB)


def lowest_priority(unfinished: Iterable[BuildRecord], tube: str) -> int:
    """Return the smallest (most urgent) priority number of the builds that wait in a tube; a huge one if none does."""
    waiting = (queue_order(leg)[0] for leg in unfinished if leg.is_queued and leg.tube == tube)
    return min(waiting, default=_NO_PRIORITY)


def builds_ahead(
    leg: BuildRecord, unfinished: Iterable[BuildRecord], tube: str, shared: Iterable[str], now: float
) -> tuple[list[BuildRecord], list[BuildRecord]]:
    """Return the builds that beanstalkd gives out before a leg's job: of its tube, and of other tubes of its workers.

    Of ready jobs the smallest priority goes first, then the smallest job number, over all tubes that a worker watches
    (beanstalkd's doc/protocol.txt, "reserve").
    """
    own_turn, others = queue_order(leg), set(shared) - {tube}
    ahead = {
        (each.tube, each.job): each  # legs that were queued again together are one job
        for each in unfinished
        if each.is_queued
        and not each.held
        and each.job
        and each.due <= now
        and each.build_id != leg.build_id
        and queue_order(each) < own_turn
    }.values()
    return [each for each in ahead if each.tube == tube], [each for each in ahead if each.tube in others]

# SPDX-License-Identifier: Apache-2.0
"""`reimzul builders` lists the workers; `reimzul drain` and `reimzul resume` stop and start a builder's intake of jobs.

The drain flag is kept in beanstalkd, so it outlives a restart of either host, and nobody has to log in on the builder.

`reimzul builders --forget` asks the notifier, which owns the file of heartbeats, to drop the processes of a host that
vanished: each gets the last heartbeat that it did not send.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Optional

import attr
import click

from reimzul.admin import lookup, output
from reimzul.admin.stats import AttemptCounts, compute_stats_between
from reimzul.core import control, validators
from reimzul.core.beanstalk import PRIORITY, Broker, builder_of_drain_tube, drain_tube
from reimzul.core.cli import EXIT_CODES, current_user, print_error
from reimzul.core.config import load_file
from reimzul.core.errors import EXIT_BROKER, EXIT_FAILED, BrokerUnavailable, InputError, ReimzulError
from reimzul.core.formatting import format_duration, format_size, format_time
from reimzul.core.links import NO_LINKS, LinkRoots, LinkSource, relink
from reimzul.core.message import WorkerState
from reimzul.core.settings import Settings
from reimzul.history import NoHistory
from reimzul.history.workers import (
    VANISHED,
    Processes,
    WorkerRecord,
    WorkersUnavailable,
    describe_error,
    drop_disconnected,
    shared_names,
)

_TABLE = output.Table(
    ("BUILDER", "WORKER", "STATE", "FOR", "DOES", "LAST RESULT", "FAULTS", "FREE", "LOAD", "HEARD", "VERSION"),
    dispensable=("VERSION", "LOAD", "FREE", "FAULTS", "HEARD", "LAST RESULT"),
)


@click.command("builders", epilog=EXIT_CODES)
@output.period_options("Count faults and results of builds")
@output.table_options(_TABLE)
@click.option("--forget", metavar="BUILDER", help="Forget the processes of a host that vanished, and list nothing.")
@output.json_option("a list of workers, repogens and tosigns")
@output.pass_settings
def list_builders(
    settings: Settings,
    begin: float,
    end: float | None,
    columns: Sequence[str],
    wide: bool,
    forget: str | None,
    as_json: bool,
) -> int:
    """List the workers: what each does and for how long, its last result, and how often it was at fault.

    FAULTS are attempts that failed through the builder's own fault, out of all its attempts. A worker that has not been
    heard of for two minutes is `silent`. One that is `draining` finishes its build and then takes no more jobs;
    `drained`, `unfit` and `quarantined` ones take none, and DOES gives the reason. DOES also warns if the builder's
    clock is off or another host uses its name, and of what fails now. Workers that were stopped are left out;
    one that is `gone` vanished: it was killed or cut off. The repogen and tosign of bstore are listed at the end.

    \b
    Examples:
      reimzul builders
      reimzul builders --since 24h --json
      reimzul builders --forget builder3.example.org
    """
    if forget is not None:
        output.refuse_others("--forget", "as_json")
        return forget_host(settings, forget, as_json)
    known = lookup.load_processes(settings)
    processes = Processes(connected=known)
    attempts: Mapping[str, AttemptCounts] = {}
    with contextlib.suppress(NoHistory), lookup.reading_history(settings.history.url) as history:
        attempts = compute_stats_between(history, begin, end).attempts
    flags, fault = {}, ""
    try:
        with Broker.from_settings(settings.beanstalkd) as broker:
            processes = Processes.find(broker, known)
            flags = lookup.read_drain_flags(broker, {each.heartbeat.host for each in known if each.is_worker})
    except BrokerUnavailable as error:  # the last heartbeats are on this host
        fault = f"{error}; it is unknown which workers have ended and which builders are drained"
    shared, now = shared_names(processes.connected), time.time()
    roots = LinkSource(settings).get() if as_json else NO_LINKS  # the table has no links
    views = [
        _WorkerView(
            seen=each,
            now=now,
            counts=attempts.get(each.heartbeat.host, AttemptCounts()),
            flag=flags.get(each.heartbeat.host),
            roots=roots,
            name_shared=shared.get(each.heartbeat.host, ""),
            vanished=each in processes.vanished,
        )
        for each in sorted(known, key=lambda each: not each.is_worker)
    ]
    if as_json:
        output.print_json([view.to_dict() for view in views])
    elif views:
        output.print_table(_TABLE, [view.to_row() for view in views], columns=columns, wide=wide)
    else:
        output.print_none_found("worker")
    if fault:
        print_error(fault)
    return EXIT_BROKER if fault else 0


def _drained_hosts(broker: Broker) -> list[str]:
    hosts = filter(None, map(builder_of_drain_tube, broker.list_tubes()))
    return [host for host in hosts if control.drain_flag(broker, host)]


@attr.frozen(kw_only=True)
class _WorkerView:
    seen: WorkerRecord
    now: float
    counts: AttemptCounts  #: of its host
    flag: Optional[control.ControlFlag]
    roots: LinkRoots  #: what links for people begin with
    name_shared: str  #: what is wrong with the name of its host
    vanished: bool  #: its connection has ended without its notice

    @property
    def state(self) -> str:
        if self.vanished:
            return VANISHED
        state = self.seen.state_at(self.now)
        if self.flag is None or state not in WorkerState.TAKING_JOBS:
            return state
        # what its next heartbeat is going to say
        if self.flag.is_quarantine:
            return WorkerState.QUARANTINED
        return WorkerState.DRAINED if state == WorkerState.IDLE else WorkerState.DRAINING

    def to_row(self) -> list[str]:
        heartbeat, build, last = self.seen.heartbeat, self.seen.heartbeat.build, self.counts.last
        last_end = f", {format_duration(self.now - last.ended_at)} ago" if last else ""
        return [
            heartbeat.host,
            heartbeat.instance,
            self.state,
            format_duration(self.seen.seconds_since(build.started, self.now)) if build else "-",
            self._format_activity(),
            f"{last.state} {self.counts.last_srpm}{last_end}" if last and self.seen.is_worker else "-",
            f"{self.counts.faults} of {self.counts.attempts}" if self.seen.is_worker else "-",
            format_size(heartbeat.free_mib * 1024**2),
            f"{heartbeat.load:.2f}",
            f"{format_duration(self.now - self.seen.last_seen)} ago",
            heartbeat.version or "-",
        ]

    def _format_activity(self) -> str:
        build = self.seen.heartbeat.build
        phase = f" ({build.phase})" if build and build.phase else ""
        parts = [
            f"{build.srpm} for {build.target}{phase}" if build else "",
            self.flag.drain_text if self.flag else self.seen.heartbeat.why,
            *(describe_error(self.seen, error, self.now) for error in self.seen.heartbeat.errors),
            self.name_shared,
            f"its clock is {output.format_skew(self.seen.skew)}" if self.seen.skew else "",
        ]
        return "; ".join(filter(None, parts)) or "-"

    def to_dict(self) -> dict[str, Any]:
        flag, counts = self.flag, self.counts
        extra = {"srpm": counts.last_srpm, "arch": counts.last_arch}
        return {
            **self.seen.to_output(self.now),
            "state": self.state,
            "name_shared": self.name_shared,
            "drain": flag and {"by": flag.by, "at": flag.at, "reason": flag.why, "quarantined": flag.is_quarantine},
            "attempts": counts.attempts,
            "faults": counts.faults,
            "last": {**relink(counts.last, self.roots).to_output(), **extra} if counts.last else None,
        }


# --- drain and resume


def _print_drain(
    as_json: bool, builder: str, message: str, building: Sequence[str], *, drained: bool, changed: bool
) -> None:
    """Print the state of a builder after `drain` or `resume`; `building`: source rpms that its workers still finish."""
    result = {"builder": builder, "drained": drained, "changed": changed, "message": message, "building": building}
    output.print_result(
        result, [f"{builder}: {message}", *(f"  it finishes {srpm} first" for srpm in building)], as_json
    )


def _complete_builder(context: click.Context, _: click.Parameter, incomplete: str) -> list[str]:
    with contextlib.suppress(ReimzulError, OSError):
        hosts = {seen.heartbeat.host for seen in lookup.load_workers(load_file(context.params.get("config")))}
        return sorted(host for host in hosts if host.startswith(incomplete))
    return []


_builder_argument = click.argument("name", metavar="BUILDER", shell_complete=_complete_builder)


def find_builder(
    settings: Settings, name: str, *, force: bool = False, drained: Iterable[str] = ()
) -> tuple[str, list[WorkerRecord]]:
    """A builder's full name and its workers. Raises `InputError` for an unknown one; `force` takes any name.

    `drained`: builders that are known by their drain flags, whether they were ever heard of or not.
    """
    output.check_input(validators.host, name)
    try:
        seen = lookup.load_workers(settings)
    except WorkersUnavailable as error:
        if force or name in drained:
            return name, []
        raise InputError(f"{error}; --force takes the name as it is") from None
    hosts = sorted({*drained, *(each.heartbeat.host for each in seen)})
    matching = lookup.match_hosts(hosts, name)
    if len(matching) == 1:
        return matching[0], [each for each in seen if each.heartbeat.host == matching[0]]
    if force:
        return name, []
    if matching:
        raise InputError(f"more than one builder is called {name}: {', '.join(matching)}")
    meant = lookup.suggest_host(hosts, name) or (f"; known builders: {', '.join(hosts)}" if hosts else "")
    raise InputError(f"no builder {name} has been heard of{meant} (--force takes the name as it is)")


@click.command("drain", epilog=EXIT_CODES)
@_builder_argument
@click.option("--why", default="", metavar="TEXT", help="The reason, shown by `reimzul builders`.")
@click.option("--force", is_flag=True, help="Also drain a builder that has never been heard of.")
@output.json_option("an object")
@output.pass_settings
def drain(settings: Settings, name: str, why: str, force: bool, as_json: bool) -> None:
    """Let a builder finish its builds and take no more jobs, until `reimzul resume`.

    This holds for all workers of that host, across restarts of the host and of beanstalkd.

    \b
    Examples:
      reimzul drain builder3.example.org --why "new disk"
      reimzul resume builder3.example.org
    """
    host, seen = find_builder(settings, name, force=force)
    with Broker.from_settings(settings.beanstalkd) as broker:
        before, flag = set_drain_flag(broker, host, control.new_flag(current_user(), why))
        live = [each for each in drop_disconnected(broker, seen) if not each.is_silent(time.time())]
    building = [each.heartbeat.build.srpm for each in live if each.heartbeat.build]
    since = f"already takes no jobs, since {format_time(before.at)}" if before else "takes no more jobs"
    _print_drain(as_json, host, f"{since}: {flag.drain_text}", building, drained=True, changed=before is None)


def set_drain_flag(
    broker: Broker, host: str, flag: control.ControlFlag
) -> tuple[control.ControlFlag | None, control.ControlFlag]:
    """Set a person's drain flag; return the flag found before, if any, and the one in effect.

    The notifier's quarantine flag does not count, as the notifier clears it by itself. The new flag is put behind it
    before it is deleted, so that the builder is never without a flag.
    """
    before = control.drain_flag(broker, host)
    if before is None or not before.is_quarantine:
        return before, before or control.set_flag(broker, drain_tube(host), flag)
    broker.put_raw(drain_tube(host), flag.encode(), priority=PRIORITY)
    control.clear_quarantine(broker, host)
    return None, flag


@click.command("resume", epilog=EXIT_CODES)
@_builder_argument
@click.option("--force", is_flag=True, help="Also a builder that has never been heard of.")
@output.json_option("an object")
@output.pass_settings
def resume(settings: Settings, name: str, force: bool, as_json: bool) -> None:
    """Let a drained or quarantined builder take jobs again.

    \b
    Examples:
      reimzul resume builder3.example.org
    """
    with Broker.from_settings(settings.beanstalkd) as broker:
        host, _ = find_builder(settings, name, force=force, drained=_drained_hosts(broker))
        before = control.drain_flag(broker, host)
        cleared = control.clear_flag(broker, drain_tube(host))
    message = f"takes jobs again{f'; it was {before.drain_text}' if before else ''}" if cleared else "was not drained"
    _print_drain(as_json, host, message, [], drained=False, changed=cleared)


# --- forgetting a host

#: Seconds that the notifier may take, and between two looks whether it has done it.
_TIMEOUT_SECONDS, _POLL_SECONDS = 5.0, 0.2


def forget_host(settings: Settings, name: str, as_json: bool) -> int:
    """Forget a host's vanished processes; return the exit code. Raises `InputError`."""
    output.check_input(validators.host, name)
    known = lookup.load_processes(settings)
    with Broker.from_settings(settings.beanstalkd) as broker:
        host, gone = _find_vanished(Processes.find(broker, known), name)
        for each in gone:
            broker.announce(attr.evolve(each.heartbeat, leaving=True))
    is_done = _wait_until_forgotten(settings, gone)
    instances = [each.heartbeat.instance for each in gone]
    done = "forgotten" if is_done else "to be forgotten as soon as the notifier runs"
    message = f"{host}: {len(gone)} {'process' if len(gone) == 1 else 'processes'} {done} ({', '.join(instances)})"
    result = {"builder": host, "forgotten": instances, "done": is_done, "message": message}
    output.print_result(result, [message], as_json)
    return 0 if is_done else EXIT_FAILED


def _find_vanished(processes: Processes, name: str) -> tuple[str, list[WorkerRecord]]:
    hosts = {each.heartbeat.host for each in (*processes.connected, *processes.vanished)}
    gone = {each.heartbeat.host for each in processes.vanished}
    matching = lookup.match_hosts(hosts, name)
    if len(matching) > 1:
        raise InputError(f"more than one host is called {name}: {', '.join(matching)}")
    if not matching:
        raise InputError(f"no host {name} has been heard of{lookup.suggest_host(gone, name)}")
    if matching[0] not in gone:
        raise InputError(
            f"{matching[0]} is connected, and would be listed again at once: only a host that is gone is forgotten"
        )
    return matching[0], [each for each in processes.vanished if each.heartbeat.host == matching[0]]


def _wait_until_forgotten(settings: Settings, gone: list[WorkerRecord]) -> bool:
    sessions, deadline = {each.heartbeat.session for each in gone}, time.monotonic() + _TIMEOUT_SECONDS
    while True:
        if sessions.isdisjoint(each.heartbeat.session for each in lookup.load_processes(settings)):
            return True
        if time.monotonic() > deadline:
            return False
        time.sleep(_POLL_SECONDS)

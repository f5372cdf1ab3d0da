# SPDX-License-Identifier: Apache-2.0
"""Checks all hosts of the farm at the controller, by the heartbeats of their workers, repogens and tosigns.

One finding for each host that has a problem; `--all` has one for each host. Heartbeats are not signed: a finding shows
what a host says of itself, and what its connection shows.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence

from reimzul import __version__
from reimzul.admin import lookup
from reimzul.admin.doctor import OK, Finding, Result, combine, fail, is_root, ok, warn
from reimzul.admin.doctor.services import connect
from reimzul.admin.output import format_skew
from reimzul.core.errors import BrokerUnavailable
from reimzul.core.formatting import format_duration, format_size, join_words, pluralize
from reimzul.core.message import RecentError, WorkerState
from reimzul.core.settings import Settings
from reimzul.history.workers import (
    FULL,
    LOW,
    Processes,
    WorkerRecord,
    WorkersUnavailable,
    describe_error,
    describe_short_disk,
    shared_names,
)

#: Seconds that a process may be gone before that is a `FAIL`: systemd restarts a daemon within seconds.
RESTART_SECONDS = 60
#: The units of each role.
_UNITS = {"worker": "reimzul-worker@*", "repogen": "reimzul-repogen-worker@*", "tosign": "reimzul-signer"}
_SPACE_HINT = "on that host: reimzul prune --dry-run and reimzul scratch list show what can go; or enlarge the disk"


def check_hosts(settings: Settings, *, show_all: bool) -> Iterator[Finding]:
    """Yield a finding for each host with a problem, or for all hosts, after one about all of them."""
    try:
        known = lookup.load_processes(settings)
        with connect(settings) as broker:
            processes = Processes.find(broker, known)
    except WorkersUnavailable as error:
        yield warn(str(error), "" if is_root() else "run reimzul doctor as root").as_finding("hosts")
        return
    except BrokerUnavailable as error:
        yield fail(str(error)).as_finding("hosts")
        return
    judged = judge_hosts(processes, time.time())
    bad = [host for host, result in judged.items() if result.level != OK]
    count = pluralize(len(judged), "host")
    summary = f"{len(bad)} of {count} {'has' if len(bad) == 1 else 'have'} problems" if bad else f"all {count} are well"
    yield ok(summary if judged else "no host has sent a heartbeat yet").as_finding("hosts")
    for host, result in judged.items():
        if show_all or result.level != OK:
            yield result.as_finding(f"host.{host}")


def judge_hosts(processes: Processes, now: float) -> dict[str, Result]:
    """Return the result of each host, by its name."""
    hosts = sorted({each.heartbeat.host for each in (*processes.connected, *processes.vanished)})
    shared = shared_names(processes.connected)
    return {host: combine(_judge_host(host, processes, shared.get(host, ""), now)) for host in hosts}


def _judge_host(host: str, processes: Processes, name_shared: str, now: float) -> Iterator[Result]:
    here = [each for each in processes.connected if each.heartbeat.host == host]
    gone = [each for each in processes.vanished if each.heartbeat.host == host]
    for role in dict.fromkeys([*_UNITS, *(each.role for each in gone)]):  # anybody may send another role
        yield from _judge_vanished(role, [each for each in gone if each.role == role], here, now)
    if name_shared:
        hint = "set a different [worker] fqdn on each host, and use a different number for each unit; restart them"
        yield warn(name_shared, hint)
    for record in here:
        yield from _judge_process(record, now)
    if here:
        yield from _judge_versions(here)
        yield from _judge_clock(here)
        yield ok(_describe_host(here, now))


def _judge_vanished(
    role: str, gone: Sequence[WorkerRecord], here: Sequence[WorkerRecord], now: float
) -> Iterator[Result]:
    if not gone:
        return
    host, seen = gone[0].heartbeat.host, max(each.last_seen for each in gone)
    left = sum(each.role == role for each in here)
    names = join_words([each.heartbeat.instance for each in gone])
    who = f"{role} {names}" if left and role == "worker" else f"its {role}s" if len(gone) > 1 else f"its {role}"
    ago = format_duration(now - seen)
    message = f"{who} vanished, last heard of {ago} ago: killed, or cut off"
    hint = (
        f"on that host: systemctl status '{_UNITS.get(role, role)}', then reimzul doctor; if it is off for good, on "
        f"the controller: reimzul builders --forget {host}"
    )
    report = fail if not left and now - seen > RESTART_SECONDS else warn
    yield report(message, hint)


def _judge_process(record: WorkerRecord, now: float) -> Iterator[Result]:
    sent, unit = record.heartbeat, _unit_of(record)
    name = f"worker {sent.instance}" if record.is_worker else sent.instance
    if record.is_silent(now):
        ago = format_duration(now - record.last_seen)
        hint = f"on that host: journalctl -u {unit}; if it hangs: systemctl restart {unit}"
        yield warn(f"{name} is connected, but has sent no heartbeat for {ago}", hint)
    if sent.state == WorkerState.UNFIT:
        report = warn if ": load: " in sent.why and "; " not in sent.why else fail  # load alone passes by itself
        yield report(f"{name}: {sent.why or 'takes no jobs'}", "on that host: reimzul doctor says what to do")
    if sent.state == WorkerState.QUARANTINED:
        hint = f"reimzul explain the builds that failed there; then reimzul resume {sent.host}"
        yield warn(f"{name}: {sent.why or 'quarantined'}", hint)
    if sent.mock is False:
        hint = "on that host: install mock (docs/install-builder.md), or correct [worker] mock; reimzul doctor"
        yield fail(f"{name} has no mock", hint)
    if not record.is_worker:
        short = describe_short_disk(record, LOW)
        report = fail if describe_short_disk(record, FULL) else warn
        if short:
            yield report(short, _SPACE_HINT)
    for error in sent.errors:
        yield _judge_error(record, name, error, now)


def _unit_of(record: WorkerRecord) -> str:
    number = record.heartbeat.instance.rpartition("-")[2]
    return _UNITS.get(record.role, record.role).replace("*", number)


def _judge_error(record: WorkerRecord, name: str, error: RecentError, now: float) -> Result:
    """An error that came once may have passed by itself; one that came again has not."""
    unit = _unit_of(record)
    about = f" {error.build_id[:8]} {error.arch}" if error.build_id else f" {error.target}" if error.target else ""
    message = f"{name}: {describe_error(record, error, now)}".replace(error.what, f"{error.what}{about}", 1)
    hints = {
        "upload": "on that host: reimzul doctor tries an upload; on bstore: reimzul doctor looks at rsyncd",
        "indexing": f"on that host: state/createrepo/{error.target}.log has the output of createrepo_c; reimzul doctor",
    }
    hint = hints.get(error.what, f"on that host: reimzul doctor; journalctl -u {unit}")
    return (fail if error.count > 1 and not record.is_worker else warn)(message, hint)


def _judge_versions(here: Sequence[WorkerRecord]) -> Iterator[Result]:
    others = sorted({each.heartbeat.version for each in here} - {"", __version__})
    if others:
        hint = "upgrade the older ones (docs/upgrading.md): notifier, bstore, workers, submit, in this order"
        yield warn(f"version {join_words(others)}, the controller has {__version__}", hint)


def _judge_clock(here: Sequence[WorkerRecord]) -> Iterator[Result]:
    skews = [each.skew for each in here if each.skew]
    if skews:
        yield warn(f"its clock is {format_skew(max(skews, key=abs))}", "on that host: timedatectl set-ntp true")


def _describe_host(here: Sequence[WorkerRecord], now: float) -> str:
    """Describe a host without problems: `2 workers (1 building, 1 idle), 40.2 GiB free, version 0.2.0`."""
    parts = []
    for role in _UNITS:
        states = [each.state_at(now) for each in here if each.role == role]
        if states:
            counts = ", ".join(f"{states.count(state)} {state}" for state in dict.fromkeys(states))
            parts.append(f"{pluralize(len(states), role)} ({counts})")
    free = min(each.heartbeat.free_mib for each in here) * 1024**2
    return ", ".join([*parts, f"{format_size(free)} free", f"version {here[0].heartbeat.version or '-'}"])

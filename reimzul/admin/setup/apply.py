# SPDX-License-Identifier: Apache-2.0
"""Applies a plan: compares it with the host, asks for consent, writes files, runs systemctl, then asks doctor.

One setup runs at a time. The file of its lock records the unit restarts and reloads that a failed run still has to do.
It is in /run: after a boot all units run with their present files, and the record is gone with the file.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Callable

import attr
import click

from reimzul.admin.doctor import FAIL, Finding, run_checks
from reimzul.admin.output import print_json
from reimzul.admin.setup import files, roles
from reimzul.admin.setup.files import FileDiff, RootNeeded, System, unit_file
from reimzul.admin.setup.roles import RolePlan, Step
from reimzul.core.cli import load_settings
from reimzul.core.config import find_file
from reimzul.core.errors import EXIT_USAGE, InputError, ReimzulError
from reimzul.core.formatting import pluralize
from reimzul.core.fs import file_lock
from reimzul.core.process import output_of, run

LOCK_FILE = "/run/reimzul-setup"
#: Seconds a command may take: a unit that stops may have a worker in it that ends a build and removes its root.
COMMAND_TIMEOUT = 180
_FIREWALL = "firewall-cmd"


class MissingAnswer(ReimzulError):
    """An answer is needed, and there is no terminal to ask on."""

    exit_code = EXIT_USAGE


@attr.frozen(kw_only=True)
class ApplyOptions:
    """How a person wants it done."""

    yes: bool = False
    as_json: bool = False
    to_stderr: bool = False  #: stdout is for keys

    def print(self, *lines: str) -> None:
        click.echo("".join(f"{line}\n" for line in lines), nl=False, err=self.to_stderr or self.as_json)


@attr.frozen(kw_only=True)
class SetupWork:
    """A plan's differences from the host."""

    diffs: Sequence[FileDiff]
    removed: Sequence[str]
    foreign: Sequence[str] = ()  #: of the removed files, those that a person wrote or changed
    pending: Mapping[str, str]  #: units that still run with the files of before: unit -> `restart` or `reload`
    steps: Sequence[Step]

    def __bool__(self) -> bool:
        return bool(self.diffs or self.removed or self.steps)


@contextlib.contextmanager
def lock_setup(system: System) -> Iterator[int]:
    """Hold the host's lock; yield the descriptor of its file. Raises `ReimzulError` if another setup holds it."""
    path = system.resolve(LOCK_FILE)
    try:
        path.parent.mkdir(exist_ok=True)
        path.touch(mode=0o600)  # readable by others, it could be locked by them
    except PermissionError as error:
        raise RootNeeded(str(path)) from error
    with file_lock(path) as descriptor:
        if descriptor is None:
            raise ReimzulError(f"another reimzul setup runs here ({path} is locked)")
        yield descriptor


def read_pending(lock: int) -> dict[str, str]:
    """The units that an earlier run left: unit -> `restart` or `reload`."""
    try:
        record = json.loads(os.pread(lock, 65536, 0))
        return {unit: verb for verb in ("reload", "restart") for unit in record[verb]}
    except (ValueError, LookupError, TypeError):
        return {}


def write_pending(lock: int, pending: Mapping[str, str]) -> None:
    units = {verb: sorted(unit for unit in pending if pending[unit] == verb) for verb in ("restart", "reload")}
    record = json.dumps(units).encode()
    os.pwrite(lock, record, 0)
    os.ftruncate(lock, len(record))


def prepare(system: System, plan: RolePlan, lock: int | None, first: Iterable[Step] = ()) -> SetupWork:
    """Compare a plan with the host; `first` come before the steps of the units. Raises `ReimzulError`."""
    if not shutil.which("systemctl"):
        raise ReimzulError("systemctl is not here: a farm's hosts run systemd")
    planned = {Path(spec.path).name for spec in plan.files}
    absent = [unit for unit in plan.units if not system.has_unit(unit) and unit_file(unit) not in planned]
    if absent:
        raise ReimzulError(f"not installed here: {', '.join(absent)} (make install installs all that a role needs)")
    pending = {} if lock is None else read_pending(lock)
    diffs = files.compare(system, plan.files)
    affected = {
        **{unit: "reload" for diff in diffs for unit in diff.spec.reloads},
        **pending,
        **{unit: "restart" for diff in diffs for unit in diff.spec.restarts},
        **dict.fromkeys(filter(None, plan.removed.values()), "restart"),
    }
    paths = [*plan.removed, *(diff.spec.path for diff in diffs)]
    reread = bool(pending) or any(path.startswith("/etc/systemd/system/") for path in paths)
    ports = (*firewall_steps(system, plan.ports), *firewall_steps(system, plan.closed_ports, close=True))
    steps = [*first, *ports, *_unit_steps(system, plan, affected, reread)]
    foreign = [path for path in plan.removed if roles.is_foreign(system, path)]
    return SetupWork(diffs=diffs, removed=list(plan.removed), foreign=foreign, pending=affected, steps=steps)


# --- show and agree


def show(work: SetupWork, options: ApplyOptions) -> None:
    if options.as_json:
        changed = [
            {
                "path": diff.spec.path,
                "kind": diff.kind,
                "mode": f"{diff.spec.mode:04o}",
                "asks": diff.needs_consent,
                "diff": list(diff.lines()),
            }
            for diff in work.diffs
        ]
        steps = [{"message": step.description, "argv": list(step.argv)} for step in work.steps]
        print_json({"files": changed, "removed": list(work.removed), "steps": steps})
        return
    options.print(
        *(line for diff in work.diffs for line in (f"would {diff.action} {diff.spec.path}:", *diff.lines())),
        *(f"would remove {path}" for path in work.removed),
        *(f"would {step.description}" for step in work.steps),
        *([] if work else ["nothing to do"]),
    )


def require_consent(system: System, work: SetupWork, options: ApplyOptions) -> None:
    """Ask before a person's text is replaced or removed.

    Raises `MissingAnswer`, and `ReimzulError` where the answer is no.
    """
    replaced = [diff for diff in work.diffs if diff.needs_consent]
    if options.yes or not (replaced or work.foreign):
        return
    options.print(*(line for diff in replaced for line in diff.lines()))
    for path in work.foreign:
        options.print(f"{path}, to be removed:", *(f"-{row}" for row in roles.read_site(system, path).splitlines()))
    names = ", ".join([*(diff.spec.path for diff in replaced), *work.foreign])
    if not sys.stdin.isatty():
        raise MissingAnswer(f"changed by a person: {names}; --yes replaces or removes them. Nothing was changed")
    if not click.confirm(f"{'Replace' if replaced else 'Remove'} {names}?", err=True):
        raise ReimzulError("nothing was changed")


# --- write and run


def write_files(system: System, work: SetupWork, options: ApplyOptions, lock: int) -> None:
    """Write what differs. The units this affects are recorded before: a run that is killed leaves them to the next."""
    if work and system.running:
        write_pending(lock, work.pending)
    for diff in work.diffs:
        backup = files.write(system, diff)
        notes = [f"backup: {backup}"] if backup else list(diff.lines()) if diff.spec.secret else []
        options.print(f"wrote {diff.spec.path}" + (f" ({', '.join(notes)})" if notes else ""))
        if diff.spec.then and system.root == Path("/"):
            output_of(diff.spec.then, timeout=COMMAND_TIMEOUT)
    files.save_checksums(system, work.diffs)
    for path in work.removed:
        backup = files.remove(system, path, keep=path in work.foreign)
        options.print(f"removed {path}" + (f" (backup: {backup})" if backup else ""))


def run_steps(system: System, work: SetupWork, options: ApplyOptions, lock: int) -> None:
    """Run all steps; one that fails stops no other. Raises `ReimzulError` with all that failed."""
    pending = dict(work.pending)

    def forget_unit(step: Step) -> None:
        if step.unit:
            pending.pop(step.unit, None)
            write_pending(lock, pending)

    if failures := list(try_steps(work.steps, options, forget_unit)):
        raise ReimzulError("\n".join(failures))
    write_pending(lock, {})
    if not work:
        options.print("nothing to do")
    elif not system.running:
        options.print("systemd does not run here: enabled units start at the next boot")


def try_steps(
    steps: Iterable[Step], options: ApplyOptions, when_done: Callable[[Step], None] = lambda _: None
) -> Iterator[str]:
    """Run all steps, and yield what failed."""
    for step in steps:
        try:
            _run_step(step)
            options.print(step.done_text)
            when_done(step)
        except ReimzulError as error:
            yield f"cannot {step.description}: {error}"


def _run_step(step: Step) -> None:
    try:
        output_of(step.argv, timeout=COMMAND_TIMEOUT)
    except ReimzulError as error:
        # a daemon that has just ended by an earlier reload cannot be reloaded; its next start reads all files
        if "reload" in step.argv and _property(step.unit, "SubState") == "auto-restart":
            return
        raise ReimzulError(f"{error}{f' (see {step.hint})' if step.hint else ''}") from error


# --- units and ports


def _unit_steps(system: System, plan: RolePlan, affected: Mapping[str, str], reread: bool) -> Iterator[Step]:
    """Disable, enable, start, restart and reload units, where needed. `reread`: files of units have changed."""
    if system.running and reread:
        yield Step(argv=("systemctl", "daemon-reload"), description="reload systemd's units")
    for unit in plan.unwanted:
        yield _unit_step(system, "disable", unit, *(("--now",) if system.running else ()))
    for unit in plan.units:
        if run([*systemctl(system), "is-enabled", "--quiet", unit], timeout=COMMAND_TIMEOUT) != 0:
            yield _unit_step(system, "enable", unit)
    if system.running:
        others = sorted(unit for unit in affected if affected[unit] == "restart" and unit not in plan.units)
        for unit in (*others, *plan.units):
            if verb := _needed_verb(unit, affected.get(unit, "")):
                yield _unit_step(system, verb, unit)


def _needed_verb(unit: str, wanted: str) -> str:
    if wanted == "restart":
        return wanted
    state = _property(unit, "ActiveState")
    # a daemon that was reloaded ends, and is started again after a pause: it is `activating` until then
    if state not in ("active", "activating", "reloading"):
        return "start"
    return "restart" if wanted and state != "active" else wanted


def _unit_step(system: System, verb: str, unit: str, *options: str) -> Step:
    return Step(
        argv=(*systemctl(system), verb, *options, unit),
        description=f"{verb} {unit}",
        hint=f"journalctl -u {unit}",
        unit=unit if verb in ("start", "restart", "reload") else "",
    )


def _property(unit: str, name: str) -> str:
    return output_of(["systemctl", "show", f"--property={name}", "--value", unit], timeout=COMMAND_TIMEOUT).strip()


def systemctl(system: System) -> tuple[str, ...]:
    return ("systemctl",) if system.running else ("systemctl", f"--root={system.root}")


def firewall_steps(system: System, ports: Sequence[int], close: bool = False) -> Iterator[Step]:
    """Open the ports that are still closed, or close the open ones, now and for good; nothing without firewalld."""
    if not ports or not system.running or not shutil.which(_FIREWALL) or not _firewall_agrees("--state"):
        return
    for port in ports:
        for lasting, when in (((), "now"), (("--permanent",), "for good")):
            if _firewall_agrees(*lasting, f"--query-port={port}/tcp") == close:
                argv = (_FIREWALL, *lasting, f"--{'remove' if close else 'add'}-port={port}/tcp")
                yield Step(argv=argv, description=f"{'close' if close else 'open'} port {port} {when} in firewalld")


def _firewall_agrees(*arguments: str) -> bool:
    return run([_FIREWALL, *arguments], timeout=COMMAND_TIMEOUT) == 0


# --- checks around it

#: Seconds before doctor is asked again while it finds failures: daemons that were just started may not listen yet.
RETRY_PAUSES_SECONDS = (1, 2, 4, 8)


def require_known_hosts(names: Iterable[str]) -> None:
    """Raises `InputError` for a host name that this host cannot look up."""
    for name in names:
        try:
            socket.getaddrinfo(name, None)
        except OSError as error:
            why = (error.strerror or "unknown").lower()
            raise InputError(
                f"this host cannot look up {name} ({why}): correct the name, or add it to DNS or /etc/hosts. "
                "Nothing was changed"
            ) from None


def examine_host(system: System, role: str) -> list[Finding]:
    """What doctor finds to fail on this host; nothing for an image, or where systemd does not run."""
    if not system.running or system.root != Path("/"):
        return []
    # all checks, which take as long to import as the rest of setup: a list of keys or a dry run starts without
    from reimzul.admin.doctor.cli import collect_checks
    from reimzul.admin.doctor.host import find_host

    examined = find_host(load_settings(None, verbose=False), find_file(None), (role,), None)
    return [finding for finding in run_checks(collect_checks(examined)) if finding.level == FAIL]


def report_failures(
    examine: Callable[[], list[Finding]],
    options: ApplyOptions,
    ignored: Sequence[str] = (),
    pauses: Sequence[float] = RETRY_PAUSES_SECONDS,
) -> bool:
    """Print what doctor finds to fail on this host, apart from checks that are `ignored`; return whether it does."""
    for pause in (*pauses, None):
        failures = [finding for finding in examine() if finding.name not in ignored]
        if not failures or pause is None:
            break
        time.sleep(pause)
    if failures:
        options.print(f"reimzul doctor finds {pluralize(len(failures), 'failure')} on this host:")
    for finding in failures:
        options.print(f"  {finding.level}  {finding.name}: {finding.message}")
        if finding.hint:
            options.print(f"        -> {finding.hint}")
    return bool(failures)

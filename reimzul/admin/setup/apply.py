# SPDX-License-Identifier: Apache-2.0
"""Applies a plan: compares it with the host, asks for consent, writes files, then runs systemctl. Or only shows it.

One setup runs at a time. The file of its lock records the unit restarts and reloads that a failed run still has to do.
It is in /run: after a boot all units run with their present files, and the record is gone with the file.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import attr
import click

from reimzul.admin.output import print_json
from reimzul.admin.setup import files
from reimzul.admin.setup.files import FileDiff, RootNeeded, System, unit_file
from reimzul.admin.setup.roles import Plan, Step
from reimzul.core.errors import EXIT_USAGE, ReimzulError
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


def prepare(system: System, plan: Plan, lock: int | None, first: Iterable[Step] = ()) -> SetupWork:
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
    steps = [*first, *_firewall_steps(system, plan.ports), *_unit_steps(system, plan, affected, reread)]
    return SetupWork(diffs=diffs, removed=list(plan.removed), pending=affected, steps=steps)


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
        *(line for diff in work.diffs for line in diff.lines()),
        *(f"{path}: removed" for path in work.removed),
        *(step.description for step in work.steps),
        *([] if work else ["nothing to do"]),
    )


def require_consent(work: SetupWork, options: ApplyOptions) -> None:
    """Ask before a person's text is replaced. Raises `MissingAnswer`, and `ReimzulError` where the answer is no."""
    unclear = [diff for diff in work.diffs if diff.needs_consent]
    if not unclear or options.yes:
        return
    options.print(*(line for diff in unclear for line in diff.lines()))
    names = ", ".join(diff.spec.path for diff in unclear)
    if not sys.stdin.isatty():
        raise MissingAnswer(f"changed by a person: {names}; --yes replaces them. Nothing was changed")
    if not click.confirm(f"Replace {names}?", err=True):
        raise ReimzulError("nothing was changed")


# --- write and run


def write_files(system: System, work: SetupWork, options: ApplyOptions, lock: int) -> None:
    """Write what differs. The units this affects are recorded before: a run that is killed leaves them to the next."""
    if work and system.running:
        write_pending(lock, work.pending)
    for diff in work.diffs:
        backup = files.write(system, diff)
        if diff.spec.secret and diff.kind != "mode":
            options.print(*diff.lines())
        else:
            options.print(f"wrote {diff.spec.path}" + (f" (backup: {backup})" if backup else ""))
        if diff.spec.then and system.root == Path("/"):
            output_of(diff.spec.then, timeout=COMMAND_TIMEOUT)
    files.save_checksums(system, work.diffs)
    for path in work.removed:
        with files.translate_write_errors(path):
            system.resolve(path).unlink()
        options.print(f"removed {path}")


def run_steps(system: System, work: SetupWork, options: ApplyOptions, lock: int) -> None:
    """Run all steps; one that fails stops no other. Raises `ReimzulError` with all that failed."""
    failures, pending = [], dict(work.pending)
    for step in work.steps:
        try:
            _run_step(step)
            options.print(step.description)
            if step.unit:
                pending.pop(step.unit, None)
                write_pending(lock, pending)
        except ReimzulError as error:
            failures.append(f"not {step.description}: {error}")
    if failures:
        raise ReimzulError("\n".join(failures))
    write_pending(lock, {})
    if not work:
        options.print("nothing to do")
    elif not system.running:
        options.print("systemd does not run here: enabled units start at the next boot")


def _run_step(step: Step) -> None:
    try:
        output_of(step.argv, timeout=COMMAND_TIMEOUT)
    except ReimzulError as error:
        # a daemon that has just ended by an earlier reload cannot be reloaded; its next start reads all files
        if "reload" in step.argv and _property(step.unit, "SubState") == "auto-restart":
            return
        raise ReimzulError(f"{error}{f' (see {step.hint})' if step.hint else ''}") from error


# --- units and ports


def _unit_steps(system: System, plan: Plan, affected: Mapping[str, str], reread: bool) -> Iterator[Step]:
    """Disable, enable, start, restart and reload units, where needed. `reread`: files of units have changed."""
    if system.running and reread:
        yield Step(argv=("systemctl", "daemon-reload"), description="systemd's units reloaded")
    for unit in plan.unwanted:
        yield _unit_step(system, "disable", unit, *(("--now",) if system.running else ()))
    for unit in plan.units:
        if run([*_systemctl(system), "is-enabled", "--quiet", unit], timeout=COMMAND_TIMEOUT) != 0:
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
        argv=(*_systemctl(system), verb, *options, unit),
        description=f"{unit} {verb}{'d' if verb.endswith('e') else 'ed'}",
        hint=f"journalctl -u {unit}",
        unit=unit if verb in ("start", "restart", "reload") else "",
    )


def _property(unit: str, name: str) -> str:
    return output_of(["systemctl", "show", f"--property={name}", "--value", unit], timeout=COMMAND_TIMEOUT).strip()


def _systemctl(system: System) -> tuple[str, ...]:
    return ("systemctl",) if system.running else ("systemctl", f"--root={system.root}")


def _firewall_steps(system: System, ports: Sequence[int]) -> Iterator[Step]:
    """Open the ports that are still closed, now and for good; no steps where firewalld does not run."""
    if not ports or not system.running or not shutil.which(_FIREWALL) or not _firewall_agrees("--state"):
        return
    for port in ports:
        for lasting, when in (((), "now"), (("--permanent",), "for good")):
            if not _firewall_agrees(*lasting, f"--query-port={port}/tcp"):
                argv = (_FIREWALL, *lasting, f"--add-port={port}/tcp")
                yield Step(argv=argv, description=f"port {port} opened {when} in firewalld")


def _firewall_agrees(*arguments: str) -> bool:
    return run([_FIREWALL, *arguments], timeout=COMMAND_TIMEOUT) == 0

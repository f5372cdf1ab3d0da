# SPDX-License-Identifier: Apache-2.0
"""Applies a plan: compares it with the host, asks for consent, writes files, then runs systemctl. Or only shows it."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

import attr
import click

from reimzul.admin.output import print_json
from reimzul.admin.setup import files, prompts
from reimzul.admin.setup.files import FileDiff
from reimzul.admin.setup.host import COMMAND_TIMEOUT, Step, System, firewall_steps, unit_file
from reimzul.admin.setup.lock import PendingUnits, SetupLock
from reimzul.admin.setup.roles import Plan
from reimzul.core.errors import ReimzulError
from reimzul.core.process import output_of, run


class SetupFailed(ReimzulError):
    """Some of the setup was not done."""


@attr.frozen(kw_only=True)
class ApplyOptions:
    """How a person wants it done."""

    dry_run: bool = False
    yes: bool = False
    as_json: bool = False
    to_stderr: bool = False  #: stdout is for keys

    def print(self, text: str) -> None:
        click.echo(text, err=self.to_stderr or self.as_json)


@attr.frozen(kw_only=True)
class SetupWork:
    """A plan's differences from the host."""

    diffs: Sequence[FileDiff]
    removed: Sequence[str]
    pending: PendingUnits
    steps: Sequence[Step]

    def __bool__(self) -> bool:
        return bool(self.diffs or self.removed or self.steps)


def prepare(system: System, plan: Plan, pending: PendingUnits, first: Sequence[Step] = ()) -> SetupWork:
    """Compare a plan with the host. Raises `ReimzulError` if a service is not installed.

    `pending` is what an earlier run left undone; the steps in `first` come before those of the units.
    """
    if not shutil.which("systemctl"):
        raise ReimzulError("systemctl is not here: a farm's hosts run systemd")
    planned = {Path(spec.path).name for spec in plan.files}
    absent = [unit for unit in plan.units if not system.has_unit(unit) and unit_file(unit) not in planned]
    if absent:
        raise ReimzulError(f"not installed here: {', '.join(absent)} (make install installs all that a role needs)")
    diffs = files.compare(system, plan.files)
    affected = affected_units(plan, diffs, pending)
    paths = [*plan.removed, *(diff.spec.path for diff in diffs)]
    reread = bool(pending) or any(path.startswith("/etc/systemd/system/") for path in paths)
    steps = [*first, *firewall_steps(system, plan.ports), *unit_steps(system, plan, affected, reread)]
    return SetupWork(diffs=diffs, removed=list(plan.removed), pending=affected, steps=steps)


def affected_units(plan: Plan, diffs: Sequence[FileDiff], pending: PendingUnits) -> PendingUnits:
    """The units that have to restart, or to reload, once the plan's files are written."""
    restart = {unit for diff in diffs for unit in diff.spec.restarts} | set(plan.removed.values())
    reload = {unit for diff in diffs for unit in diff.spec.reloads}
    return PendingUnits(restart=pending.restart | restart, reload=pending.reload | reload)


# --- show and agree


def show(work: SetupWork, options: ApplyOptions) -> None:
    if options.as_json:
        print_json(_to_dict(work))
        return
    for line in (line for diff in work.diffs for line in diff.lines()):
        options.print(line)
    for path in work.removed:
        options.print(f"{path}: removed")
    for step in work.steps:
        options.print(step.description)
    if not work:
        options.print("nothing to do")


def _to_dict(work: SetupWork) -> dict[str, object]:
    diffs = [
        {
            "path": diff.spec.path,
            "kind": diff.kind,
            "mode": f"{diff.spec.mode:04o}",
            "asks": diff.needs_consent,
            "diff": list(diff.lines()),
        }
        for diff in work.diffs
    ]
    steps = [{"words": step.description, "argv": list(step.argv)} for step in work.steps]
    return {"files": diffs, "removed": list(work.removed), "steps": steps}


def require_consent(work: SetupWork, options: ApplyOptions) -> None:
    """Ask before a person's text is replaced. Raises `SetupFailed` and `MissingAnswer`."""
    unclear = [diff for diff in work.diffs if diff.needs_consent]
    if not unclear or options.yes:
        return
    for line in (line for diff in unclear for line in diff.lines()):
        options.print(line)
    names = ", ".join(diff.spec.path for diff in unclear)
    if not prompts.has_terminal():
        raise prompts.MissingAnswer(f"changed by a person: {names}; --yes replaces them. Nothing was changed")
    if not click.confirm(f"Replace {names}?", err=True):
        raise SetupFailed("nothing was changed")


# --- write and run


def write_files(system: System, work: SetupWork, options: ApplyOptions, lock: SetupLock) -> None:
    """Write what differs. The units this affects are recorded before: a run that is killed leaves them to the next."""
    if work and system.running:
        lock.write_pending(work.pending)
    for diff in work.diffs:
        backup = files.write(system, diff)
        if diff.spec.secret and diff.kind != "mode":
            options.print("\n".join(diff.lines()))
        else:
            options.print(f"wrote {diff.spec.path}" + (f" (backup: {backup})" if backup else ""))
        if diff.spec.then and system.root == Path("/"):
            output_of(diff.spec.then, timeout=COMMAND_TIMEOUT)
    files.save_checksums(system, work.diffs)
    for path in work.removed:
        files.remove(system, path)
        options.print(f"removed {path}")


def run_steps(system: System, work: SetupWork, options: ApplyOptions, lock: SetupLock) -> None:
    """Run all steps; one that fails stops no other. Raises `SetupFailed` with all that failed."""
    failures, pending = [], work.pending
    for step in work.steps:
        try:
            _run_step(step)
        except ReimzulError as error:
            failures.append(f"not {step.description}: {error}")
            continue
        options.print(step.description)
        if step.unit:
            pending = pending.without_unit(step.unit)
            lock.write_pending(pending)
    if failures:
        raise SetupFailed("\n".join(failures))
    lock.write_pending(PendingUnits())
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


# --- units


def unit_steps(system: System, plan: Plan, affected: PendingUnits, reread: bool) -> Iterator[Step]:
    """Disable, enable, start, restart and reload units, where needed. `reread`: files of units have changed."""
    if system.running and reread:
        yield Step(argv=("systemctl", "daemon-reload"), description="systemd's units reloaded")
    for unit in plan.unwanted:
        yield _unit_step(system, "disable", unit, *(("--now",) if system.running else ()))
    for unit in plan.units:
        if run([*_systemctl(system), "is-enabled", "--quiet", unit], timeout=COMMAND_TIMEOUT) != 0:
            yield _unit_step(system, "enable", unit)
    if system.running:
        for unit in [*sorted(affected.restart - set(plan.units)), *plan.units]:
            verb = _needed_verb(unit, affected)
            if verb:
                yield _unit_step(system, verb, unit)


def _needed_verb(unit: str, affected: PendingUnits) -> str:
    if unit in affected.restart:
        return "restart"
    state = _property(unit, "ActiveState")
    # a daemon that was reloaded ends, and is started again after a pause: it is `activating` until then
    if state not in ("active", "activating", "reloading"):
        return "start"
    if unit not in affected.reload:
        return ""
    return "reload" if state == "active" else "restart"


def _unit_step(system: System, verb: str, unit: str, *options: str) -> Step:
    past = f"{verb}d" if verb.endswith("e") else f"{verb}ed"
    return Step(
        argv=(*_systemctl(system), verb, *options, unit),
        description=f"{unit} {past}",
        hint=f"journalctl -u {unit}",
        unit=unit if verb in ("start", "restart", "reload") else "",
    )


def _property(unit: str, name: str) -> str:
    return output_of(["systemctl", "show", f"--property={name}", "--value", unit], timeout=COMMAND_TIMEOUT).strip()


def _systemctl(system: System) -> tuple[str, ...]:
    return ("systemctl",) if system.running else ("systemctl", f"--root={system.root}")

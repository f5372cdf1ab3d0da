# SPDX-License-Identifier: Apache-2.0
"""Carrying a plan out: shown, agreed to, written, and then asked of systemctl; or shown alone."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Sequence

import attr
import click

from reimzul.admin.output import print_json
from reimzul.admin.setup import asking, firewall, units
from reimzul.admin.setup.begun import Begun, Pending
from reimzul.admin.setup.files import Change, changes
from reimzul.admin.setup.roles import Plan
from reimzul.admin.setup.system import System
from reimzul.admin.setup.units import Step
from reimzul.admin.setup.writing import remember, remove, write
from reimzul.core.errors import ReimzulError


class NotDone(ReimzulError):
    """Some of it did not work out."""


@attr.frozen(kw_only=True)
class Manner:
    """How a person wants it done."""

    dry_run: bool = False
    yes: bool = False
    as_json: bool = False
    quiet: bool = False  #: what is said goes to stderr: stdout is for a secret

    def say(self, text: str) -> None:
        """A line for a person."""
        click.echo(text, err=self.quiet or self.as_json)


@attr.frozen(kw_only=True)
class Work:
    """What there is to do."""

    changes: Sequence[Change]
    removed: Sequence[str]
    concerned: Pending  #: units that run with other files than they are going to have
    steps: Sequence[Step]

    def __bool__(self) -> bool:
        return bool(self.changes or self.removed or self.steps)


def prepare(system: System, plan: Plan, left: Pending, first: Sequence[Step] = ()) -> Work:
    """What a plan comes to on this host as it is, `first` being done before the units'. Raises `ReimzulError`.

    `left` is what an earlier set-up did not come to.
    """
    if not shutil.which("systemctl"):
        raise ReimzulError("systemctl is not here: a farm's hosts run systemd")
    absent = [unit for unit in plan.units if not system.has_unit(unit)]
    if absent:
        raise ReimzulError(f"not installed here: {', '.join(absent)} (make install installs all that a role needs)")
    found = changes(system, plan.files)
    concerned = units.concerned(plan, found, left)
    paths = [*plan.removed, *(change.wanted.path for change in found)]
    reread = bool(left) or any(path.startswith("/etc/systemd/system/") for path in paths)
    steps = [*first, *firewall.steps(system, plan.ports), *units.steps(system, plan, concerned, reread)]
    return Work(changes=found, removed=list(plan.removed), concerned=concerned, steps=steps)


def show(work: Work, manner: Manner) -> None:
    """What would be done."""
    if manner.as_json:
        print_json(_as_json(work))
        return
    for change in work.changes:
        for line in change.lines():
            manner.say(line)
    for path in work.removed:
        manner.say(f"{path}: removed")
    for step in work.steps:
        manner.say(step.words)
    if not work:
        manner.say("nothing to do")


def agree(work: Work, manner: Manner) -> None:
    """Have a person agree to what replaces another's words. Raises `NotDone` and `NobodyToAsk`."""
    asked = [change for change in work.changes if change.asks]
    if not asked or manner.yes:
        return
    for line in (line for change in asked for line in change.lines()):
        manner.say(line)
    names = ", ".join(change.wanted.path for change in asked)
    if not asking.on_terminal():
        raise asking.NobodyToAsk(f"not as set-up would have them: {names}; --yes replaces them. Nothing was changed")
    if not asking.agreed(f"Replace {names}?"):
        raise NotDone("nothing was changed")


def write_files(system: System, work: Work, manner: Manner, begun: Begun) -> None:
    """Write what differs. What that asks of the units is remembered before, in case we do not come to it."""
    if work and system.running:
        begun.keep(work.concerned.restart, work.concerned.reload)
    for change in work.changes:
        kept = write(system, change)
        manner.say(_wrote(change, kept))
    remember(system, work.changes)
    for path in work.removed:
        remove(system, path)
        manner.say(f"removed {path}")


def take_steps(system: System, work: Work, manner: Manner, begun: Begun) -> None:
    """Ask the units for what they have to do; one that fails stops no other. Raises `NotDone` with all that failed."""
    failed = list(_taken(work, manner, begun))
    if failed:
        raise NotDone("\n".join(failed))
    begun.done()
    if not work:
        manner.say("nothing to do")
    elif not system.running:
        manner.say("systemd does not run here: what is enabled starts at the next boot")


def _taken(work: Work, manner: Manner, begun: Begun) -> Iterable[str]:
    left = work.concerned
    for step in work.steps:
        try:
            units.take(step)
        except ReimzulError as error:
            yield f"not {step.words}: {error}"
            continue
        manner.say(step.words)
        if step.unit:
            left = units.without(left, step.unit)
            begun.keep(left.restart, left.reload)


def _wrote(change: Change, kept: str) -> str:
    if change.wanted.secret and change.kind != "mode":
        return "\n".join(change.lines())
    return f"wrote {change.wanted.path}" + (f" (what was there is {kept})" if kept else "")


def _as_json(work: Work) -> dict[str, object]:
    files = [
        {
            "path": change.wanted.path,
            "kind": change.kind,
            "mode": f"{change.wanted.mode:04o}",
            "asks": change.asks,
            "diff": list(change.lines()),
        }
        for change in work.changes
    ]
    steps = [{"words": step.words, "argv": list(step.argv)} for step in work.steps]
    return {"files": files, "removed": list(work.removed), "steps": steps}

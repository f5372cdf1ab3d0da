# SPDX-License-Identifier: Apache-2.0
"""What has to be asked of systemctl so that a role's units are enabled, and run what their files say now."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import attr

from reimzul.admin.setup.begun import Pending
from reimzul.admin.setup.files import Change
from reimzul.admin.setup.roles import Plan
from reimzul.admin.setup.system import System
from reimzul.core.errors import ReimzulError
from reimzul.core.process import output_of, run

#: Seconds a unit may take to start or stop: a worker ends a build and cleans its root up.
PATIENCE = 180


@attr.frozen(kw_only=True)
class Step:
    """One thing that is done."""

    argv: tuple[str, ...]
    words: str  #: what it does, for a person
    hint: str = ""  #: where to look when it fails
    unit: str = ""  #: what runs with its files of now when it is done


def concerned(plan: Plan, changed: Sequence[Change], left: Pending) -> Pending:
    """The units that do not run with what their files say, or are going to say."""
    restart = {unit for change in changed for unit in change.wanted.units}
    reload = {unit for change in changed for unit in change.wanted.reloaded}
    return Pending(restart=left.restart | restart | set(plan.removed.values()), reload=left.reload | reload)


def steps(system: System, plan: Plan, concerned: Pending, reread: bool) -> Iterator[Step]:
    """All that is needed, in order; nothing where all is as it should be. `reread`: systemd does not know its files."""
    if system.running and reread:
        yield Step(argv=("systemctl", "daemon-reload"), words="systemd reads its units anew")
    for unit in plan.unwanted:
        yield _step(system, "disable", unit, "disabled", *(("--now",) if system.running else ()))
    for unit in plan.units:
        if not _is_enabled(system, unit):
            yield _step(system, "enable", unit, "enabled")
    if system.running:
        for unit in [*sorted(concerned.restart - set(plan.units)), *plan.units]:
            yield from _running(system, unit, concerned)


def _running(system: System, unit: str, concerned: Pending) -> Iterator[Step]:
    if unit in concerned.restart:
        yield _step(system, "restart", unit, "restarted")
    elif not _runs(unit):
        yield _step(system, "start", unit, "started")
    elif unit in concerned.reload and _property(unit, "ActiveState") == "active":
        yield _step(system, "reload", unit, "reloaded")
    elif unit in concerned.reload:  # on its way, by an earlier reload: it has nothing in hand yet
        yield _step(system, "restart", unit, "restarted")


def without(concerned: Pending, unit: str) -> Pending:
    """The same when a unit has been seen to."""
    return Pending(restart=concerned.restart - {unit}, reload=concerned.reload - {unit})


def take(step: Step) -> None:
    """Do it. Raises `ReimzulError` with what the program said, and where more is said."""
    try:
        output_of(step.argv, timeout=PATIENCE)
    except ReimzulError as error:
        if not _starts_anew(step):
            raise ReimzulError(f"{error}{f' (see {step.hint})' if step.hint else ''}") from error


def _starts_anew(step: Step) -> bool:
    """Whether a unit could not be reloaded as it has just ended by an earlier one: its next start reads all anew."""
    return "reload" in step.argv and _property(step.unit, "SubState") == "auto-restart"


def making(path: str) -> Step:
    """The step that makes the folders in a file of tmpfiles.d(5)."""
    return Step(argv=("systemd-tmpfiles", "--create", path), words=f"the folders of {path} made")


def _step(system: System, verb: str, unit: str, past: str, *more: str) -> Step:
    argv = (*_systemctl(system), verb, *more, unit)
    seen_to = unit if verb in ("start", "restart", "reload") else ""
    return Step(argv=argv, words=f"{unit} {past}", hint=f"journalctl -u {unit}", unit=seen_to)


def _is_enabled(system: System, unit: str) -> bool:
    return run([*_systemctl(system), "is-enabled", "--quiet", unit], timeout=PATIENCE) == 0


def _runs(unit: str) -> bool:
    """Whether a unit runs, or is about to: a daemon that was reloaded ends, and is started again after a pause."""
    return _property(unit, "ActiveState") in ("active", "activating", "reloading")


def _property(unit: str, name: str) -> str:
    return output_of(["systemctl", "show", f"--property={name}", "--value", unit], timeout=PATIENCE).strip()


def _systemctl(system: System) -> tuple[str, ...]:
    return ("systemctl",) if system.running else ("systemctl", f"--root={system.root}")

# SPDX-License-Identifier: Apache-2.0
"""`python -m tests.faults`: trials, on several farms side by side, and a table of what came of them."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import attr
import click

from tests.faults import batches, room, rough  # noqa: F401  these two register their kinds
from tests.faults.kinds import KINDS
from tests.faults.series import Plan, Series, plan_trials, shared_out, table
from tests.faults.trial import Outcome

#: What CI tries: every kind but those that take long, always with the same seeds.
_CI_FIRST, _CI_MESSAGES = 7000, 1000


@click.command("faults")
@click.option("--kind", "names", multiple=True, type=click.Choice([*KINDS]), help="Only these kinds.")
@click.option("--trials", type=int, help="How many in all; 40 when left out, or 10 of each kind that is asked for.")
@click.option("--seed", type=int, help="With one --kind alone: make that trial again. Else the first trial's seed.")
@click.option("--first", type=int, help="The first trial's seed; those after it count on. By the clock when left out.")
@click.option("--jobs", default=2, show_default=True, help="How many farms side by side.")
@click.option("--messages", default=10_000, show_default=True, help="How many hostile messages there are to be.")
@click.option("--ci", is_flag=True, help="A fixed choice: one trial of each kind, and 1,000 hostile messages.")
@click.option("--plan", help="These trials on one farm: kind:seed,kind:seed, …")
@click.option("--json", "report", type=click.Path(dir_okay=False, path_type=Path), help="Write all outcomes here.")
def command(
    names: Sequence[str],
    trials: int | None,
    seed: int | None,
    first: int | None,
    jobs: int,
    messages: int,
    ci: bool,
    plan: str | None,
    report: Path | None,
) -> None:
    """Do bad things to a farm, one after another, and see that nothing is lost."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that farms and their folders go
    is_repeated = seed is not None and len(names) == 1 and trials is None
    kinds = [KINDS[name] for name in names] or [kind for kind in KINDS.values() if kind.weight]
    if plan is not None:
        room.enter()
        outcomes = list(Series(_read(plan), messages).run())
    elif seed is not None and is_repeated:
        outcomes = side_by_side([[(kinds[0], seed)]], messages)
    elif ci:
        outcomes = side_by_side(shared_out(plan_trials(kinds, len(kinds), _CI_FIRST), jobs), _CI_MESSAGES)
    else:
        given = first if seed is None else seed
        start = int(time.time()) % 1_000_000 if given is None else given
        outcomes = side_by_side(shared_out(plan_trials(kinds, trials or _default_trials(names), start), jobs), messages)
    if plan is None:
        click.echo(table(outcomes))
    if report:
        report.write_text(json.dumps([attr.asdict(outcome) for outcome in outcomes], indent=1) + "\n")
    sys.exit(1 if any(outcome.faults for outcome in outcomes) else 0)


def side_by_side(plans: Sequence[Plan], messages: int) -> list[Outcome]:
    """Each plan by a program of its own, in a room of its own; all outcomes."""
    with tempfile.TemporaryDirectory(prefix="reimzul-faults-") as folder:
        reports = [Path(folder) / str(number) for number, plan in enumerate(plans) if plan]
        argv = [sys.executable, "-m", "tests.faults", f"--messages={messages}"]
        programs = [
            subprocess.Popen([*argv, f"--json={report}", f"--plan={_format_plan(plan)}"])
            for report, plan in zip(reports, [plan for plan in plans if plan])
        ]
        try:
            for program in programs:
                program.wait()
        finally:
            for program in programs:
                program.terminate()
        broken = [report for report in reports if not report.exists()]
        if broken:
            raise SystemExit("the suite itself has failed: see above")
        return [Outcome(**row) for report in reports for row in json.loads(report.read_text())]


def _default_trials(names: Sequence[str]) -> int:
    """How many trials where nobody says; a flood is one that takes its time."""
    return sum(1 if KINDS[name].fresh else 10 for name in names) or 40


def _format_plan(plan: Plan) -> str:
    return ",".join(f"{kind.name}:{seed}" for kind, seed in plan)


def _read(plan: str) -> Plan:
    rows = (row.partition(":") for row in plan.split(","))
    return [(KINDS[name], int(seed)) for name, _, seed in rows]


if __name__ == "__main__":
    command()

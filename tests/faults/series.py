# SPDX-License-Identifier: Apache-2.0
"""Runs trials one after another, on one farm while it has no fault, and reports them."""

from __future__ import annotations

import json
import random
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import attr
import click

from tests.faults.ground import Ground
from tests.faults.kinds import KINDS, Kind
from tests.faults.trial import Outcome, Trial

#: Trials after which a new farm is made: its store is a small disk.
_TRIALS_A_FARM = 40
#: Where the state of a farm that failed is kept.
_HOME = Path(".farm")

#: A trial: a kind, and a seed.
Plan = Sequence[tuple[Kind, int]]


def plan_trials(kinds: Sequence[Kind], trials: int, first: int) -> list[tuple[Kind, int]]:
    """Each kind once, then the weightier more often; those with a farm of their own at the end."""
    weighty = [kind for kind in kinds for _ in range(max(1, kind.weight))]
    wheel = [*kinds, *random.Random(first).sample(weighty, len(weighty))]
    rows = [(wheel[number % len(wheel)], first + number) for number in range(trials)]
    return in_order(rows)


def in_order(rows: Plan) -> list[tuple[Kind, int]]:
    """Those that need another farm than the rest come last."""
    return sorted(rows, key=lambda row: (row[0].mongo, row[0].fresh))


def shared_out(rows: Plan, jobs: int) -> list[list[tuple[Kind, int]]]:
    """The same for several farms side by side: each kind in turn, so that all take about as long."""
    by_kind = sorted(rows, key=lambda row: (-row[0].patience, row[0].name))
    return [in_order(by_kind[number::jobs]) for number in range(jobs)]


class Series:
    """Trials one after another."""

    def __init__(self, plan: Plan, messages: int) -> None:
        self.plan, self.messages = plan, messages
        self._ground: Ground | None = None
        self._folder = Path()
        self._made = 0

    def run(self) -> Iterator[Outcome]:
        """Yield and print each outcome as soon as it is known."""
        try:
            for number, (kind, seed) in enumerate(self.plan, 1):
                outcome = Trial(self._find_ground(kind), kind, seed, self.messages).run()
                self._say(number, outcome)
                if outcome.faults or kind.fresh:
                    self._close(keep=outcome if outcome.faults else None)
                yield outcome
        finally:
            self._close()

    def _find_ground(self, kind: Kind) -> Ground:
        """A farm for a kind: the one that is up, where that will do."""
        self._made += 1
        other = self._ground is not None and bool(self._ground.relayed) != kind.mongo
        if kind.fresh or other or self._made > _TRIALS_A_FARM:
            self._close()
        if self._ground is None:
            self._folder, self._made = Path(tempfile.mkdtemp(prefix="reimzul-faults-")), 1
            self._ground = Ground(
                self._folder, mongo=kind.mongo, roomy=kind.fresh, court=kind.court, clocks=kind.clocks
            ).__enter__()
        return self._ground

    def _close(self, keep: Outcome | None = None) -> None:
        if self._ground is None:
            return
        if keep is not None:
            goal = _HOME.absolute() / f"faults-{keep.kind}-{keep.seed}-{int(time.time())}"
            goal.parent.mkdir(exist_ok=True)
            self._ground.keep(goal)
            (goal / "outcome.json").write_text(json.dumps(attr.asdict(keep), indent=1) + "\n")
            click.echo(f"    its state is kept in {goal}")
            click.echo(f"    again: make faults KIND={keep.kind} SEED={keep.seed}")
        self._ground.close()
        shutil.rmtree(self._folder, ignore_errors=True)
        self._ground = None

    def _say(self, number: int, outcome: Outcome) -> None:
        word = "FAILED" if outcome.faults else "ok"
        click.echo(
            f"{number:4}/{len(self.plan)} {word:6} {outcome.kind:15} seed {outcome.seed:<7} {outcome.builds} builds, "
            f"settled in {outcome.settled:5.1f} of {outcome.took:5.1f} s: {outcome.done}"
        )
        for fault in outcome.faults:
            click.echo(f"    {fault}")
        sys.stdout.flush()


def table(outcomes: Sequence[Outcome]) -> str:
    """A row for each kind, then the figures."""
    lines = ["", f"{'kind':16}{'trials':>7}{'failed':>8}{'builds':>8}{'settled: median':>17}{'worst':>8}"]
    for name in KINDS:
        mine = [outcome for outcome in outcomes if outcome.kind == name]
        lines += [_row(name, mine)] if mine else []
    lines += [_row("all", outcomes), ""]
    figures: dict[str, list[float]] = {}
    for outcome in outcomes:
        for what, value in outcome.measured:
            figures.setdefault(what, []).append(value)
    for what, values in sorted(figures.items()):
        lines.append(f"{what}: {len(values)} times, median {statistics.median(values):.1f}, worst {max(values):.1f}")
    doubles = sum(outcome.doubles for outcome in outcomes)
    lines.append(f"told twice by MQTT, with the same id, where that is documented: {doubles}")
    return "\n".join(lines)


def _row(name: str, mine: Sequence[Outcome]) -> str:
    settled = [outcome.settled for outcome in mine] or [0.0]
    failed = sum(bool(outcome.faults) for outcome in mine)
    builds = sum(outcome.builds for outcome in mine)
    median, worst = statistics.median(settled), max(settled)
    return f"{name:16}{len(mine):>7}{failed:>8}{builds:>8}{median:>15.1f} s{worst:>6.1f} s"

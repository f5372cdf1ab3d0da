# SPDX-License-Identifier: Apache-2.0
"""How long planning a batch takes, and how much memory: `python -m bench.plan`.

The sources are invented, or those of a file (--graph): a line for each, with its name, its packages and its
BuildRequires, separated by tabs; a list's words by spaces; a name that ends with .gz is unpacked. Each plan is made in
a process of its own, which tells what it has used.
"""

from __future__ import annotations

import gzip
import json
import random
import resource
import subprocess
import sys
import time
from pathlib import Path

import click

from bench.report import Figure, progress, tell
from reimzul.core.arch import read_arches
from reimzul.core.capability import Provide
from reimzul.core.listed_packages import PackageContent
from reimzul.plan.contents import TargetContents
from reimzul.plan.document import OrderRule, Plan
from reimzul.plan.edges import CapabilityIndex, PlannedSource
from reimzul.plan.maker import MemberMaker, plan_arch
from reimzul.submit.planning import forecast_members

_ARCH, _TARGET = "x86_64", "c9s"
_BUILDERS = 20
#: Of how many sources an invented one needs packages at most.
_MAX_NEEDS = 12


def read_graph(path: Path) -> list[PlannedSource]:
    with gzip.open(path, "rt") if path.suffix == ".gz" else path.open() as stream:
        rows = [line.rstrip("\n").split("\t") for line in stream]
    return [make_source(name, provides.split(), requires.split()) for name, provides, requires in rows]


def invent_graph(count: int, rng: random.Random) -> list[PlannedSource]:
    """Sources of which a few are needed by many, and some need each other."""
    names = [f"source-{number:05}" for number in range(count)]
    found = []
    for number, name in enumerate(names):
        needs = {names[int(number * rng.random() ** 3)] for _ in range(rng.randint(1, _MAX_NEEDS))} - {name}
        late = {names[rng.randrange(count)]} - {name} if rng.random() < 0.02 else set()
        found.append(make_source(name, [name, f"{name}-devel"], [f"{each}-devel" for each in sorted(needs | late)]))
    return found


def make_source(name: str, provides: list[str], requires: list[str]) -> PlannedSource:
    return PlannedSource(
        name=name, srpm=f"{name}-1-1.src.rpm", evr="1-1", provides=tuple(provides), requires=tuple(requires)
    )


def list_target(sources: list[PlannedSource]) -> TargetContents:
    """A target with an old build of everything."""
    return TargetContents(
        PackageContent(
            name=source.name, arch=_ARCH, epoch="0", evr="0-1", location="", source=source.name, source_evr="0-1",
            provides=tuple(Provide(each, "EQ", "0:0-1") for each in source.provides), requires=(), files=(),
        )
        for source in sources
    )  # fmt: skip


def measure_plan(sources: list[PlannedSource]) -> dict[str, float]:
    """Plan a batch of sources; return what that took."""
    rng = random.Random(1)
    seconds = {each.name: rng.lognormvariate(5, 1) for each in sources}
    contents = list_target(sources)
    began, began_processor = time.monotonic(), time.process_time()
    index = CapabilityIndex({each.name: each for each in sources}, contents)
    arch_plan = plan_arch(_ARCH, f"{_TARGET}.{_ARCH}", index, seconds, OrderRule.REBUILT, {})
    members = MemberMaker(plans=[arch_plan], known=read_arches(), disttag=".el9").make_members()
    plan = Plan(
        batch="0" * 8, target=_TARGET, arches=(_ARCH,), submitter="bench", created=1.0, priority=8192,
        members=tuple(members),
    )  # fmt: skip
    size = len(plan.to_bytes())
    planned, processor = time.monotonic(), time.process_time() - began_processor
    spans = forecast_members(members, [[_ARCH]] * _BUILDERS)
    floor = max(*(each.chain for each in members), sum(seconds.values()) / _BUILDERS)
    return {
        "plan": planned - began,
        "processor": processor,
        "forecast": time.monotonic() - planned,
        "makespan": max(each.end for each in spans.values()) / floor,
        "file": size / 1e6,
        "memory": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }


@click.command()
@click.option("--graph", type=click.Path(exists=True, dir_okay=False, path_type=Path), help="A file of sources.")
@click.option("--sources", "counts", multiple=True, type=int, default=(4_000, 34_288), show_default=True,
              help="How many sources are planned, of the file the first in a shuffled order.")  # fmt: skip
@click.option("--count", default=5, show_default=True, help="How often each plan is made.")
@click.option("--once", is_flag=True, hidden=True)
def command(graph: Path | None, counts: tuple[int, ...], count: int, once: bool) -> None:
    """Plan batches, and tell how long that takes."""
    if once:
        rng = random.Random(1)
        sources = read_graph(graph) if graph else invent_graph(counts[0], rng)
        rng.shuffle(sources)
        click.echo(json.dumps(measure_plan(sources[: counts[0]])))
        return
    figures = []
    for number in counts:
        progress(f"{number} sources")
        runs = [measure_in_process(graph, number) for _ in range(count)]
        goals = {"plan": "2 s" if number <= 4_000 else "5 s", "memory": "300 MiB", "makespan": "1.05"}
        units = {
            "plan": "s",
            "processor": "s",
            "forecast": "s",
            "makespan": "of the floor",
            "file": "MB",
            "memory": "MiB",
        }
        figures += [
            Figure(
                what=f"{name}, {number} sources",
                unit=unit,
                values=[run[name] for run in runs],
                goal=goals.get(name, ""),
            )
            for name, unit in {**units, "memory": "MiB"}.items()
        ]
    tell("plan", figures, {"graph": graph.name if graph else "invented"})


def measure_in_process(graph: Path | None, number: int) -> dict[str, float]:
    words = ["--once", "--sources", str(number), *(["--graph", str(graph)] if graph else [])]
    done = subprocess.run([sys.executable, "-m", "bench.plan", *words], stdout=subprocess.PIPE, check=True)
    found: dict[str, float] = json.loads(done.stdout)
    return found


if __name__ == "__main__":
    command()

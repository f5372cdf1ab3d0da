# SPDX-License-Identifier: Apache-2.0
"""From the call of reimzul-submit to the repodata that lists the build, without mock's time: `python -m bench.latency`.

With it where that time goes: the submitting program, the way to mock, the upload, publishing. Each build comes alone,
when the target has rested; `in a row` are builds submitted the moment the one before is listed, which meet the pace at
which a target is indexed (`reimzul/store/createrepo.py`).
"""

from __future__ import annotations

import statistics
import subprocess
import time
from collections.abc import Iterable, Sequence
from pathlib import Path

import click

from bench.report import Figure, progress, tell
from bench.stand import Stand
from reimzul.core.store_paths import MANIFEST
from reimzul.store import createrepo

#: What is to be reached, by number of packages there are before: noarch, and x86_64 with i386.
_GOALS = {100: ("0.40 s", "0.50 s"), 10_000: ("1.2 s", "1.2 s"), 50_000: ("4 s", "4 s")}
_STEPS = ("submit", "to mock", "upload", "publish")


def measure_build(stand: Stand, source: Path, legs: int) -> dict[str, float]:
    """One build: the seconds of each step, and of all without mock's."""
    before = len(stand.mock_times())
    name = source.name.rsplit("-", 2)[0]
    began, clock = time.monotonic(), time.time() - time.monotonic()
    stand.submit(source)
    submitted = time.monotonic()
    uploaded = stand.wait(lambda: _uploaded(stand, name), f"{name} is uploaded", 60)
    done = stand.wait(lambda: stand.listed(name) >= legs, f"{name} is listed", 120)
    runs = [(first - clock, last - clock) for first, last in stand.mock_times()[before:]]
    steps = (submitted - began, runs[0][0] - submitted, uploaded - min(last for _, last in runs), done - uploaded)
    return {**dict(zip(_STEPS, steps)), "all": done - began - covered(runs)}


def covered(spans: Iterable[tuple[float, float]]) -> float:
    """Seconds in which at least one of some spans lasted."""
    sum_, until = 0.0, float("-inf")
    for first, last in sorted(spans):
        sum_ += max(0.0, last - max(first, until))
        until = max(until, last)
    return sum_


def _uploaded(stand: Stand, name: str) -> bool:
    if any((folder / MANIFEST).exists() for folder in stand.store.spool.iterdir()):
        return True
    return (stand.store.target(stand.target) / name).is_dir()


def measure_createrepo(stand: Stand, *, walk: bool) -> list[float]:
    """Seconds of createrepo_c alone on the same packages: told which they are as repogen tells it, or left to look."""
    outside = stand.folder / ("walk" if walk else "told")
    outside.mkdir()
    told = [] if walk else ["--pkglist", str(stand.store.cache / f"{stand.target}.packages")]
    argv = ["createrepo_c", "-q", "--update", "--skip-stat", "--no-database", "--workers", "2", *told]
    seconds = []
    for _ in range(2 if walk else 4):  # the first makes what the others update
        began = time.monotonic()
        subprocess.run([*argv, "--outputdir", outside, stand.store.target(stand.target)], check=True)
        seconds.append(time.monotonic() - began)
    return seconds[1:]


@click.command()
@click.option("--sizes", default="100,10000,50000", show_default=True, help="Packages there are before, with commas.")
@click.option("--count", default=15, show_default=True, help="Builds of each kind; fewer in large targets.")
def command(sizes: str, count: int) -> None:
    """Submit builds one at a time, and see when each is listed."""
    figures: list[Figure] = []
    for size in map(int, sizes.split(",")):
        figures += measure(size, count if size <= 1000 else max(5, count // 3))
    tell("latency", figures)


def measure(size: int, count: int) -> list[Figure]:
    """The figures in a repository of one size."""
    with Stand(builders=1) as stand:
        progress(f"making {size} packages")
        stand.fill(size)
        told = measure_createrepo(stand, walk=False)
        alone = statistics.median(told)
        figures = [
            Figure(what=f"createrepo_c alone, {size} packages", unit="s", values=told),
            Figure(what="  that looks for them itself", unit="s", values=measure_createrepo(stand, walk=True)),
        ]
        for words, legs, compiled, goal in (("noarch", 1, False, 0), ("x86_64 with i386", 2, True, 1)):
            progress(f"{words}, {size} packages")
            rows = [
                _measure_rested_build(stand, source, legs) for source in stand.sources(count + 1, compiled=compiled)
            ]
            figures += _figures(f"{words}, {size} packages", rows[1:], alone, _GOALS.get(size, ("", ""))[goal])
        if size == min(_GOALS):
            rows = [measure_build(stand, source, 1) for source in stand.sources(count, prefix="row")]
            figures.append(Figure(what="  noarch, in a row", unit="s", values=[row["all"] for row in rows]))
    return figures


def _measure_rested_build(stand: Stand, source: Path, legs: int) -> dict[str, float]:
    """One build, in a target that may be indexed at once, and again for a second leg."""
    last = createrepo.read_run(stand.store.runs(stand.target))
    stand.wait(lambda: last.followed_by(time.time(), time.time()).row == 1, "the target has rested", 90)
    return measure_build(stand, source, legs)


def _figures(what: str, rows: Sequence[dict[str, float]], alone: float, goal: str) -> list[Figure]:
    every = Figure(what=what, unit="s", values=[row["all"] for row in rows], floor=alone, goal=goal)
    steps = [Figure(what=f"  {step}", unit="s", values=[row[step] for row in rows]) for step in _STEPS]
    return [every, *steps]


if __name__ == "__main__":
    command()

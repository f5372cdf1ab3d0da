# SPDX-License-Identifier: Apache-2.0
"""From the call of reimzul-submit to the repodata that lists the build, without mock's time: `python -m bench.latency`.

With it where that time goes: the submitting program, the way to mock, the upload, publishing.
"""

from __future__ import annotations

import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

import click

from bench.report import Figure, progress, tell
from bench.stand import Stand
from reimzul.core.bstore import MANIFEST

#: What issue and original say, by number of packages there are before.
_GOALS = {100: "0.40 s, with i386 0.50 s", 10_000: "1.2 s", 50_000: "4 s"}
_STEPS = ("submit", "to mock", "upload", "publish")


def one(stand: Stand, source: Path, legs: int) -> dict[str, float]:
    """One build: the seconds of each step, and of all without mock's."""
    before = len(stand.mock_times())
    name = source.name.rsplit("-", 2)[0]
    began, clock = time.monotonic(), time.time() - time.monotonic()
    stand.submit(source)
    submitted = time.monotonic()
    uploaded = stand.wait(lambda: _uploaded(stand, name), f"{name} is uploaded", 60)
    done = stand.wait(lambda: stand.listed(name) >= legs, f"{name} is listed", 120)
    runs = [(first - clock, last - clock) for first, last in stand.mock_times()[before:]]
    mock_began, mock_ended = min(run[0] for run in runs), max(run[1] for run in runs)
    steps = (submitted - began, mock_began - submitted, uploaded - mock_ended, done - uploaded)
    return {**dict(zip(_STEPS, steps)), "all": done - began - (mock_ended - mock_began)}


def _uploaded(stand: Stand, name: str) -> bool:
    if any((folder / MANIFEST).exists() for folder in stand.store.spool.iterdir()):
        return True
    return (stand.store.target(stand.target) / name).is_dir()


def floor(stand: Stand) -> float:
    """Seconds of createrepo_c alone, with nothing new, upon a copy of the target's repodata."""
    outside = stand.folder / "floor"
    outside.mkdir()
    argv = ["createrepo_c", "--update", "--skip-stat", "--no-database", "--workers", "2", "-q", "--outputdir"]
    subprocess.run([*argv, outside, stand.store.target(stand.target)], check=True)
    began = time.monotonic()
    subprocess.run([*argv, outside, stand.store.target(stand.target)], check=True)
    return time.monotonic() - began


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
        alone = floor(stand)
        figures = []
        for words, legs, sources in (
            ("noarch", 1, stand.sources(count + 1)),
            ("x86_64 with i386", 2, stand.sources(count + 1, compiled=True)),
        ):
            progress(f"{words}, {size} packages")
            rows = [one(stand, source, legs) for source in sources][1:]  # the first finds all caches cold
            figures += _figures(f"{words}, {size} packages", rows, alone, _GOALS.get(size, ""))
    return figures


def _figures(what: str, rows: Sequence[dict[str, float]], alone: float, goal: str) -> list[Figure]:
    every = Figure(what=what, unit="s", values=[row["all"] for row in rows], floor=alone, goal=goal)
    steps = [Figure(what=f"  {step}", unit="s", values=[row[step] for row in rows]) for step in _STEPS]
    return [every, *steps]


if __name__ == "__main__":
    command()

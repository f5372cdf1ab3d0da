# SPDX-License-Identifier: Apache-2.0
"""What programs cost: starting a command, and daemons that have worked: `python -m bench.processes`."""

from __future__ import annotations

import subprocess
import time

import click

from bench.report import TICKS, Figure, progress, resident, tell, ticks
from bench.stand import TARGET, Stand
from devfarm.processes import own_program

#: Our daemons, one of each kind.
_DAEMONS = ("worker-builder1-1", "repogen-1", "tosign", "notifier")
#: MiB that each daemon may have once it has worked.
_MEMORY_GOAL_MIB = "48"
#: After how many builds the memory is measured: a daemon that grows shows it between the two.
_FEW_BUILDS, _MANY_BUILDS = 20, 200


def starts(stand: Stand, count: int) -> list[Figure]:
    """Seconds of whole processes, and of a Python that does nothing."""
    source = stand.sources(1)[0]
    ini = ["--config", str(stand.farm.ini())]
    commands = {
        "reimzul-submit": stand.farm.submit_command(source, TARGET, "--rebuild"),
        "reimzul --help": [own_program("reimzul"), "--help"],
        "reimzul queues": [own_program("reimzul"), "queues", *ini],
    }
    bare = min(_timed([own_program("python"), "-c", "pass"]) for _ in range(count))
    return [
        Figure(what=name, unit="s", values=[_timed(argv) for _ in range(count)], floor=bare, goal="0.15 s")
        for name, argv in commands.items()
    ]


def _timed(argv: list[str]) -> float:
    began = time.monotonic()
    subprocess.run(argv, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return time.monotonic() - began


def memory_after(stand: Stand, builds: int) -> list[Figure]:
    """MiB resident of each daemon when so many builds in all have been published."""
    done = len(stand.listings.visible(stand.target).packages)
    for source in stand.sources(builds - done, prefix=f"after{builds}"):
        stand.submit(source)
    stand.wait(lambda: len(stand.listings.visible(stand.target).packages) >= builds, f"{builds} builds are listed")
    return [
        Figure(
            what=f"{name}: resident after {builds} builds",
            unit="MiB",
            values=[resident(stand.farm.pids(name)[0])],
            goal=_MEMORY_GOAL_MIB,
        )
        for name in _DAEMONS
    ]


def idle(stand: Stand, seconds: float) -> list[Figure]:
    """Percent of a core that daemons use while they wait."""
    pids = {name: stand.farm.pids(name)[0] for name in _DAEMONS}
    before = {name: ticks(pid) for name, pid in pids.items()}
    time.sleep(seconds)
    shares = {name: (ticks(pid) - before[name]) / TICKS / seconds * 100 for name, pid in pids.items()}
    return [
        Figure(what=f"{name}, idle: processor", unit="% of a core", values=[share], goal="0.3")
        for name, share in shares.items()
    ]


@click.command()
@click.option("--count", default=20, show_default=True, help="How often each command is started.")
@click.option("--seconds", default=60.0, show_default=True, help="How long daemons are watched.")
def command(count: int, seconds: float) -> None:
    """Start commands, and look at daemons that have worked."""
    with Stand(builders=1, repogens=1) as stand:
        progress(f"memory after {_FEW_BUILDS} and {_MANY_BUILDS} builds")
        figures = [*memory_after(stand, _FEW_BUILDS), *memory_after(stand, _MANY_BUILDS)]
        progress(f"daemons at rest, for {seconds:g} s")
        figures += idle(stand, seconds)
        progress("starting commands")
        tell("processes", [*starts(stand, count), *figures])


if __name__ == "__main__":
    command()

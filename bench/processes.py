# SPDX-License-Identifier: Apache-2.0
"""What programs cost: starting a command, and a daemon that has nothing to do: `python -m bench.processes`."""

from __future__ import annotations

import subprocess
import time

import click

from bench.report import TICKS, Figure, progress, resident, tell, ticks
from bench.stand import TARGET, Stand
from devfarm.processes import own_program

#: Our daemons, and how many MiB each may have.
_DAEMONS = {"worker-builder1-1": "25", "repogen-1": "30", "tosign": "30", "notifier": "30"}


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


def idle(stand: Stand, seconds: float) -> list[Figure]:
    """MiB resident, and percent of a core, of daemons that wait."""
    pids = {name: stand.farm.pids(name)[0] for name in _DAEMONS}
    before = {name: ticks(pid) for name, pid in pids.items()}
    time.sleep(seconds)
    figures = []
    for name, pid in pids.items():
        share = (ticks(pid) - before[name]) / TICKS / seconds * 100
        figures.append(Figure(what=f"{name}, idle: resident", unit="MiB", values=[resident(pid)], goal=_DAEMONS[name]))
        figures.append(Figure(what=f"{name}, idle: processor", unit="% of a core", values=[share], goal="0.3"))
    return figures


@click.command()
@click.option("--count", default=20, show_default=True, help="How often each command is started.")
@click.option("--seconds", default=60.0, show_default=True, help="How long daemons are watched.")
def command(count: int, seconds: float) -> None:
    """Start commands, and watch daemons do nothing."""
    with Stand(builders=1) as stand:
        progress(f"daemons at rest, for {seconds:g} s")
        figures = idle(stand, seconds)
        progress("starting commands")
        tell("processes", [*starts(stand, count), *figures])


if __name__ == "__main__":
    command()

# SPDX-License-Identifier: Apache-2.0
"""`make bench`: all benchmarks, one after another, each a program of its own."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import click

#: Every benchmark, and its words of the command line in a full run.
ALL: dict[str, tuple[str, ...]] = {
    "processes": (),
    "latency": (),
    "throughput": (),
    "burst": (),
    "notify": (),
    "recovery": (),
    "large": (),
    "publish": (),
    "live": (),
    "builders": (),
    "admin": (),
    "sync": (),
    "batch": (),
    "batches": (),
    "held": (),
    "pages": (),
    "plan": (),
}


@click.command("bench")
@click.argument("names", nargs=-1, type=click.Choice([*ALL]))
def command(names: tuple[str, ...]) -> None:
    """Run these benchmarks, or all."""
    failed = []
    for name in names or ALL:
        click.echo(f"\n{name}: {_first_line(name)}")
        began = time.monotonic()
        if subprocess.run([sys.executable, "-m", f"bench.{name}", *ALL[name]], check=False).returncode:
            failed.append(name)
        click.echo(f"({time.monotonic() - began:.0f} s)")
    if failed:
        raise SystemExit(f"failed: {', '.join(failed)}")


def _first_line(name: str) -> str:
    """The first line of its docstring."""
    lines = (Path(__file__).parent / f"{name}.py").read_text().splitlines()
    return next(line.strip('"') for line in lines if line.startswith('"""')).split(": `")[0]


if __name__ == "__main__":
    command()

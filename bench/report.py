# SPDX-License-Identifier: Apache-2.0
"""What a benchmark has to say: a table for people, JSON for machines, and beside each figure the floor it stands on."""

from __future__ import annotations

import json
import os
import platform
import re
import statistics
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import attr
import click

#: Where `make bench` leaves its JSON.
RESULTS = Path("build") / "bench"
#: Ticks of a processor's clock a second, as /proc counts them.
TICKS = os.sysconf("SC_CLK_TCK")
#: Of the machine, before the benchmark's own.
_LOAD = os.getloadavg()[0]
_VERSIONS = {
    "beanstalkd": ["beanstalkd", "-v"],
    "createrepo_c": ["createrepo_c", "--version"],
    "rsync": ["rsync", "--version"],
    "stunnel": ["stunnel", "-version"],
    "rpm": ["rpm", "--version"],
    "mosquitto": ["mosquitto", "-h"],
    "nginx": ["nginx", "-v"],
}


@attr.frozen(kw_only=True)
class Figure:
    """One thing measured several times."""

    what: str
    unit: str
    values: Sequence[float]
    floor: float | None = None  #: the same done without us, in the same unit
    goal: str = ""

    @property
    def median(self) -> float:
        """Of the values."""
        return statistics.median(self.values)

    @property
    def high(self) -> float:
        """The 95th of a hundred, or the worst of up to twenty."""
        ordered = sorted(self.values)
        return ordered[min(len(ordered) - 1, int(len(ordered) * 0.95))]

    def row(self) -> tuple[str, ...]:
        """As words of a table."""
        floor = "" if self.floor is None else f"{self.floor:.3g}"
        ratio = f"{self.median / self.floor:.2f}" if self.floor else ""
        median, high = f"{self.median:.3g}", f"{self.high:.3g}"
        return (self.what, str(len(self.values)), median, high, self.unit, floor, ratio, self.goal)

    def raw(self) -> dict[str, Any]:
        """As JSON."""
        return {**attr.asdict(self), "median": self.median, "p95": self.high, "n": len(self.values)}


_HEAD = ("what", "n", "median", "95th", "unit", "floor", "ratio", "goal")


def table(figures: Sequence[Figure]) -> str:
    """The figures, as a table of Markdown that is also readable as it is."""
    rows = [_HEAD, *(figure.row() for figure in figures)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(_HEAD))]
    lines = ["| " + " | ".join(word.ljust(width) for word, width in zip(row, widths)) + " |" for row in rows]
    lines.insert(1, "| " + " | ".join("-" * width for width in widths) + " |")
    return "\n".join(lines)


def tell(name: str, figures: Sequence[Figure], more: dict[str, Any] | None = None) -> None:
    """Print the table and what it was measured on, and write the JSON beside those of the other benchmarks."""
    click.echo(table(figures))
    click.echo(", ".join(f"{word} {value}" for word, value in machine().items()))
    RESULTS.mkdir(parents=True, exist_ok=True)
    told = {
        "name": name,
        "at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "machine": machine(),
        "figures": [figure.raw() for figure in figures],
        **(more or {}),
    }
    (RESULTS / f"{name}.json").write_text(json.dumps(told, indent=1) + "\n")


def machine() -> dict[str, Any]:
    """What this was measured on: processor, cores, memory in GiB, load, versions of the parts."""
    found = re.search(r"^model name\s*: (.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / (1 << 30)
    return {
        "processor": found[1] if found else platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(memory, 1),
        "load_before": _LOAD,
        "commit": _commit(),
        "kernel": platform.release(),
        "python": platform.python_version(),
        **{name: _version(argv) for name, argv in _VERSIONS.items()},
    }


def _commit() -> str:
    said = subprocess.run(["git", "describe", "--always", "--dirty"], capture_output=True, text=True, check=False)
    return said.stdout.strip()


def _version(argv: Sequence[str]) -> str:
    try:
        said = subprocess.run(argv, capture_output=True, text=True, check=False)
    except OSError:
        return ""
    found = re.search(r"\d+(\.\d+)+|\b1\.\d+\b", said.stdout + said.stderr)
    return found[0] if found else ""


def ticks(pid: int) -> int:
    """What a process has used of processors so far, `TICKS` of them a second."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return int(fields[11]) + int(fields[12])


def resident(pid: int) -> float:
    """MiB a process has in memory."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / (1 << 20)


def progress(words: str) -> None:
    """Say what is going on, on stderr."""
    click.echo(f"  {words}", err=True)

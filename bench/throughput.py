# SPDX-License-Identifier: Apache-2.0
"""How many builds a second a farm takes when mock takes no time, with 1, 2 and 4 workers: `python -m bench.throughput`.

All are submitted before the first is taken; the clock runs from then to the repodata that lists the last.
"""

from __future__ import annotations

import re

import click

from bench.report import Figure, progress, tell
from bench.stand import Stand

_GOALS = {1: "4", 2: "6", 4: "8"}
_INDEXED = re.compile(r"indexed for \d+ jobs")


def measure(workers: int, count: int) -> list[Figure]:
    """Builds a second, createrepo_c's runs a second, and packages missing in the end."""
    with Stand(builders=1, workers=workers, repogens=3) as stand:
        progress(f"{workers} workers: making and submitting {count} builds")
        sources = stand.sources(count)
        stand.farm.hold("stunnel-builder1")
        for source in sources:
            stand.submit(source)
        progress(f"{workers} workers: building")
        stand.farm.release("stunnel-builder1")
        began = stand.wait(lambda: stand.mock_times() or stand.store.spool.stat().st_nlink > 2, "the first is taken")
        ended = stand.wait(lambda: len(stand.listings.of(stand.target).packages) >= count, "all are listed")
        logs = (stand.farm.layout.part_log(f"repogen-{number}") for number in (1, 2, 3))
        runs = sum(len(_INDEXED.findall(log.read_text())) for log in logs if log.exists())
        missing = count - len(stand.listings.of(stand.target).packages)
    took = ended - began
    goal = _GOALS.get(workers, "")
    return [
        Figure(what=f"{workers} workers, {count} builds", unit="builds/s", values=[count / took], goal=goal),
        Figure(what="  createrepo_c runs a second", unit="1/s", values=[runs / took], goal="1"),
        Figure(what="  missing in the repodata", unit="packages", values=[missing], goal="0"),
    ]


@click.command()
@click.option("--workers", default="1,2,4", show_default=True, help="How many workers, with commas.")
@click.option("--count", default=100, show_default=True, help="Builds in each run.")
def command(workers: str, count: int) -> None:
    """Build many, and see how fast."""
    tell("throughput", [figure for number in workers.split(",") for figure in measure(int(number), count)])


if __name__ == "__main__":
    command()

# SPDX-License-Identifier: Apache-2.0
"""How many builds a second a farm takes when mock takes no time, with 1, 2 and 4 workers: `python -m bench.throughput`.

All are submitted before the first is taken; the clock runs from then to the repodata that lists the last. What is
missing is looked for when all tubes are empty: by then three repogen workers that met would have lost a package.
"""

from __future__ import annotations

import click

from bench.report import Figure, progress, tell
from bench.stand import Stand
from reimzul.core.beanstalk import CREATEREPO, TOSIGN, Broker
from reimzul.store.listing import read_listing
from reimzul.store.repodata import REPODATA

_GOALS = {1: "4", 2: "6", 4: "8"}


def measure(workers: int, count: int) -> list[Figure]:
    """Builds a second, createrepo_c's runs a second, and packages missing in the end."""
    with Stand(builders=1, workers=workers, repogens=3) as stand:
        progress(f"{workers} workers: making and submitting {count} builds")
        sources = stand.sources(count)
        stand.farm.hold("stunnel-builder1")
        for source in sources:
            stand.submit(source)
        progress(f"{workers} workers: building")
        with stand.farm.broker() as broker:
            stand.farm.release("stunnel-builder1")
            began = stand.wait(lambda: broker.tube_stats(stand.farm.arch).ready < count, "the first is taken")
            ended = stand.wait(lambda: len(stand.listings.visible(stand.target).packages) >= count, "all are listed")
            stand.wait(lambda: _quiet(stand, broker), "everything is done")
        runs = stand.indexed()
        names = {path.partition("/")[0] for path in read_listing(stand.store.target(stand.target) / REPODATA)}
    took = ended - began
    goal = _GOALS.get(workers, "")
    return [
        Figure(what=f"{workers} workers, {count} builds", unit="builds/s", values=[count / took], goal=goal),
        Figure(what="  createrepo_c runs a second", unit="1/s", values=[runs / took], goal="1"),
        Figure(what="  missing in the repodata", unit="packages", values=[count - len(names)], goal="0"),
    ]


def _quiet(stand: Stand, broker: Broker) -> bool:
    """Whether nothing waits and nothing is under way: what the repodata lists now is what it lists."""
    states = [broker.tube_stats(name) for name in (stand.farm.arch, CREATEREPO.name, TOSIGN.name)]
    return not any(state.ready or state.reserved or state.delayed for state in states)


@click.command()
@click.option("--workers", default="1,2,4", show_default=True, help="How many workers, with commas.")
@click.option("--count", default=100, show_default=True, help="Builds in each run.")
def command(workers: str, count: int) -> None:
    """Build many, and see how fast."""
    tell("throughput", [figure for number in workers.split(",") for figure in measure(int(number), count)])


if __name__ == "__main__":
    command()

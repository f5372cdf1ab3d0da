# SPDX-License-Identifier: Apache-2.0
"""Many finished builds at once into a target that has many packages: `python -m bench.burst`.

The uploads lie in the spool as workers leave them; the clock runs from the last request to the repodata that lists all.
"""

from __future__ import annotations

import time
from datetime import datetime, timedelta, timezone

import click

from bench.report import Figure, progress, tell
from bench.stand import Stand
from reimzul.core.beanstalk import CREATEREPO, PRIORITY
from reimzul.core.message import RepogenRequest
from tests import srpms, uploads


def measure(size: int, count: int) -> list[Figure]:
    """Seconds until all are listed."""
    with Stand(builders=1, repogens=3) as stand:
        progress(f"making {size} packages")
        stand.fill(size)
        progress(f"uploading {count} builds")
        requests, before = _uploads(stand, count), stand.indexed()
        with stand.farm.broker() as broker:
            for request in requests:
                broker.put(CREATEREPO, request, priority=PRIORITY)
        began = time.monotonic()
        goal = size + count
        ended = stand.wait(lambda: len(stand.listings.visible(stand.target).packages) >= goal, "all are listed")
        runs = stand.indexed() - before
    return [
        Figure(what=f"{count} builds into {size} packages", unit="s", values=[ended - began], goal="15 s"),
        Figure(what="  createrepo_c runs", unit="runs", values=[runs]),
    ]


def _uploads(stand: Stand, count: int) -> list[RepogenRequest]:
    """Legs in the spool, all of one small package, each of a second of its own."""
    made = srpms.make_rpm(stand.folder, "leaf", srpms.noarch("leaf"))
    rpms = {made.name: (made.read_bytes(), "leaf-1.0-1.noarch")}
    asked = []
    for number in range(count):
        timestamp = f"{datetime(2024, 1, 2, tzinfo=timezone.utc) + timedelta(seconds=number):%Y%m%d%H%M%S}"
        request = uploads.request(
            srpm="leaf-1.0-1.src.rpm", arch=stand.farm.arch, target=stand.target, timestamp=timestamp
        )
        asked.append(uploads.upload(stand.store, rpms, of=request, arch=request.arch, pkgname="leaf", evr="1.0-1"))
    return asked


@click.command()
@click.option("--size", default=10_000, show_default=True, help="Packages there are before.")
@click.option("--count", default=1000, show_default=True, help="Builds that come at once.")
def command(size: int, count: int) -> None:
    """Publish a burst, and see how long that takes."""
    tell("burst", measure(size, count))


if __name__ == "__main__":
    command()

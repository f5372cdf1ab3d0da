# SPDX-License-Identifier: Apache-2.0
"""A large package on its way to the store: `python -m bench.large`.

The floor is a bare rsync of the same bytes through the same stunnel, before and after each of ours, all written to the
disk in between: what one leaves to be written slows the next.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import time
from pathlib import Path

import click

from bench.report import Figure, progress, resident, tell
from bench.stand import TARGET, Stand
from reimzul.core.store_paths import MANIFEST
from reimzul.worker.upload import NODELAY
from tests import srpms

#: Seconds between two looks at how much memory the worker has.
_LOOK = 0.05


def make(stand: Stand, mib: int) -> Path:
    """A package of so many MiB that nothing compresses."""
    payload = stand.folder / "payload"
    with payload.open("wb") as stream:
        for _ in range(mib):
            stream.write(os.urandom(1 << 20))
    copy = f"cp {payload} %{{buildroot}}/usr/share/large/big; "
    spec = srpms.noarch("large").replace("echo large >", copy + "echo large >")
    package = srpms.make_rpm(stand.folder, "large", "%define _binary_payload w0.gzdio\n" + spec)
    payload.unlink()
    return package


def measure_rsync(stand: Stand, package: Path) -> float:
    """MiB a second of an rsync alone, from a builder through its stunnel into the spool."""
    where = stand.farm.plan.upload_url("builder1") + "spool/bench-bare/"
    os.sync()
    began = time.monotonic()
    subprocess.run(["rsync", "--times", "--chmod=D0755,F0644", NODELAY, package, where], check=True)
    took = time.monotonic() - began
    for path in (stand.store.spool / "bench-bare").iterdir():
        path.unlink()
    (stand.store.spool / "bench-bare").rmdir()
    return package.stat().st_size / (1 << 20) / took


def measure_upload(stand: Stand, source: Path, size: float) -> tuple[float, float]:
    """MiB a second from mock's end to the manifest in the spool, and the most MiB the worker had meanwhile."""
    before = len(stand.mock_times())
    os.sync()
    clock = time.time() - time.monotonic()
    pid = stand.farm.pids("worker-builder1-1")[0]
    stand.submit(source)
    most, deadline = 0.0, time.monotonic() + 600
    while _manifests(stand) <= before:
        if time.monotonic() > deadline:
            raise SystemExit("the upload never ended")
        most = max(most, resident(pid))
        time.sleep(_LOOK)
    ended = stand.mock_times()[before][1] - clock
    return size / (time.monotonic() - ended), most


def _manifests(stand: Stand) -> int:
    placed = stand.store.target(stand.target) / "large"
    return len(list(stand.store.spool.glob(f"*/{MANIFEST}"))) + len(list(placed.glob(f"*/*/{MANIFEST}")))


@click.command()
@click.option("--mib", default=1024, show_default=True, help="The size of the package.")
@click.option("--count", default=3, show_default=True, help="How often.")
def command(mib: int, count: int) -> None:
    """Build something large, and see how fast it travels."""
    with Stand(builders=1) as stand:
        progress(f"making a package of {mib} MiB")
        package = make(stand, mib)
        size = package.stat().st_size / (1 << 20)
        leave = stand.mock / "leave" / f"{TARGET}.{stand.farm.arch}"
        for path in leave.glob("*.rpm"):
            path.unlink()
        os.link(package, leave / package.name)
        source = srpms.make_srpm(stand.farm.layout.incoming, "large", srpms.noarch("large"))
        floors, rows = [], []
        measure_rsync(stand, package)  # the first finds nothing in memory
        for _ in range(count):
            progress("bare rsync, ours, bare rsync")
            floors.append(measure_rsync(stand, package))
            rows.append(measure_upload(stand, source, size))
            stand.wait(lambda: len(stand.listings.visible(stand.target).packages) >= len(rows), "it is listed")
            floors.append(measure_rsync(stand, package))
        floor = statistics.median(floors)
        speeds, memory = zip(*rows)
        what = f"{mib} MiB, mock's end to manifest"
        tell(
            "large",
            [
                Figure(what=f"{mib} MiB, bare rsync", unit="MiB/s", values=floors),
                Figure(what=what, unit="MiB/s", values=speeds, floor=floor, goal="85 %"),
                Figure(what="  the worker's memory meanwhile", unit="MiB", values=memory),
            ],
        )


if __name__ == "__main__":
    command()

# SPDX-License-Identifier: Apache-2.0
"""What it costs to send growing logs on: `python -m bench.live`.

Real rsync through two real stunnels, called as a worker calls it, with 3 kB more to send each time. Processor time is
the kernel's count: of the rsyncs themselves, and of the daemons they speak to.
"""

from __future__ import annotations

import os
import resource
import tempfile
import time
from pathlib import Path

import click

from bench.report import TICKS, Figure, tell
from devfarm.farm import Farm
from reimzul.core import fs
from reimzul.core.process import run
from reimzul.core.store_paths import StoreUrls
from reimzul.worker.upload import STREAMED_LOGS, LogStreamer

_MORE = 3000
_PARTS = ("rsyncd", "stunnel-builder1", "stunnel-bstore")


def measure_processor(farm: Farm, part: str) -> float:
    """Seconds of processor a part and what it ran have used."""
    found = 0.0
    for pid in farm.pids(part):
        said = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
        found += sum(map(int, said[11:15])) / TICKS
    return found


def measure_children() -> float:
    """Seconds of processor that programs which we ran have used."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


@click.command("live")
@click.option("--calls", default=100, show_default=True, help="How often something is sent.")
def command(calls: int) -> None:
    """Send growing logs again and again; milliseconds of processor a call."""
    with tempfile.TemporaryDirectory(prefix="reimzul-bench-") as folder:
        results = Path(folder) / "result"
        results.mkdir()
        logs = [results / name for name in STREAMED_LOGS]
        for log in logs:
            log.write_bytes(b"x" * 200_000)
        with Farm(Path(folder) / "farm", builders=1, own_daemons=False) as farm:
            fs.create_store_dirs(farm.layout.store)
            urls = StoreUrls("", farm.plan.upload_url("builder1"))
            url = urls.live_upload("0" * 32, "x86_64", "1-00000000")
            argv = LogStreamer("rsync", (), urls, interval=2).argv(logs, url)
            run(argv, output=Path(folder) / "out")
            before, mine = {part: measure_processor(farm, part) for part in _PARTS}, measure_children()
            for _ in range(calls):
                with logs[0].open("ab") as grown:
                    grown.write(os.urandom(_MORE))
                assert run(argv, output=Path(folder) / "out") == 0
            time.sleep(1.0)  # the last child of rsyncd is counted when it is gone
            costs = {
                "rsync": measure_children() - mine,
                **{part: measure_processor(farm, part) - before[part] for part in _PARTS},
            }
    figures = [
        Figure(what=f"{name}, a call", unit="ms", values=(seconds / calls * 1000,), goal="40 in all")
        for name, seconds in costs.items()
    ]
    tell("live", figures)


if __name__ == "__main__":
    command()

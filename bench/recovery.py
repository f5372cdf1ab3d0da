# SPDX-License-Identifier: Apache-2.0
"""How soon a sink that was away has everything, counted from its first success: `python -m bench.recovery`.

The MQTT broker is stopped for ten seconds, then for longer (--long; an hour is what docs/performance.md reports), while
results are announced. The other sinks are there all the time.
"""

from __future__ import annotations

import shutil
import tempfile
import time
from pathlib import Path

import click

from bench.notify import Bench, result
from bench.report import Figure, progress, tell
from reimzul.core.beanstalk import Broker
from tests.waiting import until

#: Results that are announced while the broker is away.
_RESULTS = 100
_GOAL_SECONDS = "2"


def recover(bench: Bench, broker: Broker, seconds: float, first: int) -> Figure:
    """Stop the MQTT broker, announce results, start it again; the time from its first message to its last."""
    before = _count(bench)
    bench.mqtt.stop()
    for number in range(first, first + _RESULTS):
        broker.announce(result(number))
    time.sleep(seconds)  # the outage that is measured
    bench.mqtt.start()
    until(lambda: _count(bench) > before, 600, "the broker gets its first message")
    began = time.monotonic()
    until(lambda: _count(bench) >= before + _RESULTS, 600, "the broker has all")
    return Figure(
        what=f"MQTT after {seconds:g} s away: first success to last",
        unit="s",
        values=[time.monotonic() - began],
        goal=_GOAL_SECONDS,
    )


def _count(bench: Bench) -> int:
    return sum(bench.counts()["mqtt"]().values())


@click.command()
@click.option("--long", default=60.0, show_default=True, help="Seconds of the second outage.")
def command(long: float) -> None:
    """Stop and start a sink, and see how soon it has everything."""
    folder = Path(tempfile.mkdtemp(prefix="reimzul-bench-"))
    bench = Bench(folder, 0)
    figures = []
    try:
        with bench.beanstalkd.connect() as broker:
            broker.announce(result(0))
            until(lambda: _count(bench) == 1, 20, "the notifier is at work")
            for first, seconds in ((1, 10.0), (1 + _RESULTS, long)):
                progress(f"MQTT broker away for {seconds:g} s")
                figures.append(recover(bench, broker, seconds, first))
    finally:
        bench.close()
        shutil.rmtree(folder)
    tell("recovery", figures)


if __name__ == "__main__":
    command()

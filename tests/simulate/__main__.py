# SPDX-License-Identifier: Apache-2.0
"""`python -m tests.simulate`: run seeds; a failing one is repeated by `--seed X`."""

from __future__ import annotations

import argparse
import gc
import logging
import multiprocessing
import os
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial

from tests.simulate import scheduler
from tests.simulate.run import Result, memory_folder, run_seed


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.simulate", description=__doc__)
    parser.add_argument("--seeds", type=int, default=100, help="how many seeds")
    parser.add_argument("--first", type=int, default=1, help="the first of them")
    parser.add_argument("--seed", type=int, help="only this seed")
    parser.add_argument("--jobs", type=int, default=len(os.sched_getaffinity(0)), help="processes side by side")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="begin no further seed after so long")
    parser.add_argument("--fail-fast", action="store_true", help="end at the first seed that fails")
    parser.add_argument("--trace", action="store_true", help="print every step and the daemons' logs (with --seed)")
    given = parser.parse_args()
    if not given.trace:
        logging.disable(logging.CRITICAL)
    if given.seed is not None:
        result = run_seed(given.seed, _make_tracer() if given.trace else None)
        _report(result)
        print(f"{result.steps} steps, {result.virtual:.0f} virtual seconds, digest {result.digest:08x}")
        return int(bool(result.broken))
    return _run_many(
        range(given.first, given.first + given.seeds), given.jobs, given.seconds, fail_fast=given.fail_fast
    )


def _make_tracer() -> Callable[[str], None]:
    def trace(line: str) -> None:
        print(f"{scheduler.world.now:10.3f} {line}", file=sys.stderr)

    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            trace(f"    {scheduler.world.current.process.name}: {self.format(record)}")

    logging.basicConfig(level=logging.DEBUG, handlers=[Handler()])
    return trace


def _run_many(seeds: range, jobs: int, seconds: float, *, fail_fast: bool) -> int:
    began, failed, steps, faults, done = time.monotonic(), [], 0, 0, 0
    context = multiprocessing.get_context("fork")
    gc.freeze()  # what is imported stays: no process needs to look through it again
    with (  # the folder: seeds that are stopped leave theirs
        tempfile.TemporaryDirectory(prefix="simulate-", dir=memory_folder()) as top,
        context.Pool(jobs, maxtasksperchild=250) as pool,
    ):
        for result in pool.imap_unordered(partial(run_seed, top=top), seeds, chunksize=4):
            steps, faults, done = steps + result.steps, faults + len(result.faults), done + 1
            if result.broken:
                failed.append(result.seed)
                _report(result)
                if fail_fast:
                    break
            if time.monotonic() - began > seconds:
                break
        pool.terminate()
    took = time.monotonic() - began
    print(
        f"{done} seeds, {faults} faults, {steps} steps in {took:.0f} s: {done / took:.1f} seeds/s with {jobs} processes"
    )
    print(f"{len(failed)} failed{': ' if failed else ''}{' '.join(map(str, sorted(failed)))}")
    return int(bool(failed))


def _report(result: Result) -> None:
    if not result.broken:
        return
    print(f"seed {result.seed} broke a promise (python -m tests.simulate --seed {result.seed} --trace):")
    for line in (*result.broken[:12], *(f"  after {fault}" for fault in result.faults)):
        print(f"  {line}", flush=True)


if __name__ == "__main__":
    sys.exit(main())

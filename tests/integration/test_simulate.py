# SPDX-License-Identifier: Apache-2.0
"""The simulator itself: a seed always does the same, and a fault that is planted is found."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

_BEGIN = """
import logging
logging.disable()
from tests.simulate import run
from tests.simulate.run import run_seed
"""
_END = """
print(next((line for seed in range(1, 200) for line in run_seed(seed).broken if SAID in line), "nothing"))
"""
_ALL_BATCHES = """
run.BATCH_SHARE = 1
"""
#: The worker deletes its job before it has built anything.
_LOSE_JOB = """
from reimzul.worker.daemon import Worker
build = Worker._build
def lose(worker, request, session):
    session.claim.stats
    session.claim.delete()
    build(worker, request, session)
Worker._build = lose
"""
#: A builder's fault of one leg is forgotten where the other has its result.
_LOSE_LEG = """
from reimzul.worker.build import BuildAttempt
from reimzul.worker.model import BuilderFault
build = BuildAttempt._build_legs
def forget(attempt):
    try:
        build(attempt)
    except BuilderFault:
        if not attempt.announced:
            raise
BuildAttempt._build_legs = forget
"""
#: Two repogens index one target at the same time.
_NO_LOCK = """
from tests.simulate import files
files._flock = lambda *_: None
"""
#: What a member needs counts as published at once.
_IGNORE_NEEDS = f"""{_ALL_BATCHES}from reimzul.plan.state import BatchState
BatchState.is_met = lambda *_: True
"""
#: A pause does not keep members from being released.
_IGNORE_PAUSE = f"""{_ALL_BATCHES}from reimzul.batch import daemon
decide = daemon.decide
def ignore(state, around):
    paused, state.is_paused = state.is_paused, False
    try:
        return decide(state, around)
    finally:
        state.is_paused = paused
daemon.decide = ignore
"""


def run(*words: str, seed_of_hashes: str = "0") -> str:
    """Run Python in a process of its own: the simulator imports the product on a clock of its own."""
    environment = {**os.environ, "PYTHONHASHSEED": seed_of_hashes}
    done = subprocess.run(
        [sys.executable, *words],
        cwd=Path(__file__).parents[2],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_a_seed_always_does_the_same() -> None:
    first, second = (run("-m", "tests.simulate", "--seed", "9", seed_of_hashes=each) for each in ("1", "2"))
    assert "steps" in first
    assert first == second


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        (_LOSE_JOB, "ended as"),
        (_LOSE_LEG, "i386 ended as"),
        (_NO_LOCK, "is not listed"),
        (_IGNORE_NEEDS, "was built before"),
        (_IGNORE_PAUSE, "while the batch was paused"),
    ],
)
def test_a_fault_that_is_planted_is_found(fault: str, said: str) -> None:
    assert said in run("-c", f"{_BEGIN}SAID = {said!r}\n{fault}{_END}")

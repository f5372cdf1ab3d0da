# SPDX-License-Identifier: Apache-2.0
"""`python -m tests.hosts`: boots a farm of machines and runs the proofs on it, or holds it up to be looked at."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from pathlib import Path
from types import FrameType

import click
import pytest

from tests.hosts import base, room
from tests.hosts.farm import bring_up_farm

#: Seconds a run that is interrupted has to say what it has found.
_PATIENCE = 10


@click.command("farm-test", context_settings={"ignore_unknown_options": True})
@click.option("--hold", is_flag=True, help="Prove nothing; keep the farm up until Ctrl-C.")
@click.option("--on", is_flag=False, flag_value="", help="Run the proofs on the farm that another run, RUN, holds up.")
@click.option("--base", "only_base", is_flag=True, help="Only make what machines are made of.")
@click.argument("words", nargs=-1, type=click.UNPROCESSED)
def command(hold: bool, on: str | None, only_base: bool, words: tuple[str, ...]) -> None:
    """Boot a controller, two builders, a bstore and a customer, and prove that they are a farm.

    WORDS are pytest's: -k link, -x.
    """
    folder = room.find_run_folder()
    if folder is None:
        try:
            room.check_host()
            sys.exit(_run_outside(on))
        except room.NotHere as error:
            sys.exit(f"farm-test: {error}")
    signal.signal(signal.SIGTERM, _interrupt)
    if on is None:
        room.furnish(folder)
    if only_base:
        base.base()
    elif hold:
        _hold(folder)
    else:
        argv = ["tests/hosts", "-q", "--no-header", "--tb=short", "-p", "no:cacheprovider"]
        argv += ["-o", "python_files=proof_*.py", "-o", "console_output_style=classic"]
        sys.exit(pytest.main([*argv, *words]))


def _run_outside(on: str | None) -> int:
    words = sys.argv[1:]
    if on is None:
        return room.run_inside(words)
    held = [folder for folder in room.runs() if folder.name.startswith(on)]
    if len(held) != 1:
        names = ", ".join(folder.name for folder in room.runs()) or "none"
        raise room.NotHere(f"--on: not one farm that is up has the name {on!r}; these are up: {names}")
    return room.join(held[0], words)


def _hold(folder: Path) -> None:
    held = bring_up_farm(folder)
    print(f"farm-test: up, in {folder}; proofs on it: python -m tests.hosts --on {folder.name} -k …", flush=True)
    for machine in held.machines:
        print(f"    nsenter -t {machine.leader()} -a    # {machine.name}, in the room", flush=True)
    with contextlib.suppress(KeyboardInterrupt):
        signal.pause()


def _interrupt(number: int, frame: FrameType | None) -> None:
    """pytest says what it has found so far. A command on a machine may keep it from that: then it is just the end."""
    signal.signal(signal.SIGALRM, lambda number, frame: os._exit(130))
    signal.alarm(_PATIENCE)
    raise KeyboardInterrupt


if __name__ == "__main__":
    command()

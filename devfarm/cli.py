# SPDX-License-Identifier: Apache-2.0
"""`reimzul-devfarm`: a whole farm on this machine, to look at, to try and to test."""

from __future__ import annotations

import contextlib
import shlex
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import NoReturn

import click

from devfarm import reaper
from devfarm.demo import TARGET, Demo, tidy
from devfarm.farm import Farm
from devfarm.plan import TOPIC
from devfarm.screen import Screen
from devfarm.supervisor import GRACE_OF_ALL, PartFailed
from reimzul.core.cli import EXIT_CODES, run_command
from reimzul.core.config import FILE_VARIABLE
from reimzul.core.errors import InputError

#: Where farms have their state folders, and the sources that were fetched, in the current folder.
HOME = Path(".farm")
#: Seconds we have to end a farm before our reaper does it.
_GRACE = GRACE_OF_ALL + 15

STATE = click.option(
    "--state",
    type=click.Path(file_okay=False, path_type=Path),
    metavar="DIR",
    help=f"Where all of the farm lies: a new folder in ./{HOME} when left out. A farm that lies there goes on.",
)


@click.group("reimzul-devfarm", epilog=EXIT_CODES)
def command() -> None:
    """A whole farm on this machine: every daemon, every connection through TLS, on ports of loopback alone.

    It is for looking, trying and testing. No process of it outlives the command, and nothing outside its folder
    changes.
    """


@command.command()
@click.option(
    "--srpm",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    metavar="PATH",
    help="Build this source rpm instead of the demo's own.",
)
@click.option("--keep", is_flag=True, help="Keep keys, caches and checkouts too, not only what was built and logged.")
@STATE
def demo(srpm: Path | None, keep: bool, state: Path | None) -> None:
    """Build real packages from end to end, and have a real dnf find them."""
    farm = Farm(state or _new_folder("demo"), targets=(TARGET,))
    with contextlib.ExitStack() as at_the_end:
        at_the_end.enter_context(_interruptible())
        if not keep and state is None:
            at_the_end.callback(tidy, farm.layout)
        at_the_end.callback(farm.stop)
        Demo(farm=farm, cache=(state or HOME).absolute() / "cache", screen=Screen()).run(srpm)


@command.command()
@click.option("--builders", type=click.IntRange(1, 16), default=2, show_default=True, help="How many builders.")
@click.option("--workers", type=click.IntRange(1, 8), default=1, show_default=True, help="How many workers on each.")
@STATE
def up(builders: int, workers: int, state: Path | None) -> None:
    """Keep a farm up in the foreground, until Ctrl-C."""
    farm = Farm(state or _new_folder("up"), builders=builders, workers=workers, targets=(TARGET,))
    screen = Screen()
    with contextlib.ExitStack() as at_the_end:
        at_the_end.enter_context(_interruptible())
        at_the_end.callback(farm.stop)
        screen.title(f"A farm of {len(farm.hosts)} hosts on this machine, in {farm.layout.state}")
        farm.up(screen.say)
        screen.title("How to use it")
        screen.text(instructions(farm))
        farm.wait()
    raise PartFailed(f"the farm ended by itself; {farm.layout.log / 'supervisord.log'} tells why")


def instructions(farm: Farm) -> str:
    """What to type to use a farm, ready to be pasted into a shell."""
    layout, programs = farm.layout, shlex.quote(str(Path(sys.executable).parent))
    listen = shlex.join(farm.listen_command(f"{TOPIC}/builds/events"))
    return f"""\
In another terminal:
  export PATH={programs}:$PATH {FILE_VARIABLE}={shlex.quote(str(farm.ini()))}
  reimzul-submit -s path/to/any.src.rpm -a {farm.arch} -t {TARGET} -d .demo
  reimzul builds
  reimzul queues
  reimzul doctor --role all --canary
  supervisorctl -c {shlex.quote(str(farm.supervisor.config))} status

repository       {farm.repository(f"{TARGET}.{farm.arch}")}
store            {layout.store.root}
to be signed     {layout.store.tosign}
mock's configs   {layout.mock_configs} (git: commit mock/<target>.<arch>.cfg for another target)
logs             {layout.log}
every host's ini {layout.conf}
events           {listen}

Ctrl-C ends it; {layout.state} stays, and --state {shlex.quote(str(layout.state))} goes on with it."""


def _new_folder(name: str) -> Path:
    """A folder for a farm, its owner's alone. Raises `InputError`."""
    try:
        HOME.mkdir(exist_ok=True)
        return Path(tempfile.mkdtemp(prefix=time.strftime(f"{name}-%Y%m%d-%H%M%S-"), dir=HOME.absolute()))
    except OSError as error:
        raise InputError(f"{HOME.absolute()}: {error.strerror}; --state names another place") from error


@contextlib.contextmanager
def _interruptible() -> Iterator[None]:
    """The first signal to end interrupts us; those after it would only interrupt our cleaning up."""
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

    def interrupt(number: int, frame: FrameType | None) -> None:
        for other in numbers:
            signal.signal(other, signal.SIG_IGN)
        raise KeyboardInterrupt

    before = {number: signal.signal(number, interrupt) for number in numbers}
    try:
        yield
    except KeyboardInterrupt:
        click.echo("\ninterrupted; everything has ended", err=True)
        raise
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def main() -> NoReturn:
    """The console script. It goes on in a child, so that something is left to clean up after a kill -9."""
    reaper.stay_behind(_GRACE)
    run_command(command, help_without_arguments=True)

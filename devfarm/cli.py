# SPDX-License-Identifier: Apache-2.0
"""The commands of `python -m devfarm`: a demo, and a farm that stays up."""

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

from devfarm import subreaper
from devfarm.demo import TARGET, Demo, print_block, print_line, print_title, remove_leftovers
from devfarm.farm import Farm
from devfarm.plan import TOPIC
from devfarm.processes import GRACE_OF_ALL, PartFailed
from reimzul.core.cli import EXIT_CODES, run_command
from reimzul.core.config import FILE_VARIABLE
from reimzul.core.errors import InputError
from reimzul.core.option_types import WholeNumber

#: Holds the farms' state folders and the fetched sources, in the current folder.
HOME = Path(".farm")
#: Seconds that the farm has to end before the subreaper kills it.
_GRACE = GRACE_OF_ALL + 15

STATE = click.option(
    "--state",
    type=click.Path(file_okay=False, path_type=Path),
    metavar="DIR",
    help=f"Keep the farm in this folder (default: a new one in ./{HOME}); a farm that is there is continued.",
)


@click.group("python -m devfarm", epilog=EXIT_CODES)
def command() -> None:
    """Run a whole farm on this machine: every daemon, every connection through TLS, on ports of loopback alone.

    It is for trying and testing. No process of it outlives the command, and nothing outside its folder changes.
    """


@command.command()
@click.option(
    "--srpm",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    metavar="PATH",
    help="Build this source rpm instead of the demo's own.",
)
@click.option("--keep", is_flag=True, help="Keep keys, caches and checkouts too, not only builds and logs.")
@STATE
def demo(srpm: Path | None, keep: bool, state: Path | None) -> None:
    """Build real packages from end to end, and have a real dnf find them."""
    farm = Farm(state or _make_state_folder("demo"), targets=(TARGET,), pages=True)
    with contextlib.ExitStack() as stack:
        stack.enter_context(_interruptible())
        if not keep and state is None:
            stack.callback(remove_leftovers, farm.layout)
        stack.callback(farm.stop)
        Demo(farm=farm, cache=(state or HOME).absolute() / "cache").run(srpm)


@command.command("up")
@click.option("--builders", type=WholeNumber(1, 16), default=2, show_default=True, help="How many builders.")
@click.option("--workers", type=WholeNumber(1, 8), default=1, show_default=True, help="How many workers on each.")
@STATE
def keep_up(builders: int, workers: int, state: Path | None) -> None:
    """Keep a farm up in the foreground, until Ctrl-C."""
    farm = Farm(state or _make_state_folder("up"), builders=builders, workers=workers, targets=(TARGET,), pages=True)
    with contextlib.ExitStack() as stack:
        stack.enter_context(_interruptible())
        stack.callback(farm.stop)
        print_title(f"A farm of {len(farm.hosts)} hosts on this machine, in {farm.layout.state}")
        farm.bring_up(print_line)
        print_title("How to use it")
        print_block(_instructions(farm))
        while farm.is_running(3600):
            continue
    raise PartFailed(f"the farm ended by itself; the logs are in {farm.layout.log}")


def _instructions(farm: Farm) -> str:
    layout, programs = farm.layout, shlex.quote(str(Path(sys.executable).parent))
    listen = shlex.join(farm.listen_command(f"{TOPIC}/builds/events"))
    return f"""\
In another terminal:
  export PATH={programs}:$PATH {FILE_VARIABLE}={shlex.quote(str(farm.ini()))}
  reimzul-submit -s path/to/any.src.rpm -a {farm.arch} -t {TARGET} -d .demo
  reimzul builds
  reimzul queues
  reimzul doctor --role all --canary

in a browser     {farm.plan.pages_url}
repository       {farm.repository(f"{TARGET}.{farm.arch}")}
store            {layout.store.root}
to be signed     {layout.store.tosign}
mock's configs   {layout.mock_configs} (git: commit mock/<target>.<arch>.cfg for another target)
logs             {layout.log}
every host's ini {layout.conf}
events           {listen}

Ctrl-C ends the farm; {layout.state} stays. To continue it: --state {shlex.quote(str(layout.state))}"""


def _make_state_folder(name: str) -> Path:
    """Make a folder for a farm, accessible to its owner alone. Raises `InputError`."""
    try:
        HOME.mkdir(exist_ok=True)
        return Path(tempfile.mkdtemp(prefix=time.strftime(f"{name}-%Y%m%d-%H%M%S-"), dir=HOME.absolute()))
    except OSError as error:
        raise InputError(f"{HOME.absolute()}: {error.strerror}; --state names another place") from error


@contextlib.contextmanager
def _interruptible() -> Iterator[None]:
    """Raise KeyboardInterrupt at the first signal; later ones must not interrupt the clean-up."""
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

    def interrupt(number: int, frame: FrameType | None) -> None:
        for each in numbers:
            # unlike SIG_IGN, a handler is not inherited: a part that is being started must still end at a signal
            signal.signal(each, lambda *_: None)
        raise KeyboardInterrupt

    for each in numbers:
        signal.signal(each, interrupt)
    try:
        yield
    except KeyboardInterrupt:
        click.echo("\ninterrupted; everything has ended", err=True)
        raise


def main() -> NoReturn:
    """Run in a child process, so that after a kill -9 its parent is left to clean up."""
    subreaper.fork_under_subreaper(_GRACE)
    run_command(command, help_without_arguments=True)

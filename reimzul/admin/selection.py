# SPDX-License-Identifier: Apache-2.0
"""What `reimzul kick` and `reimzul discard` share: which buried jobs are meant, the question, and what was done.

Jobs are taken one by one, by number and only while they are buried, never by beanstalkd's own `kick`: that moves the
delayed ones where no buried ones are left. A tube gets no more than it had buried at first, so that a job that is
refused again at once is not taken again and again.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Callable, Optional, TypeVar

import attr
import click

from reimzul.admin.asking import NobodyToAsk
from reimzul.admin.table import show_json
from reimzul.admin.tubes import named, with_buried
from reimzul.core.beanstalk import Broker
from reimzul.core.cli import load_settings
from reimzul.core.config import Settings
from reimzul.core.errors import EXIT_FAILED, ReimzulError, ReservationLost

F = TypeVar("F", bound=Callable[..., Any])


@attr.frozen(kw_only=True)
class Deed:
    """What is done to each job, and in which words."""

    verb: str  #: Put back, Delete
    past: str  #: put back, deleted
    act: Callable[[Broker, int], None]
    #: Called after it with the job's tube and what it held, where that is of use.
    then: Optional[Callable[[Broker, Settings, str, bytes], None]] = None


@attr.frozen(kw_only=True)
class Choice:
    """Which jobs a person means; exactly one of these."""

    jobs: Sequence[int] = ()
    tube: str | None = None
    everything: bool = False


@attr.define
class Taken:
    """What became of it."""

    done: list[tuple[str, int]] = attr.field(factory=list)  #: tube and job
    left: dict[int, str] = attr.field(factory=dict)  #: job -> why it was left alone


def options(function: F) -> F:
    """The arguments and options of both commands."""
    for decorate in (
        click.option("--json", "as_json", is_flag=True, help="An object: done (tube and job), left (job and reason)."),
        click.option("--yes", is_flag=True, help="Do not ask. Needed where there is no terminal to ask on."),
        click.option("--all", "everything", is_flag=True, help="All buried jobs of all tubes."),
        click.option("--tube", metavar="TUBE", help="All buried jobs of this tube."),
        click.argument("jobs", metavar="[JOB]...", nargs=-1, type=click.IntRange(1, 2**64 - 1)),
    ):
        function = decorate(function)
    return function


def run(deed: Deed, config: Path | None, verbose: bool, yes: bool, as_json: bool, **meant: Any) -> int:
    """Ask, do it, and say what was done; the exit code."""
    choice = Choice(**meant)
    if bool(choice.jobs) + (choice.tube is not None) + choice.everything != 1:
        raise click.UsageError("say which buried jobs: their numbers, or --tube TUBE, or --all.")
    if not yes and not sys.stdin.isatty():
        raise NobodyToAsk(f"there is no terminal to ask on: give --yes to {deed.verb.lower()} what is buried")
    settings = load_settings(config, verbose)
    with Broker(settings.beanstalkd.host, settings.beanstalkd.port) as broker:
        taken = take(broker, settings, deed, choice, yes)
    _tell(deed, taken, choice, as_json)
    return EXIT_FAILED if taken.left else 0


def take(broker: Broker, settings: Settings, deed: Deed, choice: Choice, yes: bool) -> Taken:
    """Do it to the jobs that are meant. Raises `ReimzulError` where the answer is no."""
    taken = Taken()
    if choice.jobs:
        found = _buried(broker, choice.jobs, taken)
        counts: dict[str, int] = Counter(found.values())
    else:
        counts = with_buried(broker, named(broker, settings, choice.tube))
    if not counts:
        return taken
    if not yes and not click.confirm(f"{deed.verb} {_counted(counts)}?", err=True):
        raise ReimzulError("nothing was done")
    # asked anew: a person may take long to answer, and others may have kicked a job meanwhile
    jobs = _buried(broker, found, taken).items() if choice.jobs else _oldest(broker, counts)
    for job, tube in jobs:
        _take_one(broker, settings, deed, job, tube, taken)
    return taken


def _buried(broker: Broker, jobs: Iterable[int], taken: Taken) -> dict[int, str]:
    """The tubes of those jobs that are buried."""
    found = {}
    for job in jobs:
        try:
            facts = broker.job_stats(job)
        except ReservationLost:
            taken.left[job] = "there is no such job"
            continue
        if facts.state == "buried":
            found[job] = facts.tube
        else:
            taken.left[job] = f"not buried, but {facts.state} in {facts.tube}"
    return found


def _oldest(broker: Broker, counts: dict[str, int]) -> Iterator[tuple[int, str]]:
    """As many jobs of each tube as it had, the first buried first; each is to be taken before the next is asked for."""
    for tube, count in counts.items():
        for _ in range(count):
            first = broker.first_buried(tube)
            if first is None:
                break
            yield first[0], tube


def _take_one(broker: Broker, settings: Settings, deed: Deed, job: int, tube: str, taken: Taken) -> None:
    try:
        body = broker.peek(job) if deed.then else b""
        deed.act(broker, job)
    except ReservationLost:
        taken.left[job] = "it is gone meanwhile"
        return
    taken.done.append((tube, job))
    if deed.then:
        deed.then(broker, settings, tube, body)


def _tell(deed: Deed, taken: Taken, choice: Choice, as_json: bool) -> None:
    if as_json:
        left = [{"job": job, "reason": reason} for job, reason in taken.left.items()]
        show_json({"done": [{"tube": tube, "job": job} for tube, job in taken.done], "left": left})
        return
    if choice.jobs:
        for tube, job in taken.done:
            click.echo(f"job {job} of {tube}: {deed.past}")
    else:
        for tube, count in Counter(tube for tube, _ in taken.done).items():
            click.echo(f"{tube}: {_jobs(count)} {deed.past}")
        if not taken.done and not taken.left:
            click.echo(f"nothing is buried{f' in {choice.tube}' if choice.tube else ''}")
    for job, reason in taken.left.items():
        click.echo(f"job {job}: {reason}", err=True)


def _counted(counts: dict[str, int]) -> str:
    each = ", ".join(f"{count} of {tube}" for tube, count in counts.items())
    return f"{_jobs(sum(counts.values()), 'buried ')} ({each})"


def _jobs(count: int, kind: str = "") -> str:
    return f"{count} {kind}job" + ("" if count == 1 else "s")

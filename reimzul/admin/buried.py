# SPDX-License-Identifier: Apache-2.0
"""`reimzul buried`: the jobs that were put aside, and why.

beanstalkd shows only the job that was buried first in a tube, and knows no reasons; the notifier keeps those. So each
refusal it kept is held against the job of that number: it counts while that is still buried in that tube and begins
with the same bytes, since job numbers start anew when beanstalkd loses its binlog.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import attr
import click

from reimzul.admin import lookup
from reimzul.admin.table import show, show_json, when
from reimzul.admin.tubes import named, with_buried
from reimzul.core import validators
from reimzul.core.beanstalk import Broker
from reimzul.core.cli import EXIT_CODES, load_settings, shared_options
from reimzul.core.config import Settings
from reimzul.core.errors import EXIT_FAILED, ConfigError, ReservationLost
from reimzul.core.message import first_bytes
from reimzul.core.refused import Overflow
from reimzul.history import HistoryUnavailable, NoHistory
from reimzul.history.build_record import RefusalRecord

_HEADS = ("TUBE", "JOB", "SINCE", "REASON", "REFUSED BY", "BEGINS")
#: How many refusals are looked at, the newest first.
LOOK_BACK = 50_000
_UNKNOWN = "nobody recorded why"


@attr.frozen(kw_only=True)
class Row:
    """A buried job."""

    tube: str
    job: int
    begins: str
    reason: str = _UNKNOWN
    host: str = ""  #: who refused it
    since: float | None = None
    recorded: bool = True


@attr.define
class Report:
    """What is buried."""

    jobs: list[Row] = attr.field(factory=list)
    unrecorded: dict[str, int] = attr.field(factory=dict)  #: tube -> how many of it no refusal fits
    fault: str = ""  #: why the history could not be asked


@click.command("buried", epilog=EXIT_CODES)
@click.option("--tube", metavar="TUBE", help="Of this tube alone, as x86_64 or notify.")
@click.option("--json", "as_json", is_flag=True, help="An object: jobs, unrecorded, files.")
@shared_options
def command(config: Path | None, verbose: bool, tube: str | None, as_json: bool) -> int:
    """Show the jobs that were refused and put aside, newest first: since when, why, by whom, and how each begins.

    Buried jobs that nobody recorded are counted, and the first of a tube is shown. Of a tube with more than 1,000 the
    rest is in a file on the host that refused it; the files of this host are named.

    \b
    Examples:
      reimzul buried
      reimzul buried --tube x86_64 --json
    """
    settings = load_settings(config, verbose)
    with Broker(settings.beanstalkd.host, settings.beanstalkd.port) as broker:
        tubes = with_buried(broker, named(broker, settings, tube))
        report = look(broker, tubes, settings.history.url)
    files = list(_files(settings, tube))
    if as_json:
        show_json({"jobs": list(map(attr.asdict, report.jobs)), "unrecorded": report.unrecorded, "files": files})
    else:
        show(_HEADS, [_cells(row) for row in report.jobs])
    for note in _notes(report, files):
        click.echo(note, err=True)
    return EXIT_FAILED if report.fault else 0


def look(broker: Broker, tubes: dict[str, int], url: str) -> Report:
    """What is buried in tubes of which it is known how many they have; where no reasons can be had, the bare jobs."""
    report = Report(unrecorded=dict(tubes))
    try:
        if tubes:
            with lookup.reading_history(url) as history:
                _match(broker, history.iterate_refusals(), report)
    except NoHistory:  # nothing was ever recorded
        pass
    except (HistoryUnavailable, ConfigError) as error:
        report.fault = str(error)
    for tube in report.unrecorded:
        report.jobs += _first(broker, tube, {row.job for row in report.jobs})
    return report


def _match(broker: Broker, refusals: Iterable[RefusalRecord], report: Report) -> None:
    """Move what a refusal fits from the unrecorded to the jobs; done as soon as all have theirs."""
    found = {row.job for row in report.jobs}
    for refusal in itertools.islice(refusals, LOOK_BACK):
        tube, job = refusal.tube, refusal.job
        if tube not in report.unrecorded or job in found or not _fits(broker, refusal):
            continue
        found.add(job)
        words = {name: getattr(refusal, name) for name in ("tube", "job", "begins", "reason", "host")}
        report.jobs.append(Row(**words, since=refusal.at))
        report.unrecorded[tube] -= 1
        if not report.unrecorded[tube]:
            del report.unrecorded[tube]
            if not report.unrecorded:
                return


def _fits(broker: Broker, refusal: RefusalRecord) -> bool:
    """Whether a refusal is of a job that is buried now."""
    try:
        facts = broker.job_stats(refusal.job)
        if (facts.state, facts.tube) != ("buried", refusal.tube):
            return False
        return bool(first_bytes(broker.peek(refusal.job)) == refusal.begins)
    except ReservationLost:
        return False


def _first(broker: Broker, tube: str, known: set[int]) -> Iterator[Row]:
    """The job beanstalkd shows, where it is none of those that are known."""
    first = broker.first_buried(tube)
    if first is not None and first[0] not in known:
        yield Row(tube=tube, job=first[0], begins=first_bytes(first[1]), recorded=False)


def _files(settings: Settings, tube: str | None) -> Iterator[dict[str, Any]]:
    overflow = Overflow(settings.farm.refused)
    for path in overflow.files():
        if tube is None or path == overflow.path(tube):
            yield {"path": str(path), "bytes": path.stat().st_size}


def _cells(row: Row) -> list[str]:
    reason = validators.line(500)(row.reason)
    return [row.tube, str(row.job), when(row.since), reason, row.host or "-", validators.quoted(row.begins, 80)]


def _notes(report: Report, files: Iterable[dict[str, Any]]) -> Iterator[str]:
    """What the table does not say."""
    if report.fault:
        yield f"the reasons cannot be had: {report.fault}"
    for tube, count in report.unrecorded.items():
        more = count - sum(row.tube == tube and not row.recorded for row in report.jobs)
        if more > 0:
            yield f"{tube}: {more} more buried, of which nobody recorded why; beanstalkd shows only the first"
    for file in files:
        yield f"what was refused on this host after that is in {file['path']} ({file['bytes']} bytes)"

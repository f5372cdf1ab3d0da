# SPDX-License-Identifier: Apache-2.0
"""What is known of a leg of a build and of what stands in its way, and the words that all answers share. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Optional

import attr

from reimzul.admin.usual import ArchStats, DurationStats, Forecast
from reimzul.admin.words import counted, span
from reimzul.core.beanstalk import TubeStats
from reimzul.core.control import ControlFlag
from reimzul.core.message import Status
from reimzul.history import Document
from reimzul.history.workers import SILENT_AFTER_SECONDS, WorkerRecord

#: What beanstalkd says of a build's job, beside its own four states.
GONE, UNKNOWN = "gone", "unknown"


@attr.frozen(kw_only=True)
class BuildFacts:
    """What is known of one leg of a build, and of what stands in its way."""

    now: float
    leg: Document
    job: str = UNKNOWN  #: ready, reserved, delayed, buried; gone; unknown where the history has no number
    tube: TubeStats  #: that it waits in, or waited
    createrepo: TubeStats
    tosign: TubeStats
    untold: int = 0  #: events that the notifier has not taken yet
    ahead: Sequence[Document] = ()  #: that its tube gives out before it
    beside: Sequence[Document] = ()  #: that other tubes do, to workers that serve this one too
    workers: Optional[Sequence[WorkerRecord]] = ()  #: that watch its tube; None where that cannot be known
    own: Optional[DurationStats] = None  #: how long this package takes
    arch: ArchStats = attr.field(factory=lambda: ArchStats(()))
    cancel: Optional[ControlFlag] = None
    source_bar: str = ""  #: what keeps the web server from reading its source rpm, as far as this host can see
    stuck: Optional[ControlFlag] = None  #: why its target's new repodata does not become visible


@attr.frozen(kw_only=True)
class Explanation:
    """The answer."""

    state: str  #: in a word or two
    sentences: Sequence[str]
    start: Optional[Forecast] = None  #: seconds from now; of one that waits
    end: Optional[Forecast] = None  #: of one that waits or is built


def is_silent(seen: WorkerRecord, now: float) -> bool:
    """Whether a worker has said nothing for longer than one that is well; heard in the future is not heard now."""
    return abs(now - seen.last_seen) > SILENT_AFTER_SECONDS


def worker_building(facts: BuildFacts, host: str = "") -> WorkerRecord | None:
    """The worker that has this build in hand; of one host, where that is known."""
    for seen in facts.workers or ():
        build = seen.heartbeat.build
        if build and build.build_id == facts.leg["build_id"] and host in ("", seen.heartbeat.host):
            return seen
    return None


def worker_label(seen: WorkerRecord, among: Sequence[WorkerRecord]) -> str:
    """What a worker is called: its host's name, and its number where that host has several."""
    host = seen.heartbeat.host
    alone = sum(other.heartbeat.host == host for other in among) == 1
    return host if alone else f"{host} ({seen.heartbeat.instance})"


def attempt_start(leg: Document) -> float:
    """When the attempt that decides a leg began, by a clock that goes with the controller's; 0 where not known.

    Of a builder whose clock is off, that is when the controller first heard of the attempt.
    """
    if not leg.get("skew"):
        return leg.get("started") or 0.0
    own = (each for each in leg.get("attempts") or () if each["attempt"] == leg.get("attempt"))
    return next((each.get("heard") or 0.0 for each in own), 0.0)


def package_of(srpm: str) -> str:
    """A package's name, as its source rpm's file name has it."""
    return srpm.rsplit("-", 2)[0]


def describe_failed_attempts(facts: BuildFacts) -> Iterator[str]:
    """What became of the tries before this one; a leg that was rejected tells its last attempt's end itself."""
    known = list(enumerate(facts.leg.get("attempts") or (), 1))
    for number, tried in known[:-1] if facts.leg["status"] == Status.REJECTED else known:
        if tried["status"] == Status.UNFIT:
            yield f"Attempt {number} failed on {_ended(tried, facts.now)}"
        if tried["status"] == Status.REJECTED:  # by the store: its builder is not blamed
            yield f"Attempt {number} was rejected, built on {_ended(tried, facts.now)}"
    retried = [(number, tried) for number, tried in known if tried["status"] == Status.RETRIED]
    if retried:
        number, last = retried[-1]
        many = f"; {counted(len(retried), 'attempt')} ended so" if retried[1:] else ""
        yield f"Attempt {number} does not count{many}: on {_ended(last, facts.now)}"


def _ended(tried: Mapping[str, Any], now: float) -> str:
    """Where and when an attempt ended that decided nothing, why, and where its logs are."""
    ago = f" {span(now - tried['at'])} ago" if tried.get("at") else ""
    logs = f" Its logs: {tried['url']}" if tried.get("url") else ""
    return f"{tried['builder_fqdn']}{ago}: {tried['reason'] or '-'}.{logs}"


def typical_duration_text(facts: BuildFacts) -> str:
    """How long it takes, and how that is known."""
    takes = facts.own or facts.arch.stats_for("")
    if takes is None:
        return ""
    how = f"median of {counted(takes.count, 'build')}, {range_text(takes.low, takes.high)}"
    if takes.own:
        return f"This package takes {span(takes.median)} ({how})."
    return f"This package was not built on that arch before; its others take {span(takes.median)} ({how})."


def range_text(low: float, high: float) -> str:
    """A range that eight in ten keep to."""
    if span(low) == span(high):
        return f"{span(low)} nearly always"
    return f"eight times in ten {span(low)} to {span(high)}"


def plain(seen: WorkerRecord) -> dict[str, Any]:
    """What a worker has said of itself, every key of it."""
    return attr.asdict(seen.heartbeat, filter=lambda field, _: field.name not in ("extra", "status", "leaving"))

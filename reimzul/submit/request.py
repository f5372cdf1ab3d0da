# SPDX-License-Identifier: Apache-2.0
"""From what a person asked for to requests in tubes: all is checked before anything is queued."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence

import attr

from reimzul.core import validators
from reimzul.core.arch import Arches
from reimzul.core.beanstalk import PRIORITY, PRIORITY_NOW, Broker, arch_tube
from reimzul.core.errors import InputError, ReimzulError
from reimzul.core.message import BuildRequest, Status, event_for, new_build_id
from reimzul.core.rpm_header import Header
from reimzul.submit.incoming import Source

log = logging.getLogger(__name__)


@attr.frozen(kw_only=True)
class Wanted:
    """What the command line asks for, its words checked."""

    arches: tuple[str, ...]
    target: str  #: without an arch
    disttag: str
    now: bool = False
    scratch: bool = False
    rebuild: bool = False

    @property
    def priority(self) -> int:
        """Of its jobs."""
        return PRIORITY_NOW if self.now else PRIORITY


@attr.frozen(kw_only=True)
class Queued:
    """What became of one arch: the job that was put, or why there is none."""

    arch: str
    tube: str
    target: str
    build_id: str
    timestamp: str
    job: int | None = None  #: its number in beanstalkd
    watchers: int | None = None  #: how many builders watch the tube, where that could be asked
    fault: str = ""


def check_words(arches: Iterable[str], target: str, disttag: str, known: Arches) -> tuple[str, ...]:
    """The arches asked for, each once. Raises `InputError` with a line for each word that is wrong."""
    wanted = tuple(dict.fromkeys(arches))
    faults = [
        f"arch {validators.quoted(arch)} is not known; {', '.join(known.known)} are"
        for arch in wanted
        if arch not in known.known
    ]
    faults += _target_faults(target, known) + _disttag_faults(disttag)
    if not wanted:
        faults.append("no arch is given")
    if faults:
        raise InputError("\n".join(faults))
    return wanted


def _target_faults(target: str, known: Arches) -> list[str]:
    try:
        validators.target(target)
        validators.target(f"{target}.{max(known.known, key=len)}")  # as it travels
    except ValueError as error:
        return [f"target {error}"]
    stem, _, arch = target.rpartition(".")
    if stem and arch in known.known:
        return [f"target {target!r} ends with an arch: give it without, as {stem}; each arch adds its own"]
    return []


def _disttag_faults(disttag: str) -> list[str]:
    try:
        validators.disttag(disttag)
    except ValueError as error:
        return [f"disttag {error}"]
    return [] if disttag.startswith(".") else [f"disttag {disttag!r} has no dot before it; is .{disttag} meant?"]


def check_arches(name: str, header: Header, arches: Iterable[str], known: Arches) -> list[str]:
    """Raise `InputError` with a line for each arch that the package itself rules out.

    Returns a warning for each arch that only mock can decide: the header has a macro that nobody expanded.
    """
    arches = tuple(arches)
    faults = [(arch, known.exclusion_reason(arch, header)) for arch in arches]
    lines = [f"{name} is not built for {arch}: {why}" for arch, why in faults if why]
    if lines:
        raise InputError("\n".join(lines))
    doubts = {arch: known.exclusion_doubt(arch, header) for arch in arches}
    decides = f"whether {name} is built for"
    return [f"{decides} {arch} is decided by mock: {doubt}, unexpanded" for arch, doubt in doubts.items() if doubt]


def count_watchers(broker: Broker, rows: Iterable[Queued]) -> list[Queued]:
    """The same rows with how many builders watch each tube, as far as beanstalkd still answers."""
    counted = []
    for row in rows:
        try:
            row = attr.evolve(row, watchers=broker.tube_stats(row.tube).watchers)
        except ReimzulError as error:
            log.debug("tube %s: %s", row.tube, error)
        counted.append(row)
    return counted


def requests(source: Source, wanted: Wanted, who: str) -> list[BuildRequest]:
    """One request an arch, by one submitter, with one timestamp for all."""
    timestamp = validators.now_timestamp()
    return [
        BuildRequest(
            srpm=source.name,
            arch=arch,
            target=f"{wanted.target}.{arch}",
            disttag=wanted.disttag,
            scratch=wanted.scratch,
            submitter=who,
            build_id=new_build_id(),
            timestamp=timestamp,
            srpm_sha256=source.sha256,
            rebuild=wanted.rebuild,
        )
        for arch in wanted.arches
    ]


def queue(broker: Broker, asked: Sequence[BuildRequest], source: Source, wanted: Wanted, known: Arches) -> list[Queued]:
    """Put each request into its arch's tube and say what became of it.

    The first fault ends the putting. Where nothing was queued before it, it is raised: then it is the whole answer.
    """
    rows: list[Queued] = []
    fault = ""
    for request in asked:
        row = Queued(
            arch=request.arch,
            tube=known.tube_of(request.arch),
            target=request.target,
            build_id=request.build_id,
            timestamp=request.timestamp,
        )
        try:
            row = attr.evolve(row, fault=fault) if fault else _queue_one(broker, request, row, wanted)
            _announce(broker, request, row, source, wanted)
        except ReimzulError as error:
            if not rows:
                raise
            fault = str(error)
            row = attr.evolve(row, fault=f"beanstalkd did not confirm it: {fault}")
        rows.append(row)
    return rows


def _queue_one(broker: Broker, request: BuildRequest, row: Queued, wanted: Wanted) -> Queued:
    tube = arch_tube(row.tube)
    return attr.evolve(row, job=broker.put(tube, request, priority=wanted.priority))


def _announce(broker: Broker, request: BuildRequest, row: Queued, source: Source, wanted: Wanted) -> None:
    """Tell of a queued build, as well as it goes: the build itself is safe in its tube."""
    if row.job is None:
        return
    about = {"pkgname": source.header.name, "evr": source.header.evr, "reason": f"job {row.job} of tube {row.tube}"}
    where = {"tube": row.tube, "job": row.job, "priority": wanted.priority}
    try:
        broker.announce(event_for(request, Status.QUEUED, **about, **where))
    except ReimzulError as error:
        log.warning("%s: queued, but not announced: %s", request.build_id, error)

# SPDX-License-Identifier: Apache-2.0
"""What is shown of builds that are followed: a row a leg, whether all is over, and the exit code. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Optional

import attr

from reimzul.admin.estimates import DurationStats
from reimzul.admin.lookup import BuildLegs
from reimzul.admin.words import counted, span
from reimzul.core.arch import Arches
from reimzul.core.errors import EXIT_FAILED
from reimzul.core.message import CurrentBuild, Status
from reimzul.history import BuildRecord

#: How a leg stands, for programs: these, in this order, and then one of those that are over.
UNHEARD, WAITS, BUILDS, BUILT = "unheard", "waiting", "building", "built"
GOOD = ("published", "built and not to be published")


@attr.frozen(kw_only=True)
class Row:
    """A leg as it stands."""

    build_id: str
    srpm: str
    arch: str
    target: str
    state: str  #: one of the words above; else failed, rejected, cancelled, override
    words: str  #: the state for a person: place, phase, reason
    elapsed: Optional[float] = None  #: seconds it has waited, been built, or took
    usual: Optional[float] = None  #: seconds such a build takes
    builder: str = ""
    url: str = ""
    changed: tuple[str, ...] = ()  #: what a new line is worth

    @property
    def over(self) -> bool:
        """Whether nothing more comes."""
        return self.state not in (UNHEARD, WAITS, BUILDS, BUILT)


def unheard(build_id: str) -> Row:
    """A build that was just submitted, of which the history knows nothing yet."""
    words = "submitted; the notifier has not told of it yet"
    return Row(build_id=build_id, srpm="-", arch="-", target="-", state=UNHEARD, words=words, changed=(UNHEARD,))


def row(leg: BuildRecord, now: float, ahead: int | None, hand: CurrentBuild | None, usual: DurationStats | None) -> Row:
    """A leg as it stands now. `ahead`: builds before it, where it waits; `hand`: what its worker says of it."""
    state, words = _state(leg, ahead, hand)
    mine = hand is not None and hand.arch == leg.arch
    return Row(
        build_id=leg.build_id,
        srpm=leg.srpm,
        arch=leg.arch,
        target=leg.target,
        state=state,
        words=words,
        elapsed=_elapsed(leg, state, now),
        usual=usual.median if usual and state in (WAITS, BUILDS) else None,
        builder=leg.builder_fqdn,
        url=leg.url,
        changed=(state, leg.attempt, hand.phase if hand and mine else ""),
    )


def _state(leg: BuildRecord, ahead: int | None, hand: CurrentBuild | None) -> tuple[str, str]:
    status = leg.status
    if status == Status.QUEUED:
        place = "" if ahead is None else ", next" if not ahead else f", {counted(ahead, 'build')} ahead"
        again = f"; {leg.reason}" if leg.attempts and leg.reason else ""
        return WAITS, f"waits{place}{again}"
    if status == Status.BUILDING:
        phase = hand.phase if hand and hand.arch == leg.arch else ""
        return BUILDS, phase or "builds"
    if status == Status.SUCCESS:
        if leg.published:
            return "published", "published"
        return (GOOD[1], "built (scratch)") if leg.scratch else (BUILT, "built, to be published")
    return status.lower(), f"{status.lower()}: {leg.comment or leg.reason or '-'}"


def _elapsed(leg: BuildRecord, state: str, now: float) -> float | None:
    if state == WAITS:
        return now - leg.queued_at if leg.queued_at else None
    if state == BUILDS:
        return now - leg.attempt_start if leg.attempt_start else None
    return leg.duration


def expected(build: BuildLegs, known: Arches) -> set[str]:
    """The arches of the legs that the request of a build has, as far as that is known."""
    main = build.main
    legs = {leg.arch for leg in build.legs}
    if main.arch not in known.known or not main.target.endswith(f".{main.arch}"):
        return legs  # some of its legs alone were asked for
    return legs | (set(known.legs_of(main.arch, main.pkgname)) - set(main.skipped))


def is_over(build: BuildLegs, rows: Sequence[Row], known: Arches, *, gone: bool) -> bool:
    """Whether nothing more comes of a build; `gone`: its job is deleted, so no leg is begun any more."""
    return all(each.over for each in rows) and (gone or expected(build, known) <= {each.arch for each in rows})


def exit_code(rows: Sequence[Row]) -> int:
    """0 where all of them came to what was wanted."""
    return 0 if all(each.state in GOOD for each in rows) else EXIT_FAILED


HEADS = ("BUILD", "SOURCE", "ARCH", "STATE", "TIME", "USUALLY", "BUILDER", "TARGET")


def cells(row: Row) -> list[str]:
    """A row of the table."""
    return [
        row.build_id[:8],
        row.srpm,
        row.arch,
        row.words,
        "-" if row.elapsed is None else span(row.elapsed),
        "-" if row.usual is None else span(row.usual),
        row.builder or "-",
        row.target,
    ]


def as_object(row: Row, at: float) -> Mapping[str, Any]:
    """A row for a program."""
    told = attr.asdict(row, filter=lambda field, _: field.name != "changed")
    return {**told, "at": round(at, 3), "over": row.over}

# SPDX-License-Identifier: Apache-2.0
"""What has become of one member of a batch: of its newest build, and of the legs of that.

A build has one job and several legs. The required ones (`Member.legs`) must be published before others are built
against the member; a follower, as i386 beside x86_64, holds up nobody. While any leg waits, the whole job is held.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Optional

import attr

from reimzul.core.failure_cause import FailureCause
from reimzul.core.message import Status
from reimzul.plan.document import Member


class MemberState:
    """The states of a member, as `reimzul batch show` prints them."""

    HELD = "held"  #: waits for the members it needs
    RELEASED = "released"  #: may be reserved by a builder
    BUILDING = "building"
    WAITING = "waiting"  #: nobody provides a requirement of one of its legs
    BUILT = "built"  #: not published yet; the end of a member of a scratch batch
    PUBLISHED = "published"
    FAILED = "failed"
    REJECTED = "rejected"
    CANCELLED = "cancelled"
    SKIPPED = "skipped"

    ALL = (HELD, WAITING, RELEASED, BUILDING, BUILT, PUBLISHED, FAILED, REJECTED, CANCELLED, SKIPPED)
    RUNNING = (RELEASED, BUILDING)
    #: States of a member against which nobody can be built, until a person acts.
    BROKEN = (FAILED, REJECTED, CANCELLED)


STATE_OF_STATUS = {
    Status.SUCCESS: MemberState.BUILT,
    Status.PUBLISHED: MemberState.PUBLISHED,
    Status.FAILED: MemberState.FAILED,
    Status.REJECTED: MemberState.REJECTED,
    Status.CANCELLED: MemberState.CANCELLED,
}
#: Of several legs, the member is what the leg of the first of these is.
_WORST_FIRST = (
    MemberState.FAILED, MemberState.REJECTED, MemberState.CANCELLED, MemberState.BUILT, MemberState.PUBLISHED,
)  # fmt: skip


@attr.define(kw_only=True)
class MemberProgress:
    member: Member
    state: str = MemberState.HELD
    needs: set[str] = attr.field(factory=set)  #: members of the batch, with those that it turned out to need
    build_id: str = ""  #: of its newest build; empty: it was not put yet
    job: int = 0
    count: int = 0  #: how many builds of it were put
    is_wanted: bool = True  #: whether a build of it is to be put
    disttag: str = ""  #: of its newest build
    attempt: str = ""  #: the newest
    ended_attempts: set[str] = attr.field(factory=set)  #: those after which the job was queued again
    queued_legs: list[str] = attr.field(factory=list)  #: the legs that the last of these left without a result
    legs: dict[str, str] = attr.field(factory=dict)  #: required leg -> state, of those that have a result
    followers: dict[str, str] = attr.field(factory=dict)  #: the same of legs that hold up nobody
    open_followers: set[str] = attr.field(factory=set)  #: those that a builder is building
    published_at: dict[str, float] = attr.field(factory=dict)  #: leg -> when
    substitutes: set[str] = attr.field(factory=set)  #: required legs that a build outside the batch has published
    missing_by_leg: dict[str, tuple[str, ...]] = attr.field(factory=dict)  #: of the legs that wait
    last_missing: dict[str, tuple[str, ...]] = attr.field(factory=dict)  #: the same, when it was released last
    vain_attempts: set[str] = attr.field(factory=set)  #: those in which a leg missed again what it was released for
    reason: str = ""  #: why it failed, or ended
    error_line: str = ""  #: the line of its logs that names the cause of its failure
    cause: Optional[FailureCause] = None  #: of its failure, as its event has it
    builder: str = ""  #: of its newest attempt
    place: str = ""  #: of its main leg, in the store
    stale: str = ""  #: why it has to be built again, though it is published
    is_forced: bool = False  #: a person released it, whatever it needs
    cancel_reason: str = ""  #: a person cancelled it, and its build has not ended yet
    is_cancelling: bool = False  #: the control flag that cancels its build is set
    is_skipped: bool = False
    end_state: str = ""  #: failed, cancelled or skipped if `reimzul-batch` ended its build; else empty
    ended_legs: tuple[str, ...] = ()  #: the legs that were ended then, besides those that were announced
    ended_at: float = 0.0
    at: float = 0.0  #: when it changed last
    started: float = 0.0  #: when its newest attempt was announced

    @property
    def key(self) -> str:
        return self.member.key

    @property
    def is_put(self) -> bool:
        return bool(self.build_id) and not self.is_wanted

    @property
    def results(self) -> Mapping[str, str]:
        """The states of all legs that have a result."""
        return {**self.legs, **self.followers}

    @property
    def result(self) -> str:
        """The state that the required legs make; empty while one of them can still change it."""
        states = set(self.legs.values())
        if not states.intersection(MemberState.BROKEN) and not self.legs.keys() >= set(self.member.legs):
            return ""
        return next(each for each in _WORST_FIRST if each in states)

    @property
    def is_published(self) -> bool:
        """Whether others can be built against it, though a follower may still be built or wait."""
        return self.result == MemberState.PUBLISHED

    @property
    def is_substituted(self) -> bool:
        return self.substitutes.issuperset(self.member.legs)

    @property
    def is_queued(self) -> bool:
        """Whether its job is queued, held or not, for legs without a result."""
        if self.state == MemberState.WAITING:
            return bool(self.missing_by_leg)
        return self.state in (MemberState.HELD, MemberState.RELEASED) and bool(self.list_unfinished())

    @property
    def missing(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(each for missing in self.missing_by_leg.values() for each in missing))

    @property
    def decisive_missing(self) -> Mapping[str, tuple[str, ...]]:
        return select_decisive(self.missing_by_leg, self.member.legs)

    @property
    def vain_waits(self) -> int:
        return len(self.vain_attempts)

    def is_follower(self, leg: str) -> bool:
        return leg not in self.member.legs

    @property
    def follower_states(self) -> Mapping[str, str]:
        """The states of the followers that are known: those that have a result, are built, or queued again."""
        is_held = self.state in (MemberState.HELD, MemberState.WAITING)
        states = dict.fromkeys(self.list_unfinished(), MemberState.HELD if is_held else MemberState.RELEASED)
        states.update(dict.fromkeys(self.missing_by_leg, MemberState.WAITING))
        states.update(dict.fromkeys(self.open_followers, MemberState.BUILDING))
        return {leg: state for leg, state in {**states, **self.followers}.items() if self.is_follower(leg)}

    def find_publication(self, leg: str, *, of_follower: bool) -> Optional[float]:
        """When its packages for another member's leg were published; None if they are not."""
        if of_follower:
            return self.published_at.get(leg) if self.followers.get(leg) == MemberState.PUBLISHED else None
        return max(self.published_at[each] for each in self.member.legs) if self.is_published else None

    def list_unfinished(self, announced: Sequence[str] = ()) -> list[str]:
        """The legs without a result, of those that are queued again, built beside others, or announced."""
        known = dict.fromkeys([*self.queued_legs, *sorted(self.open_followers), *announced])
        return [leg for leg in known if leg not in self.results]

    def start_build(self, build_id: str, job: int) -> None:
        self.build_id, self.job, self.is_wanted = build_id, job, False
        self.forget_results()
        self.forget_queue()
        self.last_missing, self.vain_attempts = {}, set()
        self.is_cancelling = False
        self.reason = self.stale = self.attempt = self.cancel_reason = ""
        self.error_line = self.builder = self.place = ""
        self.cause = None

    def forget_results(self, kept: Iterable[str] = ()) -> None:
        """Forget the results of legs except those with one of the kept states, and who ended the build."""
        kept = set(kept)
        self.legs = {leg: state for leg, state in self.legs.items() if state in kept}
        self.followers = {leg: state for leg, state in self.followers.items() if state in kept}
        self.published_at = {leg: at for leg, at in self.published_at.items() if leg in self.results}
        self.end_state, self.ended_legs, self.ended_at = "", (), 0.0

    def forget_queue(self) -> None:
        """Forget for which legs its job is queued again, and what a builder builds."""
        self.queued_legs, self.missing_by_leg, self.open_followers = [], {}, set()


def select_decisive(missing: Mapping[str, tuple[str, ...]], required: Collection[str]) -> Mapping[str, tuple[str, ...]]:
    """Return, by leg, what has to be provided before a job is released.

    The required legs decide if one of them waits, else the followers.
    A follower that lacks what no follower of another build will make must not hold up the required legs.
    """
    return {leg: each for leg, each in missing.items() if leg in required} or missing

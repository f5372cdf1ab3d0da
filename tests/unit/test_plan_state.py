# SPDX-License-Identifier: Apache-2.0
"""A batch's state machine, under any order of results, orders, repetitions and restarts.

Every member ends once, or rests behind a named one that is broken; nothing is released before what it needs.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

import attr
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from reimzul.core.batch_message import CONFLICT_PREFIX, OrderKind
from reimzul.core.message import BuildEvent, Status
from reimzul.plan.decisions import (
    Action,
    CancelBuild,
    End,
    Finish,
    Pause,
    Put,
    Release,
    Repeat,
    Rest,
    Surroundings,
    TakeBack,
    decide,
)
from reimzul.plan.document import Member, Plan
from reimzul.plan.journal import Entry, EntryKind, event_entry
from reimzul.plan.progress import MemberProgress, MemberState
from reimzul.plan.state import MASS_FAULT_MEMBERS, MAX_VAIN_WAITS, BatchState

ARCH, FOLLOWER, NOARCH = "x86_64", "i386", "noarch"
TARGET = f"c9s.{ARCH}"
BATCH = "0a1b2c3d"
PLACE = f"repo/{TARGET}/lib/20261130000000/1-1.{ARCH}"


def make_member(name: str, needs: Iterable[str] = (), **changes: Any) -> Member:
    needed = tuple(f"{each}.{ARCH}" for each in needs)
    fields: dict[str, Any] = {
        "name": name, "arch": ARCH, "target": TARGET, "srpm": f"{name}-1-1.src.rpm", "srpm_sha256": "0" * 64,
        "evr": "1-1", "tube": ARCH, "legs": (ARCH,), "disttag": ".el9", "needs": needed, "provides": (f"lib{name}",),
        "packages": (name,),
    }  # fmt: skip
    return Member(**{**fields, **changes})


def make_plan(members: Sequence[Member], **changes: Any) -> Plan:
    fields: dict[str, Any] = {
        "batch": BATCH, "target": "c9s", "arches": (ARCH,), "submitter": "release", "created": 1.0, "priority": 8192,
    }  # fmt: skip
    return Plan(members=tuple(members), **{**fields, **changes})


class Farm:
    """A batch, its journal, and the jobs that a farm would have: what `reimzul-batch` and the workers do."""

    def __init__(self, plan: Plan, *, room: int = 1000) -> None:
        self.plan, self.room = plan, room
        self.journal: list[Entry] = []
        self.state = BatchState(plan)
        self.clock = 100.0
        self.attempts = 0
        self.provided: set[str] = set()
        self.unprovided: set[str] = set()
        self.note({"kind": EntryKind.ACCEPTED, "sha256": "0" * 64})

    def note(self, entry: Entry) -> None:
        self.clock += 1
        stamped = {**entry, "at": self.clock}
        self.journal.append(stamped)
        self.state.apply(stamped)

    def act(self) -> list[Action]:
        """Decide and do, until nothing is left to do."""
        done: list[Action] = []
        for _ in range(100):
            around = Surroundings(room={ARCH: self.room}, provided=self.provided, unprovided=self.unprovided)
            actions = decide(self.state, around)
            noted = [self._perform(action) for action in actions]
            done += actions
            if not any(noted):
                return done
        raise AssertionError(f"no end of decisions: {done[-3:]}")

    def _perform(self, action: Action) -> bool:
        entry = self._entry_of(action)
        if entry is not None:
            self.note(entry)
        return entry is not None

    def _entry_of(self, action: Action) -> Entry | None:
        if isinstance(action, Rest):
            return {"kind": EntryKind.RESTS}
        if isinstance(action, Finish):
            return {"kind": EntryKind.OVER}
        if isinstance(action, Pause):
            return {"kind": EntryKind.PAUSED, "reason": action.reason}
        if isinstance(action, Repeat):
            return action.entry
        progress = self.state.members[action.key]
        about = {"member": action.key, "build": progress.build_id}
        if isinstance(action, Put):
            about["build"] = self.state.next_build_id(action.key)
            job = len(self.journal) + 1
            return {
                "kind": EntryKind.PUT, **about, "job": job, "count": progress.count, "disttag": progress.disttag,
            }  # fmt: skip
        if isinstance(action, Release):
            return {"kind": EntryKind.RELEASED, **about, "stale": action.stale}
        if isinstance(action, TakeBack):
            return {"kind": EntryKind.HELD, **about}
        if isinstance(action, CancelBuild):
            return {"kind": EntryKind.CANCELLING, **about}
        assert isinstance(action, End)
        return {"kind": EntryKind.ENDED, **about, "state": action.state, "reason": action.reason}

    def event(self, progress: MemberProgress, status: str, **more: Any) -> Entry:
        self.clock += 1
        member = progress.member
        fields: dict[str, Any] = {
            "srpm": member.srpm, "arch": member.arch, "target": member.target, "submitter": "release",
            "build_id": progress.build_id, "timestamp": "20261130000000", "at": self.clock, "batch": BATCH,
        }  # fmt: skip
        return event_entry(BuildEvent(**{**fields, **more}, status=status), self.clock)

    def tell(self, key: str, status: str, **more: Any) -> Entry:
        """Note an event of a member's build."""
        entry = self.event(self.state.members[key], status, **more)
        self.journal.append(entry)
        self.state.apply(entry)
        return entry

    def start(self, key: str, *legs: str) -> str:
        self.attempts += 1
        attempt = f"{self.attempts}-{self.attempts:08x}"
        for leg in legs or (ARCH,):
            self.tell(key, Status.BUILDING, attempt=attempt, arch=leg)
        return attempt

    def finish(self, key: str, status: str = Status.PUBLISHED, reason: str = "") -> None:
        attempt = self.start(key)
        self.tell(key, status, attempt=attempt, reason=reason)

    def wait(self, key: str, *missing: str) -> None:
        self.hold(key, self.start(key), {ARCH: missing})

    def hold(self, key: str, attempt: str, missing: Mapping[str, Sequence[str]]) -> None:
        """End an attempt whose job is held, for what legs miss."""
        job = self.state.members[key].job
        for leg, names in missing.items():
            self.tell(key, Status.QUEUED, attempt=attempt, arch=leg, held=True, missing=tuple(names), job=job)

    def wait_with_follower(self, key: str, *missing: str) -> None:
        """Publish the main leg of a build whose follower misses something."""
        attempt = self.start(key, ARCH, FOLLOWER)
        self.tell(key, Status.SUCCESS, attempt=attempt)
        self.tell(key, Status.PUBLISHED, attempt=attempt)
        self.hold(key, attempt, {FOLLOWER: missing})

    def order(self, kind: str, *keys: str, number: int = 0, settle_pass: int = 0) -> None:
        token = f"{number or len(self.journal):016x}"
        self.note(
            {
                "kind": EntryKind.ORDER, "id": token, "order": kind, "by": "anna", "members": list(keys),
                "settle_pass": settle_pass, "plan_sha256": "",
            }
        )  # fmt: skip

    def state_of(self, name: str) -> str:
        return self.state.members[f"{name}.{ARCH}"].state

    def in_state(self, *states: str) -> list[str]:
        return [key for key, each in self.state.members.items() if each.state in states]


def key(name: str) -> str:
    return f"{name}.{ARCH}"


def list_released(actions: Iterable[Action]) -> list[str]:
    return [each.key for each in actions if isinstance(each, Release)]


def chain(**changes: Any) -> Farm:
    """A batch of a library, a user of it, and a user of that."""
    members = [make_member("lib"), make_member("app", ["lib"]), make_member("top", ["app"])]
    return Farm(make_plan([attr.evolve(each, **changes) for each in members]))


# --- order and throttle


def test_a_member_is_released_when_what_it_needs_is_published_and_not_when_it_is_built() -> None:
    farm = chain()
    assert list_released(farm.act()) == [key("lib")]
    farm.finish(key("lib"), Status.SUCCESS)
    assert not farm.act()
    farm.tell(key("lib"), Status.PUBLISHED)
    assert list_released(farm.act()) == [key("app")]


def test_the_longest_chain_is_released_first_and_no_more_than_there_is_room_for() -> None:
    members = [make_member("short", rank=9), make_member("long", rank=1), make_member("mid", rank=5)]
    farm = Farm(make_plan(members), room=2)
    assert list_released(farm.act())[:2] == [key("long"), key("mid")]


def test_all_required_legs_have_to_be_published_and_a_follower_holds_up_nobody() -> None:
    farm = Farm(make_plan([make_member("lib", legs=(ARCH, "noarch")), make_member("app", ["lib"])]))
    farm.act()
    farm.finish(key("lib"))
    assert not farm.act()
    farm.tell(key("lib"), Status.FAILED, arch="i386")
    farm.tell(key("lib"), Status.PUBLISHED, arch="noarch")
    assert list_released(farm.act()) == [key("app")]
    assert farm.state.members[key("lib")].followers == {"i386": MemberState.FAILED}


def test_a_batch_without_room_waits_and_does_not_rest() -> None:
    farm = Farm(make_plan([make_member("lib", is_listed=True)]), room=0)
    assert farm.act() == [Put(key("lib"))]


# --- failures


def test_members_behind_a_failed_one_rest_and_a_retry_goes_on() -> None:
    farm = chain()
    farm.act()
    farm.finish(key("lib"), Status.FAILED, "error: no")
    assert farm.act() == [Rest()]
    assert not farm.act(), "a batch says once that it rests"
    assert farm.state.find_roots(key("top")) == {key("lib")}
    assert farm.state.find_blocked(key("lib")) == {key("app"), key("top")}
    farm.order(OrderKind.RETRY, key("lib"))
    assert list_released(farm.act()) == [key("lib")]
    farm.finish(key("lib"))
    assert list_released(farm.act()) == [key("app")]


def test_as_a_last_resort_a_member_is_built_against_the_old_build_and_is_stale() -> None:
    farm = chain(is_listed=True)
    farm.act()
    farm.finish(key("lib"), Status.FAILED, "error: no")
    assert list_released(farm.act()) == [key("app")]
    assert farm.state.members[key("app")].stale == "built against the old build of lib.x86_64"


def test_the_last_resort_can_be_forbidden() -> None:
    members = [make_member("lib", is_listed=True), make_member("app", ["lib"], is_listed=True)]
    farm = Farm(make_plan(members, last_resort=False))
    farm.act()
    farm.finish(key("lib"), Status.FAILED)
    assert farm.act() == [Rest()]


@pytest.mark.parametrize("reason", ["no builder could build it: b1: no space left", "rpmbuild failed: %build"])
def test_a_batch_whose_members_fail_alike_pauses_itself(reason: str) -> None:
    farm = Farm(make_plan([make_member(f"m{number}") for number in range(MASS_FAULT_MEMBERS + 1)]))
    farm.act()
    for number in range(MASS_FAULT_MEMBERS):
        assert not farm.state.is_paused
        farm.finish(key(f"m{number}"), Status.FAILED, reason)
        farm.act()
    assert farm.state.is_paused
    assert reason in farm.state.pause_reason


def test_failures_of_their_own_do_not_pause_a_batch() -> None:
    farm = Farm(make_plan([make_member(f"m{number}") for number in range(MASS_FAULT_MEMBERS)]))
    farm.act()
    for number in range(MASS_FAULT_MEMBERS):
        farm.finish(key(f"m{number}"), Status.FAILED, f"error {number}")
        farm.act()
    assert not farm.state.is_paused


# --- waiting for a requirement


def test_a_member_that_misses_what_another_provides_waits_for_that_member() -> None:
    farm = Farm(make_plan([make_member("lib"), make_member("app")]))
    assert sorted(list_released(farm.act())) == [key("app"), key("lib")]
    farm.wait(key("app"), "liblib >= 2")
    assert not farm.act()
    assert farm.state.unmet_needs(key("app")) == [key("lib")]
    farm.finish(key("lib"))
    assert list_released(farm.act()) == [key("app")]


def test_a_building_that_comes_again_after_its_attempt_has_ended_changes_nothing() -> None:
    farm = Farm(make_plan([make_member("app")]))
    farm.act()
    attempt = farm.start(key("app"))
    farm.tell(key("app"), Status.QUEUED, attempt=attempt, held=True, missing=("misspelt-devel",))
    farm.tell(key("app"), Status.BUILDING, attempt=attempt)
    assert farm.state_of("app") == MemberState.WAITING


def test_two_members_that_learn_to_need_each_other_do_not_wait_for_ever() -> None:
    farm = Farm(make_plan([make_member("a"), make_member("b")]))
    farm.act()
    farm.wait(key("a"), "libb")
    farm.wait(key("b"), "liba")
    farm.unprovided = {key("a"), key("b")}
    farm.act()
    assert farm.state_of("b") == MemberState.FAILED, "it closes the cycle, so it waits for the repository alone"


def test_a_member_that_misses_what_nobody_provides_fails_when_nothing_else_is_left() -> None:
    farm = Farm(make_plan([make_member("app"), make_member("other")]))
    farm.act()
    farm.wait(key("app"), "misspelt-devel")
    farm.unprovided = {key("app")}
    assert not farm.act(), "another member is building"
    farm.finish(key("other"))
    assert farm.act()[-1] == Finish()
    assert farm.state_of("app") == MemberState.FAILED
    assert "nobody provides misspelt-devel" in farm.state.members[key("app")].reason


def test_it_does_not_fail_before_the_repository_was_read() -> None:
    farm = Farm(make_plan([make_member("app")]))
    farm.act()
    farm.wait(key("app"), "misspelt-devel")
    assert not farm.act()


def test_a_requirement_that_the_repository_provides_releases_its_member() -> None:
    farm = Farm(make_plan([make_member("app")]))
    farm.act()
    farm.wait(key("app"), "perl(Foo)")
    farm.provided = {key("app")}
    assert list_released(farm.act()) == [key("app")]


def test_a_member_that_misses_again_what_is_published_fails_and_does_not_run_for_ever() -> None:
    farm = Farm(make_plan([make_member("app")]))
    farm.provided = {key("app")}
    for _ in range(MAX_VAIN_WAITS + 1):
        farm.act()
        assert farm.state_of("app") == MemberState.RELEASED
        farm.wait(key("app"), "perl(Foo)")
    farm.act()
    assert farm.state_of("app") == MemberState.FAILED


def test_a_conflict_ends_when_one_of_the_packages_it_names_is_published_again() -> None:
    farm = Farm(make_plan([make_member("lib"), make_member("app"), make_member("third")]))
    farm.act()
    farm.wait(key("app"), f"{CONFLICT_PREFIX}lib", f"{CONFLICT_PREFIX}third")
    assert not farm.act()
    farm.finish(key("third"))
    assert list_released(farm.act()) == [key("app")]


# --- several legs


def test_a_waiting_follower_holds_up_nobody_and_is_released() -> None:
    farm = Farm(make_plan([make_member("lib"), make_member("app", ["lib"])]))
    farm.act()
    farm.wait_with_follower(key("lib"), "libother")
    lib = farm.state.members[key("lib")]
    assert (lib.state, lib.is_published, lib.missing) == (MemberState.WAITING, True, ("libother",))
    assert list_released(farm.act()) == [key("app")]
    farm.finish(key("app"))
    farm.provided = {key("lib")}
    assert list_released(farm.act()) == [key("lib")]
    assert farm.state.is_met(key("lib"))
    attempt = farm.start(key("lib"), FOLLOWER)
    assert (lib.state, lib.open_followers) == (MemberState.PUBLISHED, {FOLLOWER})
    assert not farm.act(), "the batch is not over while a follower is built"
    farm.tell(key("lib"), Status.SUCCESS, attempt=attempt, arch=FOLLOWER)
    assert not farm.act(), "nor before it is published"
    farm.tell(key("lib"), Status.PUBLISHED, attempt=attempt, arch=FOLLOWER)
    assert farm.act() == [Finish()]


@pytest.mark.parametrize("order", ["before", "between", "after"])
def test_results_of_the_main_leg_leave_a_released_follower_in_its_tube(order: str) -> None:
    """They may come late, and come again when the job is built again."""
    farm = Farm(make_plan([make_member("lib")]))
    farm.act()
    lib, attempt = farm.state.members[key("lib")], farm.start(key("lib"), ARCH, FOLLOWER)
    results = [farm.event(lib, each, attempt=attempt) for each in (Status.SUCCESS, Status.PUBLISHED)]
    early = {"before": 2, "between": 1, "after": 0}[order]
    for entry in results[:early]:
        farm.state.apply(entry)
    farm.hold(key("lib"), attempt, {FOLLOWER: ["libother"]})
    farm.provided = {key("lib")}
    assert list_released(farm.act()) == [key("lib")]
    for entry in results:
        farm.state.apply(entry)
    assert (lib.state, lib.is_published) == (MemberState.RELEASED, True)


def test_a_batch_goes_on_if_it_was_over_before_a_follower_was_known() -> None:
    """Results overtake other events."""
    farm = Farm(make_plan([make_member("lib")]))
    farm.act()
    lib = farm.state.members[key("lib")]
    attempt = "1-00000001"
    farm.tell(key("lib"), Status.PUBLISHED, attempt=attempt)
    assert farm.act() == [Finish()]
    for leg in (ARCH, FOLLOWER):
        farm.tell(key("lib"), Status.BUILDING, attempt=attempt, arch=leg)
    farm.hold(key("lib"), attempt, {FOLLOWER: ["misspelt"]})
    assert (farm.state.is_over, lib.state) == (False, MemberState.WAITING)
    farm.unprovided = {key("lib")}
    assert [type(each) for each in farm.act()] == [End, Finish]


def test_a_second_required_leg_that_waits_after_the_first_is_released() -> None:
    farm = Farm(make_plan([make_member("kernel", legs=(ARCH, NOARCH)), make_member("app", ["kernel"])]))
    farm.act()
    attempt = farm.start(key("kernel"))
    farm.tell(key("kernel"), Status.PUBLISHED, attempt=attempt)
    farm.tell(key("kernel"), Status.BUILDING, attempt=attempt, arch=NOARCH)
    farm.hold(key("kernel"), attempt, {NOARCH: ["asciidoc"]})
    assert farm.state_of("kernel") == MemberState.WAITING
    assert not farm.act()
    farm.provided = {key("kernel")}
    assert list_released(farm.act()) == [key("kernel")]
    attempt = farm.start(key("kernel"), NOARCH)
    assert farm.state_of("kernel") == MemberState.BUILDING
    farm.tell(key("kernel"), Status.PUBLISHED, attempt=attempt, arch=NOARCH)
    assert list_released(farm.act()) == [key("app")]


def test_what_all_legs_of_an_attempt_miss_is_known_and_that_of_required_ones_is_waited_for() -> None:
    farm = Farm(make_plan([make_member("app"), make_member("one"), make_member("two", ["one"])]))
    farm.act()
    farm.hold(key("app"), farm.start(key("app"), ARCH, FOLLOWER), {FOLLOWER: ["perl(Foo)"], ARCH: ["libone", "libtwo"]})
    app = farm.state.members[key("app")]
    assert app.missing == ("perl(Foo)", "libone", "libtwo")
    assert app.missing_by_leg == {FOLLOWER: ("perl(Foo)",), ARCH: ("libone", "libtwo")}
    assert app.needs == {key("one"), key("two")}
    farm.finish(key("one"))
    assert key("app") not in list_released(farm.act())
    farm.finish(key("two"))
    assert list_released(farm.act()) == [key("app")], "the follower may wait again, for perl(Foo)"


def test_what_a_follower_misses_is_provided_by_a_members_follower_alone() -> None:
    farm = Farm(make_plan([make_member("lib"), make_member("app", ["lib"])]))
    farm.act()
    attempt = farm.start(key("lib"), ARCH, FOLLOWER)
    farm.tell(key("lib"), Status.PUBLISHED, attempt=attempt)
    assert list_released(farm.act()) == [key("app")]
    farm.wait_with_follower(key("app"), "liblib >= 2")
    assert not farm.act()
    farm.tell(key("lib"), Status.PUBLISHED, attempt=attempt, arch=FOLLOWER)
    assert list_released(farm.act()) == [key("app")]


def test_a_conflict_of_a_follower_ends_when_its_package_is_published_for_that_arch() -> None:
    farm = Farm(make_plan([make_member("lib"), make_member("app")]))
    farm.act()
    farm.wait_with_follower(key("app"), f"{CONFLICT_PREFIX}lib")
    attempt = farm.start(key("lib"), ARCH, FOLLOWER)
    farm.tell(key("lib"), Status.PUBLISHED, attempt=attempt)
    assert not farm.act()
    farm.tell(key("lib"), Status.PUBLISHED, attempt=attempt, arch=FOLLOWER)
    assert list_released(farm.act()) == [key("app")]


def test_a_follower_that_lacks_what_has_no_follower_does_not_hold_up_its_main_leg() -> None:
    farm = Farm(make_plan([make_member("lib"), make_member("app")]))
    farm.act()
    attempt = farm.start(key("app"))
    for arch in (ARCH, FOLLOWER):
        job = farm.state.members[key("app")].job
        farm.tell(key("app"), Status.QUEUED, attempt=attempt, held=True, missing=("liblib",), job=job, arch=arch)
    farm.finish(key("lib"))
    assert list_released(farm.act()) == [key("app")], "the main leg has all it lacks"
    farm.wait_with_follower(key("app"), "liblib")
    farm.unprovided = {key("app")}
    assert farm.act()[-1] == Finish()
    app = farm.state.members[key("app")]
    assert (app.state, app.followers) == (MemberState.PUBLISHED, {FOLLOWER: MemberState.FAILED})


def test_a_follower_that_waits_for_what_nobody_provides_fails_and_its_member_is_published() -> None:
    farm = Farm(make_plan([make_member("lib")]))
    farm.act()
    farm.wait_with_follower(key("lib"), "misspelt")
    assert not farm.act()
    farm.unprovided = {key("lib")}
    assert [type(each) for each in farm.act()] == [End, Finish]
    lib = farm.state.members[key("lib")]
    assert (lib.state, lib.followers, lib.ended_legs) == (
        MemberState.PUBLISHED, {FOLLOWER: MemberState.FAILED}, (FOLLOWER,),
    )  # fmt: skip
    assert lib.list_unfinished([ARCH]) == []


def test_a_follower_that_waits_in_vain_too_often_fails_alone() -> None:
    farm = Farm(make_plan([make_member("lib")]))
    farm.act()
    farm.provided = {key("lib")}
    farm.wait_with_follower(key("lib"), "libother")
    for _ in range(MAX_VAIN_WAITS):
        assert list_released(farm.act()) == [key("lib")]
        farm.hold(key("lib"), farm.start(key("lib"), FOLLOWER), {FOLLOWER: ["libother"]})
    assert farm.act()[-1] == Finish()
    assert (farm.state_of("lib"), farm.state.members[key("lib")].followers) == (
        MemberState.PUBLISHED, {FOLLOWER: MemberState.FAILED},
    )  # fmt: skip


def test_a_vain_attempt_counts_once_for_all_its_legs() -> None:
    farm = Farm(make_plan([make_member("lib")]))
    farm.act()
    farm.provided = {key("lib")}
    missing = {ARCH: ["libother"], FOLLOWER: ["libother"]}
    for count in range(MAX_VAIN_WAITS + 1):
        farm.hold(key("lib"), farm.start(key("lib"), ARCH, FOLLOWER), missing)
        assert farm.state.members[key("lib")].vain_waits == count
        farm.act()
    assert farm.state_of("lib") == MemberState.FAILED


def test_a_member_whose_other_required_leg_failed_waits_no_longer() -> None:
    farm = Farm(make_plan([make_member("kernel", legs=(ARCH, NOARCH))]))
    farm.act()
    attempt = farm.start(key("kernel"), ARCH, NOARCH)
    farm.tell(key("kernel"), Status.FAILED, attempt=attempt, arch=NOARCH, reason="error: no")
    farm.hold(key("kernel"), attempt, {ARCH: ["libother"]})
    assert farm.act()[0] == End(key("kernel"), MemberState.FAILED, "error: no")
    assert farm.state.members[key("kernel")].ended_legs == (ARCH,)


def test_cancelling_a_published_member_cancels_its_follower() -> None:
    farm = Farm(make_plan([make_member("lib"), make_member("waits")]))
    farm.act()
    attempt = farm.start(key("lib"), ARCH, FOLLOWER)
    farm.tell(key("lib"), Status.PUBLISHED, attempt=attempt)
    farm.wait_with_follower(key("waits"), "misspelt")
    farm.order(OrderKind.CANCEL)
    actions = farm.act()
    assert [type(each) for each in actions] == [CancelBuild, End]
    assert farm.state.members[key("waits")].followers == {FOLLOWER: MemberState.CANCELLED}
    farm.tell(key("lib"), Status.CANCELLED, arch=FOLLOWER)
    assert farm.act() == [Finish()]
    assert set(farm.in_state(MemberState.PUBLISHED)) == {key("lib"), key("waits")}


def test_a_person_who_cancels_a_waiting_follower_leaves_its_member_published() -> None:
    farm = Farm(make_plan([make_member("lib")]))
    farm.act()
    farm.wait_with_follower(key("lib"), "misspelt")
    farm.tell(key("lib"), Status.CANCELLED, arch=FOLLOWER)
    assert farm.act() == [Finish()]
    assert farm.state_of("lib") == MemberState.PUBLISHED


def test_a_person_who_releases_a_waiting_follower_is_obeyed() -> None:
    farm = Farm(make_plan([make_member("lib")]))
    farm.act()
    farm.wait_with_follower(key("lib"), "misspelt")
    farm.tell(key("lib"), Status.QUEUED, arch=FOLLOWER, held=False, job=farm.state.members[key("lib")].job)
    assert farm.state_of("lib") == MemberState.RELEASED


def test_a_retry_of_a_follower_alone_leaves_its_member_published() -> None:
    farm = Farm(make_plan([make_member("lib"), make_member("app", ["lib"])]))
    farm.act()
    attempt = farm.start(key("lib"), ARCH, FOLLOWER)
    farm.tell(key("lib"), Status.FAILED, attempt=attempt, arch=FOLLOWER)
    farm.tell(key("lib"), Status.PUBLISHED, attempt=attempt, place=PLACE)
    old = farm.state.members[key("lib")].build_id
    farm.tell(key("lib"), Status.QUEUED, build_id="f" * 32, parent=old, job=99, arch=FOLLOWER)
    lib = farm.state.members[key("lib")]
    assert (lib.state, lib.is_published, lib.place) == (MemberState.RELEASED, True, PLACE)
    assert list_released(farm.act()) == [key("app")]
    attempt = farm.start(key("lib"), FOLLOWER)
    farm.tell(key("lib"), Status.PUBLISHED, attempt=attempt, arch=FOLLOWER)
    assert (lib.state, lib.followers) == (MemberState.PUBLISHED, {FOLLOWER: MemberState.PUBLISHED})


@pytest.mark.parametrize("is_first", [True, False], ids=["published before", "published after"])
def test_what_an_old_worker_failed_for_want_of_a_member_is_built_again_once_that_is_published(is_first: bool) -> None:
    farm = Farm(make_plan([make_member("lib"), make_member("app"), make_member("other")]))
    farm.act()
    if is_first:
        farm.finish(key("lib"))
        farm.act()
    farm.finish(key("app"), Status.FAILED, "BuildRequires that nobody provides: liblib, misspelt")
    assert not list_released(farm.act()), "nobody provides the other"
    farm.order(OrderKind.RETRY, key("app"))
    farm.act()
    farm.finish(key("app"), Status.FAILED, "BuildRequires that nobody provides: liblib >= 1")
    if not is_first:
        assert not list_released(farm.act())
        farm.finish(key("lib"))
    assert list_released(farm.act()) == [key("app")]
    assert farm.state_of("app") == MemberState.RELEASED
    farm.finish(key("app"), Status.FAILED, "BuildRequires that nobody provides: liblib >= 1")
    assert not list_released(farm.act()), "once for the same packages: its builder may have old metadata"
    farm.order(OrderKind.RETRY, key("lib"))
    farm.act()
    farm.finish(key("lib"))
    assert list_released(farm.act()) == [key("app")], "the library has another build"


def test_a_retry_of_a_member_whose_follower_is_released_holds_up_who_needs_it() -> None:
    farm = Farm(make_plan([make_member("lib"), make_member("app", ["lib"])]))
    farm.act()
    farm.room = 0
    farm.wait_with_follower(key("lib"), "misspelt")
    farm.order(OrderKind.RELEASE, key("lib"))
    farm.act()
    assert (farm.state_of("lib"), farm.state.ready) == (MemberState.RELEASED, {key("app")})
    again = {"build_id": "f" * 32, "parent": farm.state.members[key("lib")].build_id, "job": 99}
    farm.tell(key("lib"), Status.QUEUED, **again)
    assert not farm.state.ready


def test_a_follower_that_is_built_again_elsewhere_keeps_the_batch_open() -> None:
    farm = Farm(make_plan([make_member("lib")]))
    farm.act()
    attempt = farm.start(key("lib"), ARCH, FOLLOWER)
    farm.tell(key("lib"), Status.PUBLISHED, attempt=attempt)
    farm.tell(key("lib"), Status.QUEUED, attempt=attempt, arch=FOLLOWER, reason="b1 could not build it")
    assert (farm.state_of("lib"), farm.act()) == (MemberState.RELEASED, [])
    farm.tell(key("lib"), Status.FAILED, attempt=farm.start(key("lib"), FOLLOWER), arch=FOLLOWER)
    assert farm.act() == [Finish()]


def test_a_raised_job_does_not_count_as_a_vain_wait() -> None:
    farm = Farm(make_plan([make_member("lib")]))
    farm.act()
    farm.provided = {key("lib")}
    farm.wait_with_follower(key("lib"), "libother")
    farm.act()
    farm.hold(key("lib"), farm.start(key("lib"), FOLLOWER), {FOLLOWER: ["libother"]})
    farm.tell(key("lib"), Status.QUEUED, arch=FOLLOWER, held=True, missing=("libother",), job=77)
    lib = farm.state.members[key("lib")]
    assert (lib.state, lib.job, lib.vain_waits) == (MemberState.WAITING, 77, 1)


# --- orders


def test_a_paused_batch_takes_back_what_is_not_reserved_and_releases_nothing() -> None:
    farm = Farm(make_plan([make_member("a"), make_member("b"), make_member("c", ["a"])]))
    farm.act()
    farm.start(key("a"))
    farm.order(OrderKind.PAUSE)
    assert farm.act() == [TakeBack(key("b"))]
    farm.finish(key("a"))
    assert not farm.act()
    farm.order(OrderKind.RESUME)
    assert sorted(list_released(farm.act())) == [key("b"), key("c")]


def test_an_order_that_comes_twice_is_obeyed_once() -> None:
    farm = chain()
    farm.act()
    farm.finish(key("lib"), Status.FAILED)
    farm.order(OrderKind.RETRY, key("lib"), number=7)
    farm.act()
    farm.finish(key("lib"), Status.FAILED)
    farm.order(OrderKind.RETRY, key("lib"), number=7)
    assert not list_released(farm.act())


def test_a_skipped_member_is_as_if_it_were_not_in_the_plan() -> None:
    farm = chain()
    farm.act()
    farm.order(OrderKind.SKIP, key("app"))
    farm.act()
    assert farm.state_of("app") == MemberState.SKIPPED
    assert farm.state_of("top") == MemberState.RELEASED


def test_a_skipped_member_that_builds_is_cancelled_and_then_skipped() -> None:
    farm = chain()
    farm.act()
    farm.start(key("lib"))
    farm.order(OrderKind.SKIP, key("lib"))
    assert any(isinstance(each, CancelBuild) for each in farm.act())
    farm.tell(key("lib"), Status.CANCELLED, reason="cancelled by anna")
    assert list_released(farm.act()) == [key("app")]


def test_a_member_released_by_a_person_is_built_whatever_it_needs_even_in_a_paused_batch() -> None:
    farm = chain()
    farm.order(OrderKind.PAUSE)
    farm.act()
    farm.order(OrderKind.RELEASE, key("top"))
    assert list_released(farm.act()) == [key("top")]


def test_a_cancelled_batch_ends_what_is_held_and_is_over_when_what_runs_has_ended() -> None:
    farm = chain()
    farm.act()
    farm.start(key("lib"))
    farm.order(OrderKind.CANCEL)
    farm.act()
    assert (farm.state_of("app"), farm.state_of("lib")) == (MemberState.CANCELLED, MemberState.BUILDING)
    assert not farm.state.is_over
    farm.tell(key("lib"), Status.CANCELLED)
    assert farm.act() == [Finish()]


def test_whoever_waits_for_a_failed_member_is_cancelled_with_the_root_cause() -> None:
    members = [make_member("lib"), make_member("app", ["lib"]), make_member("top", ["app"]), make_member("other")]
    farm = Farm(make_plan(members))
    farm.act()
    farm.finish(key("lib"), Status.FAILED, "error: no")
    farm.act()
    farm.order(OrderKind.CANCEL)
    farm.act()
    reasons = {each.member.name: each.reason for each in farm.state.members.values() if each.member.name != "lib"}
    behind = "cancel by anna; it waited for lib.x86_64, which failed"
    assert {name: reasons[name] for name in ("app", "top")} == {"app": behind, "top": behind}
    assert farm.state.members[key("other")].cancel_reason or farm.state.members[key("other")].is_cancelling


def test_settling_builds_with_a_disttag_of_its_own_in_the_order_of_needs() -> None:
    farm = chain()
    while list_released(farm.act()):
        for each in farm.in_state(MemberState.RELEASED):
            farm.finish(each)
    assert farm.state.is_over
    farm.order(OrderKind.SETTLE, key("app"), key("top"), settle_pass=1)
    assert list_released(farm.act()) == [key("app")]
    assert farm.state.members[key("app")].disttag == ".el9.1"
    farm.finish(key("app"))
    assert list_released(farm.act()) == [key("top")]


# --- builds of persons, and what comes late


def test_a_retry_by_a_person_is_the_members_newest_build() -> None:
    farm = chain()
    farm.act()
    farm.finish(key("lib"), Status.FAILED)
    farm.act()
    old = farm.state.members[key("lib")].build_id
    farm.tell(key("lib"), Status.QUEUED, build_id="f" * 32, parent=old, job=99)
    farm.tell(key("lib"), Status.PUBLISHED, build_id="f" * 32, parent=old)
    assert list_released(farm.act()) == [key("app")]


def test_events_of_an_older_build_of_a_member_decide_nothing() -> None:
    farm = chain()
    farm.act()
    late = farm.event(farm.state.members[key("lib")], Status.PUBLISHED)
    farm.finish(key("lib"), Status.FAILED)
    farm.order(OrderKind.RETRY, key("lib"))
    farm.act()
    farm.state.apply(late)
    assert farm.state_of("lib") == MemberState.RELEASED


def test_a_published_member_that_is_to_be_built_again_holds_up_others() -> None:
    farm = chain()
    farm.act()
    farm.finish(key("lib"))
    farm.order(OrderKind.RETRY, key("lib"))
    assert list_released(farm.act()) == [key("lib")]


def test_a_late_result_of_a_build_that_is_to_be_repeated_decides_nothing() -> None:
    farm = chain()
    farm.act()
    farm.finish(key("lib"), Status.FAILED)
    farm.order(OrderKind.RETRY, key("lib"))
    farm.tell(key("lib"), Status.PUBLISHED)
    assert farm.state_of("lib") == MemberState.HELD
    assert list_released(farm.act()) == [key("lib")]


def test_a_building_of_a_held_member_is_a_persons_release() -> None:
    farm = chain()
    farm.act()
    farm.finish(key("app"))
    assert farm.state_of("app") == MemberState.PUBLISHED


def test_a_claimed_result_decides_nothing() -> None:
    farm = chain()
    farm.act()
    farm.tell(key("lib"), Status.PUBLISHED, claimed=True)
    assert not list_released(farm.act())


def test_a_scratch_batch_is_over_when_all_are_built() -> None:
    farm = Farm(make_plan([make_member("a"), make_member("b")], scratch=True))
    farm.act()
    farm.finish(key("a"), Status.SUCCESS)
    farm.finish(key("b"), Status.FAILED, "error")
    assert farm.act() == [Finish()]


def test_a_replaced_member_is_built_again_and_others_keep_their_progress() -> None:
    members = [make_member("lib"), make_member("app", ["lib"])]
    newer = attr.evolve(members[0], srpm="lib-2-1.src.rpm", srpm_sha256="1" * 64)
    farm = Farm(make_plan(members))
    farm.state = BatchState(farm.plan, lambda _: make_plan([newer, members[1]]))
    farm.state.apply(farm.journal[0])
    farm.act()
    farm.finish(key("lib"), Status.FAILED)
    farm.order(OrderKind.REPLACE, key("lib"))
    actions = farm.act()
    assert list_released(actions) == [key("lib")]
    assert Put(key("app")) not in actions


def test_a_build_outside_the_batch_lets_those_go_on_that_need_its_source() -> None:
    farm = Farm(make_plan([make_member("lib", legs=(ARCH, NOARCH)), make_member("app", ["lib"])]))
    farm.act()
    farm.finish(key("lib"), Status.FAILED, "error: no")
    assert farm.act() == [Rest()]
    outside = {"build_id": "f" * 32, "batch": "", "pkgname": "lib"}
    for more in ({"target": "c9s.aarch64", "arch": "aarch64"}, {"claimed": True}, {"pkgname": "app"}, {"arch": ARCH}):
        farm.tell(key("lib"), Status.PUBLISHED, **{**outside, **more})
        assert not list_released(farm.act())
    farm.tell(key("lib"), Status.PUBLISHED, **outside, arch=NOARCH)
    assert list_released(farm.act()) == [key("app")]
    assert farm.state_of("lib") == MemberState.FAILED
    farm.tell(key("app"), Status.BUILDING, attempt="1-00000001")
    farm.order(OrderKind.RETRY, key("lib"))
    assert not farm.state.is_met(key("lib")), "it is to be built again"


def test_a_rejected_leg_that_another_attempt_published_is_published() -> None:
    farm = chain()
    farm.act()
    farm.finish(key("lib"), Status.REJECTED, "a bad upload")
    assert farm.act() == [Rest()]
    farm.tell(key("lib"), Status.PUBLISHED)
    assert list_released(farm.act()) == [key("app")]


def test_a_replaced_member_still_releases_who_learned_to_need_it() -> None:
    members = [make_member("lib"), make_member("app"), make_member("top", ["app"])]
    newer = attr.evolve(members[0], srpm="lib-2-1.src.rpm", srpm_sha256="1" * 64)
    farm = Farm(make_plan(members))
    farm.state = BatchState(farm.plan, lambda _: make_plan([newer, *members[1:]]))
    farm.state.apply(farm.journal[0])
    farm.act()
    farm.wait(key("app"), "liblib")
    farm.finish(key("lib"), Status.FAILED)
    assert farm.act()[-1] == Rest()
    farm.order(OrderKind.REPLACE, key("lib"))
    farm.act()
    assert farm.state.unmet_needs(key("app")) == [key("lib")]
    farm.finish(key("lib"))
    assert list_released(farm.act()) == [key("app")]


def test_a_learned_need_is_dropped_if_the_replacement_needs_that_member() -> None:
    members = [make_member("lib"), make_member("app")]
    newer = attr.evolve(members[0], srpm_sha256="1" * 64, needs=(key("app"),))
    farm = Farm(make_plan(members))
    farm.state = BatchState(farm.plan, lambda _: make_plan([newer, members[1]]))
    farm.state.apply(farm.journal[0])
    farm.act()
    farm.wait(key("app"), "liblib")
    farm.finish(key("lib"), Status.FAILED)
    farm.act()
    farm.order(OrderKind.REPLACE, key("lib"))
    farm.unprovided = {key("app")}
    farm.act()
    assert farm.state_of("app") == MemberState.FAILED, "nobody that could provide it can be built before"


# --- anything in any order


def snapshot(state: BatchState) -> Any:
    members = {key: attr.asdict(each, recurse=False) for key, each in state.members.items()}
    return members, +state.counts, state.ready, +state.released_ahead, state.is_paused, state.is_over, state.rests


@st.composite
def plans(draw: st.DrawFn) -> Plan:
    count = draw(st.integers(1, 8))
    members = []
    for number in range(count):
        needs = draw(st.sets(st.sampled_from([f"m{each}" for each in range(number)]))) if number else set()
        legs = draw(st.sampled_from([(ARCH,), (ARCH, NOARCH)]))
        more = {"rank": number, "is_listed": draw(st.booleans()), "legs": legs}
        members.append(make_member(f"m{number}", sorted(needs), **more))
    return make_plan(members, last_resort=draw(st.booleans()), scratch=False)


class BatchMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.farm = Farm(make_plan([make_member("none")]))
        self.followed: set[str] = set()  #: members with a follower

    @initialize(plan=plans(), room=st.integers(1, 3), data=st.data())
    def begin(self, plan: Plan, room: int, data: st.DataObject) -> None:
        self.farm = Farm(plan, room=room)
        self.followed = data.draw(st.sets(st.sampled_from(sorted(self.farm.state.members))))
        self.act()

    def act(self) -> None:
        for action in self.farm.act():
            if isinstance(action, Release):
                self._check_release(action)

    def _check_release(self, action: Release) -> None:
        progress = self.farm.state.members[action.key]
        broken = [need for need in progress.needs if not self.farm.state.is_met(need)]
        if not (progress.is_forced or action.stale):
            assert not broken, f"{action.key} was released though {broken} are not published"

    def pick(self, keys: Collection[str], data: st.DataObject) -> str:
        return str(data.draw(st.sampled_from(sorted(keys))))

    def running(self) -> list[str]:
        """Members whose job a builder has, or may take."""
        members = self.farm.state.members
        return [key for key, each in members.items() if each.state in MemberState.RUNNING or each.open_followers]

    def start(self, key: str) -> tuple[str, list[str]]:
        """Begin an attempt of a build; return it, and the legs that it builds: those without a result."""
        progress = self.farm.state.members[key]
        legs = [*progress.member.legs, *([FOLLOWER] if key in self.followed else [])]
        unfinished = [leg for leg in legs if leg not in progress.results]
        assert unfinished, f"the job of {key} is queued though all of its legs have a result"
        return self.farm.start(key, *unfinished), unfinished

    @precondition(lambda self: self.running())
    @rule(data=st.data(), status=st.sampled_from([Status.PUBLISHED, Status.SUCCESS, Status.FAILED, Status.REJECTED]))
    def end_a_build(self, data: st.DataObject, status: str) -> None:
        key = self.pick(self.running(), data)
        attempt, legs = self.start(key)
        for leg in data.draw(st.permutations(legs)):
            self.farm.tell(key, status, attempt=attempt, arch=leg, reason="a reason")
        self.act()

    @precondition(lambda self: self.running())
    @rule(data=st.data())
    def end_some_legs(self, data: st.DataObject) -> None:
        key = self.pick(self.running(), data)
        attempt, legs = self.start(key)
        for leg in data.draw(st.sets(st.sampled_from(legs), max_size=len(legs) - 1)):
            self.farm.tell(key, Status.PUBLISHED, attempt=attempt, arch=leg)
        self.act()

    @precondition(lambda self: self.built())
    @rule(data=st.data())
    def publish(self, data: st.DataObject) -> None:
        key, leg = data.draw(st.sampled_from(self.built()))
        self.farm.tell(key, Status.PUBLISHED, arch=leg)
        self.act()

    def built(self) -> list[tuple[str, str]]:
        members = self.farm.state.members.items()
        return [
            (key, leg) for key, each in members for leg, state in each.results.items()
            if state == MemberState.BUILT and each.is_put
        ]  # fmt: skip

    @precondition(lambda self: self.running())
    @rule(data=st.data())
    def miss_a_requirement(self, data: st.DataObject) -> None:
        key = self.pick(self.running(), data)
        attempt, legs = self.start(key)
        names = st.sampled_from(["libm0", "libm1", "libm2", "misspelt", f"{CONFLICT_PREFIX}m1"])
        missing = data.draw(
            st.dictionaries(st.sampled_from(legs), st.lists(names, min_size=1, unique=True), min_size=1)
        )
        for leg in set(legs) - missing.keys():
            self.farm.tell(key, Status.SUCCESS, attempt=attempt, arch=leg)
        self.farm.hold(key, attempt, missing)
        self.act()

    @precondition(lambda self: self.running())
    @rule(data=st.data())
    def fail_to_build(self, data: st.DataObject) -> None:
        """The builder is at fault: the job is queued for another."""
        key = self.pick(self.running(), data)
        attempt, legs = self.start(key)
        for leg in legs:
            self.farm.tell(key, Status.QUEUED, attempt=attempt, arch=leg, reason="a full disk")
        self.act()

    @rule(data=st.data(), kind=st.sampled_from(OrderKind.ALL))
    def give_an_order(self, data: st.DataObject, kind: str) -> None:
        if kind == OrderKind.REPLACE:
            return
        some = data.draw(st.sets(st.sampled_from(sorted(self.farm.state.members)), max_size=2))
        if kind == OrderKind.CANCEL and not some:
            return  # that would end the whole batch
        self.farm.order(kind, *sorted(some), settle_pass=1)
        self.act()

    @rule(data=st.data())
    def repeat_an_entry(self, data: st.DataObject) -> None:
        """What comes twice changes nothing, as long as its build is the newest."""
        entry = data.draw(st.sampled_from(self.farm.journal))
        before = snapshot(self.farm.state)
        is_last = entry is self.farm.journal[-1]
        if entry["kind"] in (EntryKind.ORDER, EntryKind.PUT, EntryKind.ACCEPTED) or is_last:
            self.farm.state.apply(entry)
            assert snapshot(self.farm.state) == before

    @rule()
    def restart(self) -> None:
        replayed = BatchState.replay(self.farm.plan, self.farm.journal)
        assert snapshot(replayed) == snapshot(self.farm.state)
        self.farm.state = replayed
        self.act()

    @invariant()
    def released_members_fit_the_room(self) -> None:
        running = self.farm.in_state(MemberState.RELEASED)
        assert self.farm.state.released_ahead[ARCH] == len(running)

    @invariant()
    def a_member_waits_for_something(self) -> None:
        for each in self.farm.state.members.values():
            assert bool(each.missing_by_leg) == (each.state == MemberState.WAITING)
            assert not each.missing_by_leg.keys() & each.results.keys()

    @invariant()
    def a_batch_is_over_when_all_its_legs_are(self) -> None:
        state = self.farm.state
        if state.is_over and not any(each.is_wanted for each in state.members.values()):
            assert not self.running()
            assert not self.farm.in_state(MemberState.WAITING)

    def teardown(self) -> None:
        """Let the farm publish all that it may build: each member ends, or rests behind a broken one."""
        farm = self.farm
        if farm.state.is_paused:
            farm.order(OrderKind.RESUME)
        for _ in range(200):
            farm.unprovided = set(farm.state.members)
            farm.act()
            for key in self.running():
                attempt, legs = self.start(key)
                for leg in legs:
                    farm.tell(key, Status.PUBLISHED, attempt=attempt, arch=leg)
            for key, leg in self.built():
                farm.tell(key, Status.PUBLISHED, arch=leg)
            if farm.state.is_paused:
                farm.order(OrderKind.RESUME)
            if farm.state.is_over or farm.state.rests:
                break
        assert farm.state.is_over or farm.state.rests
        for each in farm.state.members.values():
            if not farm.state.is_ended(each):
                roots = farm.state.find_roots(each.key)
                assert roots
                assert all(farm.state.members[root].state in MemberState.BROKEN for root in roots)


BatchMachine.TestCase.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
TestAnyOrder = BatchMachine.TestCase

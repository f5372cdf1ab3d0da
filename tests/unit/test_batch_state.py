# SPDX-License-Identifier: Apache-2.0
"""What `reimzul-batch` relies on in a batch's state: entries that meet in the order that kills and queues make."""

from __future__ import annotations

from typing import Any

from reimzul.core.message import BuildEvent
from reimzul.plan.decisions import Put, Release, Surroundings, decide
from reimzul.plan.journal import event_entry
from reimzul.plan.state import BatchState
from tests.batch import ARCH, make_plan, member

ATTEMPT = "1763800001-0000000a"
KEY = f"p.{ARCH}"


def replay(*entries: dict[str, Any]) -> BatchState:
    """A batch of one member after these entries, a second apart."""
    accepted = {"kind": "accepted"}
    timed = ({"at": float(at), **entry} for at, entry in enumerate((accepted, *entries)))
    return BatchState.replay(make_plan(member("p")), timed)


def put_of(state: BatchState, job: int = 7) -> dict[str, Any]:
    return {"kind": "put", "member": KEY, "build": state.next_build_id(KEY), "job": job, "count": 0, "disttag": ".el9"}


PUT = put_of(replay())
RELEASED = {"kind": "released", "member": KEY, "build": PUT["build"]}
CANCEL = {"kind": "order", "order": "cancel", "id": "1" * 16, "by": "johnny", "members": [KEY], "settle_pass": 0}
ENDED = {"kind": "ended", "member": KEY, "state": "cancelled", "reason": "cancel by johnny"}


def event(status: str, **more: Any) -> dict[str, Any]:
    known: dict[str, Any] = {"srpm": "p-1-1.src.rpm", "arch": ARCH, "target": f"c9s.{ARCH}", "submitter": "johnny"}
    return dict(event_entry(BuildEvent(**known, status=status, build_id=PUT["build"], **more), 1.0))


def actions(state: BatchState) -> list[Any]:
    return decide(state, Surroundings(room={ARCH: 1}))


def test_a_member_that_ended_before_it_was_put_is_not_put() -> None:
    assert actions(replay()) == [Put(KEY)]
    state = replay(CANCEL, {**ENDED, "build": ""})
    assert not [each for each in actions(state) if isinstance(each, Put)]


def test_an_announcement_of_a_release_that_its_builder_has_overtaken_changes_nothing() -> None:
    building = event("Building", attempt=ATTEMPT, at=2.0)
    late = event("Queued", held=False, job=8, at=2.5)
    state = replay(PUT, RELEASED, building, late)
    assert state.members[KEY].state == "building"
    assert state.members[KEY].job == 8, "its job may be another, as after `reimzul raise`"


def test_a_build_that_was_put_again_is_held_under_its_new_number() -> None:
    again = {"kind": "put again", "member": KEY, "build": PUT["build"], "job": 9}
    state = replay(PUT, RELEASED, event("Building", attempt=ATTEMPT, at=2.0), again)
    assert (state.members[KEY].state, state.members[KEY].job) == ("held", 9)
    assert actions(state) == [Release(KEY)]
    assert replay(PUT, {**again, "build": "f" * 32}).members[KEY].job == 7, "it is about an older build"


def test_a_member_that_misses_something_after_a_persons_release_waits() -> None:
    release = {**CANCEL, "order": "release"}
    waiting = event("Queued", held=True, missing=("x",), attempt=ATTEMPT, at=5.0)
    state = replay(PUT, release, RELEASED, event("Building", attempt=ATTEMPT, at=4.0), waiting)
    assert state.members[KEY].state == "waiting"
    assert actions(state) == []

# SPDX-License-Identifier: Apache-2.0
"""What events change of a single build that may wait: each of its legs may miss something, and its job is held once."""

from __future__ import annotations

from typing import Any

from reimzul.batch.single_builds import SingleBuild, SingleState, apply_own_event, list_legs
from reimzul.core.message import BuildRequest, Status, event_for

REQUEST = BuildRequest(
    srpm="single-1-1.src.rpm", arch="x86_64", target="c9s.x86_64", disttag=".el9", submitter="johnny",
    build_id="1" * 32, timestamp="20261130000000", dep_wait=3600,
)  # fmt: skip
RELEASED = SingleBuild(request=REQUEST, tube="x86_64", priority=8192, state=SingleState.RELEASED, job=7)


def apply(build: SingleBuild, status: str, arch: str = "x86_64", **more: Any) -> SingleBuild:
    return apply_own_event(build, event_for(REQUEST, status, arch=arch, **more)) or build


def hold(build: SingleBuild, arch: str, *missing: str) -> SingleBuild:
    return apply(build, Status.QUEUED, arch, held=True, missing=missing, job=7)


def test_it_waits_for_what_all_its_legs_miss() -> None:
    waiting = hold(hold(RELEASED, "x86_64", "a-devel"), "i386", "b-devel")
    assert (waiting.state, waiting.all_missing) == (SingleState.WAITING, ["a-devel", "b-devel"])
    assert list_legs(waiting) == ["x86_64", "i386"]


def test_it_is_not_over_with_its_main_leg_while_a_follower_waits() -> None:
    waiting = apply(hold(RELEASED, "i386", "b-devel"), Status.PUBLISHED)
    assert waiting.state == SingleState.WAITING
    assert apply(waiting, Status.PUBLISHED, "i386").state == SingleState.OVER


def test_it_is_over_with_its_main_leg_if_nothing_waits() -> None:
    assert list_legs(RELEASED) == ("x86_64",)
    assert apply(RELEASED, Status.FAILED, "i386").state == SingleState.RELEASED
    assert apply(RELEASED, Status.PUBLISHED).state == SingleState.OVER


def test_what_a_new_attempt_misses_replaces_what_the_last_one_missed() -> None:
    waiting = hold(hold(RELEASED, "x86_64", "a-devel"), "i386", "b-devel")
    again = hold(SingleBuild.from_json({**waiting.to_json(), "state": SingleState.RELEASED}), "i386", "c-devel")
    assert again.missing == {"i386": ("c-devel",)}


def test_its_job_is_not_the_one_that_asked_for_it_however_late_submit_announces_that() -> None:
    build = SingleBuild.from_json({**RELEASED.to_json(), "number": 5})
    assert apply(build, Status.QUEUED, job=5, held=True).job == 7
    assert apply(build, Status.QUEUED, job=9).job == 9

# SPDX-License-Identifier: Apache-2.0
"""Batches of a farm whose pages are tested: their files in incoming/, and their builds in the history."""

from __future__ import annotations

import time
from typing import Any

from reimzul.core.batch_message import OrderKind
from reimzul.core.message import Status
from reimzul.plan.document import Member
from reimzul.plan.progress import MemberState
from tests.batches import ScriptedBatch, key, make_plan, member
from tests.events import event
from tests.pages_stand import PagesStand

RUNNING, RESTING, OVER = "5f0c12ab", "0a1b2c3d", "00000fff"
#: Members of the batch that is over: more than its own page shows.
OVER_MEMBERS = 420
_RESULTS = {
    MemberState.PUBLISHED: Status.PUBLISHED,
    MemberState.FAILED: Status.FAILED,
}


def add_batch(stand: PagesStand, batch: str, *members: Member, ago: float = 9000.0, **more: Any) -> ScriptedBatch:
    """Submit a batch; all its builds are put."""
    plan = make_plan(members, batch, created=time.time() - ago, **more)
    scripted = ScriptedBatch(plan, stand.incoming)
    scripted.put_all()
    return scripted


def record_builds(stand: PagesStand, batch: ScriptedBatch) -> None:
    """Let the history have the builds of members that have a result."""
    for progress in batch.state.members.values():
        if progress.state in _RESULTS:
            about = progress.member
            given: dict[str, Any] = {
                "build_id": progress.build_id, "pkgname": about.name, "srpm": about.srpm, "target": about.target,
                "evr": about.evr, "disttag": progress.disttag, "reason": progress.reason, "at": progress.at,
                "timestamp": time.strftime("%Y%m%d%H%M%S", time.gmtime(progress.at)), "batch": batch.plan.batch,
            }  # fmt: skip
            stand.record(event(_RESULTS[progress.state], **given))


def add_running(stand: PagesStand, evil: str = "boom") -> ScriptedBatch:
    """A batch of which members are published, building, failed and held."""
    members = [
        member("gcc", chain=3000.0), member("qt6-qtbase", "gcc", chain=2400.0), member("six"), member("boost"),
        member("krb5", "gcc"), member("kate", "qt6-qtbase", "krb5"), member("dolphin", "qt6-qtbase", chain=1200.0),
        *(member(f"kde-app{number}", "dolphin") for number in range(20)),
        *(member(f"python-pkg{number}", "six") for number in range(5)), member("ceph", "boost"),
    ]  # fmt: skip
    batch = add_batch(stand, RUNNING, *members)
    batch.build(key("gcc"))
    batch.fail(key("six"), "BuildRequires that nobody provides: python3dist(hatchling)")
    batch.fail(key("boost"), f"failed: {evil}", evil)
    batch.release(key("qt6-qtbase"), key("krb5"))
    batch.announce(key("qt6-qtbase"), Status.BUILDING)
    record_builds(stand, batch)
    return batch


def add_resting(stand: PagesStand, evil: str = "boom") -> ScriptedBatch:
    """A scratch batch that waits for a person."""
    batch = add_batch(stand, RESTING, member("zlib"), member("curl", "zlib"), ago=90_000.0, scratch=True)
    batch.fail(key("zlib"), f"failed: {evil}", evil)
    batch.order(OrderKind.PAUSE, why=evil)
    batch.order(OrderKind.RESUME)
    batch.rest()
    record_builds(stand, batch)
    return batch


def add_over(stand: PagesStand) -> ScriptedBatch:
    """A large batch that has ended."""
    members = [member(f"perl-{number:03}") for number in range(OVER_MEMBERS)]
    batch = add_batch(stand, OVER, *members, ago=200_000.0)
    batch.build(*batch.state.members)
    batch.finish()
    return batch

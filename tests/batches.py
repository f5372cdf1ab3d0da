# SPDX-License-Identifier: Apache-2.0
"""Plans and journals of batches, written as reimzul-submit and reimzul-batch write them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import attr

from reimzul.core.batch_message import OrderKind
from reimzul.core.beanstalk import PRIORITY
from reimzul.core.message import BuildEvent, Status
from reimzul.plan.document import Member, Plan, journal_path, plan_path, write_plan
from reimzul.plan.journal import EntryKind, Journal, event_entry
from reimzul.plan.state import BatchState
from tests.events import ATTEMPT, BEGINNING

BATCH, ARCH, TARGET = "5f0c12ab", "x86_64", "c9s"


def member(name: str, *needs: str, arch: str = ARCH, **more: Any) -> Member:
    """A member that needs others, given by their names."""
    given: dict[str, Any] = {
        "target": f"{TARGET}.{arch}", "srpm": f"{name}-1.0-1.src.rpm", "srpm_sha256": "0" * 64, "evr": "1.0-1",
        "tube": arch, "legs": (arch,), "disttag": ".el9", "needs": [f"{need}.{arch}" for need in needs],
        "provides": [f"{name}-devel"], "packages": [name, f"{name}-devel"], "seconds": 600.0,
    }  # fmt: skip
    return Member(name=name, arch=arch, **{**given, **more})


def make_plan(members: Sequence[Member], batch: str = BATCH, **more: Any) -> Plan:
    arches = tuple(dict.fromkeys(each.arch for each in members))
    given: dict[str, Any] = {"target": TARGET, "arches": arches, "submitter": "johnny", "created": BEGINNING}
    return Plan(batch=batch, priority=PRIORITY, members=tuple(members), **{**given, **more})


@attr.define
class ScriptedBatch:
    """A batch whose journal the test writes; times go on by a second an entry."""

    plan: Plan
    folder: Path | None = None  #: incoming/; None: nothing is written
    state: BatchState = attr.field(init=False)
    at: float = attr.field(init=False)
    _journal: Journal | None = attr.field(default=None, init=False)

    def __attrs_post_init__(self) -> None:
        self.at, self.state = self.plan.created, BatchState(self.plan, lambda _: self.plan)
        sha256 = ""
        if self.folder is not None:
            sha256 = write_plan(plan_path(self.folder, self.plan.batch), self.plan)
            self._journal = Journal(journal_path(self.folder, self.plan.batch))
        self.add(EntryKind.ACCEPTED, plan_sha256=sha256)

    def add(self, kind: str, **more: Any) -> None:
        self.at += 1.0
        entry: Mapping[str, Any] = {"kind": kind, "at": self.at, **more}
        self.state.apply(entry)
        if self._journal is not None:
            self._journal.append([entry])

    def put_all(self) -> None:
        for key in list(self.state.members):
            self.put(key)

    def put(self, key: str) -> None:
        progress = self.state.members[key]
        build, job = self.state.next_build_id(key), 100 + len(self.state._key_of_build)
        self.add(
            EntryKind.PUT, member=key, build=build, job=job, count=progress.count, disttag=progress.disttag,
        )  # fmt: skip

    def release(self, *keys: str, stale: str = "") -> None:
        for key in keys:
            self.add(EntryKind.RELEASED, member=key, build=self.state.members[key].build_id, stale=stale)

    def announce(self, key: str, status: str, **more: Any) -> BuildEvent:
        """Journal an event of a member's build; `minutes` ago it began."""
        progress = self.state.members[key]
        about = progress.member
        given: dict[str, Any] = {
            "srpm": about.srpm, "arch": about.arch, "target": about.target, "submitter": "johnny",
            "build_id": progress.build_id, "batch": self.plan.batch, "attempt": ATTEMPT, "pkgname": about.name,
            "builder_fqdn": "b7.example.org", "at": self.at + 1.0, "disttag": progress.disttag, "evr": about.evr,
        }  # fmt: skip
        event = BuildEvent(status=status, **{**given, **more})
        self.at += 1.0
        entry = event_entry(event, self.at)
        self.state.apply(entry)
        if self._journal is not None:
            self._journal.append([entry])
        return event

    def build(self, *keys: str) -> None:
        """Let members be built and published."""
        for key in keys:
            self.release(key)
            self.announce(key, Status.BUILDING)
            self.announce(key, Status.SUCCESS)
            if not self.plan.scratch:
                self.announce(key, Status.PUBLISHED)

    def fail(self, key: str, reason: str, error_line: str = "") -> None:
        self.release(key)
        self.announce(key, Status.BUILDING)
        self.announce(key, Status.FAILED, reason=reason, error_line=error_line)

    def order(self, kind: str, *members: str, **more: Any) -> None:
        assert kind in OrderKind.ALL
        number = f"{len(self.state.orders):016x}"
        self.add(EntryKind.ORDER, order=kind, id=number, by="johnny", members=list(members), **more)

    def rest(self) -> None:
        self.add(EntryKind.RESTS)

    def finish(self) -> None:
        self.add(EntryKind.OVER)


def key(name: str, arch: str = ARCH) -> str:
    return f"{name}.{arch}"

# SPDX-License-Identifier: Apache-2.0
"""What the heartbeats of workers, repogen and tosign say of their hosts' health, for `doctor`, `explain` and others.

Heartbeats are not signed: whoever has a builder's key can send any. Nothing is decided by them.
"""

from __future__ import annotations

from collections.abc import Iterable

import attr

from reimzul.core.beanstalk import Broker
from reimzul.core.formatting import format_duration, format_size, pluralize
from reimzul.core.message import RecentError
from reimzul.history.workers import WorkerRecord, split_vanished

#: MiB and inodes: a disk of the controller or bstore with less is full, or nearly full.
FULL, LOW = (200, 1_000), (2_048, 20_000)


@attr.frozen(kw_only=True)
class Processes:
    """All processes that have sent heartbeats: those that are connected, and those that vanished."""

    connected: list[WorkerRecord] = attr.field(factory=list)
    vanished: list[WorkerRecord] = attr.field(factory=list)

    @classmethod
    def find(cls, broker: Broker, known: list[WorkerRecord]) -> Processes:
        connected, vanished = split_vanished(broker, known)
        return cls(connected=connected, vanished=vanished)

    @property
    def workers(self) -> list[WorkerRecord]:
        return [each for each in self.connected if each.is_worker]

    @property
    def services(self) -> list[WorkerRecord]:
        """The repogens and tosigns that are connected."""
        return [each for each in self.connected if not each.is_worker]


def describe_error(record: WorkerRecord, error: RecentError, now: float) -> str:
    """Describe what fails: `upload failed 5 times in a row, for 4 min 10 s: rsync …`."""
    span = format_duration(record.seconds_since(error.since, now))
    times = f"{error.count} times in a row, for {span}" if error.count > 1 else f"{span} ago"
    return f"{error.what} failed {times}: {error.message}"


def find_leg_errors(
    records: Iterable[WorkerRecord], build_id: str, arch: str, target: str
) -> list[tuple[WorkerRecord, RecentError]]:
    """Return the errors that hold up a leg: its own, and those of its target."""
    return [
        (record, error)
        for record in records
        for error in record.heartbeat.errors
        if (error.build_id, error.arch) == (build_id, arch) or (not error.build_id and error.target == target)
    ]


def describe_short_disk(record: WorkerRecord, limits: tuple[int, int]) -> str:
    """Return how little space a host of repogen or tosign has, if it is below the limits; else nothing."""
    mib, inodes = record.heartbeat.free_mib, record.heartbeat.free_inodes
    if mib < limits[0]:
        return f"its disk has {format_size(mib * 1024**2)} free"
    # 0 is sent for a file system that does not count them
    return f"its disk has {pluralize(inodes, 'inode')} free" if 0 < inodes < limits[1] else ""

# SPDX-License-Identifier: Apache-2.0
"""A worker's voice: it says that it is there and what it does, for whoever wants to know why a build waits.

Nothing depends on it, so it never costs anything that matters: where `notify` holds much already, or beanstalkd takes
nothing, it is silent, and the next word says what this one would have.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import time
from collections.abc import Sequence
from pathlib import Path

import attr

from reimzul import __version__
from reimzul.core.beanstalk import NOTIFY, Broker
from reimzul.core.errors import BrokerUnavailable, RetryLater
from reimzul.core.fs import FreeSpace
from reimzul.core.message import CurrentBuild, Feature, WorkerHeartbeat, WorkerState

log = logging.getLogger(__name__)

#: Seconds between two words at the least, also where something has changed.
MIN_INTERVAL_SECONDS = 5.0
#: How many jobs `notify` may hold before nobody needs to hear of us.
NOTIFY_BACKLOG_LIMIT = 10_000
#: The unit's instance, which its systemd file says.
INSTANCE_VARIABLE = "REIMZUL_INSTANCE"
#: What tells one start of one host from all others. Machines that were cloned share their machine id, containers of
#: one host the kernel's boot id; the three together are shared by nobody.
_BOOT_ID, _MACHINE_ID, _PID_NAMESPACE = (
    Path("/proc/sys/kernel/random/boot_id"), Path("/etc/machine-id"), Path("/proc/self/ns/pid"),
)  # fmt: skip


def own_instance() -> str:
    """Which of this host's workers this is."""
    return os.environ.get(INSTANCE_VARIABLE) or str(os.getpid())


def boot_token() -> str:
    """A token of this start of this host; nothing where the kernel does not tell. No id itself leaves the host."""
    try:
        boot = _BOOT_ID.read_bytes()
    except OSError:
        return ""
    machine = namespace = b""
    with contextlib.suppress(OSError):
        namespace = os.fsencode(os.readlink(_PID_NAMESPACE))
    with contextlib.suppress(OSError):
        machine = _MACHINE_ID.read_bytes()
    return hashlib.sha256(b"\n".join((b"reimzul", boot.strip(), machine.strip(), namespace))).hexdigest()[:16]


def session_token() -> str:
    """A token of this process."""
    return os.urandom(8).hex()


@attr.frozen(kw_only=True)
class WorkerIdentity:
    """What does not change about a worker."""

    host: str
    instance: str
    arches: tuple[str, ...]  #: the tubes it watches
    folders: tuple[Path, ...]  #: where builds need room
    boot: str = attr.field(factory=boot_token)
    session: str = attr.field(factory=session_token)


class HeartbeatSender:
    """Says what a worker does: at once where that has changed, else every so often."""

    def __init__(self, who: WorkerIdentity, every: int) -> None:
        """`every`: seconds between two words while nothing changes; 0: silent."""
        self.identity = who
        self.interval = every
        self._said: object = None
        self._at = float("-inf")

    def send(self, broker: Broker, state: str, why: str = "", build: CurrentBuild | None = None) -> None:
        """Say it, unless it was said just now. Raises `BrokerUnavailable`."""
        rested = time.monotonic() - self._at
        content = (state, why, build)
        if not self.interval or rested < MIN_INTERVAL_SECONDS or (rested < self.interval and content == self._said):
            return
        self._said, self._at = content, time.monotonic()
        try:
            if broker.tube_stats(NOTIFY.name).ready <= NOTIFY_BACKLOG_LIMIT:
                broker.announce(self._word(state, why, build))
        except RetryLater as error:
            log.debug("nobody is told that we are here: %s", error)

    def send_leaving(self, broker: Broker) -> None:
        """Say that this worker ends, where it said anything before; who cannot hear it finds the connection ended."""
        if self._said is not None:
            with contextlib.suppress(RetryLater, BrokerUnavailable):
                broker.announce(attr.evolve(self._word(WorkerState.DRAINED, "it has ended", None), leaving=True))

    def _word(self, state: str, why: str, build: CurrentBuild | None) -> WorkerHeartbeat:
        mib, inodes = _least(self.identity.folders)
        return WorkerHeartbeat(
            host=self.identity.host,
            instance=self.identity.instance,
            state=state,
            why=why,
            arches=self.identity.arches,
            version=__version__,
            features=Feature.ALL,
            load=round(os.getloadavg()[0], 2),
            free_mib=mib,
            free_inodes=inodes,
            build=build,
            at=round(time.time(), 3),
            boot=self.identity.boot,
            session=self.identity.session,
        )


def _least(folders: Sequence[Path]) -> tuple[int, int]:
    """What is free on the disk that has least of it: MiB and inodes, 0 where that cannot be known."""
    rooms = []
    for folder in folders:
        try:
            rooms.append(FreeSpace.measure(folder))
        except OSError:
            return 0, 0
    counted = [room.inodes for room in rooms if room.inodes is not None]
    return min((room.mib for room in rooms), default=0), min(counted, default=0)


def idle_state(*, quarantined: bool, drained: bool, unfit: bool) -> str:
    """What a worker that builds nothing is."""
    if quarantined:
        return WorkerState.QUARANTINED
    if drained:
        return WorkerState.DRAINED
    return WorkerState.UNFIT if unfit else WorkerState.IDLE

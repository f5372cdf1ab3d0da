# SPDX-License-Identifier: Apache-2.0
"""Sends the worker's heartbeats, which answer why a build waits.

Nothing depends on them: where `notify` has a long backlog, or beanstalkd takes nothing, none is sent, and the next one
has the same content.
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

#: Seconds between two heartbeats at least, also where something has changed.
MIN_INTERVAL_SECONDS = 5.0
#: Jobs in `notify` above which no heartbeat is sent.
NOTIFY_BACKLOG_LIMIT = 10_000
#: The environment variable with the unit's instance, which its systemd file sets.
INSTANCE_VARIABLE = "REIMZUL_INSTANCE"
#: These identify one start of one host. Cloned machines share their machine id, containers of one host the kernel's
#: boot id; no two hosts share all three.
_BOOT_ID, _MACHINE_ID, _PID_NAMESPACE = (
    Path("/proc/sys/kernel/random/boot_id"), Path("/etc/machine-id"), Path("/proc/self/ns/pid"),
)  # fmt: skip


def own_instance() -> str:
    return os.environ.get(INSTANCE_VARIABLE) or str(os.getpid())


def boot_token() -> str:
    """A token of this start of this host; empty where the kernel has no boot id. No id itself leaves the host."""
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


@attr.frozen(kw_only=True)
class WorkerIdentity:
    host: str
    instance: str
    arches: tuple[str, ...]  #: the tubes it watches
    folders: tuple[Path, ...]  #: where builds need space
    boot: str = attr.field(factory=boot_token)
    session: str = attr.field(factory=lambda: os.urandom(8).hex())  #: of this process


class HeartbeatSender:
    """Sends what a worker does: at once where that has changed, else every so often."""

    def __init__(self, identity: WorkerIdentity, interval: int) -> None:
        """`interval`: seconds between two heartbeats while nothing changes; 0: none is sent."""
        self.identity = identity
        self.interval = interval
        self._sent: object = None
        self._sent_at = float("-inf")

    def send(self, broker: Broker, state: str, why: str = "", build: CurrentBuild | None = None) -> None:
        """Send a heartbeat, unless one was sent just now. Raises `BrokerUnavailable`."""
        elapsed = time.monotonic() - self._sent_at
        content = (state, why, build)
        is_repeated = elapsed < self.interval and content == self._sent
        if not self.interval or elapsed < MIN_INTERVAL_SECONDS or is_repeated:
            return
        self._sent, self._sent_at = content, time.monotonic()
        try:
            if broker.tube_stats(NOTIFY.name).ready <= NOTIFY_BACKLOG_LIMIT:
                broker.announce(self._heartbeat(state, why, build))
        except RetryLater as error:
            log.debug("no heartbeat is sent: %s", error)

    def send_leaving(self, broker: Broker) -> None:
        """Announce that this worker ends, if it has sent a heartbeat; else its closed connection shows it."""
        if self._sent is not None:
            with contextlib.suppress(RetryLater, BrokerUnavailable):
                broker.announce(attr.evolve(self._heartbeat(WorkerState.DRAINED, "it has ended", None), leaving=True))

    def _heartbeat(self, state: str, why: str, build: CurrentBuild | None) -> WorkerHeartbeat:
        mib, inodes = _least_free(self.identity.folders)
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


def _least_free(folders: Sequence[Path]) -> tuple[int, int]:
    """MiB and inodes free on the disk that has least of them; 0 where that cannot be measured."""
    try:
        spaces = [FreeSpace.measure(folder) for folder in folders]
    except OSError:
        return 0, 0
    inodes = [space.inodes for space in spaces if space.inodes is not None]
    return min((space.mib for space in spaces), default=0), min(inodes, default=0)

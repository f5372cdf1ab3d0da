# SPDX-License-Identifier: Apache-2.0
"""Sends the heartbeats of a worker, of repogen and of tosign, with what fails there now.

Heartbeats answer why a build waits, and show the controller the health of all hosts. Nothing depends on them: where
`notify` has a long backlog, or beanstalkd takes nothing, none is sent, and the next one has the same content.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import shutil
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Callable, Optional

import attr

from reimzul import __version__
from reimzul.core.beanstalk import NOTIFY, Broker
from reimzul.core.errors import BrokerUnavailable, InvalidMessage, RetryLater
from reimzul.core.fs import FreeSpace
from reimzul.core.message import MAX_ERRORS, CurrentBuild, Feature, RecentError, Role, WorkerHeartbeat, WorkerState
from reimzul.core.targets import TargetList

log = logging.getLogger(__name__)

#: Seconds after which the list of targets is sent again although it has not changed.
LIST_INTERVAL_SECONDS = 600.0
#: Seconds between two heartbeats at least, also where something has changed.
MIN_INTERVAL_SECONDS = 5.0
#: Seconds between two heartbeats of repogen and of tosign.
SERVICE_INTERVAL_SECONDS = 30
#: Jobs in `notify` above which no heartbeat is sent.
NOTIFY_BACKLOG_LIMIT = 10_000
#: Seconds after which an error that did not come again is dropped: nothing that fails is retried later than that, so
#: another process has done it, or it was given up.
ERROR_RETENTION_SECONDS = 900.0
#: The environment variable with the unit's instance, which its systemd file sets.
INSTANCE_VARIABLE = "REIMZUL_INSTANCE"
#: These identify one start of one host. Cloned machines share their machine id, containers of one host the kernel's
#: boot id; no two hosts share all three.
_BOOT_ID, _MACHINE_ID, _PID_NAMESPACE = (
    Path("/proc/sys/kernel/random/boot_id"), Path("/etc/machine-id"), Path("/proc/self/ns/pid"),
)  # fmt: skip


def own_instance(role: str = Role.WORKER) -> str:
    """Return the name of this process among those of its host.

    The role is a part of it: a notifier of 0.1 would take a repogen for another worker of that instance.
    """
    instance = os.environ.get(INSTANCE_VARIABLE) or str(os.getpid())
    return f"{role}-{instance}" if role else instance


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


class ErrorLog:
    """What fails in this process now: an error stays until the same step succeeds. Any thread may call its methods."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._errors: dict[tuple[str, str, str, str], tuple[RecentError, float]] = {}  #: with when it is dropped

    def add(
        self,
        what: str,
        message: str,
        *,
        build_id: str = "",
        arch: str = "",
        target: str = "",
        keep: float = ERROR_RETENTION_SECONDS,
    ) -> None:
        """Record that a step failed, once more; without a build, of that target, or without either, of any build."""
        key, now = (what, build_id, arch, "" if build_id else target), round(time.time(), 3)
        with self._lock:
            before = self._errors.pop(key, None)
            count, since = (before[0].count + 1, before[0].since) if before else (1, now)
            error = RecentError(
                what=what, message=message, build_id=build_id, arch=arch, target=target, since=since, at=now,
                count=min(count, 1_000_000),
            )  # fmt: skip
            self._errors[key] = (error, time.monotonic() + keep)

    def clear(self, what: str, *, build_id: str = "", arch: str = "", target: str = "") -> None:
        """Drop a step's error: it has succeeded, or nobody tries it any more."""
        with self._lock:
            self._errors.pop((what, build_id, arch, "" if build_id else target), None)

    def record(self, what: str, outcome: object, *, build_id: str = "", arch: str = "", target: str = "") -> None:
        """Add a step's outcome if it is an error after which the step is tried again; else drop the step's error."""
        if isinstance(outcome, (OSError, RetryLater)):
            self.add(what, str(outcome), build_id=build_id, arch=arch, target=target)
        else:
            self.clear(what, build_id=build_id, arch=arch, target=target)

    def list_latest(self) -> tuple[RecentError, ...]:
        now = time.monotonic()
        with self._lock:
            self._errors = {key: each for key, each in self._errors.items() if each[1] > now}
            found = [error for error, _ in self._errors.values()]
        return tuple(found[: -MAX_ERRORS - 1 : -1])


@attr.frozen(kw_only=True)
class ProcessIdentity:
    host: str
    instance: str
    role: str = Role.WORKER
    arches: tuple[str, ...] = ()  #: the tubes that a worker watches
    folders: tuple[Path, ...]  #: where it needs space
    mock: str = ""  #: the program that a worker builds with
    boot: str = attr.field(factory=boot_token)
    session: str = attr.field(factory=lambda: os.urandom(8).hex())  #: of this process


@attr.define
class HeartbeatSender:
    """Sends what a process does: at once where that has changed, else every so often."""

    identity: ProcessIdentity
    interval: int  #: seconds between two heartbeats while nothing changes; 0: none is sent
    errors: ErrorLog = attr.field(factory=ErrorLog)
    read_targets: Optional[Callable[[], TargetList]] = None  #: None: it reports no targets
    _listed: Optional[TargetList] = attr.field(default=None, init=False)  #: the last list that was sent whole
    _listed_at: float = attr.field(default=float("-inf"), init=False)
    _sent: object = attr.field(default=None, init=False)
    _sent_at: float = attr.field(default=float("-inf"), init=False)

    def send(self, broker: Broker, state: str, why: str = "", build: CurrentBuild | None = None) -> None:
        """Send a heartbeat, unless one was sent just now. Raises `BrokerUnavailable`."""
        now = time.monotonic()
        elapsed = now - self._sent_at
        if not self.interval or elapsed < MIN_INTERVAL_SECONDS:
            return
        targets = self.read_targets() if self.read_targets else None
        content = (state, why, build, targets, self.errors.list_latest())
        if elapsed < self.interval and content == self._sent:
            return
        self._sent, self._sent_at = content, now
        try:
            if broker.tube_stats(NOTIFY.name).ready <= NOTIFY_BACKLOG_LIMIT:
                heartbeat = self._add_targets(self._heartbeat(state, why, build), targets, now)
                _announce_what_fits(broker, heartbeat)
                if heartbeat.targets:
                    self._listed, self._listed_at = targets, now
        except RetryLater as error:
            log.debug("no heartbeat is sent: %s", error)

    def _add_targets(self, heartbeat: WorkerHeartbeat, targets: TargetList | None, now: float) -> WorkerHeartbeat:
        """Add the list of targets if it has changed or was sent long ago, else its fingerprint alone."""
        if targets is None:
            return heartbeat
        marked = attr.evolve(heartbeat, targets_fingerprint=targets.fingerprint)
        if targets == self._listed and now - self._listed_at < LIST_INTERVAL_SECONDS:
            return marked
        return attr.evolve(marked, targets=targets.names, targets_left_out=targets.left_out)

    def send_leaving(self, broker: Broker) -> None:
        """Announce that this process ends, if it has sent a heartbeat; else its closed connection shows it."""
        if self._sent is not None:
            with contextlib.suppress(RetryLater, BrokerUnavailable):
                broker.announce(attr.evolve(self._heartbeat(WorkerState.DRAINED, "it has ended", None), leaving=True))

    def _heartbeat(self, state: str, why: str, build: CurrentBuild | None) -> WorkerHeartbeat:
        identity = self.identity
        mib, inodes = _least_free(identity.folders)
        return WorkerHeartbeat(
            host=identity.host,
            instance=identity.instance,
            role=identity.role,
            state=state,
            why=why,
            arches=identity.arches,
            version=__version__,
            features=Feature.ALL if identity.role == Role.WORKER else (),
            load=_current_load(),
            free_mib=mib,
            free_inodes=inodes,
            build=build,
            at=round(time.time(), 3),
            boot=identity.boot,
            session=identity.session,
            interval=self.interval,
            mock=shutil.which(identity.mock) is not None if identity.mock else None,
            errors=self.errors.list_latest(),
        )


def _announce_what_fits(broker: Broker, heartbeat: WorkerHeartbeat) -> None:
    """Announce a heartbeat; without its lists if it is too large for a tube."""
    try:
        broker.announce(heartbeat)
    except InvalidMessage:
        broker.announce(attr.evolve(heartbeat, targets=(), errors=()))


def _current_load() -> float:
    """The load of the last minute; 0 where a unit hides it (ProcSubset=pid)."""
    try:
        return round(os.getloadavg()[0], 2)
    except OSError:
        return 0.0


def _least_free(folders: Sequence[Path]) -> tuple[int, int]:
    """MiB and inodes free on the disk that has least of them; 0 where that cannot be measured."""
    try:
        spaces = [FreeSpace.measure(folder) for folder in folders]
    except OSError:
        return 0, 0
    inodes = [space.inodes for space in spaces if space.inodes is not None]
    return min((space.mib for space in spaces), default=0), min(inodes, default=0)

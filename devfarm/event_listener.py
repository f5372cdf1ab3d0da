# SPDX-License-Identifier: Apache-2.0
"""Follows builds while they run: events by MQTT, to which anybody may subscribe, and phases from mock's logs.

The phases can be read because builders and demo share a machine; a farm across a network has the events alone.
"""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import select
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import attr

from devfarm import subreaper
from devfarm.farm import Farm
from devfarm.plan import TOPIC
from reimzul.core.arch import read_arches
from reimzul.core.errors import InvalidMessage, ReimzulError
from reimzul.core.message import BuildEvent, Event, Status, WorkerHeartbeat, decode_event
from reimzul.core.process import PIPE, output_of, spawn

_SECTION = re.compile(rb"^Executing\((%(?:prep|generate_buildrequires|conf|build|install|check))\):", re.MULTILINE)
_STARTED = re.compile(r" - Start(?:\(\w+\))?: (.+)$", re.MULTILINE)
#: How much of a growing log is searched for its last phase, bytes.
_TAIL_BYTES = 256 * 1024
#: The order of a build's statuses (3 for those not listed); an event of an earlier one that comes late is ignored.
_RANK = {Status.QUEUED: 0, Status.BUILDING: 1, Status.SUCCESS: 2}
#: The statuses that a worker announces; others say nothing about legs that have not started.
_WORKER_STATUSES = (Status.BUILDING, Status.SUCCESS, Status.FAILED)
_FAILURES = (Status.FAILED, Status.REJECTED, Status.CANCELLED)


class EventListener:
    """Every event of a farm since the listener started, apart from heartbeats."""

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream = stream
        self._rest = b""

    def read(self, seconds: float) -> list[Event]:
        """Wait that long for events; return as soon as there are some."""
        if not select.select([self._stream], [], [], seconds)[0]:
            return []
        data = os.read(self._stream.fileno(), 1024 * 1024)
        if not data:
            raise ReimzulError("the connection to the MQTT broker has ended")
        *lines, self._rest = (self._rest + data).split(b"\n")
        events = []
        for line in lines:
            with contextlib.suppress(InvalidMessage):
                events.append(decode_event(line))
        return [event for event in events if not isinstance(event, WorkerHeartbeat)]


@contextlib.contextmanager
def listen(farm: Farm) -> Iterator[EventListener]:
    """Listen to a farm's events; none that comes after this is entered is missed."""
    session = ("-i", f"listener-{secrets.token_hex(4)}", "-c")
    # Subscribe and leave (-E), then listen: the broker keeps what comes meanwhile for the session.
    output_of(farm.listen_command(f"{TOPIC}/builds/events", *session, "-E"), timeout=20)
    command = farm.listen_command(f"{TOPIC}/builds/events", *session)
    with spawn(subreaper.wrap_command(command, grace=1, parent=os.getpid()), output=PIPE) as process:
        assert process.stdout
        with process.stdout as stream:
            yield EventListener(stream)


@attr.define
class Leg:
    """One build on one arch."""

    build_id: str
    arch: str
    status: str = Status.QUEUED
    event: BuildEvent | None = None  #: the last one that changed the leg
    place: str = ""
    rpms: tuple[str, ...] = ()
    phase: str = ""
    since: float = attr.field(factory=time.monotonic)  #: when its status last changed

    @property
    def is_over(self) -> bool:
        return self.status == Status.PUBLISHED or self.has_failed

    @property
    def has_failed(self) -> bool:
        return self.status in _FAILURES

    @property
    def name(self) -> str:
        """The package and its arch, as far as they are known."""
        if self.event is None:
            return self.arch
        evr = self.event.evr or self.event.srpm
        return f"{self.event.pkgname} {evr}.{self.arch}" if self.event.pkgname else f"{evr} for {self.arch}"

    @property
    def seconds(self) -> float:
        """How long the leg has had its status."""
        return time.monotonic() - self.since

    def apply(self, event: BuildEvent) -> bool:
        """Apply an event; return whether it was news."""
        if _RANK.get(event.status, 3) < _RANK.get(self.status, 3) or (event.status == self.status and self.event):
            return False
        if event.status != self.status:
            self.since = time.monotonic()
        self.status, self.event = event.status, event
        self.place, self.rpms = event.place or self.place, event.rpms or self.rpms
        return True


class Builds:
    """The submitted builds and all their legs."""

    def __init__(self, farm: Farm) -> None:
        self._results = [farm.layout.results(host.name) for host in farm.hosts if host.is_builder]
        self.legs: dict[tuple[str, str], Leg] = {}
        self._arches = read_arches()

    def expect(self, build_id: str, arch: str) -> None:
        """Follow a build that was submitted."""
        self.legs[build_id, arch] = Leg(build_id, arch)

    def apply(self, event: Event) -> Leg | None:
        """Apply an event; return the leg if it was news of one of these builds."""
        if not isinstance(event, BuildEvent) or event.build_id not in {build_id for build_id, _ in self.legs}:
            return None
        self._add_following_legs(event)
        leg = self.legs.setdefault((event.build_id, event.arch), Leg(event.build_id, event.arch))
        return leg if leg.apply(event) else None

    def _add_following_legs(self, event: BuildEvent) -> None:
        """Add the legs that come with a main one: when that starts, its event names those that are skipped."""
        main = (event.build_id, event.arch) in self.legs and event.arch in self._arches.known
        if main and event.pkgname and event.status in _WORKER_STATUSES:
            for arch in self._arches.legs_of(event.arch, event.pkgname):
                if arch not in event.skipped:
                    self.legs.setdefault((event.build_id, arch), Leg(event.build_id, arch))

    def update_phases(self) -> list[Leg]:
        """Read the logs of running builds; return the legs whose phase changed."""
        changed = []
        for leg in self.legs.values():
            if leg.status == Status.BUILDING and leg.event:
                pattern = f"builds/*{leg.event.attempt}*/{leg.arch}/result"
                folder = next((path for results in self._results for path in results.glob(pattern)), None)
                phase = _read_phase(folder) if folder else ""
                if phase and phase != leg.phase:
                    leg.phase = phase
                    changed.append(leg)
        return changed

    @property
    def all_over(self) -> bool:
        return all(leg.is_over for leg in self.legs.values())

    @property
    def failed_legs(self) -> list[Leg]:
        return [leg for leg in self.legs.values() if leg.has_failed]


def _read_phase(folder: Path) -> str:
    """mock's phase, from the logs in a result folder: rpmbuild's section, else mock's own step."""
    with contextlib.suppress(OSError), (folder / "build.log").open("rb") as log:
        log.seek(max(0, os.fstat(log.fileno()).st_size - _TAIL_BYTES))
        if sections := _SECTION.findall(log.read()):
            return str(sections[-1].decode())
    with contextlib.suppress(OSError):
        steps = _STARTED.findall((folder / "state.log").read_text(encoding="utf-8", errors="replace"))
        return str(steps[-1]) if steps else ""
    return ""

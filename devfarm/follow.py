# SPDX-License-Identifier: Apache-2.0
"""Following builds while they happen: events by MQTT, as anybody may subscribe to them, and phases from mock's logs.

The phases are there because builders and demo share a machine; a farm across a network has the events alone.
"""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import select
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO

import attr

from devfarm import reaper
from devfarm.farm import Farm
from devfarm.plan import TOPIC
from reimzul.core.arch import read_arches
from reimzul.core.errors import InvalidMessage, ReimzulError
from reimzul.core.message import BuildEvent, Event, Status, WorkerHeartbeat, decode_event
from reimzul.core.process import PIPE, output_of, spawn

_SECTION = re.compile(rb"^Executing\((%(?:prep|generate_buildrequires|conf|build|install|check))\):", re.MULTILINE)
_STARTED = re.compile(r" - Start(?:\(\w+\))?: (.+)$", re.MULTILINE)
#: How much of a growing log is looked at for its last phase, bytes.
_TAIL = 256 * 1024
#: What a build goes through; an event of an earlier kind that comes late changes nothing.
_RANK = {Status.QUEUED: 0, Status.BUILDING: 1, Status.SUCCESS: 2, Status.FAILED: 3, Status.PUBLISHED: 3}
#: Events of a worker; those of others say nothing of legs that are not started.
_TELLS_LEGS = (Status.BUILDING, Status.SUCCESS, Status.FAILED)
_LOST = (Status.FAILED, Status.REJECTED, Status.CANCELLED)


class Ears:
    """Every event of a farm, from when we began to listen."""

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream = stream
        self._rest = b""

    def hear(self, seconds: float) -> list[Event]:
        """The events that come within so many seconds; those that are there at once."""
        if not select.select([self._stream], [], [], seconds)[0]:
            return []
        heard = os.read(self._stream.fileno(), 1024 * 1024)
        if not heard:
            raise ReimzulError("the MQTT broker does not talk to us any more")
        *lines, self._rest = (self._rest + heard).split(b"\n")
        return list(_events(lines))


def _events(lines: Sequence[bytes]) -> Iterator[Event]:
    for line in lines:
        with contextlib.suppress(InvalidMessage):
            told = decode_event(line)
            if not isinstance(told, WorkerHeartbeat):
                yield told


@contextlib.contextmanager
def listening(farm: Farm) -> Iterator[Ears]:
    """Listen to a farm's events; none that comes after this is entered is missed."""
    session = ("-i", f"listener-{secrets.token_hex(4)}", "-c")
    # the broker keeps for a session what comes while it is away: subscribe (-E: and leave), then listen at leisure
    output_of(farm.listen_command(f"{TOPIC}/builds/events", *session, "-E"), timeout=20)
    argv = reaper.command(farm.listen_command(f"{TOPIC}/builds/events", *session), grace=1, parent=os.getpid())
    with spawn(argv, output=PIPE) as process:
        assert process.stdout
        with process.stdout as heard:
            yield Ears(heard)


@attr.define
class Leg:
    """One build on one arch, as far as it has come."""

    build_id: str
    arch: str
    status: str = Status.QUEUED
    event: BuildEvent | None = None  #: the last that told news of it
    place: str = ""
    rpms: tuple[str, ...] = ()
    phase: str = ""
    since: float = attr.field(factory=time.monotonic)  #: when it came to this status

    @property
    def ended(self) -> bool:
        """Whether nothing more will come of it."""
        return self.status == Status.PUBLISHED or self.lost

    @property
    def lost(self) -> bool:
        """Whether it did not work out."""
        return self.status in _LOST

    @property
    def name(self) -> str:
        """What is built, as people call it."""
        if self.event is None:
            return self.arch
        evr = self.event.evr or self.event.srpm
        return f"{self.event.pkgname} {evr}.{self.arch}" if self.event.pkgname else f"{evr} for {self.arch}"

    @property
    def seconds(self) -> float:
        """How long it has been what it is."""
        return time.monotonic() - self.since

    def heed(self, event: BuildEvent) -> bool:
        """Take an event in; whether it told news."""
        if _RANK.get(event.status, 3) < _RANK.get(self.status, 3) or (event.status == self.status and self.event):
            return False
        if event.status != self.status:
            self.since = time.monotonic()
        self.status, self.event = event.status, event
        self.place, self.rpms = event.place or self.place, event.rpms or self.rpms
        return True


class Builds:
    """What was submitted, and every leg of it."""

    def __init__(self, farm: Farm) -> None:
        self._results = [farm.layout.results(host.name) for host in farm.hosts if host.is_builder]
        self.legs: dict[tuple[str, str], Leg] = {}
        self._arches = read_arches()

    def expect(self, build_id: str, arch: str) -> None:
        """A build that was submitted."""
        self.legs[build_id, arch] = Leg(build_id, arch)

    def heed(self, event: Event) -> Leg | None:
        """Take in an event; the leg it told news of, None where it told none of ours."""
        if not isinstance(event, BuildEvent) or event.build_id not in {build_id for build_id, _ in self.legs}:
            return None
        self._follow(event)
        leg = self.legs.setdefault((event.build_id, event.arch), Leg(event.build_id, event.arch))
        return leg if leg.heed(event) else None

    def _follow(self, event: BuildEvent) -> None:
        """The legs that come with a main one: they are known when it begins, for then it says which do not."""
        main = (event.build_id, event.arch) in self.legs and event.arch in self._arches.known
        if main and event.pkgname and event.status in _TELLS_LEGS:
            for arch in self._arches.legs_of(event.arch, event.pkgname):
                if arch not in event.skipped:
                    self.legs.setdefault((event.build_id, arch), Leg(event.build_id, arch))

    def look(self) -> list[Leg]:
        """Look at the logs of what is being built; the legs that came into a new phase."""
        changed = []
        for leg in self.legs.values():
            if leg.status == Status.BUILDING and leg.event:
                phase = self._phase(leg.event.attempt, leg.arch)
                if phase and phase != leg.phase:
                    leg.phase = phase
                    changed.append(leg)
        return changed

    def _phase(self, attempt: str, arch: str) -> str:
        for results in self._results:
            for folder in results.glob(f"builds/*{attempt}*/{arch}/result"):
                return phase_of(folder)
        return ""

    @property
    def ended(self) -> bool:
        """Whether all have come to an end."""
        return all(leg.ended for leg in self.legs.values())

    @property
    def lost(self) -> list[Leg]:
        """Those that did not work out."""
        return [leg for leg in self.legs.values() if leg.lost]


def phase_of(folder: Path) -> str:
    """What mock is at, from its logs in a result folder: rpmbuild's section, else its own step."""
    with contextlib.suppress(OSError), (folder / "build.log").open("rb") as log:
        log.seek(max(0, os.fstat(log.fileno()).st_size - _TAIL))
        if sections := _SECTION.findall(log.read()):
            return str(sections[-1].decode())
    with contextlib.suppress(OSError):
        steps = _STARTED.findall((folder / "state.log").read_text(encoding="utf-8", errors="replace"))
        return str(steps[-1]) if steps else ""
    return ""

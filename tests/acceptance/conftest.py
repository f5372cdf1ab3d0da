# SPDX-License-Identifier: Apache-2.0
"""A whole farm, once a session, and a witness that receives every event of it."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Callable

import pytest

from devfarm.farm import Farm
from reimzul.core.message import BuildEvent, Event, Refusal, Status
from tests import srpms
from tests.listener import EventListener, listen
from tests.schemas import check_line
from tests.waiting import until

TARGET = "demo.1"


class Witness:
    """Every event of the farm, in the order of the announcements."""

    def __init__(self, ears: EventListener) -> None:
        self._ears = ears
        self.events: list[Event] = []

    def until(self, condition: Callable[[], bool], seconds: float, what: str) -> None:
        """Listen until something is so."""

        def heard() -> bool:
            self.events += self._ears.read(0.1)
            return condition()

        until(heard, seconds, what)

    def of(self, srpm: str, *statuses: str) -> list[BuildEvent]:
        """The events about a source rpm."""
        told = [event for event in self.events if isinstance(event, BuildEvent) and event.srpm == srpm]
        return [event for event in told if not statuses or event.status in statuses]

    def arches(self, srpm: str, *statuses: str) -> set[str]:
        """The arches for which one of these was announced."""
        return {event.arch for event in self.of(srpm, *statuses)}

    def published(self, srpm: str, *arches: str, seconds: float = 60) -> list[BuildEvent]:
        """Listen until a source rpm is published for these arches; the events that say so."""
        self.until(
            lambda: self.arches(srpm, Status.PUBLISHED) >= set(arches), seconds, f"{srpm} published: {self.of(srpm)}"
        )
        return self.of(srpm, Status.PUBLISHED)

    def failed(self, srpm: str, arch: str, seconds: float = 60) -> BuildEvent:
        """Listen until a source rpm has failed for an arch; the event that says so."""
        self.until(lambda: arch in self.arches(srpm, Status.FAILED), seconds, f"{srpm} failed: {self.of(srpm)}")
        return next(event for event in self.of(srpm, Status.FAILED) if event.arch == arch)

    def refusals(self) -> list[Refusal]:
        """The refusals."""
        return [event for event in self.events if isinstance(event, Refusal)]


@pytest.fixture(scope="session")
def farm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Farm]:
    """Two builders, two repogen workers, and all that belongs to them."""
    with Farm(tmp_path_factory.mktemp("farm") / "state", repogens=2, targets=(TARGET, "batch.1")) as farm:
        yield farm


@pytest.fixture(scope="session")
def witness(farm: Farm) -> Iterator[Witness]:
    """A listener from the start of the farm."""
    with listen(farm) as ears:
        yield Witness(ears)


@pytest.fixture(scope="session")
def package(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, str], Path]:
    """Makes a source rpm of a spec's text."""
    folder = tmp_path_factory.mktemp("srpms")
    return lambda name, spec: srpms.make_srpm(folder, name, spec)


def submit(farm: Farm, srpm: Path | str, *more: str, target: str = TARGET) -> subprocess.CompletedProcess[str]:
    """Run reimzul-submit as anybody does."""
    argv: Sequence[str] = farm.submit_command(Path(srpm), target, *more)
    done = subprocess.run(argv, capture_output=True, text=True, timeout=30, check=False)
    check_line(["reimzul-submit", *more], done.stdout)
    return done

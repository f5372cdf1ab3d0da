# SPDX-License-Identifier: Apache-2.0
"""One trial: builds are submitted, one bad thing is done meanwhile, and the farm is looked at when it has settled."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Callable

import attr

from reimzul.core.beanstalk import CREATEREPO, PRIORITY
from reimzul.core.errors import ReimzulError
from reimzul.core.message import RepogenRequest
from reimzul.repogen.verify import UNREQUESTED_SECONDS, scan_spool
from tests.faults import checks
from tests.faults.checks import Before, Loose
from tests.faults.ground import Ground
from tests.faults.ledger import Build, some_builds

if TYPE_CHECKING:
    from tests.faults.kinds import Kind

#: Seconds over which builds are submitted.
_SUBMITTING = 1.0
#: Seconds a person goes on trying to submit.
_INSISTING = 60.0
_DAY = 86400.0


@attr.define(kw_only=True)
class Outcome:
    """What came of a trial."""

    kind: str
    seed: int
    done: str = ""  #: what was done, in words
    faults: list[str] = attr.field(factory=list)  #: what is wrong
    settled: float = 0.0  #: seconds it took after the fault was over
    took: float = 0.0  #: seconds, in all
    builds: int = 0
    doubles: int = 0  #: messages by MQTT that came twice where that is documented
    measured: list[tuple[str, float]] = attr.field(factory=list)


class Trial:
    """A trial under way."""

    def __init__(self, ground: Ground, kind: Kind, seed: int, messages: int = 10_000) -> None:
        """`messages` is how many hostile ones there are to be."""
        self.ground, self.kind, self.messages = ground, kind, messages
        self.chance = random.Random(f"{kind.name} {seed}")
        self.name = f"{kind.name.replace('-', '')}{seed}t{int(time.time()) % 100_000}"
        self.outcome = Outcome(kind=kind.name, seed=seed)
        self.loose = Loose()
        self.submitted = threading.Event()  #: all there is to be submitted is
        low, high = kind.builds
        self.builds = some_builds(self.chance, self.name, self.chance.randint(low, high))
        self._moments = [self.chance.uniform(0, _SUBMITTING) for _ in self.builds]
        self._moment = self.chance.uniform(0, kind.latest)
        self._later: list[Callable[[], None]] = []

    def run(self) -> Outcome:
        """From the first submission to the last check."""
        began = time.monotonic()
        before = self.before = Before.observe(self.ground)
        submitting = threading.Thread(target=self._submit_in_time, args=(list(zip(self._moments, self.builds)),))
        submitting.start()
        try:
            time.sleep(self._moment)
            self.outcome.done = f"{self.kind.do(self)}, {self._moment:.2f} s after the beginning"
            submitting.join()
            self._settle()
            for check in self._later:
                check()
            self.outcome.faults += checks.faults(self.ground, self.builds, before, self.loose)
        except (AssertionError, ReimzulError, OSError) as error:
            self.outcome.faults.append(f"{type(error).__name__}: {error}")
        finally:
            submitting.join()
        self.outcome.builds, self.outcome.took = len(self.builds), time.monotonic() - began
        self.outcome.doubles = checks.doubles(self.ground, before)
        return self.outcome

    # --- for the kinds --------------------------------------------------------------------------------------------

    def submit_all(self, builds: Sequence[Build]) -> None:
        """Submit more, now."""
        for build in builds:
            self.ground.submit(build)
        self.builds += builds

    def measure(self, what: str, value: float, limit: float) -> None:
        """Keep a figure; one over its limit is a fault."""
        self.outcome.measured.append((what, value))
        if value > limit:
            self.outcome.faults.append(f"{what}: {value:.1f}, and {limit:g} is the most")

    def later(self, check: Callable[[], None]) -> None:
        """Have something looked at when the farm has settled."""
        self._later.append(check)

    # --- its course -----------------------------------------------------------------------------------------------

    def _submit_in_time(self, plan: list[tuple[float, Build]]) -> None:
        began = time.monotonic()
        for moment, build in sorted(plan, key=lambda row: row[0]):
            time.sleep(max(0.0, began + moment - time.monotonic()))
            self._insist(build)
        self.submitted.set()

    def _insist(self, build: Build) -> None:
        """Submit as a person would, until the build is reported as queued: others may be queued as well."""
        deadline = time.monotonic() + _INSISTING
        while not build.accepted and time.monotonic() < deadline:
            try:
                self.ground.submit(build)
            except ReimzulError:
                self.builds.append(attr.evolve(build, build_id=""))
                build.name += "x"
                time.sleep(0.5)

    def _settle(self) -> None:
        """Wait for it, then put the clock forward: what repogen's hourly look through the spool takes up is no loss."""
        self.outcome.settled = self.ground.settle(self.kind.patience)
        store = self.ground.farm.layout.store
        found = (
            list(scan_spool(store, 7, time.time() + 8 * _DAY + UNREQUESTED_SECONDS))
            if any(store.spool.iterdir())
            else []
        )
        with self.ground.broker() as broker:
            for each in found:
                if isinstance(each, RepogenRequest):
                    broker.put(CREATEREPO, each, priority=PRIORITY)
        if found:
            self.ground.settle(self.kind.patience)

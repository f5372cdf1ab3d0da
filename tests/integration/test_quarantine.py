# SPDX-License-Identifier: Apache-2.0
"""Quarantine on a real beanstalkd: who is held back and who is not, the canary, and the way back."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import attr
import pytest

from reimzul.admin import builders
from reimzul.core import control
from reimzul.core.arch import read_arches
from reimzul.core.beanstalk import NOTIFY, Broker, arch_tube, canary_tube, drain_tube
from reimzul.core.message import BuilderEvent, BuildEvent, BuildRequest, WorkerHeartbeat, WorkerState
from reimzul.history.workers import WorkerRecord, WorkerStore
from reimzul.notifier import quarantine as module
from reimzul.notifier.quarantine import Quarantine, QuarantineRules
from tests.builder import Ears, Host, is_settled
from tests.events import event
from tests.waiting import until

BAD, GOOD = "b1.example.org", "b2.example.org"
TUBES = ("x86_64", "i386", "noarch")


class Farm:
    """A quarantine, with builders that it judges."""

    def __init__(self, folder: Path, broker: Broker, **rules: Any) -> None:
        self.file, self.broker = folder / "presence.sqlite", broker
        self.incoming = folder / "incoming"
        self.incoming.mkdir(exist_ok=True)
        given = {"faults": 5, "pause": 0, "target": "c9", **rules}
        self.quarantine = Quarantine(QuarantineRules(incoming=self.incoming, arches=read_arches(), **given), self.file)
        self.ended: dict[str, str] = {}

    def announce_builder(
        self, host: str, state: str = WorkerState.IDLE, *, arches: tuple[str, ...] = TUBES, ago: float = 0
    ) -> None:
        """A builder says that it is there."""
        file = WorkerStore(self.file)
        said = WorkerHeartbeat(host=host, instance="1", state=state, arches=arches)
        file.save([WorkerRecord(heartbeat=said, last_seen=time.time() - ago)])
        file.close()

    def announce_attempts(self, host: str, faults: int, good: int = 0) -> None:
        """A builder's tries, each at a package of its own."""
        for number in range(faults + good):
            about: dict[str, Any] = {
                "number": number,
                "srpm": f"package{number}-1-1.src.rpm",
                "builder_fqdn": host,
                "attempt": f"{number}-{hash(host) % 2**32:08x}",
            }
            if number < faults:
                self.quarantine.on_event(event("Queued", reason="no space left", **about))
            else:
                self.quarantine.on_event(event("Success", exit_code=0, **about))

    def look(self) -> None:
        self.quarantine._last_round = float("-inf")
        self.quarantine.run_if_due(
            self.broker, lambda ids: {each: self.ended[each] for each in ids if each in self.ended}
        )

    def take_announcements(self) -> list[BuilderEvent | BuildEvent]:
        """What was announced, taken out."""
        self.broker.watch([NOTIFY.name])
        said: list[BuilderEvent | BuildEvent] = []
        while claim := self.broker.reserve({NOTIFY.name: NOTIFY}, 0):
            assert isinstance(claim.message, (BuilderEvent, BuildEvent))
            said.append(claim.message)
            claim.delete()
        return said

    def canary(self) -> BuildRequest:
        """What waits for the builder in quarantine; made, where that takes a moment."""

        def has_canary() -> bool:
            self.look()
            return self.broker.tube_stats(canary_tube(BAD)).ready > 0

        until(has_canary, 30, "a canary waits")
        found = self.broker.first_ready(canary_tube(BAD))
        assert found
        return BuildRequest.decode(found[1])


@pytest.fixture
def farm(tmp_path: Path, broker: Broker) -> Iterator[Farm]:
    """With two builders, of which one fails what the other builds."""
    made = Farm(tmp_path, broker)
    made.announce_builder(BAD)
    made.announce_builder(GOOD)
    yield made
    made.quarantine.close()
    control.clear_flag(broker, drain_tube(BAD))


def fail(farm: Farm) -> None:
    """The one fails what the other builds."""
    farm.announce_attempts(BAD, faults=6)
    farm.announce_attempts(GOOD, faults=0, good=6)


def is_quarantined(broker: Broker) -> bool:
    found = control.drain_flag(broker, BAD)
    return found is not None and found.is_quarantine


def test_who_stands_out_is_held_back_and_all_are_told(farm: Farm, broker: Broker) -> None:
    fail(farm)
    farm.look()
    assert is_quarantined(broker)
    (said,) = farm.take_announcements()
    assert isinstance(said, BuilderEvent)
    assert (said.builder, said.status, said.arches) == (BAD, "Quarantined", TUBES)
    assert said.reason == "6 packages in a row failed by its own fault; others have built 6 of them meanwhile"
    assert control.drain_flag(broker, GOOD) is None
    farm.look()
    assert [each for each in farm.take_announcements() if isinstance(each, BuilderEvent)] == [], "once"


@pytest.mark.parametrize(
    ("faults", "good", "others_faults"),
    [(4, 0, 0), (6, 40, 0), (6, 0, 6)],
    ids=["too few", "not in a row", "as all the others"],
)
def test_who_does_not_stand_out_stays(farm: Farm, broker: Broker, faults: int, good: int, others_faults: int) -> None:
    farm.announce_attempts(BAD, faults=faults, good=good)
    farm.announce_attempts(GOOD, faults=others_faults, good=faults + good - others_faults)
    farm.look()
    assert control.drain_flag(broker, BAD) is None
    assert farm.take_announcements() == []


@pytest.mark.parametrize(
    "other",
    [
        {"state": WorkerState.DRAINED}, {"state": WorkerState.UNFIT}, {"state": WorkerState.QUARANTINED}, {"ago": 600},
        {"arches": ("aarch64",)}, {"arches": ("x86_64", "noarch")},
    ],
)  # fmt: skip
def test_the_last_able_builder_of_an_arch_stays(farm: Farm, broker: Broker, other: dict[str, Any]) -> None:
    file = WorkerStore(farm.file)
    file.purge(time.time() + 10)
    file.close()
    farm.announce_builder(BAD)
    farm.announce_builder(GOOD, **other)
    fail(farm)
    farm.look()
    assert control.drain_flag(broker, BAD) is None
    assert farm.take_announcements() == []


def test_of_two_that_stand_out_one_stays(farm: Farm, broker: Broker) -> None:
    for host in (BAD, GOOD):
        farm.announce_attempts(host, faults=6)
    for number in range(200):
        about = {
            "builder_fqdn": "gone.example.org",
            "srpm": f"package{number % 6}-1-1.src.rpm",
            "attempt": f"{number}-0000abcd",
            "exit_code": 0,
        }
        farm.quarantine.on_event(event("Success", number % 6, **about))
    farm.look()
    farm.look()
    assert [host for host in (BAD, GOOD) if control.drain_flag(broker, host)] == [BAD]


def test_whom_a_person_has_drained_is_not_ours(farm: Farm, broker: Broker) -> None:
    control.set_flag(broker, drain_tube(BAD), control.new_flag("johnny"))
    fail(farm)
    farm.look()
    assert not is_quarantined(broker)
    assert farm.take_announcements() == []


def test_a_canary_that_is_built_lets_it_back(farm: Farm, broker: Broker) -> None:
    fail(farm)
    farm.look()
    wanted = farm.canary()
    assert (wanted.target, wanted.arch, wanted.scratch, wanted.legs) == ("c9.x86_64", "x86_64", True, ("x86_64",))
    assert [path.name for path in farm.incoming.iterdir()] == [wanted.srpm]
    farm.take_announcements()
    farm.ended[wanted.build_id] = "Success"
    farm.look()
    assert control.drain_flag(broker, BAD) is None
    (said,) = farm.take_announcements()
    assert isinstance(said, BuilderEvent)
    assert (said.builder, said.status) == (BAD, "Released")
    assert not list(farm.incoming.iterdir())
    farm.look()
    assert control.drain_flag(broker, BAD) is None, "what it did before is forgotten"


def test_a_canary_that_fails_is_followed_by_another_later(farm: Farm, broker: Broker) -> None:
    fail(farm)
    farm.look()
    first = farm.canary()
    farm.quarantine.rules = attr.evolve(farm.quarantine.rules, pause=3600)
    farm.ended[first.build_id] = "Failed"
    farm.look()
    assert is_quarantined(broker)
    assert not list(farm.incoming.iterdir())
    assert broker.tube_stats(canary_tube(BAD)).ready == 0
    (row,) = farm.quarantine.tables.builders()
    assert (row.failed, row.build_id) == (1, "")
    assert row.next > time.time() + 7000
    farm.quarantine.tables.save(attr.evolve(row, next=0.0))
    assert farm.canary().build_id != first.build_id


def test_a_person_may_let_it_back(farm: Farm, broker: Broker) -> None:
    fail(farm)
    farm.look()
    farm.canary()
    farm.take_announcements()
    control.clear_flag(broker, drain_tube(BAD))
    farm.look()
    (said,) = farm.take_announcements()
    assert isinstance(said, BuilderEvent)
    assert (said.status, said.reason) == ("Released", "by a person")
    assert broker.tube_stats(canary_tube(BAD)).ready == 0
    assert not list(farm.incoming.iterdir())
    farm.look()
    assert control.drain_flag(broker, BAD) is None


def test_whom_a_person_drains_meanwhile_stays_drained(farm: Farm, broker: Broker) -> None:
    fail(farm)
    farm.look()
    farm.canary()
    farm.take_announcements()
    there, holds = builders.set_drain_flag(broker, BAD, control.new_flag("johnny", "new disk"))
    assert (there, control.drain_flag(broker, BAD)) == (None, holds)
    for _ in range(2):
        farm.look()
    assert farm.take_announcements() == [], "nobody has let it back"
    assert farm.quarantine.tables.builders() == []
    assert not list(farm.incoming.iterdir())
    assert broker.tube_stats(canary_tube(BAD)).ready == 0
    assert control.drain_flag(broker, BAD) == holds
    assert builders.set_drain_flag(broker, BAD, control.new_flag("mary")) == (holds, holds)


def test_a_canary_lifts_no_persons_mark(farm: Farm, broker: Broker, monkeypatch: pytest.MonkeyPatch) -> None:
    fail(farm)
    farm.look()
    wanted = farm.canary()
    farm.ended[wanted.build_id] = "Success"
    marks = module._drain_flags

    def a_person_is_quick(asked: Broker) -> dict[str, control.ControlFlag]:
        found = marks(asked)
        builders.set_drain_flag(broker, BAD, control.new_flag("johnny"))
        return found

    monkeypatch.setattr(module, "_drain_flags", a_person_is_quick)
    farm.look()
    left = control.drain_flag(broker, BAD)
    assert left
    assert left.by == "johnny"


def test_killed_between_the_mark_and_its_news_it_tells_of_it_then(
    farm: Farm, broker: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    fail(farm)
    with monkeypatch.context() as patched:
        patched.setattr(Broker, "announce", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            farm.look()
    assert is_quarantined(broker)
    assert farm.take_announcements() == []
    farm.look()
    (said,) = farm.take_announcements()
    there = control.drain_flag(broker, BAD)
    assert isinstance(said, BuilderEvent)
    assert there
    assert (said.status, said.at, said.reason) == ("Quarantined", there.at, there.why)


def test_killed_before_it_tells_that_one_is_back_it_tells_of_it_then(
    farm: Farm, broker: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    fail(farm)
    farm.look()
    farm.take_announcements()
    control.clear_flag(broker, drain_tube(BAD))
    with monkeypatch.context() as patched:
        patched.setattr(Broker, "announce", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            farm.look()
    farm.look()
    assert [said.status for said in farm.take_announcements() if isinstance(said, BuilderEvent)] == ["Released"]


def test_a_mark_whose_row_is_lost_is_found_again(farm: Farm, broker: Broker) -> None:
    fail(farm)
    farm.look()
    farm.quarantine.tables.close()
    for path in farm.file.parent.glob("presence.sqlite*"):
        path.unlink()
    farm.announce_builder(BAD)
    farm.look()
    assert farm.canary().target == "c9.x86_64"


def test_without_a_target_for_canaries_none_is_sent(tmp_path: Path, broker: Broker) -> None:
    farm = Farm(tmp_path, broker, target="")
    farm.announce_builder(BAD)
    farm.announce_builder(GOOD)
    fail(farm)
    for _ in range(3):
        farm.look()
    assert is_quarantined(broker)
    assert broker.tube_stats(canary_tube(BAD)).ready == 0
    farm.quarantine.close()
    control.clear_flag(broker, drain_tube(BAD))


def test_a_canary_that_cannot_be_made_is_tried_later(
    farm: Farm, broker: Broker, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    fail(farm)
    farm.look()

    def put_off() -> bool:
        farm.look()
        return farm.quarantine.tables.builders()[0].next > time.time() + 60

    until(put_off, 30, "it is put off")
    assert is_quarantined(broker)
    assert "no canary can be sent to b1.example.org" in caplog.text


# --- the builder


def test_a_builder_in_quarantine_builds_its_canary_and_nothing_else(host: Host, broker: Broker, ears: Ears) -> None:
    control.set_flag(
        broker, drain_tube(BAD), control.new_flag("reimzul-notifier", "6 faults", reason=control.QUARANTINED)
    )
    wanted = BuildRequest(
        srpm="plain-1.0-1.src.rpm", arch="x86_64", target="c9.x86_64", disttag=".el9", submitter="tester",
        build_id="1" * 32, timestamp="20261122120000",
    )  # fmt: skip
    broker.put(arch_tube("x86_64"), wanted, priority=1)
    host.start("b1")

    def quarantined() -> bool:
        ears.listen()
        return any(said["state"] == "quarantined" for said in ears.present)

    until(quarantined, 30, "it says so")
    assert broker.tube_stats("x86_64").ready == 1
    canary = attr.evolve(wanted, build_id="2" * 32, scratch=True, legs=("x86_64",))
    broker.put(arch_tube(canary_tube(BAD)), canary, priority=1)
    (built,) = ears.wait(1, "Success")
    assert built["build_id"] == "2" * 32
    assert broker.tube_stats("x86_64").ready == 1
    control.clear_flag(broker, drain_tube(BAD))
    events = ears.wait(2, "Success")
    assert events[1]["build_id"] == "1" * 32
    until(lambda: is_settled(broker), 10, "the job is deleted")


def test_a_round_is_not_made_all_the_time(farm: Farm, broker: Broker) -> None:
    farm.look()
    fail(farm)
    farm.quarantine.run_if_due(broker, lambda _: {})
    assert control.drain_flag(broker, BAD) is None
    assert module.ROUND_SECONDS > 1

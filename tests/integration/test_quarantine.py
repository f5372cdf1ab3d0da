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
from reimzul.notifier.quarantine import Quarantine, Rules
from tests.builder import Ears, Host, settled
from tests.events import event
from tests.waiting import until

BAD, GOOD = "b1.example.org", "b2.example.org"
TUBES = ("x86_64", "i386", "noarch")


class Ward:
    """A court, with builders before it."""

    def __init__(self, folder: Path, broker: Broker, **rules: Any) -> None:
        self.file, self.broker = folder / "presence.sqlite", broker
        self.incoming = folder / "incoming"
        self.incoming.mkdir(exist_ok=True)
        given = {"faults": 5, "ratio": 3, "window": 86400.0, "pause": 0, "target": "c9", **rules}
        self.court = Quarantine(Rules(incoming=self.incoming, arches=read_arches(), **given), self.file)
        self.ended: dict[str, str] = {}

    def there(
        self, host: str, state: str = WorkerState.IDLE, *, arches: tuple[str, ...] = TUBES, ago: float = 0
    ) -> None:
        """A builder says that it is there."""
        file = WorkerStore(self.file)
        said = WorkerHeartbeat(host=host, instance="1", state=state, arches=arches)
        file.save([WorkerRecord(heartbeat=said, last_seen=time.time() - ago)])
        file.close()

    def tried(self, host: str, faults: int, good: int = 0) -> None:
        """A builder's tries, each at a package of its own."""
        for number in range(faults + good):
            about = {"number": number, "builder_fqdn": host, "attempt": f"{number}-{hash(host) % 2**32:08x}"}
            if number < faults:
                self.court.hear(event("Queued", reason="no space left", **about))
            else:
                self.court.hear(event("Success", exit_code=0, **about))

    def look(self) -> None:
        self.court._looked = float("-inf")
        self.court.look(self.broker, lambda ids: {each: self.ended[each] for each in ids if each in self.ended})

    def told(self) -> list[BuilderEvent | BuildEvent]:
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

        def sent() -> bool:
            self.look()
            return self.broker.tube_stats(canary_tube(BAD)).ready > 0

        until(sent, 30, "a canary waits")
        found = self.broker.first_ready(canary_tube(BAD))
        assert found
        return BuildRequest.decode(found[1])


@pytest.fixture
def ward(tmp_path: Path, broker: Broker) -> Iterator[Ward]:
    """With two builders, of which one fails what the other builds."""
    made = Ward(tmp_path, broker)
    made.there(BAD)
    made.there(GOOD)
    yield made
    made.court.close()
    control.clear_flag(broker, drain_tube(BAD))


def fail(ward: Ward) -> None:
    """The one fails what the other builds."""
    ward.tried(BAD, faults=6)
    ward.tried(GOOD, faults=0, good=6)


def held(broker: Broker) -> bool:
    found = control.drain_flag(broker, BAD)
    return found is not None and found.is_quarantine


def test_who_stands_out_is_held_back_and_all_are_told(ward: Ward, broker: Broker) -> None:
    fail(ward)
    ward.look()
    assert held(broker)
    (said,) = ward.told()
    assert isinstance(said, BuilderEvent)
    assert (said.builder, said.status, said.arches) == (BAD, "Quarantined", TUBES)
    assert said.reason.startswith("6 of its 6 tries at packages that others tried too were its own fault")
    assert control.drain_flag(broker, GOOD) is None
    ward.look()
    assert [each for each in ward.told() if isinstance(each, BuilderEvent)] == [], "once"


@pytest.mark.parametrize(
    ("faults", "good", "others_faults"),
    [(4, 0, 0), (6, 40, 0), (6, 0, 6)],
    ids=["too few", "too seldom", "as all the others"],
)
def test_who_does_not_stand_out_stays(ward: Ward, broker: Broker, faults: int, good: int, others_faults: int) -> None:
    ward.tried(BAD, faults=faults, good=good)
    ward.tried(GOOD, faults=others_faults, good=faults + good - others_faults)
    ward.look()
    assert control.drain_flag(broker, BAD) is None and ward.told() == []


@pytest.mark.parametrize(
    "other",
    [
        {"state": WorkerState.DRAINED}, {"state": WorkerState.UNFIT}, {"state": WorkerState.QUARANTINED}, {"ago": 600},
        {"arches": ("aarch64",)}, {"arches": ("x86_64", "noarch")},
    ],
)  # fmt: skip
def test_the_last_able_builder_of_an_arch_stays(ward: Ward, broker: Broker, other: dict[str, Any]) -> None:
    file = WorkerStore(ward.file)
    file.purge(time.time() + 10)
    file.close()
    ward.there(BAD)
    ward.there(GOOD, **other)
    fail(ward)
    ward.look()
    assert control.drain_flag(broker, BAD) is None and ward.told() == []


def test_of_two_that_stand_out_one_stays(ward: Ward, broker: Broker) -> None:
    for host in (BAD, GOOD):
        ward.tried(host, faults=6)
    for number in range(200):
        about = {"builder_fqdn": "gone.example.org", "attempt": f"{number}-0000abcd", "exit_code": 0}
        ward.court.hear(event("Success", number % 6, **about))
    ward.look()
    ward.look()
    assert [host for host in (BAD, GOOD) if control.drain_flag(broker, host)] == [BAD]


def test_whom_a_person_has_drained_is_not_ours(ward: Ward, broker: Broker) -> None:
    control.set_flag(broker, drain_tube(BAD), control.new_flag("johnny"))
    fail(ward)
    ward.look()
    assert not held(broker) and ward.told() == []


def test_a_canary_that_is_built_lets_it_back(ward: Ward, broker: Broker) -> None:
    fail(ward)
    ward.look()
    wanted = ward.canary()
    assert (wanted.target, wanted.arch, wanted.scratch, wanted.legs) == ("c9.x86_64", "x86_64", True, ("x86_64",))
    assert [path.name for path in ward.incoming.iterdir()] == [wanted.srpm]
    ward.told()
    ward.ended[wanted.build_id] = "Success"
    ward.look()
    assert control.drain_flag(broker, BAD) is None
    (said,) = ward.told()
    assert isinstance(said, BuilderEvent) and (said.builder, said.status) == (BAD, "Released")
    assert not list(ward.incoming.iterdir())
    ward.look()
    assert control.drain_flag(broker, BAD) is None, "what it did before is forgotten"


def test_a_canary_that_fails_is_followed_by_another_later(ward: Ward, broker: Broker) -> None:
    fail(ward)
    ward.look()
    first = ward.canary()
    ward.court.rules = attr.evolve(ward.court.rules, pause=3600)
    ward.ended[first.build_id] = "Failed"
    ward.look()
    assert held(broker) and not list(ward.incoming.iterdir())
    assert broker.tube_stats(canary_tube(BAD)).ready == 0
    (row,) = ward.court.conduct.wards()
    assert (row.failed, row.build_id) == (1, "") and row.next > time.time() + 7000
    ward.court.conduct.keep(attr.evolve(row, next=0.0))
    assert ward.canary().build_id != first.build_id


def test_a_person_may_let_it_back(ward: Ward, broker: Broker) -> None:
    fail(ward)
    ward.look()
    ward.canary()
    ward.told()
    control.clear_flag(broker, drain_tube(BAD))
    ward.look()
    (said,) = ward.told()
    assert isinstance(said, BuilderEvent) and (said.status, said.reason) == ("Released", "by a person")
    assert broker.tube_stats(canary_tube(BAD)).ready == 0 and not list(ward.incoming.iterdir())
    ward.look()
    assert control.drain_flag(broker, BAD) is None


def test_whom_a_person_drains_meanwhile_stays_drained(ward: Ward, broker: Broker) -> None:
    fail(ward)
    ward.look()
    ward.canary()
    ward.told()
    there, holds = builders.set_drain_flag(broker, BAD, control.new_flag("johnny", "new disk"))
    assert (there, control.drain_flag(broker, BAD)) == (None, holds)
    for _ in range(2):
        ward.look()
    assert ward.told() == [], "nobody has let it back"
    assert ward.court.conduct.wards() == [] and not list(ward.incoming.iterdir())
    assert broker.tube_stats(canary_tube(BAD)).ready == 0
    assert control.drain_flag(broker, BAD) == holds
    assert builders.set_drain_flag(broker, BAD, control.new_flag("mary")) == (holds, holds)


def test_a_canary_lifts_no_persons_mark(ward: Ward, broker: Broker, monkeypatch: pytest.MonkeyPatch) -> None:
    fail(ward)
    ward.look()
    wanted = ward.canary()
    ward.ended[wanted.build_id] = "Success"
    marks = module._marks

    def a_person_is_quick(asked: Broker) -> dict[str, control.ControlFlag]:
        found = marks(asked)
        builders.set_drain_flag(broker, BAD, control.new_flag("johnny"))
        return found

    monkeypatch.setattr(module, "_marks", a_person_is_quick)
    ward.look()
    left = control.drain_flag(broker, BAD)
    assert left and left.by == "johnny"


def test_killed_between_the_mark_and_its_news_it_tells_of_it_then(
    ward: Ward, broker: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    fail(ward)
    with monkeypatch.context() as patched:
        patched.setattr(Broker, "announce", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            ward.look()
    assert held(broker) and ward.told() == []
    ward.look()
    (said,) = ward.told()
    there = control.drain_flag(broker, BAD)
    assert isinstance(said, BuilderEvent) and there
    assert (said.status, said.at, said.reason) == ("Quarantined", there.at, there.why)


def test_killed_before_it_tells_that_one_is_back_it_tells_of_it_then(
    ward: Ward, broker: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    fail(ward)
    ward.look()
    ward.told()
    control.clear_flag(broker, drain_tube(BAD))
    with monkeypatch.context() as patched:
        patched.setattr(Broker, "announce", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            ward.look()
    ward.look()
    assert [said.status for said in ward.told() if isinstance(said, BuilderEvent)] == ["Released"]


def test_a_mark_whose_row_is_lost_is_found_again(ward: Ward, broker: Broker) -> None:
    fail(ward)
    ward.look()
    ward.court.conduct.close()
    for path in ward.file.parent.glob("presence.sqlite*"):
        path.unlink()
    ward.there(BAD)
    ward.look()
    assert ward.canary().target == "c9.x86_64"


def test_without_a_target_for_canaries_none_is_sent(tmp_path: Path, broker: Broker) -> None:
    ward = Ward(tmp_path, broker, target="")
    ward.there(BAD)
    ward.there(GOOD)
    fail(ward)
    for _ in range(3):
        ward.look()
    assert held(broker) and broker.tube_stats(canary_tube(BAD)).ready == 0
    ward.court.close()
    control.clear_flag(broker, drain_tube(BAD))


def test_a_canary_that_cannot_be_made_is_tried_later(
    ward: Ward, broker: Broker, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    fail(ward)
    ward.look()

    def put_off() -> bool:
        ward.look()
        return ward.court.conduct.wards()[0].next > time.time() + 60

    until(put_off, 30, "it is put off")
    assert held(broker) and "no canary can be sent to b1.example.org" in caplog.text


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
    until(lambda: settled(broker), 10, "the job is deleted")


def test_a_round_is_not_made_all_the_time(ward: Ward, broker: Broker) -> None:
    ward.look()
    fail(ward)
    ward.court.look(broker, lambda _: {})
    assert control.drain_flag(broker, BAD) is None
    assert module.ROUND > 1

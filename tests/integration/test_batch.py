# SPDX-License-Identifier: Apache-2.0
"""reimzul-batch as a process, on a real beanstalkd: order, orders, failures, kills, and what the store provides."""

from __future__ import annotations

import contextlib
import random
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import attr
import pytest

from reimzul.admin import batch_orders
from reimzul.batch import cli
from reimzul.batch.actions import PUTS_BETWEEN_RESERVES, ActionRunner, OpenBatch, make_request
from reimzul.batch.batches import ORDER_PAUSE_SECONDS, Batches
from reimzul.core.arch import read_arches
from reimzul.core.batch_message import BatchOrder, OrderKind
from reimzul.core.beanstalk import (
    BATCH,
    BATCH_ORDER,
    BATCH_REQUEST,
    BATCH_RESULT,
    HELD_SECONDS,
    NOTIFY,
    Broker,
    ReservedJob,
    arch_tube,
)
from reimzul.core.cli import current_user
from reimzul.core.config import load_file
from reimzul.core.control import cancel_flag
from reimzul.core.daemon import MAX_WAIT_SECONDS
from reimzul.core.errors import BrokerUnavailable, InvalidMessage, RetryLater
from reimzul.core.message import BuildEvent, BuildRequest, Refusal, Status
from reimzul.plan.batches import BatchFiles
from reimzul.plan.decisions import Surroundings, decide
from reimzul.plan.document import journal_path, plan_path, write_plan
from reimzul.plan.journal import Journal
from tests import batch as stands
from tests.batch import ARCH, BATCH_ID, TARGET, FakeFarm, Stand, held_names, make_plan, member
from tests.conftest import Beanstalkd
from tests.waiting import until


@pytest.fixture
def stand(tmp_path: Path, beanstalkd: Beanstalkd, broker: Broker) -> Iterator[Stand]:
    """A controller whose reimzul-batch is not started yet."""
    made = Stand(tmp_path, beanstalkd)
    yield made
    made.kill()


DIAMOND = (member("app", "left", "right"), member("left", "base"), member("right", "base"), member("base"))


def release_base(stand: Stand, broker: Broker, farm: FakeFarm) -> None:
    """Submit the diamond to builders that take no jobs yet, and wait until its base is released."""
    farm.is_building.clear()
    stand.submit(broker, make_plan(*DIAMOND))
    stand.wait_for({"base": "released"})


def test_members_are_put_held_and_released_once_what_they_need_is_published(stand: Stand, broker: Broker) -> None:
    stand.start()
    with FakeFarm(stand) as farm:
        farm.is_building.clear()
        stand.submit(broker, make_plan(*DIAMOND))
        stand.wait_for({"base": "released", "app": "held"})
        assert held_names(broker) == ["app", "left", "right"]
        farm.is_building.set()
        stand.wait_until_over()
    assert set(stand.states().values()) == {"published"}
    assert farm.began_after == {
        "base": set(), "left": {"base"} | (farm.began_after["left"] & {"right"}),
        "right": {"base"} | (farm.began_after["right"] & {"left"}), "app": {"base", "left", "right"},
    }  # fmt: skip
    held = [event.held for event in farm.of("app", Status.QUEUED)]
    assert held == [True, False]
    assert farm.of("app", Status.QUEUED)[0].waits_for == "waits for left, right"
    assert not list(stands.list_jobs(broker))


def test_a_request_that_comes_twice_and_an_order_that_comes_twice_change_nothing(stand: Stand, broker: Broker) -> None:
    stand.start()
    with FakeFarm(stand) as farm:
        request = stand.submit(broker, make_plan(*DIAMOND))
        broker.put(BATCH, request, priority=BATCH_REQUEST)
        stand.wait_until_over()
        order = stand.order(broker, "retry", "base")
        broker.put(BATCH, order, priority=BATCH_REQUEST)
        until(lambda: farm.started.count("base") == 2, 10, "it is built again")
        stand.wait_until_over()
        until(lambda: broker.tube_stats(BATCH.name).is_empty, 5, "all is read")
    assert sorted(farm.started) == ["app", "base", "base", "left", "right"]
    first, second = (event for event in farm.of("base", Status.BUILDING))
    assert second.parent == first.build_id != second.build_id


def test_a_batch_begins_although_a_kill_left_half_of_its_first_entry(stand: Stand, broker: Broker) -> None:
    stand.submit(broker, make_plan(member("base")))
    journal_path(stand.incoming, BATCH_ID).write_text('{"kind":"accep')
    stand.start()
    with FakeFarm(stand):
        stand.wait_until_over()
    assert stand.states() == {"base": "published"}


def test_a_batch_whose_plan_is_gone_goes_on_when_it_is_back_and_has_missed_no_event(
    stand: Stand, broker: Broker
) -> None:
    stand.start()
    with FakeFarm(stand) as farm:
        release_base(stand, broker, farm)
        path = plan_path(stand.incoming, BATCH_ID)
        body = path.read_bytes()
        path.unlink()
        stand.kill()
        stand.start()
        until(lambda: f"batch {BATCH_ID} is not touched: {path}: no such file" in stand.log, 10, "that is logged")
        farm.is_building.set()
        until(lambda: b'"Published"' in journal_path(stand.incoming, BATCH_ID).read_bytes(), 10, "events are kept")
        path.write_bytes(body)
        stand.wait_until_over()
    assert sorted(farm.started) == ["app", "base", "left", "right"]


def test_an_order_for_a_batch_whose_plan_is_gone_is_refused_in_one_line_each(stand: Stand, broker: Broker) -> None:
    stand.start()
    stand.submit(broker, make_plan(*DIAMOND))
    stand.wait_for({"base": "released"})
    files, path = BatchFiles(stand.incoming, BATCH_ID), plan_path(stand.incoming, BATCH_ID)
    path.unlink()
    stand.kill()
    stand.start()
    result = batch_orders.give_order(load_file(stand.ini), files, OrderKind.PAUSE)
    why = f"{path}: no such file or directory"
    assert result.fault == f"refused by reimzul-batch: {why}; `reimzul buried --tube batch` lists the order"
    assert broker.tube_stats(BATCH.name).buried == 1
    assert f"pause of batch {BATCH_ID}, ordered by {current_user()}: {why}" in stand.log
    refusals = [each for each in iter_announced(broker) if isinstance(each, Refusal)]
    assert [each.tube for each in refusals] == [BATCH.name]


def iter_announced(broker: Broker) -> Iterator[object]:
    """Take what was announced."""
    broker.watch([NOTIFY.name])
    while (job := broker.reserve({NOTIFY.name: NOTIFY}, 0)) is not None:
        yield job.message
        job.delete()


def test_an_order_for_a_batch_that_never_begins_does_not_wait_for_ever(tmp_path: Path) -> None:
    write_plan(plan_path(tmp_path, BATCH_ID), make_plan(*DIAMOND))
    batches = Batches(tmp_path, read_arches(None))
    order = BatchOrder(batch=BATCH_ID, order=OrderKind.PAUSE, id="0" * 16, by="johnny", at=time.time())
    looks = MAX_WAIT_SECONDS // ORDER_PAUSE_SECONDS
    with pytest.raises(RetryLater):
        batches.find_for_order(order, looks)
    with pytest.raises(InvalidMessage, match="pause of batch 5f0c12ab, ordered by johnny: the batch has not begun"):
        batches.find_for_order(order, looks + 1)


def test_an_old_order_waits_for_the_request_behind_it(stand: Stand, broker: Broker) -> None:
    """As where this daemon was down, or a clock was wrong."""
    write_plan(plan_path(stand.incoming, BATCH_ID), make_plan(*DIAMOND))
    order = BatchOrder(batch=BATCH_ID, order=OrderKind.PAUSE, id="0" * 16, by="johnny", at=time.time() - 4000)
    broker.put(BATCH, order, priority=BATCH_ORDER)
    stand.start()
    until(lambda: f"batch {BATCH_ID} has not begun yet" in stand.log, 10, "the order comes first")
    stand.submit(broker, make_plan(*DIAMOND))
    until(lambda: stand.state().is_paused, 10, "the order is obeyed")


def test_a_plan_that_is_not_as_requested_is_refused(stand: Stand, broker: Broker) -> None:
    stand.start()
    request = stand.submit(broker, make_plan(*DIAMOND))
    stand.wait_for({"base": "released"})
    other = make_plan(member("other"), batch="00000001")
    path = plan_path(stand.incoming, "00000001")
    stand.submit(broker, other)
    stand.wait_for({"other": "released"}, batch="00000001")
    wrong_tube = make_plan(member("evil", tube="notify"), batch="00000002")
    stand.submit(broker, wrong_tube)
    until(lambda: broker.tube_stats(BATCH.name).buried == 1, 10, "it is refused")
    assert "tube notify, which is not that of its arch" in stand.log
    path.write_text(path.read_text().replace("other", "otter"))
    stand.kill()
    stand.start()
    until(lambda: "batch 00000001 is not touched" in stand.log, 10, "the changed plan is noticed")
    assert "not the plan that was accepted" in stand.log
    assert request.batch == BATCH_ID


def test_siblings_go_on_when_a_member_fails_and_a_retry_takes_those_along_that_wait(
    stand: Stand, broker: Broker
) -> None:
    stand.start()
    with FakeFarm(stand, {"left": [Status.FAILED]}) as farm:
        stand.submit(broker, make_plan(*DIAMOND))
        stand.wait_for({"left": "failed", "right": "published", "app": "held"})
        until(lambda: stand.state().rests, 10, "it rests")
        assert f"batch {BATCH_ID} rests: 1 failed, 1 held, 2 published" in stand.log
        stand.order(broker, "retry", "left")
        stand.wait_until_over()
        until(lambda: len(farm.news) == 3, 10, "people are notified")
    assert [each.status for each in farm.news] == ["NewCause", "Resting", "Over"]
    assert farm.started.count("left") == 2
    assert stand.states()["app"] == "published"


def test_people_are_notified_once_of_a_cause_a_rest_and_the_end(stand: Stand, broker: Broker) -> None:
    stand.start()
    with FakeFarm(stand, {"left": [Status.FAILED, Status.FAILED]}) as farm:
        stand.submit(broker, make_plan(*DIAMOND))
        # a rest that an order ends before it is announced is not announced any more
        until(lambda: len(stand.state().announced) == 2, 10, "its rest is announced")
        stand.kill()
        stand.start()
        stand.order(broker, "retry", "left")
        until(lambda: len(stand.state().announced) == 3, 10, "its second rest is announced")
        stand.order(broker, "skip", "left")
        stand.wait_until_over()
        until(lambda: "Over" in [each.status for each in farm.news], 10, "its end is announced")
    assert [each.status for each in farm.news] == ["NewCause", "Resting", "Resting", "Over"]
    assert len({each.key for each in farm.news}) == 4


def test_a_fix_that_is_submitted_outside_the_batch_lets_it_go_on(stand: Stand, broker: Broker) -> None:
    stand.start()
    with FakeFarm(stand, {"base": [Status.FAILED]}) as farm:
        stand.submit(broker, make_plan(*DIAMOND))
        until(lambda: stand.state().rests, 10, "it rests")
        fix = BuildEvent(
            srpm="base-1-2.src.rpm", arch=ARCH, target=f"{TARGET}.{ARCH}", status=Status.PUBLISHED, submitter="johnny",
            build_id="1" * 32, pkgname="base", evr="1-2.el9", at=time.time(),
        )  # fmt: skip
        broker.put(BATCH, fix, priority=BATCH_RESULT)
        stand.wait_until_over()
    assert stand.states() == {"base": "failed", "left": "published", "right": "published", "app": "published"}
    assert farm.started.count("base") == 1


def test_a_skipped_member_holds_up_nobody_and_its_job_is_gone(stand: Stand, broker: Broker) -> None:
    stand.start()
    with FakeFarm(stand, {"base": [Status.FAILED]}) as farm:
        stand.submit(broker, make_plan(*DIAMOND))
        until(lambda: stand.state().rests, 10, "it rests")
        stand.order(broker, "skip", "left")
        stand.wait_for({"left": "skipped"})
        stand.order(broker, "release", "right")
        stand.wait_for({"right": "published", "app": "published"})
    assert "left" not in farm.started
    cancelled = farm.of("left", Status.CANCELLED)
    assert [(event.reason, bool(event.attempt)) for event in cancelled] == [("skip by johnny", True)]


def test_a_pause_takes_back_what_is_released_and_a_resume_goes_on(stand: Stand, broker: Broker) -> None:
    stand.start()
    with FakeFarm(stand) as farm:
        release_base(stand, broker, farm)
        stand.order(broker, "pause")
        stand.wait_for({"base": "held"})
        assert held_names(broker) == ["app", "base", "left", "right"]
        farm.is_building.set()
        stand.order(broker, "release", "right")
        stand.wait_for({"right": "published"})
        assert farm.started == ["right"], "a person's release alone is built while the batch is paused"
        stand.order(broker, "resume")
        stand.wait_until_over()
    assert sorted(farm.started) == ["app", "base", "left", "right"]


def test_a_cancelled_batch_ends_every_member_once_and_leaves_no_job(stand: Stand, broker: Broker) -> None:
    stand.start()
    with FakeFarm(stand) as farm:
        release_base(stand, broker, farm)
        stand.order(broker, "cancel")
        stand.wait_until_over()
        until(lambda: len([e for e in farm.events if e.status == Status.CANCELLED]) == 4, 10, "all are announced")
        farm.is_building.set()
        assert not list(stands.list_jobs(broker))
    assert farm.started == []
    assert set(stand.states().values()) == {"cancelled"}


def test_a_member_that_is_cancelled_before_it_is_put_is_never_put(stand: Stand, broker: Broker) -> None:
    stand.submit(broker, make_plan(*DIAMOND))
    stand.start()
    stand.wait_for({"base": "released"})
    stand.stop()
    many = make_plan(*(member(f"p{number}") for number in range(300)), batch="00000003")
    stand.submit(broker, many)
    stand.order(broker, "cancel", "p299", batch="00000003")
    stand.start()
    stand.wait_until_put([f"p{number}" for number in range(299)], batch="00000003")
    stand.wait_for({"p299": "cancelled"}, batch="00000003")
    assert "p299" not in held_names(broker)


def test_a_replaced_member_is_built_from_the_other_source_rpm(stand: Stand, broker: Broker) -> None:
    stand.start()
    with FakeFarm(stand) as farm:
        release_base(stand, broker, farm)
        newer = member("base", srpm="base-1-2.src.rpm", srpm_sha256="b" * 64, evr="1-2.el9")
        plan = make_plan(*DIAMOND[:3], newer)
        temporary = plan_path(stand.incoming, BATCH_ID, "0" * 64)
        sha = write_plan(temporary, plan)
        temporary.rename(plan_path(stand.incoming, BATCH_ID, sha))
        stand.order(broker, "replace", "base", plan_sha256=sha)
        until(lambda: stand.state().members[f"base.{ARCH}"].member.evr == "1-2.el9", 10, "it is replaced")
        farm.is_building.set()
        stand.wait_until_over()
    assert [event.srpm for event in farm.of("base", Status.PUBLISHED)] == ["base-1-2.src.rpm"]
    assert [event.srpm for event in farm.of("base", Status.CANCELLED)] == ["base-1-1.src.rpm"]


@pytest.mark.parametrize("first", ["user", "library"])
def test_a_member_that_misses_another_waits_for_it_although_the_plan_did_not_know(
    stand: Stand, broker: Broker, first: str
) -> None:
    """Where the library is published already, the release comes before the builder holds its job, and is repeated."""
    members = (member(name, rank=int(name != first)) for name in ("user", "library"))
    stand.start()
    with FakeFarm(stand, {"user": [["library"]]}) as farm:
        if first == "library":  # user, which is released again before its builder holds its job
            farm.before_hold = lambda: until(lambda: stand.count_entries("released") == 3, 10, "it is released")
        stand.submit(broker, make_plan(*members))
        stand.wait_until_over(12)  # before the regular check, which would kick it too
    assert farm.started == (["user", "library", "user"] if first == "user" else ["library", "user", "user"])
    assert [event.held for event in farm.of("user", Status.QUEUED)] == [True, False, True, False]


def test_only_two_builds_for_each_worker_are_released_ahead_of_the_builders(stand: Stand, broker: Broker) -> None:
    stand.start()
    for batch in ("0000000a", "0000000b"):
        names = (member(f"{batch}-{number}") for number in range(5))
        stand.submit(broker, make_plan(*names, batch=batch))

    def count_released(batch: str) -> int:
        return list(stand.states(batch).values()).count("released")

    until(lambda: (count_released("0000000a"), count_released("0000000b")) == (1, 1), 15, "each batch has one ahead")
    stand.order(broker, "cancel", batch="0000000a")
    until(lambda: count_released("0000000b") == 2, 15, "the other gets its place")


def test_a_pause_holds_a_build_that_waits_in_the_pause_of_a_retry(stand: Stand, broker: Broker) -> None:
    stand.start()
    with FakeFarm(stand) as farm:
        release_base(stand, broker, farm)
        job = stand.state().members[f"base.{ARCH}"].job
        broker.reserve_job(job, arch_tube(ARCH)).release(60)
        stand.order(broker, "pause")
        stand.wait_for({"base": "held"})
        assert broker.job_stats(job).is_held


def test_only_what_was_released_gets_a_cancel_flag(stand: Stand, broker: Broker) -> None:
    stand.start()
    with FakeFarm(stand) as farm:
        release_base(stand, broker, farm)
        members = {each.member.name: each.build_id for each in stand.state().members.values()}
        with stand.beanstalkd.connect() as builder:
            builder.watch([ARCH])
            job = builder.reserve({ARCH: arch_tube(ARCH)}, 5)
            assert job is not None
            assert job.message.build_id == members["base"]
            stand.order(broker, "cancel")
            stand.wait_for({"left": "cancelled", "right": "cancelled", "app": "cancelled"})
            until(lambda: cancel_flag(broker, members["base"]) is not None, 5, "the flag is set")
            job.release(0)
        farm.is_building.set()
        stand.wait_until_over()
    assert not [name for name, build_id in members.items() if name != "base" and cancel_flag(broker, build_id)]


def test_held_doubles_are_deleted_at_the_end_and_others_jobs_are_left(stand: Stand, broker: Broker) -> None:
    """A worker puts a job again that a full beanstalkd has lost, and the lost one comes back with a restart."""
    stand.start()
    with FakeFarm(stand) as farm:
        release_base(stand, broker, farm)
        request = BuildRequest.decode(broker.peek(stand.state().members[f"app.{ARCH}"].job))
        broker.put(arch_tube(ARCH), request, priority=8192, delay=HELD_SECONDS)
        other = attr.evolve(request, build_id="1" * 32)
        broker.put(arch_tube(ARCH), other, priority=8192, delay=HELD_SECONDS)
        farm.is_building.set()
        stand.wait_until_over()
    assert [each.build_id for _, each in stands.list_jobs(broker)] == ["1" * 32]
    assert "a double of app-1-1.src.rpm" in stand.log


def test_a_job_is_found_although_numbers_fell_with_a_lost_binlog(stand: Stand, broker: Broker) -> None:
    batch = OpenBatch.accept(
        stand.incoming, stand.submit(broker, make_plan(member("base"), member("app", "base"))), 10**6, read_arches()
    )
    runner = ActionRunner(broker, batch, lambda: None)
    batch.record(
        [batch.entry_of("put", batch.state.members[f"app.{ARCH}"], build="0" * 32, job=2 * 10**6, count=0, disttag="")]
    )
    request = make_request(batch, batch.state.members[f"base.{ARCH}"])
    job = broker.put(arch_tube(ARCH), request, priority=8192, delay=HELD_SECONDS)
    assert job < batch.first_job
    batch.is_put_in_doubt = True
    runner.run([])
    assert batch.state.members[f"base.{ARCH}"].job == job
    batch.close()


def test_what_arrives_is_synced_before_its_job_is_deleted(
    stand: Stand, broker: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = cli.make_daemon(load_file(stand.ini))
    request = stand.submit(broker, make_plan(member("base")))
    done: list[str] = []
    sync, delete = Journal.sync, ReservedJob.delete

    def note_sync(journal: Journal) -> None:
        done.append("synced")
        sync(journal)

    def note_delete(job: ReservedJob[Any]) -> None:
        done.append("deleted")
        delete(job)

    monkeypatch.setattr(Journal, "sync", note_sync)
    monkeypatch.setattr(ReservedJob, "delete", note_delete)
    with stand.beanstalkd.connect() as own:
        own.watch([BATCH.name])
        made.settle_all(own, made.reserve_jobs(own))
        assert done[:2] == ["synced", "deleted"], "the request"
        stand.order(broker, "pause", batch=request.batch)
        done.clear()
        made.settle_all(own, made.reserve_jobs(own))
        assert done[:2] == ["synced", "deleted"], "an order"
        build_id = made.batches.open[request.batch].state.members[f"base.{ARCH}"].build_id
        about: dict[str, Any] = {
            "arch": ARCH,
            "target": f"{TARGET}.{ARCH}",
            "submitter": "johnny",
            "batch": request.batch,
        }
        event = BuildEvent(srpm="base-1-1.src.rpm", status=Status.BUILDING, build_id=build_id, **about)
        broker.put(BATCH, event, priority=BATCH_RESULT)
        done.clear()
        made.settle_all(own, made.reserve_jobs(own))
        assert done[:2] == ["synced", "deleted"], "an event"


def test_members_are_put_in_slices_between_which_orders_are_obeyed(stand: Stand, broker: Broker) -> None:
    names = [f"p{number:03}" for number in range(PUTS_BETWEEN_RESERVES + 50)]
    batch = OpenBatch.accept(stand.incoming, stand.submit(broker, make_plan(*map(member, names))), 1, read_arches())
    runner = ActionRunner(broker, batch, lambda: None)
    runner.run(decide(batch.state, Surroundings(room={})))
    assert len([each for each in batch.state.members.values() if each.is_put]) == PUTS_BETWEEN_RESERVES
    batch.close()


def test_a_build_that_a_person_kicks_is_taken_as_released(stand: Stand, broker: Broker) -> None:
    stand.start()
    with FakeFarm(stand) as farm:
        release_base(stand, broker, farm)
        stand.order(broker, "pause")
        stand.wait_for({"base": "held"})
        broker.kick(stand.state().members[f"right.{ARCH}"].job)
        farm.is_building.set()
        stand.wait_for({"right": "published"})
        assert farm.started == ["right"]


def test_the_pause_of_a_retry_is_not_cut_short_and_a_kick_is_announced_before(
    stand: Stand, broker: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    stand.start()
    stand.submit(broker, make_plan(member("base")))
    stand.wait_for({"base": "released"})
    stand.stop()
    batch = OpenBatch.load(stand.incoming, BATCH_ID)
    progress = batch.state.members[f"base.{ARCH}"]
    runner = ActionRunner(broker, batch, lambda: None)
    list(iter_announced(broker))
    for pause, is_kicked in ((60, False), (HELD_SECONDS, True)):
        broker.reserve_job(progress.job, arch_tube(ARCH)).release(pause)
        batch.pending_kicks[progress.key] = progress.build_id
        runner.kick_pending()
        assert [broker.job_stats(progress.job).state, len(list(iter_announced(broker)))] == (
            ["ready", 1] if is_kicked else ["delayed", 0]
        )
    broker.reserve_job(progress.job, arch_tube(ARCH)).release(HELD_SECONDS)

    def die(_: int) -> None:
        raise BrokerUnavailable("killed before the kick")

    monkeypatch.setattr(broker, "kick", die)
    with pytest.raises(BrokerUnavailable):
        runner.kick(progress)
    (event,) = iter_announced(broker)
    assert isinstance(event, BuildEvent)
    assert event.held is False
    batch.close()


def test_a_refused_job_counts_as_failed_until_it_is_kicked(stand: Stand, broker: Broker) -> None:
    stand.submit(broker, make_plan(*DIAMOND))
    stand.start()
    stand.wait_for({"base": "released"})
    job = stand.state().members[f"base.{ARCH}"].job
    stand.stop()
    with stand.beanstalkd.connect() as worker:
        worker.reserve_job(job, arch_tube(ARCH)).bury()
    stand.start()
    stand.wait_for({"base": "failed"})
    assert f"`reimzul kick {job}`" in stand.state().members[f"base.{ARCH}"].reason
    with FakeFarm(stand):
        broker.kick(job)
        stand.wait_until_over()


def test_another_daemon_does_not_start_beside_it(stand: Stand, broker: Broker) -> None:
    stand.start()
    until(lambda: "waiting for jobs in batch" in stand.log, 10, "it runs")
    first = stand.process
    stand.start()
    assert stand.process
    assert stand.process.wait(15) == 1
    assert "another reimzul-batch works there" in stand.log
    stand.process = first


# --- kills


@pytest.mark.parametrize("seed", range(2))
def test_nothing_is_lost_or_doubled_where_it_is_killed(stand: Stand, broker: Broker, seed: int) -> None:
    """Sixty members in layers, of which some fail, some miss what the plan did not know; killed again and again."""
    rng = random.Random(seed)
    names = [f"p{number:02}" for number in range(60)]
    members = [
        member(name, *rng.sample(names[:index], min(index, rng.randrange(3)))) for index, name in enumerate(names)
    ]
    rng.shuffle(members)
    stand.submit(broker, make_plan(*members))
    outcomes = {"p41": [["p07"]], "p50": [["p20"], ["p21"]]}
    with FakeFarm(stand, outcomes) as farm:
        for _ in range(10):
            stand.start()
            time.sleep(0.35 + rng.random() * 0.5)  # a Python starts in the first part of it
            stand.kill()
            if stand.incoming.joinpath(".batches", f"{BATCH_ID}.log").exists() and stand.state().is_over:
                break
        stand.start()
        stand.wait_until_over(60)
        until(lambda: broker.tube_stats(BATCH.name).is_empty, 10, "all is read")
        assert set(stand.states().values()) == {"published"}
        assert not list(stands.list_jobs(broker))
    built = [event.pkgname for event in farm.events if event.status == Status.PUBLISHED]
    assert sorted(built) == names, "each is built once"
    needs = {each.name: {need.partition(".")[0] for need in each.needs} for each in members}
    assert all(farm.began_after[name] >= needs[name] for name in names)


def test_a_job_that_a_kill_kept_from_being_noted_is_found_and_noted(stand: Stand, broker: Broker) -> None:
    stand.start()
    stand.submit(broker, make_plan(member("base"), member("app", "base")))
    stand.wait_until_put(["base", "app"])
    stand.stop()
    job = stand.state().members[f"app.{ARCH}"].job
    journal = journal_path(stand.incoming, BATCH_ID)
    lines = journal.read_text().splitlines(keepends=True)
    journal.write_text("".join(line for line in lines if not ('"kind":"put"' in line and "app" in line)))
    assert not stand.state().members[f"app.{ARCH}"].is_put
    stand.start()
    stand.wait_until_put(["base", "app"])
    assert stand.state().members[f"app.{ARCH}"].job == job
    with FakeFarm(stand) as farm:
        stand.wait_until_over()
        assert not list(stands.list_jobs(broker))
    assert sorted(farm.started) == ["app", "base"]


def test_an_end_that_a_kill_kept_from_being_announced_is_announced(stand: Stand, broker: Broker) -> None:
    stand.start()
    with FakeFarm(stand) as farm:
        farm.is_building.clear()
        stand.submit(broker, make_plan(member("base"), member("app", "base")))
        stand.wait_until_put(["base", "app"])
        stand.order(broker, "pause")
        stand.wait_for({"base": "held"})
        stand.stop()
        state, now = stand.state(), time.time()
        with contextlib.closing(Journal(journal_path(stand.incoming, BATCH_ID))) as journal:
            order = {"kind": "order", "order": "cancel", "id": "1" * 16, "by": "johnny", "members": [], "at": now}
            ends = [
                {
                    "kind": "ended", "member": key, "build": each.build_id, "state": "cancelled", "at": now,
                    "reason": "cancel by johnny",
                }
                for key, each in state.members.items()
            ]  # fmt: skip
            journal.append([{**order, "settle_pass": 0, "plan_sha256": "", "why": ""}, *ends])
        stand.start()
        stand.wait_until_over()
        until(lambda: len([each for each in farm.events if each.status == Status.CANCELLED]) == 2, 10, "announced")
        until(lambda: not list(stands.list_jobs(broker)), 5, "their jobs are gone")


def test_an_end_that_a_kill_kept_from_being_announced_is_announced_before_a_retry(stand: Stand, broker: Broker) -> None:
    stand.start()
    with FakeFarm(stand, {"user": [["misspelt"]]}) as farm:
        stand.submit(broker, make_plan(member("user"), member("behind", "user")))
        stand.wait_for({"user": "waiting"})
        farm.is_building.clear()
        progress = stand.state().members[f"user.{ARCH}"]
        until(lambda: broker.job_stats(progress.job).is_held, 10, "its builder holds it")
        stand.kill()
        ended = {"kind": "ended", "member": progress.key, "build": progress.build_id, "state": "failed"}
        with contextlib.closing(Journal(journal_path(stand.incoming, BATCH_ID))) as journal:
            journal.append([{**ended, "reason": "nobody provides misspelt", "at": time.time()}])
        stand.order(broker, "retry", "user")
        stand.start()
        until(lambda: stand.state().members[progress.key].count == 2, 10, "it is put again")
        until(lambda: farm.of("user", Status.FAILED), 10, "the end of the first build is announced")
        assert [each.build_id for each in farm.of("user", Status.FAILED)] == [progress.build_id]
        assert progress.build_id not in [request.build_id for _, request in stands.list_jobs(broker)]


def test_a_batch_cancelled_while_it_is_put_leaves_no_job(stand: Stand, broker: Broker) -> None:
    """Whoever is killed while it puts may have put one more than it noted."""
    names = [f"p{number:03}" for number in range(250)]
    stand.submit(broker, make_plan(*map(member, names)))
    with FakeFarm(stand) as farm:
        farm.is_building.clear()
        stand.start()
        until(lambda: len(list(stands.list_jobs(broker))) > 20, 15, "some are put")
        stand.kill()
        put = {request.build_id for _, request in stands.list_jobs(broker)}
        stand.order(broker, "cancel")
        stand.start()
        stand.wait_until_over()
        until(lambda: broker.tube_stats("notify").is_empty, 20, "all is announced")
        assert not list(stands.list_jobs(broker))
        assert {event.build_id for event in farm.events if event.status == Status.CANCELLED} == put


@pytest.mark.parametrize("seed", range(2))
def test_a_cancellation_is_complete_wherever_it_is_killed(stand: Stand, broker: Broker, seed: int) -> None:
    rng = random.Random(seed)
    names = [f"p{number:03}" for number in range(250)]
    stand.submit(broker, make_plan(*map(member, names)))
    with FakeFarm(stand) as farm:
        farm.is_building.clear()
        stand.start()
        stand.wait_until_put(names)
        stand.order(broker, "cancel")
        for _ in range(5):
            time.sleep(0.02 + rng.random() * 0.2)
            stand.kill()
            stand.start()
            until(lambda: "waiting for jobs" in stand.log, 10, "it runs")
        stand.wait_until_over(60)
        until(lambda: broker.tube_stats("notify").is_empty, 20, "all is announced")
        ended = {event.build_id for event in farm.events if event.status == Status.CANCELLED}
        assert len(ended) == len(names)
        assert not list(stands.list_jobs(broker))


# --- beanstalkd restarts, with many held


def test_a_restart_of_beanstalkd_with_4000_held_loses_nothing(tmp_path: Path) -> None:
    (tmp_path / "binlog").mkdir()
    server = Beanstalkd(tmp_path / "binlog")
    server.start()
    stand = Stand(tmp_path, server)
    names = [f"p{number:04}" for number in range(4_000)]
    try:
        with server.connect() as broker:
            stand.submit(broker, make_plan(member(names[0]), *(member(name, names[0]) for name in names[1:])))
        stand.start()
        stand.wait_until_put(names)
        server.kill()
        until(lambda: "trying again every" in stand.log, 10, "it notices")
        server.start()
        with server.connect() as broker, FakeFarm(stand) as farm:
            until(lambda: len(farm.published) > 100, 60, "it goes on")
            assert farm.started[0] == names[0]
            assert len(set(farm.started)) == len(farm.started)
            stand.order(broker, "cancel")
            stand.wait_until_over(60)
            states = list(stand.states().values())
            assert set(states) == {"published", "cancelled"}
            assert states.count("published") == len(farm.published)
            assert not list(stands.list_jobs(broker))
    finally:
        stand.kill()
        server.kill()

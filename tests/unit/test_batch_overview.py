# SPDX-License-Identifier: Apache-2.0
"""What people see of a batch's state, and what they are notified of."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import pytest

from reimzul.core.batch_event import BatchEvent, BatchStatus
from reimzul.core.batch_message import OrderKind
from reimzul.core.errors import InputError
from reimzul.core.failure_cause import CAUSE_VERSION, find_cause
from reimzul.core.message import decode_event
from reimzul.plan import overview
from reimzul.plan.announcements import DIGEST_SECONDS, MAX_SINGLE_CAUSES, announced_entry, find_announcements
from reimzul.plan.batches import BatchFiles, list_batch_ids, load_batch
from reimzul.plan.document import plan_path
from reimzul.plan.journal import EntryKind
from reimzul.plan.overview import BatchPhase, compute_outlook, find_phase, group_failures_by_cause
from reimzul.plan.progress import MemberState
from tests.batches import BATCH, ScriptedBatch, key, make_plan, member

MISSING = "BuildRequires that nobody provides: python3dist(six)"


def make_chain() -> ScriptedBatch:
    """gcc <- qt <- app, and tool by itself."""
    members = (member("gcc"), member("qt", "gcc"), member("app", "qt", "gcc"), member("tool"))
    batch = ScriptedBatch(make_plan(members))
    batch.put_all()
    return batch


def announce(batch: ScriptedBatch) -> list[BatchEvent]:
    """What reimzul-batch does after a change."""
    news = find_announcements(batch.state)
    for each in news:
        batch.state.apply(announced_entry(each, batch.at))
    return [each.event for each in news]


# --- phases and failures


def test_a_batch_is_in_one_phase() -> None:
    batch = make_chain()
    assert find_phase(batch.state) == BatchPhase.RUNNING
    batch.order(OrderKind.PAUSE)
    assert find_phase(batch.state) == BatchPhase.PAUSED
    batch.order(OrderKind.RESUME)
    batch.rest()
    assert find_phase(batch.state) == BatchPhase.RESTING
    batch.order(OrderKind.CANCEL)
    assert find_phase(batch.state) == BatchPhase.CANCELLING
    batch.finish()
    assert find_phase(batch.state) == BatchPhase.OVER


def test_failures_are_grouped_by_cause_and_the_one_that_most_wait_for_is_first() -> None:
    members = (member("six"), member("tool"), member("gcc"), member("qt", "gcc"), member("app", "qt"))
    batch = ScriptedBatch(make_plan(members))
    batch.put_all()
    batch.fail(key("six"), MISSING)
    batch.fail(key("tool"), MISSING)
    batch.fail(key("gcc"), "%build failed", "a.c:1:2: error: no")
    groups = group_failures_by_cause(batch.state)
    assert [(each.blocked, [one.key for one in each.members]) for each in groups] == [
        (2, ["gcc.x86_64"]), (0, ["six.x86_64", "tool.x86_64"]),
    ]  # fmt: skip
    assert groups[0].text == "%build failed: a.c:1:2: error: no (gcc.x86_64); 2 members behind it"


def test_a_seed_fails_for_the_same_cause_as_its_package() -> None:
    batch = ScriptedBatch(make_plan((member("gcc~seed"), member("gcc", "gcc~seed"))))
    batch.put_all()
    batch.fail(key("gcc~seed"), "%build failed", "gcc: internal error")
    batch.fail(key("gcc"), "%build failed", "gcc: internal error")
    assert len(group_failures_by_cause(batch.state)) == 1


def test_the_cause_that_a_members_event_has_counts_until_it_is_built_again() -> None:
    batch = make_chain()
    stored = {"cause": "5f0c12ab", "cause_text": "%build failed: as it was", "cause_version": CAUSE_VERSION}
    for name, version in (("gcc", CAUSE_VERSION), ("tool", CAUSE_VERSION + 1)):
        batch.release(key(name))
        batch.announce(key(name), "Failed", reason="%build failed", **{**stored, "cause_version": version})
    causes = {group.members[0].key: group.cause.id for group in group_failures_by_cause(batch.state)}
    assert causes == {key("gcc"): "5f0c12ab", key("tool"): find_cause("%build failed", "").id}
    batch.order(OrderKind.RETRY, key("gcc"))
    batch.put_all()
    batch.fail(key("gcc"), "%check failed")
    causes = {group.members[0].key: group.cause.id for group in group_failures_by_cause(batch.state)}
    assert causes[key("gcc")] == find_cause("%check failed", "").id


def test_members_that_are_waited_for_are_listed_with_how_many_wait() -> None:
    batch = make_chain()
    assert overview.find_waited_for(batch.state) == {"gcc.x86_64": 2}
    assert overview.list_waiting_on(batch.state, "gcc.x86_64") == ["app.x86_64", "qt.x86_64"]
    batch.build(key("gcc"))
    assert overview.find_waited_for(batch.state) == {"qt.x86_64": 1}


def test_the_longest_chain_counts_what_is_left() -> None:
    batch = make_chain()
    outlook = compute_outlook(batch.state, batch.at)
    assert (outlook.chain, outlook.chain_seconds) == (["gcc.x86_64", "qt.x86_64", "app.x86_64"], 1800)
    assert outlook.seconds_left(1) == 2400
    assert outlook.seconds_left(100) == 1800
    assert outlook.seconds_left(0) is None
    batch.release(key("gcc"))
    batch.announce(key("gcc"), "Building")
    assert compute_outlook(batch.state, batch.at + 400).chain_seconds == 1400
    batch.announce(key("gcc"), "Failed", reason="%build failed")
    assert compute_outlook(batch.state, batch.at).chain == ["tool.x86_64"], "the others wait for a failed one"


def test_members_built_against_an_old_build_are_stale_until_they_fail() -> None:
    batch = make_chain()
    batch.release(key("qt"), stale="built against the old build of gcc.x86_64")
    assert overview.find_stale(batch.state) == []
    batch.announce(key("qt"), "Building")
    assert [each.key for each in overview.find_stale(batch.state)] == [key("qt")]
    batch.announce(key("qt"), "Failed", reason="%build failed")
    assert overview.find_stale(batch.state) == []


@pytest.mark.parametrize(("scratch", "is_good"), [(True, True), (False, False)])
def test_a_member_of_a_scratch_batch_is_done_when_it_is_built(scratch: bool, is_good: bool) -> None:
    batch = ScriptedBatch(make_plan((member("gcc"),), scratch=scratch))
    batch.put_all()
    batch.release(key("gcc"))
    batch.announce(key("gcc"), "Building")
    batch.announce(key("gcc"), "Success")
    assert overview.is_good(batch.state, batch.state.members[key("gcc")]) is is_good


def test_only_some_of_many_members_are_named() -> None:
    batch = ScriptedBatch(make_plan([member(f"p{number}") for number in range(6)]))
    members = list(batch.state.members.values())
    assert overview.list_names(members[:4]).endswith("p2.x86_64, p3.x86_64")
    assert overview.list_names(members).endswith("p3.x86_64 and 2 more")


# --- announcements


def test_a_cause_is_announced_once_and_a_rest_each_time() -> None:
    batch = make_chain()
    batch.fail(key("gcc"), "%build failed", "a.c:1:2: error: no")
    (event,) = announce(batch)
    assert event.status == BatchStatus.NEW_CAUSE
    assert event.text == (
        f"Batch {BATCH} for c9s: gcc.x86_64 failed: %build failed: a.c:1:2: error: no; 2 members behind it"
    )
    batch.fail(key("tool"), "%build failed", "b.c:7:2: error: no")
    assert announce(batch) == []
    batch.rest()
    (rest,) = announce(batch)
    assert rest.status == BatchStatus.RESTING
    assert rest.text == f"Batch {BATCH} for c9s rests: 2 members behind 2 failed"
    assert announce(batch) == []
    batch.order(OrderKind.RETRY, key("tool"))
    assert announce(batch) == []
    batch.put(key("tool"))
    batch.build(key("tool"))
    batch.rest()
    (again,) = announce(batch)
    assert (again.status, again.key != rest.key) == (BatchStatus.RESTING, True)


def test_an_event_that_is_announced_again_has_the_same_key() -> None:
    batch = make_chain()
    batch.fail(key("gcc"), "%build failed")
    assert find_announcements(batch.state) == find_announcements(batch.state)


# --- many causes


def fail_for_causes(batch: ScriptedBatch, numbers: Iterable[int]) -> None:
    for number in numbers:
        batch.fail(key(f"p{number:03}"), f"step {chr(97 + number // 26)}{chr(97 + number % 26)} failed")


def test_the_first_causes_are_announced_one_by_one_and_later_ones_once_an_hour() -> None:
    batch = ScriptedBatch(make_plan([member(f"p{number:03}") for number in range(300)]))
    batch.put_all()
    for number in range(MAX_SINGLE_CAUSES):
        fail_for_causes(batch, [number])
        assert [each.status for each in announce(batch)] == [BatchStatus.NEW_CAUSE]
    fail_for_causes(batch, range(MAX_SINGLE_CAUSES, 100))
    assert announce(batch) == [], "less than an hour ago another cause was announced"
    batch.at += DIGEST_SECONDS
    batch.build(key("p299"))
    (digest,) = announce(batch)
    assert (digest.status, digest.text) == (
        BatchStatus.NEW_CAUSE, f"Batch {BATCH} for c9s: members failed for 90 more causes",
    )  # fmt: skip
    assert digest.lines[0] == "p010.x86_64 failed: step ak failed"
    assert digest.lines[-3:] == ("and 60 more causes", "", f"All of them: reimzul causes --batch {BATCH}")
    assert decode_event(digest.encode()) == digest
    batch.at += DIGEST_SECONDS
    batch.build(key("p298"))
    assert announce(batch) == [], "they were announced together"
    fail_for_causes(batch, [100])
    assert [each.text for each in announce(batch)] == [f"Batch {BATCH} for c9s: members failed for 1 more cause"]


def test_many_causes_at_once_are_a_few_messages_until_the_batch_stops() -> None:
    batch = ScriptedBatch(make_plan([member(f"p{number:03}") for number in range(300)]))
    batch.put_all()
    fail_for_causes(batch, range(300))
    assert len(announce(batch)) == MAX_SINGLE_CAUSES
    batch.finish()
    batch.state.at += DIGEST_SECONDS
    (end,) = announce(batch)
    assert (end.status, end.lines[-1]) == (BatchStatus.OVER, "and 270 more causes")


def test_the_end_is_announced_with_what_became_of_the_members() -> None:
    batch = ScriptedBatch(make_plan((member("gcc"), member("tool"))))
    batch.put_all()
    batch.build(key("gcc"))
    batch.fail(key("tool"), MISSING)
    announce(batch)
    batch.finish()
    (event,) = announce(batch)
    assert event.text == f"Batch {BATCH} for c9s is over: 1 published, 1 failed"
    assert event.lines == ("1 x nobody provides python3dist(six) (tool.x86_64)",)
    assert decode_event(event.encode()) == event


def test_a_pause_of_its_own_is_announced_and_a_persons_is_not() -> None:
    batch = make_chain()
    batch.order(OrderKind.PAUSE)
    assert announce(batch) == []
    batch.order(OrderKind.RESUME)
    batch.add(EntryKind.PAUSED, reason="the last 5 members failed alike: no space")
    (event,) = announce(batch)
    assert (event.status, event.text.endswith("has paused itself: the last 5 members failed alike: no space")) == (
        BatchStatus.PAUSED, True,
    )  # fmt: skip
    batch.order(OrderKind.RESUME)
    assert announce(batch) == []


# --- orders that the state obeys


def test_a_failed_member_that_is_skipped_holds_up_nobody() -> None:
    batch = make_chain()
    batch.fail(key("gcc"), "%build failed")
    batch.order(OrderKind.SKIP, key("gcc"))
    assert batch.state.members[key("gcc")].state == MemberState.SKIPPED
    assert batch.state.unmet_needs(key("qt")) == []


def test_a_retry_keeps_the_disttag_of_a_pass_of_settle() -> None:
    batch = make_chain()
    batch.build(key("gcc"))
    batch.order(OrderKind.SETTLE, key("gcc"), settle_pass=1)
    assert batch.state.members[key("gcc")].disttag == ".el9.1"
    batch.put(key("gcc"))
    batch.fail(key("gcc"), "%build failed")
    batch.order(OrderKind.RETRY, key("gcc"))
    assert batch.state.members[key("gcc")].disttag == ".el9.1"


def test_a_retry_after_a_cancelled_batch_is_over_goes_on() -> None:
    batch = make_chain()
    batch.order(OrderKind.CANCEL)
    for each in batch.state.members:
        batch.add(EntryKind.ENDED, member=each, build=batch.state.members[each].build_id, state="cancelled", reason="-")
    batch.finish()
    batch.order(OrderKind.RETRY, key("gcc"))
    assert (batch.state.is_over, batch.state.cancel_reason) == (False, "")


# --- files


def test_files_are_replayed_and_followed(tmp_path: Path) -> None:
    batch = ScriptedBatch(make_plan((member("gcc"),)), tmp_path)
    files = BatchFiles(tmp_path, BATCH)
    assert (files.state.is_accepted, files.state.members[key("gcc")].is_put) == (True, False)
    batch.put_all()
    batch.build(key("gcc"))
    assert files.refresh().members[key("gcc")].state == MemberState.PUBLISHED
    assert len(files.changes) == 5
    files.refresh()
    assert files.changes == []
    assert list_batch_ids(tmp_path) == [BATCH]


def test_entries_that_were_taken_back_are_forgotten(tmp_path: Path) -> None:
    batch = ScriptedBatch(make_plan((member("gcc"),)), tmp_path)
    batch.put_all()
    files = BatchFiles(tmp_path, BATCH)
    path = tmp_path / ".batches" / f"{BATCH}.log"
    path.write_bytes(path.read_bytes().splitlines(keepends=True)[0])
    assert not files.refresh().members[key("gcc")].is_put


def test_a_plan_that_was_changed_is_refused(tmp_path: Path) -> None:
    ScriptedBatch(make_plan((member("gcc"),)), tmp_path)
    path = plan_path(tmp_path, BATCH)
    path.write_text(path.read_text().replace("gcc-1.0", "gcc-2.0"))
    with pytest.raises(InputError, match="not the plan that was accepted"):
        load_batch(tmp_path, BATCH)

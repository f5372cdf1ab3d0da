# SPDX-License-Identifier: Apache-2.0
"""Explanations of builds in every state."""

from __future__ import annotations

from typing import Any

import attr
import pytest

from reimzul.admin.build_facts import BuildFacts
from reimzul.admin.explain import explain, to_dict
from reimzul.admin.lookup import builds_ahead, lowest_priority, queue_order
from reimzul.core.beanstalk_stats import TubeStats
from reimzul.core.control import ControlFlag
from reimzul.core.links import NO_LINKS, LinkRoots, relink
from reimzul.core.message import CurrentBuild, WorkerHeartbeat
from reimzul.history import BuildRecord
from reimzul.history.build_record import apply_events
from reimzul.history.estimates import ArchStats, duration_stats
from reimzul.history.workers import WorkerRecord
from tests.events import ATTEMPT, BEGINNING, build_id, event

NOW = BEGINNING + 1000
CREATEREPO, TOSIGN = TubeStats("createrepo", watchers=1), TubeStats("tosign")


def leg(*statuses: str, number: int = 1, **more: Any) -> BuildRecord:
    """What the history says after events, a second apart."""
    told = []
    for second, status in enumerate(statuses):
        where = {"tube": "x86_64", "job": 100 + number, "priority": 8192} if status == "Queued" else {}
        own = more if second == len(statuses) - 1 or (status == statuses[-1] and "job" not in more) else {}
        told.append(event(status, number, at=BEGINNING + second, **{**where, **own}))
    (document,) = apply_events({}, told).values()
    return document


def worker(host: str = "builder1", state: str = "idle", heard: float = NOW, **more: Any) -> WorkerRecord:
    """A worker's word."""
    there = WorkerHeartbeat(host=f"{host}.example.org", instance="1", state=state, arches=("x86_64", "i386"), **more)
    return WorkerRecord(heartbeat=there, last_seen=heard)


def hand(number: int = 50, started: float = NOW - 60, phase: str = "rpmbuild") -> CurrentBuild:
    """A build in a worker's hand."""
    return CurrentBuild(
        build_id=build_id(number),
        srpm="bash-5.1-1.src.rpm",
        target="c7.1708.u.x86_64",
        arch="x86_64",
        attempt=ATTEMPT,
        phase=phase,
        since=started + 10,
        started=started,
    )


def facts(document: BuildRecord, **more: Any) -> BuildFacts:
    """Facts about a leg; what is not given is as it should be."""
    given: dict[str, Any] = {
        "now": NOW, "leg": document, "job": "ready", "tube": TubeStats("x86_64", ready=1, watchers=1),
        "createrepo": CREATEREPO, "tosign": TOSIGN, "workers": [worker()],
    }  # fmt: skip
    return BuildFacts(**{**given, **more})


def explain_text(about: BuildFacts) -> str:
    return "\n".join(explain(about).sentences)


def minutes(number: float, package: str = "time") -> BuildRecord:
    return BuildRecord(pkgname=package, started=1000.0, finished=1000.0 + number * 60)


FIVE = duration_stats([300.0] * 5)
ARCH = ArchStats([minutes(5), minutes(10, "bash"), minutes(10, "bash"), minutes(10, "bash")])


def test_a_build_that_nothing_stands_before_starts_at_once() -> None:
    told = explain(facts(leg("Queued"), own_stats=FIVE, arch_stats=ARCH))
    assert told.start
    assert told.start.high == 0
    assert told.end
    assert told.end.likely == 300
    text = "\n".join(told.sentences)
    assert "It waits in tube x86_64 as job 101, priority 8192, queued 16 min 40 s ago." in text
    assert "No build is ahead of it." in text
    assert "Expected start: at once." in text
    assert "This package takes 5 min 00 s (median of 5 builds" in text


def test_what_is_ahead_is_counted_and_reckoned() -> None:
    ahead = [leg("Queued", number=number, pkgname="bash") for number in range(2, 5)]
    beside = [attr.evolve(leg("Queued", number=9), tube="i386")]
    told = explain(facts(leg("Queued"), ahead=ahead, ahead_elsewhere=beside, own_stats=FIVE, arch_stats=ARCH))
    text = "\n".join(told.sentences)
    assert "3 builds are ahead of it in that tube: about 30 min 00 s of work for one worker." in text
    assert "The same builders take 1 build from i386 before it." in text
    assert told.start
    assert told.start.likely == 35 * 60


def test_a_busy_worker_is_reckoned_with_what_it_has_left() -> None:
    told = explain(
        facts(leg("Queued"), workers=[worker(state="building", build=hand())], own_stats=FIVE, arch_stats=ARCH)
    )
    assert told.start
    assert told.start.likely == 540
    text = "\n".join(told.sentences)
    assert (
        "builder1.example.org builds bash-5.1-1.src.rpm for c7.1708.u.x86_64 (rpmbuild), started 1 min 00 s ago" in text
    )
    assert "usually takes 10 min 00 s" in text
    assert "1 worker could take it." in text


@pytest.mark.parametrize(
    ("seen", "words"),
    [
        (worker(state="unfit", why="disk under /srv: 17 MiB free"), "takes no jobs (unfit: disk under /srv"),
        (worker(state="drained", why="drained by johnny: new disk"), "takes no jobs (drained by johnny: new disk)"),
        (worker(state="quarantined"), "takes no jobs (quarantined)"),
        (worker(heard=NOW - 400), "has sent no heartbeat for 6 min 40 s"),
        (worker(state="draining", build=hand()), "and takes no more jobs after that"),
        (worker(), "builder1.example.org is free, heard of 0.0 s ago."),
    ],
)
def test_each_worker_is_told_of_in_its_state(seen: WorkerRecord, words: str) -> None:
    assert words in explain_text(facts(leg("Queued"), workers=[seen]))


@pytest.mark.parametrize("state", ["unfit", "drained", "quarantined", "draining"])
def test_where_no_worker_takes_jobs_no_start_is_foretold(state: str) -> None:
    told = explain(facts(leg("Queued"), workers=[worker(state=state, build=None)], own_stats=FIVE))
    assert told.start is None
    assert "Its start cannot be estimated." in told.sentences


def test_that_nobody_watches_its_tube_is_said() -> None:
    told = explain(facts(leg("Queued"), tube=TubeStats("x86_64", ready=1), workers=[]))
    assert "Nobody watches tube x86_64: no builder that could build it is connected." in told.sentences
    assert told.start is None


def test_where_the_workers_cannot_be_known_the_watchers_are_counted() -> None:
    text = explain_text(facts(leg("Queued"), tube=TubeStats("x86_64", watchers=3), workers=None))
    assert "3 workers watch that tube; this host cannot see which." in text


def test_of_many_workers_the_rest_is_counted_by_state() -> None:
    seen = [worker(f"builder{number}", "building", build=hand()) for number in range(9)] + [worker("last", heard=0.0)]
    assert "And 2 workers more: 1 building and 1 silent." in explain_text(facts(leg("Queued"), workers=seen))


def test_a_rejected_package_does_not_blame_its_builder_and_links_its_logs_once() -> None:
    words: dict[str, Any] = {"attempt": ATTEMPT, "builder_fqdn": "builder1.example.org"}
    document = leg("Building", "Rejected", url="http://attempts/", reason="createrepo_c refuses x.rpm", **words)
    text = explain_text(facts(document))
    assert "It was rejected" in text
    assert "on builder1" not in text
    assert text.count("createrepo_c refuses x.rpm") == text.count("Its logs: http://attempts/") == 1


@pytest.mark.parametrize("status", ["Failed", "Rejected", "Cancelled"])
def test_the_command_that_builds_it_again_leaves_published_arches_alone(status: str) -> None:
    told = explain_text(facts(leg("Building", status, reason="%build failed")))
    assert f"To build it again: reimzul retry {build_id(1)[:8]} --failed" in told.splitlines()


@pytest.mark.parametrize("scratch", [False, True])
def test_where_logs_have_no_link_a_path_or_a_command_stands(scratch: bool) -> None:
    place = f"{'scratch' if scratch else 'repo'}/c7.1708.u.x86_64/time/20251122000001/1.7-45.el7.x86_64"
    failed = relink(
        leg("Building", "Failed", place=place, scratch=scratch), LinkRoots(store="http://bstore.example.org/")
    )
    command = f"Its logs: reimzul log {build_id(1)[:8]} --arch x86_64"
    assert (command if scratch else f"Its logs: http://bstore.example.org/{place}/") in explain_text(
        facts(failed)
    ).splitlines()
    if not scratch:
        assert f"Its logs: on bstore: {place}" in explain_text(facts(relink(failed, NO_LINKS)))
    built = relink(
        leg("Building", "Success", place=place, scratch=scratch), LinkRoots(store="http://bstore.example.org/")
    )
    assert (f"Its files: on bstore: {place}" in explain_text(facts(built))) == scratch


def test_a_failed_attempt_and_the_next_start_are_told() -> None:
    words: dict[str, Any] = {"attempt": ATTEMPT, "builder_fqdn": "builder1.example.org", "reason": "the disk was full"}
    document = leg("Queued", "Building", "Queued", url="http://logs/", due=NOW + 7, **words)
    told = explain(facts(document, job="delayed"))
    text = "\n".join(told.sentences)
    assert "Attempt 1 failed on builder1.example.org 16 min 38 s ago: the disk was full. Its logs: http://logs/" in text
    assert "No worker gets it before 2025-11-22 08:43:27Z, in 7.0 s." in text
    assert told.start
    assert told.start.low == 7


def test_a_build_whose_source_cannot_be_downloaded_waits_for_that() -> None:
    put: dict[str, Any] = {
        "waits_for": "its source: a-1-1.src.rpm cannot be downloaded: HTTP 503, on builder1",
        "job": 105,
    }
    document = leg("Queued", "Queued", due=NOW + 20, **put, tube="x86_64", priority=8192)
    bar = "/srv/a has mode 0600, and other users cannot read it: chmod o+r /srv/a"
    told = explain(facts(document, job="delayed", own_stats=FIVE, source_problem=bar))
    text = "\n".join(told.sentences)
    assert "It waits for its source: a-1-1.src.rpm cannot be downloaded: HTTP 503, on builder1." in text
    assert f"The web server cannot read its source rpm: {bar}" in text
    assert "It starts after that." in text
    assert "No worker gets it before" in text
    assert (told.start, told.end) == (None, None)
    ready = explain_text(facts(document, now=NOW + 30, workers=[worker(heard=NOW + 30)]))
    assert "at once" not in ready
    assert "It waits for its source" in ready
    again = leg("Queued", "Queued", "Queued", tube="x86_64", job=106, priority=8192)
    assert "Expected start: at once." in explain_text(facts(again)), (
        "what is put again for another reason waits for nothing"
    )


def test_a_job_that_was_put_aside_names_the_commands() -> None:
    told = explain(facts(leg("Queued"), job="buried"))
    assert "`reimzul kick 101`" in "\n".join(told.sentences)


def test_a_job_that_is_gone_is_said() -> None:
    told = explain(facts(leg("Queued"), job="gone"))
    assert f"reimzul retry {build_id(1)[:8]}" in "\n".join(told.sentences)


def test_a_running_build_is_told_with_its_phase_and_what_is_left() -> None:
    seen = worker(state="building", build=attr.evolve(hand(1), build_id=build_id(1)))
    told = explain(facts(leg("Queued", "Building", started=NOW - 60), job="reserved", workers=[seen], own_stats=FIVE))
    text = "\n".join(told.sentences)
    assert f"builder1.example.org builds it, started 1 min 00 s ago (attempt {ATTEMPT})." in text
    assert "It has been in phase rpmbuild for 50 s." in text
    assert f"Its log so far: reimzul log {build_id(1)[:8]} --arch x86_64 -f" in text
    assert "About 4 min 00 s are left (90 %: at most 4 min 00 s)." in text
    assert told.end
    assert told.end.likely == 240


def test_a_build_that_takes_longer_than_ever_is_said() -> None:
    text = explain_text(facts(leg("Queued", "Building", started=NOW - 900), job="reserved", own_stats=FIVE))
    assert "It has taken longer than 90 % of them." in text


def test_a_build_whose_worker_is_silent_is_said() -> None:
    seen = worker(state="building", heard=NOW - 300, build=attr.evolve(hand(1), build_id=build_id(1)))
    text = explain_text(facts(leg("Queued", "Building", started=NOW - 600), job="reserved", workers=[seen]))
    assert "That worker has sent no heartbeat for 5 min 00 s." in text


def test_a_build_whose_job_was_put_aside_or_is_gone_is_not_built_by_anybody() -> None:
    document = leg("Queued", "Building", started=NOW - 9000)
    put_aside = explain(facts(document, job="buried", own_stats=FIVE))
    assert "`reimzul kick 101`" in "\n".join(put_aside.sentences)
    gone = explain(facts(document, job="gone", own_stats=FIVE))
    assert "reimzul retry" in "\n".join(gone.sentences)
    assert gone.end is None
    assert "no worker is known to build it" in "\n".join(gone.sentences)  # somebody had said that he builds it
    at_it = worker(state="building", build=attr.evolve(hand(1), build_id=build_id(1)))
    assert "builder1.example.org builds it" in explain_text(
        facts(document, job="gone", workers=[at_it], own_stats=FIVE)
    )


def test_a_build_that_is_fetched_does_not_wait_behind_itself() -> None:
    seen = worker(state="building", build=attr.evolve(hand(1, phase="source"), build_id=build_id(1)))
    told = explain(facts(leg("Queued"), job="reserved", workers=[seen], own_stats=FIVE, arch_stats=ARCH))
    text = "\n".join(told.sentences)
    assert told.start is None
    assert told.end
    assert told.end.likely == 240
    assert "builder1" in text
    assert "(source), started 1 min 00 s ago" in text
    assert "Expected start" not in text


def test_how_long_a_worker_is_busy_with_what_nobody_knows_is_not_said() -> None:
    busy = worker(state="building", build=hand())
    told = explain(facts(leg("Queued"), workers=[busy]))
    assert told.start is None
    assert "Its start cannot be estimated." in told.sentences


def test_a_build_whose_worker_died_is_given_back() -> None:
    told = explain(facts(leg("Queued", "Building", started=NOW - 600), job="ready"))
    assert "Its job is in tube x86_64 again" in "\n".join(told.sentences)


@pytest.mark.parametrize(
    ("createrepo", "words"),
    [
        (TubeStats("createrepo"), "Nobody watches tube createrepo: no repogen is connected."),
        (TubeStats("createrepo", ready=3, reserved=20, watchers=2), "has 3 waiting and 20 running requests"),
        (TubeStats("createrepo", delayed=1, watchers=2), "1 request in tube createrepo will be retried"),
        (TubeStats("createrepo", buried=2, watchers=2), "2 requests in it were refused"),
    ],
)
def test_why_a_success_is_not_published_yet(createrepo: TubeStats, words: str) -> None:
    told = explain(facts(leg("Queued", "Success", finished=NOW - 5), createrepo=createrepo))
    assert "It was built 5.0 s ago and uploaded, and is not published yet." in told.sentences
    assert words in "\n".join(told.sentences)


@pytest.mark.parametrize(
    ("document", "words"),
    [
        (leg("Queued", "Published", url="http://x/"), "It was published in c7.1708.u.x86_64 at"),
        (leg("Queued", "Success", scratch=True, url="http://x/"), "scratch builds are not published"),
        (
            leg("Queued", "Failed", reason="bad", first_error="make: Error 127\ncc: no", error_line="cc: no"),
            "The first error: cc: no",
        ),
        (leg("Queued", "Failed", reason="bad", first_error="+ make\na"), "The first error: + make"),
        (leg("Queued", "Cancelled", reason="cancelled by johnny"), "cancelled by johnny"),
        (leg("Queued", "Success", "Rejected", reason="a checksum is wrong"), "a checksum is wrong"),
        (leg("Failed", "Override", reason="by hand"), "Somebody has set its state to override: by hand"),
    ],
)
def test_what_is_over_is_told_as_it_ended(document: BuildRecord, words: str) -> None:
    assert words in explain_text(facts(document))


def test_a_cancel_on_its_way_and_a_notifier_that_is_behind_are_said() -> None:
    text = explain_text(facts(leg("Queued"), cancel=ControlFlag(by="johnny"), backlog=1234))
    assert "johnny has cancelled it; it has not ended yet." in text
    assert "The notifier has 1,234 events still to read: this may be out of date." in text


def test_the_object_has_the_same_in_it() -> None:
    about = facts(leg("Queued"), own_stats=FIVE, arch_stats=ARCH, ahead=[leg("Queued", number=2)])
    told = to_dict(explain(about), about)
    assert (told["ahead"], told["state"], told["job"], told["tube"]) == (1, "queued", 101, "x86_64")
    assert told["starts_in"]["likely"] > 0
    assert told["past_durations"]["median"] == 300
    assert told["message"].splitlines() == list(explain(about).sentences)


# --- whose turn it is


def waiting(number: int, **more: Any) -> BuildRecord:
    return attr.evolve(leg("Queued", number=number), **more)


def test_smaller_priorities_go_first_and_of_equal_ones_smaller_numbers() -> None:
    mine = waiting(5)
    others = [waiting(3), waiting(7), waiting(8, priority=1024), waiting(9, priority=9000)]
    ahead, beside = builds_ahead(mine, others, "x86_64", ["x86_64"], NOW)
    assert [each.job for each in ahead] == [103, 108]
    assert beside == []
    assert queue_order(waiting(1, priority=None)) > queue_order(waiting(2))


def test_legs_that_were_put_again_together_are_one_build_ahead() -> None:
    others = [waiting(3), waiting(3, arch="i386"), waiting(4)]
    ahead, _ = builds_ahead(waiting(6), others, "x86_64", ["x86_64"], NOW)
    assert [each.job for each in ahead] == [103, 104]


def test_only_what_may_be_given_out_now_is_ahead_and_only_of_shared_tubes_beside() -> None:
    others = [
        waiting(1, due=NOW + 60), waiting(2, status="Building"), waiting(3, tube="i386"), waiting(4, tube="aarch64"),
        waiting(5), waiting(1, build_id=build_id(6)),
    ]  # fmt: skip
    ahead, beside = builds_ahead(waiting(6), others, "x86_64", ["x86_64", "i386"], NOW)
    assert [each.job for each in ahead] == [105]
    assert [each.tube for each in beside] == ["i386"]


def test_the_front_of_a_tube_is_its_smallest_priority() -> None:
    known = [waiting(1), waiting(2, priority=1023), waiting(3, priority=5, tube="i386")]
    assert lowest_priority(known, "x86_64") == 1023
    assert lowest_priority([], "x86_64") > 2**31


def retried(number: int) -> Any:
    reason = "nobody's fault: x86_64: a repository changed while it was read: 404; tried again in 10 s"
    token, at = f"{1795000000 + number}-00000000", BEGINNING + number
    where = {"tube": "x86_64", "job": 101, "priority": 8192, "due": NOW + 5}
    by = {"attempt": token, "builder_fqdn": "b1.example.org", "reason": reason, "url": "http://a/"}
    return event("Queued", 1, at=at, **by, **where)


def test_what_was_nobodys_fault_is_said_once_and_named() -> None:
    (document,) = apply_events({}, [event("Queued", 1, at=BEGINNING), *map(retried, range(3))]).values()
    told = explain(facts(document, job="delayed"))
    sentences = [each for each in told.sentences if "nobody's fault" in each]
    (sentence,) = sentences
    assert sentence.startswith("Attempt 3 does not count; 3 attempts ended so: on b1.example.org ")
    assert "a repository changed while it was read: 404; tried again in 10 s. Its logs: http://a/" in sentence


def test_a_claim_is_named_beside_what_is_known() -> None:
    claim = apply_events({}, [event("Success"), event("Published", claimed=True)])[event("Success").key]
    assert "published (claimed: not signed by bstore): reimzul doctor" in explain_text(facts(claim))
    (alone,) = apply_events({}, [event("Published", claimed=True)]).values()
    assert explain(facts(alone)).sentences == (
        ["Announced as published (claimed: not signed by bstore): reimzul doctor says more."]
    )

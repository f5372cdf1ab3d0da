# SPDX-License-Identifier: Apache-2.0
"""What any home of the history promises: one suite, run against each by a class that has the fixture `history`."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import attr
import pytest

from reimzul.core.failure_cause import CAUSE_VERSION, find_cause
from reimzul.core.message import BuildEvent, Phase
from reimzul.history import BuildFilter, FailedBuild, History
from tests.events import ATTEMPT, OTHER_ATTEMPT, build_id, event, refusal

ORIGINALS = {
    "srpm", "arch", "target", "disttag", "scratch", "submitter", "status", "builder_fqdn", "evr", "pkgname",
    "timestamp", "latest_build", "comment",
}  # fmt: skip


def find_only(history: History, **wanted: Any) -> dict[str, Any]:
    """The one build there is."""
    (document,) = history.find_builds(BuildFilter(**wanted), 10)
    return document.to_document()


def numbers(history: History, limit: int = 10, **wanted: Any) -> list[int]:
    """The numbers of the builds that are found, in the order they come."""
    known = {build_id(number): number for number in range(100)}
    return [known[document.build_id] for document in history.find_builds(BuildFilter(**wanted), limit)]


class HistoryContract:
    """The suite."""

    def test_a_build_on_an_arch_is_one_document_with_the_originals_fields(self, history: History) -> None:
        history.record([event("Queued"), event("Building")])
        assert find_only(history)["status"] == "Building"
        history.record([event("Success", exit_code=0, rpms=("time-1.7-45.el7.x86_64.rpm",))])
        document = find_only(history)
        assert document.keys() >= ORIGINALS
        assert (document["status"], document["exit_code"], document["latest_build"]) == ("Success", 0, True)
        assert document["rpms"] == ["time-1.7-45.el7.x86_64.rpm"]
        assert (document["comment"], document["scratch"]) == ("", False)

    def test_every_field_of_the_original_is_there_from_the_first_event_on(self, history: History) -> None:
        history.record([event("Queued")])
        assert find_only(history).keys() >= ORIGINALS

    def test_the_arches_of_a_submission_are_documents_of_their_own(self, history: History) -> None:
        history.record([event("Success"), event("Failed", arch="i386")])
        assert find_only(history, arch="i386")["status"] == "Failed"
        assert find_only(history, arch="x86_64")["status"] == "Success"

    @pytest.mark.parametrize("order", list(itertools.permutations(["Queued", "Building", "Success", "Published"])))
    def test_events_may_come_in_any_order_and_twice(self, history: History, order: tuple[str, ...]) -> None:
        events = {
            "Queued": event("Queued", at=1.0),
            "Building": event("Building", at=2.0, started=2.0),
            "Success": event("Success", at=3.0, started=2.0, finished=3.0, exit_code=0),
            "Published": event("Published", at=4.0, started=2.0, finished=3.0, url="http://localhost/place/"),
        }
        for status in [*order, *order]:
            history.record([events[status]])
        document = find_only(history)
        assert (document["status"], document["published"], document["latest_build"]) == ("Success", 4.0, True)
        assert (document["at"], document["exit_code"], document["finished"]) == (4.0, 0, 3.0)
        assert document["url"] == "http://localhost/place/"

    @pytest.mark.parametrize("order", list(itertools.permutations(["Success", "claim", "Published"])))
    def test_only_what_bstore_has_signed_is_published(self, history: History, order: tuple[str, ...]) -> None:
        events = {
            "Success": event("Success", at=3.0),
            "claim": event("Published", at=4.0, claimed=True, url="http://forged/", attempt=OTHER_ATTEMPT),
            "Published": event("Published", at=5.0, claimed=False, url="http://localhost/place/"),
        }
        history.record([events["Success"], events["claim"]])
        before = find_only(history)
        assert (before["status"], before["published"], before["claimed"], before["url"]) == ("Success", 0.0, True, "")
        for status in order:
            history.record([events[status]])
        after = find_only(history)
        assert (after["status"], after["published"], after["claimed"]) == ("Success", 5.0, False)
        assert (after["url"], after["attempt"]) == ("http://localhost/place/", ATTEMPT)

    def test_a_claim_of_a_build_that_never_was_is_no_result(self, history: History) -> None:
        history.record([event("Published", claimed=True, url="http://forged/")])
        document = find_only(history)
        assert (document["status"], document["claimed"], document["published"]) == ("Claimed", True, 0.0)
        assert not document["latest_build"]
        assert history.find_unfinished() == history.recent_successes("time", "x86_64", 5) == []
        history.record([event("Queued", at=1.0)])
        document = find_only(history)
        assert (document["status"], document["claimed"], document["url"]) == ("Queued", True, ""), (
            "nothing was believed"
        )

    def test_a_claimed_rejection_changes_nothing(self, history: History) -> None:
        history.record([event("Rejected", claimed=True)])
        assert history.find_builds(BuildFilter(), 10) == []
        history.record([event("Success")])
        history.record([event("Rejected", claimed=True)])
        assert (find_only(history)["status"], find_only(history)["claimed"]) == ("Success", None)

    @pytest.mark.parametrize("final", ["Success", "Failed", "Cancelled", "Rejected"])
    def test_a_late_building_covers_no_result(self, history: History, final: str) -> None:
        history.record([event(final)])
        history.record([event("Building", attempt=OTHER_ATTEMPT, builder_fqdn="late.example.org", at=9e9)])
        document = find_only(history)
        assert (document["status"], document["builder_fqdn"]) == (final, "builder1.example.org")

    def test_of_two_attempts_under_way_the_later_is_shown(self, history: History) -> None:
        later = event("Building", attempt=OTHER_ATTEMPT, builder_fqdn="second.example.org", at=20.0)
        for batch in ([later], [event("Building", at=10.0, started=10.0)]):
            history.record(batch)
        document = find_only(history)
        assert (document["builder_fqdn"], document["attempt"]) == ("second.example.org", OTHER_ATTEMPT)
        assert document["started"] == 0.0, "the first attempt's start is none of the second's"

    def test_of_two_results_the_first_holds(self, history: History) -> None:
        history.record([event("Failed", reason="it does not build")])
        history.record([event("Success", attempt=OTHER_ATTEMPT)])
        document = find_only(history)
        assert (document["status"], document["attempt"], document["reason"]) == ("Failed", ATTEMPT, "it does not build")

    def test_what_another_attempt_published_is_a_success(self, history: History) -> None:
        history.record([event("Failed", reason="it does not build", exit_code=1)])
        history.record([event("Published", attempt=OTHER_ATTEMPT, at=50.0)])
        document = find_only(history)
        assert (document["status"], document["published"], document["attempt"]) == ("Success", 50.0, OTHER_ATTEMPT)
        assert (document["reason"], document["exit_code"]) == ("", None), "the failed attempt's"
        history.record([event("Failed", attempt=ATTEMPT)])
        assert find_only(history)["status"] == "Success"

    def test_what_was_cancelled_before_it_was_published_is_no_success(self, history: History) -> None:
        history.record([event("Success", place="repo/c7.1708.u.x86_64/time/20251122000001/1.7-45.el7.x86_64")])
        history.record([event("Cancelled", reason="cancelled by johnny", at=50.0)])
        document = find_only(history)
        assert (document["status"], document["reason"], document["place"]) == ("Cancelled", "cancelled by johnny", "")
        history.record([event("Success")])
        assert find_only(history)["status"] == "Cancelled"

    def test_what_was_published_before_it_was_cancelled_is_published(self, history: History) -> None:
        history.record([event("Cancelled"), event("Published", at=50.0)])
        history.record([event("Cancelled")])
        document = find_only(history)
        assert (document["status"], document["published"]) == ("Success", 50.0)

    def test_what_had_failed_cannot_be_cancelled(self, history: History) -> None:
        history.record([event("Failed", reason="it does not build"), event("Cancelled")])
        assert (find_only(history)["status"], find_only(history)["reason"]) == ("Failed", "it does not build")

    def test_where_it_waits_is_known_from_the_first_second(self, history: History) -> None:
        history.record([event("Queued", tube="x86_64", job=7, priority=8192, at=100.0, parent=build_id(9))])
        document = find_only(history)
        assert (document["tube"], document["job"], document["priority"]) == ("x86_64", 7, 8192)
        assert (document["queued_at"], document["put_at"], document["due"]) == (100.0, 100.0, 0.0)
        assert (document["parent"], document["attempts"]) == (build_id(9), [])

    @pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
    def test_the_last_put_says_where_it_waits(self, history: History, order: tuple[int, ...]) -> None:
        events = [
            event("Queued", tube="x86_64", job=7, priority=8192, at=100.0),
            event("Building", at=110.0, started=110.0),
            event(
                "Queued", attempt=ATTEMPT, tube="x86_64", job=9, priority=8192, at=120.0, due=130.0, finished=120.0,
                reason="builder1.example.org could not build it", builder_fqdn="builder1.example.org",
                url="http://localhost/attempts/1/", error_log="root.log",
            ),
        ]  # fmt: skip
        for number in order:
            history.record([events[number]])
        document = find_only(history)
        assert (document["queued_at"], document["put_at"], document["job"], document["due"]) == (100.0, 120.0, 9, 130.0)
        assert (document["status"], document["reason"]) == ("Queued", "builder1.example.org could not build it")
        (attempt,) = document["attempts"]
        assert attempt == {
            "attempt": ATTEMPT, "builder_fqdn": "builder1.example.org", "status": "Unfit", "started": 110.0,
            "finished": 120.0, "exit_code": None, "reason": "builder1.example.org could not build it",
            "url": "http://localhost/attempts/1/", "logs_folder": "", "error_log": "root.log", "skew": 0.0,
            "at": 120.0, "heard": 110.0,
        }  # fmt: skip

    def test_an_attempt_that_was_nobodys_fault_is_not_its_builders(self, history: History) -> None:
        reason = "nobody's fault: x86_64: a repository changed while it was read"
        history.record([event("Building", at=110.0, started=110.0)])
        history.record([event("Queued", attempt=ATTEMPT, at=120.0, reason=reason, job=9, due=130.0)])
        document = find_only(history)
        assert (document["status"], document["reason"], document["due"]) == ("Queued", reason, 130.0)
        assert [each["status"] for each in document["attempts"]] == ["Retried"]

    def test_every_attempt_is_known_with_what_it_came_to(self, history: History) -> None:
        history.record([event("Building", at=110.0, started=110.0)])
        history.record([event("Queued", attempt=ATTEMPT, at=120.0, reason="no space left", job=9)])
        second: dict[str, Any] = {"attempt": OTHER_ATTEMPT, "builder_fqdn": "second.example.org", "started": 131.0}
        history.record([event("Building", at=131.0, **second)])
        assert find_only(history)["status"] == "Building"
        history.record([event("Success", at=140.0, finished=140.0, exit_code=0, url="http://localhost/p/", **second)])
        history.record([event("Published", at=150.0, finished=140.0, exit_code=0, **second)])
        document = find_only(history)
        assert [(each["status"], each["builder_fqdn"]) for each in document["attempts"]] == [
            ("Unfit", "builder1.example.org"), ("Published", "second.example.org"),
        ]  # fmt: skip
        assert [each["reason"] for each in document["attempts"]] == ["no space left", ""]
        last = document["attempts"][1]
        assert (last["started"], last["finished"], last["exit_code"]) == (131.0, 140.0, 0)
        assert last["url"] == "http://localhost/p/"

    def test_an_upload_that_was_bad_is_no_fault_of_its_builder(self, history: History) -> None:
        again = event("Queued", attempt=ATTEMPT, reason="upload: a checksum is wrong", job=9)
        history.record([event("Success"), again])
        assert [each["status"] for each in find_only(history)["attempts"]] == ["Rejected"]

    def test_the_phases_of_a_result_are_kept(self, history: History) -> None:
        phases = (Phase(name="source", start=1.0, end=2.5), Phase(name="chroot init", start=2.5))
        history.record([event("Success", phases=phases), event("Published", at=150.0)])
        assert find_only(history)["phases"] == [
            {"name": "source", "start": 1.0, "end": 2.5}, {"name": "chroot init", "start": 2.5, "end": 0.0},
        ]  # fmt: skip

    def test_what_was_submitted_since_a_time_is_found(self, history: History) -> None:
        history.record([event("Queued", number) for number in (1, 2, 3)])
        assert numbers(history, since=event("Queued", 2).timestamp) == [3, 2]

    def test_a_rejected_success_is_rejected(self, history: History) -> None:
        history.record([event("Success"), event("Rejected", reason="a checksum is wrong")])
        assert find_only(history)["status"] == "Rejected"
        assert find_only(history)["reason"] == "a checksum is wrong"

    def test_an_override_stays(self, history: History) -> None:
        history.record([event("Failed"), event("Override", reason="built against devtoolset-7", at=9e9)])
        history.record([event("Success", attempt=OTHER_ATTEMPT), event("Published", at=60.0), event("Building")])
        document = find_only(history)
        assert (document["status"], document["comment"]) == ("Override", "built against devtoolset-7")
        assert document["published"] == 60.0
        assert document["latest_build"] is True

    def test_an_event_of_the_originals_worker_is_recorded(self, history: History) -> None:
        history.record(
            [
                BuildEvent(
                    srpm="time-1.7-45.el7.src.rpm",
                    arch="armhfp",
                    target="c7.1708.u.armhfp",
                    status=status,
                    submitter="root",
                    disttag=".el7",
                    timestamp="20180101000000",
                    builder_fqdn="old.example.org",
                    pkgname="time",
                    evr="1.7-45.el7",
                )
                for status in ("Building", "Success")
            ]
        )
        assert (find_only(history)["status"], find_only(history)["latest_build"]) == ("Success", True)

    @pytest.mark.parametrize("order", list(itertools.permutations([1, 2, 3])))
    def test_the_latest_build_is_the_newest_that_is_over(self, history: History, order: tuple[int, ...]) -> None:
        statuses = {1: "Success", 2: "Failed", 3: "Building"}
        for number in order:
            history.record([event(statuses[number], number)])
        documents = history.find_builds(BuildFilter(), 10)
        assert [document.latest_build for document in documents] == [False, True, False]
        history.record([event("Success", 3)])
        assert [document.latest_build for document in history.find_builds(BuildFilter(), 10)] == [True, False, False]

    def test_another_srpm_arch_or_target_has_its_own_latest_build(self, history: History) -> None:
        history.record([event("Success", 1), event("Success", 2, target="c7.1804.u.x86_64")])
        history.record([event("Success", 3, arch="i386"), event("Success", 4, srpm="time-1.8-1.el7.src.rpm")])
        assert [document.latest_build for document in history.find_builds(BuildFilter(), 10)] == [True] * 4

    def test_the_newest_come_first_and_no_more_than_asked_for(self, history: History) -> None:
        history.record([event("Queued", number) for number in (3, 1, 4, 2)])
        assert numbers(history) == [4, 3, 2, 1]
        assert numbers(history, limit=2) == [4, 3]

    def test_each_filter_narrows_it_down(self, history: History) -> None:
        history.record([event("Success", 1), event("Published", 2), event("Failed", 3, submitter="karanbir")])
        history.record([event("Queued", 4, arch="aarch64", target="c7.1708.u.aarch64", srpm="tar-1.26-32.el7.src.rpm")])
        assert numbers(history, states=["built", "published"]) == [2, 1]
        assert numbers(history, states=["published"]) == [2]
        assert numbers(history, states=["built"]) == [1]
        assert numbers(history, states=["queued", "published", "failed"]) == [4, 3, 2]
        assert numbers(history, states=["claimed"]) == numbers(history, states=[]) == []
        assert numbers(history, submitter="karanbir") == [3]
        assert numbers(history, arch="aarch64") == numbers(history, targets=["c7.1708.u.aarch64"]) == [4]
        assert numbers(history, srpm="time-1.7-45.el7.src.rpm") == numbers(history, srpm="time") == [3, 2, 1]
        assert numbers(history, srpm="time.1") == [], "a beginning is no pattern"
        assert numbers(history, build_id=build_id(3)[:8]) == [3]
        assert numbers(history, since=event("Queued", 2).timestamp, until=event("Queued", 4).timestamp) == [3, 2]
        assert numbers(history, states=["built"], submitter="karanbir") == []

    def test_wildcards_match_as_in_a_shell(self, history: History) -> None:
        history.record([event("Success", 1), event("Failed", 2, srpm="time1-1.el9.src.rpm", submitter="[Kb]")])
        history.record([event("Queued", 3, target="c9s.aarch64", srpm="runtime-1-1.src.rpm")])
        assert numbers(history, srpm="time-*") == numbers(history, srpm="*-45.el?.src.rpm") == [1]
        assert numbers(history, srpm="*time*") == [3, 2, 1]
        assert numbers(history, submitter="[K*") == numbers(history, submitter="[??]") == [2], "[ is no wildcard"
        assert numbers(history, srpm="ime-*") == numbers(history, srpm="time?") == []
        assert numbers(history, submitter="*n?*") == numbers(history, submitter="john*") == [3, 1]
        assert numbers(history, submitter="John*") == [], "small and capital letters differ"
        assert numbers(history, targets=["c9?", "c9?.aarch64"]) == [3]
        assert numbers(history, targets=["c7*", "c9s.aarch64"]) == [3, 2, 1]
        assert numbers(history, targets=[]) == []

    def test_the_targets_are_those_that_anything_was_submitted_for(self, history: History) -> None:
        assert history.list_targets() == []
        history.record([event("Queued", 3, target="c9s.aarch64"), event("Failed", 1), event("Failed", 2)])
        assert history.list_targets() == ["c7.1708.u.x86_64", "c9s.aarch64"]

    def test_an_override_may_be_of_an_older_build(self, history: History) -> None:
        history.record([event("Failed", 1), event("Failed", 2), event("Building", 3)])
        given = ("time-1.7-45.el7.src.rpm", "c7.1708.u.x86_64", "x86_64", "by hand")
        found = history.override(*given, build_id(1))
        assert found is not None
        assert (found.build_id, found.latest_build) == (build_id(1), False)
        assert numbers(history, states=["override"]) == [1]
        assert history.override(*given, build_id(3)) is None, "it has not ended"
        assert history.override(*given, build_id(4)) is None

    def test_all_that_match_can_be_read_one_at_a_time(self, history: History) -> None:
        history.record([event("Success", number) for number in range(30)] + [event("Failed", 40, arch="i386")])
        known = {build_id(number): number for number in range(100)}
        assert {known[each.build_id] for each in history.iterate_builds(BuildFilter(arch="x86_64"))} == set(range(30))
        assert len(list(itertools.islice(history.iterate_builds(BuildFilter()), 5))) == 5
        assert len(list(history.iterate_builds(BuildFilter(since=event("Success", 20).timestamp)))) == 11

    def test_what_waits_or_is_built_is_unfinished(self, history: History) -> None:
        history.record([event("Queued", 1), event("Building", 2), event("Success", 3), event("Cancelled", 4)])
        found = history.find_unfinished()
        assert {each.build_id for each in found} == {build_id(1), build_id(2)}
        assert {each.latest_build for each in found} == {False}
        history.record([event("Cancelled", 1)])
        assert [each.build_id for each in history.find_unfinished()] == [build_id(2)]

    def test_held_builds_are_found_apart_from_those_that_wait(self, history: History) -> None:
        history.record([event("Queued", 1, job=1), event("Queued", 2, job=2, held=True), event("Building", 3)])
        history.record([event("Queued", 4, job=4, held=True), event("Queued", 4, job=4, held=False, at=2e9)])
        history.record([event("Success", 5), event("Published", 6)])
        assert numbers(history, states=["held"]) == [2]
        assert numbers(history, states=["queued"]) == [4, 1]
        assert numbers(history, states=["queued", "held", "building"]) == [4, 3, 2, 1]
        assert numbers(history, states=["held", "published"]) == [6, 2]
        assert find_only(history, states=["held"])["status"] == "Queued", "as in the original's documents"
        assert {each.build_id for each in history.find_unfinished()} == set(map(build_id, (1, 2, 3, 4)))

    def test_the_builds_of_a_batch_are_found_by_its_id(self, history: History) -> None:
        members = [event("Success", number, batch="5f0c12ab") for number in (1, 2, 3)]
        history.record([*members, event("Failed", 4, batch="5e000000"), event("Success", 5)])
        assert numbers(history, batch="5f0c12ab") == [3, 2, 1]
        assert numbers(history, batch="5f", limit=2) == [3, 2]
        assert numbers(history, batch="5e", states=["built"]) == []
        assert numbers(history, batch="5") == [4, 3, 2, 1]
        assert find_only(history, batch="5e")["batch"] == "5e000000"

    def test_the_past_of_a_package_is_its_successes_on_an_arch_and_no_other_packages(self, history: History) -> None:
        history.record([event("Success", number) for number in range(1, 6)])
        history.record([event("Failed", 6), event("Success", 7, arch="i386")])
        utils = {"srpm": "time-utils-1.0-1.src.rpm", "pkgname": "time-utils", "evr": "1.0-1"}
        history.record([event("Success", 8, **utils)])
        history.record([event("Published", 9, srpm="time-1.8-1.el7.src.rpm", target="c7.1804.u.x86_64")])
        known = {build_id(number): number for number in range(100)}
        assert [known[each.build_id] for each in history.recent_successes("time", "x86_64", 3)] == [9, 5, 4]
        assert [known[each.build_id] for each in history.recent_successes("time-utils", "x86_64", 3)] == [8]
        assert history.recent_successes("tim", "x86_64", 3) == []

    def test_what_was_refused_is_kept_once(self, history: History) -> None:
        history.record([refusal(1), refusal(2, at=2e9), refusal(1)])
        history.record([refusal(1)])
        newest, oldest = history.iterate_refusals()
        assert (newest.job, oldest.job, oldest.begins) == (2, 1, "{]")
        assert history.find_builds(BuildFilter(), 10) == []

    def test_what_was_refused_can_be_forgotten(self, history: History) -> None:
        history.record([refusal(number) for number in range(4)])
        history.delete_refusals([document.key for document in history.iterate_refusals() if document.job % 2])
        assert sorted(document.job for document in history.iterate_refusals()) == [0, 2]
        history.delete_refusals([])
        history.delete_refusals(["unknown"])
        assert len(list(history.iterate_refusals())) == 2

    def test_what_was_refused_is_read_as_far_as_it_is_asked_for(self, history: History) -> None:
        history.record([refusal(number, at=1e9 + number) for number in range(300)])
        assert [document.job for document in itertools.islice(history.iterate_refusals(), 3)] == [299, 298, 297]

    def test_an_override_is_a_persons_word_on_the_latest_build(self, history: History) -> None:
        history.record([event("Failed", 1), event("Failed", 2), event("Failed", 3, arch="i386")])
        given = ("time-1.7-45.el7.src.rpm", "c7.1708.u.x86_64", "x86_64")
        told = history.override(*given, "built against devtoolset-7")
        assert told is not None
        assert (told.build_id, told.status, told.latest_build) == (build_id(2), "Override", True)
        assert numbers(history, states=["override"]) == [2]
        assert numbers(history, states=["failed"]) == [3, 1]
        assert find_only(history, states=["override"]) == told.to_document()
        assert told.comment == "built against devtoolset-7"
        assert history.override(*given, "or not") is not None
        assert find_only(history, states=["override"])["comment"] == "or not"

    def test_nothing_a_worker_says_takes_an_override_back(self, history: History) -> None:
        history.record([event("Failed")])
        history.override("time-1.7-45.el7.src.rpm", "c7.1708.u.x86_64", "x86_64", "by hand")
        history.record([event("Published", attempt=OTHER_ATTEMPT), event("Building"), event("Success")])
        document = find_only(history)
        assert (document["status"], document["comment"], document["latest_build"]) == ("Override", "by hand", True)
        history.record([event("Success", 2)])
        assert numbers(history, states=["override"]) == [1], "but a later build of the package is the latest then"
        assert [document.latest_build for document in history.find_builds(BuildFilter(), 10)] == [True, False]

    def test_what_is_not_there_cannot_be_overridden(self, history: History) -> None:
        history.record([event("Building")])
        assert history.override("time-1.7-45.el7.src.rpm", "c7.1708.u.x86_64", "x86_64", "why") is None
        assert history.override("tar-1-1.src.rpm", "c7.1708.u.x86_64", "x86_64", "why") is None
        assert find_only(history)["status"] == "Building"

    def test_every_write_is_found_by_the_number_of_the_last_one_seen(self, history: History) -> None:
        start = history.last_change()
        history.record([event("Queued", 1), event("Queued", 2)])
        (first, _), (second, _) = seen = history.find_changed(start, 10)
        assert start < first < second == history.last_change()
        assert {record.build_id for _, record in seen} == {build_id(1), build_id(2)}
        history.record([event("Building", 1)])
        ((third, record),) = history.find_changed(second, 10)
        assert (record.build_id, record.status) == (build_id(1), "Building")
        assert history.find_changed(third, 10) == []
        assert [number for number, _ in history.find_changed(start, 1)] == [second], (
            "each build is found once, as it is"
        )

    def test_a_write_that_changes_nothing_has_no_number(self, history: History) -> None:
        history.record([event("Failed")])
        last = history.last_change()
        history.record([event("Failed"), event("Building")])
        assert history.find_changed(last, 10) == []

    def test_an_override_and_a_lost_mark_of_the_latest_build_are_changes(self, history: History) -> None:
        history.record([event("Failed", 1)])
        last = history.last_change()
        history.record([event("Failed", 2)])
        changed = {record.build_id: record.latest_build for _, record in history.find_changed(last, 10)}
        assert changed == {build_id(1): False, build_id(2): True}
        last = history.last_change()
        history.override("time-1.7-45.el7.src.rpm", "c7.1708.u.x86_64", "x86_64", "known")
        ((_, record),) = history.find_changed(last, 10)
        assert (record.build_id, record.status) == (build_id(2), "Override")

    def test_the_number_of_a_write_is_no_part_of_the_record(self, history: History) -> None:
        history.record([event("Failed")])
        ((_, record),) = history.find_changed(0, 10)
        assert record == history.find_builds(BuildFilter(), 1)[0]
        assert record.source is None
        assert "changed" not in record.to_output()

    # --- causes of failures

    def test_every_failure_has_a_cause_and_nothing_else_has_one(self, history: History) -> None:
        history.record([event("Failed", 1, reason="%build failed", error_line="a.c:1: error: no")])
        history.record([event("Rejected", 2, reason="damaged"), event("Success", 3), event("Queued", 4)])
        records = {each.build_id: each for each in history.find_builds(BuildFilter(), 10)}
        found = [(records[build_id(number)].cause, records[build_id(number)].cause_version) for number in range(1, 5)]
        first, second = find_cause("%build failed", "a.c:1: error: no", "time"), find_cause("damaged", "", "time")
        assert found == [(first.id, CAUSE_VERSION), (second.id, CAUSE_VERSION), ("", 0), ("", 0)]
        assert records[build_id(1)].cause_text == first.text

    def test_a_cause_and_a_comparison_go_with_the_result_that_is_outranked(self, history: History) -> None:
        history.record([event("Failed", reason="%build failed", newly_failing=True, previous_build=build_id(9))])
        assert find_only(history)["newly_failing"] is True
        later: dict[str, Any] = {"fixed": False, "previous_build": build_id(8)}
        history.record([event("Published", attempt=OTHER_ATTEMPT, at=2e9, **later)])
        document = find_only(history)
        assert (document["cause"], document["newly_failing"], document["fixed"]) == ("", None, False)
        assert document["previous_build"] == build_id(8)
        assert list(history.iterate_failures(BuildFilter())) == []

    def test_a_rejected_build_is_not_fixed(self, history: History) -> None:
        history.record([event("Success", fixed=True, previous_build=build_id(9)), event("Rejected", at=2e9)])
        assert (find_only(history)["fixed"], find_only(history)["previous_build"]) == (None, "")

    def test_failures_are_found_by_cause_and_by_all_else(self, history: History) -> None:
        six = "BuildRequires that nobody provides: python3dist(six)"
        history.record([event("Failed", 1, reason=six), event("Failed", 2, reason=six, arch="i386")])
        history.record([event("Failed", 3, reason="%build failed", pkgname=""), event("Rejected", 4, reason=six)])
        history.record([event("Success", 5, reason=six), event("Failed", 6, reason=six, batch="5f0c12ab")])
        cause = find_cause(six, "").id

        def find(wanted: BuildFilter, cause: str = "") -> list[int]:
            known = {build_id(number): number for number in range(9)}
            return sorted(known[each.build_id] for each in history.iterate_failures(wanted, cause))

        assert find(BuildFilter()) == [1, 2, 3, 6]
        assert find(BuildFilter(), cause) == find(BuildFilter(), cause[:4]) == [1, 2, 6]
        assert find(BuildFilter(), "f" * 8) == []
        assert find(BuildFilter(arch="i386"), cause) == [2]
        assert find(BuildFilter(targets=["c7*"], since=event("Failed", 2).timestamp, submitter="johnny")) == [2, 3, 6]
        assert find(BuildFilter(batch="5f0c12ab"), cause) == [6]
        found = {each.build_id: each for each in history.iterate_failures(BuildFilter())}
        assert found[build_id(2)] == FailedBuild(
            build_id(2), "i386", event("Failed", 2).timestamp, "c7.1708.u.x86_64", "time", cause
        )
        assert found[build_id(3)].package == "time"

    def test_causes_of_another_version_of_the_rule_are_computed_until_they_are_renewed(
        self, history: History, age_causes: Callable[[], None]
    ) -> None:
        history.record([event("Failed", number, reason=f"%{step} failed") for number, step in enumerate("abc", 1)])
        history.record([event("Success", 4)])
        causes = sorted(find_cause(f"%{step} failed", "").id for step in "abc")
        age_causes()
        assert history.count_old_causes() == 3
        assert {each.cause for each in history.find_builds(BuildFilter(states=["failed"]), 10)} == {"00000000"}
        assert sorted(each.cause for each in history.iterate_failures(BuildFilter())) == causes
        assert [each.cause for each in history.iterate_failures(BuildFilter(), causes[0])] == causes[:1]
        assert list(history.iterate_failures(BuildFilter(), "00000000")) == []
        last = history.last_change()
        counts = []
        while found := history.find_old_causes(2):
            counts.append(len(found))
            history.store_causes(found)
        assert counts == [2, 1]
        assert history.count_old_causes() == 0
        changed = [record for _, record in history.find_changed(last, 10)]
        assert sorted(each.cause for each in changed) == causes, "pages follow them"
        assert {each.cause_version for each in changed} == {CAUSE_VERSION}
        assert sorted(each.cause for each in history.iterate_failures(BuildFilter())) == causes

    def test_an_error_that_is_found_again_is_stored_unless_the_result_has_changed(self, history: History) -> None:
        history.record([event("Failed", 1, reason="%build failed"), event("Failed", 2, reason="%build failed")])
        read = [attr.evolve(each, error_line="a.c:1: error: no", error_log="build.log", cause_version=0)
                for each in history.find_builds(BuildFilter(), 10)]  # fmt: skip
        history.record([event("Published", 2, attempt=OTHER_ATTEMPT, at=2e9)])
        last = history.last_change()
        history.store_causes({f"{each.build_id}.{each.arch}": each for each in read})
        history.store_causes({})
        first, second = (
            history.find_builds(BuildFilter(build_id=build_id(1)), 1)[0],
            find_only(history, states=["published"]),
        )
        cause = find_cause("%build failed", "a.c:1: error: no", "time")
        assert (first.error_line, first.error_log, first.cause) == ("a.c:1: error: no", "build.log", cause.id)
        assert (second["error_line"], second["cause"]) == ("", "")
        assert [record.build_id for _, record in history.find_changed(last, 10)] == [build_id(1)]
        assert [each.build_id for each in history.iterate_failures(BuildFilter(), cause.id)] == [build_id(1)]

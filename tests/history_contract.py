# SPDX-License-Identifier: Apache-2.0
"""What any home of the history promises: one suite, run against each by a class that has the fixture `history`."""

from __future__ import annotations

import itertools
from typing import Any

import pytest

from reimzul.core.message import BuildEvent
from reimzul.notifier.history import BuildFilter, History, Owed
from tests.events import ATTEMPT, OTHER_ATTEMPT, build_id, event, refusal

ORIGINALS = {
    "srpm", "arch", "target", "disttag", "scratch", "submitter", "status", "builder_fqdn", "evr", "pkgname",
    "timestamp", "latest_build", "comment",
}  # fmt: skip


def only(history: History, **wanted: str) -> dict[str, Any]:
    """The one build there is."""
    (document,) = history.builds(BuildFilter(**wanted), 10)
    return document


def numbers(history: History, limit: int = 10, **wanted: str) -> list[int]:
    """The numbers of the builds that are found, in the order they come."""
    known = {build_id(number): number for number in range(100)}
    return [known[document["build_id"]] for document in history.builds(BuildFilter(**wanted), limit)]


class HistoryContract:
    """The suite."""

    def test_a_build_on_an_arch_is_one_document_with_the_originals_fields(self, history: History) -> None:
        history.record([event("Queued"), event("Building")])
        assert only(history)["status"] == "Building"
        history.record([event("Success", exit_code=0, rpms=("time-1.7-45.el7.x86_64.rpm",))])
        document = only(history)
        assert ORIGINALS <= document.keys()
        assert (document["status"], document["exit_code"], document["latest_build"]) == ("Success", 0, True)
        assert document["rpms"] == ["time-1.7-45.el7.x86_64.rpm"]
        assert (document["comment"], document["scratch"]) == ("", False)

    def test_every_field_of_the_original_is_there_from_the_first_event_on(self, history: History) -> None:
        history.record([event("Queued")])
        assert ORIGINALS <= only(history).keys()

    def test_the_arches_of_a_submission_are_documents_of_their_own(self, history: History) -> None:
        history.record([event("Success"), event("Failed", arch="i386")])
        assert only(history, arch="i386")["status"] == "Failed"
        assert only(history, arch="x86_64")["status"] == "Success"

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
        document = only(history)
        assert (document["status"], document["published"], document["latest_build"]) == ("Success", 4.0, True)
        assert (document["at"], document["exit_code"], document["finished"]) == (4.0, 0, 3.0)
        assert document["url"] == "http://localhost/place/"

    @pytest.mark.parametrize("final", ["Success", "Failed", "Cancelled", "Rejected"])
    def test_a_late_building_covers_no_result(self, history: History, final: str) -> None:
        history.record([event(final)])
        history.record([event("Building", attempt=OTHER_ATTEMPT, builder_fqdn="late.example.org", at=9e9)])
        document = only(history)
        assert (document["status"], document["builder_fqdn"]) == (final, "builder1.example.org")

    def test_of_two_attempts_under_way_the_later_is_shown(self, history: History) -> None:
        later = event("Building", attempt=OTHER_ATTEMPT, builder_fqdn="second.example.org", at=20.0)
        for batch in ([later], [event("Building", at=10.0, started=10.0)]):
            history.record(batch)
        document = only(history)
        assert (document["builder_fqdn"], document["attempt"]) == ("second.example.org", OTHER_ATTEMPT)
        assert document["started"] == 0.0, "the first attempt's start is none of the second's"

    def test_of_two_results_the_first_holds(self, history: History) -> None:
        history.record([event("Failed", reason="it does not build")])
        history.record([event("Success", attempt=OTHER_ATTEMPT)])
        document = only(history)
        assert (document["status"], document["attempt"], document["reason"]) == ("Failed", ATTEMPT, "it does not build")

    def test_what_another_attempt_published_is_a_success(self, history: History) -> None:
        history.record([event("Failed", reason="it does not build", exit_code=1)])
        history.record([event("Published", attempt=OTHER_ATTEMPT, at=50.0)])
        document = only(history)
        assert (document["status"], document["published"], document["attempt"]) == ("Success", 50.0, OTHER_ATTEMPT)
        assert (document["reason"], document["exit_code"]) == ("", None), "the failed attempt's"
        history.record([event("Failed", attempt=ATTEMPT)])
        assert only(history)["status"] == "Success"

    def test_a_rejected_success_is_rejected(self, history: History) -> None:
        history.record([event("Success"), event("Rejected", reason="a checksum is wrong")])
        assert only(history)["status"] == "Rejected"
        assert only(history)["reason"] == "a checksum is wrong"

    def test_an_override_stays(self, history: History) -> None:
        history.record([event("Failed"), event("Override", reason="built against devtoolset-7", at=9e9)])
        history.record([event("Success", attempt=OTHER_ATTEMPT), event("Published", at=60.0), event("Building")])
        document = only(history)
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
        assert (only(history)["status"], only(history)["latest_build"]) == ("Success", True)

    @pytest.mark.parametrize("order", list(itertools.permutations([1, 2, 3])))
    def test_the_latest_build_is_the_newest_that_is_over(self, history: History, order: tuple[int, ...]) -> None:
        statuses = {1: "Success", 2: "Failed", 3: "Building"}
        for number in order:
            history.record([event(statuses[number], number)])
        documents = history.builds(BuildFilter(), 10)
        assert [document["latest_build"] for document in documents] == [False, True, False]
        history.record([event("Success", 3)])
        assert [document["latest_build"] for document in history.builds(BuildFilter(), 10)] == [True, False, False]

    def test_another_srpm_arch_or_target_has_its_own_latest_build(self, history: History) -> None:
        history.record([event("Success", 1), event("Success", 2, target="c7.1804.u.x86_64")])
        history.record([event("Success", 3, arch="i386"), event("Success", 4, srpm="time-1.8-1.el7.src.rpm")])
        assert [document["latest_build"] for document in history.builds(BuildFilter(), 10)] == [True] * 4

    def test_the_newest_come_first_and_no_more_than_asked_for(self, history: History) -> None:
        history.record([event("Queued", number) for number in (3, 1, 4, 2)])
        assert numbers(history) == [4, 3, 2, 1]
        assert numbers(history, limit=2) == [4, 3]

    def test_each_filter_narrows_it_down(self, history: History) -> None:
        history.record([event("Success", 1), event("Published", 2), event("Failed", 3, submitter="karanbir")])
        history.record([event("Queued", 4, arch="aarch64", target="c7.1708.u.aarch64", srpm="tar-1.26-32.el7.src.rpm")])
        assert numbers(history, status="Success") == [2, 1]
        assert numbers(history, status="Published") == [2]
        assert numbers(history, submitter="karanbir") == [3]
        assert numbers(history, arch="aarch64") == numbers(history, target="c7.1708.u.aarch64") == [4]
        assert numbers(history, srpm="time-1.7-45.el7.src.rpm") == numbers(history, srpm="time") == [3, 2, 1]
        assert numbers(history, srpm="time.1") == [], "a beginning is no pattern"
        assert numbers(history, build_id=build_id(3)[:8]) == [3]
        assert numbers(history, status="Success", submitter="karanbir") == []

    def test_what_was_refused_is_kept_once(self, history: History) -> None:
        history.record([refusal(1), refusal(2, at=2e9), refusal(1)])
        history.record([refusal(1)])
        newest, oldest = history.refused()
        assert (newest["job"], oldest["job"], oldest["begins"]) == (2, 1, "{]")
        assert history.builds(BuildFilter(), 10) == []

    def test_what_was_refused_is_read_as_far_as_it_is_asked_for(self, history: History) -> None:
        history.record([refusal(number, at=1e9 + number) for number in range(300)])
        assert [document["job"] for document in itertools.islice(history.refused(), 3)] == [299, 298, 297]

    def test_what_is_owed_is_what_was_owed_last(self, history: History) -> None:
        assert history.owed() == []
        mqtt = Owed(sink="mqtt", count=40, oldest=10.5, next_try=None, at=20.0)
        history.owe([mqtt, Owed(sink="log", count=1, oldest=11.0, next_try=30.25, at=20.0)])
        assert [each.sink for each in history.owed()] == ["log", "mqtt"]
        assert history.owed()[1] == mqtt
        fewer = Owed(sink="mqtt", count=3, oldest=12.0, next_try=31.0, at=21.0)
        history.owe([fewer])
        assert history.owed() == [fewer]
        history.owe([])
        assert history.owed() == []

    def test_an_override_is_a_persons_word_on_the_latest_build(self, history: History) -> None:
        history.record([event("Failed", 1), event("Failed", 2), event("Failed", 3, arch="i386")])
        given = ("time-1.7-45.el7.src.rpm", "c7.1708.u.x86_64", "x86_64")
        told = history.override(*given, "built against devtoolset-7")
        assert told is not None
        assert (told["build_id"], told["status"], told["latest_build"]) == (build_id(2), "Override", True)
        assert numbers(history, status="Override") == [2]
        assert numbers(history, status="Failed") == [3, 1]
        assert only(history, status="Override") == told
        assert told["comment"] == "built against devtoolset-7"
        assert history.override(*given, "or not") is not None
        assert only(history, status="Override")["comment"] == "or not"

    def test_nothing_a_worker_says_takes_an_override_back(self, history: History) -> None:
        history.record([event("Failed")])
        history.override("time-1.7-45.el7.src.rpm", "c7.1708.u.x86_64", "x86_64", "by hand")
        history.record([event("Published", attempt=OTHER_ATTEMPT), event("Building"), event("Success")])
        document = only(history)
        assert (document["status"], document["comment"], document["latest_build"]) == ("Override", "by hand", True)
        history.record([event("Success", 2)])
        assert numbers(history, status="Override") == [1], "but a later build of the package is the latest then"
        assert [document["latest_build"] for document in history.builds(BuildFilter(), 10)] == [True, False]

    def test_what_is_not_there_cannot_be_overridden(self, history: History) -> None:
        history.record([event("Building")])
        assert history.override("time-1.7-45.el7.src.rpm", "c7.1708.u.x86_64", "x86_64", "why") is None
        assert history.override("tar-1-1.src.rpm", "c7.1708.u.x86_64", "x86_64", "why") is None
        assert only(history)["status"] == "Building"

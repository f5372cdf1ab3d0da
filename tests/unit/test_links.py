# SPDX-License-Identifier: Apache-2.0
"""Links for people: where each folder of the store is shown, and that nothing shown leads to a host's own stunnel."""

from __future__ import annotations

from pathlib import Path

import attr
import pytest
from hypothesis import given
from hypothesis import strategies as st

from reimzul.core.config import parse_settings
from reimzul.core.errors import ConfigError
from reimzul.core.links import (
    PUBLIC_URL_FILE,
    LinkRoots,
    LinkSource,
    PublicUrl,
    describe_files,
    describe_folder,
    find_folder,
    relink,
)
from reimzul.core.message import BuildEvent
from reimzul.core.settings import PagesSettings, Settings, StoreSettings
from reimzul.core.store_paths import StoreUrls
from reimzul.history.build_record import BuildRecord, RecordedAttempt, apply_events
from tests import webserver
from tests.events import ATTEMPT, build_id, event

ROOT, PAGES = "http://bstore.example.org/", "http://farm.example.org:8080/"
STORE = LinkRoots(store=ROOT)
NOTHING, BOTH = LinkRoots(), LinkRoots(store=ROOT, pages=PAGES)
URLS = StoreUrls("http://localhost:11081/bstore/", "rsync://localhost:11874/reimzul-bstore/")
PLACE = "repo/c7.1708.u.x86_64/time/20251122000001/1.7-45.el7.x86_64"
SCRATCH = PLACE.replace("repo/", "scratch/")
ATTEMPTS = f"attempts/{build_id(1)}.i386.{ATTEMPT}"


def test_a_place_in_repo_has_a_link_and_nothing_else_has() -> None:
    assert STORE.make_link(PLACE) == f"{ROOT}{PLACE}/"
    snapshot = PLACE.replace("1.7-45", "1.7^git-45")
    assert STORE.make_link(snapshot) == f"{ROOT}{snapshot.replace('^', '%5E')}/"
    assert [STORE.make_link(folder) for folder in (SCRATCH, ATTEMPTS, "")] == ["", "", ""]
    assert NOTHING.make_link(PLACE) == ""


def test_with_pages_everything_has_a_link_and_a_build_has_a_page() -> None:
    assert BOTH.make_link(PLACE) == f"{ROOT}{PLACE}/", "what bstore serves is not sent through the controller"
    assert [BOTH.make_link(each) for each in (SCRATCH, ATTEMPTS)] == [
        f"{PAGES}bstore/{SCRATCH}/",
        f"{PAGES}bstore/{ATTEMPTS}/",
    ]
    assert LinkRoots(pages=PAGES).make_link(PLACE) == f"{PAGES}bstore/{PLACE}/"
    assert BOTH.make_link("") == ""
    assert BOTH.make_page_link(build_id(1)) == f"{PAGES}builds/{build_id(1)[:2]}/{build_id(1)}.html"
    assert BOTH.make_page_link("") == "", "a build of the original has none"


def test_a_build_is_described_by_its_page_and_an_attempt_by_its_logs() -> None:
    page = BOTH.make_page_link(build_id(1))
    told = event("Failed", place=PLACE, page="http://evil.example.org/")
    assert (describe_files(relink(told, BOTH)), describe_files(relink(told, STORE))) == (page, f"{ROOT}{PLACE}/")
    record = BuildRecord(build_id=build_id(1), place=PLACE)
    assert describe_files(relink(record, BOTH)) == page
    attempt = relink(RecordedAttempt(attempt=ATTEMPT, logs_folder=ATTEMPTS), BOTH)
    assert describe_files(attempt) == f"{PAGES}bstore/{ATTEMPTS}/"


def test_a_page_is_shown_and_not_stored() -> None:
    record = relink(BuildRecord(build_id=build_id(1), place=PLACE), BOTH)
    assert record.to_output()["page"] == BOTH.make_page_link(build_id(1))
    assert "page" not in record.to_document()
    (recorded,) = apply_events({}, [relink(event("Failed", place=PLACE), BOTH)]).values()
    assert recorded.page == ""


def test_what_has_no_link_is_a_path_or_a_command() -> None:
    assert describe_folder(f"{ROOT}{PLACE}/", PLACE) == f"{ROOT}{PLACE}/"
    assert describe_folder("", PLACE) == f"on bstore: {PLACE}"
    assert describe_folder("", SCRATCH) == f"on bstore: {SCRATCH}"
    assert describe_folder("", ATTEMPTS) == f"reimzul log {build_id(1)[:8]} --arch i386 --attempt {ATTEMPT}"
    assert describe_folder("", "") == ""


@given(st.text(max_size=80))
def test_no_folder_breaks_the_description(folder: str) -> None:
    assert folder in describe_folder("", f"attempts/{folder}")


@pytest.mark.parametrize(
    ("url", "folder"),
    [
        (URLS.place(PLACE), PLACE),
        (URLS.place(SCRATCH), SCRATCH),
        (URLS.attempt(build_id(1), "i386", ATTEMPT), ATTEMPTS),
        (URLS.place(PLACE.replace("45.el7", "45^el7")), PLACE.replace("45.el7", "45^el7")),
        ("http://localhost/attempts/1/", ""),
        ("http://localhost/attempts/../../etc/", ""),
        ("http://localhost/", ""),
        ("", ""),
    ],
)
def test_the_folder_of_a_programs_url_is_known(url: str, folder: str) -> None:
    assert find_folder(url) == folder


def test_an_event_of_a_builder_gets_the_link_for_people() -> None:
    told = event("Failed", place=PLACE, url=URLS.place(PLACE))
    assert relink(told, STORE) == attr.evolve(told, url=f"{ROOT}{PLACE}/", logs_folder=PLACE)
    assert relink(told, NOTHING) == attr.evolve(told, url="", logs_folder=PLACE)
    again = relink(relink(told, NOTHING), STORE)
    assert again.url == f"{ROOT}{PLACE}/", "the setting that holds when it is shown counts"
    assert relink(again, STORE) is again
    assert BuildEvent.decode(again.encode()) == again


def test_logs_of_an_attempt_that_decided_nothing_have_no_link() -> None:
    told = event("Queued", attempt=ATTEMPT, url=URLS.attempt(build_id(1), "i386", ATTEMPT))
    linked = relink(told, STORE)
    assert (linked.url, linked.logs_folder) == ("", ATTEMPTS)


@pytest.mark.parametrize("kind", [BuildRecord, RecordedAttempt])
def test_a_record_of_an_earlier_version_gets_one_too(kind: type[BuildRecord] | type[RecordedAttempt]) -> None:
    old = kind.from_document({"url": URLS.place(PLACE), "attempt": ATTEMPT, "note": "of another version"})
    linked = relink(old, STORE)
    assert linked.url == f"{ROOT}{PLACE}/"
    assert linked.to_document() == {**old.to_document(), "url": linked.url, "logs_folder": PLACE}


def test_the_history_keeps_where_the_logs_of_each_attempt_are() -> None:
    failed = event("Queued", attempt=ATTEMPT, at=1.0, job=7, url=URLS.attempt(build_id(1), "i386", ATTEMPT))
    second = event("Failed", at=2.0, attempt="1763800002-0000000b", place=PLACE, url=URLS.place(PLACE))
    (record,) = apply_events({}, [relink(failed, STORE), relink(second, STORE)]).values()
    assert [(each.logs_folder, each.url) for each in record.attempts] == [(ATTEMPTS, ""), (PLACE, f"{ROOT}{PLACE}/")]
    assert (record.url, record.logs_folder) == (f"{ROOT}{PLACE}/", PLACE)


# --- the root of links


@pytest.mark.parametrize(
    ("text", "url"),
    [("", ""), ("http://a.example.org", "http://a.example.org/"), ("https://a/farm/", "https://a/farm/")],
)
def test_the_setting_is_the_folder_above_repo(text: str, url: str) -> None:
    assert parse_settings(f"[bstore]\npublic_url = {text}\n", "here").bstore.public_url == url


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("http://a/repo/", "'http://a/repo/' ends with /repo/: give the URL of the folder above it"),
        ("bstore.example.org", "is not of the form http://host:port/folder/"),
    ],
)
def test_a_wrong_setting_is_refused_with_what_would_be_right(text: str, reason: str) -> None:
    with pytest.raises(ConfigError) as error:
        parse_settings(f"[bstore]\npublic_url = {text}\n", "here")
    assert "[bstore] public_url: " in str(error.value)
    assert reason in str(error.value)


def test_bstore_is_asked_where_nothing_is_set(tmp_path: Path) -> None:
    (tmp_path / "bstore").mkdir()
    server = webserver.serve(tmp_path)
    store = StoreSettings(base_url=f"http://127.0.0.1:{server.server_port}/bstore/repo/")
    try:
        assert PublicUrl(store).get() == "", "bstore has no public port"
        (tmp_path / "bstore" / PUBLIC_URL_FILE).write_text("http://bstore.example.org:8080\n")
        asked = PublicUrl(store)
        assert asked.get() == "http://bstore.example.org:8080/"
        assert (
            PublicUrl(attr.evolve(store, public_url="https://farm.example.org/")).get() == "https://farm.example.org/"
        )
        (tmp_path / "bstore" / PUBLIC_URL_FILE).write_text("<html>an error page</html>\n")
        assert PublicUrl(store).get() == ""
        assert asked.get() == "http://bstore.example.org:8080/", "an answer is remembered"
    finally:
        webserver.close(server)
    assert PublicUrl(store).get() == "", "a bstore that is away has no links"
    settings = Settings(bstore=store, pages=PagesSettings(url=PAGES))
    assert LinkSource(settings).get() == LinkRoots(pages=PAGES), "its pages are on the controller"


def test_an_answer_outlives_a_bstore_that_is_away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr("reimzul.core.links.time.monotonic", lambda: now[0])
    (tmp_path / "bstore").mkdir()
    (tmp_path / "bstore" / PUBLIC_URL_FILE).write_text("http://first/\n")
    server = webserver.serve(tmp_path)
    asked = PublicUrl(StoreSettings(base_url=f"http://127.0.0.1:{server.server_port}/bstore/repo/"))
    try:
        assert asked.get() == "http://first/"
        (tmp_path / "bstore" / PUBLIC_URL_FILE).write_text("http://second/\n")
        now[0] = 601.0
        assert asked.get() == "http://second/"
    finally:
        webserver.close(server)
    now[0] = 1300.0
    assert asked.get() == "http://second/"

# SPDX-License-Identifier: Apache-2.0
"""The text of a mail, its recipients, and the state that mail keeps; the mail in docs/ is one of these."""

from __future__ import annotations

import email
import email.policy
import logging
import time
from collections.abc import Iterator
from email.message import EmailMessage
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reimzul.core.config import parse_settings
from reimzul.core.errors import ConfigError
from reimzul.core.links import LinkRoots
from reimzul.core.message import BuilderEvent
from reimzul.core.settings import Settings
from reimzul.history.result_rules import Notification, news_kind
from reimzul.notifier.outbox import KEEP_SECONDS, Outbox
from reimzul.notifier.sinks.mail import MailedEvent, MailSink, MailState, MailWriter, Recipients, subject
from tests.events import batch_event, build_id, event, refusal
from tests.examples import EXAMPLE, EXAMPLE_FILE, failing_event

ROOT = "http://bstore.example.org/"
PLACE = "repo/c7.1708.u.x86_64/time/20251122000001/1.7-45.el7.x86_64"
WRITER = MailWriter(sender="buildsys@example.org", roots=LinkRoots(store=ROOT))
ME = ("me@example.org",)


def mail(told: MailedEvent, recipients: tuple[str, ...] = ME) -> EmailMessage:
    """The mail as it is read."""
    parsed = email.message_from_bytes(WRITER.format_mail(told, recipients), policy=email.policy.default)
    assert isinstance(parsed, EmailMessage)
    return parsed


def _write_text(writer: MailWriter, told: MailedEvent) -> str:
    parsed = email.message_from_bytes(writer.format_mail(told, ME), policy=email.policy.default)
    assert isinstance(parsed, EmailMessage)
    return str(parsed.get_content()).replace("\r\n", "\n")


def text(told: MailedEvent) -> str:
    """Its text as it is read."""
    return _write_text(WRITER, told)


# --- what it says


def test_the_subject_leads_with_what_became_of_what() -> None:
    assert mail(event("Failed", reason="%build failed"))["Subject"] == (
        "[reimzul] Failed: time-1.7-45.el7 on x86_64 for c7.1708.u.x86_64: %build failed"
    )
    assert mail(event("Success", reason="built again"))["Subject"] == (
        "[reimzul] Success: time-1.7-45.el7 on x86_64 for c7.1708.u.x86_64"
    )
    assert mail(event("Failed", pkgname="", evr=""))["Subject"] == (
        "[reimzul] Failed: time-1.7-45.el7.src.rpm on x86_64 for c7.1708.u.x86_64"
    )
    assert len(mail(event("Failed", reason="x" * 500))["Subject"]) <= 160


def test_the_body_has_what_the_originals_had() -> None:
    root, build = ("\n".join(f"{name} {number}" for number in range(1, 201)) for name in ("root", "build"))
    said = text(event("Success", place=PLACE, finished=1763800500.0, root_log=root, build_log=build))
    for fact in (
        "Builder      : builder1.example.org", "Package      : time 1.7-45.el7", "Submitted by : johnny",
        "Submitted    : 2025-11-22 00:00:01Z", "Finished     : 2025-11-22 08:35:00Z", "Status       : Success",
        f"Full logs available at {ROOT}{PLACE}/\n",
    ):  # fmt: skip
        assert fact in said
    lines = said.splitlines()
    assert [line for line in lines if line.startswith("root ")] == [f"root {number}" for number in range(171, 201)]
    assert [line for line in lines if line.startswith("build ")] == [f"build {number}" for number in range(121, 201)]


def test_a_failure_leads_with_what_a_maintainer_needs() -> None:
    error: dict[str, Any] = {"first_error": "+ make\nutil.c:17:14: error: no", "error_line": "util.c:17:14: error: no"}
    told = event("Failed", reason="%build failed", place=PLACE, url=f"http://localhost:11081/bstore/{PLACE}/", **error)
    assert text(told).partition("\n\n####")[0].splitlines() == [
        "time-1.7-45.el7 on x86_64 for c7.1708.u.x86_64: Failed",
        "  %build failed",
        "  util.c:17:14: error: no",
        "",
        f"Full logs available at {ROOT}{PLACE}/",
        f"Why it failed:  reimzul explain {told.build_id[:8]}",
        f"Build it again: reimzul retry {told.build_id[:8]} --failed",
        "",
        "+ make",
        "util.c:17:14: error: no",
    ]
    assert "localhost" not in text(told)


def test_a_mail_says_what_is_newly_failing_and_what_is_fixed() -> None:
    before: dict[str, Any] = {"previous_build": build_id(7), "previous_evr": "1.7-44.el7"}
    newly = event("Failed", reason="%build failed", newly_failing=True, **before)
    assert mail(newly)["Subject"].startswith("[reimzul] Failed, newly failing: time-1.7-45.el7 on x86_64 for")
    assert text(newly).splitlines()[1:3] == [
        f"  newly failing; last built 1.7-44.el7 as build {build_id(7)[:8]}",
        "  %build failed",
    ]
    fixed = event("Success", fixed=True, **before)
    assert mail(fixed)["Subject"].startswith("[reimzul] Success, fixed: time-1.7-45.el7")
    assert text(fixed).splitlines()[1] == f"  fixed; last failed 1.7-44.el7 as build {build_id(7)[:8]}"
    nameless = event("Failed", newly_failing=True, previous_build=build_id(7))
    assert text(nameless).splitlines()[1] == f"  newly failing; last built as build {build_id(7)[:8]}"
    for same in (event("Failed", newly_failing=False, **before), event("Success", fixed=False, **before)):
        assert "newly failing" not in text(same)
        assert "fixed" not in text(same) + mail(same)["Subject"]


def test_a_success_has_no_commands_and_no_error() -> None:
    head = text(event("Success", place=PLACE, first_error="none")).partition("\n\n####")[0].splitlines()
    assert head == [
        "time-1.7-45.el7 on x86_64 for c7.1708.u.x86_64: Success", "", f"Full logs available at {ROOT}{PLACE}/",
    ]  # fmt: skip


def test_without_a_public_url_a_mail_has_a_path_or_a_command() -> None:
    writer = MailWriter(sender="buildsys@example.org")
    told = event("Failed", place=PLACE, url=f"http://localhost:11081/bstore/{PLACE}/")
    assert f"\nFull logs on bstore: {PLACE}\n" in _write_text(writer, told)
    attempt = f"attempts/{told.build_id}.x86_64.{told.attempt}"
    rejected = event("Rejected", url=f"http://localhost:11081/bstore/{attempt}/")
    for each in (writer, WRITER):  # the public port does not serve attempts/
        assert f"Full logs: reimzul log {told.build_id[:8]} --arch x86_64 --attempt {told.attempt}\n" in _write_text(
            each, rejected
        )


def test_the_originals_worker_says_neither_logs_nor_where_they_are() -> None:
    said = text(event("Failed", build_id="", attempt=""))
    assert "nowhere that is known" in said
    assert "reimzul explain" not in said
    assert said.count("did not come with the result") == 2


def test_mails_of_a_package_on_an_arch_and_target_hang_together() -> None:
    first, second, other = event("Failed", 1), event("Success", 2, evr="1.8-1.el7"), event("Failed", 3, arch="i386")
    assert mail(first)["References"] == mail(second)["References"] == mail(second)["In-Reply-To"]
    assert mail(first)["References"] != mail(other)["References"]


def test_a_double_is_known_as_one() -> None:
    assert WRITER.format_mail(event("Failed"), ME) == WRITER.format_mail(event("Failed"), ME)
    assert mail(event("Failed"))["Message-ID"] != mail(event("Rejected"))["Message-ID"]
    assert mail(event("Failed"))["Message-ID"] != mail(event("Failed", 2))["Message-ID"]


def test_filters_and_responders_can_tell_what_it_is() -> None:
    told = mail(event("Rejected"))
    assert (told["X-Reimzul-Status"], told["X-Reimzul-Target"]) == ("Rejected", "c7.1708.u.x86_64")
    assert told["Auto-Submitted"] == "auto-generated"


@given(st.text(max_size=300), st.text(max_size=2000))
def test_any_text_arrives_as_it_is_and_no_line_is_too_long_for_smtp(reason: str, log: str) -> None:
    told = event("Failed", reason=reason, build_log=log + "x" * 1500, first_error=log)
    raw = WRITER.format_mail(told, ME)
    assert raw.isascii()
    assert max(map(len, raw.split(b"\r\n"))) <= 998
    assert told.build_log.splitlines()[-1] in text(told).splitlines()
    assert mail(told)["Subject"] == subject(told)


def make_builder_event(status: str = "Quarantined", at: float = 5.0) -> BuilderEvent:
    """The mail about a builder."""
    return BuilderEvent(
        builder="b1.example.org", status=status, reason="6 of its 6 tries", arches=("x86_64", "i386", "noarch"), at=at
    )


def test_a_builder_in_quarantine_is_mailed_about_with_what_to_do() -> None:
    told = mail(make_builder_event())
    assert told["Subject"] == "[reimzul] Builder b1.example.org : Quarantined"
    assert (told["X-Reimzul-Builder"], told["X-Reimzul-Status"]) == ("b1.example.org", "Quarantined")
    assert "6 of its 6 tries" in text(make_builder_event())
    assert "reimzul resume b1.example.org" in text(make_builder_event())
    back = mail(make_builder_event("Released"))
    assert "resume" not in text(make_builder_event("Released"))
    assert back["In-Reply-To"] == told["In-Reply-To"]
    assert back["Message-ID"] != told["Message-ID"]
    assert mail(make_builder_event(at=9.0))["Message-ID"] != told["Message-ID"]


def test_a_batch_that_rests_is_mailed_about_with_why() -> None:
    sent = mail(batch_event())
    assert sent["Subject"] == "[reimzul] Batch 5f0c12ab for c9s rests: 2 members behind 1 failed"
    assert (sent["X-Reimzul-Batch"], sent["X-Reimzul-Status"]) == ("5f0c12ab", "Resting")
    said = text(batch_event())
    assert "1 x %build failed: a.c:1: error: no (gcc.x86_64); 2 members behind it\n" in said
    assert " Members      : 37 published, 1 failed, 2 held\n" in said
    assert said.endswith("More: reimzul batch show 5f0c12ab\n")
    assert sent["References"] == mail(batch_event(status="Over"))["References"]


def test_builds_of_a_batch_are_not_mailed_about_one_by_one() -> None:
    sink = MailSink(settings(""))
    assert sink.accepts(event("Failed"))
    assert not sink.accepts(event("Failed", batch="5f0c12ab"))
    assert sink.accepts(batch_event())


def test_a_batchs_mail_goes_to_the_recipients_of_all_its_arches_and_its_submitter() -> None:
    given = "[mail]\nnotifications = true\nto_submitter = true\nsubmitter_domain = example.org\n"
    rows = "[mail_rcpts]\nx86_64 = a@example.org\naarch64 = b@example.org, a@example.org\n"
    read = parse_settings(given + rows, "here")
    found = Recipients(read.mail, read.mail_rcpts).addresses_for(batch_event())
    assert found == ["a@example.org", "b@example.org", "johnny@example.org"]


def test_a_builders_mail_goes_to_the_recipients_of_all_its_arches(tmp_path: Path) -> None:
    ini = (
        "[mail]\nnotifications = true\nonly_on_change = true\n"
        "[mail_rcpts]\nx86_64 = a@example.org\ni386 = a@example.org, b@example.org\naarch64 = c@example.org\n"
    )
    settings = parse_settings(ini, "test")
    assert Recipients(settings.mail, settings.mail_rcpts).addresses_for(make_builder_event()) == [
        "a@example.org",
        "b@example.org",
    ]
    sink = MailSink.from_settings(settings)
    assert sink
    assert sink.accepts(make_builder_event())


def test_long_names_make_no_broken_header() -> None:
    many = tuple(f"somebody{number}@example.org" for number in range(60))
    told = event("Failed", srpm=f"{'n' * 180}-1-1.src.rpm", target="t" * 100 + ".x86_64")
    assert mail(told, many)["To"] == ", ".join(many)
    assert mail(told)["Subject"] == subject(told)


def test_the_mail_in_docs_is_what_the_code_makes() -> None:
    made = WRITER.format_mail(failing_event(), ("me@example.org",)).decode().replace("\r\n", "\n")
    assert EXAMPLE_FILE.read_text(encoding="utf-8") == made, f"run {EXAMPLE}"
    screen = made.partition("\n\n")[2].splitlines()[:20]
    assert any("error: expected ';'" in line for line in screen), "the compiler's line is in the first screen"


# --- who gets it


def settings(rows: str) -> Settings:
    """Settings with these of mail."""
    return parse_settings(f"[mail]\nnotifications = true\n{rows}", "here")


def recipients(rows: str) -> Recipients:
    """The recipients by these settings."""
    made = settings(rows)
    return Recipients(made.mail, made.mail_rcpts)


def test_an_arch_has_its_recipients() -> None:
    known = recipients("[mail_rcpts]\nx86_64 = me@example.org, you@example.org, me@example.org\ni386 =\n")
    assert known.addresses_for(event("Failed")) == ["me@example.org", "you@example.org"]
    assert known.addresses_for(event("Failed", arch="i386")) == []


def test_an_arch_without_a_line_mails_nobody_and_says_so_once(caplog: pytest.LogCaptureFixture) -> None:
    known = recipients("[mail_rcpts]\ni386 =\n")
    for number in range(3):
        assert (
            known.addresses_for(event("Failed", number))
            == known.addresses_for(event("Failed", number, arch="i386"))
            == []
        )
    assert caplog.text.count("no line for x86_64") == 1
    assert "i386" not in caplog.text, "an empty line is nobody by intent"


@pytest.mark.parametrize(
    "name", ["CORP\\jdoe", "John Doe", "José Núñez", "山" * 64, "=?utf-8?q?root?=", " spaced ", "a: b"]
)
def test_a_submitters_name_arrives_as_it_is(name: str) -> None:
    told = event("Failed", submitter=name)
    raw = WRITER.format_mail(told, ME)
    head, _, _ = raw.partition(b"\r\n\r\n")
    assert head.isascii()
    assert max(map(len, head.split(b"\r\n"))) < 200
    parsed = email.message_from_bytes(raw, policy=email.policy.default)
    assert parsed["X-Reimzul-Submitter"] == name
    assert parsed["To"] == ME[0]
    assert f" Submitted by : {name}" in text(told)


@pytest.mark.parametrize("name", ["CORP\\jdoe", "John Doe", "José", "a,b@example.org", "a@b.org>"])
def test_a_submitter_without_an_address_is_said_once(caplog: pytest.LogCaptureFixture, name: str) -> None:
    known = recipients("to_submitter = yes\nsubmitter_domain = example.org\n[mail_rcpts]\nx86_64 = me@example.org\n")
    for number in range(3):
        assert known.addresses_for(event("Failed", number, submitter=name)) == ["me@example.org"]
    assert caplog.text.count("is no mail address: the submitter is not mailed") == 1


def test_a_submitter_gets_mails_where_that_is_set() -> None:
    known = recipients("to_submitter = yes\nsubmitter_domain = example.org\n[mail_rcpts]\nx86_64 = me@example.org\n")
    assert known.addresses_for(event("Failed")) == ["me@example.org", "johnny@example.org"]
    assert known.addresses_for(event("Failed", submitter="me@example.org")) == ["me@example.org"]
    assert known.addresses_for(event("Failed", submitter="a@b@c")) == ["me@example.org"], "which is no address"


@pytest.mark.parametrize("status", ["Success", "Failed", "Rejected"])
def test_results_are_mailed_and_no_scratch_builds(status: str) -> None:
    sink = MailSink(settings(""))
    assert sink.accepts(event(status))
    assert not sink.accepts(event(status, scratch=True))


@pytest.mark.parametrize(
    "told", [event("Queued"), event("Building"), event("Published"), refusal()], ids=lambda told: told.status
)
def test_everything_else_is_not_mailed(told: Any) -> None:
    assert not MailSink(settings("")).accepts(told)


def test_it_is_off_unless_it_is_set() -> None:
    assert MailSink.from_settings(Settings()) is None
    assert MailSink.from_settings(settings("")) is not None
    with pytest.raises(ConfigError, match=r"\[mail\] password_file: /nowhere/password does not exist"):
        MailSink.from_settings(settings("login = farm\npassword_file = /nowhere/password\n"))


# --- what it remembers


@pytest.fixture
def state(tmp_path: Path) -> Iterator[MailState]:
    """An empty one, in the ledger's file."""
    Outbox(tmp_path / "ledger.sqlite").close()
    opened = MailState(tmp_path / "ledger.sqlite")
    yield opened
    opened.close()


def is_change(state: MailState, status: str, number: int, **more: Any) -> bool:
    """Whether this result is a change."""
    told = event(status, number, **more)
    return state.is_change(Notification(told, news_kind(told)), told)


def test_only_a_result_that_differs_is_a_change(state: MailState) -> None:
    story = ["Success", "Success", "Failed", "Rejected", "Failed", "Success"]
    assert [is_change(state, status, number) for number, status in enumerate(story)] == [
        True, False, True, False, False, True,
    ]  # fmt: skip


def test_each_arch_target_and_package_has_its_own(state: MailState) -> None:
    assert is_change(state, "Failed", 1)
    others = [{"arch": "i386"}, {"target": "c7.1804.u.x86_64"}, {"pkgname": "tar"}]
    assert all(is_change(state, "Failed", 2, **other) for other in others)
    assert not is_change(state, "Failed", 3, evr="1.8-1.el7")


def test_what_was_decided_stays_decided_while_it_is_owed(state: MailState) -> None:
    assert is_change(state, "Failed", 1)
    assert not is_change(state, "Failed", 2)
    assert is_change(state, "Success", 3)
    assert is_change(state, "Failed", 1), "it is tried again, and is still news"
    assert not is_change(state, "Success", 4)


def test_what_is_too_old_is_dropped(state: MailState, monkeypatch: pytest.MonkeyPatch) -> None:
    told = event("Failed")
    notice = Notification(told, news_kind(told))
    state.mark_sent(notice, ME)
    assert is_change(state, "Failed", 1)
    state.sweep()
    assert state.sent_to(notice) == set(ME)
    late = time.time() + KEEP_SECONDS + 60
    state._sweep_due.reset()
    monkeypatch.setattr(time, "time", lambda: late)
    state.sweep()
    assert state.sent_to(notice) == set()
    assert is_change(state, "Failed", 2), "as if it were new"


@pytest.fixture(autouse=True)
def all_said(caplog: pytest.LogCaptureFixture) -> None:
    """Every line of the daemon's log."""
    caplog.set_level(logging.INFO)

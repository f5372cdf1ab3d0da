# SPDX-License-Identifier: Apache-2.0
"""The mail sink against a real SMTP server that refuses, puts off, stalls and breaks off in mid-message."""

from __future__ import annotations

import collections
import contextlib
import logging
import sqlite3
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Callable, Optional

import pytest

from reimzul.core import smtp
from reimzul.core.config import parse_settings
from reimzul.core.message import BuildEvent
from reimzul.core.settings import Settings
from reimzul.history.result_rules import Notification, news_kind
from reimzul.notifier.delivery import SinkUnavailable
from reimzul.notifier.outbox import Outbox
from reimzul.notifier.sinks.mail import MailSink
from tests.events import event
from tests.mosquitto import Authority
from tests.smtp import Mailbox, MailServer

RECIPIENTS = ["me@example.org", "you@example.org", "them@example.org"]


@pytest.fixture
def mailbox() -> Mailbox:
    """The mails that arrive."""
    return Mailbox()


@pytest.fixture
def server(mailbox: Mailbox) -> Iterator[MailServer]:
    """A server that takes what comes."""
    made = MailServer(mailbox)
    made.start()
    yield made
    mailbox.open.set()
    made.stop()


Make = Callable[..., MailSink]


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Make]:
    """Makes sinks that mail to a server's port."""
    Outbox(tmp_path / "ledger.sqlite").close()
    made = []

    def sink(server: MailServer, **more: object) -> MailSink:
        made.append(MailSink(settings_for(server.port, tmp_path, **more)))
        return made[-1]

    yield sink
    for each in made:
        each.close()


def settings_for(port: int, folder: Path, **more: object) -> Settings:
    """Settings of mail that goes there."""
    rows = "".join(f"{name} = {value}\n" for name, value in more.items())
    return parse_settings(
        f"[mail]\nnotifications = true\nmail_from = buildsys@example.org\nsmtp_port = {port}\n{rows}"
        f"[mail_rcpts]\nx86_64 = {', '.join(RECIPIENTS)}\n[notifier]\nledger = {folder}/ledger.sqlite\n",
        "here",
    )


def notices(*told: BuildEvent) -> list[Notification]:
    """Events on their way."""
    return [Notification(each, news_kind(each)) for each in told]


def failures(count: int) -> list[Notification]:
    """A batch."""
    return notices(*(event("Failed", number, build_log="the log") for number in range(count)))


def test_one_connection_serves_many_mails(server: MailServer, mailbox: Mailbox, make: Make) -> None:
    batch = failures(20)
    assert list(make(server).deliver(batch)) == batch
    assert (len(mailbox.mails), mailbox.sessions) == (20, 1)
    assert mailbox.mails[0]["To"] == ", ".join(RECIPIENTS)
    assert len(mailbox.given) == len(set(mailbox.given)) == 60


def test_who_is_ended_in_the_middle_of_a_batch_sends_none_of_it_twice(
    server: MailServer, mailbox: Mailbox, make: Make
) -> None:
    """Deliveries were once noted for a whole batch: 30 mails were sent, and all 100 again after a restart."""
    batch = failures(10)
    sink = make(server)
    telling = iter(sink.deliver(batch))
    assert [next(telling) for _ in range(6)] == batch[:6]
    again = make(server)  # as after a SIGKILL: of the first nothing came back
    assert list(again.deliver(batch)) == batch
    assert len(mailbox.given) == len(set(mailbox.given)) == 30


def test_a_server_that_is_away_is_owed_all(server: MailServer, mailbox: Mailbox, make: Make) -> None:
    server.stop()
    sink, batch = make(server), failures(3)
    with pytest.raises(SinkUnavailable, match="refused"):
        list(sink.deliver(batch))
    server.start()
    assert list(sink.deliver(batch)) == batch
    assert len(mailbox.mails) == 3


def test_a_recipient_who_is_refused_is_said_and_keeps_nobody_else_waiting(
    server: MailServer, mailbox: Mailbox, make: Make, caplog: pytest.LogCaptureFixture
) -> None:
    mailbox.answers["you@example.org"] = "550 5.1.1 nobody of that name"
    batch = failures(2)
    assert list(make(server).deliver(batch)) == batch, "nothing is owed"
    assert sorted(collections.Counter(who for _, who in mailbox.given).items()) == [
        ("me@example.org", 2),
        ("them@example.org", 2),
    ]
    assert "not mailed to you@example.org, who is refused: 550 5.1.1 nobody of that name" in caplog.text


def test_where_all_are_refused_nothing_is_owed(server: MailServer, mailbox: Mailbox, make: Make) -> None:
    mailbox.answers = dict.fromkeys(RECIPIENTS, "550 no")
    batch = failures(2)
    assert list(make(server).deliver(batch)) == batch
    assert mailbox.mails == []


def test_who_was_put_off_alone_gets_it_later(server: MailServer, mailbox: Mailbox, make: Make) -> None:
    mailbox.answers["you@example.org"] = "452 4.2.2 mailbox full"
    sink, batch = make(server), failures(3)
    assert list(sink.deliver(batch)) == []
    assert len(mailbox.given) == 6, "the others have theirs"
    mailbox.answers.clear()
    assert list(sink.deliver(batch)) == batch
    assert len(mailbox.given) == len(set(mailbox.given)) == 9


def test_greylisting_ends_with_each_mail_once(server: MailServer, mailbox: Mailbox, make: Make) -> None:
    mailbox.greylist = collections.Counter()
    sink, batch = make(server), failures(4)
    left = batch
    for _ in range(5):
        told = list(sink.deliver(left))
        left = [each for each in left if each not in told]
    assert left == []
    assert len(mailbox.given) == len(set(mailbox.given)) == 12


def test_a_mail_that_is_put_off_holds_back_no_other(server: MailServer, mailbox: Mailbox, make: Make) -> None:
    mailbox.poison = "tar-1"
    bad = notices(event("Failed", 9, srpm="tar-1-1.src.rpm", pkgname="tar", evr="1-1"))
    good = failures(3)
    assert list(make(server).deliver([*bad, *good])) == good, "it holds up nothing"
    assert len(mailbox.mails) == 3


def test_a_connection_that_breaks_in_mid_message_costs_one_mail(
    server: MailServer, mailbox: Mailbox, make: Make
) -> None:
    mailbox.drops = 1
    sink, batch = make(server), failures(5)
    assert list(sink.deliver(batch)) == batch[1:]
    assert list(sink.deliver(batch[:1])) == batch[:1]
    assert len(mailbox.given) == len(set(mailbox.given)) == 15


def test_a_server_that_always_breaks_off_is_away(server: MailServer, mailbox: Mailbox, make: Make) -> None:
    mailbox.drops = 100
    with pytest.raises(SinkUnavailable, match="mail server"):
        list(make(server).deliver(failures(10)))
    assert mailbox.drops == 97, "three in a row say enough"


def test_a_server_that_stalls_is_given_up(
    server: MailServer, mailbox: Mailbox, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(smtp, "REPLY_TIMEOUT_SECONDS", 0.3)
    monkeypatch.setattr("reimzul.notifier.sinks.mail.MAX_BREAKS", 1)
    mailbox.open.clear()
    sink, began = make(server), time.monotonic()
    with pytest.raises(SinkUnavailable, match="timed out"):
        list(sink.deliver(failures(3)))
    assert time.monotonic() - began < 3
    mailbox.open.set()
    batch = failures(3)
    assert list(sink.deliver(batch)) == [*batch[1:], batch[0]], "the mail that it broke off at comes last"


@pytest.mark.parametrize("answer", ["451 try later", "452 no room", "421 closing"])
def test_a_mail_that_is_put_off_is_owed(server: MailServer, mailbox: Mailbox, make: Make, answer: str) -> None:
    mailbox.data_answer = answer
    sink, batch, told = make(server), failures(1), []
    try:
        told = list(sink.deliver(batch))
    except SinkUnavailable as away:
        assert answer in str(away)  # noqa: PT017  it may also return nothing
    assert told == []
    mailbox.data_answer = ""
    assert list(sink.deliver(batch)) == batch


def test_a_mail_that_is_refused_is_said_and_owed_no_more(
    server: MailServer, mailbox: Mailbox, make: Make, caplog: pytest.LogCaptureFixture
) -> None:
    mailbox.data_answer = "554 5.7.1 looks like spam"
    batch = failures(2)
    assert list(make(server).deliver(batch)) == batch
    assert caplog.text.count("looks like spam") == 6


def test_a_sender_who_is_refused_is_a_setting_to_mend(server: MailServer, mailbox: Mailbox, make: Make) -> None:
    mailbox.sender_answer = "550 5.7.1 who are you"
    with pytest.raises(SinkUnavailable, match="550 5.7.1 who are you"):
        list(make(server).deliver(failures(4)))
    mailbox.sender_answer = "552 5.3.4 too large"
    batch = failures(1)
    assert list(make(server).deliver(batch)) == batch, "but a mail that is too large stays so"


def test_only_changes_are_mailed_where_that_is_set(server: MailServer, mailbox: Mailbox, make: Make) -> None:
    statuses = ["Success", "Success", "Failed", "Failed", "Success"]
    story = notices(*(event(status, number) for number, status in enumerate(statuses)))
    assert list(make(server, only_on_change="yes").deliver(story)) == story
    assert [str(mail["X-Reimzul-Status"]) for mail in mailbox.mails] == ["Success", "Failed", "Success"]


def test_a_book_of_before_is_kept(server: MailServer, mailbox: Mailbox, make: Make, tmp_path: Path) -> None:
    """An earlier version's file has when a result was mailed, and not of which build."""
    make(server, only_on_change="yes")
    with contextlib.closing(sqlite3.connect(tmp_path / "ledger.sqlite")) as book:
        book.execute(
            "CREATE TABLE outcome (package TEXT NOT NULL, target TEXT NOT NULL, arch TEXT NOT NULL,"
            " good INTEGER NOT NULL, at REAL NOT NULL, PRIMARY KEY (package, target, arch)) WITHOUT ROWID"
        )
    story = notices(event("Success", 1), event("Failed", 2))
    assert list(make(server, only_on_change="yes").deliver(story)) == story
    assert len(mailbox.mails) == 2


def test_an_older_result_that_is_told_late_is_no_change(server: MailServer, mailbox: Mailbox, make: Make) -> None:
    """Its delivery was pending while the server was away, and the newer result came first."""
    told = [("Success", 1), ("Success", 3), ("Failed", 2), ("Failed", 4)]
    story = notices(*(event(status, number, timestamp=f"2025010203040{number}") for status, number in told))
    assert list(make(server, only_on_change="yes").deliver(story)) == story
    assert [str(mail["X-Reimzul-Status"]) for mail in mailbox.mails] == ["Success", "Failed"]
    assert "2025-01-02 03:04:04Z" in str(mailbox.mails[1])


# --- TLS and login


Secure = Callable[..., MailServer]


@pytest.fixture
def secure(mailbox: Mailbox, authority: Authority) -> Iterator[Secure]:
    """Makes servers that insist on STARTTLS and a login."""
    made = []

    def server(name: str = "localhost", days: Optional[int] = None) -> MailServer:
        made.append(MailServer(mailbox, authority.issue(name, days), password="open sesame"))
        made[-1].start()
        return made[-1]

    yield server
    for each in made:
        each.stop()


def test_mail_goes_through_tls_after_a_login(
    secure: Secure, mailbox: Mailbox, make: Make, tmp_path: Path, authority: Authority
) -> None:
    (tmp_path / "password").write_text("open sesame\n")
    login = {"starttls": "yes", "login": "farm", "password_file": tmp_path / "password"}
    batch = failures(2)
    assert list(make(secure(), ca_cert=authority.certificate, **login).deliver(batch)) == batch
    assert (len(mailbox.mails), mailbox.encrypted) == (2, 2)


@pytest.mark.parametrize(
    ("name", "days", "ours", "words"),
    [
        ("other.example.org", None, True, "certificate is not valid for 'localhost'"),
        ("localhost", -1, True, "certificate has expired"),
        ("localhost", None, False, "self-signed certificate|unable to get local issuer"),
    ],
    ids=["another name", "expired", "a stranger's"],
)
def test_a_server_with_a_wrong_certificate_gets_nothing(
    secure: Secure, mailbox: Mailbox, make: Make, authority: Authority, name: str, days: int, ours: bool, words: str
) -> None:
    trusted = {"ca_cert": authority.certificate} if ours else {}
    with pytest.raises(SinkUnavailable, match=words):
        list(make(secure(name, days), starttls="yes", **trusted).deliver(failures(1)))
    assert mailbox.mails == []


def test_a_wrong_password_is_said(secure: Secure, make: Make, tmp_path: Path, authority: Authority) -> None:
    (tmp_path / "password").write_text("open barley\n")
    login = {"starttls": "yes", "login": "farm", "password_file": tmp_path / "password"}
    with pytest.raises(SinkUnavailable, match="535"):
        list(make(secure(), ca_cert=authority.certificate, **login).deliver(failures(1)))


def test_a_server_without_tls_is_not_told_where_tls_is_set(server: MailServer, mailbox: Mailbox, make: Make) -> None:
    with pytest.raises(SinkUnavailable, match="STARTTLS extension not supported"):
        list(make(server, starttls="yes").deliver(failures(1)))
    assert mailbox.mails == []


@pytest.fixture(autouse=True)
def no_thread_stays() -> Iterator[None]:
    """A sink and its server leave nothing running."""
    before = threading.active_count()
    yield
    assert threading.active_count() <= before + 1


@pytest.fixture(autouse=True)
def all_said(caplog: pytest.LogCaptureFixture) -> None:
    """Every line of the daemon's log."""
    caplog.set_level(logging.INFO)

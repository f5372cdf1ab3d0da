# SPDX-License-Identifier: Apache-2.0
"""Links and times as people get them: by mail, MQTT and IRC from real servers, on a terminal, in a pipe, in JSON."""

from __future__ import annotations

import json
import re
import signal
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from reimzul.core.beanstalk import Broker
from reimzul.core.formatting import format_time
from reimzul.core.links import PUBLIC_URL_FILE
from tests import webserver
from tests.conftest import Beanstalkd, free_port
from tests.events import ATTEMPT, OTHER_ATTEMPT, build_id, event
from tests.integration.test_irc import Talker
from tests.integration.test_operator import PROGRAM, reimzul
from tests.mosquitto import Authority, Mosquitto, Watcher
from tests.ngircd import Ngircd, Person
from tests.notifier import RESULTS, Running
from tests.smtp import Mailbox, MailServer
from tests.terminal import show_on_terminal
from tests.waiting import until

#: What programs use, and nobody else can.
INTERNAL = "http://localhost:11081/bstore/"
PLACE = "repo/c7.1708.u.x86_64/time/20251122000001/1.7-45.el7.x86_64"
LOGS = f"attempts/{build_id(1)}.x86_64.{ATTEMPT}"
LOG_COMMAND = f"reimzul log {build_id(1)[:8]} --arch x86_64 --attempt {ATTEMPT}"
ROOT, PAGES = "http://bstore.example.org/", "http://farm.example.org:8080/"
PAGE = f"{PAGES}builds/{build_id(1)[:2]}/{build_id(1)}.html"
TIME = re.compile(r"20\d\d-\d\d-\d\d \d\d:\d\d:\d\dZ")


@pytest.fixture
def mailbox() -> Mailbox:
    return Mailbox()


@pytest.fixture
def notifier(
    tmp_path: Path, beanstalkd: Beanstalkd, mosquitto: Mosquitto, mailbox: Mailbox, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Running]:
    """A notifier that is not started, with a mail server and an MQTT broker."""
    monkeypatch.setenv("TZ", "Asia/Tokyo")
    server = MailServer(mailbox)
    server.start()
    made = Running(tmp_path, beanstalkd)
    made.with_mqtt(mosquitto)
    made.with_mail(server.port)
    made.settings["bstore"] = {"base_url": f"http://127.0.0.1:{free_port()}/bstore/repo/"}
    yield made
    if made.process and made.process.poll() is None:
        made.signal(signal.SIGKILL)
    server.stop()


def announce_failure(notifier: Running, broker: Broker) -> float:
    """A build that failed by its builder's fault, then by its own, as workers of 0.1 announce it, in all sinks."""
    now = round(time.time(), 3)
    fault: dict[str, Any] = {
        "attempt": ATTEMPT, "reason": "the disk was full", "url": f"{INTERNAL}{LOGS}/", "job": 7, "tube": "x86_64",
    }  # fmt: skip
    failure: dict[str, Any] = {
        "attempt": OTHER_ATTEMPT, "reason": "%build failed", "started": now, "finished": now,
        "error_line": "util.c:17: error: no", "first_error": "util.c:17: error: no",
    }  # fmt: skip
    broker.announce(event("Queued", job=7, tube="x86_64", at=now - 2))
    broker.announce(event("Queued", **fault, at=now - 1))
    broker.announce(event("Failed", place=PLACE, url=f"{INTERNAL}{PLACE}/", **failure, at=now))
    until(notifier.is_done(broker), 30, "all sinks have all")
    return now


@pytest.mark.parametrize("source", ["setting", "bstore", "pages", "none"])
def test_mail_mqtt_irc_and_history_have_links_that_people_can_open(
    notifier: Running, broker: Broker, mosquitto: Mosquitto, authority: Authority, mailbox: Mailbox, tmp_path: Path,
    source: str,
) -> None:  # fmt: skip
    ngircd = Ngircd(tmp_path, authority)
    ngircd.start()
    (tmp_path / "served/bstore").mkdir(parents=True)
    server = webserver.serve(tmp_path / "served")
    talker = Talker(tmp_path, mosquitto, ngircd.tls_port)
    if source == "setting":
        notifier.settings["bstore"]["public_url"] = ROOT
    elif source == "bstore":
        (tmp_path / "served/bstore" / PUBLIC_URL_FILE).write_text(f"{ROOT}\n")
        notifier.settings["bstore"]["base_url"] = f"http://127.0.0.1:{server.server_port}/bstore/repo/"
    elif source == "pages":
        notifier.settings["pages"] = {"url": PAGES}
    folder = {"none": "", "pages": f"{PAGES}bstore/"}.get(source, ROOT)
    url, page = folder and f"{folder}{PLACE}/", PAGE if source == "pages" else ""
    link = page or url
    try:
        with (
            closing(Person(ngircd.port, "karanbir", "#reimzul")) as person,
            closing(Watcher(mosquitto, tmp_path)) as watcher,
        ):
            talker.start()
            until(talker.is_up, 60, "reimzul-irc is there")
            notifier.start()
            announce_failure(notifier, broker)
            until(lambda: person.heard("#reimzul"), 30, "IRC has the result")
            until(lambda: watcher.heard(RESULTS), 30, "subscribers have the result")
            (line,), (result,) = person.heard("#reimzul"), watcher.heard(RESULTS)
            published = (tmp_path / "heard").read_text()
    finally:
        talker.signal(signal.SIGTERM)
        ngircd.stop()
        webserver.close(server)
    (mail,) = mailbox.mails
    text = str(mail.get_content()).replace("\r", "")
    assert line.endswith(f"%build failed {link or f'on bstore: {PLACE}'}"), line
    assert (result["url"], result["place"], result["page"]) == (url, PLACE, page)
    assert f"\nFull logs available at {link}\n" in text if link else f"\nFull logs on bstore: {PLACE}\n" in text
    (record,) = notifier.builds()
    assert (record["url"], record["place"], "page" in record) == (url, PLACE, False)
    logs = f"{PAGES}bstore/{LOGS}/" if page else ""
    assert [(each["url"], each["logs_folder"]) for each in record["attempts"]] == [(logs, LOGS), (url, PLACE)]
    for shown in (line, published, str(mail), json.dumps(record)):
        assert "localhost:" not in shown
        assert "127.0.0.1" not in shown


def test_a_log_of_builds_and_a_mail_have_times_in_utc(notifier: Running, broker: Broker, mailbox: Mailbox) -> None:
    notifier.start()
    now = announce_failure(notifier, broker)
    assert sorted(line[:23] for line in notifier.lines()) == [f"[{format_time(now - ago)}] " for ago in (2, 1, 0)]
    assert re.match(TIME, notifier.said()), "what a daemon writes where there is no journal"
    assert f"\n Finished     : {format_time(now)}\n" in str(mailbox.mails[0].get_content()).replace("\r", "")


def test_local_time_is_the_originals_form(notifier: Running, broker: Broker) -> None:
    notifier.settings["logs"]["local_time"] = "true"
    notifier.start()
    tokyo = time.asctime(time.gmtime(announce_failure(notifier, broker) - 2 + 9 * 3600))
    assert any(line.startswith(f"[{tokyo}] Build job SRPM time-1.7-45.el7.src.rpm ") for line in notifier.lines())


# --- the administrator's commands


@pytest.fixture
def ini(notifier: Running, broker: Broker, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The failed build, recorded while there was no public URL."""
    notifier.start()
    announce_failure(notifier, broker)
    notifier.signal(signal.SIGTERM)
    path = notifier.write()
    monkeypatch.setenv("REIMZUL_CONFIG", str(path))
    return path


@pytest.mark.parametrize("root", [ROOT, ""])
def test_every_command_shows_a_link_or_where_the_files_are(notifier: Running, ini: Path, root: str) -> None:
    notifier.settings["bstore"]["public_url"] = root
    notifier.write()
    files = f"{ROOT}{PLACE}/" if root else f"on bstore: {PLACE}"
    for command in ("show", "explain", "watch"):
        for text in (reimzul(command, build_id(1)).stdout, show_on_terminal([str(PROGRAM), command, build_id(1)]).text):
            assert not re.search(r"localhost:|127\.0\.0\.1", text), command
            assert TIME.search(text) or command == "watch", command
            if command != "watch":
                assert files in text, command
                assert LOG_COMMAND in text, command
    assert reimzul("watch", build_id(1)).stdout.rstrip("\n").endswith(f"\t{files}")


def test_every_command_leads_to_the_builds_page_where_there_are_pages(notifier: Running, ini: Path) -> None:
    notifier.settings["pages"] = {"url": PAGES}
    notifier.write()
    for command in ("show", "explain", "watch"):
        shown = reimzul(command, build_id(1)).stdout
        assert PAGE in shown, command
        assert f"{PAGES}bstore/{LOGS}/" in shown or command == "watch", "the logs of the attempt before"
    (leg,) = json.loads(reimzul("show", build_id(1), "--json").stdout)["arches"]
    (change,) = map(json.loads, reimzul("watch", build_id(1), "--json").stdout.splitlines())
    assert (leg["page"], leg["url"]) == (change["page"], change["url"]) == (PAGE, f"{PAGES}bstore/{PLACE}/")


@pytest.mark.parametrize("root", [ROOT, ""])
@pytest.mark.parametrize("command", [["builds"], ["show", build_id(1)]])
def test_json_has_the_link_that_holds_now(notifier: Running, ini: Path, root: str, command: list[str]) -> None:
    notifier.settings["bstore"]["public_url"] = root
    notifier.write()
    printed = json.loads(reimzul(*command, "--json").stdout)
    (leg,) = printed["arches"] if isinstance(printed, dict) else printed
    link = f"{ROOT}{PLACE}/" if root else None
    assert (leg["url"], leg["place"], leg["logs_folder"]) == (link, PLACE, PLACE)
    assert [(each["url"], each["logs_folder"]) for each in leg["attempts"]] == [(None, LOGS), (link, PLACE)]


def test_watch_has_it_in_json_too(notifier: Running, ini: Path) -> None:
    notifier.settings["bstore"]["public_url"] = ROOT
    notifier.write()
    (change,) = map(json.loads, reimzul("watch", build_id(1), "--json").stdout.splitlines())
    assert change["url"] == f"{ROOT}{PLACE}/"

# SPDX-License-Identifier: Apache-2.0
"""reimzul-irc as a process, between a real mosquitto and a real ngircd, both behind TLS."""

from __future__ import annotations

import base64
import json
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any, Callable

import pytest

from reimzul.core.config import parse_settings
from reimzul.history.result_rules import Notification, news_kind
from reimzul.irc import connection as connection_module
from reimzul.irc.connection import IrcConnection, IrcDisconnected
from reimzul.notifier.sinks.mqtt import messages
from tests.events import event
from tests.ini import write_ini
from tests.manager import Manager
from tests.mosquitto import Authority, Mosquitto
from tests.ngircd import Ngircd, Person
from tests.waiting import until

PROGRAM = Path(sys.executable).parent / "reimzul-irc"
RESULTS = "reimzul/builds/results"
#: For a start or a reconnection, each of several programs; a busy machine takes a minute.
BOUND_SECONDS = 180


@pytest.fixture
def ngircd(tmp_path: Path, authority: Authority) -> Iterator[Ngircd]:
    """An IRC server that runs."""
    server = Ngircd(tmp_path, authority)
    server.start()
    yield server
    server.stop()


@pytest.fixture
def person(ngircd: Ngircd) -> Iterator[Person]:
    """Somebody who listens."""
    with closing(Person(ngircd.port, "karanbir", "#reimzul", "#seven")) as listening:
        yield listening


class Talker:
    """reimzul-irc, not started yet."""

    def __init__(self, folder: Path, mosquitto: Mosquitto, port: int) -> None:
        certificate, key = mosquitto.authority.issue("listener")
        self.folder, self.mosquitto = folder, mosquitto
        self.process: subprocess.Popen[bytes] | None = None
        self.settings: dict[str, dict[str, object]] = {
            "mqtt": {
                "port": mosquitto.port,
                "ca_cert": mosquitto.authority.certificate,
                "tls_cert": certificate,
                "tls_key": key,
            },
            "irc": {
                "port": port,
                "ca_cert": mosquitto.authority.certificate,
                "channels": "#reimzul",
                "colours": "no",
                "seconds_a_line": 0,
            },
        }

    def start(self) -> None:
        """Start it."""
        ini = write_ini(self.folder / "irc.ini", self.settings)
        with (self.folder / "irc.stderr").open("ab") as stderr:
            self.process = subprocess.Popen([str(PROGRAM), "--config", str(ini)], stderr=stderr)

    def said(self) -> str:
        """What it wrote for the journal."""
        return (self.folder / "irc.stderr").read_text()

    def is_up(self) -> bool:
        """Whether it is in its channel, and listens."""
        return "in #reimzul" in self.said() and "listening to" in self.said()

    def signal(self, number: int) -> float:
        """Send a signal that ends it; the seconds it took."""
        assert self.process
        began = time.monotonic()
        self.process.send_signal(number)
        self.process.wait(20)
        return time.monotonic() - began

    def wait_until_up(self) -> None:
        """Wait until the bot is connected; fail with its log if it is not."""
        try:
            until(self.is_up, BOUND_SECONDS, "it is there")
        except AssertionError as error:
            raise AssertionError(f"{error}; it said: {self.said()}") from None

    def publish(self, *payloads: Any) -> None:
        """Publish these as results, in one connection."""
        certificate, key = self.mosquitto.authority.issue("notifier")
        lines = b"".join(
            (payload if isinstance(payload, bytes) else json.dumps(payload).encode()) + b"\n" for payload in payloads
        )
        subprocess.run(
            ["mosquitto_pub", "-h", "localhost", "-p", str(self.mosquitto.port), "-t", RESULTS, "-q", "1", "-l",
             "--cafile", str(self.mosquitto.authority.certificate), "--cert", str(certificate), "--key", str(key)],
            input=lines, check=True, timeout=30,
        )  # fmt: skip


@pytest.fixture
def talker(tmp_path: Path, mosquitto: Mosquitto, ngircd: Ngircd) -> Iterator[Talker]:
    """One for that broker and that server."""
    made = Talker(tmp_path, mosquitto, ngircd.tls_port)
    yield made
    if made.process and made.process.poll() is None:
        made.signal(signal.SIGKILL)


def result(number: int = 1, status: str = "Failed", **more: Any) -> dict[str, Any]:
    """A result as the notifier publishes it."""
    told = event(status, number, **more)
    published = dict(messages("reimzul", Notification(told, news_kind(told))))
    loaded: dict[str, Any] = json.loads(published[RESULTS])
    return loaded


def test_systemd_hears_that_it_is_alive_with_irc_and_without(
    talker: Talker, ngircd: Ngircd, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    manager = Manager.make_in(tmp_path)
    for name, text in manager.environment().items():
        monkeypatch.setenv(name, text)
    talker.start()
    manager.wait_for("in #reimzul")
    assert manager.said[0] == "READY=1"
    manager.wait_for_pings()
    ngircd.stop()
    manager.wait_for("the IRC server at localhost")
    manager.wait_for_pings()
    talker.signal(signal.SIGTERM)
    assert "STOPPING=1" in manager.listen()
    manager.close()


def test_a_result_is_a_line_in_the_channel(talker: Talker, person: Person) -> None:
    talker.start()
    talker.wait_until_up()
    talker.publish({**result(reason="%build failed"), "url": "http://bstore/place/"}, result(2, "Success"))
    until(lambda: len(person.heard("#reimzul")) == 2, 10, "both are said")
    assert person.heard("#reimzul") == [
        "Failed: time-1.7-45.el7.src.rpm on x86_64 for c7.1708.u.x86_64 (johnny), %build failed http://bstore/place/",
        "Success: time-1.7-45.el7.src.rpm on x86_64 for c7.1708.u.x86_64 (johnny)",
    ]
    assert talker.signal(signal.SIGTERM) < 3
    assert talker.process
    assert talker.process.returncode == 0


def test_targets_and_arches_have_channels_of_their_own(talker: Talker, person: Person) -> None:
    talker.settings["irc_channels"] = {"c7.1708.u": "#seven", "i386": "#reimzul, #seven"}
    talker.start()
    until(lambda: "in #seven" in talker.said() and talker.is_up(), BOUND_SECONDS, "it is there")
    talker.publish(
        result(1), result(2, arch="i386", target="c8.i386"), result(3, arch="aarch64", target="c8.00.aarch64")
    )
    until(lambda: len(person.heard("#reimzul")) == 2 and len(person.heard("#seven")) == 2, 10, "all are said")
    assert ["aarch64" in line for line in person.heard("#reimzul")] == [False, True]
    assert ["i386" in line for line in person.heard("#seven")] == [False, True]


def test_nothing_in_a_field_ends_the_line_or_is_a_command(talker: Talker, person: Person) -> None:
    talker.start()
    talker.wait_until_up()
    evil = "x\r\nQUIT :gone\r\nPRIVMSG #reimzul :\x01ACTION lies\x01\x02\x0304\u2028y"
    talker.publish({**result(), "reason": evil, "submitter": evil, "url": evil, "srpm": "é" * 4000}, result(2))
    until(lambda: len(person.heard("#reimzul")) == 2, 10, "both are said")
    bad, good = person.heard("#reimzul")
    assert bad.isprintable()
    assert len(bad.encode()) < 400
    assert good.startswith("Failed: time")


def test_garbage_is_passed_over(talker: Talker, person: Person) -> None:
    talker.start()
    talker.wait_until_up()
    talker.publish(b"\xff\xfe", b"[", b"[" * 100_000, b"17", b"{}", {"status": 1}, result())
    until(lambda: len(person.heard("#reimzul")) == 1, 10, "what is a result is said")
    assert talker.process
    assert talker.process.poll() is None


def test_an_irc_server_that_was_away_hears_all_of_it_once(talker: Talker, ngircd: Ngircd) -> None:
    talker.start()
    talker.wait_until_up()
    ngircd.stop()
    until(lambda: "retrying in 2 s" in talker.said(), BOUND_SECONDS, "it is noticed")
    talker.publish(*(result(number) for number in range(60)))
    ngircd.start()
    with closing(Person(ngircd.port, "karanbir", "#reimzul")) as person:
        until(lambda: len(person.heard("#reimzul")) >= 60, BOUND_SECONDS, "all are said")
        assert len(set(person.heard("#reimzul"))) == 1
        talker.publish(result(61, "Success"))
        until(lambda: len(person.heard("#reimzul")) > 60, 10, "and what comes after")
        assert len(person.heard("#reimzul")) == 61


def test_an_mqtt_broker_that_was_away_is_listened_to_again(
    talker: Talker, mosquitto: Mosquitto, person: Person
) -> None:
    talker.start()
    talker.wait_until_up()
    mosquitto.stop()
    until(lambda: "disconnected" in talker.said(), BOUND_SECONDS, "it is noticed")
    mosquitto.start()
    until(lambda: talker.said().count("listening to") == 2, 30, "it is back")
    talker.publish(result())
    until(lambda: len(person.heard("#reimzul")) == 1, 10, "it is said")


def test_why_the_mqtt_broker_cannot_be_reached_is_logged(talker: Talker, mosquitto: Mosquitto) -> None:
    mosquitto.stop()
    talker.start()
    until(lambda: "cannot be reached: [Errno 111] Connection refused" in talker.said(), BOUND_SECONDS, "it says why")
    mosquitto.start()
    talker.wait_until_up()


def test_what_is_published_while_it_is_down_is_said_when_it_is_up(talker: Talker, person: Person) -> None:
    talker.start()
    talker.wait_until_up()
    talker.signal(signal.SIGKILL)
    talker.publish(*(result(number) for number in range(5)))
    talker.start()
    until(lambda: len(person.heard("#reimzul")) == 5, 30, "all are said")


def test_a_flood_is_said_at_a_bearable_pace(talker: Talker, person: Person) -> None:
    talker.settings["irc"]["seconds_a_line"] = 1
    talker.start()
    talker.wait_until_up()
    talker.publish(*(result(number) for number in range(8)))
    began = time.monotonic()
    until(lambda: len(person.heard("#reimzul")) >= 2, 5, "the first come at once")
    assert time.monotonic() - began < 3
    until(lambda: len(person.heard("#reimzul")) == 8, 20, "all are said")
    assert time.monotonic() - began > 3


def test_a_channel_that_does_not_let_us_in_holds_back_no_other(talker: Talker, person: Person) -> None:
    talker.settings["irc"]["channels"] = "#closed, #reimzul"
    talker.start()
    until(talker.is_up, BOUND_SECONDS, "it is in the other")
    talker.publish(result())
    until(lambda: len(person.heard("#reimzul")) == 1, 10, "it is said")
    assert "#closed does not let us in" in talker.said()


def test_a_nick_that_is_taken_gets_a_tail(talker: Talker, ngircd: Ngircd, person: Person) -> None:
    with closing(Person(ngircd.port, "reimzul")):
        talker.start()
        talker.wait_until_up()
        until(lambda: person.has(":reimzul_!"), BOUND_SECONDS, "its other name is seen")


def test_nickserv_is_told_the_password(talker: Talker, ngircd: Ngircd, tmp_path: Path) -> None:
    (tmp_path / "password").write_text("open sesame\n")
    talker.settings["irc"].update(identify="nickserv", password_file=tmp_path / "password")
    with closing(Person(ngircd.port, "NickServ")) as nickserv:
        talker.start()
        until(
            lambda: nickserv.heard("NickServ") == ["IDENTIFY reimzul open sesame"],
            BOUND_SECONDS,
            "it has identified itself",
        )


def test_a_server_with_a_strangers_certificate_is_told_nothing(talker: Talker, tmp_path: Path) -> None:
    talker.settings["irc"]["ca_cert"] = Authority(tmp_path / "stranger").certificate
    talker.start()
    until(lambda: "certificate verify failed" in talker.said(), BOUND_SECONDS, "it is said")
    assert "in #reimzul" not in talker.said()


def test_the_subscriber_in_docs_hears_each_result_once(
    tmp_path: Path, mosquitto: Mosquitto, authority: Authority, talker: Talker
) -> None:
    text = (Path(__file__).parents[2] / "docs" / "subscribers.md").read_text(encoding="utf-8")
    code = text.partition("```python\n")[2].partition("```")[0]
    certificate, key = authority.issue("listener")
    for name, here in (
        ('"mqtt.example.org", 8883', f'"localhost", {mosquitto.port}'),
        ('"ca.crt"', repr(str(authority.certificate))),
        ('"listener.crt"', repr(str(certificate))),
        ('"listener.key"', repr(str(key))),
        ("qos=1)\n", "qos=1)\n    print('subscribed')\n"),
    ):
        assert name in code
        code = code.replace(name, here)
    assert len(code.splitlines()) <= 30
    (tmp_path / "subscriber.py").write_text(code)
    heard = tmp_path / "heard"
    with heard.open("wb") as output:
        process = subprocess.Popen([sys.executable, "-u", str(tmp_path / "subscriber.py")], stdout=output)
    try:
        until(lambda: b"subscribed" in heard.read_bytes(), BOUND_SECONDS, "it listens")
        talker.publish(result(1), result(1), result(2, "Success"))
        until(lambda: b"Success" in heard.read_bytes(), BOUND_SECONDS, "it hears")
        assert heard.read_text().splitlines()[1:] == [
            "Failed time-1.7-45.el7.src.rpm x86_64 ",
            "Success time-1.7-45.el7.src.rpm x86_64 ",
        ]
    finally:
        process.kill()
        process.wait()


@pytest.mark.parametrize("knows", [True, False], ids=["right", "wrong"])
def test_sasl_logs_in_or_says_why_not(tmp_path: Path, mosquitto: Mosquitto, knows: bool) -> None:
    server = SaslServer("open sesame" if knows else "open barley")
    talker = Talker(tmp_path, mosquitto, server.port)
    (tmp_path / "password").write_text("open sesame\n")
    talker.settings["irc"].update(tls="no", identify="sasl", account="farm", password_file=tmp_path / "password")
    talker.start()
    try:
        words = "in #reimzul" if knows else "refused our login: SASL authentication failed"
        until(lambda: words in talker.said(), BOUND_SECONDS, "it is said")
        assert ("in #reimzul" in talker.said()) is knows
    finally:
        talker.signal(signal.SIGKILL)
        server.close()


# --- what a server may answer, and ngircd does not


@pytest.fixture
def chatting() -> Iterator[Callable[..., tuple[IrcConnection, WordyServer]]]:
    """A chat with a server that answers so."""
    made: list[tuple[IrcConnection, WordyServer]] = []

    def chat(answers: dict[str, list[str]], more: str = "") -> tuple[IrcConnection, WordyServer]:
        server = WordyServer({"USER ": [":irc 001 reimzul :welcome"], **answers})
        ini = f"[irc]\nserver = 127.0.0.1\nport = {server.port}\ntls = no\nnick = reimzul\nchannels = #reimzul\n{more}"
        made.append((IrcConnection(parse_settings(ini, "here").irc, ["#reimzul"], "sesame"), server))
        return made[-1]

    yield chat
    for each, server in made:
        each.close()
        server.close()


def turned(chat: IrcConnection, done: Callable[[], bool]) -> None:
    """Turn it until that is so."""

    def turn() -> bool:
        chat.process(0.05)
        return done()

    until(turn, 10, "the chat is so far")


@pytest.mark.parametrize("line", [":a!b@c QUIT", "PING", "   "])
def test_a_line_that_the_library_trips_over_ends_the_connection(chatting: Any, line: str) -> None:
    chat, _ = chatting({"JOIN ": [line]})
    with pytest.raises(IrcDisconnected):
        turned(chat, lambda: False)


@pytest.mark.parametrize("answer", [[], [":irc 520 reimzul #reimzul :only for opers"]])
def test_a_channel_with_an_unknown_answer_counts_as_closed(
    chatting: Any, answer: list[str], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(connection_module, "JOIN_ANSWER_SECONDS", 0.2)
    chat, _ = chatting({"JOIN ": answer})
    turned(chat, lambda: bool(chat.is_ready))
    assert "#reimzul does not let us in: no answer" in caplog.text
    assert (chat.joined_channels(["#Reimzul"]), chat.may_still_join(["#Reimzul"])) == ([], True)
    monkeypatch.setattr(connection_module, "JOIN_HOPE_SECONDS", 0.0)
    assert not chat.may_still_join(["#reimzul"])


def test_a_channel_that_says_no_is_soon_tried_again(chatting: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection_module, "FIRST_JOIN_RETRY_SECONDS", 0.1)
    no = ":irc 477 reimzul #reimzul :you need to be identified"
    chat, server = chatting({"JOIN ": [no]})
    turned(chat, lambda: bool(chat.is_ready))
    server.answers["JOIN "] = [":reimzul!r@host JOIN #reimzul"]
    turned(chat, lambda: chat.joined_channels(["#reimzul"]) == ["#reimzul"])
    assert not chat.may_still_join(["#reimzul"])


def test_nickserv_gets_time_and_the_account_and_the_nick_is_taken_back(
    chatting: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection_module, "NICK_RETRY_SECONDS", 0.2)
    monkeypatch.setattr(connection_module, "IDENTIFY_SECONDS", 0.3)
    answers = {
        "NICK reimzul_": [":irc 001 reimzul_ :welcome"],
        "USER ": [":irc 433 * reimzul :in use"],
        "JOIN ": [":reimzul_!r@host JOIN #reimzul"],
    }
    chat, server = chatting(answers, "identify = nickserv\naccount = farm\npassword_file = /nowhere\n")
    turned(chat, lambda: server.heard.count("NICK reimzul") >= 2)
    identified = server.heard.index("PRIVMSG NickServ :IDENTIFY farm sesame")
    assert "JOIN #reimzul" not in server.heard[:identified]
    turned(chat, lambda: "JOIN #reimzul" in server.heard)


def test_a_result_waits_for_a_channel_that_says_no_at_first(tmp_path: Path, mosquitto: Mosquitto) -> None:
    answers = {"USER ": [":irc 001 reimzul :welcome"], "JOIN ": [":irc 477 reimzul #reimzul :not yet"]}
    server = WordyServer(answers)
    talker = Talker(tmp_path, mosquitto, server.port)
    talker.settings["irc"]["tls"] = "no"
    talker.start()
    try:
        until(
            lambda: "does not let us in" in talker.said() and "listening to" in talker.said(),
            BOUND_SECONDS,
            "it is refused",
        )
        talker.publish(result())
        answers["JOIN "] = [":reimzul!r@host JOIN #reimzul"]
        until(lambda: any(line.startswith("PRIVMSG #reimzul :Failed") for line in server.heard), 45, "it is said")
        assert "dropped" not in talker.said()
    finally:
        talker.signal(signal.SIGKILL)
        server.close()


class SaslServer:
    """As much of an IRC server as SASL needs, which ngircd does not have."""

    def __init__(self, password: str) -> None:
        self._wanted = base64.b64encode(f"\0farm\0{password}".encode()).decode()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def close(self) -> None:
        """End it."""
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join(5)

    def _serve(self) -> None:
        try:
            client, _ = self._listener.accept()
        except OSError:
            return
        with client, client.makefile("rw", encoding="utf-8", newline="\r\n") as stream:
            for line in stream:
                for answer in self._answers(line.strip()):
                    stream.write(f"{answer}\n")  # the stream makes it CR LF
                stream.flush()

    def _answers(self, line: str) -> list[str]:
        fixed = {
            "CAP LS": [":irc CAP * LS :multi-prefix sasl"],
            "CAP REQ sasl": [":irc CAP reimzul ACK sasl"],
            "CAP REQ :sasl": [":irc CAP reimzul ACK :sasl"],
            "AUTHENTICATE PLAIN": ["AUTHENTICATE +"],
            "CAP END": [":irc 001 reimzul :welcome"],
            "JOIN #reimzul": [":reimzul!r@host JOIN #reimzul"],
        }
        if line.startswith("AUTHENTICATE ") and line not in fixed:
            known = line.split()[1] == self._wanted
            return [f":irc {'903 reimzul :well' if known else '904 reimzul :SASL authentication failed'}"]
        return fixed.get(line, [])


class WordyServer(SaslServer):
    """A server that sends prepared answers, chosen by the beginning of the line."""

    def __init__(self, answers: dict[str, list[str]]) -> None:
        self.answers, self.heard = answers, list[str]()
        super().__init__("")

    def _answers(self, line: str) -> list[str]:
        self.heard.append(line)
        return next((words for start, words in self.answers.items() if line.startswith(start)), [])

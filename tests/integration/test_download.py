# SPDX-License-Identifier: Apache-2.0
"""Downloads of source rpms from web servers of every mood: what is final, what is tried again, and when."""

from __future__ import annotations

import hashlib
import http.server
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from reimzul.core.retry import CancelToken
from reimzul.worker import download
from reimzul.worker.download import Downloader, DownloadNotWritable, SourceDelayed, SourceUnavailable
from tests import webserver
from tests.conftest import free_port

BODY = b"a source rpm" * 1000
SHA256 = hashlib.sha256(BODY).hexdigest()
NAME = "hello-1.0-1.src.rpm"


def answer(status: int, body: bytes = b"", **headers: str) -> bytes:
    """An answer as it goes over the wire."""
    lines = [f"HTTP/1.1 {status} Words", *(f"{name.replace('_', '-')}: {value}" for name, value in headers.items())]
    return "\r\n".join([*lines, "", ""]).encode() + body


FINE = answer(200, BODY, Content_Length=str(len(BODY)))
PAGE = answer(200, b"<html>We are back soon.</html>", Content_Type="text/html; charset=utf-8")


class Unhurried(CancelToken):
    """Pauses take no time."""

    def wait(self, seconds: float) -> None:
        pass


PATIENT = Unhurried()


class Server:
    """A web server that answers as the test says, by path."""

    def __init__(self) -> None:
        self.answers: dict[str, bytes] = {}
        self.asked: list[str] = []
        server = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                server.asked.append(self.path)
                self.wfile.write(server.answers.get(self.path, answer(404)))

            def log_message(self, format: str, *args: Any) -> None:
                pass

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        webserver.start_serving(self._server)
        self.url = f"http://127.0.0.1:{self._server.server_port}/incoming/"

    def close(self) -> None:
        webserver.close(self._server)


@pytest.fixture
def server() -> Iterator[Server]:
    running = Server()
    yield running
    running.close()


@pytest.fixture
def fetch(server: Server, tmp_path: Path) -> Callable[..., Path]:
    """Fetch NAME, after any `before` that succeed; pauses take no time and are kept in `pauses`."""
    incoming = Downloader(server.url)

    def fetched(name: str = NAME, wanted: str = SHA256, rounds: int = 0) -> Path:
        return incoming.fetch(name, wanted, tmp_path, PATIENT, rounds)

    return fetched


def serve(server: Server, reply: bytes, name: str = NAME) -> None:
    server.answers[f"/incoming/{name}"] = reply


def test_a_file_that_is_served_is_fetched(server: Server, fetch: Callable[..., Path]) -> None:
    serve(server, FINE)
    assert fetch().read_bytes() == BODY


@pytest.mark.parametrize("status", [404, 410])
def test_what_is_not_there_is_final(server: Server, fetch: Callable[..., Path], status: int) -> None:
    serve(server, answer(status))
    with pytest.raises(SourceUnavailable, match=f"{NAME} is not in incoming/ .HTTP {status}."):
        fetch()
    assert len(server.asked) == 1


#: What says that the server is well, and does not give us this file.
DENIED = [answer(400), answer(401), answer(403), answer(407), answer(416), answer(451), PAGE]


@pytest.mark.parametrize("reply", DENIED)
def test_a_denied_file_is_final_only_where_another_is_served(
    server: Server, fetch: Callable[..., Path], reply: bytes
) -> None:
    serve(server, reply)
    with pytest.raises(SourceDelayed) as away:
        fetch()
    assert away.value.pause == download.FIRST_ROUND_PAUSE_SECONDS
    assert len(server.asked) == 1, "another try of this round changes nothing"
    serve(server, FINE, "other-1-1.src.rpm")
    fetch("other-1-1.src.rpm")
    with pytest.raises(SourceUnavailable, match="while other files can: has it mode 0644 in incoming/"):
        fetch()
    serve(server, reply, "other-1-1.src.rpm")  # now the whole folder is closed
    with pytest.raises(SourceDelayed):
        fetch()
    del server.answers["/incoming/other-1-1.src.rpm"]  # and that file says nothing any more
    with pytest.raises(SourceDelayed):
        fetch()


def test_a_file_that_was_served_itself_proves_nothing(server: Server, fetch: Callable[..., Path]) -> None:
    serve(server, FINE)
    fetch()
    serve(server, answer(403))
    with pytest.raises(SourceDelayed):
        fetch()


#: What may be over in a moment.
PASSING = [
    answer(500), answer(502), answer(503), answer(504), answer(408), answer(425), answer(429), answer(204), answer(304),
    answer(302), answer(302, Location=f"/incoming/{NAME}"), answer(301, Location="http://[broken/"),
    answer(301, Location="ftp://example.org/a"), answer(301, Location="http://a..b/"),
    b"", b"HTTP/1.1 200", b"SSH-2.0-x\r\n",
    answer(200, BODY[:100], Content_Length=str(len(BODY))), answer(200, BODY[:100]),
    answer(200, BODY, Content_Length="5"),
]  # fmt: skip


@pytest.mark.parametrize("reply", PASSING)
def test_what_may_pass_is_tried_again_and_then_put_off(
    server: Server, fetch: Callable[..., Path], reply: bytes
) -> None:
    serve(server, reply)
    with pytest.raises(SourceDelayed, match=f"{NAME} cannot be downloaded"):
        fetch()
    tries = len(download.TRY_PAUSES_SECONDS) + 1
    assert len(server.asked) % tries == 0, "each round has as many tries; a redirect is asked for more than once"
    serve(server, FINE)
    assert fetch().read_bytes() == BODY


def test_a_server_that_says_when_is_asked_then(server: Server, fetch: Callable[..., Path]) -> None:
    for said, pause in (
        ("120", 120),
        ("1", download.FIRST_ROUND_PAUSE_SECONDS),
        ("99999", download.MAX_ROUND_PAUSE_SECONDS),
        ("soon", download.FIRST_ROUND_PAUSE_SECONDS),
    ):
        serve(server, answer(503, Retry_After=said))
        with pytest.raises(SourceDelayed) as away:
            fetch()
        assert away.value.pause == pause


def test_pauses_grow_and_have_an_end(server: Server, fetch: Callable[..., Path]) -> None:
    serve(server, answer(503))
    pauses = []
    for rounds in (0, 1, 2, 5, 6, 7, 999):
        with pytest.raises(SourceDelayed) as away:
            fetch(rounds=rounds)
        pauses.append(away.value.pause)
    assert pauses == [10, 20, 40, 320, 600, 600, 600]
    with pytest.raises(SourceUnavailable, match="HTTP 503, 1001 times"):
        fetch(rounds=download.MAX_ROUNDS)


def test_one_bad_file_of_a_sound_server_is_given_up_earlier(server: Server, fetch: Callable[..., Path]) -> None:
    serve(server, FINE, "other-1-1.src.rpm")
    fetch("other-1-1.src.rpm")
    serve(server, answer(500))
    with pytest.raises(SourceDelayed):
        fetch(rounds=download.MAX_ROUNDS_SERVER_WELL - 1)
    with pytest.raises(SourceUnavailable, match="HTTP 500, while other files can$"):
        fetch(rounds=download.MAX_ROUNDS_SERVER_WELL)


def test_nobody_listening_is_put_off(tmp_path: Path) -> None:
    with pytest.raises(SourceDelayed, match="refused"):
        Downloader(f"http://127.0.0.1:{free_port()}/").fetch(NAME, "", tmp_path, PATIENT)


def test_another_file_than_was_submitted_is_final(server: Server, fetch: Callable[..., Path]) -> None:
    serve(server, FINE)
    with pytest.raises(SourceUnavailable, match="is not the file that was submitted"):
        fetch(wanted="0" * 64)


def test_a_round_is_short(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    serve(server, answer(503))
    monkeypatch.setattr(download, "ROUND_SECONDS", 2.5)
    pauses: list[float] = []
    began = time.monotonic()
    monkeypatch.setattr(time, "monotonic", lambda: began + sum(pauses))
    with pytest.raises(SourceDelayed):
        Downloader(server.url).fetch(NAME, "", tmp_path, CancelToken(sleep=pauses.append))
    assert sum(pauses) == 1, "after a second try at 1 s, 2 s more would be too long"


def test_a_download_that_trickles_is_given_up(
    server: Server, fetch: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    serve(server, FINE)
    monkeypatch.setattr(download, "RATE_GRACE_SECONDS", -1e6)
    with pytest.raises(SourceDelayed, match="slower than 1024 bytes a second"):
        fetch()


def test_a_disk_that_is_full_is_this_hosts_fault(server: Server) -> None:
    serve(server, FINE, "full")
    with pytest.raises(DownloadNotWritable, match="No space left on device"):
        Downloader(server.url).fetch("full", "", Path("/dev"), PATIENT)


def test_a_redirect_is_followed(server: Server, fetch: Callable[..., Path]) -> None:
    serve(server, answer(302, Location="/else where/é"))
    server.answers["/else%20where/%C3%A9"] = FINE
    assert fetch().read_bytes() == BODY

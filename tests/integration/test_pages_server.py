# SPDX-License-Identifier: Apache-2.0
"""The pages' server block on a real nginx; the store is on another host, behind both stunnels, as on a real farm."""

from __future__ import annotations

import contextlib
import gzip
import http.client
import http.server
import os
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, ClassVar
from urllib.parse import urlsplit

import pytest

from tests import webserver
from tests.conftest import free_port
from tests.nginx import read_status, run_nginx
from tests.pages_hosts import run_two_hosts
from tests.waiting import until

LEG = "repo/c9s.x86_64/hello/20261129000000/1-1.el9.x86_64"
HOSTILE = b"<html><script>alert(1)</script></html>"
LOG = b"".join(b"line %d\n" % number for number in range(10_000))

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="network namespaces need root")


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """bstore's files."""
    root = tmp_path_factory.mktemp("bstore")
    for path, content in {
        f"bstore/{LEG}/build.log": LOG,
        f"bstore/{LEG}/evil.html": HOSTILE,
        f"bstore/{LEG}/evil.svg": HOSTILE,
        f"bstore/{LEG}/root.log.gz": gzip.compress(LOG),
        f"bstore/{LEG}/build.json": b"{}",
        f"bstore/{LEG}/mock.cfg": b"password = 'hunter2'",
        f"bstore/{LEG}/a+b%41~ü.rpm": b"\xed\xab\xee\xdb",
        f"bstore/{LEG.rpartition('/')[0]}/indexed/index.html": HOSTILE,
        "bstore/repo/c9s.x86_64/repodata/repomd.xml": b"<repomd/>",
        "bstore/repo/c9s.x86_64/repodata/1-primary.xml.gz": b"x",
        "bstore/scratch/c9s.x86_64/build.log": LOG,
        "bstore/live/1.x86_64.1/build.log": LOG,
        "bstore/live/1.x86_64.1/mock.cfg": b"password",
        "bstore/attempts/1.x86_64.1/build.log": LOG,
        "bstore/spool/1/build.log": b"secret",
        "bstore/index/1.x86_64/build.json": b"secret",
        "bstore/state/x": b"secret",
        "public-url": b"http://bstore/",
    }.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(content)
    return root


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The controller's files."""
    root = tmp_path_factory.mktemp("controller")
    for path, content in {
        "pages/index.html": b"<!doctype html><title>farm</title>" + b" " * 2000,
        "pages/index.json": b"{}" + b" " * 100,
        "pages/builds/12/1234.html": b"<!doctype html>",
        "pages/static/pages.js": b"1" * 100,
        "pages/static/pages.css": b"p {}" * 10,
        "pages/badges/c9s/hello.svg": b"<svg xmlns='http://www.w3.org/2000/svg'/>",
        "pages/feeds/c9s.atom": b"<feed/>" * 10,
        "pages/.index.html.tmp": b"half a page",
        "incoming/hello-1-1.src.rpm": b"source",
    }.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(content)
    return root


@pytest.fixture(scope="module")
def server(store: Path, pages: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of the controller's nginx; the store is on another host."""
    with run_two_hosts(store, pages, tmp_path_factory.mktemp("hosts")) as url:
        until(lambda: read_status(f"{url}/bstore/{LEG}/build.log") == 200, 20, "the store answers")
        yield url


def ask(
    url: str, path: str, method: str = "GET", content: bytes = b"", **headers: str
) -> tuple[http.client.HTTPResponse, bytes]:
    """Ask for a path exactly as it is written."""
    connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=10)
    with contextlib.closing(connection):
        connection.putrequest(method, path, skip_accept_encoding=True)
        for name, value in headers.items():
            connection.putheader(name.replace("_", "-"), value)
        connection.endheaders(content)
        answer = connection.getresponse()
        return answer, answer.read()


# --- the pages


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("/", "text/html; charset=utf-8"),
        ("/builds/12/1234.html", "text/html; charset=utf-8"),
        ("/index.json", "application/json; charset=utf-8"),
        ("/static/pages.js", "text/javascript; charset=utf-8"),
        ("/static/pages.css", "text/css; charset=utf-8"),
        ("/badges/c9s/hello.svg", "image/svg+xml; charset=utf-8"),
        ("/feeds/c9s.atom", "application/atom+xml; charset=utf-8"),
    ],
)
def test_a_page_may_load_nothing_from_elsewhere(server: str, path: str, kind: str) -> None:
    answer, _ = ask(server, path)
    policy = answer.headers["Content-Security-Policy"]
    assert (answer.status, answer.headers["Content-Type"]) == (200, kind)
    assert policy.startswith("default-src 'none'; script-src 'self'; style-src 'self';")
    assert "unsafe" not in policy
    assert (answer.headers["X-Content-Type-Options"], answer.headers["Cache-Control"]) == ("nosniff", "no-cache")


def test_a_page_that_has_not_changed_is_not_sent_again_and_a_changed_one_is_compressed(server: str) -> None:
    answer, _ = ask(server, "/")
    assert ask(server, "/", If_None_Match=answer.headers["ETag"])[0].status == 304
    for path in ("/index.json", "/static/pages.js", "/static/pages.css", "/badges/c9s/hello.svg", "/feeds/c9s.atom"):
        assert ask(server, path, Accept_Encoding="gzip")[0].headers["Content-Encoding"] == "gzip", path
    compressed, body = ask(server, "/", Accept_Encoding="gzip")
    assert (compressed.headers["Content-Encoding"], compressed.headers["Vary"]) == ("gzip", "Accept-Encoding")
    assert len(body) < 200
    assert gzip.decompress(body).startswith(b"<!doctype html>")


@pytest.mark.parametrize(
    "path",
    ["/.index.html.tmp", "/reimzul-incoming/hello-1-1.src.rpm", "/incoming/hello-1-1.src.rpm",
     "/../incoming/hello-1-1.src.rpm", "/builds/%2e%2e/%2e%2e/incoming/hello-1-1.src.rpm", "/builds/", "/bstore/"],
)  # fmt: skip
def test_nothing_but_pages_is_served(server: str, path: str) -> None:
    answer, body = ask(server, path)
    assert answer.status in (400, 403, 404)
    assert b"source" not in body
    assert b"half" not in body


@pytest.mark.parametrize("path", ["/index.html", f"/bstore/{LEG}/build.log"])
@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS", "PROPFIND"])
def test_nothing_can_be_changed(server: str, method: str, path: str) -> None:
    answer, _ = ask(server, path, method)
    assert answer.status == 405
    assert answer.headers["X-Content-Type-Options"] == "nosniff"


# --- the store behind them


@pytest.mark.parametrize("folder", [LEG, "scratch/c9s.x86_64", "live/1.x86_64.1", "attempts/1.x86_64.1"])
def test_logs_can_be_read_whole_and_in_parts(server: str, folder: str) -> None:
    path = f"/bstore/{folder}/build.log"
    answer, body = ask(server, path)
    assert (answer.status, body) == (200, LOG)
    assert ask(server, path, "HEAD")[0].headers["Content-Length"] == str(len(LOG))
    part, body = ask(server, path, Range=f"bytes={len(LOG) - 5}-")
    assert (part.status, body) == (206, LOG[-5:])
    assert part.headers["Content-Range"] == f"bytes {len(LOG) - 5}-{len(LOG) - 1}/{len(LOG)}"
    assert ask(server, path, Range=f"bytes={len(LOG)}-")[0].status == 416
    assert ask(server, path, If_None_Match=answer.headers["ETag"])[0].status == 304
    assert ask(server, path, If_Modified_Since=answer.headers["Last-Modified"])[0].status == 304
    changed, body = ask(server, path, Range="bytes=0-3", If_Range='"another"')
    assert (changed.status, body) == (200, LOG), "the log is another than the browser has a part of"


def test_a_log_that_grows_is_read_from_where_the_last_answer_ended(server: str, store: Path) -> None:
    log = store / "bstore/live/1.x86_64.1/growing.log"
    log.write_bytes(b"one\n")
    assert ask(server, f"/bstore/live/1.x86_64.1/{log.name}", Range="bytes=0-")[1] == b"one\n"
    with log.open("ab") as grown:
        grown.write(b"two\n")
    answer, body = ask(server, f"/bstore/live/1.x86_64.1/{log.name}", Range="bytes=4-")
    assert (answer.status, body) == (206, b"two\n")
    assert answer.headers["Cache-Control"] == "no-cache"


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        (f"{LEG}/build.log", "text/plain; charset=utf-8"),
        (f"{LEG}/evil.html", "text/plain; charset=utf-8"),
        (f"{LEG}/evil.svg", "text/plain; charset=utf-8"),
        (f"{LEG}/build.json", "text/plain; charset=utf-8"),
        (f"{LEG}/root.log.gz", "text/plain; charset=utf-8"),
        (f"{LEG.rpartition('/')[0]}/indexed/", "text/plain; charset=utf-8"),
        (f"{LEG}/", "text/html; charset=utf-8"),
        (f"{LEG}/a+b%2541~%C3%BC.rpm", "application/x-rpm"),
        ("repo/c9s.x86_64/repodata/repomd.xml", "text/xml"),
        ("repo/c9s.x86_64/repodata/1-primary.xml.gz", "application/octet-stream"),
    ],
)
def test_a_browser_runs_nothing_that_a_builder_wrote(server: str, path: str, kind: str) -> None:
    answer, _ = ask(server, f"/bstore/{path}")
    shown = {name: answer.headers.get_all(name) for name in ("Content-Type", "Content-Security-Policy")}
    assert answer.status == 200
    assert shown == {"Content-Type": [kind], "Content-Security-Policy": ["sandbox; default-src 'none'"]}
    assert answer.headers.get_all("X-Content-Type-Options") == ["nosniff"]


@pytest.mark.parametrize(
    "path",
    [
        "spool/1/build.log", "index/1.x86_64/build.json", "state/x", "public-url", "tosign/", "",
        "repo/../spool/1/build.log", "repo/%2e%2e/spool/1/build.log", "repo/..%2fspool/1/build.log",
        "repo/..%2f..%2f..%2fspool/1/build.log", "/spool/1/build.log", "repo", "repository/x",
        f"{LEG}/mock.cfg", f"{LEG}/mock%2ecfg", f"{LEG}//mock.cfg", "live/1.x86_64.1/mock.cfg",
    ],
)  # fmt: skip
def test_the_rest_of_the_store_is_not_served(server: str, path: str) -> None:
    answer, body = ask(server, f"/bstore/{path}")
    assert answer.status in (400, 404)
    assert b"secret" not in body
    assert b"hunter2" not in body


def test_a_folder_without_its_slash_leads_to_the_folder_on_this_server(server: str) -> None:
    answer, _ = ask(server, f"/bstore/{LEG}")
    assert answer.status == 301
    location = urlsplit(answer.headers["Location"])
    assert (location.netloc, location.path) == (urlsplit(server).netloc, f"/bstore/{LEG}/")


def test_without_the_store_the_pages_are_there(pages: Path) -> None:
    with run_nginx("nginx-pages.conf", pages, {"127.0.0.1:11081": f"127.0.0.1:{free_port()}"}) as url:
        answer, _ = ask(url, f"/bstore/{LEG}/build.log")
        assert (answer.status, answer.headers.get_all("Content-Type")) == (502, ["text/html"])
        assert ask(url, "/")[0].status == 200


# --- what passes between the two


class CrowdedServer(http.server.ThreadingHTTPServer):
    """One at which a hundred may knock at once; others make the kernel drop all but five for a second or more."""

    request_queue_size = 128


class Talker(http.server.BaseHTTPRequestHandler):
    """A store that a stranger has: it answers what a browser should not get."""

    asked: ClassVar[list[dict[str, str]]] = []

    def do_GET(self) -> None:
        self.asked.append({name.lower(): value for name, value in self.headers.items()})
        self.send_response(200)
        for name, value in {
            "Content-Type": "text/html", "Content-Security-Policy": "script-src *", "X-Content-Type-Options": "none",
            "Cache-Control": "max-age=99", "Set-Cookie": "a=b", "X-Accel-Redirect": "/index.html",
            "X-Accel-Expires": "99", "ETag": '"1"', "Content-Length": str(len(HOSTILE)),
        }.items():  # fmt: skip
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(HOSTILE)

    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture
def stranger(pages: Path) -> Iterator[str]:
    """The URL of the controller's nginx before such a store."""
    store = CrowdedServer(("127.0.0.1", 0), Talker)
    webserver.start_serving(store)
    Talker.asked.clear()
    with run_nginx("nginx-pages.conf", pages, {"127.0.0.1:11081": f"127.0.0.1:{store.server_port}"}) as url:
        yield url
    webserver.close(store)


def test_nothing_of_a_request_reaches_the_store_but_path_and_range(stranger: str) -> None:
    headers = {"Cookie": "session", "Authorization": "Basic x", "X_Forwarded_For": "1", "Content_Length": "3"}
    ask(stranger, f"/bstore/{LEG}/build.log", content=b"abc", Range="bytes=1-", If_Range='"1"', **headers)
    (asked,) = Talker.asked
    assert (asked.pop("range"), asked.pop("if-range")) == ("bytes=1-", '"1"')
    assert asked.keys() == {"host", "connection"}


def test_nothing_of_an_answer_is_believed(stranger: str) -> None:
    answer, body = ask(stranger, f"/bstore/{LEG}/")
    assert (answer.status, body) == (200, HOSTILE), "its own redirection is not followed"
    expected = {
        "Content-Type": ["text/plain; charset=utf-8"], "Content-Security-Policy": ["sandbox; default-src 'none'"],
        "X-Content-Type-Options": ["nosniff"], "Cache-Control": ["no-cache"], "Set-Cookie": None,
    }  # fmt: skip
    assert {name: answer.headers.get_all(name) for name in expected} == expected


def test_a_method_that_changes_does_not_reach_the_store(stranger: str) -> None:
    assert ask(stranger, f"/bstore/{LEG}/build.log", "POST")[0].status == 405
    assert Talker.asked == []


def test_a_crowd_takes_no_more_than_a_hundred_connections_to_the_store(
    stranger: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    is_over = threading.Event()
    monkeypatch.setattr(Talker, "end_headers", lambda _: is_over.wait(60))
    with ThreadPoolExecutor(120) as crowd:
        path = f"/bstore/{LEG}/build.log"
        asking = [crowd.submit(read_status, f"{stranger}{path}") for _ in range(120)]
        until(lambda: sum(each.done() for each in asking) == 20, 30, "the others are refused")
        assert {each.result() for each in asking if each.done()} == {503}
        assert read_status(f"{stranger}/index.html") == 200
        is_over.set()
    assert len(Talker.asked) == 100

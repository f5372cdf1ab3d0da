# SPDX-License-Identifier: Apache-2.0
"""The shipped configurations of nginx, on a real nginx: what they serve, as what, and what they do not serve."""

from __future__ import annotations

import contextlib
import subprocess
import urllib.error
import urllib.request
from collections.abc import Iterator
from email.message import Message
from pathlib import Path

import pytest

from devfarm.processes import find_program
from reimzul.core.links import PublicUrl
from reimzul.core.settings import StoreSettings
from tests.conftest import free_port
from tests.waiting import until

CONF = Path(__file__).parents[2] / "conf"
_HOSTILE = "<html xmlns='http://www.w3.org/1999/xhtml'><script>alert(1)</script></html>"


@contextlib.contextmanager
def nginx(name: str, folder: Path) -> Iterator[str]:
    """Run nginx with a shipped configuration whose folders lie in `folder`; its URL."""
    port = free_port()
    server = (CONF / name).read_text().replace("/srv/reimzul/", f"{folder}/")
    server = server.replace("/etc/reimzul/", f"{folder}/")
    server = server.replace("listen 127.0.0.1:80;", f"listen 127.0.0.1:{port};").replace(
        "listen 80;", f"listen {port};"
    )
    (folder / "nginx.conf").write_text(
        f"daemon off; pid {folder}/pid; error_log stderr; user root; events {{}}\n"
        f"http {{ access_log off; client_body_temp_path {folder}/t1; proxy_temp_path {folder}/t2; "
        f"fastcgi_temp_path {folder}/t3; uwsgi_temp_path {folder}/t4; scgi_temp_path {folder}/t5;\n{server}\n}}\n"
    )
    argv = [find_program("nginx"), "-e", "stderr", "-p", str(folder), "-c", str(folder / "nginx.conf")]
    with subprocess.Popen(argv) as process:
        try:
            url = f"http://127.0.0.1:{port}"
            until(lambda: _status(f"{url}/") != 0, 20, "nginx answers")
            yield url
        finally:
            process.terminate()


def _status(url: str) -> int:
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code
    except OSError:
        return 0


def headers(url: str) -> Message:
    with urllib.request.urlopen(url, timeout=5) as answer:
        return answer.headers  # type: ignore[no-any-return]


@pytest.mark.parametrize("name", ["build.html", "build.xml", "build.svg", "build.log", "build"])
def test_a_growing_log_is_plain_text_whatever_its_name(tmp_path: Path, name: str) -> None:
    log = tmp_path / "bstore/live/x" / name
    log.parent.mkdir(parents=True)
    log.write_text(_HOSTILE)
    with nginx("nginx-bstore.conf", tmp_path) as url:
        found = headers(f"{url}/bstore/live/x/{name}")
    assert found["Content-Type"] == "text/plain; charset=utf-8"
    assert found["X-Content-Type-Options"] == "nosniff"


@pytest.mark.parametrize(
    ("conf", "path"),
    [("nginx-bstore.conf", "/bstore/repo/"), ("nginx-bstore.conf", "/bstore/scratch/"),
     ("nginx-bstore.conf", "/bstore/attempts/"), ("nginx-public.conf", "/repo/")],
)  # fmt: skip
def test_a_browser_runs_nothing_that_a_builder_wrote(tmp_path: Path, conf: str, path: str) -> None:
    folder = tmp_path / "bstore" / Path(path).name
    folder.mkdir(parents=True)
    (folder / "evil.xml").write_text(_HOSTILE)
    with nginx(conf, tmp_path) as url:
        found = headers(f"{url}{path}evil.xml")
    assert found["Content-Security-Policy"].startswith("sandbox;")
    assert found["X-Content-Type-Options"] == "nosniff"


def test_no_link_in_incoming_is_followed(tmp_path: Path) -> None:
    incoming = tmp_path / "incoming"
    incoming.mkdir()
    (tmp_path / "secret").write_text("key")
    (incoming / "link-1-1.src.rpm").symlink_to(tmp_path / "secret")
    (incoming / "here").symlink_to(tmp_path)
    (incoming / "own-1-1.src.rpm").write_text("rpm")
    with nginx("nginx-controller.conf", tmp_path) as url:
        assert _status(f"{url}/reimzul-incoming/own-1-1.src.rpm") == 200
        assert _status(f"{url}/reimzul-incoming/link-1-1.src.rpm") == 403
        assert _status(f"{url}/reimzul-incoming/here/secret") in (403, 404)


@pytest.mark.parametrize("folder", ["spool", "tosign", "state", "rejected"])
def test_what_is_private_is_not_served(tmp_path: Path, folder: str) -> None:
    (tmp_path / "bstore" / folder).mkdir(parents=True)
    (tmp_path / "bstore" / folder / "file").write_text("x")
    with nginx("nginx-bstore.conf", tmp_path) as url:
        assert _status(f"{url}/bstore/{folder}/file") == 404


def test_bstore_answers_what_people_reach_it_by(tmp_path: Path) -> None:
    with nginx("nginx-bstore.conf", tmp_path) as url:
        store = StoreSettings(base_url=f"{url}/bstore/repo/")
        assert PublicUrl(store).get() == "", "it has no public port"
        (tmp_path / "public-url").write_text("http://bstore.example.org:8080/\n")
        assert PublicUrl(store).get() == "http://bstore.example.org:8080/"

# SPDX-License-Identifier: Apache-2.0
"""The shipped configurations of nginx, on a real nginx: what they serve, as what, and what they do not serve."""

from __future__ import annotations

import urllib.request
from email.message import Message
from pathlib import Path

import pytest

from reimzul.core.links import PublicUrl
from reimzul.core.settings import StoreSettings
from tests.nginx import read_status, run_nginx

_HOSTILE = "<html xmlns='http://www.w3.org/1999/xhtml'><script>alert(1)</script></html>"


def headers(url: str) -> Message:
    with urllib.request.urlopen(url, timeout=5) as answer:
        return answer.headers  # type: ignore[no-any-return]


@pytest.mark.parametrize("name", ["build.html", "build.xml", "build.svg", "build.log", "build"])
def test_a_growing_log_is_plain_text_whatever_its_name(tmp_path: Path, name: str) -> None:
    log = tmp_path / "bstore/live/x" / name
    log.parent.mkdir(parents=True)
    log.write_text(_HOSTILE)
    with run_nginx("nginx-bstore.conf", tmp_path) as url:
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
    with run_nginx(conf, tmp_path) as url:
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
    with run_nginx("nginx-controller.conf", tmp_path) as url:
        assert read_status(f"{url}/reimzul-incoming/own-1-1.src.rpm") == 200
        assert read_status(f"{url}/reimzul-incoming/link-1-1.src.rpm") == 403
        assert read_status(f"{url}/reimzul-incoming/here/secret") in (403, 404)


@pytest.mark.parametrize("folder", ["spool", "tosign", "state", "rejected"])
def test_what_is_private_is_not_served(tmp_path: Path, folder: str) -> None:
    (tmp_path / "bstore" / folder).mkdir(parents=True)
    (tmp_path / "bstore" / folder / "file").write_text("x")
    with run_nginx("nginx-bstore.conf", tmp_path) as url:
        assert read_status(f"{url}/bstore/{folder}/file") == 404


def test_bstore_answers_what_people_reach_it_by(tmp_path: Path) -> None:
    with run_nginx("nginx-bstore.conf", tmp_path) as url:
        store = StoreSettings(base_url=f"{url}/bstore/repo/")
        assert PublicUrl(store).get() == "", "it has no public port"
        (tmp_path / "public-url").write_text("http://bstore.example.org:8080/\n")
        assert PublicUrl(store).get() == "http://bstore.example.org:8080/"

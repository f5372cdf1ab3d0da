# SPDX-License-Identifier: Apache-2.0
"""What doctor finds of the farm's pages, on a web server and a store that are well or broken."""

from __future__ import annotations

import http.server
import json
import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from reimzul.admin.doctor import FAIL, OK, WARN, Finding, host, links
from tests import webserver
from tests.conftest import free_port
from tests.integration.test_doctor import Ini, look, patient

NOTHING = {"made": 1.0, "since": None, "problem": None}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """What the pages' web server serves: pages, and a store with one target."""
    (tmp_path / "bstore/repo/c9s.x86_64/repodata").mkdir(parents=True)
    (tmp_path / "bstore/repo/c9s.x86_64/repodata/repomd.xml").write_text("<repomd/>")
    (tmp_path / "status.json").write_text(json.dumps(NOTHING))
    return tmp_path


@pytest.fixture
def server(folder: Path) -> Iterator[http.server.ThreadingHTTPServer]:
    serving = webserver.serve(folder)
    yield serving
    webserver.close(serving)


def root_of(server: http.server.ThreadingHTTPServer) -> str:
    return f"http://127.0.0.1:{server.server_port}/"


def examine(folder: Path, url: str, store: str = "") -> dict[str, Finding]:
    """What doctor finds on a controller whose pages have this URL."""
    settings: Ini = {"pages": {"url": url, "folder": folder}, "bstore": {"base_url": store or f"{url}bstore/repo/"}}
    return look(links.pages_checks, patient(folder, settings, "controller"))


def test_pages_that_are_served_and_fresh_are_well(folder: Path, server: http.server.ThreadingHTTPServer) -> None:
    found = examine(folder, root_of(server))
    assert {name: each.level for name, each in found.items()} == {"pages": OK, "pages.store": OK}
    assert found["pages"].message == f"{root_of(server)} serves the pages, and they are fresh"


def test_a_farm_without_pages_has_no_such_check(tmp_path: Path) -> None:
    whom = patient(tmp_path, {"pages": {"folder": tmp_path}}, "controller")
    assert look(links.pages_checks, whom) == {}
    assert "folder.pages" not in {check.name for check in host.folder_checks(whom)}


def test_pages_that_nobody_makes_any_more_are_old(folder: Path, server: http.server.ThreadingHTTPServer) -> None:
    then = time.time() - links.MAX_PAGES_AGE_SECONDS - 1000
    os.utime(folder / "status.json", (then, then))
    found = examine(folder, root_of(server))["pages"]
    assert (found.level, "18 min" in found.message) == (FAIL, True), found
    assert found.hint.startswith("systemctl restart reimzul-pages")
    (folder / "status.json").unlink()
    found = examine(folder, root_of(server))["pages"]
    assert (found.level, "answers 404 for status.json" in found.message) == (FAIL, True)
    assert "reimzul setup controller --pages-port" in found.hint


def test_what_the_pages_cannot_show_is_a_warning(folder: Path, server: http.server.ThreadingHTTPServer) -> None:
    (folder / "status.json").write_text(json.dumps({**NOTHING, "problem": "since noon: the history is locked"}))
    found = examine(folder, root_of(server))["pages"]
    assert (found.level, "since noon: the history is locked" in found.message) == (WARN, True)
    (folder / "status.json").write_text("<html>")
    assert examine(folder, root_of(server))["pages"].level == WARN


def test_a_web_server_that_is_away_is_named(folder: Path) -> None:
    found = examine(folder, f"http://127.0.0.1:{free_port()}/")
    assert (found["pages"].level, "does not answer: connection refused" in found["pages"].message) == (FAIL, True)
    assert found["pages"].hint.startswith("systemctl restart nginx")
    assert found["pages.store"].level == WARN, "it is skipped"


def test_links_have_to_lead_to_the_pages(
    folder: Path, server: http.server.ThreadingHTTPServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(links, "find_pages_root", lambda _: root_of(server))
    assert (
        examine(folder, f"http://localhost:{server.server_port}/", f"{root_of(server)}bstore/repo/")["pages"].level
        == OK
    )
    nowhere = examine(folder, f"http://127.0.0.1:{free_port()}/", f"{root_of(server)}bstore/repo/")["pages"]
    assert (nowhere.level, "where nothing answers: connection refused" in nowhere.message) == (FAIL, True)
    unknown = examine(folder, "http://farm.invalid/", f"{root_of(server)}bstore/repo/")["pages"]
    assert (unknown.level, "cannot look up" in unknown.message, "DNS" in unknown.hint) == (FAIL, True, True)
    other = examine(folder, f"{root_of(server)}elsewhere/", f"{root_of(server)}bstore/repo/")["pages"]
    assert (other.level, "answers 404 for a page" in other.message) == (FAIL, True)


def test_a_store_that_cannot_be_read_through_the_pages_is_named(
    folder: Path, server: http.server.ThreadingHTTPServer
) -> None:
    root = root_of(server)
    (folder / "other/repo/c9s.x86_64/repodata").mkdir(parents=True)
    (folder / "other/repo/c9s.x86_64/repodata/repomd.xml").write_text("<other/>")
    found = examine(folder, root, f"{root}other/repo/")["pages.store"]
    assert (found.level, "reads another store: c9s.x86_64/repodata/repomd.xml differs" in found.message) == (FAIL, True)
    (folder / "bstore/spool").mkdir()
    found = examine(folder, root)["pages.store"]
    assert (found.level, found.message) == (FAIL, "everybody can read spool/ through the pages' web server")
    shutil.rmtree(folder / "bstore")
    (folder / "bstore").mkdir()
    (folder / "bstore/repo.status").write_text("502")
    found = examine(folder, root, f"{root}other/repo/")["pages.store"]
    assert (found.level, "for repo/ of the store: logs cannot be read" in found.message) == (FAIL, True)

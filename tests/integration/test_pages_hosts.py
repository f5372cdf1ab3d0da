# SPDX-License-Identifier: Apache-2.0
"""Pages that reimzul-pages made, from the shipped configurations, in a real browser; the store is on another host."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from reimzul.history import open_history
from tests.browser import open_browser
from tests.faults.room import Cable
from tests.mongo import mongo_or_say_so
from tests.nginx import read_status
from tests.pages_hosts import BSTORE, run_two_hosts, serve_pages
from tests.pages_stand import ERROR_LINE, PagesStand, build_events
from tests.waiting import until

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="network namespaces need root")
_RUNNING, _FAILED = 1, 2


@pytest.fixture
def stand(tmp_path: Path) -> Iterator[PagesStand]:
    """A build that runs, and one that failed; both have logs."""
    stand = PagesStand(tmp_path)
    stand.record(*build_events(_RUNNING, time.time() + 200, "Building"))
    stand.record(*build_events(_FAILED, time.time() - 5000, "Failed"))
    (stand.log_folder("live", _RUNNING) / "build.log").write_text("the first line\n")
    (stand.log_folder("attempts", _FAILED) / "build.log").write_text(f"cc source7.c\n{ERROR_LINE}\n")
    yield stand
    stand.close()


def test_a_browser_reads_pages_and_growing_logs_from_one_server(stand: PagesStand, tmp_path: Path) -> None:
    hosts = tmp_path / "hosts"
    hosts.mkdir()
    with run_two_hosts(stand.folder, stand.folder, hosts) as url, open_browser() as browser, browser() as tab:
        until(lambda: read_status(f"{url}/bstore/repo/") in (200, 404), 20, "the store answers")
        stand.render()
        tab.open(f"{url}/{stand.page(_FAILED).relative_to(stand.pages)}")
        tab.evaluate("document.querySelector('a[data-log=\"build.log\"]').click()")
        tab.wait_for(f"document.querySelector('#log pre').textContent.includes({ERROR_LINE!r})")
        assert tab.problems == []
        tab.open(f"{url}/{stand.page(_RUNNING).relative_to(stand.pages)}")
        tab.wait_for("document.querySelector('#log pre').textContent.includes('the first line')")
        with (stand.log_folder("live", _RUNNING) / "build.log").open("a") as log:
            log.write("a line that was added\n")
        tab.wait_for("document.querySelector('#log pre').textContent.endsWith('a line that was added\\n')")
        assert [each for each in tab.requests if not each.startswith(f"{url}/")] == []
        assert "policy" not in "".join(tab.problems).lower()


def test_a_host_that_has_nothing_but_the_history_makes_pages(stand: PagesStand, tmp_path: Path) -> None:
    """The history is in MongoDB on another host; so are the store, the workers' heartbeats and incoming/."""
    hosts = tmp_path / "hosts"
    hosts.mkdir()
    with contextlib.ExitStack() as stack:
        cable = stack.enter_context(contextlib.closing(Cable(hosts)))
        url, store = stack.enter_context(serve_pages(cable, stand.folder, stand.folder, hosts))
        mongo = mongo_or_say_so(BSTORE, cable.prefix)
        mongo.start()
        stack.callback(mongo.stop)
        history = stack.enter_context(contextlib.closing(open_history(mongo.url)))
        for number in (3, 4):
            stand.add_files(number, "time-1.3-1.el9.x86_64.rpm")
        history.record(build_events(3, time.time() - 60, "Published"))
        text = stand.ini.read_text().replace(stand.history_url, mongo.url)
        text = text.replace(f"{stand.url}bstore", f"{store}bstore").replace(stand.url, f"{url}/")
        stand.ini.write_text(text)
        program = Path(sys.executable).parent / "reimzul-pages"
        daemon = stack.enter_context(subprocess.Popen([program, "--config", stand.ini]))
        stack.callback(daemon.terminate)
        until(lambda: _state(stand, 3) == "published", 40, "a build is shown")
        status = stand.pages / "status.json"
        until(lambda: (stand.pages / "batches.html").exists() and status.exists(), 40, "all pages are made")
        page = stand.page(3).read_text()
        assert "time-1.3-1.el9.x86_64.rpm</a>" in page, "its files are read from the store"
        assert "There is no batch." in (stand.pages / "batches.html").read_text()
        assert "No builder has sent a heartbeat" in (stand.pages / "index.html").read_text()
        assert read_status(f"{url}/{stand.page(3).relative_to(stand.pages)}") == 200

        cable.pull(far=True)
        until(lambda: json.loads(status.read_text())["problem"], 60, "the outage is noticed")
        until(lambda: "cannot be read" in (stand.pages / "index.html").read_text(), 60, "the first page says so")
        assert stand.page(3).read_text() == page
        cable.plug()
        history.record(build_events(4, time.time(), "Published"))
        until(lambda: _state(stand, 4) == "published", 60, "what has happened since is shown")
        until(lambda: not json.loads(status.read_text())["problem"], 60, "the outage is over")


def _state(stand: PagesStand, number: int) -> str:
    page = stand.page(number).with_suffix(".json")
    return json.loads(page.read_text())["arches"][0]["state"] if page.exists() else ""

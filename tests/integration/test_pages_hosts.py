# SPDX-License-Identifier: Apache-2.0
"""Pages that reimzul-pages made, from the shipped configurations, in a real browser; the store is on another host."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.browser import open_browser
from tests.nginx import read_status
from tests.pages_hosts import run_two_hosts
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

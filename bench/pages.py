# SPDX-License-Identifier: Apache-2.0
"""What the farm's pages cost, and how fast they are shown: `python -m bench.pages`.

A history of many builds and batches, reimzul-pages as a process, events as the notifier records them, nginx and a
headless Chromium. The pages of old builds are taken as rendered, but for a sample: rendering all would take an hour.
With `--backlog` they are all due, as when the daemon is started for the first time.
"""

from __future__ import annotations

import contextlib
import http.client
import random
import shutil
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import click

from bench.report import TICKS, Figure, progress, tell, ticks
from reimzul.core.message import BuildEvent
from reimzul.pages.follower import HistoryFollower
from reimzul.plan.progress import MemberState
from tests.batches import ScriptedBatch, member
from tests.browser import open_browser
from tests.pages_batches import add_batch
from tests.pages_stand import PagesStand, build_events
from tests.waiting import until

#: Packages, targets and builders that the builds are spread over.
_PACKAGES, _TARGETS, _BUILDERS = 5_000, 8, 50
#: Old builds whose pages are rendered for the size on disk.
_SAMPLE = 1_000
#: Events that the notifier records at once while they come fast.
_BATCH = 10
#: Batches that are over, their members, and the members of the one that goes on while it is measured.
_BATCHES, _OVER_MEMBERS, _MEMBERS = 20, 200, 800
_RUNNING = "5f0c12ab"
#: Seconds that the last pages may take to be shown.
_PATIENCE_SECONDS = 300.0
#: The first number of the builds whose events come while it is measured.
_FIRST_LIVE = 1_000_000
_REQUESTS, _CLIENTS = 2_000, 4
#: Builds that are looked at for their end after each batch of events.
_LOOKS = 40
#: One in so many builds fails.
_FAILURES = 8


class PagesBench:
    def __init__(self, folder: Path, builds: int) -> None:
        self.stand = PagesStand(folder)
        self.builds = builds
        self._random = random.Random(1)
        self.batch = self._add_batches()
        self.process: subprocess.Popen[bytes] | None = None

    def events_of(self, number: int, ended: float) -> Sequence[BuildEvent]:
        name = f"package-{self._random.randrange(_PACKAGES):04}"
        target = f"target{number % _TARGETS}.x86_64"
        result = "Failed" if number % _FAILURES == 0 else "Published"
        error = f"file{number % 40}.c:{number % 900}:3: error: unknown type name 'type{number % 60}_t'"
        about = {"target": target, "builder_fqdn": f"builder{number % _BUILDERS}.example.org"}
        failed = {"error_line": error, "first_error": f"{error}\nmake: *** [all] Error 1"} if result == "Failed" else {}
        return build_events(number, ended, result, name, **about, **failed)

    def _add_batches(self) -> ScriptedBatch:
        """Submit batches; return the one that is not over."""
        for number in range(_BATCHES):
            members = [member(f"over-{each}") for each in range(_OVER_MEMBERS)]
            over = add_batch(self.stand, f"{number:08x}", *members, ago=86400.0 * (number + 1))
            over.build(*over.state.members)
            over.finish()
        members = [member(f"p-{each}", *([f"p-{(each - 1) // 4}"] if each else [])) for each in range(_MEMBERS)]
        return add_batch(self.stand, _RUNNING, *members)

    def fill(self) -> None:
        """Record old builds, over 60 days."""
        now, batch = time.time(), list[BuildEvent]()
        for number in range(self.builds):
            events = self.events_of(number, now - 7200 - 60 * 86400 * (1 - number / self.builds))
            batch += [each for each in events if each.status in ("Failed", "Success", "Published")]
            if len(batch) > 500 or number == self.builds - 1:
                self.stand.record(*batch)
                batch.clear()

    def follow_all(self) -> tuple[float, float]:
        """Take over the whole history; return the processor seconds, and those of rendering a sample's pages."""
        with self.stand.daemon() as daemon:
            index = daemon.sources.index
            began = time.process_time()
            follower = HistoryFollower(index)
            while not follower.follow(self.stand.history):
                pass
            followed = time.process_time() - began
            kept = index.select("SELECT name FROM pages WHERE kind = 'build' ORDER BY name LIMIT ?", _SAMPLE)
            self._take_as_rendered(kept[-1][0])
            began = time.process_time()
            while index.count_due():
                daemon.run_round()
            return followed, time.process_time() - began

    def make_all_due(self) -> None:
        """Have all pages rendered again, as after an update of the templates."""
        with sqlite3.connect(self.stand.pages / ".index/pages.sqlite") as index:
            index.execute("UPDATE facts SET value = '' WHERE name = 'layout'")

    def _take_as_rendered(self, last: str) -> None:
        with sqlite3.connect(self.stand.pages / ".index/pages.sqlite") as index:
            index.execute("UPDATE pages SET due = NULL, rendered = 1 WHERE kind = 'build' AND name > ?", [last])
            # and of the pages of packages and badges as many as a person may look at
            index.execute("UPDATE pages SET due = NULL, rendered = 1 WHERE kind IN ('badge', 'package feed')")
            index.execute("UPDATE pages SET due = NULL, rendered = 1 WHERE kind = 'package' AND name > 'package-0500'")
            index.execute("UPDATE pages SET due = 0 WHERE due IS NOT NULL")

    def start(self) -> None:
        program = Path(sys.executable).parent / "reimzul-pages"
        status = self.stand.pages / "status.json"
        status.unlink(missing_ok=True)
        self.process = subprocess.Popen([program, "--config", self.stand.ini], stderr=subprocess.DEVNULL)
        until(status.exists, 120, "reimzul-pages is at work")

    def processor_seconds(self) -> float:
        assert self.process
        return ticks(self.process.pid) / TICKS

    def run_load(self, rate: int, seconds: float) -> tuple[float, list[float], int]:
        """Record events at a rate; return the share of a core, how late pages were, and what is due at the end."""
        events, numbers = self._plan_load(int(rate * seconds))
        ended: dict[int, float] = {}
        before, began = self.processor_seconds(), time.monotonic()
        lates: list[float] = []
        for first in range(0, len(events), _BATCH):
            self.stand.record(*events[first : first + _BATCH])
            over = [number for at, number in numbers if first <= at < first + _BATCH]
            ended.update(dict.fromkeys(over, time.time()))
            self._go_on_with_batch()
            lates += self._take_shown(ended)
            time.sleep(max(0.0, began + (first + _BATCH) / rate - time.monotonic()))
        share = (self.processor_seconds() - before) / (time.monotonic() - began)
        due = self._count_due()
        deadline = time.monotonic() + _PATIENCE_SECONDS
        while ended and time.monotonic() < deadline:
            lates += self._take_shown(ended)
            time.sleep(0.5)
        return share, lates + [_PATIENCE_SECONDS] * len(ended), due

    def _count_due(self) -> int:
        with sqlite3.connect(f"file:{self.stand.pages}/.index/pages.sqlite?mode=ro", uri=True) as index:
            query = "SELECT count(*) FROM pages WHERE due IS NOT NULL AND due <= ?"
            return int(index.execute(query, [time.time()]).fetchone()[0])

    def _go_on_with_batch(self) -> None:
        """Let the next member of the batch be built."""
        key = next((key for key, each in self.batch.state.members.items() if each.state == MemberState.HELD), "")
        if key:
            self.batch.build(key)

    def _plan_load(self, count: int) -> tuple[list[BuildEvent], list[tuple[int, int]]]:
        """The events of builds side by side, and which of them is the last of which build."""
        events: list[BuildEvent] = []
        last: list[tuple[int, int]] = []
        number = _FIRST_LIVE
        while len(events) < count:
            for each in range(40):
                self.stand.add_files(number + each, *(f"file{n}.x86_64.rpm" for n in range(6)))
            together = [list(self.events_of(number + each, time.time())) for each in range(40)]
            for step in range(4):
                for each, own in enumerate(together):
                    if step < len(own):
                        if step == len(own) - 1:
                            last.append((len(events), number + each))
                        events.append(own[step])
            number += 40
        return events, last

    def _take_shown(self, ended: dict[int, float]) -> list[float]:
        """Return how late the pages were that show their build's end now, and drop them; a look at some a call."""
        lates = []
        for number, at in random.sample(list(ended.items()), min(len(ended), _LOOKS)):
            path = self.stand.page(number).with_suffix(".json")
            with contextlib.suppress(FileNotFoundError):
                text, written = path.read_text(), path.stat().st_mtime
                if '"state":"published"' in text or '"state":"failed"' in text:
                    lates.append(max(0.0, written - at))
                    del ended[number]
        return lates

    def stop(self) -> None:
        if self.process is not None:
            self.process.terminate()
            self.process.wait()
        self.stand.close()

    # --- what a visitor waits for

    def page_sizes(self) -> list[int]:
        return [path.stat().st_size for path in self.stand.pages.rglob("*.html")]

    def disk_of_builds(self) -> float:
        """Bytes of the pages of a build, in whole blocks."""
        files = [path for path in (self.stand.pages / "builds").rglob("*") if path.is_file()]
        return sum(path.stat().st_blocks * 512 for path in files) / (len(files) / 2)

    def request_rate(self) -> tuple[float, list[float]]:
        """Requests for the first page a second, by some clients at once, and the seconds until its first byte."""
        firsts: list[float] = []

        def ask() -> None:
            connection = http.client.HTTPConnection("127.0.0.1", self.stand.port)
            for _ in range(_REQUESTS // _CLIENTS):
                began = time.monotonic()
                connection.request("GET", "/index.html")
                answer = connection.getresponse()
                firsts.append(time.monotonic() - began)
                answer.read()
            connection.close()

        threads = [threading.Thread(target=ask) for _ in range(_CLIENTS)]
        began = time.monotonic()
        for each in threads:
            each.start()
        for each in threads:
            each.join()
        return _REQUESTS / (time.monotonic() - began), firsts

    def paint_times(self) -> dict[str, list[float]]:
        """Seconds until each kind of page is painted first."""
        failed = next(n for n in range(self.builds) if n % _FAILURES == 0 and self.stand.page(n).exists())
        paths = {
            "first page": "index.html", "failed build": str(self.stand.page(failed).relative_to(self.stand.pages)),
            "target": "targets/target1.x86_64.html", "package": "packages/package-0001.html", "causes": "causes.html",
            "stats": "stats.html", "search": "search.html",
        }  # fmt: skip
        found: dict[str, list[float]] = {}
        with open_browser() as browser, browser() as tab:
            for what, path in paths.items():
                for _ in range(5):
                    tab.open(self.stand.url + path)
                    paint = "performance.getEntriesByName('first-contentful-paint')[0]?.startTime"
                    found.setdefault(what, []).append(tab.wait_for(paint) / 1000)
        return found


@click.command()
@click.option("--builds", default=200_000, show_default=True, help="Builds that the history has.")
@click.option("--rate", default=100, show_default=True, help="Events a second.")
@click.option("--seconds", default=60.0, show_default=True, help="For how long.")
@click.option("--backlog", is_flag=True, help="All old pages are due while it is measured.")
def main(builds: int, rate: int, seconds: float, backlog: bool) -> None:
    """Measure processor time, sizes, and how fast pages are rendered, served and painted."""
    folder = Path(tempfile.mkdtemp(prefix=".bench-pages-", dir=".")).absolute()
    bench = PagesBench(folder, builds)
    try:
        tell("pages", measure(bench, rate, seconds, has_backlog=backlog))
    finally:
        bench.stop()
        shutil.rmtree(folder, ignore_errors=True)


def measure(bench: PagesBench, rate: int, seconds: float, *, has_backlog: bool) -> list[Figure]:
    progress("recording the builds")
    bench.stand.start_nginx_without_pages()
    bench.fill()
    progress("taking over the history")
    followed, rendered = bench.follow_all()
    index = (bench.stand.pages / ".index/pages.sqlite").stat().st_size
    if has_backlog:
        bench.make_all_due()
    progress(f"recording events, with {bench.batch.plan.batch} going on")
    bench.start()
    share, lates, due = bench.run_load(rate, seconds)
    progress("looking at the pages")
    requests, firsts = bench.request_rate()
    sizes = bench.page_sizes()
    per_thousand = 1000 / bench.builds
    rows = [
        Figure(what=f"taking over {bench.builds:,} builds", unit="s of a core", values=[followed]),
        Figure(what=f"rendering {_SAMPLE:,} of them, lists and all", unit="s of a core", values=[rendered]),
        Figure(what=f"{rate} events/s", unit="% of a core", values=[100 * share], goal="20"),
        Figure(what="  a build's end shown after", unit="s", values=lates),
        Figure(what="  pages due at the end", unit="pages", values=[due]),
        Figure(what="largest page", unit="kB", values=[max(sizes) / 1000], goal="100"),
        Figure(what="median page", unit="kB", values=[statistics.median(sizes) / 1000]),
        Figure(what="pages of 1,000 builds on disk", unit="MB", values=[bench.disk_of_builds() / 1000]),
        Figure(what="index of 1,000 builds", unit="MB", values=[index * per_thousand / 1e6]),
        Figure(what="first byte of the first page", unit="ms", values=[1000 * each for each in firsts]),
        Figure(what="the first page, by 4 clients", unit="requests/s", values=[requests]),
    ]
    paints = bench.paint_times()
    return rows + [Figure(what=f"painted: {what}", unit="s", values=all_, goal="0.3") for what, all_ in paints.items()]


if __name__ == "__main__":
    main()

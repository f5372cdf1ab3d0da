# SPDX-License-Identifier: Apache-2.0
"""A farm's history, its pages, a store, and the nginx that offers both from one origin."""

from __future__ import annotations

import contextlib
import json
import sqlite3
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from devfarm.processes import find_program
from reimzul.core.config import load_file
from reimzul.core.message import BuildEvent, CurrentBuild, WorkerHeartbeat
from reimzul.history import History, open_history
from reimzul.history.workers import WorkerRecord, WorkerStore
from reimzul.pages.daemon import PagesDaemon
from tests.conftest import free_port
from tests.events import ATTEMPT, build_id, event
from tests.ini import write_ini
from tests.waiting import until

#: What the farm's own web server sends with pages, and with files of the store.
PAGES_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; font-src 'self'; connect-src 'self';"
    " base-uri 'none'; form-action 'self'; frame-ancestors 'none'"
)
_SERVER = """
server {{
    listen 127.0.0.1:{port};
    root {pages};
    charset utf-8;
    types {{ text/html html; text/css css; text/javascript js; application/json json; application/atom+xml atom;
            image/svg+xml svg; }}
    add_header Content-Security-Policy "{policy}" always;
    add_header X-Content-Type-Options nosniff always;
    add_header Cache-Control no-cache always;
    location ~ /\\. {{ return 404; }}
    location ^~ /bstore/ {{
        alias {store}/;
        types {{ }}
        default_type text/plain;
        add_header Content-Security-Policy "sandbox; default-src 'none'" always;
        add_header X-Content-Type-Options nosniff always;
    }}
}}
"""
ERROR_LINE = "source7.c:12:3: error: expected ';' before '}' token"
FIRST_ERROR = f"source7.c: In function 'main':\n{ERROR_LINE}\n   12 |   }}\n      |   ^\nmake: *** [source7.o] Error 1"


def timestamp(moment: float) -> str:
    return time.strftime("%Y%m%d%H%M%S", time.gmtime(moment))


class PagesStand:
    """All of it in a folder; `render` makes the pages as the daemon does."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.pages, self.store = folder, folder / "pages", folder / "bstore"
        self.incoming = folder / "incoming"
        for each in (self.pages, self.store):
            each.mkdir()
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}/"
        self.history_url = f"sqlite:///{folder}/history.sqlite"
        self.history: History = open_history(self.history_url)
        self.ini = write_ini(
            folder / "reimzul.ini",
            {
                "pages": {"folder": self.pages, "url": self.url},
                "history": {"url": self.history_url},
                "notifier": {"presence": folder / "presence.sqlite", "ledger": folder / "ledger.sqlite"},
                "incoming": {"folder": self.incoming},
                "bstore": {"base_url": f"{self.url}bstore/repo/"},
            },
        )
        self.workers = WorkerStore(folder / "presence.sqlite")
        self._nginx: subprocess.Popen[bytes] | None = None

    @property
    def url_of_pages(self) -> list[str]:
        return [f"{self.url}{path.relative_to(self.pages)}" for path in sorted(self.pages.rglob("*.html"))]

    def start_nginx(self) -> None:
        self.start_nginx_without_pages()
        until(lambda: self.status("static/pages.css"), 20, "nginx answers")

    def start_nginx_without_pages(self) -> None:
        server = _SERVER.format(port=self.port, pages=self.pages, store=self.store, policy=PAGES_POLICY)
        names = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
        temporary = " ".join(f"{name}_temp_path {self.folder}/nginx-{name};" for name in names)
        conf = self.folder / "nginx.conf"
        conf.write_text(
            f"daemon off; pid {self.folder}/nginx.pid; error_log stderr crit; user root; events {{}}\n"
            f"http {{ access_log off; {temporary}\n{server}\n}}\n"
        )
        argv = [find_program("nginx"), "-e", "stderr", "-p", str(self.folder), "-c", str(conf)]
        self._nginx = subprocess.Popen(argv)

    def stop_nginx(self) -> None:
        if self._nginx is not None:
            self._nginx.terminate()
            self._nginx.wait()
            self._nginx = None

    def status(self, path: str) -> int:
        try:
            with urllib.request.urlopen(self.url + path, timeout=5) as answer:
                return int(answer.status)
        except urllib.error.HTTPError as error:
            return error.code
        except OSError:
            return 0

    def close(self) -> None:
        self.stop_nginx()
        self.history.close()
        self.workers.close()

    @contextlib.contextmanager
    def daemon(self) -> Iterator[PagesDaemon]:
        daemon = PagesDaemon(load_file(self.ini))
        with daemon.hold_folder():
            yield daemon

    def render(self, daemon: PagesDaemon | None = None) -> None:
        """Render all that has changed, without the delays after a change."""
        if daemon is None:
            with self.daemon() as opened:
                self.render(opened)
            return
        daemon.run_round()
        daemon.sources.index._execute("UPDATE pages SET due = 0 WHERE due IS NOT NULL")
        before = -1
        for _ in range(200):
            daemon.run_round()
            left = daemon.sources.index.count_due()
            if left in (0, before):  # of what is left, nothing can be rendered now
                return
            before = left
        raise AssertionError("pages are due for ever")

    def page(self, number: int) -> Path:
        return self.pages / "builds" / build_id(number)[:2] / f"{build_id(number)}.html"

    def log_folder(self, area: str, number: int) -> Path:
        """The folder in `live/` or `attempts/` of the attempt at a build."""
        folder = self.store / area / f"{build_id(number)}.x86_64.{ATTEMPT}"
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def add_files(self, number: int, *names: str) -> Path:
        """Write the manifest of a build, as the store has it by its index."""
        folder = self.store / "index" / f"{build_id(number)}.x86_64"
        folder.mkdir(parents=True)
        value = {
            "request": {
                "srpm": "time-1.1-1.el9.src.rpm", "arch": "x86_64", "target": "c9s.x86_64", "disttag": ".el9",
                "submitter": "johnny", "build_id": build_id(number), "timestamp": "20261101000000", "status": "Queued",
            },
            "arch": "x86_64", "attempt": "1763800001-0000000a", "status": "Success", "pkgname": "time",
            "evr": "1.1-1.el9", "builder_fqdn": "b1.example.org", "started": 1.0, "finished": 2.0, "schema": 1,
            "files": [{"name": name, "size": 1024, "sha256": "a" * 64} for name in names],
        }  # fmt: skip
        (folder / "build.json").write_text(json.dumps(value))
        return folder

    def url_of(self, number: int) -> str:
        return f"{self.url}{self.page(number).relative_to(self.pages)}"

    def record(self, *events: BuildEvent) -> None:
        self.history.record(events)

    def forge(self, number: int, **values: str) -> None:
        """Change a record as no program of the farm would: nothing of it is checked when it is read."""
        with contextlib.closing(sqlite3.connect(self.folder / "history.sqlite", isolation_level=None)) as db:
            for name, value in values.items():
                db.execute(
                    "UPDATE builds SET document = json_set(document, ?, ?),"
                    " changed = (SELECT max(changed) + 1 FROM builds) WHERE key LIKE ?",
                    [f"$.{name}", value, f"{build_id(number)}%"],
                )

    def beat(self, host: str, state: str = "idle", build: CurrentBuild | None = None, **more: Any) -> None:
        """Store a worker's heartbeat."""
        sent = WorkerHeartbeat(
            host=host, instance="1", state=state, arches=("x86_64",), build=build, at=time.time(), **more
        )
        self.workers.save([WorkerRecord(heartbeat=sent, last_seen=time.time())])


def build_events(number: int, ended: float, result: str, name: str = "time", **more: Any) -> Sequence[BuildEvent]:
    """The events of a build of a package that ended at a moment: Published, Failed, or still Building or Queued."""
    started = ended - 300
    common: dict[str, Any] = {
        "pkgname": name,
        "evr": f"1.{number}-1.el9",
        "srpm": f"{name}-1.{number}-1.el9.src.rpm",
        "target": "c9s.x86_64",
        "timestamp": timestamp(started - 20),
        "builder_fqdn": "builder1.example.org",
        "started": started,
        **more,
    }
    queued = {**common, "builder_fqdn": "", "started": 0.0, "at": started - 20, "tube": "x86_64", "job": number + 1}
    events = [event("Queued", number, **queued), event("Building", number, **common, at=started)]
    over = {**common, "finished": ended, "at": ended}
    place = f"repo/{common['target']}/{name}/{common['timestamp']}/{common['evr']}.x86_64"
    error = {"first_error": FIRST_ERROR, "error_line": ERROR_LINE, "error_log": "build.log", "exit_code": 1}
    failed = {**error, **over}
    failed.setdefault("reason", f"the build failed: {failed['error_line']}")
    results = {
        "Queued": events[:1],
        "Building": events,
        "Failed": [*events, event("Failed", number, **failed)],
        "Published": [
            *events,
            event("Success", number, **over, exit_code=0),
            event("Published", number, **{**over, "at": ended + 10}, exit_code=0, place=place),
        ],
    }
    return results[result]

# SPDX-License-Identifier: Apache-2.0
"""reimzul-notifier as a process, and what can be seen of it."""

from __future__ import annotations

import contextlib
import sqlite3
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Callable

from reimzul.core.beanstalk import NOTIFY, Broker
from reimzul.core.pending import PendingDeliveries, read_pending
from reimzul.history import BuildFilter, open_history
from reimzul.notifier.outbox import Outbox
from tests import commands
from tests.conftest import Beanstalkd
from tests.events import event
from tests.ini import write_ini
from tests.mosquitto import Authority, Mosquitto

PROGRAM = Path(sys.executable).parent / "reimzul-notifier"
EVENTS, RESULTS = "reimzul/builds/events", "reimzul/builds/results"


class Running:
    """A notifier with all sinks on, and what can be seen of it."""

    def __init__(self, folder: Path, beanstalkd: Beanstalkd) -> None:
        self.folder, self.beanstalkd = folder, beanstalkd
        self.settings: dict[str, dict[str, object]] = {
            "beanstalkd": {"host": beanstalkd.host, "port": beanstalkd.port},
            "notifier": {"ledger": folder / "ledger.sqlite", "presence": folder / "presence.sqlite"},
            "history": {"url": f"sqlite:///{folder}/history.sqlite"},
            "logs": {"logfile": folder / "reimzul.log"},
        }
        self.process: commands.Command | subprocess.Popen[bytes] | None = None

    def with_mqtt(self, broker: Mosquitto, by: Authority | None = None, **more: object) -> None:
        """Publish there."""
        certificate, key = (by or broker.authority).issue("notifier")
        self.settings["mqtt"] = {
            "notifications": "true",
            "port": broker.port,
            "ca_cert": broker.authority.certificate,
            "tls_cert": certificate,
            "tls_key": key,
            **more,
        }

    def with_mail(self, port: int, *recipients: str, **more: object) -> None:
        """Mail there about x86_64 and i386."""
        self.settings["mail"] = {"notifications": "true", "mail_from": "farm@example.org", "smtp_port": port, **more}
        self.settings["mail_rcpts"] = dict.fromkeys(("x86_64", "i386"), ", ".join(recipients or ["me@example.org"]))

    def write(self) -> Path:
        """Write its settings down."""
        return write_ini(self.folder / "reimzul.ini", self.settings)

    def start(self) -> None:
        """Start it."""
        ini = self.write()
        with (self.folder / "stderr").open("ab") as stderr:
            self.process = commands.start([PROGRAM, "--config", ini], files=(0, 1, stderr.fileno()))

    def signal(self, number: int) -> float:
        """Send a signal that ends it; the seconds it took."""
        assert self.process
        began = time.monotonic()
        self.process.send_signal(number)
        self.process.wait(20)
        return time.monotonic() - began

    def said(self) -> str:
        """Its log on stderr."""
        return (self.folder / "stderr").read_text()

    def lines(self) -> list[str]:
        """The lines of the log of builds."""
        path = self.folder / "reimzul.log"
        return path.read_text().splitlines() if path.exists() else []

    def pending(self) -> list[PendingDeliveries]:
        """The deliveries that are pending in its outbox."""
        return read_pending(self.folder / "ledger.sqlite")

    def is_done(self, broker: Broker) -> Callable[[], bool]:
        """Whether nothing waits in `notify`, is in hand, or pending for a sink."""
        return lambda: is_taken(broker) and not self.pending()

    def builds(self) -> list[dict[str, Any]]:
        """The records of the history."""
        url = str(self.settings["history"]["url"])
        history = open_history(url, reading=url.startswith("mongodb") or (self.folder / "history.sqlite").exists())
        try:
            return [record.to_document() for record in history.find_builds(BuildFilter(), 10_000)]
        finally:
            history.close()


def write_pending(path: Path, sink: str, count: int, at: float, next_try: float | None = None) -> None:
    """Put events into an outbox that one sink lacks since a time."""
    outbox = Outbox(path)
    new = outbox.accept([event("Failed", number, arch=sink) for number in range(count)], lambda _: [sink])
    outbox.close()
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as db:
        for each in new[sink]:
            db.execute("UPDATE event SET at = ? WHERE seq = ?", (at, each.seq))
            db.execute("UPDATE delivery SET next_try = ? WHERE seq = ?", (next_try, each.seq))


def is_taken(broker: Broker) -> bool:
    """Whether the notifier has all that was in `notify`."""
    stats = broker.tube_stats(NOTIFY.name)
    return not (stats.ready or stats.reserved or stats.delayed)


def ids(payloads: list[dict[str, Any]]) -> list[str]:
    """The name of each event."""
    return [payload["id"] for payload in payloads]

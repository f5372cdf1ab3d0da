# SPDX-License-Identifier: Apache-2.0
"""How long the notifier takes to tell all its sinks of many results: `python -m bench.notify`.

The real programs: a beanstalkd, a mosquitto behind TLS with a subscriber, an SMTP server, the history in SQLite, the
log, and reimzul-notifier as a process. Each result has the ends of logs that a build of some size leaves.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import sqlite3
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Callable

import click
from aiosmtpd.smtp import SMTP, Envelope, Session

from bench.proxy import Proxy
from bench.report import Figure, tell
from reimzul.core.message import BuildEvent
from tests.conftest import Beanstalkd
from tests.events import event
from tests.mosquitto import Authority, Mosquitto, Watcher
from tests.notifier import Running
from tests.smtp import Mailbox, MailServer
from tests.waiting import until

ROOT_LOG = "".join(f"DEBUG util.py:462:  some-package-{n}-1.0-{n}.el7.x86_64 is installed\n" for n in range(30))
BUILD_LOG = "".join(f"gcc -O2 -g -pipe -Wall -fstack-protector -c -o object{n}.o source{n}.c\n" for n in range(80))
#: Names each piece of news: the MQTT payload's id, and the Message-ID.
_PUBLISHED = re.compile(rb'^reimzul/builds/results .*"id": "([^"]+)"', re.MULTILINE)
_MAILED = re.compile(rb"^Message-ID: <([^>]+)>", re.MULTILINE)


class Counting(Mailbox):
    """Only notes which mails arrived: to take them apart would cost more than to send them."""

    def __init__(self) -> None:
        super().__init__()
        self.ids: Counter[bytes] = Counter()

    async def handle_DATA(self, _server: SMTP, _session: Session, envelope: Envelope) -> str:
        """Note it."""
        found = _MAILED.search(envelope.content if isinstance(envelope.content, bytes) else b"")
        self.ids[found.group(1) if found else b""] += 1
        return "250 taken"


def result(number: int) -> BuildEvent:
    """The n-th result: one in five succeeds."""
    return event(
        "Failed" if number % 5 else "Success",
        number,
        root_log=ROOT_LOG,
        build_log=BUILD_LOG,
        first_error="source7.c:12:3: error: expected ';' before '}' token" if number % 5 else "",
    )


class Bench:
    """All of it, in a folder."""

    def __init__(self, folder: Path, delay: float) -> None:
        self.folder = folder
        self.beanstalkd = Beanstalkd(folder)
        self.mailbox = Counting()
        self.mail = MailServer(self.mailbox)
        self.mqtt = Mosquitto(folder, Authority(folder / "ca"))
        for server in (self.beanstalkd, self.mail, self.mqtt):
            server.start()
        self.watcher = Watcher(self.mqtt, folder, "reimzul/builds/results")
        self.notifier = Running(folder, self.beanstalkd)
        self.notifier.with_mail(self.mail.port)
        self.notifier.with_mqtt(self.mqtt)
        if delay:
            self.notifier.settings["mqtt"]["port"] = Proxy(self.mqtt.port, delay).port
        self.notifier.start()

    def counts(self) -> dict[str, Callable[[], Counter[object]]]:
        """What each sink has, by what names each piece of news."""
        return {"log": self._logged, "history": self._recorded, "mail": self._mailed, "mqtt": self._count_published}

    def processor_seconds(self) -> float:
        """What the notifier has used so far, however busy the machine was with other things."""
        assert self.notifier.process
        fields = Path(f"/proc/{self.notifier.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def close(self) -> None:
        """End it."""
        self.notifier.signal(signal.SIGTERM)
        self.watcher.close()
        self.mqtt.stop()
        self.mail.stop()
        self.beanstalkd.kill()

    def _logged(self) -> Counter[object]:
        return Counter(self.notifier.lines())

    def _recorded(self) -> Counter[object]:
        with sqlite3.connect(f"file:{self.folder}/history.sqlite?mode=ro", uri=True) as db:
            return Counter(key for (key,) in db.execute("SELECT key FROM builds"))

    def _mailed(self) -> Counter[object]:
        return Counter(self.mailbox.ids)

    def _count_published(self) -> Counter[object]:
        return Counter(_PUBLISHED.findall((self.folder / "heard").read_bytes()))


@click.command()
@click.option("--events", default=2000, show_default=True, help="How many results.")
@click.option("--mqtt-delay-ms", default="0,10", show_default=True, help="Between notifier and broker, each way.")
def main(events: int, mqtt_delay_ms: str) -> None:
    """Announce results; say how many of them each sink has, how many twice, and after how many seconds."""
    tell("notify", [row for delay in mqtt_delay_ms.split(",") for row in measure(events, int(delay))])


def measure(events: int, delay: int) -> list[Figure]:
    """One run, on a folder of its own."""
    folder = Path(tempfile.mkdtemp(prefix="reimzul-bench-"))
    bench = Bench(folder, delay / 1000)
    try:
        with bench.beanstalkd.connect() as broker:
            broker.announce(event("Queued", events))
            until(lambda: bench.notifier.lines() and bench.notifier.is_done(broker)(), 20, "the notifier is at work")
            began = time.monotonic()
            for number in range(events):
                broker.announce(result(number))
            announced = time.monotonic() - began
            until(bench.notifier.is_done(broker), 600, "nothing is pending")
        until(lambda: sum(bench.counts()["mqtt"]().values()) >= events, 60, "the subscriber has all")
        took = time.monotonic() - began
        rows = [
            Figure(what=f"{events} results, {delay} ms to MQTT", unit="events/s", values=[events / took], goal="200"),
            Figure(what="  the puts alone", unit="events/s", values=[events / announced]),
            Figure(what="  notifier's processor time", unit="s", values=[bench.processor_seconds()]),
        ]
        return rows + _measure_arrivals(bench, events)
    finally:
        bench.close()
        shutil.rmtree(folder)


def _measure_arrivals(bench: Bench, events: int) -> list[Figure]:
    rows = []
    for name, count in bench.counts().items():
        has = count()
        extra = 1 if name in ("log", "history") else 0  # the one that showed it was at work
        twice = sum(has.values()) - len(has)
        rows.append(Figure(what=f"  {name}", unit="arrived", values=[len(has) - extra], goal=str(events)))
        rows.append(Figure(what=f"  {name}, twice", unit="arrived", values=[twice], goal="0"))
    return rows


if __name__ == "__main__":
    main()

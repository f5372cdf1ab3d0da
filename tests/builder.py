# SPDX-License-Identifier: Apache-2.0
"""A builder for tests: real beanstalkd, rsync and http, the installed worker, a mock that does what the test says."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import greenstalk

from reimzul.core.beanstalk import PRIORITY, Broker, arch_tube
from reimzul.core.message import BuildRequest, new_build_id
from tests import commands, webserver
from tests.conftest import Beanstalkd, free_port
from tests.rsyncd import command, configuration
from tests.scripted import ScriptedMock
from tests.waiting import until

BIN = Path(sys.executable).parent


class Host:
    """A builder, and the http and rsync servers it reaches: each real, on the loopback."""

    def __init__(self, folder: Path, beanstalkd: Beanstalkd) -> None:
        self.folder = folder
        self.beanstalkd = beanstalkd
        self.incoming, self.store = folder / "incoming", folder / "bstore"
        self.configs = folder / "checkout" / "mock"
        for needed in (self.incoming, self.store / "spool", self.store / "live", self.store / "index", self.configs):
            needed.mkdir(parents=True)
        for name in ("site-defaults.cfg", "logging.ini"):
            (self.configs / name).write_text("# nothing\n")
        self.mock = ScriptedMock(folder / "mock")
        self.http_port, self.rsync_port = free_port(), free_port()
        self.workers: list[commands.Command | subprocess.Popen[bytes]] = []
        self._serve()

    def _serve(self) -> None:
        self.http = webserver.serve(self.folder, self.http_port)
        (self.folder / "rsyncd.conf").write_text(configuration("rsyncd.conf", self.store, self.rsync_port))
        self.rsync: subprocess.Popen[bytes] | None = None
        self.start_rsync()

    def start_rsync(self) -> None:
        """Start the rsync daemon."""
        self.rsync = subprocess.Popen(command(f"--config={self.folder}/rsyncd.conf"))

    def stop_rsync(self) -> None:
        """End the rsync daemon."""
        assert self.rsync
        self.rsync.kill()
        self.rsync.wait()

    def target(self, name: str) -> None:
        """Give mock a configuration."""
        (self.configs / f"{name}.cfg").write_text("config_opts['root'] = 'TARGETNAME'  # http://repohost/repo/\n")

    def start(self, name: str = "b1", *, port: int = 0, **settings: Any) -> commands.Command | subprocess.Popen[bytes]:
        """Start a worker, which reaches beanstalkd at another port if one is given; its log is `<name>.log`."""
        ini = self.folder / f"{name}.ini"
        more = "".join(f"{key} = {value}\n" for key, value in settings.items())
        ini.write_text(
            f"[beanstalkd]\nhost = 127.0.0.1\nport = {port or self.beanstalkd.port}\n"
            f"[incoming]\nfolder = {self.incoming}\nurl = http://127.0.0.1:{self.http_port}/incoming/\n"
            f"[bstore]\nbase_url = http://127.0.0.1:{self.http_port}/bstore/repo/\n"
            f"upload_url = rsync://127.0.0.1:{self.rsync_port}/reimzul-bstore/\nroot = {self.store}\n"
            f"[worker]\nmock = {self.mock.path}\nmock_configs = {self.configs.parent}\nmachine = x86_64\n"
            f"results = {self.folder}/results\nmock_roots = {self.folder}\nfqdn = {name}.example.org\n"
            f"{'' if 'min_free_mib' in settings else 'min_free_mib = 50'}\n{more}"
        )
        with (self.folder / f"{name}.log").open("ab") as log:
            worker = commands.start([BIN / "reimzul-worker", "--config", ini], files=(0, log.fileno(), log.fileno()))
        self.workers.append(worker)
        return worker

    def spool(self) -> dict[str, Path]:
        """The uploaded legs that are whole, by `<build id>.<arch>`."""
        return {path.parent.name.rpartition(".")[0]: path.parent for path in self.store.glob("spool/*/build.json")}

    def close(self) -> None:
        """End everything."""
        for worker in self.workers:
            worker.kill()
            worker.wait()
        for orphan in processes(str(self.mock.path)):
            os.kill(orphan, signal.SIGKILL)
        self.stop_rsync()
        webserver.close(self.http)


def request(name: str = "hello", **more: Any) -> BuildRequest:
    """A complete request for x86_64."""
    given = {
        "srpm": f"{name}-1.0-1.src.rpm",
        "arch": "x86_64",
        "target": "c9.x86_64",
        "disttag": ".el9",
        "submitter": "tester",
        "build_id": new_build_id(),
        "timestamp": "20261122120000",
        **more,
    }
    return BuildRequest(**given)


def put(broker: Broker, wanted: BuildRequest) -> int:
    """Queue it."""
    return broker.put(arch_tube("x86_64"), wanted, priority=PRIORITY)


class Ears:
    """All that is put into `notify` and `createrepo`; presences apart."""

    def __init__(self, beanstalkd: Beanstalkd) -> None:
        self.broker = beanstalkd.connect()
        self.broker.watch(["notify", "createrepo"])
        self._heard: dict[int, dict[str, Any]] = {}  #: by the job's number
        self.present: list[dict[str, Any]] = []  #: what workers say of themselves

    @property
    def heard(self) -> list[dict[str, Any]]:
        """The messages in the order in which they were put, by job number: priorities decide the order of arrival."""
        return [self._heard[number] for number in sorted(self._heard)]

    def listen(self) -> list[dict[str, Any]]:
        """What there is by now."""
        while True:
            try:
                job = self.broker.client.reserve(0)
            except (greenstalk.Error, OSError):  # there is none, or beanstalkd is away
                return self.heard
            said = json.loads(job.body)
            if said.get("status") == "Presence":
                self.present.append(said)
            else:
                self._heard[job.id] = said
            self.broker.client.delete(job)

    def events(self, *statuses: str) -> list[dict[str, Any]]:
        """The events of these statuses."""
        return [said for said in self.listen() if said.get("status") in statuses]

    def requests(self) -> list[dict[str, Any]]:
        """What repogen was asked for."""
        return [said for said in self.listen() if "status" not in said]

    def wait(self, count: int, *statuses: str, seconds: float = 20) -> list[dict[str, Any]]:
        """That many events of these statuses."""
        until(lambda: len(self.events(*statuses)) >= count, seconds, f"{count} of {statuses}: {self.heard}")
        return self.events(*statuses)


def is_settled(broker: Broker) -> bool:
    """Whether no request is left in the tube, in any state."""
    stats = broker.tube_stats("x86_64")
    return not (stats.ready or stats.reserved or stats.delayed or stats.buried)


def processes(word: str) -> list[int]:
    """The processes whose command line has that word."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if word.encode() in path.read_bytes().split(b"\0"):
                found.append(int(path.parent.name))
        except OSError:
            time.sleep(0)
    return found

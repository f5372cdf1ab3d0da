# SPDX-License-Identifier: Apache-2.0
"""The original farm's programs as far as ours meet them: what they put into tubes, in which order, and what they run.

Facts from https://github.com/CentOS/reimzul (reimzul_worker.py, submit_mock.sh, reimzul-notifier.py, repogen_worker.py,
tosign_worker.py, reimzul_submit.py, at 7b7a81e). Each deletes its job before it does anything, adds to the message it
was given, and puts with beanstalkc's own priority and time to run.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import threading
import time
import urllib.request
from abc import abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Callable

import greenstalk

from reimzul.core.rpm_header import read_header

#: beanstalkc's defaults.
PRIORITY, TTR = 2**31, 120

Message = dict[str, Any]
#: What builds a source rpm for an arch of a target, and leaves its results in a folder; whether it could.
Builder = Callable[[Path, str, str, Path], bool]


class Client:
    """One connection, as beanstalkc has it."""

    def __init__(self, port: int, *tubes: str) -> None:
        self._client = greenstalk.Client(("127.0.0.1", port))
        for tube in tubes:
            self._client.watch(tube)

    def reserve(self, seconds: float) -> Message | None:
        """The next message, its job deleted at once."""
        try:
            job = self._client.reserve(int(seconds))
        except greenstalk.TimedOutError:
            return None
        self._client.delete(job)
        message = json.loads(job.body)
        assert isinstance(message, dict)
        return message

    def put(self, tube: str, message: Message, priority: int = PRIORITY) -> None:
        """Put a message."""
        self._client.use(tube)
        self._client.put(json.dumps(message), priority=priority, ttr=TTR)

    def close(self) -> None:
        """Leave."""
        self._client.close()


def submit(client: Client, srpm: str, arch: str, target: str, *, scratch: bool = False) -> None:
    """As reimzul_submit.py does."""
    tube = {"armhfp": "armv7l", "i686": "i386"}.get(arch, arch)
    client.put(
        tube,
        {
            "srpm": srpm, "arch": arch, "target": f"{target}.{arch}", "disttag": ".demo", "scratch": scratch,
            "submitter": "arrfab",
        },
        priority=8192,
    )  # fmt: skip


class Program(threading.Thread):
    """A program that takes from tubes until it is stopped; what it died of is raised then."""

    tubes: tuple[str, ...] = ()

    def __init__(self, port: int) -> None:
        super().__init__(daemon=True)
        self._port = port
        self._over = threading.Event()
        self.error: BaseException | None = None  #: what it died of

    def run(self) -> None:
        """The thread."""
        client = Client(self._port, *self.tubes)
        try:
            while not self._over.is_set():
                message = client.reserve(1)
                if message is not None:
                    self.handle(client, message)
        except BaseException as error:
            self.error = error
        finally:
            client.close()

    @abstractmethod
    def handle(self, client: Client, message: Message) -> None:
        """Do what a message asks."""

    def stop(self) -> None:
        """Let it finish what it has in hand, and end."""
        self._over.set()
        self.join(120)
        assert not self.is_alive(), self
        if self.error is not None:
            raise self.error

    def __enter__(self) -> Program:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()


class Worker(Program):
    """reimzul_worker.py and submit_mock.sh, on a builder of x86_64."""

    tubes = ("x86_64", "i386", "noarch")

    def __init__(self, port: int, fqdn: str, incoming: str, rsync_port: int, results: Path, build: Builder) -> None:
        super().__init__(port)
        self.fqdn, self.incoming, self.rsync_port = fqdn, incoming, rsync_port
        self.results, self.build = results, build
        self.built: list[tuple[str, str]] = []  #: srpm, arch
        self.uploads: list[int] = []  #: rsync's exit codes, which nobody heeds

    def handle(self, client: Client, message: Message) -> None:
        """Build a source rpm, and its followers after it."""
        message.update(status="Building", builder_fqdn=self.fqdn)
        srpm = self.results / "tmp" / message["srpm"]
        srpm.parent.mkdir(parents=True, exist_ok=True)
        with urllib.request.urlopen(self.incoming + message["srpm"], timeout=30) as source:
            srpm.write_bytes(source.read())
        header = read_header(srpm)
        message.update(evr=header.evr, pkgname=header.name, timestamp=time.strftime("%Y%m%d%H%M%S"))
        client.put("notify", message)
        self._leg(client, message, srpm)
        for follower in {"x86_64": ["i386"], "ppc64": ["ppc"]}.get(message["arch"], []):
            message.update(arch=follower, status="Building")
            client.put("notify", message)
            self._leg(client, message, srpm)

    def _leg(self, client: Client, message: Message, srpm: Path) -> None:
        name = f"{message['target']}/{message['pkgname']}"
        results = self.results / name / message["timestamp"] / f"{message['evr']}.{message['arch']}"
        results.mkdir(parents=True)
        built = self.build(srpm, message["arch"], message["target"], results)
        for log in ("build.log", "root.log"):
            if not (results / log).exists():
                shutil.copy(results / "stderr", results / log)
        upload = ["rsync", "-a", f"--port={self.rsync_port}", f"{self.results / name}/",
                  f"localhost::reimzul-bstore/repo/{name}/"]  # fmt: skip
        done = subprocess.run(upload, stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL, timeout=60, check=False)
        self.uploads.append(done.returncode)
        shutil.rmtree(results.parent)
        self.built.append((message["srpm"], message["arch"]))
        message["status"] = "Success" if built else "Failed"
        client.put("notify", message)
        if built:
            client.put("createrepo", message)


class Notifier(Program):
    """reimzul-notifier.py, of which only what it asks the signer matters here."""

    tubes = ("notify",)

    def handle(self, client: Client, message: Message) -> None:
        """Of scratch builds nothing, of others whatever came of them."""
        if message["status"] in ("Success", "Failed") and not message["scratch"]:
            keys = ("pkgname", "status", "target", "arch", "timestamp")
            client.put("tosign", {key: message[key] for key in keys})


class Repogen(Program):
    """repogen_worker.py."""

    tubes = ("createrepo",)

    def __init__(self, port: int, store: Path) -> None:
        super().__init__(port)
        self.store = store

    def handle(self, client: Client, message: Message) -> None:
        """Index a target."""
        folder = self.store / "repo" / message["target"]
        folder.mkdir(parents=True, exist_ok=True)
        cache = self.store / "cache"
        run(["createrepo_c", "-d", "--update", "--retain-old-md", "3", "--cachedir", str(cache), str(folder)])


class Signer(Program):
    """tosign_worker.py."""

    tubes = ("tosign",)

    def __init__(self, port: int, store: Path) -> None:
        super().__init__(port)
        self.store = store

    def handle(self, client: Client, message: Message) -> None:
        """Copy all packages of a timestamp, whatever their arch."""
        source = self.store / "repo" / message["target"] / message["pkgname"] / message["timestamp"]
        goal = self.store / "tosign" / message["target"]
        goal.mkdir(parents=True, exist_ok=True)
        for rpm in source.rglob("*.rpm"):
            shutil.copy(rpm, goal)


def mocked(mock: str, checkout: Path, store_url: str, arch: str = "x86_64") -> Builder:
    """What submit_mock.sh does: `mock` with a configuration of the checkout, on a builder of `arch`."""

    def build(srpm: Path, leg: str, target: str, results: Path) -> bool:
        for name in ("site-defaults.cfg", "logging.ini"):
            shutil.copy(checkout / "mock" / name, results)
        name = target.replace(arch, leg) if leg == "i386" else target
        config = (checkout / "mock" / f"{name}.cfg").read_text().replace("http://repohost", store_url.rstrip("/"))
        root = f"{srpm.name}-{leg}-{results.parent.name}"
        (results / "mock.cfg").write_text(config.replace("TARGETNAME", root))
        argv = [mock, "-r", "mock", f"--configdir={results}", f"--resultdir={results}", "--define", "dist .demo",
                "--cleanup-after", str(srpm)]  # fmt: skip
        with (results / "stdout").open("wb") as said, (results / "stderr").open("wb") as complained:
            done = subprocess.run(
                argv, stdin=subprocess.DEVNULL, stdout=said, stderr=complained, timeout=600, check=False
            )
        return done.returncode == 0

    return build


def main() -> None:
    """A worker, as a program of its own until it is ended: `original.py FQDN RESULTS MOCK CHECKOUT`, usual ports."""
    fqdn, results, mock, checkout = sys.argv[1:]
    build = mocked(mock, Path(checkout), "http://localhost:11081/bstore")
    worker = Worker(11300, fqdn, "http://localhost:11080/reimzul-incoming/", 11874, Path(results), build)
    worker.run()
    sys.exit(repr(worker.error))


def run(argv: Sequence[str]) -> None:
    """Run a program that has to succeed."""
    done = subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def leaving(*rpms: Path, logs: Sequence[str] = ("build.log", "root.log", "state.log", "stdout", "stderr")) -> Builder:
    """A build that leaves these packages, whatever it is asked, and fails where there are none."""

    def build(srpm: Path, arch: str, target: str, results: Path) -> bool:
        for name in logs:
            (results / name).write_text(f"{name} of {srpm.name} for {arch}\n")
        if "build.log" in logs:
            wrote = "".join(f"Wrote: /builddir/build/RPMS/{rpm.name}\n" for rpm in rpms)
            (results / "build.log").write_text(f"+ make\n{wrote}")
        for rpm in (*rpms, srpm):
            shutil.copy(rpm, results)
        return bool(rpms)

    return build


if __name__ == "__main__":
    main()

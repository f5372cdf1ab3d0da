# SPDX-License-Identifier: Apache-2.0
"""The health of all hosts, as the controller shows it: beanstalkd, all daemons and all commands are real.

Programs fail because a test breaks them: createrepo_c and rsync are scripts that run the real ones unless a file is
there; a disk is a small tmpfs; a worker is killed.
"""

from __future__ import annotations

import contextlib
import json
import os
import pty
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from reimzul.core.beanstalk import Broker, ReservedJob, arch_tube, session_tube
from reimzul.core.message import BuildRequest, Role, WorkerHeartbeat, event_for
from reimzul.history.workers import WorkerStore
from tests import uploads
from tests.builder import Host, put, request
from tests.conftest import Beanstalkd
from tests.ini import write_ini
from tests.integration.test_operator_acts import REIMZUL, run, run_json
from tests.notifier import Running
from tests.repogen import Rpms, ask
from tests.waiting import until

B1, B2 = "b1.example.org", "b2.example.org"
_BREAKABLE = """#!/bin/sh
if [ -e {flag} ]; then echo "{name} is broken by the test" >&2; exit {code}; fi
exec {real} "$@"
"""


class Farm:
    """A controller, a builder and bstore; repogen and tosign run where a test starts them."""

    def __init__(self, folder: Path, controller: Running, host: Host) -> None:
        self.folder, self.controller, self.host = folder, controller, host
        self.processes: list[subprocess.Popen[bytes]] = []

    def breakable(self, name: str, code: int) -> Path:
        """A program that fails as long as it is broken."""
        real, script = shutil.which(name), self.folder / f"breakable-{name}"
        assert real
        script.write_text(_BREAKABLE.format(flag=self._flag(name), name=name, code=code, real=real))
        script.chmod(0o755)
        return script

    def _flag(self, name: str) -> Path:
        return self.folder / f"broken-{name}"

    def break_program(self, name: str) -> None:
        self._flag(name).touch()

    def repair_program(self, name: str) -> None:
        self._flag(name).unlink()

    def start_service(self, name: str, root: Path | None = None, **repogen: object) -> subprocess.Popen[bytes]:
        """Start repogen or tosign on the builder's store, or on one at another place."""
        port = self.host.beanstalkd.port
        base = f"http://127.0.0.1:{self.host.http_port}/bstore/repo/"
        sections: dict[str, dict[str, object]] = {
            "beanstalkd": {"host": "127.0.0.1", "port": port},
            "bstore": {"root": root or self.host.store, "base_url": base},
            "repogen": repogen,
        }
        ini = write_ini(self.folder / f"{name}.ini", sections)
        words = [str(Path(sys.executable).with_name(f"reimzul-{name}")), "--config", str(ini)]
        with (self.folder / f"{name}.log").open("ab") as log:
            self.processes.append(subprocess.Popen(words, stdout=log, stderr=log))
        return self.processes[-1]

    def submit(self, broker: Broker, name: str = "plain") -> BuildRequest:
        """Queue a build and announce it, as reimzul-submit does."""
        wanted = request(name)
        job = put(broker, wanted)
        where: dict[str, Any] = {"tube": "x86_64", "job": job, "priority": 8192}
        broker.announce(event_for(wanted, "Queued", pkgname=name, evr="1.0-1", **where))
        return wanted

    def close(self) -> None:
        for process in self.processes:
            process.kill()
            process.wait()


@pytest.fixture
def farm(
    tmp_path: Path, beanstalkd: Beanstalkd, broker: Broker, host: Host, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Farm]:
    """A farm whose notifier runs."""
    monkeypatch.setenv("REIMZUL_CONFIG", str(tmp_path / "reimzul.ini"))
    monkeypatch.setenv("REIMZUL_INSTANCE", "1")
    running = Running(tmp_path, beanstalkd)
    running.start()
    made = Farm(tmp_path, running, host)
    yield made
    made.close()
    running.signal(signal.SIGTERM)


def rows() -> dict[str, dict[str, Any]]:
    """What `reimzul builders` shows, by host and instance."""
    return {f"{each['builder']} {each['instance']}": each for each in run_json("builders")}


def states() -> list[str]:
    return [each["state"] for each in run_json("builders")]


def findings(*options: str) -> dict[str, dict[str, Any]]:
    """The findings of the controller's doctor about hosts, by host."""
    checks = run_json("doctor", "--role", "controller", *options)["checks"]
    return {each["name"][5:]: each for each in checks if each["name"].startswith("host.")}


def explained(build: BuildRequest) -> str:
    return run("explain", build.build_id).stdout


def has_event(controller: Running, build: BuildRequest, status: str) -> bool:
    return any(leg["build_id"] == build.build_id and leg["status"] == status for leg in controller.builds())


def first_watched(build: BuildRequest, words: str) -> str:
    """The first message of `reimzul watch` that has these words."""
    argv: list[str | Path] = [REIMZUL, "watch", "--json", build.build_id]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        for line in process.stdout:
            message = str(json.loads(line)["message"])
            if words in message:
                process.send_signal(signal.SIGINT)
                return message
    raise AssertionError(f"the watch ended without {words}")


# --- workers that vanish


def test_a_killed_worker_is_reported_until_a_person_forgets_it(farm: Farm) -> None:
    worker = farm.host.start("b1")
    until(lambda: states() == ["idle"], 30, "it is there")
    assert B1 not in findings()
    assert findings("--all")[B1]["level"] == "ok"
    worker.kill()
    worker.wait(20)
    until(lambda: states() == ["gone"], 30, "its connection has ended")
    found = findings()[B1]
    assert found["level"] in ("warn", "FAIL")
    assert "its worker vanished, last heard of" in found["message"]
    assert f"reimzul builders --forget {B1}" in found["remedy"]
    typo = run("builders", "--forget", "b1.exampel.org")
    assert (typo.returncode, typo.stderr.strip()[-len(f"is {B1} meant?") :]) == (4, f"is {B1} meant?")
    assert run("builders", "--forget", "b1", "--json").returncode == 0
    assert states() == []
    assert B1 not in findings("--all")


def test_one_that_comes_back_is_not_reported(farm: Farm) -> None:
    worker = farm.host.start("b1")
    until(lambda: states() == ["idle"], 30, "it is there")
    worker.kill()
    worker.wait(20)
    until(lambda: states() == ["gone"], 30, "it is gone")
    farm.host.start("b1")
    until(lambda: states() == ["idle"], 30, "it is back, in its own place")
    assert B1 not in findings()
    assert run("builders", "--forget", B1).returncode == 4, "it is connected"


@pytest.mark.parametrize("service", ["repogen", "tosign"])
def test_a_killed_daemon_of_bstore_is_reported_and_a_stopped_one_is_not(farm: Farm, service: str) -> None:
    process = farm.start_service(service)
    until(lambda: states() == ["idle"], 30, "it is there")
    (row,) = run_json("builders")
    assert (row["role"], row["instance"], row["arches"]) == (service, f"{service}-1", [])
    assert findings("--all")[row["builder"]]["level"] == "ok"
    process.kill()
    process.wait(20)
    until(lambda: states() == ["gone"], 30, "it vanished")
    assert f"its {service} vanished" in findings()[row["builder"]]["message"]
    process = farm.start_service(service)
    until(lambda: states() == ["idle"], 30, "it is back")
    process.terminate()
    process.wait(20)
    until(lambda: states() == [], 30, "it left in order")
    assert findings("--all") == {}


def test_one_that_left_while_the_notifier_was_away_did_not_vanish(farm: Farm, broker: Broker) -> None:
    there = WorkerHeartbeat(host=B1, instance="1", state="idle", session="a" * 16, at=time.time())
    broker.announce(there)
    until(lambda: states() == ["gone"], 30, "nobody watches its tube")
    farm.controller.signal(signal.SIGTERM)
    broker.announce(WorkerHeartbeat(**{**_fields(there), "leaving": True}))
    farm.controller.start()
    until(lambda: states() == [], 30, "it is not remembered")


def _fields(sent: WorkerHeartbeat) -> dict[str, Any]:
    return {"host": sent.host, "instance": sent.instance, "state": sent.state, "session": sent.session, "at": sent.at}


# --- what fails is shown at the controller


def test_a_failing_rsync_is_shown_for_its_build_and_its_host(farm: Farm, broker: Broker) -> None:
    farm.break_program("rsync")
    farm.host.start("b1", rsync=farm.breakable("rsync", 12))
    until(lambda: states() == ["idle"], 30, "it is there")
    build = farm.submit(broker)
    words = "rsync is broken by the test"
    until(lambda: words in explained(build), 60, "explain says it")
    assert f"worker on {B1}: upload failed" in explained(build)
    assert words in run("builders").stdout
    assert words in first_watched(build, "upload fails on")
    found = findings()[B1]
    assert (found["level"], words in found["message"]) == ("warn", True)
    assert "reimzul doctor" in found["remedy"]
    (error,) = until(lambda: rows()[f"{B1} 1"]["errors"], 30, "it has an error")
    assert (error["build_id"], error["arch"], error["what"]) == (build.build_id, "x86_64", "upload")
    farm.repair_program("rsync")
    until(lambda: has_event(farm.controller, build, "Success"), 90, "the upload goes on")
    until(lambda: B1 not in findings(), 60, "the error is over")


def test_a_failing_createrepo_c_is_shown_for_its_build_and_its_host(farm: Farm, broker: Broker, rpms: Rpms) -> None:
    farm.break_program("createrepo_c")
    farm.start_service("repogen", createrepo_c=farm.breakable("createrepo_c", 1))
    build = uploads.request()
    asked = uploads.upload(uploads.make_store(farm.host.store), rpms, of=build)
    broker.announce(event_for(build, "Success", place=asked.place, attempt=asked.attempt, builder_fqdn=B1))
    ask(broker, asked)
    words = "createrepo_c is broken by the test"
    until(lambda: words in explained(build), 60, "explain says it")
    assert "indexing failed" in explained(build)
    assert words in run("builders").stdout
    assert words in first_watched(build, "indexing fails on")
    (service,) = [each for each in run_json("builders") if each["role"] == Role.REPOGEN]
    until(lambda: findings()[service["builder"]]["level"] == "FAIL", 60, "it failed more than once")
    found = findings()[service["builder"]]
    assert f"state/createrepo/{build.target}.log" in found["remedy"]
    farm.repair_program("createrepo_c")
    until(lambda: has_event(farm.controller, build, "Success") and "It was published" in explained(build), 90, "it is")
    until(lambda: service["builder"] not in findings(), 60, "the error is over")


def test_a_full_disk_of_bstore_is_a_finding(farm: Farm, tmp_path: Path) -> None:
    small = tmp_path / "small"
    small.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", small], check=False).returncode:
        pytest.skip("only root may mount a tmpfs")
    try:
        farm.start_service("repogen", root=small / "bstore")
        until(lambda: states() == ["idle"], 30, "it is there")
        with contextlib.suppress(OSError), (small / "ballast").open("wb") as ballast:
            ballast.write(bytes(16 << 20))
        (row,) = run_json("builders")
        until(lambda: "its disk has 0 bytes free" in findings()[row["builder"]]["message"], 60, "it is said")
        found = findings()[row["builder"]]
        assert (found["level"], "reimzul prune --dry-run" in found["remedy"]) == ("FAIL", True)
    finally:
        farm.close()
        subprocess.run(["umount", "-l", small], check=True)


# --- why a build waits


class Builder:
    """A worker as far as it speaks: the test says what it does."""

    def __init__(self, beanstalkd: Beanstalkd, host: str, session: str) -> None:
        self.host, self.session = host, session * 16
        self.broker = beanstalkd.connect()
        self.broker.watch(["x86_64", f"host.{host}", session_tube(self.session)])
        self.speak()

    def speak(self, **more: Any) -> None:
        about: dict[str, Any] = {"host": self.host, "instance": "1", "session": self.session, "arches": ("x86_64",)}
        self.broker.announce(WorkerHeartbeat(**{"state": "idle", "at": time.time(), "interval": 30, **about, **more}))

    def fail(self, wanted: BuildRequest) -> BuildRequest:
        """Take the job, and put it back as a builder that could not build it."""
        claim: ReservedJob[BuildRequest] | None = self.broker.reserve({"x86_64": arch_tube("x86_64")}, 5)
        assert claim
        again = wanted.with_failed_attempt(self.host, "no space left")
        job = put(self.broker, again)
        claim.delete()
        where: dict[str, Any] = {"tube": "x86_64", "job": job, "priority": 8192, "builder_fqdn": self.host}
        attempt = f"1763800001-0000000{self.session[0]}"
        self.broker.announce(event_for(again, "Queued", attempt=attempt, reason="no space left", **where))
        return again


def test_builders_that_leave_a_build_to_others_are_not_called_usable(
    farm: Farm, broker: Broker, beanstalkd: Beanstalkd
) -> None:
    one, two = Builder(beanstalkd, B1, "a"), Builder(beanstalkd, B2, "b")
    try:
        build = farm.submit(broker)
        until(lambda: "2 workers could take it." in explained(build), 30, "both are free")
        again = one.fail(build)
        until(lambda: "1 worker could take it." in explained(build), 30, "the first leaves it to the second")
        assert f"{B1} is free, but could not build it, and leaves it to others for " in explained(build)
        two.fail(again)
        until(lambda: "No worker takes it now." in explained(build), 30, "both have failed it")
        assert f"{B2} is free, but could not build it, and leaves it to others for " in explained(build)
        assert "Expected start: at once" not in explained(build)
    finally:
        one.broker.close()
        two.broker.close()
    assert "Nobody watches tube x86_64" in explained(build)
    assert f"{B1} vanished: it was last heard of" in explained(build)
    assert first_watched(build, "nobody watches tube x86_64").startswith("queued: nobody watches")


def test_a_builder_that_a_person_drained_just_now_is_not_called_usable(
    farm: Farm, broker: Broker, beanstalkd: Beanstalkd
) -> None:
    one = Builder(beanstalkd, B1, "a")
    build = farm.submit(broker)
    until(lambda: "1 worker could take it." in explained(build), 30, "it is free")
    assert run("drain", "b1", "--why", "new disk").returncode == 0
    assert "new disk" in explained(build), "before its next heartbeat"
    assert "could take it" not in explained(build)
    run("resume", "b1")
    one.broker.close()


# --- 80 columns


def test_the_table_fits_a_terminal_of_80_columns(farm: Farm, beanstalkd: Beanstalkd) -> None:
    one = Builder(beanstalkd, B1, "a")
    farm.start_service("repogen")
    until(lambda: states() == ["idle", "idle"], 30, "both are there")
    ours, its = pty.openpty()
    environment = {**os.environ, "COLUMNS": "80", "LINES": "24"}
    for words in (["builders"], ["doctor", "--role", "controller", "--all"]):
        subprocess.run([REIMZUL, *words], stdout=its, check=False, env=environment, timeout=60)
    os.close(its)
    shown = b""
    with contextlib.suppress(OSError):  # EIO: all is read
        while chunk := os.read(ours, 65536):
            shown += chunk
    os.close(ours)
    lines = shown.decode().splitlines()
    assert any(line.startswith(B1) for line in lines)
    assert any("repogen-1" in line and "idle" in line for line in lines if len(line) < 120)
    assert f"host.{B1}" in shown.decode()
    one.broker.close()


def test_a_heartbeat_of_a_notifier_of_the_future_is_kept(farm: Farm, broker: Broker) -> None:
    """A role that this version does not know is no worker, and takes no build."""
    broker.announce(WorkerHeartbeat(host=B1, instance="mirror-1", state="idle", role="mirror", at=time.time()))
    store = WorkerStore(farm.folder / "presence.sqlite")
    until(lambda: [each.role for each in store.load_all()] == ["mirror"], 30, "it is kept")
    assert store.load_workers() == []

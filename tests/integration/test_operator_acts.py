# SPDX-License-Identifier: Apache-2.0
"""The commands that follow, explain and act, as they are installed, on a real beanstalkd with a real notifier."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as openmetrics
from prometheus_client.parser import text_string_to_metric_families as prometheus

from reimzul.admin import actions, lookup
from reimzul.core import control, validators
from reimzul.core.arch import read_arches
from reimzul.core.beanstalk import CREATEREPO, PRIORITY, Broker, ReservedJob, arch_tube, cancel_tube, drain_tube
from reimzul.core.errors import ReimzulError
from reimzul.core.manifest import sha256_of
from reimzul.core.message import (
    BuildEvent,
    BuildRequest,
    CurrentBuild,
    RepogenRequest,
    Status,
    WorkerHeartbeat,
    event_for,
    new_attempt,
)
from reimzul.core.mock_exit_codes import describe_code
from reimzul.core.store_paths import StorePaths
from reimzul.history import BuildFilter, BuildRecord, NoHistory, open_history
from tests import commands, uploads, webserver
from tests.conftest import Beanstalkd
from tests.events import ATTEMPT, OTHER_ATTEMPT, build_id, event
from tests.notifier import Running
from tests.schemas import check_line, check_output
from tests.waiting import until

REIMZUL = Path(sys.executable).with_name("reimzul")
SRPM = "time-1.7-45.el7.src.rpm"
X86_64 = arch_tube("x86_64")


class Ground:
    """A controller: beanstalkd, a notifier, and who stands for builders is the test."""

    def __init__(self, folder: Path, beanstalkd: Beanstalkd, broker: Broker) -> None:
        self.folder, self.broker = folder, broker
        (folder / "incoming").mkdir()
        self.srpm = folder / "incoming" / SRPM
        self.srpm.write_bytes(b"a source rpm")
        self.notifier = Running(folder, beanstalkd)
        self.notifier.settings["incoming"] = {"folder": folder / "incoming"}
        self.notifier.settings["bstore"] = {"base_url": "http://127.0.0.1:9/bstore/repo/", "root": folder / "store"}
        self.notifier.start()

    def submit(self, number: int = 1, *, priority: int = PRIORITY, **more: Any) -> int:
        """Queue a build as reimzul-submit does; the job's number."""
        given: dict[str, Any] = {
            "srpm": SRPM, "arch": "x86_64", "target": "c7.1708.u.x86_64", "disttag": ".el7", "submitter": "johnny",
            "build_id": build_id(number), "timestamp": validators.now_timestamp(), "srpm_sha256": sha256_of(self.srpm),
        }  # fmt: skip
        request = BuildRequest(**{**given, **more})
        job = self.broker.put(X86_64, request, priority=priority)
        where = {"tube": "x86_64", "job": job, "priority": priority}
        self.broker.announce(event_for(request, Status.QUEUED, pkgname="time", evr="1.7-45.el7", **where))
        self.until(number, lambda leg: leg["job"] == job, "it is queued")
        return job

    def announce(self, number: int, status: str, **more: Any) -> None:
        """Say what a worker would."""
        leg = self.leg(number)
        names = ("srpm", "arch", "target", "disttag", "submitter", "build_id", "timestamp", "pkgname", "evr")
        known = {name: leg[name] for name in names}
        at = round(time.time(), 3)
        told = {"builder_fqdn": "builder1.example.org", "attempt": new_attempt(), "at": at, **more}
        self.broker.announce(BuildEvent(status=status, **{**known, **told}))

    def presence(self, **more: Any) -> None:
        """Say what a worker says of itself."""
        given: dict[str, Any] = {"host": "builder1.example.org", "instance": "1", "state": "idle"}
        told = {"arches": ("x86_64", "i386"), "free_mib": 4096, "at": time.time(), "version": "0.1.0"}
        self.broker.announce(WorkerHeartbeat(**{**given, **told, **more}))
        until(lambda: "builder1" in run("builders").stdout, 20, "it was heard")

    def claim(self) -> ReservedJob[BuildRequest]:
        """Take the next job, as a worker."""
        self.broker.watch(["x86_64"])
        found = self.broker.reserve({"x86_64": X86_64}, 0)
        assert found
        return found

    def leg(self, number: int = 1, arch: str = "x86_64") -> dict[str, Any]:
        """The history's record of a build; None if there is none."""
        try:
            with lookup.reading_history(f"sqlite:///{self.folder}/history.sqlite") as history:
                found = history.find_builds(BuildFilter(build_id=build_id(number), arch=arch), 1)
                return found[0].to_document() if found else {}
        except NoHistory:
            return {}

    def until(self, number: int, condition: Callable[[dict[str, Any]], object], what: str) -> None:
        """Wait until the history says something of a build."""
        until(lambda: bool((leg := self.leg(number)) and condition(leg)), 20, what)


def run(*words: object, **more: Any) -> subprocess.CompletedProcess[str]:
    """Run reimzul in a pipe."""
    argv = [str(REIMZUL), *map(str, words)]
    given: dict[str, Any] = {"capture_output": True, "text": True, "timeout": 60, "stdin": subprocess.DEVNULL}
    done = subprocess.run(argv, check=False, **{**given, **more}) if more else commands.run(argv)
    check_line(words, done.stdout)
    return done


def run_json(*words: object) -> Any:
    """The JSON that it prints."""
    done = run(*words, "--json")
    assert done.stdout, done.stderr
    return json.loads(done.stdout)


@contextlib.contextmanager
def serving_failed_leg(folder: Path, request: BuildRequest) -> Iterator[None]:
    """Serve a store that has the failed x86_64 leg of a request, and let the commands read it."""
    store = StorePaths(folder / "bstore")
    store.spool.mkdir(parents=True)
    spool = uploads.spool_of(store, uploads.upload(store, {}, of=request, status="Failed"))
    entry = folder / "bstore" / "index" / f"{request.build_id}.x86_64"
    entry.parent.mkdir(parents=True, exist_ok=True)
    spool.rename(entry)
    server = webserver.serve(folder)
    ini = folder / "reimzul.ini"
    ini.write_text(ini.read_text().replace("127.0.0.1:9/", f"127.0.0.1:{server.server_port}/"))
    try:
        yield
    finally:
        webserver.close(server)


@pytest.fixture
def ground(tmp_path: Path, beanstalkd: Beanstalkd, broker: Broker, monkeypatch: pytest.MonkeyPatch) -> Iterator[Ground]:
    """A controller that runs."""
    monkeypatch.setenv("REIMZUL_CONFIG", str(tmp_path / "reimzul.ini"))
    made = Ground(tmp_path, beanstalkd, broker)
    yield made
    made.notifier.signal(signal.SIGTERM)


SHORT = build_id(1)[:8]


# --- cancel


def test_a_waiting_build_is_gone_at_once(ground: Ground) -> None:
    ground.submit()
    done = run("cancel", SHORT, "--why", "wrong branch")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == f"{SHORT} ({SRPM} for c7.1708.u.x86_64): cancelled; it had not begun\n"
    assert ground.broker.tube_stats("x86_64").ready == 0
    ground.until(1, lambda leg: leg["status"] == "Cancelled", "the history knows")
    assert ground.leg()["reason"].endswith(": wrong branch")
    assert control.cancel_flag(ground.broker, build_id(1)), "who put it anew meanwhile is to see it"
    assert run_json("cancel", SHORT) == [
        {"build_id": build_id(1), "outcome": "already cancelled", "message": "it was cancelled already"}
    ]


def test_who_has_a_build_is_told_and_waited_for(ground: Ground) -> None:
    ground.submit()
    claim = ground.claim()
    ground.announce(1, "Building")
    ground.until(1, lambda leg: leg["status"] == "Building", "it is built")
    with subprocess.Popen([REIMZUL, "cancel", SHORT], stdout=subprocess.PIPE, text=True) as process:
        until(lambda: control.cancel_flag(ground.broker, build_id(1)) is not None, 20, "the mark is there")
        assert process.poll() is None
        ground.announce(1, "Cancelled", reason="cancelled by johnny")
        said, _ = process.communicate(timeout=30)
    assert process.returncode == 0
    assert said.endswith("cancelled; builder1.example.org has ended it\n")
    claim.delete()


def test_a_worker_that_does_not_hear_is_said(ground: Ground) -> None:
    ground.submit()
    claim = ground.claim()
    done = run("cancel", SHORT, "--wait", "--timeout", "0.1")
    assert done.returncode == 1
    assert "flagged; its worker has not ended it yet, and does so when it sees the flag" in done.stderr
    claim.delete()


@pytest.mark.parametrize(("status", "words"), [("Published", "published for x86_64"), ("Failed", "failed for x86_64")])
def test_what_is_over_cannot_be_cancelled(ground: Ground, status: str, words: str) -> None:
    ground.submit()
    ground.claim().delete()
    ground.announce(1, status)
    ground.until(1, lambda leg: leg["status"] != "Queued", "it is over")
    done = run("cancel", SHORT)
    assert done.returncode == 1
    assert f"too late: {words}" in done.stderr
    assert control.cancel_flag(ground.broker, build_id(1)) is None


def test_a_build_whose_job_is_gone_and_of_which_nothing_was_told_is_not_said_to_have_never_begun(
    ground: Ground,
) -> None:
    """As where the history lags: it may be published."""
    ground.submit()
    ground.claim().delete()
    done = run("cancel", SHORT, "--no-wait")
    assert (done.returncode, done.stdout) == (1, "")
    assert "flagged; its job is gone, and its outcome has not been announced yet" in done.stderr
    with subprocess.Popen([REIMZUL, "cancel", SHORT], stderr=subprocess.PIPE, text=True) as process:
        ground.announce(1, "Published")
        _, said = process.communicate(timeout=30)
    assert process.returncode == 1
    assert "too late: published for x86_64" in said


def test_a_success_that_is_not_published_yet_is_marked(ground: Ground) -> None:
    ground.submit()
    ground.claim().delete()
    ground.announce(1, "Success")
    ground.until(1, lambda leg: leg["status"] == "Success", "it is built")
    assert run("cancel", SHORT, "--no-wait").returncode == 1
    assert control.cancel_flag(ground.broker, build_id(1))


def test_a_job_of_that_number_which_is_another_builds_is_left_alone(ground: Ground) -> None:
    """As after beanstalkd has lost its binlog: its job numbers begin again."""
    job = ground.submit()
    ground.broker.delete(job)
    stranger = ground.broker.put_raw("x86_64", b'{"not": "ours"}', priority=PRIORITY)
    history = open_history(f"sqlite:///{ground.folder}/history.sqlite")
    leg = {**ground.leg(), "job": stranger}
    history._db.execute("UPDATE builds SET document = ?", [json.dumps(leg)])  # type: ignore[attr-defined]
    history.close()
    run("cancel", SHORT, "--no-wait")
    assert ground.broker.peek(stranger) == b'{"not": "ours"}'
    assert lookup.job_state(ground.broker, BuildRecord.from_document(leg)) == "gone"


# --- raise


def test_a_raised_build_is_given_out_first(ground: Ground) -> None:
    for number in range(1, 5):
        ground.submit(number, priority=1024 if number == 2 else PRIORITY)
    done = run("raise", build_id(4)[:8], build_id(3)[:8])
    assert done.returncode == 0, done.stderr
    assert [ground.claim().message.build_id for _ in range(4)] == [build_id(number) for number in (3, 4, 2, 1)]
    ground.until(3, lambda leg: leg["priority"] < 1024, "the history knows its new job")
    assert ground.leg(3)["status"] == "Queued"


def test_what_is_first_already_stays(ground: Ground) -> None:
    ground.submit()
    first = run_json("raise", SHORT)[0]["job"]
    ground.until(1, lambda leg: leg["job"] == first, "the history knows its new job")
    (again,) = run_json("raise", SHORT)
    assert (again["message"], again["job"], again["done"]) == ("it is the first already", first, True)


def test_what_a_worker_has_is_left_to_it(ground: Ground) -> None:
    ground.submit()
    claim = ground.claim()
    done = run("raise", SHORT)
    assert done.returncode == 1
    assert "a worker has taken it already" in done.stderr
    assert ground.broker.tube_stats("x86_64").ready + ground.broker.tube_stats("x86_64").delayed == 0
    claim.delete()


def test_a_worker_that_takes_it_in_that_moment_has_it_alone(ground: Ground, beanstalkd: Beanstalkd) -> None:
    """Between our look and our delete: the job that was put for it is withdrawn."""
    ground.submit()
    leg = BuildRecord.from_document(ground.leg())
    found = lookup.find_job(ground.broker, leg)
    assert found
    with beanstalkd.connect() as other:
        other.watch(["x86_64"])
        claim = other.reserve({"x86_64": X86_64}, 0)
        assert claim
        assert claim.id == found.job
        raised = actions.move_to_front(ground.broker, leg, found, 7)
        assert (raised.done, raised.message) == (False, "a worker has just taken it")
        stats = ground.broker.tube_stats("x86_64")
        assert (stats.ready, stats.delayed, stats.reserved) == (0, 0, 1)


def test_a_build_that_is_being_cancelled_is_not_raised(ground: Ground) -> None:
    ground.submit()
    leg = BuildRecord.from_document(ground.leg())
    found = lookup.find_job(ground.broker, leg)
    assert found
    control.set_flag(ground.broker, cancel_tube(build_id(1)), control.new_flag("johnny"))
    assert actions.move_to_front(ground.broker, leg, found, 7).message == "it is being cancelled"
    assert ground.broker.tube_stats("x86_64").ready == 1


# --- explain


def test_a_build_that_waits_for_its_source_says_so_and_the_fix(ground: Ground) -> None:
    ground.submit()
    claim = ground.claim()
    job = ground.broker.put(X86_64, claim.message, priority=PRIORITY, delay=600)  # as a worker puts it again
    claim.delete()
    ground.srpm.chmod(0o600)
    put = {"tube": "x86_64", "job": job, "priority": PRIORITY, "due": time.time() + 600, "attempt": ""}
    waits_for = "its source: it cannot be downloaded: HTTP 403, on builder1"
    ground.announce(1, "Queued", builder_fqdn="", waits_for=waits_for, **put)
    ground.until(1, lambda leg: leg["waits_for"], "the history knows")
    said = run("explain", SHORT).stdout
    assert f"It waits for {waits_for}." in said
    assert "at once" not in said
    assert f"{ground.srpm} has mode 0600, and other users cannot read it: chmod o+r {ground.srpm}" in said
    (leg,) = run_json("explain", SHORT)["arches"]
    assert leg["starts_in"] is None


# --- retry


def test_a_retry_is_the_same_again_and_names_its_parent(ground: Ground) -> None:
    ground.submit()
    before = ground.claim()
    before.delete()
    ground.announce(1, "Failed", reason="%build failed")
    ground.until(1, lambda leg: leg["status"] == "Failed", "it has failed")
    done = run("retry", SHORT, "--now")
    assert done.returncode == 0, done.stderr
    claim = ground.claim()
    after, old = claim.message, before.message
    assert claim.stats.priority == 1024
    same = ("srpm", "arch", "target", "disttag", "scratch", "srpm_sha256")
    assert [getattr(after, name) for name in same] == [getattr(old, name) for name in same]
    assert (after.parent, after.legs, after.rebuild) == (old.build_id, (), False)
    assert after.build_id != old.build_id
    assert done.stdout.startswith(f"{after.build_id[:8]} repeats {SHORT}: ")
    until(
        lambda: f"repeats       build {old.build_id}" in run("show", after.build_id).stdout, 20, "it is in the history"
    )
    claim.delete()


def test_a_retry_refuses_a_source_that_the_web_server_may_not_read(ground: Ground) -> None:
    ground.submit()
    ground.srpm.chmod(0o640)
    done = run("retry", SHORT)
    assert done.returncode == 4
    assert f"{ground.srpm} has mode 0640, and other users cannot read it" in done.stderr
    assert ground.broker.tube_stats("x86_64").ready == 1, "the first alone"


def test_a_retry_writes_a_name_that_every_worker_takes(ground: Ground, monkeypatch: pytest.MonkeyPatch) -> None:
    ground.submit()
    ground.claim().delete()
    ground.announce(1, "Failed", reason="%build failed")
    ground.until(1, lambda leg: leg["status"] == "Failed", "it has failed")
    monkeypatch.setenv("LOGNAME", "CORP\\jdoe")
    for version, name in (("0.1.0", "CORP_jdoe"), ("0.2.0", "CORP\\jdoe")):
        ground.presence(version=version)
        until(lambda version=version: version in run("builders").stdout, 20, "it was heard")  # type: ignore[misc]
        assert run("retry", SHORT).returncode == 0
        claim = ground.claim()
        assert claim.message.submitter == name
        claim.delete()


@pytest.mark.parametrize("status", ["Success", "Published"])
def test_a_published_build_is_rebuilt_once_a_person_agrees(ground: Ground, status: str) -> None:
    ground.submit()
    ground.claim().delete()
    ground.announce(1, status)
    ground.until(1, lambda leg: leg["status"] == "Success", "it is built")
    done = run("retry", SHORT)
    assert done.returncode == 2
    assert "give --yes" in done.stderr
    assert "replace it by a rebuild?" in done.stderr
    assert run("retry", SHORT, "--yes").returncode == 0
    claim = ground.claim()
    assert claim.message.rebuild is True
    assert claim.message.parent
    claim.delete()


def test_only_the_failed_legs_are_built_again(ground: Ground) -> None:
    ground.submit()
    ground.claim().delete()
    ground.announce(1, "Published")
    ground.announce(1, "Failed", arch="i386", reason="%build failed")
    until(lambda: bool(ground.leg(1, "i386")) and ground.leg()["published"], 20, "both legs are over")
    (queued,) = run_json("retry", SHORT, "--failed")
    assert (queued["arches"], queued["tube"], queued["target"]) == (["i386"], "x86_64", "c7.1708.u.x86_64")
    claim = ground.claim()
    assert (claim.message.legs, claim.message.arch) == (("i386",), "x86_64")
    claim.delete()
    until(lambda: run("builds", "--state", "queued").stdout.count("\ti386\t") == 1, 20, "that leg is known as queued")
    again = run("retry", queued["build_id"])
    assert again.returncode == 0
    assert ": i386 for c7.1708.u.x86_64" in again.stdout, "the same again is that leg alone"


def test_a_retry_of_one_leg_that_is_repeated_is_that_leg_alone(ground: Ground, tmp_path: Path) -> None:
    """The one that was asked for by its arch, too: which legs it had is in its manifest."""
    job = ground.submit(legs=("x86_64",))
    request = BuildRequest.decode(ground.broker.peek(job))
    ground.claim().delete()
    ground.announce(1, "Failed", reason="%build failed")
    ground.until(1, lambda leg: leg["status"] == "Failed", "it has failed")
    with serving_failed_leg(tmp_path, request):
        for words in ([], ["--failed"]):
            (queued,) = run_json("retry", SHORT, *words)
            claim = ground.claim()
            assert (claim.message.legs, queued["arches"]) == (("x86_64",), ["x86_64"])
            claim.delete()


def test_a_retry_that_cannot_be_announced_is_queued_all_the_same(
    ground: Ground, monkeypatch: pytest.MonkeyPatch
) -> None:
    ground.submit()
    ground.claim().delete()
    with lookup.reading_history(f"sqlite:///{ground.folder}/history.sqlite") as history:
        build = lookup.find_build(history, SHORT)

    def raise_unavailable(*_: object) -> None:
        raise ReimzulError("beanstalkd is away")

    asked = BuildRequest(
        srpm=SRPM, arch="x86_64", target="c7.1708.u.x86_64", disttag=".el7", submitter="johnny",
        build_id=build_id(2), timestamp=validators.now_timestamp(),
    )  # fmt: skip
    monkeypatch.setattr(Broker, "announce", raise_unavailable)
    (queued,), fault = actions.queue_retries(ground.broker, [(build, asked)], read_arches(), PRIORITY)
    assert (queued.build_id, fault) == (build_id(2), "")


def test_where_nothing_failed_there_is_nothing_to_retry(ground: Ground) -> None:
    ground.submit()
    done = run("retry", SHORT, "--failed")
    assert done.returncode == 4
    assert "it has failed on no arch: x86_64 is queued" in done.stderr


def test_a_source_rpm_that_is_gone_is_one_clear_line(ground: Ground) -> None:
    ground.submit()
    ground.srpm.unlink()
    done = run("retry", SHORT)
    assert done.returncode == 4
    assert done.stderr == f"reimzul: {SHORT} ({SRPM} for c7.1708.u.x86_64): {ground.srpm}: no such file or directory\n"
    assert ground.broker.tube_stats("x86_64").ready == 1


# --- drain and resume


def test_a_builder_is_drained_and_let_back(ground: Ground) -> None:
    ground.presence()
    assert "takes no more jobs" in run("drain", "builder1", "--why", "new disk").stdout
    found = control.drain_flag(ground.broker, "builder1.example.org")
    assert found
    assert found.why == "new disk"
    again = run_json("drain", "builder1.example.org")
    assert (again["changed"], again["drained"]) == (False, True)
    assert "new disk" in run("builders").stdout
    shown = run_json("builders")[0]
    assert (shown["state"], shown["drain"]["reason"]) == ("drained", "new disk"), "before its next heartbeat says so"
    assert "takes jobs again; it was drained by" in run("resume", "builder1").stdout
    assert control.drain_flag(ground.broker, "builder1.example.org") is None
    assert "was not drained" in run("resume", "builder1").stdout


def test_with_beanstalkd_away_builders_are_shown_as_far_as_they_are_known(
    ground: Ground, beanstalkd: Beanstalkd, tmp_path: Path
) -> None:
    ground.presence()
    ini = tmp_path / "reimzul.ini"
    ini.write_text(ini.read_text().replace(f"port = {beanstalkd.port}\n", "port = 9\n"))
    done = run("builders", "--json")
    assert done.returncode == 5
    assert "which builders are drained" in done.stderr
    (shown,) = json.loads(done.stdout)
    assert (shown["builder"], shown["drain"]) == ("builder1.example.org", None)


def test_a_builder_nobody_heard_of_is_not_drained_unless_that_is_meant(ground: Ground) -> None:
    ground.presence()
    done = run("drain", "bilder1")
    assert done.returncode == 4
    assert "is builder1 meant?" in done.stderr
    assert run("drain", "../x").returncode == 4
    assert run("drain", "builder9.example.org", "--force").returncode == 0
    assert control.drain_flag(ground.broker, "builder9.example.org")
    tubes = {each["name"]: each for each in run_json("queues", "--all")["tubes"]}
    assert tubes[drain_tube("builder9.example.org")]["unwatched"] is False
    assert "worker." not in run("queues").stdout, "a mark is no work"


def test_what_a_drained_builder_finishes_is_said(ground: Ground) -> None:
    hand = CurrentBuild(build_id=build_id(1), srpm=SRPM, target="c7.u.x86_64", arch="x86_64", attempt=new_attempt())
    ground.presence(state="building", build=hand)
    assert run_json("drain", "builder1")["building"] == [SRPM]


# --- looking


def test_what_a_build_waits_for_is_explained(ground: Ground) -> None:
    for number in (1, 2, 3):
        ground.submit(number)
    ground.presence(state="unfit", why="disk under /srv: 17 MiB free, 4096 are needed")
    ground.broker.watch(["x86_64"])
    (leg,) = run_json("explain", build_id(3)[:8])["arches"]
    assert (leg["ahead"], leg["job_state"], leg["state"], leg["starts_in"]) == (2, "ready", "queued", None)
    assert leg["workers"][0]["reason"].startswith("disk under /srv")
    said = run("explain", build_id(3)[:8]).stdout
    assert "2 builds are ahead of it in that tube" in said
    assert "builder1.example.org takes no jobs (unfit: disk under /srv: 17 MiB free, 4096 are needed)." in said


def test_every_attempt_is_shown_with_what_came_of_it(ground: Ground) -> None:
    ground.submit()
    first, second = ATTEMPT, OTHER_ATTEMPT
    ground.announce(1, "Building", attempt=first, started=time.time() - 60)
    ground.announce(1, "Queued", attempt=first, reason="the disk was full", job=9, tube="x86_64", priority=PRIORITY)
    ground.announce(1, "Building", attempt=second, builder_fqdn="builder2.example.org", at=time.time() + 1)
    by = {"attempt": second, "builder_fqdn": "builder2.example.org"}
    ground.announce(1, "Failed", exit_code=11, at=time.time() + 2, reason="it took too long", **by)
    ground.until(1, lambda leg: leg["status"] == "Failed", "it has failed")
    said = run("show", SHORT).stdout
    assert "exit code     11: the build timed out" in said
    assert f"attempt 1     {first} on builder1.example.org" in said
    assert "the disk was full" in said
    assert f"attempt 2     {second} on builder2.example.org" in said
    (leg,) = run_json("show", SHORT)["arches"]
    assert (leg["exit_code_meaning"], leg["files"]) == ("the build timed out", None)
    assert leg["no_files_reason"].startswith("bstore: index/"), "nobody can open the URL that programs use"


@pytest.mark.parametrize("command", ["show", "explain", "log", "cancel", "retry", "raise", "watch"])
@pytest.mark.parametrize(
    ("given", "words"),
    [
        ("0123", "no build's id begins with 0123; `reimzul builds` shows which there are"),
        ("xyz", "'xyz' is no build id, nor the beginning of one: up to 32 hex digits"),
        ("; rm", "is no build id"),
        ("c", "more than one build's id begins with c: c"),
    ],
)
def test_an_id_that_names_no_build_or_several_is_one_clear_line(
    recorded: None, command: str, given: str, words: str
) -> None:
    done = run(command, given)
    assert (done.returncode, done.stdout) == (4, "")
    assert words in done.stderr
    assert len(done.stderr.splitlines()) == 1


@pytest.fixture
def recorded(tmp_path: Path, beanstalkd: Beanstalkd, broker: Broker, monkeypatch: pytest.MonkeyPatch) -> None:
    """A history with two builds whose ids begin with c, and no notifier."""
    ini = (
        f"[beanstalkd]\nhost = 127.0.0.1\nport = {beanstalkd.port}\n"
        f"[history]\nurl = sqlite:///{tmp_path}/history.sqlite\n"
        f"[notifier]\npresence = {tmp_path}/presence.sqlite\n[bstore]\nbase_url = http://127.0.0.1:9/bstore/repo/\n"
    )
    (tmp_path / "reimzul.ini").write_text(ini)
    monkeypatch.setenv("REIMZUL_CONFIG", str(tmp_path / "reimzul.ini"))
    history = open_history(f"sqlite:///{tmp_path}/history.sqlite")
    history.record([event("Queued", 1), event("Published", 2), event("Failed", 2, arch="i386", reason="%build failed")])
    history.close()


def test_an_id_may_be_in_capitals_and_tab_completes_it(recorded: None) -> None:
    assert run("show", build_id(2)[:6].upper()).returncode == 0
    asked = {"_REIMZUL_COMPLETE": "bash_complete", "COMP_WORDS": "reimzul show c8", "COMP_CWORD": "2"}
    done = subprocess.run(
        [REIMZUL], env={**os.environ, **asked}, capture_output=True, text=True, timeout=30, check=False
    )
    assert done.stdout == f"plain,{build_id(2)}\n"
    asked["REIMZUL_CONFIG"] = "/nowhere.ini"
    done = subprocess.run(
        [REIMZUL], env={**os.environ, **asked}, capture_output=True, text=True, timeout=30, check=False
    )
    assert (done.stdout.strip(), done.stderr) == ("", "")


def test_a_watch_in_a_pipe_is_a_line_for_each_change_and_its_exit_code_the_result(ground: Ground) -> None:
    ground.submit()
    claim = ground.claim()
    with subprocess.Popen([REIMZUL, "watch", SHORT], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        lines = [process.stdout.readline()]
        for status in ("Building", "Failed"):
            ground.announce(1, status, attempt=ATTEMPT, reason="%build failed", skipped={"i386": "noarch"})
            lines.append(process.stdout.readline())
        claim.delete()
        assert process.wait(30) == 1
    states = [line.split("\t")[4] for line in lines]
    assert states == ["queued, next", "building", "failed: %build failed"]


def test_a_watch_of_what_is_published_ends_well_at_once(recorded: None) -> None:
    lines = [json.loads(line) for line in run("watch", "c8", "--json").stdout.splitlines()]
    assert [(line["arch"], line["state"], line["over"]) for line in lines] == [
        ("x86_64", "published", True), ("i386", "failed", True),
    ]  # fmt: skip
    assert run("watch", "c8").returncode == 1, "one leg has failed"


def read_some(terminal: int) -> bytes:
    """The output since the last call; may be empty."""
    with contextlib.suppress(BlockingIOError):
        return os.read(terminal, 65536)
    return b""


def test_a_watch_left_by_ctrl_c_leaves_the_build_alone(ground: Ground) -> None:
    ground.submit()
    ours, its = pty.openpty()
    with subprocess.Popen([REIMZUL, "watch", SHORT], stdout=its, stderr=subprocess.PIPE, text=True) as process:
        os.set_blocking(ours, False)
        until(lambda: b"queued: nobody watches" in read_some(ours), 30, "its place in the queue is shown")
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=30)
    os.close(its)
    os.close(ours)
    assert process.returncode == 130
    assert f"the builds go on; to follow them again: reimzul watch {SHORT}" in said
    assert ground.broker.tube_stats("x86_64").ready == 1


def test_a_build_that_nobody_has_told_of_yet_is_waited_for(ground: Ground) -> None:
    words: list[str | Path] = [REIMZUL, "watch", "--new", build_id(1)]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        assert "submitted; not recorded by the notifier yet" in process.stdout.readline()
        ground.submit()
        assert "queued: nobody watches tube x86_64" in process.stdout.readline()
        process.send_signal(signal.SIGINT)
        process.wait(30)
    assert run("watch", "--new", SHORT).returncode == 4


def test_a_log_that_cannot_be_had_is_one_clear_line(ground: Ground) -> None:
    ground.submit()
    assert run("log", SHORT).stderr == "reimzul: no attempt to build it for x86_64 has begun: queued\n"
    assert run("log", SHORT, "--arch", "vax").stderr == "reimzul: the build is not for vax; it is for x86_64\n"
    assert run("log", SHORT, "mail").returncode == 2
    ground.announce(1, "Building", attempt=ATTEMPT)
    ground.until(1, lambda leg: leg["attempts"], "somebody has begun it")
    done = run("log", SHORT)
    assert (done.returncode, done.stdout) == (1, "")
    assert "127.0.0.1:9" in done.stderr
    assert len(done.stderr.splitlines()) == 1
    done = run("log", SHORT, "--attempt", "2")
    assert (done.returncode, done.stderr) == (4, f"reimzul: no attempt 2; known attempts: 1 ({ATTEMPT})\n")


def test_without_ids_all_that_goes_on_is_followed_and_its_end_is_told(ground: Ground) -> None:
    ground.submit(1)
    ground.submit(2)
    with subprocess.Popen([REIMZUL, "watch", "--json"], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        first = {check_output("watch", process.stdout.readline())["build_id"] for _ in range(2)}
        assert first == {build_id(1), build_id(2)}
        run("cancel", build_id(2))
        ended = check_output("watch", process.stdout.readline())
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 130
    assert (ended["build_id"], ended["state"], ended["over"]) == (build_id(2), "cancelled", True)


# --- figures


def test_figures_are_told_as_a_table_and_as_json(recorded: None) -> None:
    rows = [line.split("\t") for line in run("stats", "--since", "2025-01-01").stdout.splitlines()]
    assert ["result", "published", "1"] in rows
    assert ["reason", "%build failed", "1"] in rows
    figures = run_json("stats", "--since", "2025-01-01")
    assert figures["results"] == {"published": 1, "failed": 1, "queued": 1}
    assert set(figures["arches"]) == {"x86_64", "i386"}
    assert set(figures["packages"]) == {"time"}
    assert run_json("stats", "--since", "1h")["results"] == {}


def test_what_prometheus_is_told_is_what_it_reads(ground: Ground, tmp_path: Path) -> None:
    ground.submit()
    ground.presence()
    file = tmp_path / "reimzul.prom"
    assert run("metrics", "--output", file).returncode == 0
    text = file.read_text()
    families = {family.name: family for family in openmetrics(text)}
    assert len(families) == len(list(prometheus(text)))
    ready = [s.value for s in families["reimzul_tube_jobs"].samples if s.labels == {"tube": "x86_64", "state": "ready"}]
    assert ready == [1.0]
    assert file.stat().st_mode & 0o777 == 0o644
    assert run("metrics").stdout.count("\n") == text.count("\n")


def test_a_part_that_is_away_is_told_as_down(recorded: None, tmp_path: Path) -> None:
    (tmp_path / "reimzul.ini").write_text(
        f"[beanstalkd]\nhost = 127.0.0.1\nport = 9\n[history]\nurl = sqlite:///{tmp_path}/none.sqlite\n"
        f"[notifier]\npresence = {tmp_path}/presence.sqlite\n"
    )
    done = run("metrics")
    assert done.returncode == 1
    assert 'reimzul_part_up{part="beanstalkd"} 0' in done.stdout
    assert "# EOF" in done.stdout
    assert len(done.stderr.splitlines()) == 2
    done = run("metrics", "--output", tmp_path / "no" / "x.prom")
    assert done.returncode == 4
    assert "no such file or directory" in done.stderr


# --- repogen


def test_a_target_is_indexed_anew_by_its_name(ground: Ground) -> None:
    ground.submit()
    done = run("repogen", "c7.1708.u.x86_64")
    assert done.returncode == 0
    assert "warning: no repogen watches the tube createrepo" in done.stderr
    ground.broker.watch([CREATEREPO.name])
    claim = ground.broker.reserve({CREATEREPO.name: CREATEREPO}, 0)
    assert claim
    assert claim.message == RepogenRequest(target="c7.1708.u.x86_64")
    claim.delete()


def test_a_target_that_is_none_is_refused(recorded: None) -> None:
    done = run("repogen", "../x")
    assert done.returncode == 4
    assert "is not a target" in done.stderr


# --- the JSON of every command; `run` holds it against docs/schema/


def test_every_command_prints_what_its_schema_says(ground: Ground) -> None:
    for number in (1, 2, 3):
        ground.submit(number)
    hand = CurrentBuild(build_id=build_id(9), srpm=SRPM, target="c7.u.x86_64", arch="x86_64", attempt=new_attempt())
    ground.presence(state="building", build=hand)
    claim = ground.claim()
    ground.announce(1, "Building", started=time.time())
    ground.announce(1, "Failed", exit_code=1, reason="%build failed", finished=time.time())
    ground.until(1, lambda leg: leg["status"] == "Failed", "it has failed")
    claim.delete()
    assert {build["state"] for build in run_json("builds")} == {"queued", "failed"}
    assert run_json("show", SHORT)["arches"][0]["exit_code_meaning"] == describe_code(1)
    (explained,) = run_json("explain", build_id(2)[:8])["arches"]
    assert explained["message"].splitlines()[0].startswith("It waits in tube x86_64")
    assert explained["workers"][0]["free_bytes"] == 4096 * 1024**2
    assert run_json("watch", SHORT)["state"] == "failed"
    assert run_json("builders")[0]["builder"] == "builder1.example.org"
    assert run_json("stats")["results"] == {"failed": 1, "queued": 2}
    assert run_json("queues")["pending"] == []
    assert (run_json("drain", "builder1")["drained"], run_json("resume", "builder1")["drained"]) == (True, False)
    assert run_json("raise", build_id(3)[:8])[0]["done"]
    assert run_json("retry", SHORT)[0]["parent"] == build_id(1)
    assert run_json("cancel", build_id(2)[:8])[0]["outcome"] == "cancelled"
    assert run_json("repogen", "c7.1708.u.x86_64")["watchers"] == 0


def test_times_in_json_are_rfc_3339_and_what_is_unknown_is_null(ground: Ground) -> None:
    ground.submit()
    with subprocess.Popen([REIMZUL, "watch", "--new", build_id(7), "--json"], stdout=subprocess.PIPE, text=True) as new:
        assert new.stdout
        line = check_output("watch", new.stdout.readline())
        new.send_signal(signal.SIGINT)
    assert (line["srpm"], line["state"], line["over"]) == (None, None, False)
    assert line["at"].endswith("Z")
    (build,) = run_json("builds")
    assert build["queued_at"].endswith("Z")
    assert [build[name] for name in ("started", "due", "published", "builder", "skew", "parent")] == [None] * 6

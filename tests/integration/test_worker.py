# SPDX-License-Identifier: Apache-2.0
"""The worker as its installed program: real beanstalkd, rsync and http, a mock that does what the test says."""

from __future__ import annotations

import gzip
import json
import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from devfarm.mockstub import PROGRAM
from reimzul.core import control
from reimzul.core.beanstalk import PRIORITY_NOW, Broker, arch_tube, cancel_tube, heartbeat_tube
from reimzul.core.failure_cause import CAUSE_VERSION, find_cause
from reimzul.core.manifest import read_manifest
from reimzul.core.message import BuildRequest, FailedAttempt
from tests import srpms
from tests.builder import Ears, Host, is_settled, processes, put, request
from tests.conftest import Beanstalkd
from tests.scripted import SAMPLES
from tests.waiting import until


def test_legs_run_side_by_side_with_one_timestamp(host: Host, broker: Broker, ears: Ears, packages: Any) -> None:
    for name, other in (("c9.x86_64", "c9.i386"), ("c9.i386", "c9.x86_64")):
        rpms = [packages["plain.noarch"], packages["hello"]]
        host.mock.plan(name, rpms=rpms, until=[f"started.{other}"])  # neither ends before the other has begun
    host.start()
    wanted = request(extra={"colour": "blue"})
    put(broker, wanted)
    events = ears.wait(2, "Success")
    assert {event["arch"] for event in events} == {"x86_64", "i386"}
    assert {event["timestamp"] for event in events} == {wanted.timestamp}
    assert {event["target"] for event in events} == {"c9.x86_64"}
    assert {event["colour"] for event in ears.heard if "status" in event} == {"blue"}
    until(lambda: is_settled(broker), 5, "the job is deleted")
    legs = host.spool()
    assert set(legs) == {f"{wanted.build_id}.x86_64", f"{wanted.build_id}.i386"}
    main, follower = read_manifest(legs[f"{wanted.build_id}.x86_64"]), read_manifest(legs[f"{wanted.build_id}.i386"])
    assert [rpm.name for rpm in main.rpm_files] == ["hello-1.0-1.src.rpm", "plain-1.0-1.noarch.rpm"]
    assert [rpm.name for rpm in follower.rpm_files] == ["plain-1.0-1.noarch.rpm"]
    assert {row["place"] for row in ears.requests()} == {main.place(), follower.place()}
    for arch in ("x86_64", "i386"):  # repogen is asked first: a worker that dies in between does both again
        order = [said.get("status", "createrepo") for said in ears.heard if said["arch"] == arch]
        assert order == ["Building", "createrepo", "Success"]


def test_mock_is_called_as_the_original_called_it(host: Host, broker: Broker, ears: Ears) -> None:
    host.start(build_timeout=1234)
    put(broker, request())
    ears.wait(2, "Success")
    call = next(call for call in host.mock.builds() if any(word.endswith("c9.x86_64") for word in call))
    assert call[:2] == ["-r", "mock"]
    assert call[call.index("--define") + 1] == "dist .el9"
    assert "--cleanup-after" in call
    assert "--rpmbuild_timeout=1234" in call
    assert any(word.startswith("--uniqueext=") for word in call)
    assert call[-1].endswith("/hello-1.0-1.src.rpm")
    rendered = host.folder / "results" / "configs" / "c9.x86_64" / "mock.cfg"
    assert "http://repohost" not in rendered.read_text()
    assert f"http://127.0.0.1:{host.http_port}/bstore/repo/" in rendered.read_text()
    assert "'reimzul-c9.x86_64'" in rendered.read_text()


def test_a_place_for_records_that_is_none_is_said(host: Host) -> None:
    (host.folder / ".reimzul").touch()
    assert host.start().wait(20) == 3
    assert "[worker] mock_roots: " in (host.folder / "b1.log").read_text()


def test_builds_of_a_worker_share_an_extension_for_each_leg(host: Host, broker: Broker, ears: Ears) -> None:
    """An extension for each attempt would leave a bootstrap root of some 400 MB each time."""
    for name in ("b1", "b2"):
        host.start(name)
    for done in (2, 4, 6, 8):
        put(broker, request())
        ears.wait(done, "Success")
    extensions = {word for call in host.mock.builds() for word in call if word.startswith("--uniqueext=")}
    assert {word.partition(".")[2] for word in extensions} == {"x86_64", "i386"}
    assert len(extensions) <= 4, "two workers, two arches"


def test_bootstrap_roots_are_bounded_and_used_again(host: Host, broker: Broker, ears: Ears) -> None:
    roots = host.folder / "roots"
    (host.configs / "site-defaults.cfg").write_text(f"config_opts['basedir'] = {str(roots)!r}\n")
    host.mock.path = PROGRAM
    for name in ("b1", "b2"):
        host.start(name)
    for done in range(1, 7):
        put(broker, request("plain"))
        ears.wait(done, "Success")
    made = [path.name for path in roots.iterdir() if path.is_dir()]
    assert 1 <= len(made) <= 2, made
    assert all("-bootstrap-reimzul-spare" in name for name in made)


def test_a_rendered_configuration_is_written_once(host: Host, broker: Broker, ears: Ears) -> None:
    host.start()
    put(broker, request())
    ears.wait(2, "Success")
    rendered = host.folder / "results" / "configs" / "c9.x86_64" / "mock.cfg"
    first = rendered.stat().st_mtime_ns, rendered.stat().st_ino
    put(broker, request())
    ears.wait(4, "Success")
    assert (rendered.stat().st_mtime_ns, rendered.stat().st_ino) == first


def test_a_failing_leg_touches_no_other(host: Host, broker: Broker, ears: Ears, packages: Any) -> None:
    host.mock.plan("c9.i386", code=1, logs="failbuild", rpms=[packages["plain.noarch"]])
    host.start()
    wanted = request()
    put(broker, wanted)
    (failed,) = ears.wait(1, "Failed")
    (built,) = ears.wait(1, "Success")
    assert (failed["arch"], built["arch"]) == ("i386", "x86_64")
    assert failed["reason"] == "%build failed"
    assert failed["exit_code"] == 1
    assert "hello.c" in failed["build_log"]
    manifest = read_manifest(host.spool()[f"{wanted.build_id}.i386"])
    assert not manifest.rpm_files
    assert {"build.log", "root.log"} <= {file.name for file in manifest.files}
    (row,) = [row for row in ears.requests() if row["arch"] == "i386"]
    assert row["index"] is False
    until(lambda: is_settled(broker), 5, "the job is deleted")


def test_a_noarch_package_is_built_once(host: Host, broker: Broker, ears: Ears) -> None:
    host.start()
    put(broker, request("plain"))
    (event,) = ears.wait(1, "Success")
    assert event["skipped"] == {"i386": "a noarch package is built once"}
    until(lambda: is_settled(broker), 5, "the job is deleted")
    assert len(host.mock.builds()) == 1


@pytest.mark.parametrize("status", [403, 503])
def test_a_source_that_is_not_served_keeps_no_builder(host: Host, broker: Broker, ears: Ears, status: int) -> None:
    bar = host.incoming / "hello-1.0-1.src.rpm.status"
    bar.write_text(f"{status}")
    host.start()
    wanted = request()
    put(broker, wanted)
    (event,) = ears.wait(1, "Queued")
    assert event["waits_for"].startswith(f"its source: hello-1.0-1.src.rpm cannot be downloaded: HTTP {status}")
    assert event["waits_for"].endswith(", on b1.example.org")
    assert "attempt" not in event
    assert time.time() + 5 < event["due"] < time.time() + 11
    assert broker.tube_stats("x86_64").delayed == 1
    put(broker, request("plain"))
    ears.wait(1, "Success")  # meanwhile the builder is free
    if status == 403:
        (failed,) = ears.wait(1, "Failed")  # another file is served: it is this one's fault
        assert "HTTP 403, while other files can" in failed["reason"]
        assert (host.spool()[f"{wanted.build_id}.x86_64"] / "build.log").exists()
    else:
        bar.unlink()
        built = ears.wait(3, "Success")
        assert {each["arch"] for each in built if each["build_id"] == wanted.build_id} == {"x86_64", "i386"}
    until(lambda: is_settled(broker), 5, "its job is deleted")


def test_a_build_that_waits_for_its_source_can_be_cancelled(host: Host, broker: Broker, ears: Ears) -> None:
    (host.incoming / "hello-1.0-1.src.rpm.status").write_text("403")
    wanted = request()
    put(broker, wanted)
    host.start()
    (event,) = ears.wait(1, "Queued")
    control.set_flag(broker, cancel_tube(wanted.build_id), control.new_flag("johnny"))
    broker.delete(event["job"])
    assert is_settled(broker), "the job that was announced is the one that waits"


def test_rounds_are_counted_in_the_request(host: Host, broker: Broker, ears: Ears) -> None:
    (host.incoming / "hello-1.0-1.src.rpm.status").write_text("403")
    put(
        broker,
        request(source_rounds=4, tries=(FailedAttempt(builder="b7.example.org", when=1.0, words="a full disk"),)),
    )
    host.start()
    (event,) = ears.wait(1, "Queued")
    again = BuildRequest.decode(broker.peek(event["job"]))
    assert again.source_rounds == 5
    assert len(again.tries) == 1, "no strike"
    assert event["due"] > time.time() + 120


def test_a_leg_that_buildarch_rules_out_is_skipped(host: Host, broker: Broker, ears: Ears) -> None:
    host.start()
    put(broker, request("just64"))
    (event,) = ears.wait(1, "Success")
    assert event["skipped"] == {"i386": "BuildArch is x86_64"}
    until(lambda: is_settled(broker), 5, "the job is deleted")
    assert len(host.mock.builds()) == 1


def test_an_arch_that_buildarch_rules_out_fails_at_once(host: Host, broker: Broker, ears: Ears) -> None:
    host.start()
    put(broker, request("just64", arch="i386", target="c9.i386"))
    (event,) = ears.wait(1, "Failed")
    assert event["reason"] == "BuildArch is x86_64"
    assert not host.mock.builds()


def test_a_macro_nobody_expanded_is_left_to_mock(host: Host, broker: Broker, ears: Ears) -> None:
    host.start()
    put(broker, request("zig"))
    ears.wait(2, "Success")
    assert len(host.mock.builds()) == 2


def test_a_follower_without_a_configuration_is_skipped(host: Host, broker: Broker, ears: Ears) -> None:
    (host.configs / "c9.i386.cfg").unlink()
    host.start()
    put(broker, request())
    (event,) = ears.wait(1, "Success")
    assert event["skipped"] == {"i386": "mock has no configuration for it"}


def test_a_configuration_of_one_package_comes_first(host: Host, broker: Broker, ears: Ears, packages: Any) -> None:
    host.target("plain-1.0-1.x86_64")
    host.mock.plan("plain-1.0-1.x86_64", rpms=[packages["plain.noarch"]])
    host.start()
    put(broker, request("plain"))
    ears.wait(1, "Success")
    (call,) = host.mock.builds()
    assert any(word.endswith("/plain-1.0-1.x86_64") for word in call)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"srpm": "absent-1-1.src.rpm"}, "absent-1-1.src.rpm is not in incoming/ (HTTP 404)"),
        ({"srpm": "binary-1-1.src.rpm"}, "binary-1-1.src.rpm: a binary rpm (plain-1.0-1.noarch), not a source rpm"),
        ({"srpm": "noise-1-1.src.rpm"}, "noise-1-1.src.rpm: not an rpm package"),
        ({"srpm": "nameless-1-1.src.rpm"}, "nameless-1-1.src.rpm: its header cannot be used: it has no name"),
        ({"srpm_sha256": "0" * 64}, "hello-1.0-1.src.rpm in incoming/ is not the file that was submitted"),
        ({"target": "c10.x86_64"}, "mock has no configuration for c10.x86_64"),
    ],
)
def test_what_nobody_can_build_fails_with_a_log(
    host: Host, broker: Broker, ears: Ears, packages: Any, change: dict[str, Any], reason: str
) -> None:
    (host.incoming / "binary-1-1.src.rpm").write_bytes(packages["plain.noarch"].read_bytes())
    (host.incoming / "noise-1-1.src.rpm").write_bytes(os.urandom(5000))
    srpms.forge_srpm(host.incoming / "nameless-1-1.src.rpm", {"version": "1", "release": "1", "arch": "noarch"})
    host.start()
    wanted = request(**change)
    put(broker, wanted)
    (event,) = ears.wait(1, "Failed")
    assert event["reason"].startswith(reason)
    assert reason in (host.spool()[f"{wanted.build_id}.x86_64"] / "build.log").read_text()
    assert not host.mock.builds()
    until(lambda: is_settled(broker), 5, "the job is deleted")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("include('templates/gone.tpl')\n", "c9.x86_64.cfg: Could not find included config file: "),
        ("x = 1\nconfig_opts['root' = 'x'\n", "(line 2): config_opts['root' = 'x'"),
    ],
)
def test_a_configuration_that_mock_could_not_read_is_told_as_mock_tells_it(
    host: Host, broker: Broker, ears: Ears, text: str, reason: str
) -> None:
    (host.configs / "c9.x86_64.cfg").write_text(text)
    host.start(tries=1)
    put(broker, request(legs=("x86_64",)))
    (event,) = ears.wait(1, "Failed")
    assert reason in event["reason"]
    assert not host.mock.builds()


def test_the_published_configuration_has_what_it_includes(host: Host, broker: Broker, ears: Ears) -> None:
    (host.configs / "templates").mkdir()
    (host.configs / "templates" / "x.tpl").write_text("config_opts['x'] = 'http://repohost/repo/'\n")
    (host.configs / "c9.x86_64.cfg").write_text("include('templates/x.tpl')\nconfig_opts['root'] = 'TARGETNAME'\n")
    host.start()
    wanted = request(legs=("x86_64",))
    put(broker, wanted)
    ears.wait(1, "Success")
    text = (host.spool()[f"{wanted.build_id}.x86_64"] / "mock.cfg").read_text()
    assert text.startswith(f"config_opts['x'] = 'http://127.0.0.1:{host.http_port}/bstore/repo/'")
    assert "include(" not in text


def test_an_old_clients_request_is_completed(host: Host, broker: Broker, ears: Ears, packages: Any) -> None:
    old = {"srpm": "hello-1.0-1.src.rpm", "arch": "x86_64", "target": "c9.x86_64", "disttag": ".el9"}
    host.mock.plan("c9.x86_64", rpms=[packages["plain.noarch"]], until=["go"])
    host.start()
    body = json.dumps({**old, "scratch": False, "submitter": "old"}).encode()
    broker.put_raw("x86_64", body, priority=PRIORITY_NOW, ttr=77)
    (queued,) = ears.wait(1, "Queued")
    again = broker.job_stats(queued["job"])
    assert (again.priority, again.ttr) == (PRIORITY_NOW, 77), "as it was put"
    assert queued["priority"] == PRIORITY_NOW
    host.mock.let_go("go")
    events = ears.wait(2, "Success")
    (number,) = {event["build_id"] for event in events}
    assert len(number) == 32
    assert all(len(event["timestamp"]) == 14 for event in events)


def test_a_builders_fault_goes_to_another_builder(host: Host, broker: Broker, ears: Ears) -> None:
    host.mock.plan("c9.x86_64", code=30, logs="repogone")
    (host.configs / "c9.i386.cfg").unlink()
    host.start("b1", tries=2)
    wanted = request()
    broker.put(arch_tube("x86_64"), wanted, priority=PRIORITY_NOW, ttr=77)
    until(lambda: broker.tube_stats("x86_64").delayed == 1, 20, "the request is put again with a pause")
    broker.client.use("x86_64")
    job = broker.client.peek_delayed()
    facts = broker.job_stats(job.id)
    assert (facts.priority, facts.ttr) == (PRIORITY_NOW, 77), "as it was put"
    again = json.loads(job.body)
    (tried,) = again["tries"]
    assert tried["builder"] == "b1.example.org"
    assert "Failed to download metadata" in tried["words"]
    assert again["build_id"] == wanted.build_id
    assert not ears.events("Failed", "Success")
    (queued,) = ears.wait(1, "Queued")
    assert "b1.example.org could not build it: x86_64: Failed to download" in queued["reason"]
    # kicked, so that nothing waits for its pause; nobody else watches, so the same builder may try it again
    broker.client.kick(10)
    until(lambda: len(host.mock.builds()) == 2, 20, "the second try")
    until(lambda: broker.tube_stats("x86_64").delayed == 1, 20, "it is put again once more")
    broker.client.kick(10)
    (failed,) = ears.wait(1, "Failed")
    assert failed["reason"].startswith("no builder could build it: b1.example.org: x86_64: Failed to download")
    assert len(host.mock.builds()) == 2
    until(lambda: is_settled(broker), 5, "the job is deleted")


@pytest.mark.parametrize(
    ("faulty", "sound", "code", "logs"),
    [("i386", "x86_64", 30, "repogone"), ("x86_64", "i386", 60, "hello")],
    ids=["builder", "nobody"],
)
def test_a_leg_without_a_result_is_built_later_though_the_other_was_built(
    host: Host, broker: Broker, ears: Ears, packages: Any, faulty: str, sound: str, code: int, logs: str
) -> None:
    host.mock.plan(f"c9.{faulty}", code=code, logs=logs)
    host.start(tries=2)
    wanted = request()
    put(broker, wanted)
    (built,) = ears.wait(1, "Success")
    until(lambda: broker.tube_stats("x86_64").delayed == 1, 20, "the job comes again")
    assert built["arch"] == sound
    (queued,) = ears.wait(1, "Queued")
    assert queued["arch"] == faulty
    leg = f"{wanted.build_id}.{sound}"
    (host.store / "index" / leg).symlink_to(host.spool()[leg])  # as repogen does
    host.mock.plan(f"c9.{faulty}", rpms=[packages["plain.noarch"]])
    broker.client.use("x86_64")
    broker.client.kick(10)
    until(lambda: faulty in {event["arch"] for event in ears.events("Success")}, 20, "the other leg is built too")
    until(lambda: is_settled(broker), 5, "the job is deleted")
    builds = [call for call in host.mock.builds() if any(word.endswith(f"/c9.{sound}") for word in call)]
    assert len(builds) == 1, "the one that was built is not built again"
    assert not ears.events("Failed")


def test_the_broken_builder_leaves_it_to_the_other(host: Host, broker: Broker, ears: Ears, packages: Any) -> None:
    host.mock.plan("c9.x86_64", code=30, logs="nospace")
    (host.configs / "c9.i386.cfg").unlink()
    first = host.start("b1")
    put(broker, request())
    until(lambda: broker.tube_stats("x86_64").delayed == 1, 20, "the first builder gives up")
    host.mock.plan("c9.x86_64", rpms=[packages["plain.noarch"]])
    host.start("b2")
    until(lambda: broker.tube_stats("x86_64").watchers == 2, 20, "two builders watch")
    os.kill(first.pid, signal.SIGSTOP)  # until b2 waits: beanstalkd would give the job to the one that waits longest
    os.kill(first.pid, signal.SIGCONT)
    broker.client.use("x86_64")
    for _ in range(20):  # the first may be handed it, and then leaves it to the second
        broker.client.kick(10)
        if ears.events("Success"):
            break
        until(lambda: ears.events("Success") or broker.tube_stats("x86_64").delayed, 20, "built, or left alone")
    (event,) = ears.wait(1, "Success")
    assert event["builder_fqdn"] == "b2.example.org"


def test_the_broken_builder_leaves_it_for_long_to_those_that_have_not_tried(
    host: Host, broker: Broker, ears: Ears, beanstalkd: Beanstalkd
) -> None:
    """While the sound one is busy the broken one is idle: three faults of one builder are no three builders."""
    with beanstalkd.connect() as busy, beanstalkd.connect() as also:
        busy.watch(["x86_64", heartbeat_tube("b2.example.org")])
        ago = FailedAttempt(builder="b1.example.org", when=time.time() - 1800, words="its mirror is gone")
        host.start("b1")
        until(lambda: broker.tube_stats("x86_64").watchers == 2, 20, "both watch")
        number = put(broker, request(tries=(ago,)))
        until(lambda: broker.job_stats(number).releases == 1, 20, "it is left to the other")
        assert not ears.events("Building")
        also.watch(
            ["x86_64", heartbeat_tube("b1.example.org")]
        )  # another worker of the same builder is no other builder
        busy.close()
        until(lambda: broker.tube_stats("x86_64").watchers == 2, 20, "the other builder is gone")
        ears.wait(1, "Building")


def test_a_stop_gives_the_build_back_and_leaves_nothing(host: Host, broker: Broker, ears: Ears) -> None:
    for name in ("c9.x86_64", "c9.i386"):
        host.mock.plan(name, until=["never"])
    worker = host.start()
    number = put(broker, request())
    until(lambda: host.mock.started("c9.x86_64") and host.mock.started("c9.i386"), 20, "both legs run")
    worker.send_signal(signal.SIGTERM)
    assert worker.wait(10) == 0
    facts = broker.client.stats_job(number)
    assert facts["state"] == "ready"
    assert b"tries" not in broker.client.peek(number).body
    assert not ears.events("Failed", "Success")
    cleaned = [call for call in host.mock.calls() if "--clean" in call]
    assert len(cleaned) == 2
    assert all(any(word.startswith("--uniqueext=") for word in call) for call in cleaned)
    assert not list((host.folder / "results" / "builds").iterdir())
    assert not processes(str(host.mock.path))


def test_a_drain_finishes_the_build_and_takes_no_other(host: Host, broker: Broker, ears: Ears, packages: Any) -> None:
    for name in ("c9.x86_64", "c9.i386"):
        host.mock.plan(name, rpms=[packages["plain.noarch"]], until=["go"])
    worker = host.start()
    put(broker, request())
    put(broker, request())
    until(lambda: host.mock.started("c9.x86_64") and host.mock.started("c9.i386"), 20, "both legs run")
    worker.send_signal(signal.SIGUSR1)
    host.mock.let_go("go")
    assert worker.wait(20) == 0
    assert len(ears.events("Success")) == 2
    assert broker.tube_stats("x86_64").ready == 1


def test_a_killed_workers_job_and_folder(host: Host, broker: Broker, ears: Ears, packages: Any) -> None:
    (host.configs / "c9.i386.cfg").unlink()
    host.mock.plan("c9.x86_64", until=["never"])
    worker = host.start()
    put(broker, request())
    until(lambda: host.mock.started("c9.x86_64"), 20, "it builds")
    worker.kill()
    until(lambda: broker.tube_stats("x86_64").ready == 1, 5, "its job is ready at once")
    for orphan in processes(str(host.mock.path)):  # a unit's cgroup, or the reaper, does this
        os.kill(orphan, signal.SIGKILL)
    host.mock.plan("c9.x86_64", rpms=[packages["plain.noarch"]])
    host.start()
    ears.wait(1, "Success")
    until(lambda: not list((host.folder / "results" / "builds").iterdir()), 5, "both attempts' folders are gone")


@pytest.fixture
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Beanstalkd]:
    """A beanstalkd of the test's own, to be killed and started again."""
    server = Beanstalkd(tmp_path_factory.mktemp("binlog"))
    server.start()
    yield server
    server.kill()


@pytest.fixture
def waiting_host(tmp_path: Path, server: Beanstalkd, packages: dict[str, Path]) -> Iterator[Host]:
    """A builder there, with one target, whose mock waits for `go`."""
    host = Host(tmp_path, server)
    (host.incoming / packages["hello"].name).write_bytes(packages["hello"].read_bytes())
    host.target("c9.x86_64")
    host.mock.plan("c9.x86_64", rpms=[packages["plain.noarch"]], until=["go"])
    yield host
    host.close()


def test_beanstalkd_restarted_under_a_build(server: Beanstalkd, waiting_host: Host) -> None:
    host = waiting_host
    host.start()
    with server.connect() as broker:
        wanted = request()
        put(broker, wanted)
    until(lambda: host.mock.started("c9.x86_64"), 20, "it builds")
    server.kill()
    host.mock.let_go("go")
    until(host.spool, 20, "it is built and uploaded without beanstalkd")
    server.start()
    ears = Ears(server)
    ears.wait(1, "Success")
    assert len(host.mock.builds()) == 1
    with server.connect() as broker:
        until(lambda: is_settled(broker), 5, "the job is deleted")
    assert len(ears.requests()) == 1
    ears.broker.close()


def test_a_job_another_took_is_finished_and_not_announced(server: Beanstalkd, waiting_host: Host) -> None:
    host = waiting_host
    worker = host.start()
    with server.connect() as broker:
        put(broker, request())
    until(lambda: host.mock.started("c9.x86_64"), 20, "it builds")
    os.kill(worker.pid, signal.SIGSTOP)
    server.kill()
    server.start()
    with server.connect() as thief:
        thief.watch(["x86_64"])
        thief.client.reserve(5)
        os.kill(worker.pid, signal.SIGCONT)
        until(lambda: "not ours any more" in (host.folder / "b1.log").read_text(), 20, "it finds the job taken")
        host.mock.let_go("go")
        ears = Ears(server)
        until(ears.requests, 20, "repogen is asked all the same")
        until(lambda: "ours is uploaded" in (host.folder / "b1.log").read_text(), 20, "the worker went on")
        assert not ears.events("Success", "Failed")
        with server.connect() as broker:
            assert broker.tube_stats("x86_64").reserved == 1
        ears.broker.close()


def test_an_upload_is_tried_until_it_is_there(host: Host, broker: Broker, ears: Ears) -> None:
    host.stop_rsync()
    host.start()
    put(broker, request())
    until(lambda: "is not uploaded yet" in (host.folder / "b1.log").read_text(), 20, "the link is dead")
    assert not ears.events("Success", "Failed")
    host.start_rsync()
    ears.wait(2, "Success")


@pytest.mark.parametrize("rsync", ["gone", "old"])
def test_an_rsync_that_does_not_do_it_is_the_builders_fault(host: Host, broker: Broker, ears: Ears, rsync: str) -> None:
    """No waiting mends it: another builder gets the request."""
    if rsync == "gone":
        host.start(rsync=host.folder / "no-rsync")
    else:
        host.start(rsync_arguments="--no-such-option")
    put(broker, request())
    reason = ears.wait(1, "Queued")[0]["reason"]
    words = "cannot run" if rsync == "gone" else "rsync exited with 1"
    assert "b1.example.org could not build it: " in reason
    assert words in reason
    until(lambda: broker.tube_stats("x86_64").delayed == 1, 20, "it is put again")
    assert not ears.events("Success", "Failed")


RECORDING_RSYNC = """#!/bin/sh
case "$*" in */spool/*) ;; *) exec rsync "$@" ;; esac
[ {fails} = 1 ] && mkdir {folder}/failed 2>/dev/null && exit 12
rsync "$@" && for leg in {store}/spool/*; do echo $(ls "$leg") >> {folder}/seen; done
"""


@pytest.mark.parametrize("has_result", [True, False])
def test_a_manifest_comes_when_all_it_names_is_there(
    host: Host, broker: Broker, ears: Ears, packages: Any, has_result: bool
) -> None:
    (host.configs / "c9.i386.cfg").unlink()
    if not has_result:
        host.mock.plan("c9.x86_64", code=30, logs="repogone")
    rsync = host.folder / "rsync"
    rsync.write_text(RECORDING_RSYNC.format(folder=host.folder, store=host.store, fails=int(has_result)))
    rsync.chmod(0o755)
    host.start(rsync=rsync)
    put(broker, request())
    ears.wait(1, "Success" if has_result else "Queued")
    (folder,) = host.spool().values()
    named = {file.name for file in read_manifest(folder).files}
    assert {"build.log", "root.log"} <= named
    files, whole = (set(line.split()) for line in (host.folder / "seen").read_text().splitlines())
    assert files == named, "what is there before the manifest is"
    assert whole == {*named, "build.json"}
    assert (host.folder / "failed").exists() == has_result, "a broken upload of files is not passed over"


def test_a_place_of_another_build_is_not_taken_for_a_legs_own(host: Host, broker: Broker, ears: Ears) -> None:
    """repogen notes a place in `index/` before it moves the leg there; if it dies, another build may take the place."""
    (host.configs / "c9.i386.cfg").unlink()
    host.start()
    first, second = request(), request()
    put(broker, first)
    ears.wait(1, "Success")
    (other,) = host.spool().values()
    (host.store / "index" / f"{second.build_id}.x86_64").symlink_to(other)
    put(broker, second)
    events = ears.wait(2, "Success")
    assert {event["build_id"] for event in events} == {first.build_id, second.build_id}
    assert {row["build_id"] for row in ears.requests()} == {first.build_id, second.build_id}
    assert len({event["attempt"] for event in events}) == 2
    assert len(host.mock.builds()) == 2


def test_a_leg_published_before_is_announced_again(host: Host, broker: Broker, ears: Ears) -> None:
    host.start()
    wanted = request()
    put(broker, wanted)
    ears.wait(2, "Success")
    until(lambda: is_settled(broker), 5, "the job is deleted")
    for leg, folder in host.spool().items():  # as repogen does
        (host.store / "index" / leg).symlink_to(folder)
    before = len(host.mock.builds())
    put(broker, wanted)
    events = ears.wait(4, "Success")
    assert len(host.mock.builds()) == before
    assert len({(event["arch"], event["attempt"]) for event in events}) == 2
    assert len(ears.requests()) == 4


def test_a_stalled_build_is_ended_and_its_root_cleaned(host: Host, broker: Broker, ears: Ears) -> None:
    host.mock.plan("c9.x86_64", until=["never"])
    (host.configs / "c9.i386.cfg").unlink()
    host.start(stall_timeout=1)
    put(broker, request())
    (failed,) = ears.wait(1, "Failed")
    assert failed["reason"] == "nothing was written to its logs for 1 s (stall_timeout)"
    assert "first_error" not in failed
    assert "error_line" not in failed
    assert failed["cause_text"] == failed["reason"]
    assert [call for call in host.mock.calls() if "--clean" in call and "--orphanskill" not in call]
    assert not processes(str(host.mock.path))


def test_the_root_of_a_mock_that_was_killed_is_cleaned(host: Host, broker: Broker, ears: Ears) -> None:
    (host.configs / "c9.i386.cfg").unlink()
    host.mock.plan("c9.x86_64", until=["never"])
    host.start()
    put(broker, request())
    until(lambda: host.mock.started("c9.x86_64"), 20, "it builds")
    for pid in processes(str(host.mock.path)):
        os.kill(pid, signal.SIGKILL)
    until(lambda: broker.tube_stats("x86_64").delayed == 1, 10, "it is put again")
    assert [call[-1] for call in host.mock.calls()[1:]] == ["--orphanskill", "--clean"]


def test_a_disk_that_does_not_do_its_work_is_the_builders_fault(host: Host, broker: Broker, ears: Ears) -> None:
    host.start()
    until(lambda: broker.tube_stats("x86_64").watchers == 1, 20, "it waits for jobs")
    builds = host.folder / "results" / "builds"
    builds.rmdir()
    builds.touch()
    put(broker, request())
    until(lambda: broker.tube_stats("x86_64").delayed == 1, 20, "it is put again")
    broker.client.use("x86_64")
    (tried,) = BuildRequest.decode(broker.client.peek_delayed().body).tries
    assert tried.builder == "b1.example.org"
    assert "Not a directory" in tried.words
    assert not ears.events("Refused")


def test_a_builder_without_room_takes_nothing(host: Host, broker: Broker, ears: Ears) -> None:
    host.start("full", min_free_mib=1 << 39)
    put(broker, request("plain"))
    log = host.folder / "full.log"
    until(lambda: "this builder takes no jobs now: disk under" in log.read_text(), 10, "it says why")
    assert broker.tube_stats("x86_64").ready == 1
    host.start("roomy")
    (event,) = ears.wait(1, "Success")
    assert event["builder_fqdn"] == "roomy.example.org"
    assert log.read_text().count("takes no jobs now") == 1


@pytest.mark.parametrize(
    ("missing", "why"),
    [
        ("mock", "mock is not installed: there is no program {mock}"),
        ("checkout", "no mock configurations: {checkout}/mock does not exist"),
        ("checkout/mock/logging.ini", "no mock configurations: {checkout}/mock has no logging.ini"),
    ],
)
def test_a_builder_without_mock_or_configurations_is_unfit_until_they_are_there(
    host: Host, broker: Broker, ears: Ears, missing: str, why: str
) -> None:
    path = host.mock.path if missing == "mock" else host.folder / missing
    path.rename(host.folder / "away")
    put(broker, request("plain"))
    host.start(presence=1)
    expected = why.format(mock=host.mock.path, checkout=host.configs.parent)
    until(lambda: any(beat["state"] == "unfit" for beat in (ears.listen(), ears.present)[1]), 20, "it is unfit")
    (unfit, *_) = [beat for beat in ears.present if beat["state"] == "unfit"]
    assert unfit["why"] == f"this builder takes no jobs now: {expected}"
    assert broker.tube_stats("x86_64").ready == 1, "no try is wasted"
    (host.folder / "away").rename(path)
    (event,) = ears.wait(1, "Success")
    assert event["builder_fqdn"] == "b1.example.org"
    assert not ears.events("Queued"), "it was never put again"


def test_a_checkout_that_lacks_configurations_is_pulled_by_the_unfit_builder(
    host: Host, broker: Broker, ears: Ears
) -> None:
    upstream, checkout = host.folder / "upstream", host.configs.parent
    identity = ("-c", "user.name=a test", "-c", "user.email=test@farm.test")
    subprocess.run(["git", "init", "--quiet", upstream], check=True)
    subprocess.run(["git", "-C", upstream, *identity, "commit", "-qm", "empty", "--allow-empty"], check=True)
    host.configs.rename(upstream / "mock")
    checkout.rmdir()
    subprocess.run(["git", "clone", "--quiet", upstream, checkout], check=True)
    subprocess.run(["git", "-C", upstream, "add", "mock"], check=True)
    subprocess.run(["git", "-C", upstream, *identity, "commit", "--quiet", "--message", "two"], check=True)
    put(broker, request("plain"))
    host.start()
    (event,) = ears.wait(1, "Success")
    assert event["builder_fqdn"] == "b1.example.org"


def test_the_root_a_killed_worker_left_is_cleaned_at_the_next_start(host: Host, broker: Broker, ears: Ears) -> None:
    (host.configs / "c9.i386.cfg").unlink()
    host.mock.plan("c9.x86_64", until=["never"])
    worker = host.start()
    number = put(broker, request())
    until(lambda: host.mock.started("c9.x86_64"), 20, "it builds")
    worker.kill()
    worker.wait()
    (build,) = host.mock.builds()
    for orphan in processes(str(host.mock.path)):
        os.kill(orphan, signal.SIGKILL)
    broker.client.delete(number)
    host.start()
    until(lambda: not list((host.folder / "results" / "builds").iterdir()), 10, "the folder is swept")
    cleaned = host.mock.calls()[1:]
    assert [call[-1] for call in cleaned] == ["--orphanskill", "--clean"]
    for word in build:
        if word.startswith(("--uniqueext=", "--configdir=")):
            assert all(word in call for call in cleaned)


def test_a_job_under_which_workers_die_is_buried(
    host: Host, broker: Broker, ears: Ears, beanstalkd: Beanstalkd
) -> None:
    number = put(broker, request())
    for _ in range(11):
        with beanstalkd.connect() as victim:
            victim.watch(["x86_64"])
            victim.client.reserve(5)
    host.start()
    (refused,) = ears.wait(1, "Refused")
    assert refused["job"] == number
    assert "workers died under it" in refused["reason"]
    until(lambda: broker.tube_stats("x86_64").buried == 1, 5, "it is buried")
    broker.client.use("x86_64")
    broker.client.kick(1)  # a person looked
    ears.wait(2, "Success")


def test_configurations_are_pulled_and_a_failing_pull_keeps_the_last(host: Host, broker: Broker, ears: Ears) -> None:
    origin, checkout = host.folder / "origin", host.configs.parent

    def git(folder: Path, *words: str) -> None:
        identity = ["-c", "user.name=t", "-c", "user.email=t@example.org"]
        subprocess.run(["git", "-C", folder, *identity, *words], check=True, capture_output=True)

    git(checkout, "init", "-q", "-b", "main")
    git(checkout, "add", ".")
    git(checkout, "commit", "-qm", "configurations")
    subprocess.run(["git", "clone", "-q", checkout, origin], check=True, capture_output=True)
    git(checkout, "remote", "add", "origin", str(origin))
    git(checkout, "fetch", "-q")
    git(checkout, "branch", "-q", "--set-upstream-to=origin/main")
    (origin / "mock" / "c9.x86_64.cfg").write_text("config_opts['root'] = 'TARGETNAME'  # newer\n")
    git(origin, "commit", "-qam", "newer")
    host.start()
    put(broker, request())
    ears.wait(2, "Success")
    assert "# newer" in (host.folder / "results" / "configs" / "c9.x86_64" / "mock.cfg").read_text()
    origin.rename(host.folder / "gone")
    put(broker, request())
    ears.wait(4, "Success")
    assert "its last state holds" in (host.folder / "b1.log").read_text()


@pytest.mark.parametrize(
    "body",
    [b"", b"17", b"{not json", b'{"srpm": "hello-1.0-1.src.rpm"}', os.urandom(60_000), b'["x"]', b'{"arch": "vax"}'],
)
def test_a_message_that_is_none_is_refused_and_buried(host: Host, broker: Broker, ears: Ears, body: bytes) -> None:
    host.start()
    number = broker.put_raw("x86_64", body, priority=1)
    (refused,) = ears.wait(1, "Refused")
    assert (refused["tube"], refused["job"]) == ("x86_64", number)
    assert refused["reason"]
    until(lambda: broker.tube_stats("x86_64").buried == 1, 5, "it is buried")
    put(broker, request("plain"))
    ears.wait(1, "Success")


@pytest.mark.parametrize(("code", "logs", "why"), [(0, "skipped", "a repository was skipped"), (60, "hello", "in use")])
def test_what_is_nobodys_fault_is_retried_without_a_strike(
    host: Host, broker: Broker, ears: Ears, packages: Any, code: int, logs: str, why: str
) -> None:
    (host.configs / "c9.i386.cfg").unlink()
    samples = host.folder / "samples"
    shutil.copytree(SAMPLES / "hello", samples / "hello")
    shutil.copytree(SAMPLES / "skippedrepo", samples / "skipped")
    root = samples / "skipped" / "root.log"
    refused = "Curl error (7): Couldn't connect to server for http://127.0.0.1:9/repodata/repomd.xml [refused]"
    text = re.sub(r"Status code: 404 for .*repomd\.xml.*", refused, root.read_text())
    root.write_text(text.split("No matching package")[0] + "Complete!\n")
    host.mock.samples(samples)
    host.mock.plan("c9.x86_64", code=code, logs=logs, rpms=[packages["plain.noarch"]])
    host.start("b1", tries=1)
    number = put(broker, request())
    until(lambda: broker.job_stats(number).state == "delayed", 20, "the job is released with a pause")
    assert b"tries" not in broker.client.peek(number).body
    assert broker.client.stats_job(number)["delay"] == 10
    (queued,) = ears.wait(1, "Queued")
    assert queued["reason"].startswith("nobody's fault: x86_64: ")
    assert why in queued["reason"]
    assert queued["job"] == number
    assert queued["due"] > time.time()
    assert "/attempts/" in queued["url"]
    (kept,) = ears.requests()
    assert kept["logs"]
    assert not kept.get("index")
    assert not ears.events("Success", "Failed")
    host.mock.plan("c9.x86_64", rpms=[packages["plain.noarch"]])
    broker.client.use("x86_64")
    broker.client.kick(10)
    ears.wait(1, "Success")
    until(lambda: is_settled(broker), 5, "the job is deleted")


def test_a_build_that_no_builder_could_build_carries_the_last_first_error(
    host: Host, broker: Broker, ears: Ears
) -> None:
    (host.configs / "c9.i386.cfg").unlink()
    host.mock.plan("c9.x86_64", code=30, logs="nospace")
    words = "x86_64: At least 159MB more space needed on the / filesystem"
    host.start("b1", tries=3)
    ago = time.time() - 7200
    tries = [FailedAttempt(builder=f"b{number}.example.org", when=ago, words=words) for number in (2, 3)]
    put(broker, request(tries=tuple(tries)))
    until(lambda: broker.tube_stats("x86_64").delayed == 1, 20, "it is put again")
    broker.client.use("x86_64")
    broker.client.kick(10)
    (failed,) = ears.wait(1, "Failed")
    hosts = "b2.example.org, b3.example.org, b1.example.org"
    assert failed["reason"] == f"no builder could build it: {hosts}: {words}"
    assert failed["error_line"] == "At least 159MB more space needed on the / filesystem."
    assert failed["error_line"] in failed["first_error"]
    assert failed["cause"] == find_cause(failed["reason"], failed["error_line"], "time").id
    # the earlier attempt's upload lies there too
    manifests = [read_manifest(path.parent) for path in host.store.glob("spool/*/build.json")]
    assert [each.cause for each in manifests if each.status == "Failed"] == [failed["cause"]]


def test_logs_that_mock_packed_are_read_and_uploaded_unpacked(host: Host, broker: Broker, ears: Ears) -> None:
    (host.configs / "c9.i386.cfg").unlink()
    samples = host.folder / "samples"
    shutil.copytree(SAMPLES / "failbuild", samples / "packed")
    for log in (samples / "packed").glob("*.log"):
        log.with_name(f"{log.name}.gz").write_bytes(gzip.compress(log.read_bytes()))
        log.unlink()
    host.mock.samples(samples)
    host.mock.plan("c9.x86_64", code=1, logs="packed")
    host.start(live_logs=1)
    wanted = request()
    put(broker, wanted)
    (failed,) = ears.wait(1, "Failed")
    assert failed["reason"] == "%build failed"
    assert "nosuch.c" in failed["error_line"]
    assert failed["error_log"] == "build.log"
    assert failed["build_log"]
    assert [phase["name"] for phase in failed["phases"]][1] == "chroot init"
    (spool,) = host.spool().values()
    cause = find_cause("%build failed", failed["error_line"], failed["pkgname"])
    manifest = read_manifest(spool)
    for stored in (manifest.to_json(), failed):
        assert (stored["cause"], stored["cause_text"], stored["cause_version"]) == (cause.id, cause.text, CAUSE_VERSION)
    assert "nosuch.c" in (spool / "build.log").read_text()
    assert not list(spool.glob("*.gz"))
    (live,) = host.store.glob("live/*")
    assert "nosuch.c" in (live / "build.log").read_text()

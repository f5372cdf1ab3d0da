# SPDX-License-Identifier: Apache-2.0
"""Each check of doctor against the real service, working and broken, and the message for each problem."""

from __future__ import annotations

import contextlib
import http.server
import os
import pwd
import shutil
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Iterator, Mapping
from email.utils import formatdate
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Callable

import attr
import pytest

from devfarm.mockstub import PROGRAM
from reimzul.admin.doctor import (
    FAIL,
    OK,
    WARN,
    Check,
    Finding,
    builder,
    controller,
    host,
    links,
    network,
    run_checks,
    services,
)
from reimzul.admin.doctor.host import Host
from reimzul.core.beanstalk import Broker, drain_tube
from reimzul.core.config import load_file
from reimzul.core.control import new_flag, set_flag
from reimzul.core.roles import ROLES
from reimzul.core.store_paths import MANIFEST, StorePaths
from reimzul.history import open_history
from tests import webserver
from tests.conftest import Beanstalkd, free_port
from tests.events import event
from tests.ini import write_ini
from tests.mosquitto import Authority, Mosquitto
from tests.notifier import write_pending
from tests.rsyncd import CONF, rsyncd
from tests.smtp import Mailbox, MailServer
from tests.waiting import until

ROOT_ALONE = pytest.mark.skipif(os.geteuid() != 0, reason="gives files to another user")
Ini = Mapping[str, Mapping[str, object]]


def patient(folder: Path, settings: Ini, *roles: str, user: str = "", stunnel: str = "") -> Host:
    """A host with these settings, looked at as the doctor does."""
    ini = write_ini(folder / "doctor.ini", settings)
    conf = folder / "stunnel-doctor.conf"
    conf.write_text(stunnel)
    found = host.find_host(load_file(ini), ini, roles or ROLES, conf)
    return attr.evolve(found, user=user) if user else found


def look(group: Callable[[Host], list[Check]], whom: Host) -> dict[str, Finding]:
    """What a group of checks finds."""
    return {finding.name: finding for finding in run_checks(group(whom))}


def levels(found: Mapping[str, Finding]) -> dict[str, str]:
    return {name: finding.level for name, finding in found.items()}


# --- beanstalkd


@contextlib.contextmanager
def a_beanstalkd(*arguments: str) -> Iterator[tuple[int, subprocess.Popen[bytes]]]:
    port = free_port()
    with subprocess.Popen(["beanstalkd", "-l", "127.0.0.1", "-p", str(port), *arguments]) as process:
        try:
            until(lambda: _listens(port), 20, "beanstalkd listens")
            yield port, process
        finally:
            process.kill()


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def make_ini(port: int) -> Ini:
    return {"beanstalkd": {"host": "127.0.0.1", "port": port}}


def test_a_beanstalkd_that_keeps_its_jobs_is_well(tmp_path: Path, beanstalkd: Beanstalkd, broker: Broker) -> None:
    broker.put_raw(controller.TEST_TUBE, b"left by a doctor that was killed", priority=0)
    whom = patient(tmp_path, make_ini(beanstalkd.port), "controller")
    found = look(controller.beanstalkd_checks, whom)
    assert found["beanstalkd"].level == OK
    assert "binlog" in found["beanstalkd"].message
    assert broker.tube_stats(controller.TEST_TUBE).ready == 0


def test_a_beanstalkd_without_a_binlog_or_that_is_draining_fails(tmp_path: Path) -> None:
    with a_beanstalkd() as (port, process):
        whom = patient(tmp_path, make_ini(port), "controller")
        assert look(controller.beanstalkd_checks, whom)["beanstalkd"].message.startswith("beanstalkd writes no binlog")
        process.send_signal(signal.SIGUSR1)  # beanstalkd(1): drain mode
        until(lambda: "draining" in look(controller.beanstalkd_checks, whom)["beanstalkd"].message, 20, "it drains")
        assert look(controller.beanstalkd_checks, whom)["beanstalkd"].level == FAIL


def test_a_beanstalkd_that_could_not_read_its_largest_job_is_named(tmp_path: Path) -> None:
    with a_beanstalkd("-b", str(tmp_path)) as (port, _):
        found = look(controller.beanstalkd_checks, patient(tmp_path, make_ini(port), "controller"))["binlog"]
    assert (found.level, "takes jobs of 65,535 bytes" in found.message) == (WARN, True)
    assert found.hint.startswith("reimzul setup controller")


def test_tubes_that_nobody_watches_and_refused_jobs_are_named(
    tmp_path: Path, beanstalkd: Beanstalkd, broker: Broker
) -> None:
    whom = patient(tmp_path, make_ini(beanstalkd.port), "controller")
    with contextlib.ExitStack() as daemons:
        for tube in ("notify", "createrepo", "tosign", "x86_64"):
            daemons.enter_context(beanstalkd.connect()).watch([tube])
        assert levels(look(controller.beanstalkd_checks, whom)) == {
            "beanstalkd": OK,
            "binlog": OK,
            "tubes.watched": OK,
            "tubes.buried": OK,
        }
        set_flag(broker, "cancel.0123", new_flag(by="a test"))  # a mark: nobody watches it, and nobody is to
        assert look(controller.beanstalkd_checks, whom)["tubes.watched"].level == OK
        broker.put_raw("aarch64", b"x", priority=1)
        found = look(controller.beanstalkd_checks, whom)["tubes.watched"]
        assert (found.level, found.message) == (FAIL, "1 jobs wait in aarch64, and nobody watches it")
    found = look(controller.beanstalkd_checks, whom)["tubes.watched"]
    for words in ("aarch64", "notifier", "repogen worker", "signer", "no builder is connected"):
        assert words in found.message
    broker.watch(["aarch64"])
    claim = broker.client.reserve(0)
    broker.client.bury(claim)
    buried = look(controller.beanstalkd_checks, whom)["tubes.buried"]
    assert (buried.level, buried.message) == (WARN, "buried jobs: 1 in aarch64")
    assert "reimzul buried" in buried.hint


# --- web servers


def test_what_is_put_into_incoming_has_to_come_out(tmp_path: Path) -> None:
    (tmp_path / "served" / "reimzul-incoming").mkdir(parents=True)
    (tmp_path / "other").mkdir()
    server = webserver.serve(tmp_path / "served")
    url = f"http://127.0.0.1:{server.server_port}/reimzul-incoming/"
    try:
        incoming = tmp_path / "served" / "reimzul-incoming"
        (incoming / "doctor-1-0").touch()
        os.utime(incoming / "doctor-1-0", (1, 1))  # of one that was killed
        for folder, level in ((incoming, OK), (tmp_path / "other", FAIL), (tmp_path / "none", FAIL)):
            whom = patient(tmp_path, {"incoming": {"folder": folder, "url": url}}, "controller")
            assert look(services.web_checks, whom)["incoming"].level == level, folder
        assert list(incoming.iterdir()) == [] == list((tmp_path / "other").iterdir()), "nothing is left behind"
        (incoming / "a-1-1.src.rpm").touch(mode=0o600)
        (incoming / "b-1-1.nosrc.rpm").touch(mode=0o640)
        found = look(
            services.web_checks, patient(tmp_path, {"incoming": {"folder": incoming, "url": url}}, "controller")
        )["incoming"]
        assert found.level == WARN
        assert "builders cannot fetch 2 source rpms" in found.message
        assert f"chmod o+r {incoming}/a-1-1.src.rpm" in found.message
    finally:
        webserver.close(server)
    whom = patient(tmp_path, {"incoming": {"folder": incoming, "url": url}}, "controller")
    found = look(services.web_checks, whom)["incoming"]
    assert (found.level, found.message) == (FAIL, "the web server does not answer: connection refused")


def test_the_store_is_offered_and_the_spool_is_not(tmp_path: Path) -> None:
    (tmp_path / "bstore" / "repo").mkdir(parents=True)
    server = webserver.serve(tmp_path)
    url = f"http://127.0.0.1:{server.server_port}/bstore/repo/"
    try:
        whom = patient(tmp_path, {"bstore": {"base_url": url}}, "bstore")
        assert look(services.web_checks, whom)["store.http"].level == OK
        (tmp_path / "bstore" / "spool").mkdir()
        found = look(services.web_checks, whom)["store.http"]
        assert (found.level, found.message) == (FAIL, "anybody with a key can read spool/")
        shutil.rmtree(tmp_path / "bstore" / "repo")
        assert "404" in look(services.web_checks, whom)["store.http"].message
    finally:
        webserver.close(server)


def test_links_have_to_lead_to_the_store(tmp_path: Path) -> None:
    metadata = [tmp_path / path / "c9s.x86_64/repodata/repomd.xml" for path in ("bstore/repo", "repo")]
    for file in metadata:
        file.parent.mkdir(parents=True)
        file.write_text("<repomd/>")
    server = webserver.serve(tmp_path)
    root = f"http://127.0.0.1:{server.server_port}/"
    store = {"base_url": f"{root}bstore/repo/"}
    try:
        found = examine_links(tmp_path, store)
        assert (found.level, found.hint) == (OK, "")
        assert "people get paths and commands instead of links" in found.message
        (tmp_path / "bstore/public-url").write_text(f"{root}\n")
        for settings in (store, {**store, "public_url": root}):
            found = examine_links(tmp_path, settings)
            assert (found.level, found.message) == (OK, f"{root} serves the store, and links begin with it")
        metadata[1].write_text("<repomd>another store's</repomd>")
        found = examine_links(tmp_path, store)
        assert found.level == FAIL
        assert f"{root}, which is not our store: c9s.x86_64/repodata/repomd.xml differs" in found.message
        metadata[0].unlink()
        assert examine_links(tmp_path, store).level == OK, "a target without packages shows nothing"
        elsewhere = examine_links(tmp_path, {**store, "public_url": f"{root}bstore/repo/c9s.x86_64/"})
        assert elsewhere.level == FAIL
        assert "answers 404 for" in elsewhere.message
        assert "reimzul setup controller --public-url URL" in elsewhere.hint
        nowhere = examine_links(tmp_path, {**store, "public_url": f"http://127.0.0.1:{free_port()}/"})
        assert (nowhere.level, "connection refused" in nowhere.message) == (FAIL, True)
        assert "reimzul setup bstore --public-port" in nowhere.hint
        unknown = examine_links(tmp_path, {**store, "public_url": "http://bstore.invalid/"})
        assert (unknown.level, "cannot look up" in unknown.message) == (FAIL, True)
        assert "DNS" in unknown.hint
    finally:
        webserver.close(server)


def examine_links(folder: Path, store: Mapping[str, object]) -> Finding:
    return look(links.public_checks, patient(folder, {"bstore": store}, "controller"))["store.public"]


def test_a_link_that_leads_on_is_named(tmp_path: Path) -> None:
    class Redirecting(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response_only(301)
            self.send_header("Location", "https://farm.example.org/repo/")
            self.send_header("Content-Length", "0")
            self.end_headers()

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Redirecting)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        found = examine_links(tmp_path, {"public_url": f"http://127.0.0.1:{server.server_port}/"})
    finally:
        webserver.close(server)
    assert (found.level, found.hint) == (FAIL, "reimzul setup controller --public-url https://farm.example.org/")


@pytest.mark.parametrize(("ahead", "level"), [(0, OK), (20, WARN), (-20, WARN), (4000, FAIL), (-4000, FAIL)])
def test_clocks_that_differ_are_seen(tmp_path: Path, ahead: int, level: str) -> None:
    class Clock(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response_only(200)
            self.send_header("Date", formatdate(time.time() + ahead, usegmt=True))
            self.send_header("Content-Length", "0")
            self.end_headers()

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Clock)
    webserver.start_serving(server)
    try:
        url = f"http://127.0.0.1:{server.server_port}/reimzul-incoming/"
        found = look(services.clock_checks, patient(tmp_path, {"incoming": {"url": url}}, "builder"))[
            "clock.controller"
        ]
        assert found.level == level
        assert ("behind" in found.message) == (ahead > 0)
        assert ("ahead of" in found.message) == (ahead < 0)
    finally:
        webserver.close(server)


# --- rsync


def uploads(tmp_path: Path, port: int) -> Host:
    url = f"rsync://127.0.0.1:{port}/reimzul-bstore/"
    return patient(tmp_path, {"bstore": {"upload_url": url}, "worker": {"fqdn": "b1.farm.test"}}, "builder")


def test_our_rsyncd_takes_uploads_and_refuses_the_rest(tmp_path: Path) -> None:
    root = tmp_path / "bstore"
    for folder in StorePaths(root).folders():
        folder.mkdir(parents=True, exist_ok=True)
    port = free_port()
    with rsyncd(root, port, tmp_path, "rsyncd.conf"):
        for _ in range(2):
            found = look(services.upload_checks, uploads(tmp_path, port))
            assert levels(found) == {"rsync.write": OK, "rsync.read": OK, "rsync.elsewhere": OK}, found
    left = [path.relative_to(root) for path in root.rglob("*") if path.is_file()]
    assert left == [Path("spool/doctor.b1.farm.test/doctor.txt")], "one small file, however often it is run"


def test_an_rsyncd_that_is_open_to_all_is_seen_and_nothing_is_written_there(tmp_path: Path) -> None:
    root, port = tmp_path / "bstore", free_port()
    for folder in StorePaths(root).folders():
        folder.mkdir(parents=True, exist_ok=True)
    with rsyncd(root, port, tmp_path, "original"):
        found = look(services.upload_checks, uploads(tmp_path, port))
    assert levels(found) == {"rsync.write": WARN, "rsync.read": FAIL, "rsync.elsewhere": FAIL}
    assert "logs cannot be read while they grow" in found["rsync.write"].message
    assert found["rsync.elsewhere"].message == "anybody with a key can write to repo/, tosign/, state/"
    assert [path.name for path in root.rglob("*") if path.is_file()] == ["doctor.txt"]


def test_an_rsyncd_that_shows_what_it_compares_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As those of earlier versions do, until setup has run."""
    root, port = tmp_path / "bstore", free_port()
    for folder in StorePaths(root).folders():
        folder.mkdir(parents=True, exist_ok=True)
    (tmp_path / "conf").mkdir()
    text = (CONF / "rsyncd.conf").read_text().replace(" block-size", "")
    (tmp_path / "conf" / "rsyncd.conf").write_text(text)
    monkeypatch.setattr("tests.rsyncd.CONF", tmp_path / "conf")
    with rsyncd(root, port, tmp_path, "rsyncd.conf"):
        found = look(services.upload_checks, uploads(tmp_path, port))
    assert levels(found) == {"rsync.write": OK, "rsync.read": FAIL, "rsync.elsewhere": OK}
    assert found["rsync.read"].message == "anybody with a key can read uploads by their checksums"


def test_an_rsyncd_that_takes_nothing_is_seen(tmp_path: Path) -> None:
    found = look(services.upload_checks, uploads(tmp_path, free_port()))
    assert levels(found) == {"rsync.write": FAIL, "rsync.read": WARN, "rsync.elsewhere": WARN}
    assert "refused" in found["rsync.write"].message


# --- builders


def a_program(folder: Path, name: str, text: str) -> Path:
    path = folder / name
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return path


@pytest.mark.parametrize(
    ("text", "level", "words"),
    [
        ("echo 5.9", OK, "mock 5.9"),
        ("echo 'must be in group mock' >&2; exit 1", FAIL, "must be in group mock"),
    ],
)
def test_mock_has_to_run(tmp_path: Path, text: str, level: str, words: str) -> None:
    found = look(builder.checks, patient(tmp_path, {"worker": {"mock": a_program(tmp_path, "mock", text)}}, "builder"))
    assert found["mock"].level == level
    assert words in found["mock"].message
    absent = look(builder.checks, patient(tmp_path, {"worker": {"mock": "no-such-mock"}}, "builder"))["mock"]
    assert absent.level == FAIL
    assert "no-such-mock" in absent.message


def test_the_stand_in_is_warned_of_and_needs_no_group(tmp_path: Path) -> None:
    found = look(builder.checks, patient(tmp_path, {"worker": {"mock": PROGRAM}}, "builder"))
    assert found["mock"].level == WARN
    assert "isolates nothing" in found["mock"].message
    assert "mock.group" not in found


@pytest.fixture
def public() -> Iterator[Path]:
    """A folder that everybody may enter; those of pytest are closed to others."""
    with TemporaryDirectory(prefix="reimzul-tests-") as folder:
        Path(folder).chmod(0o755)
        yield Path(folder)


@ROOT_ALONE
def test_mock_runs_as_the_user_who_builds_and_he_is_in_its_group(tmp_path: Path, public: Path) -> None:
    mock = a_program(public, "mock", 'echo "run by $(id -un) at home in $HOME"')
    found = look(builder.checks, patient(tmp_path, {"worker": {"mock": mock}}, "builder", user="nobody"))
    assert f"run by nobody at home in {pwd.getpwnam('nobody').pw_dir}" in found["mock"].message
    assert found["mock.group"].level == FAIL
    assert "group mock" in found["mock.group"].message


def git(folder: Path, *words: str) -> None:
    who = ("-c", "user.name=a test", "-c", "user.email=test@farm.test")
    subprocess.run(["git", "-C", str(folder), *who, *words], check=True, capture_output=True)


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A checkout of mock's configurations as it should be."""
    upstream = tmp_path / "upstream"
    (upstream / "mock").mkdir(parents=True)
    for name in ("site-defaults.cfg", "logging.ini", f"c9.{os.uname().machine}.cfg"):
        (upstream / "mock" / name).write_text("# a file\n")
    git(upstream, "init", "--quiet")
    git(upstream, "add", "mock")
    git(upstream, "commit", "--quiet", "--message", "one")
    subprocess.run(["git", "clone", "--quiet", upstream, tmp_path / "configs"], check=True)
    return tmp_path / "configs"


def configs(tmp_path: Path, checkout: Path, user: str = "") -> dict[str, Finding]:
    return look(builder.checks, patient(tmp_path, {"worker": {"mock_configs": checkout}}, "builder", user=user))


def test_configurations_that_are_well(tmp_path: Path, checkout: Path) -> None:
    found = configs(tmp_path, checkout)
    assert (found["configs"].level, found["configs.remote"].level) == (OK, OK)
    assert found["configs"].message.startswith("1 targets, 1 of them for ")


def test_configurations_that_are_changed_by_hand_or_cannot_be_pulled_are_warned_of(
    tmp_path: Path, checkout: Path
) -> None:
    (checkout / "mock" / "logging.ini").write_text("# changed\n")
    (checkout / "mock" / "mine.cfg").write_text("# untracked\n")
    found = configs(tmp_path, checkout)["configs"]
    assert found.level == WARN
    assert found.message.endswith("has uncommitted changes: mock/logging.ini")
    (tmp_path / "upstream").rename(tmp_path / "gone")
    found = configs(tmp_path, checkout)["configs.remote"]
    assert found.level == WARN
    assert "builds go on with the last state" in found.message


def test_configurations_that_are_missing_or_closed_fail(tmp_path: Path, checkout: Path) -> None:
    shutil.rmtree(checkout / ".git")
    assert configs(tmp_path, checkout)["configs"].level == WARN, "a folder without git works"
    (checkout / "mock" / "logging.ini").unlink()
    found = configs(tmp_path, checkout)["configs"]
    assert found.level == FAIL
    assert found.message.endswith("has no logging.ini")
    shutil.rmtree(checkout)
    found = configs(tmp_path, checkout)["configs"]
    assert found.level == FAIL
    assert found.hint.startswith("reimzul setup builder --mock-configs URL")


MACHINE = os.uname().machine
HEAD = "config_opts['root'] = 'TARGETNAME'\n"


def conf(*folders: str, more: str = "") -> str:
    """A configuration that reads these folders of the store."""
    ours = "".join(f"[{name}]\nbaseurl=http://repohost/repo/{name}/\n" for name in folders)
    return f'{HEAD}config_opts[\'dnf.conf\'] = """[main]\nmetadata_expire=2d\n{ours}"""\n{more}'


@pytest.mark.parametrize(
    ("files", "level", "words"),
    [
        (
            {f"c9.{MACHINE}.cfg": conf(f"c9.{MACHINE}")},
            OK,
            "dnf asks the store for metadata at every build",
        ),
        ({f"c9.{MACHINE}.cfg": "include('templates/x.tpl')\n"}, FAIL, "Could not find included config file: "),
        ({f"c9.{MACHINE}.cfg": f"{HEAD}x = (\n"}, FAIL, f"Config error: c9.{MACHINE}.cfg: "),
        ({f"c9.{MACHINE}.cfg": f"{HEAD}x = y\n"}, FAIL, f"c9.{MACHINE}.cfg: Config error: NameError: name 'y'"),
        ({f"c9.{MACHINE}.cfg": "x = 1\n"}, FAIL, "option config_opts['root'] must be present"),
        ({"site-defaults.cfg": "x = (\n"}, FAIL, "Config error: site-defaults.cfg: "),
        (
            {"c9.x86_64.cfg": conf("c9.x86_64"), "c9.i386.cfg": conf("c9.i386")},
            WARN,
            "c9.i386.cfg reads repo/c9.i386/, but its packages are published in repo/c9.x86_64/",
        ),
        ({"c9.x86_64.cfg": conf("c9.x86_64"), "c9.i386.cfg": conf("c9.x86_64", "c9.i386")}, OK, "mock can read all 2"),
        (
            {f"c9.{MACHINE}.cfg": conf("c9")},
            WARN,
            f"c9.{MACHINE}.cfg reads repo/c9/, but nothing is published there",
        ),
        ({f"c9.{MACHINE}.cfg": conf("c9.i386")}, WARN, "nothing is published there without a c9.i386.cfg"),
        ({f"c9.{MACHINE}.cfg": conf("c9.$basearch", "other.x86_64")}, OK, "mock can read all 1"),
    ],
)
def test_each_targets_configuration_is_rendered_and_run(
    tmp_path: Path, checkout: Path, files: Mapping[str, str], level: str, words: str
) -> None:
    (checkout / "mock" / f"c9.{MACHINE}.cfg").write_text(HEAD)
    for name, text in files.items():
        (checkout / "mock" / name).write_text(text)
    found = configs(tmp_path, checkout)["configs.rendered"]
    assert (found.level, words in found.message) == (level, True), found


@pytest.mark.parametrize(
    ("file", "text", "level", "words"),
    [
        (".config/mock.cfg", "config_opts['dnf.conf'] += '[x]'\n", WARN, "and it sets dnf.conf"),
        (".mock/user.cfg", "config_opts['yum.conf'] = ''\n", WARN, "and it sets yum.conf"),
        (
            ".config/mock.cfg",
            "config_opts['dnf.conf'] = config_opts['dnf.conf'].replace('metadata_expire=0', 'metadata_expire=6h')\n",
            FAIL,
            f"dnf would use old metadata of the farm's repositories: c9.{MACHINE}.cfg: [c9.{MACHINE}]",
        ),
        (".config/mock.cfg", "config_opts['rpmbuild_timeout'] = 5\n", OK, "mock can read all 1"),
        (".config/mock/mock.cfg", "# mine\n", FAIL, "instead of every target's configuration"),
        (".mock/user.cfg", "x = (\n", FAIL, "SyntaxError"),
    ],
)
def test_what_mock_reads_of_the_user_is_looked_at(
    tmp_path: Path, checkout: Path, monkeypatch: pytest.MonkeyPatch, file: str, text: str, level: str, words: str
) -> None:
    (checkout / "mock" / f"c9.{MACHINE}.cfg").write_text(conf(f"c9.{MACHINE}"))
    path = tmp_path / "home" / file
    path.parent.mkdir(parents=True)
    path.write_text(text)
    whom = patient(tmp_path, {"worker": {"mock_configs": checkout}}, "builder")
    entry = list(pwd.getpwnam(whom.user))
    entry[5] = str(tmp_path / "home")
    monkeypatch.setattr(host.Host, "user_entry", property(lambda self: pwd.struct_passwd(entry)))
    found = look(builder.checks, whom)["configs.rendered"]
    assert (found.level, words in found.message) == (level, True), found


@ROOT_ALONE
def test_configurations_have_to_be_the_users_who_pulls_them(tmp_path: Path, checkout: Path) -> None:
    found = configs(tmp_path, checkout, user="nobody")["configs"]
    assert found.level == FAIL
    assert "nobody" in found.message
    assert "chown -R nobody" in found.hint


def test_a_builder_that_is_drained_is_warned_of(tmp_path: Path, beanstalkd: Beanstalkd, broker: Broker) -> None:
    whom = patient(
        tmp_path, {**make_ini(beanstalkd.port), "worker": {"fqdn": "b1.farm.test", "max_load": 1}}, "builder"
    )
    assert look(builder.checks, whom)["drained"].level == OK
    set_flag(broker, drain_tube("b1.farm.test"), new_flag(by="johnny", why="its disk is swapped"))
    found = look(builder.checks, whom)["drained"]
    assert (found.level, found.message) == (
        WARN, "b1.farm.test takes no jobs: it is drained by johnny, its disk is swapped",
    )  # fmt: skip
    assert found.hint.endswith("reimzul resume b1.farm.test")
    assert "load" in look(builder.checks, whom)


# --- bstore, disks and folders


def test_a_store_on_several_disks_fails(tmp_path: Path) -> None:
    root = tmp_path / "bstore"
    whom = patient(tmp_path, {"bstore": {"root": root}}, "bstore")
    assert look(host.store_checks, whom)["store"].level == FAIL
    root.mkdir()
    assert set(levels(look(host.store_checks, whom)).values()) == {OK}
    other = Path("/dev/shm") / f"reimzul-doctor-{os.getpid()}"
    other.mkdir()
    try:
        (root / "repo").symlink_to(other)
        found = look(host.store_checks, whom)
        assert found["store"].level == FAIL
        assert "several file systems" in found["store"].message
        assert found["spool"].level == WARN
    finally:
        other.rmdir()


def test_a_createrepo_c_that_is_not_there_fails(tmp_path: Path) -> None:
    whom = patient(tmp_path, {"bstore": {"root": tmp_path}, "repogen": {"createrepo_c": "no-such"}}, "bstore")
    found = look(host.store_checks, whom)["createrepo_c"]
    assert found.level == FAIL
    assert found.hint == "reimzul setup bstore --set repogen.createrepo_c=createrepo_c"


def test_uploads_that_nobody_takes_are_warned_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spool = tmp_path / "spool"
    for name in ("0123.x86_64.1-0", "half.x86_64.1-0", "doctor.b1"):
        (spool / name).mkdir(parents=True)
    for name in ("0123.x86_64.1-0", "doctor.b1"):
        (spool / name / MANIFEST).touch()
    whom = patient(tmp_path, {"bstore": {"root": tmp_path}}, "bstore")
    assert look(host.store_checks, whom)["spool"].level == OK
    monkeypatch.setattr(host, "STUCK_UPLOAD_SECONDS", -3600)
    found = look(host.store_checks, whom)["spool"]
    assert found.level == WARN
    assert found.message.startswith("1 complete uploads")
    assert "0123.x86_64" in found.message


def test_too_little_room_for_builds_fails(tmp_path: Path) -> None:
    rich = {"worker": {"results": tmp_path, "mock_roots": tmp_path / "not" / "yet", "min_free_mib": 1}}
    poor = {"worker": {**rich["worker"], "min_free_mib": 1 << 40}}
    assert levels(look(host.folder_checks, patient(tmp_path, rich, "builder")))["disk.mock_roots"] == OK
    found = look(host.folder_checks, patient(tmp_path, poor, "builder"))["disk.results"]
    assert found.level == FAIL
    assert "the workers take no job" in found.message
    assert "are needed" in found.message


@ROOT_ALONE
def test_folders_that_the_farms_user_cannot_write_fail(tmp_path: Path) -> None:
    settings = {"worker": {"results": tmp_path / "results"}}
    whom = patient(tmp_path, settings, "builder", user="nobody")
    assert look(host.folder_checks, whom)["folder.results"].message == f"{tmp_path}/results does not exist"
    (tmp_path / "results").mkdir()
    found = look(host.folder_checks, whom)["folder.results"]
    assert (found.level, found.message) == (FAIL, f"user nobody cannot write to {tmp_path}/results")
    stranger = attr.evolve(whom, user="no-such-user")
    assert "user no-such-user does not exist" in look(host.folder_checks, stranger)["folder.results"].message


@ROOT_ALONE
def test_settings_that_the_farms_user_cannot_read_fail_and_a_password_for_everybody_is_warned_of() -> None:
    with TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)
        whom = patient(Path(folder), {"history": {"url": "mongodb://farm:secret@localhost/"}}, "builder", user="nobody")
        assert whom.file
        found = []
        for mode in (0o644, 0o640):
            whom.file.chmod(mode)
            found.append(look(host.checks, whom)["settings"])
        assert [each.level for each in found] == [WARN, FAIL]
        assert "password" in found[0].message
        assert found[1].message.startswith("user nobody cannot read")
        assert look(host.checks, attr.evolve(whom, user="no-such-user"))["settings"].level == OK
        plain = patient(Path(folder), {"history": {"url": "mongodb://localhost/"}}, "builder", user="nobody")
        (plain.file or Path()).chmod(0o644)
        assert look(host.checks, plain)["settings"].level == OK


# --- who is told


def test_a_history_that_cannot_be_read_fails_and_what_is_owed_is_warned_of(tmp_path: Path) -> None:
    url, outbox = f"sqlite:///{tmp_path}/history.sqlite", tmp_path / "ledger.sqlite"
    whom = patient(tmp_path, {"history": {"url": url}, "notifier": {"ledger": outbox}}, "controller")
    found = look(controller.checks, whom)
    assert (found["history"].level, found["history"].message) == (OK, "nothing has been recorded yet")
    history = open_history(url)
    write_pending(outbox, "mqtt", 40, time.time() - 8000)
    write_pending(outbox, "mail", 1, time.time())
    found = look(controller.checks, whom)
    assert (found["history"].level, found["owed"].level) == (OK, WARN)
    assert found["owed"].message == "deliveries are pending: 40 events for mqtt for 2 h 13 min"
    history.close()
    (tmp_path / "history.sqlite").write_bytes(b"no database of ours" * 100)
    found = look(controller.checks, whom)
    assert (found["history"].level, found["owed"].level) == (FAIL, WARN)
    away = patient(tmp_path, {"history": {"url": f"mongodb://127.0.0.1:{free_port()}/"}}, "controller")
    assert look(controller.checks, away)["history"].level == FAIL


def test_a_damaged_history_is_reported(tmp_path: Path) -> None:
    file = tmp_path / "history.sqlite"
    whom = patient(tmp_path, {"history": {"url": f"sqlite:///{file}"}}, "controller")
    file.write_bytes(b"no database\n" * 1000)
    found = look(controller.checks, whom)["history"]
    assert (found.level, found.hint.partition(",")[0]) == (FAIL, "systemctl restart reimzul-notifier")
    file.unlink()
    corrupt = tmp_path / "history.corrupt-1763800000"
    corrupt.write_bytes(b"")
    found = look(controller.checks, whom)["history"]
    assert (found.level, f"rm {corrupt}" in found.hint) == (FAIL, True)
    corrupt.unlink()
    assert look(controller.checks, whom)["history"].level == OK


def test_a_damaged_or_large_outbox_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    outbox = tmp_path / "ledger.sqlite"
    whom = patient(tmp_path, {"notifier": {"ledger": outbox}}, "controller")
    assert look(controller.checks, whom)["outbox"].level == OK
    write_pending(outbox, "mqtt", 1, time.time())
    assert look(controller.checks, whom)["outbox"].level == OK
    monkeypatch.setattr(controller, "_LARGE_OUTBOX_BYTES", 1)
    assert look(controller.checks, whom)["outbox"].level == WARN
    corrupt = tmp_path / "outbox.corrupt-1763800000"
    corrupt.write_bytes(b"")
    found = look(controller.checks, whom)["outbox"]
    assert found.level == FAIL
    assert str(corrupt) in found.message
    assert f"rm {corrupt}" in found.hint


def test_a_success_that_stays_unpublished_is_named_with_its_builder(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/history.sqlite"
    whom, now = patient(tmp_path, {"history": {"url": url}}, "controller"), time.time()
    assert look(controller.checks, whom)["unpublished"].level == OK
    timestamp = time.strftime("%Y%m%d%H%M%S", time.gmtime(now - 7200))
    history = open_history(url)
    history.record([
        event("Success", 1, timestamp=timestamp, at=now - 3700),
        event("Success", 2, timestamp=timestamp, at=now - 3500),
        event("Success", 3, timestamp=timestamp, at=now - 3700, scratch=True),
        event("Failed", 4, timestamp=timestamp, at=now - 3700),
        event("Published", 5, timestamp=timestamp, at=now - 3700),
    ])  # fmt: skip
    history.close()
    found = look(controller.checks, whom)["unpublished"]
    builds = "time-1.7-45.el7.src.rpm for x86_64, built by builder1.example.org"
    assert (found.level, found.message) == (WARN, f"built successfully, but not published for over an hour: {builds}")
    assert "reimzul-repogen-worker" in found.hint


@ROOT_ALONE
def test_a_history_that_the_notifier_cannot_write_fails(tmp_path: Path, public: Path) -> None:
    open_history(f"sqlite:///{public}/history.sqlite").close()
    nobody = pwd.getpwnam("nobody")
    os.chown(public, nobody.pw_uid, nobody.pw_gid)
    settings = {"history": {"url": f"sqlite:///{public}/history.sqlite"}}
    found = look(controller.checks, patient(tmp_path, settings, "controller", user="nobody"))["history"]
    assert (found.level, found.message) == (FAIL, f"user nobody cannot write {public}/history.sqlite")


def mqtt(broker: Mosquitto, by: Authority, days: int | None = None) -> Ini:
    certificate, key = by.issue("notifier", days)
    files = {"ca_cert": broker.authority.certificate, "tls_cert": certificate, "tls_key": key}
    return {"mqtt": {"notifications": "true", "port": broker.port, **files}}


def test_an_mqtt_broker_has_to_welcome_us(tmp_path: Path, mosquitto: Mosquitto, authority: Authority) -> None:
    whom = patient(tmp_path, mqtt(mosquitto, authority), "controller")
    assert look(controller.checks, whom)["mqtt"].level == OK
    found = look(controller.certificate_checks, whom)
    assert levels(found) == {f"certificate.mqtt.{name}": WARN for name in ("ca_cert", "tls_cert", "broker")}
    assert all("expires in 2 days" in each.message for each in found.values())
    stranger = patient(tmp_path, mqtt(mosquitto, Authority(tmp_path / "other")), "controller")
    assert look(controller.checks, stranger)["mqtt"].level == FAIL
    expired = patient(tmp_path, mqtt(mosquitto, authority, days=-1), "controller")
    assert look(controller.checks, expired)["mqtt"].level == FAIL
    assert "expired on" in look(controller.certificate_checks, expired)["certificate.mqtt.tls_cert"].message
    mosquitto.stop()
    assert "refused" in look(controller.checks, whom)["mqtt"].message
    mosquitto.start()


def test_a_mail_server_is_greeted_and_given_no_mail(tmp_path: Path) -> None:
    mailbox = Mailbox()
    server = MailServer(mailbox)
    settings = {"mail": {"notifications": "true", "smtp_host": "127.0.0.1", "smtp_port": server.port}}
    whom = patient(tmp_path, settings, "controller")
    server.start()
    try:
        assert look(controller.checks, whom)["mail"].level == OK
        assert (mailbox.sessions, mailbox.mails) == (1, [])
        tls = {"mail": {**settings["mail"], "starttls": "true"}}
        assert look(controller.checks, patient(tmp_path, tls, "controller"))["mail"].level == FAIL
    finally:
        server.stop()
    assert "refused" in look(controller.checks, whom)["mail"].message
    assert "mail" not in look(controller.checks, patient(tmp_path, {}, "controller"))


# --- keys, ports, programs, units


KEY = "0123456789abcdef" * 4


def test_keys_that_others_can_read_fail(tmp_path: Path) -> None:
    secrets = tmp_path / "psk.txt"
    secrets.write_text(f"b1:{KEY}\n")
    section = f"[beanstalkd]\nclient = yes\naccept = 127.0.0.1:1\nconnect = far:2\nPSKsecrets = {secrets}\n"
    whom = patient(tmp_path, {}, "builder", stunnel=section)
    for mode, level in ((0o644, FAIL), (0o640, FAIL), (0o600, OK)):
        secrets.chmod(mode)
        assert look(network.tunnel_checks, whom)["keys"].level == level
    assert KEY not in look(network.tunnel_checks, whom)["keys"].message
    assert "b1" in look(network.tunnel_checks, whom)["keys"].message
    secrets.unlink()
    assert look(network.tunnel_checks, whom)["keys"].message == f"{secrets} does not exist"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (
            "[beanstalkd]\nclient = yes\naccept = 127.0.0.1:1\nconnect = far:2\n",
            "accepts peers without a key",
        ),
        (
            "[beanstalkd]\nclient = yes\naccept = 11300\nconnect = far:2\nPSKsecrets = /psk\n",
            "lets anyone who reaches port 11300 of this host use its key",
        ),
        ("[store-server]\naccept = 1\ncert = /c.pem\nconnect = 2\n", "[store-server] accepts peers without a key"),
        ("[store-server]\naccept = 1\nconnect = 2\nPSKsecrets = /psk\nverify = 0\n", "verify = 0"),
        ("[store-server]\naccept = 1\nconnect = 2\nPSKsecrets = /psk\nsslVersion = TLSv1.1\n", "TLS 1.2"),
        ("[store-server]\naccept = 1\nconnect = 2\nPSKsecrets = /psk\nciphers = ALL:eNULL\n", "eNULL"),
        ("sslVersionMin = TLSv1\n[rsyncd]\nclient = yes\naccept = localhost:1\nPSKsecrets = /psk\n", "TLS 1.2"),
        ("[ssh]\naccept = 22\nconnect = 23\nPSKsecrets = /psk\n", "no section of the farm's"),
    ],
)
def test_holes_in_stunnels_configuration_fail(tmp_path: Path, text: str, words: str) -> None:
    found = look(network.tunnel_checks, patient(tmp_path, {}, "builder", stunnel=text))["tunnels"]
    assert found.level == FAIL
    assert words in found.message


def test_who_listens_for_everybody_is_named(tmp_path: Path) -> None:
    whom = patient(tmp_path, {}, "builder")
    with socket.socket() as everywhere, socket.socket() as here:
        everywhere.bind(("0.0.0.0", 0))
        here.bind(("127.0.0.1", 0))
        port = everywhere.getsockname()[1]
        everywhere.listen()
        here.listen()
        found = look(network.checks, whom)["listen"]
    assert found.level == WARN
    name = Path("/proc/self/comm").read_text().strip()
    assert f"{name} on 0.0.0.0:{port}" in found.message
    assert "127.0.0.1" not in found.message


def test_programs_that_are_missing_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert look(host.checks, patient(tmp_path, {}, "controller", "builder"))["programs"].level == OK
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(host, "_SYSTEM_PATH", str(tmp_path))
    found = look(host.checks, patient(tmp_path, {}, "builder"))["programs"]
    assert (found.level, found.message) == (FAIL, "git is not installed; rsync is not installed")
    lacking = look(host.checks, patient(tmp_path, {}, "controller"))["programs"]
    assert lacking.level == WARN, "a canary alone needs it"


SYSTEMCTL = """\
for unit; do
    case $unit in
        nginx.service) printf 'Id=%s\\nLoadState=loaded\\nActiveState=failed\\nSubState=failed\\n' $unit ;;
        *.service) printf 'Id=%s\\nLoadState=loaded\\nActiveState=active\\nUnitFileState=enabled\\n' $unit ;;
        *) continue ;;
    esac
    echo
done
"""


def test_units_that_do_not_run_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wants = tmp_path / "system" / "multi-user.target.wants"
    wants.mkdir(parents=True)
    monkeypatch.setattr(services, "BOOTED", tmp_path)
    monkeypatch.setattr(services, "ENABLED_UNITS", tmp_path / "system")
    a_program(tmp_path, "systemctl", SYSTEMCTL)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    whom = attr.evolve(patient(tmp_path, {}, "bstore"), file=None)
    found = look(services.checks, whom)
    assert {name for name, each in found.items() if each.level == FAIL} == {"unit.nginx", "unit.reimzul-repogen-worker"}
    assert found["unit.nginx"].message == "nginx is failed (failed)"
    assert "no instance" in found["unit.reimzul-repogen-worker"].message
    for number in (1, 2):
        (wants / f"reimzul-repogen-worker@{number}.service").symlink_to("/dev/null")
    assert look(services.checks, whom)["unit.reimzul-repogen-worker"].message == "2 of 2 run"
    assert not services.checks(patient(tmp_path, {}, "bstore")), "a farm in a folder has no units"

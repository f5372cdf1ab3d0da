# SPDX-License-Identifier: Apache-2.0
"""doctor's remedies, tried: something is broken, the hint is read, its commands are run, and the finding is gone.

What needs systemd or a farm's users is tried on machines: tests/hosts/proof_4_doctor.py.
"""

from __future__ import annotations

import contextlib
import os
import pwd
import shlex
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Callable

import attr
import pytest

from reimzul.admin.doctor import (
    FAIL,
    OK,
    WARN,
    Check,
    Finding,
    builder,
    controller,
    host,
    network,
    run_checks,
    services,
)
from reimzul.admin.doctor.host import Host
from reimzul.admin.setup.files import System
from reimzul.admin.setup.roles import PUBLIC
from reimzul.core.beanstalk import Broker
from reimzul.core.config import load_file
from reimzul.core.control import new_flag, set_flag
from reimzul.core.store_paths import StorePaths
from reimzul.history import open_history
from tests.conftest import Beanstalkd, free_port
from tests.ini import write_ini
from tests.remedies import commands_of
from tests.rsyncd import rsyncd
from tests.waiting import until

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="gives files to another user")
NOBODY = "nobody"
KEY = "0123456789abcdef" * 4


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder that everybody may enter; those of pytest are closed to others."""
    with TemporaryDirectory(prefix="reimzul-tests-") as name:
        Path(name).chmod(0o755)
        yield Path(name)


@pytest.fixture
def make_patient(folder: Path) -> Callable[..., Host]:
    """Makes a host with these settings, as doctor sees it."""

    def make(role: str, user: str = NOBODY, stunnel: str = "", **settings: dict[str, object]) -> Host:
        ini = write_ini(folder / "doctor.ini", settings)
        conf = folder / "stunnel-doctor.conf"
        conf.write_text(stunnel)
        return attr.evolve(host.find_host(load_file(ini), ini, (role,), conf), user=user)

    return make


def find(group: Callable[[Host], list[Check]], patient: Host, name: str) -> Finding:
    return {finding.name: finding for finding in run_checks(group(patient))}[name]


def assert_remedy_helps(group: Callable[[Host], list[Check]], patient: Host, name: str, level: str = FAIL) -> None:
    """Follow the hints of a finding until it is well; each step has to name a command."""
    for _ in range(3):
        found = find(group, patient, name)
        if found.level == OK:
            break
        assert found.level == level, found
        commands = commands_of(found.hint)
        assert commands, found
        for place, command in commands:
            assert not place, found
            subprocess.run(shlex.split(command), check=True)
    assert find(group, patient, name).level == OK, found


def give(path: Path, user: str = NOBODY) -> Path:
    os.chown(path, pwd.getpwnam(user).pw_uid, pwd.getpwnam(user).pw_gid)
    return path


# --- folders, settings, keys


def test_a_missing_folder_is_made(folder: Path, make_patient: Callable[..., Host]) -> None:
    patient = make_patient("builder", user="root", worker={"results": folder / "a" / "results"})
    assert_remedy_helps(host.folder_checks, patient, "folder.results")


def test_access_is_given_to_a_folder_and_to_those_above_it(folder: Path, make_patient: Callable[..., Host]) -> None:
    results = folder / "closed" / "results"
    results.mkdir(parents=True)
    (folder / "closed").chmod(0o700)
    give(results).chmod(0o500)
    assert_remedy_helps(host.folder_checks, make_patient("builder", worker={"results": results}), "folder.results")


def test_settings_become_readable_for_the_daemons_alone(folder: Path, make_patient: Callable[..., Host]) -> None:
    patient = make_patient("builder", history={"url": "mongodb://user:secret@localhost/"})
    assert patient.file
    patient.file.chmod(0o600)
    assert_remedy_helps(host.checks, patient, "settings")
    patient.file.chmod(0o644)
    assert_remedy_helps(host.checks, patient, "settings", WARN)


@pytest.mark.parametrize(("mode", "user"), [(0o644, "root"), (0o600, NOBODY)])
def test_keys_are_shut_away(folder: Path, make_patient: Callable[..., Host], mode: int, user: str) -> None:
    keys = folder / "psk.txt"
    keys.write_text(f"b1:{KEY}\n")
    give(keys, user).chmod(mode)
    section = f"[beanstalkd]\nclient = yes\naccept = 127.0.0.1:1\nconnect = far:2\nPSKsecrets = {keys}\n"
    assert_remedy_helps(network.tunnel_checks, make_patient("builder", stunnel=section), "keys")


@pytest.mark.parametrize(
    ("role", "text", "option"),
    [
        ("builder", "", "--add-builder NAME --new-key"),
        ("controller", "", "--add-bstore NAME --new-key"),
    ],
)
def test_who_has_no_key_gets_one_from_the_controller(
    folder: Path, make_patient: Callable[..., Host], role: str, text: str, option: str
) -> None:
    section = f"[store]\nclient = yes\naccept = 127.0.0.1:1\nconnect = far:2\nPSKsecrets = {folder}/psk.txt\n"
    found = find(network.tunnel_checks, make_patient(role, stunnel=section), "keys")
    assert commands_of(found.hint) == [("controller", f"reimzul setup controller {option}")]


# --- the history and the outbox


def test_a_history_of_another_user_is_given_back(folder: Path, make_patient: Callable[..., Host]) -> None:
    open_history(f"sqlite:///{folder}/history.sqlite").close()
    give(folder)
    patient = make_patient("controller", history={"url": f"sqlite:///{folder}/history.sqlite"})
    assert_remedy_helps(controller.checks, patient, "history")


@pytest.mark.parametrize(("check", "name"), [("history", "history.corrupt-1"), ("outbox", "outbox.corrupt-1")])
def test_damaged_files_that_were_looked_at_are_removed(
    folder: Path, make_patient: Callable[..., Host], check: str, name: str
) -> None:
    (folder / name).touch()
    patient = make_patient(
        "controller", user="root",
        history={"url": f"sqlite:///{folder}/history.sqlite"}, notifier={"ledger": folder / "ledger.sqlite"},
    )  # fmt: skip
    assert_remedy_helps(controller.checks, patient, check)


# --- a builder


def git(folder: Path, *words: str) -> None:
    identity = ("-c", "user.name=a test", "-c", "user.email=test@farm.test", "-c", "safe.directory=*")
    subprocess.run(["git", "-C", str(folder), *identity, *words], check=True, capture_output=True)


@pytest.fixture
def checkout(folder: Path) -> Path:
    """A checkout of mock's configurations that belongs to nobody."""
    checkout = folder / "configs"
    (checkout / "mock").mkdir(parents=True)
    for name in ("site-defaults.cfg", "logging.ini", "c9.x86_64.cfg"):
        (checkout / "mock" / name).write_text("config_opts['root'] = 'TARGETNAME'\n")
    git(checkout, "init", "--quiet")
    git(checkout, "add", "mock")
    git(checkout, "commit", "--quiet", "--message", "one")
    subprocess.run(["chown", "-R", f"{NOBODY}:", checkout], check=True)
    return checkout


@pytest.mark.parametrize("broken", ["owner", "file", "changed"])
def test_a_checkout_that_cannot_be_pulled_or_read(
    checkout: Path, make_patient: Callable[..., Host], broken: str
) -> None:
    if broken == "owner":
        os.chown(checkout, 0, 0)
    elif broken == "file":
        os.chown(checkout / "mock" / "c9.x86_64.cfg", 0, 0)
        (checkout / "mock" / "c9.x86_64.cfg").chmod(0o600)
    else:
        (checkout / "mock" / "logging.ini").write_text("changed\n")
    patient = make_patient("builder", worker={"mock_configs": checkout})
    assert_remedy_helps(builder.checks, patient, "configs", WARN if broken == "changed" else FAIL)


def test_configurations_that_are_missing_come_by_setup(checkout: Path, make_patient: Callable[..., Host]) -> None:
    patient = make_patient("builder", worker={"mock_configs": checkout})
    shutil.rmtree(checkout / ".git")
    (checkout / "mock" / "logging.ini").unlink()
    assert commands_of(find(builder.checks, patient, "configs").hint) == [
        ("", f"mv {checkout} {checkout}.old"), ("", "reimzul setup builder --mock-configs URL"),
    ]  # fmt: skip


def test_a_missing_mock_is_named_and_not_its_check(folder: Path, make_patient: Callable[..., Host]) -> None:
    found = find(builder.checks, make_patient("builder", worker={"mock": "no-such-mock"}), "mock")
    assert (found.level, found.message) == (FAIL, "no-such-mock is not installed, so the workers take no job")
    assert "dnf install mock" in found.hint
    assert "Where there is no mock" in found.hint
    assert "--version" not in found.hint
    checks = [check.name for check in builder.checks(make_patient("builder", worker={"mock": "no-such-mock"}))]
    assert "mock.group" not in checks, "without mock there is no group to be put into"


def test_a_group_that_is_missing_is_made_before_the_user_is_put_into_it(
    folder: Path, make_patient: Callable[..., Host]
) -> None:
    mock = folder / "mock"
    mock.write_text("#!/bin/sh\necho 5.9\n")
    mock.chmod(0o755)
    found = find(builder.checks, make_patient("builder", worker={"mock": mock}), "mock.group")
    assert [command for _, command in commands_of(found.hint)] == [
        "groupadd --system mock", "usermod --append --groups mock nobody", "systemctl restart 'reimzul-worker@*'",
    ]  # fmt: skip


def test_the_stand_ins_missing_compilers_are_named_as_packages(
    folder: Path, make_patient: Callable[..., Host], monkeypatch: pytest.MonkeyPatch
) -> None:
    standin = folder / "reimzul-standin-mock"
    standin.write_text("#!/bin/sh\necho 0\n")
    standin.chmod(0o755)
    patient = make_patient("builder", worker={"mock": standin})
    runuser = shutil.which("runuser")
    assert runuser
    (folder / "runuser").symlink_to(runuser)
    monkeypatch.setenv("PATH", str(folder))
    found = find(builder.checks, patient, "mock")
    assert (found.level, found.message.partition(";")[0]) == (
        FAIL, "the workers take no job: reimzul-standin-mock lacks what it builds with",
    )  # fmt: skip
    ((_, command),) = commands_of(found.hint)
    assert command.startswith("apt-get install rpm dnf gcc patch")


def test_a_drained_builder_is_resumed(
    make_patient: Callable[..., Host], beanstalkd: Beanstalkd, broker: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    patient = make_patient(
        "builder", beanstalkd={"host": "127.0.0.1", "port": beanstalkd.port}, worker={"fqdn": "b1.farm.test"}
    )
    set_flag(broker, "worker.b1.farm.test", new_flag(by="a test"))
    found = find(builder.checks, patient, "drained")
    ((place, command),) = commands_of(found.hint)
    assert (found.level, place) == (WARN, "controller")
    monkeypatch.setenv("PATH", str(Path(sys.executable).parent), prepend=":")
    subprocess.run([*shlex.split(command), "--config", str(patient.file)], check=True)
    assert find(builder.checks, patient, "drained").level == OK


# --- bstore


def test_a_full_store_is_told_from_a_wrong_configuration(folder: Path, make_patient: Callable[..., Host]) -> None:
    root, port = folder / "bstore", free_port()
    root.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "reimzul-test", root], check=True)
    try:
        for each in StorePaths(root).folders():
            each.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(OSError):
            (root / "repo" / "filler").write_bytes(bytes(1 << 20))
        patient = make_patient(
            "builder", user="root", bstore={"upload_url": f"rsync://127.0.0.1:{port}/reimzul-bstore/"},
            worker={"fqdn": "b1.farm.test"},
        )  # fmt: skip
        with rsyncd(root, port, folder, "rsyncd.conf"):
            found = find(services.upload_checks, patient, "rsync.write")
            assert found.level == FAIL
            assert found.hint.startswith("free some space on bstore"), found
            (root / "repo" / "filler").unlink()
            assert find(services.upload_checks, patient, "rsync.write").level == OK
    finally:
        subprocess.run(["umount", "--lazy", root], check=True)


def test_nginx_on_the_port_for_the_public_is_no_finding(
    folder: Path, make_patient: Callable[..., Host], monkeypatch: pytest.MonkeyPatch
) -> None:
    port = free_port()
    (folder / PUBLIC.lstrip("/")).parent.mkdir(parents=True)
    conf = folder / "nginx.conf"
    conf.write_text(
        f"daemon off; pid {folder}/pid; error_log {folder}/log; events {{}}\n"
        f"http {{ access_log off; server {{\n    listen {port};\n}} }}\n"
    )
    monkeypatch.setattr(network, "System", attr.make_class("At", [], bases=(System,)))
    monkeypatch.setattr(System, "at_root", lambda _: System(root=folder))
    patient = attr.evolve(make_patient("bstore"), file=None)
    with subprocess.Popen(["nginx", "-c", conf]) as server:
        try:
            until(lambda: _listens(port), 20, "nginx listens")
            assert f"nginx on 0.0.0.0:{port}" in find(network.checks, patient, "listen").message
            (folder / PUBLIC.lstrip("/")).write_text(f"server {{\n    listen {port};\n}}\n")
            assert f":{port}" not in find(network.checks, patient, "listen").message
        finally:
            server.terminate()


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0

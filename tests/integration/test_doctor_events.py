# SPDX-License-Identifier: Apache-2.0
"""What doctor says of the key of events, of claimed builds, and of a binlog that grows."""

from __future__ import annotations

import os
import pwd
import time
from pathlib import Path

import attr
import pytest

from reimzul.admin.doctor import FAIL, OK, WARN, controller, host
from reimzul.admin.doctor.host import Host
from reimzul.core.beanstalk import Broker
from reimzul.history import open_history
from tests.events import event
from tests.integration.test_doctor import a_beanstalkd, look, patient

NOBODY = pwd.getpwnam("nobody")
LINE = f"3:{'ab' * 32}\n"


@pytest.fixture
def key_file(tmp_path: Path) -> Path:
    path = tmp_path / "event-keys"
    path.write_text(f"2:{'cd' * 32}:2999-12-31\n{LINE}")
    path.chmod(0o640)
    return path


def examine(folder: Path, path: Path | None, *roles: str) -> Host:
    settings: dict[str, dict[str, object]] = {"history": {"url": f"sqlite:///{folder}/history.sqlite"}}
    if path is not None:
        settings["farm"] = {"event_keys": path}
    return attr.evolve(patient(folder, settings, *roles), user="nobody")


@pytest.mark.parametrize("role", ["controller", "bstore"])
def test_the_key_that_signs_is_named(tmp_path: Path, key_file: Path, role: str) -> None:
    found = look(host.checks, examine(tmp_path, key_file, role))["events.key"]
    assert (found.level, found.message) == (OK, "events are signed by key 3; key 2 until 2999-12-31")


def test_a_key_that_others_can_read_fails(tmp_path: Path, key_file: Path) -> None:
    key_file.chmod(0o644)
    found = look(host.checks, examine(tmp_path, key_file, "bstore"))["events.key"]
    assert (found.level, found.message) == (FAIL, f"every user can read {key_file}")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
def test_a_key_of_the_group_that_all_daemons_are_in_fails(tmp_path: Path, key_file: Path) -> None:
    os.chown(key_file, 0, NOBODY.pw_gid)
    found = look(host.checks, examine(tmp_path, key_file, "controller"))["events.key"]
    assert (found.level, found.hint) == (FAIL, f"chgrp reimzul-store {key_file}")


@pytest.mark.parametrize("role", ["controller", "bstore"])
def test_that_nothing_is_signed_is_said(tmp_path: Path, role: str) -> None:
    found = look(host.checks, examine(tmp_path, None, role))["events.key"]
    assert found.level == WARN
    assert "reimzul setup controller --new-event-key" in found.hint


def test_a_wrong_key_file_fails(tmp_path: Path, key_file: Path) -> None:
    key_file.write_text("3:short\n")
    found = look(host.checks, examine(tmp_path, key_file, "controller"))["events.key"]
    assert found.level == FAIL
    assert "line 1 is not of the form number:hex" in found.message


@pytest.mark.parametrize("has_key", [True, False])
def test_on_a_single_host_the_key_protects_nothing(tmp_path: Path, key_file: Path, has_key: bool) -> None:
    found = look(host.checks, examine(tmp_path, key_file if has_key else None))["events.key"]
    assert (found.level, found.message) == (
        OK, "a key of events protects nothing here: workers run on this host, as the same user",
    )  # fmt: skip


def test_a_builder_has_no_key_to_be_checked(tmp_path: Path) -> None:
    assert "events.key" not in look(host.checks, examine(tmp_path, None, "builder"))


def test_claimed_builds_are_named_and_are_not_called_unpublished(tmp_path: Path, key_file: Path) -> None:
    checked, now = examine(tmp_path, key_file, "controller"), time.time()
    checked = attr.evolve(checked, user=pwd.getpwuid(os.geteuid()).pw_name)  # who can write the history
    assert look(controller.checks, checked)["events.claimed"].level == OK
    timestamp = time.strftime("%Y%m%d%H%M%S", time.gmtime(now - 7200))
    history = open_history(f"sqlite:///{tmp_path}/history.sqlite")
    history.record([
        event("Success", 1, timestamp=timestamp, at=now - 7000),
        event("Published", 1, timestamp=timestamp, at=now - 7000, claimed=True),
        event("Published", 2, timestamp=timestamp, at=now - 7000, claimed=False, srpm="signed-1-1.src.rpm"),
        event("Published", 3, timestamp=timestamp, at=now - 7000, srpm="before-1-1.src.rpm"),
    ])  # fmt: skip
    history.close()
    found = look(controller.checks, checked)["events.claimed"]
    text = "announced as published, and not signed by bstore: time-1.7-45.el7.src.rpm for x86_64"
    assert (found.level, found.message) == (WARN, text)
    assert "old version" in found.hint
    assert look(controller.checks, checked)["unpublished"].level == OK


def test_a_binlog_that_grows_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "binlog"
    folder.mkdir()
    with a_beanstalkd("-b", str(folder), "-s", "65536", "-z", "65537") as (port, _):
        host = patient(tmp_path, {"beanstalkd": {"host": "127.0.0.1", "port": port}}, "controller")
        assert look(controller.beanstalkd_checks, host)["binlog"].level == OK
        with Broker("127.0.0.1", port) as broker:
            for _ in range(50):
                broker.put_raw("junk", b"x" * 30_000, priority=1)
            size = broker.server_stats().binlog_bytes
        on_disk = sum(path.stat().st_size for path in folder.iterdir() if path.name != "lock")
        assert 0.8 * on_disk <= size <= on_disk + 2 * 65536
        monkeypatch.setattr(controller, "_LARGE_BINLOG_BYTES", 1_000_000)
        found = look(controller.beanstalkd_checks, host)["binlog"]
        assert (found.level, "reimzul queues" in found.hint) == (WARN, True)

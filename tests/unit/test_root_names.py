# SPDX-License-Identifier: Apache-2.0
"""The names of mock's roots: which are ours, and whose; and whether a process is the one that was recorded."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from reimzul.core.retry import CancelToken
from reimzul.worker import roots
from reimzul.worker.roots import (
    RootFolder,
    RootInUse,
    bootstrap_fault,
    end_orphan,
    extension_of,
    is_running,
    parse_folder,
    slot_of,
    start_time,
)

OLD = "1795925214-3372e01b"


@pytest.mark.parametrize(
    ("name", "folder"),
    [
        ("reimzul-c9.x86_64-reimzul-1.x86_64", RootFolder("reimzul-c9.x86_64", False, "reimzul-1.x86_64", "1")),
        ("reimzul-c9-bootstrap-reimzul-spare2.i386", RootFolder("reimzul-c9", True, "reimzul-spare2.i386", "spare2")),
        ("centos-9-bootstrap-reimzul-1.i386", RootFolder("centos-9", True, "reimzul-1.i386", "1")),
        (f"reimzul-c9.x86_64-{OLD}", RootFolder("reimzul-c9.x86_64", False, OLD, "")),
        (f"reimzul-a-1.el9.x86_64-bootstrap-{OLD}", RootFolder("reimzul-a-1.el9.x86_64", True, OLD, "")),
    ],
)
def test_a_root_of_ours_is_known_by_its_name(name: str, folder: RootFolder) -> None:
    assert parse_folder(name) == folder
    assert f"{folder.configured_name}-{folder.extension}" == name


@pytest.mark.parametrize(
    "name",
    [
        "fedora-41-x86_64", "fedora-41-x86_64-bootstrap", "reimzul-c9.x86_64", "reimzul-c9.x86_64-bootstrap", "cache",
        f"centos-9-{OLD}", f"centos-9-bootstrap-{OLD}", f"reimzul-c9-{OLD}.lock", "reimzul-1.x86_64",
        "reimzul-c9-reimzul-1", "reimzul-c9-reimzul-a-b.x86_64", "reimzul-c9-1795925214-xyz", "",
    ],
)  # fmt: skip
def test_a_root_of_others_is_none_of_ours(name: str) -> None:
    assert parse_folder(name) is None


def test_an_extension_says_its_slot() -> None:
    assert slot_of(extension_of("spare1", "x86_64")) == "spare1"
    assert slot_of(OLD) == ""


def test_a_process_is_known_by_when_it_was_started() -> None:
    with subprocess.Popen(["sleep", "60"]) as process:
        birth = start_time(process.pid)
        assert birth
        assert is_running(process.pid, birth)
        assert not is_running(process.pid, birth + "0")
        assert not is_running(process.pid, "")
        process.kill()
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        assert not is_running(process.pid, birth), "a zombie has ended"
    assert not is_running(process.pid, birth)


def test_a_process_that_is_hidden_is_there_while_it_refuses_us(monkeypatch: pytest.MonkeyPatch) -> None:
    """ProtectProc=invisible hides processes of root from the worker."""

    def refuse(pid: int, number: int) -> None:
        raise PermissionError

    monkeypatch.setattr(roots, "start_time", lambda pid: "")
    monkeypatch.setattr(os, "kill", refuse)
    monkeypatch.setattr(os, "killpg", refuse)
    monkeypatch.setattr(roots, "ORPHAN_TIMEOUT_SECONDS", 0.1)
    assert is_running(17, "boot 1")
    with pytest.raises(RootInUse, match="process 17"):
        end_orphan(17, "boot 1", CancelToken())


MADE = "Start(bootstrap): chroot init\nFinish(bootstrap): chroot init\nStart: chroot init\n"
SET_UP = MADE + "Finish: chroot init\nStart: build phase for x\nStart: build setup for x\n"


@pytest.mark.parametrize(
    ("log", "code", "broken"),
    [
        ("Start(bootstrap): chroot init\n", None, True),
        ("Start(bootstrap): chroot init\n", -9, True),
        ("Start(bootstrap): chroot init\n", 143, True),
        ("Start(bootstrap): chroot init\n", 1, True),
        (MADE, 20, True),
        (MADE, 30, True),
        (MADE, 90, True),
        (MADE, None, False),
        (MADE, 143, False),
        (SET_UP, 30, False),
        (SET_UP, None, False),
        (SET_UP, 0, False),
        ("", 60, False),
        ("", 3, False),
        ("", 30, True),
    ],
)
def test_how_a_build_ended_says_whether_its_bootstrap_root_is_trusted(
    tmp_path: Path, log: str, code: int | None, broken: bool
) -> None:
    (tmp_path / "state.log").write_text(log)
    assert bool(bootstrap_fault(tmp_path, code)) is broken

# SPDX-License-Identifier: Apache-2.0
"""The command `reimzul`, as it is installed, in a pipe and on a terminal."""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import time
from pathlib import Path

import click
import pytest

from reimzul.core.beanstalk import PRIORITY, Broker, arch_tube
from reimzul.core.config import parse_settings
from reimzul.core.message import BuildRequest
from reimzul.history import open_history
from tests import commands
from tests.conftest import Beanstalkd, free_port
from tests.events import build_id, event
from tests.notifier import write_pending
from tests.schemas import check_line
from tests.terminal import show_on_terminal

PROGRAM = Path(sys.executable).parent / "reimzul"


@pytest.fixture
def ini(tmp_path: Path, beanstalkd: Beanstalkd, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The configuration that holds."""
    path = tmp_path / "reimzul.ini"
    path.write_text(
        f"[beanstalkd]\nhost = {beanstalkd.host}\nport = {beanstalkd.port}\n"
        f"[history]\nurl = sqlite:///{tmp_path}/history.sqlite\n"
    )
    monkeypatch.setenv("REIMZUL_CONFIG", str(path))
    return path


@pytest.fixture
def recorded(ini: Path, tmp_path: Path) -> None:
    """Three builds."""
    history = open_history(f"sqlite:///{tmp_path}/history.sqlite")
    history.record([event("Failed", 1), event("Published", 2), event("Building", 3, arch="i386", submitter="karanbir")])
    history.close()


def reimzul(*arguments: object) -> subprocess.CompletedProcess[str]:
    """Run it, its output in a pipe."""
    done = commands.run([PROGRAM, *map(str, arguments)])
    check_line(arguments, done.stdout)
    return done


def test_help_is_fast_and_names_every_command() -> None:
    before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime
    shown = reimzul("--help")
    took = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime - before
    assert shown.returncode == 0
    assert all(
        word in shown.stdout for word in ("builds", "queues", "buried", "kick", "discard", "config", "Exit codes")
    )
    assert took < 1, "0.1 s of processor time is usual"
    assert (reimzul().returncode, reimzul().stderr) == (2, shown.stdout), "no arguments print the help"


@pytest.mark.parametrize(
    "command",
    [
        ["builds"], ["queues"], ["buried"], ["kick"], ["discard"], ["override"], ["config"],
        ["config", "check"], ["config", "sample"], ["doctor"], ["targets"], ["packages"], ["download"],
    ],
)  # fmt: skip
def test_each_command_has_an_example(command: list[str]) -> None:
    shown = reimzul(*command, "--help")
    assert shown.returncode == 0
    assert f"reimzul {' '.join(command)}" in shown.stdout.split("Example")[1]


def test_builds_in_a_pipe_are_lines_of_tabs_newest_first(recorded: None) -> None:
    lines = [line.split("\t") for line in reimzul("builds").stdout.splitlines()]
    assert [line[1] for line in lines] == ["building", "published", "failed"]
    assert lines[2] == [
        build_id(1)[:8], "failed", "time-1.7-45.el7.src.rpm", "x86_64", "c7.1708.u.x86_64", "2025-11-22 00:00:01Z",
        "johnny", "builder1.example.org",
    ]  # fmt: skip


def test_no_builds_yet_is_one_clear_line(ini: Path) -> None:
    shown = reimzul("builds")
    assert (shown.returncode, shown.stdout) == (0, "")
    assert "no builds are known yet" in shown.stderr
    assert json.loads(reimzul("builds", "--json").stdout) == []


def test_a_mongodb_that_is_away_is_one_clear_line(ini: Path) -> None:
    ini.write_text(f"[history]\nurl = mongodb://127.0.0.1:{free_port()}/\n")
    shown = reimzul("builds")
    assert shown.returncode == 1
    assert len(shown.stderr.splitlines()) == 1
    assert "MongoDB" in shown.stderr


def test_queues_show_what_waits_and_mark_what_nobody_watches(ini: Path, broker: Broker) -> None:
    request = BuildRequest(
        srpm="time-1.7-45.el7.src.rpm", arch="aarch64", target="c7.u.aarch64", disttag=".el7", submitter="johnny"
    )
    for name in ("aarch64", "x86_64"):
        broker.put(arch_tube(name), request, priority=PRIORITY)
    broker.put_raw("cancel.0123", b"", priority=1, delay=60)
    broker.watch(["x86_64"])
    claim = broker.reserve({"x86_64": arch_tube("x86_64")}, 0)
    assert claim
    tubes = {tube["name"]: tube for tube in json.loads(reimzul("queues", "--json").stdout)["tubes"]}
    assert {"x86_64", "aarch64", "armv7l", "notify", "createrepo", "tosign"} <= tubes.keys()
    assert (tubes["x86_64"]["reserved"], tubes["x86_64"]["watchers"], tubes["x86_64"]["unwatched"]) == (1, 1, False)
    assert (tubes["aarch64"]["ready"], tubes["aarch64"]["unwatched"]) == (1, True)
    lines = {line.split("\t")[0]: line for line in reimzul("queues").stdout.splitlines()}
    assert lines["aarch64"] == "aarch64\t1\t0\t0\t0\t0\t0\tnobody watches it"
    assert "nobody" not in lines["x86_64"]
    claim.delete()


def test_queues_show_what_sinks_lack(ini: Path, tmp_path: Path) -> None:
    outbox = tmp_path / "ledger.sqlite"
    ini.write_text(f"{ini.read_text()}[notifier]\nledger = {outbox}\n")
    assert json.loads(reimzul("queues", "--json").stdout)["pending"] == []
    write_pending(outbox, "mqtt", 40, 1_763_800_000.0, 1_763_800_060.0)
    *tubes, pending = reimzul("queues").stdout.splitlines()
    assert pending == "pending for mqtt\t40\t2025-11-22 08:26:40Z\t2025-11-22 08:27:40Z"
    assert all(line.count("\t") == 7 for line in tubes)
    (row,) = json.loads(reimzul("queues", "--json").stdout)["pending"]
    assert row.pop("at").startswith(time.strftime("%Y-", time.gmtime()))
    when = {"oldest": "2025-11-22T08:26:40Z", "next_try": "2025-11-22T08:27:40Z"}
    assert row == {"sink": "mqtt", "count": 40, **when}
    lines = [click.unstyle(line) for line in show_on_terminal([str(PROGRAM), "queues"], columns=100).lines]
    assert lines[-3] == ""
    assert lines[-2].split()[:2] == ["PENDING", "EVENTS"]


def test_queues_without_an_outbox_that_can_be_read_are_shown_all_the_same(ini: Path, tmp_path: Path) -> None:
    (tmp_path / "ledger.sqlite").write_text("this is no database\n" * 100)
    ini.write_text(f"{ini.read_text()}[notifier]\nledger = {tmp_path}/ledger.sqlite\n")
    shown = reimzul("queues", "--json")
    assert shown.returncode == 1
    assert json.loads(shown.stdout)["pending"] is None
    assert "the pending deliveries are not known" in shown.stderr


def test_no_beanstalkd_is_one_clear_line(ini: Path) -> None:
    port = free_port()
    ini.write_text(f"[beanstalkd]\nhost = 127.0.0.1\nport = {port}\n")
    shown = reimzul("queues")
    assert shown.returncode == 5
    assert shown.stderr == f"reimzul: beanstalkd at 127.0.0.1:{port}: Connection refused\n"


def test_config_check_says_which_file_holds(ini: Path) -> None:
    shown = reimzul("config", "check")
    assert (shown.returncode, shown.stdout) == (0, f"{ini}: no faults\n")


def test_config_check_says_every_fault_on_a_line_of_its_own(ini: Path) -> None:
    ini.write_text("[beanstalk]\n[history]\nurl = mysql://x/\n[mqtt]\nnotification = true\nport = 0\n")
    shown = reimzul("config", "check")
    assert shown.returncode == 3
    assert len(shown.stderr.splitlines()) == 4
    for words in ("[beanstalk]", "[history] url", "is notifications meant?", "[mqtt] port"):
        assert words in shown.stderr
    listed = reimzul("config", "check", "--json")
    errors = [line.removeprefix("reimzul: ") for line in shown.stderr.splitlines()]
    assert (listed.returncode, listed.stderr) == (3, "")
    assert json.loads(listed.stdout) == {"file": str(ini), "errors": errors, "warnings": []}


def test_config_check_looks_at_the_table_of_arches_too(ini: Path, tmp_path: Path) -> None:
    (tmp_path / "arches.yml").write_text("arches: 17\n")
    ini.write_text(f"[farm]\narches = {tmp_path}/arches.yml\n")
    shown = reimzul("config", "check")
    assert shown.returncode == 3
    assert "arches.yml" in shown.stderr


def test_config_check_warns_of_files_that_cannot_be_read(ini: Path) -> None:
    ini.write_text("[mqtt]\nnotifications = yes\nca_cert = /nowhere/ca.pem\ntls_insecure = False\n")
    shown = reimzul("config", "check")
    assert shown.returncode == 0
    assert shown.stderr == "warning: [mqtt] ca_cert: /nowhere/ca.pem does not exist, or this user may not read it\n"
    listed = json.loads(reimzul("config", "check", "--json").stdout)
    assert [f"warning: {line}\n" for line in listed["warnings"]] == [shown.stderr]


def test_the_sample_is_a_configuration(ini: Path) -> None:
    sample = reimzul("config", "sample").stdout
    parse_settings(sample, "the sample")
    assert "[mqtt]" in sample


OVERRIDE = ("override", "-s", "time-1.7-45.el7.src.rpm", "-t", "c7.1708.u.x86_64", "-a", "x86_64", "-c")


def test_an_override_is_shown_with_its_comment(recorded: None) -> None:
    shown = reimzul(*OVERRIDE, "by hand")
    assert (shown.returncode, shown.stderr) == (0, "")
    about = "time-1.7-45.el7.src.rpm for c7.1708.u.x86_64 on x86_64"
    assert shown.stdout == f"{build_id(2)[:8]}  {about}: override\n"
    (build,) = json.loads(reimzul("builds", "--status", "Override", "--json").stdout)
    assert (build["comment"], build["build_id"]) == ("by hand", build_id(2))
    assert json.loads(reimzul(*OVERRIDE, "again", "--json").stdout) == [{**build, "comment": "again"}]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("-s", "tar-1-1.src.rpm"), "no finished build of tar-1-1.src.rpm on x86_64 for c7.1708.u.x86_64 is recorded"),
        (("-a", "i386"), "no finished build of"),
        (("-s", "../time.src.rpm"), "--srpm: "),
    ],
)
def test_an_override_of_nothing_is_one_clear_line(recorded: None, arguments: tuple[str, ...], words: str) -> None:
    shown = reimzul(*OVERRIDE, "by hand", *arguments)
    assert (shown.returncode, shown.stdout) == (4, "")
    assert len(shown.stderr.splitlines()) == 1
    assert words in shown.stderr


def test_an_override_without_a_history_makes_none(ini: Path, tmp_path: Path) -> None:
    shown = reimzul(*OVERRIDE, "by hand")
    assert shown.returncode == 1
    assert "no builds are known yet" in shown.stderr
    assert not (tmp_path / "history.sqlite").exists()

# SPDX-License-Identifier: Apache-2.0
"""Jobs that were put aside: `reimzul buried`, `kick` and `discard` as they are installed, and floods of bad ones."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from reimzul.core.beanstalk import NOTIFY, PRIORITY, Broker, Tube, arch_tube
from reimzul.core.message import BuildEvent, BuildRequest, first_bytes
from reimzul.history import open_history
from tests import commands
from tests.conftest import Beanstalkd, free_port
from tests.events import build_id, event, refusal
from tests.schemas import check_line
from tests.waiting import until

HERE = Path(sys.executable).parent


@pytest.fixture
def ini(tmp_path: Path, beanstalkd: Beanstalkd, broker: Broker, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The configuration that holds; every tube is empty."""
    path = tmp_path / "reimzul.ini"
    path.write_text(
        f"[beanstalkd]\nhost = {beanstalkd.host}\nport = {beanstalkd.port}\n"
        f"[history]\nurl = sqlite:///{tmp_path}/history.sqlite\n"
        f"[notifier]\nledger = {tmp_path}/ledger.sqlite\n"
        f"[logs]\nlogfile = {tmp_path}/reimzul.log\n"
        f"[bstore]\nroot = {tmp_path}/bstore\n"
    )
    monkeypatch.setenv("REIMZUL_CONFIG", str(path))
    return path


def reimzul(*arguments: object) -> subprocess.CompletedProcess[str]:
    """Run it in a pipe."""
    done = commands.run([HERE / "reimzul", *map(str, arguments)])
    check_line(arguments, done.stdout)
    return done


def run_and_answer(answer: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    """Run it with a terminal to ask on, and type an answer."""
    ours, its = pty.openpty()
    os.write(ours, answer.encode())
    try:
        return subprocess.run(
            [HERE / "reimzul", *map(str, arguments)], stdin=its, capture_output=True, text=True, timeout=30, check=False
        )
    finally:
        os.close(its)
        os.close(ours)


def bury(broker: Broker, body: bytes = b"{]", tube: str = "x86_64") -> int:
    """A buried job."""
    number = broker.put_raw(tube, body, priority=PRIORITY)
    broker.watch([tube])
    claim = broker.reserve({tube: arch_tube(tube)}, 0)
    assert claim
    assert claim.id == number
    claim.bury()
    return number


def record_refusal(tmp_path: Path, job: int, body: bytes = b"{]", **more: object) -> None:
    """The notifier's record of a refusal."""
    history = open_history(f"sqlite:///{tmp_path}/history.sqlite")
    history.record([refusal(job, begins=first_bytes(body), host="builder1.example.org", **more)])
    history.close()


def state(broker: Broker, job: int) -> str:
    """Ready, delayed, buried."""
    return broker.job_stats(job).state


def rows() -> dict[int, dict[str, object]]:
    """What `buried --json` has of each job."""
    return {row["job"]: row for row in json.loads(reimzul("buried", "--json").stdout)["jobs"]}


# --- buried


def test_a_buried_job_is_shown_with_who_refused_it_and_why(ini: Path, broker: Broker, tmp_path: Path) -> None:
    body = b'{"srpm":\t"\x1b[2J\n\xff' + b"x" * 2000
    job = bury(broker, body)
    record_refusal(tmp_path, job, body, reason="not JSON", at=1_763_800_000.0)
    shown = reimzul("buried")
    assert (shown.returncode, shown.stderr) == (0, "")
    assert shown.stdout.rstrip("\n").split("\t")[:5] == [
        "x86_64", str(job), "2025-11-22 08:26:40Z", "not JSON", "builder1.example.org"
    ]  # fmt: skip
    assert shown.stdout.isascii()
    assert len(shown.stdout.splitlines()) == 1
    assert "\x1b" not in shown.stdout
    assert rows() == {
        job: {
            "tube": "x86_64", "job": job, "since": "2025-11-22T08:26:40Z", "reason": "not JSON",
            "host": "builder1.example.org", "begins": first_bytes(body), "recorded": True,
        }
    }  # fmt: skip


def test_what_is_not_buried_any_more_is_not_shown(ini: Path, broker: Broker, tmp_path: Path) -> None:
    kicked, deleted, moved, still = (bury(broker) for _ in range(4))
    for job in (kicked, deleted, moved, still):
        record_refusal(tmp_path, job)
    broker.kick(kicked)
    broker.delete(deleted)
    broker.delete(moved)
    assert list(rows()) == [still]


def test_a_number_that_another_job_has_now_does_not_lend_it_its_reason(
    ini: Path, broker: Broker, tmp_path: Path
) -> None:
    job = bury(broker, b"what is there now")
    record_refusal(tmp_path, job, b"what was there before the binlog was lost", at=2e9)
    record_refusal(tmp_path, job, b"what is there now", tube="i386", at=2.1e9)
    assert rows()[job]["recorded"] is False
    record_refusal(tmp_path, job, b"what is there now", at=1e9)
    assert rows()[job]["since"] == "2001-09-09T01:46:40Z"


def test_of_a_job_that_was_refused_again_the_last_time_counts(ini: Path, broker: Broker, tmp_path: Path) -> None:
    job = bury(broker)
    for at in (1e9, 1.2e9, 1.1e9):
        record_refusal(tmp_path, job, at=at, reason=f"refused at {at:.0f}")
    assert (rows()[job]["since"], rows()[job]["reason"]) == ("2008-01-10T21:20:00Z", "refused at 1200000000")


def test_what_nobody_recorded_is_counted_and_the_first_is_shown(ini: Path, broker: Broker, tmp_path: Path) -> None:
    first, known, *_ = (bury(broker, b"%d" % number) for number in range(5))
    other = bury(broker, tube="notify")
    record_refusal(tmp_path, known, b"1")
    shown = reimzul("buried")
    assert [line.split("\t")[:2] for line in shown.stdout.splitlines()] == [
        ["x86_64", str(known)], ["x86_64", str(first)], ["notify", str(other)]
    ]  # fmt: skip
    assert "nobody recorded why" in shown.stdout.splitlines()[1]
    assert shown.stderr == "x86_64: 3 more buried without a recorded reason; beanstalkd shows only the first\n"
    assert json.loads(reimzul("buried", "--json").stdout)["unrecorded"] == {"x86_64": 4, "notify": 1}
    assert [rows()[job]["reason"] for job in (first, known)] == [None, "not JSON"]


def test_one_tube_can_be_asked_for(ini: Path, broker: Broker) -> None:
    bury(broker)
    job = bury(broker, tube="notify")
    assert [line.split("\t")[:2] for line in reimzul("buried", "--tube", "notify").stdout.splitlines()] == [
        ["notify", str(job)]
    ]
    assert reimzul("buried", "--tube", "aarch64").stdout == ""


@pytest.mark.parametrize("command", [["buried"], ["kick", "--yes"], ["discard", "--yes"]])
def test_a_tube_that_is_not_there_is_said_and_the_nearest_named(ini: Path, command: list[str]) -> None:
    shown = reimzul(*command, "--tube", "x8664\r\ndelete 1")
    assert (shown.returncode, shown.stdout) == (4, "")
    assert shown.stderr.startswith("reimzul: there is no tube 'x8664\\r\\ndelete 1'")
    assert "is x86_64 meant?" in reimzul(*command, "--tube", "x86-64").stderr


def test_without_a_history_the_jobs_are_shown_all_the_same(ini: Path, broker: Broker) -> None:
    job = bury(broker)
    assert reimzul("buried").returncode == 0
    ini.write_text(ini.read_text().replace("url = sqlite:", f"url = mongodb://127.0.0.1:{free_port()}/\n#"))
    shown = reimzul("buried")
    assert shown.returncode == 1
    assert shown.stdout.split("\t")[1] == str(job)
    assert "the reasons cannot be read: MongoDB" in shown.stderr


# --- kick and discard


def test_kicked_by_number_a_job_is_ready_and_no_other_is(ini: Path, broker: Broker) -> None:
    first, second = bury(broker), bury(broker)
    delayed = broker.put_raw("x86_64", b"later", priority=PRIORITY, delay=600)
    shown = reimzul("kick", first, delayed, 999_999, "--yes")
    assert (shown.returncode, shown.stdout) == (1, f"job {first} of x86_64: put back\n")
    assert shown.stderr.splitlines() == [
        f"job {delayed}: not buried, but delayed in x86_64",
        "job 999999: there is no such job",
    ]
    assert [state(broker, job) for job in (first, second, delayed)] == ["ready", "buried", "delayed"]


def test_kicked_by_tube_all_of_it_are_ready_and_what_only_waits_still_does(ini: Path, broker: Broker) -> None:
    mine = [bury(broker) for _ in range(5)]
    other = bury(broker, tube="notify")
    delayed = broker.put_raw("x86_64", b"later", priority=PRIORITY, delay=600)
    shown = reimzul("kick", "--tube", "x86_64", "--yes")
    assert (shown.returncode, shown.stdout) == (0, "x86_64: 5 jobs put back\n")
    assert {state(broker, job) for job in mine} == {"ready"}
    assert (state(broker, other), state(broker, delayed)) == ("buried", "delayed")
    again = reimzul("kick", "--tube", "x86_64", "--yes")
    assert (again.returncode, again.stdout, again.stderr) == (0, "", "no buried job found\n")
    assert state(broker, delayed) == "delayed"


def test_discarded_everywhere(ini: Path, broker: Broker) -> None:
    jobs = [bury(broker), bury(broker), bury(broker, tube="notify")]
    waits = broker.put_raw("x86_64", b"ready", priority=PRIORITY)
    assert reimzul("discard", "--all", "--yes").stdout == "x86_64: 2 jobs deleted\nnotify: 1 job deleted\n"
    assert broker.tube_stats("x86_64").buried == broker.tube_stats("notify").buried == 0
    assert state(broker, waits) == "ready"
    assert f"job {jobs[0]}: there is no such job" in reimzul("discard", "--yes", *jobs).stderr


@pytest.mark.parametrize(("status", "anew", "told"), [("Queued", False, 1), ("Queued", True, 0), ("Failed", False, 0)])
def test_a_build_that_is_discarded_is_said_to_be_cancelled(
    ini: Path, broker: Broker, tmp_path: Path, status: str, anew: bool, told: int
) -> None:
    """Only a build that would wait for ever: not one that was put again, and not one that is over."""
    request = BuildRequest(
        srpm="time-1.7-45.el7.src.rpm", arch="x86_64", target="c7.1708.u.x86_64", disttag=".el7", submitter="johnny",
        build_id=build_id(1), timestamp="20261122120000",
    )  # fmt: skip
    job = known = bury(broker, request.encode())
    if anew:
        known = broker.put_raw("x86_64", request.encode(), priority=PRIORITY)
    history = open_history(f"sqlite:///{tmp_path}/history.sqlite")
    history.record([event("Queued", 1, tube="x86_64", job=known, priority=PRIORITY), event(status, 1, job=known)])
    history.close()
    assert reimzul("discard", "--yes", job).returncode == 0
    broker.watch([NOTIFY.name])
    said = []
    while claim := broker.reserve({NOTIFY.name: NOTIFY}, 0):
        assert isinstance(claim.message, BuildEvent)
        said.append((claim.message.build_id, claim.message.status, claim.message.reason.partition(" by ")[0]))
        claim.delete()
    assert said == [(build_id(1), "Cancelled", "discarded")] * told


def test_a_job_that_is_not_buried_is_not_deleted(ini: Path, broker: Broker) -> None:
    ready = broker.put_raw("x86_64", b"ready", priority=PRIORITY)
    delayed = broker.put_raw("x86_64", b"later", priority=PRIORITY, delay=600)
    assert reimzul("discard", ready, delayed, "--yes").returncode == 1
    assert (state(broker, ready), state(broker, delayed)) == ("ready", "delayed")


def test_for_programs_it_is_said_job_by_job(ini: Path, broker: Broker) -> None:
    first, second = bury(broker), bury(broker)
    said = json.loads(reimzul("kick", "--json", "--yes", first, 999_999).stdout)
    assert said["done"] == [{"tube": "x86_64", "job": first}]
    assert said["left"] == [{"job": 999_999, "reason": "there is no such job"}]
    assert json.loads(reimzul("discard", "--json", "--yes", "--all").stdout) == {
        "done": [{"tube": "x86_64", "job": second}], "left": []
    }  # fmt: skip


@pytest.mark.parametrize(("command", "verb"), [("kick", "put back"), ("discard", "delete")])
def test_where_nobody_can_be_asked_nothing_is_done(ini: Path, broker: Broker, command: str, verb: str) -> None:
    job = bury(broker)
    shown = reimzul(command, "--all")
    assert (shown.returncode, shown.stdout) == (2, "")
    assert (
        shown.stderr == f"reimzul: there is no terminal to ask for confirmation on: give --yes to {verb} buried jobs\n"
    )
    assert state(broker, job) == "buried"


def test_on_a_terminal_it_asks_first(ini: Path, broker: Broker) -> None:
    jobs = [bury(broker), bury(broker), bury(broker, tube="notify")]
    no = run_and_answer("n\n", "kick", "--all")
    assert (no.returncode, no.stdout) == (1, "")
    assert "Put back 3 buried jobs (2 of x86_64, 1 of notify)? [y/N]" in no.stderr
    assert no.stderr.endswith("reimzul: nothing was done\n")
    assert {state(broker, job) for job in jobs} == {"buried"}
    assert run_and_answer("\n", "discard", jobs[0]).returncode == 1, "no answer is no"
    yes = run_and_answer("y\n", "discard", jobs[0])
    assert (yes.returncode, yes.stdout) == (0, f"job {jobs[0]} of x86_64: deleted\n")
    assert "Delete 1 buried job (1 of x86_64)? [y/N]" in yes.stderr


def test_where_nothing_is_buried_there_is_no_question(ini: Path, broker: Broker) -> None:
    shown = run_and_answer("", "kick", "--all")
    assert (shown.returncode, shown.stdout, shown.stderr) == (0, "", "no buried job found\n")


@pytest.mark.parametrize("words", [[], ["17", "--all"], ["--tube", "x86_64", "--all"], ["0"], ["seventeen"]])
@pytest.mark.parametrize("command", ["kick", "discard"])
def test_what_is_meant_has_to_be_clear(ini: Path, command: str, words: list[str]) -> None:
    shown = reimzul(command, "--yes", *words)
    assert (shown.returncode, shown.stdout) == (2, "")


# --- the daemons


class Program:
    """A daemon as it is installed."""

    def __init__(self, name: str, folder: Path) -> None:
        self.stderr = folder / f"{name}.stderr"
        with self.stderr.open("wb") as stderr:
            self.process = subprocess.Popen([HERE / name], stderr=stderr)

    def stop(self) -> int:
        """End it; its exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(10)


@pytest.fixture
def programs(ini: Path, tmp_path: Path) -> Iterator[dict[str, Program]]:
    """The signer's daemon and the notifier."""
    running = {name: Program(name, tmp_path) for name in ("reimzul-tosign", "reimzul-notifier")}
    yield running
    for program in running.values():
        if program.process.poll() is None:
            program.stop()


def is_quiet(broker: Broker, tube: str) -> bool:
    """Whether nothing of it waits or is in hand."""
    stats = broker.tube_stats(tube)
    return not (stats.ready or stats.reserved or stats.delayed)


@pytest.mark.parametrize("tube", ["tosign", "notify"])
def test_every_job_of_a_flood_is_announced_and_buried(
    programs: dict[str, Program], broker: Broker, tmp_path: Path, tube: str
) -> None:
    bodies = [b'{"hostile": %d' % number for number in range(1200)]
    for body in bodies:
        broker.put_raw(tube, body, priority=1024)
    until(lambda: is_quiet(broker, tube) and is_quiet(broker, "notify"), 60, "all are refused, and that is told")
    assert broker.tube_stats(tube).buried == len(bodies)
    log = tmp_path / "reimzul.log"
    until(lambda: log.exists() and len(log.read_text().splitlines()) >= 1200, 60, "each is announced")
    assert len(log.read_text().splitlines()) == 1200

    def read_whole_report() -> Any:
        report = json.loads(reimzul("buried", "--json").stdout)
        return report if len(report["jobs"]) == len(bodies) else None

    report = until(read_whole_report, 60, "the history has each")
    assert report["unrecorded"] == {}
    assert {row["tube"] for row in report["jobs"]} == {tube}
    assert [program.stop() for program in programs.values()] == [0, 0]


def test_first_buried_is_the_one_that_was_buried_first(broker: Broker) -> None:
    assert broker.first_buried("x86_64") is None
    first = bury(broker, b"first")
    bury(broker, b"second")
    assert broker.first_buried("x86_64") == (first, b"first")
    broker.put_raw("x86_64", b"put after looking elsewhere", priority=1)
    assert broker.tube_stats("x86_64").ready == 1
    assert isinstance(arch_tube("x86_64"), Tube)

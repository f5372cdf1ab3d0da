# SPDX-License-Identifier: Apache-2.0
"""`reimzul causes`, what `reimzul show` says of a failure's cause, and `reimzul retry --cause`."""

from __future__ import annotations

import contextlib
import gzip
import json
import os
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from reimzul.admin.relabel import relabel
from reimzul.core.beanstalk import Broker
from reimzul.core.config import load_file
from reimzul.core.failure_cause import find_cause
from reimzul.core.message import BuildEvent
from reimzul.history import BuildRecord, open_history
from reimzul.history.sqlite import SqliteHistory
from tests import commands, webserver
from tests.conftest import Beanstalkd
from tests.events import build_id, event
from tests.schemas import check_line
from tests.terminal import run_on_terminal

PROGRAM = Path(sys.executable).parent / "reimzul"
NOW = time.time()


def make_failed(number: int, package: str, reason: str, line: str = "", **more: Any) -> BuildEvent:
    about = {"srpm": f"{package}-1.0-{number}.el9.src.rpm", "pkgname": package, "evr": f"1.0-{number}.el9"}
    stamp = time.strftime("%Y%m%d%H%M%S", time.gmtime(NOW - 3600 + number))
    words = {"reason": reason, "error_line": line, "timestamp": stamp, "at": NOW - 3600 + number}
    return event(more.pop("status", "Failed"), number, **about, **words, **more)


MISSING = "BuildRequires that nobody provides: python3dist(six)"
EVENTS = [
    make_failed(1, "python-a", MISSING),
    make_failed(2, "python-b", MISSING),
    make_failed(3, "python-six", "%build failed", "six/a.c:1:2: error: unknown type name 'bool'"),
    make_failed(4, "libz", "%build failed", "z.c:99:1: error: unknown type name 'bool'"),
    make_failed(5, "python-b", "", status="Published"),
    make_failed(6, "libz", "%build failed", "z.c:9:1: error: other"),
    make_failed(7, "python-b", "%check failed", "E   AssertionError"),
    make_failed(8, "python-c", MISSING),
]


@pytest.fixture
def folder(tmp_path: Path, beanstalkd: Beanstalkd, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "incoming").mkdir(mode=0o755)
    for each in EVENTS:
        assert isinstance(each, BuildEvent)
        (tmp_path / "incoming" / each.srpm).write_text(each.srpm)
    ini = tmp_path / "reimzul.ini"
    ini.write_text(
        f"[beanstalkd]\nhost = {beanstalkd.host}\nport = {beanstalkd.port}\n"
        f"[history]\nurl = sqlite:///{tmp_path}/history.sqlite\n[incoming]\nfolder = {tmp_path}/incoming\n"
        f"[bstore]\nbase_url = http://127.0.0.1:9/bstore/repo/\n[notifier]\npresence = {tmp_path}/presence.sqlite\n"
    )
    monkeypatch.setenv("REIMZUL_CONFIG", str(ini))
    history = open_history(f"sqlite:///{tmp_path}/history.sqlite")
    history.record(EVENTS)
    history.close()
    return tmp_path


def reimzul(*arguments: str) -> subprocess.CompletedProcess[str]:
    done = commands.run([PROGRAM, *arguments])
    check_line(arguments, done.stdout)
    return done


def causes(*arguments: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(reimzul("causes", "--json", *arguments).stdout)
    return found


def test_failures_are_grouped_by_cause_and_the_largest_group_is_first(folder: Path) -> None:
    found = causes()
    assert found["failed"] == 7
    assert [(each["message"], each["packages"]) for each in found["causes"]][:2] == [
        ("nobody provides python3dist(six)", ["python-a", "python-b", "python-c"]),
        ("%build failed: z.c:99:1: error: unknown type name 'bool'", ["libz", "python-six"]),
    ]
    assert found["causes"][0]["roots"] == [{"package": "python-six", "build_id": build_id(3)}]
    lines = [line.split("\t") for line in reimzul("causes").stdout.splitlines()]
    assert lines[0][1:3] == ["3", "3"]
    assert lines[0][-1] == f"nobody provides python3dist(six) (python-six failed: {build_id(3)[:8]})"


def test_only_the_wanted_period_target_and_arch_count(folder: Path) -> None:
    assert [causes("--since", "30m")[key] for key in ("failed", "causes")] == [0, []]
    assert causes("--arch", "aarch64")["failed"] == 0
    assert causes("--target", "c7.1708.u.x86_64")["failed"] == 7


def test_show_says_who_failed_alike_and_whether_it_was_built_before(folder: Path) -> None:
    (shown,) = json.loads(reimzul("show", build_id(7), "--json").stdout)["arches"]
    failure = shown["failure"]
    assert (failure["newly_failing"], failure["built_before"], failure["alike"]) == (True, build_id(5), 0)
    text = reimzul("show", build_id(4)).stdout
    assert "same as 1 other, first seen" in text
    assert "newly failing" not in text
    assert "newly failing 1.0-5.el9 was built before" in reimzul("show", build_id(7)).stdout


def test_builds_of_a_cause_are_retried_but_for_those_that_were_built_since(folder: Path) -> None:
    cause = causes()["causes"][0]["cause"]
    done = reimzul("retry", "--cause", cause, "--json")
    assert [each["parent"] for each in json.loads(done.stdout)] == [build_id(8), build_id(1)], done.stderr
    with Broker.from_settings(load_file(folder / "reimzul.ini").beanstalkd) as broker:
        assert broker.tube_stats("x86_64").ready == 2


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["--cause", "ffffffff"], 4, "no cause begins with 'ffffffff'"),
        (["--cause", "no cause"], 4, "no cause begins with 'no cause'"),
        ([], 2, "say which builds"),
    ],
)
def test_a_cause_that_is_not_there_is_refused(folder: Path, arguments: list[str], code: int, says: str) -> None:
    done = reimzul("retry", *arguments)
    assert (done.returncode, says in done.stderr) == (code, True), done.stderr


def test_show_says_what_the_notifier_has_found(folder: Path) -> None:
    before: dict[str, Any] = {"previous_build": build_id(44), "previous_evr": "0.9-1.el9"}
    history = open_history(f"sqlite:///{folder}/history.sqlite")
    history.record([make_failed(20, "bash", MISSING, newly_failing=True, **before)])
    history.record([make_failed(21, "zsh", "", status="Success", fixed=True, **before)])
    history.close()
    (shown,) = json.loads(reimzul("show", build_id(20), "--json").stdout)["arches"]
    assert (shown["failure"]["newly_failing"], shown["failure"]["built_before"]) == (True, build_id(44))
    assert (shown["newly_failing"], shown["fixed"], shown["cause"]) == (True, None, shown["failure"]["cause"])
    assert f"newly failing 0.9-1.el9 was built before: {build_id(44)[:8]}" in reimzul("show", build_id(20)).stdout
    assert f"0.9-1.el9 failed before: {build_id(44)[:8]}" in reimzul("show", build_id(21)).stdout
    listed = {each["build_id"]: each for each in json.loads(reimzul("builds", "--json").stdout)}
    assert (listed[build_id(21)]["fixed"], listed[build_id(21)]["previous_evr"]) == (True, "0.9-1.el9")


# --- relabelling


@pytest.fixture
def old_causes(folder: Path) -> Path:
    """Have all causes stored by version 0 of the rule."""
    age(folder / "history.sqlite")
    return folder / "history.sqlite"


def age(path: Path) -> None:
    aged = "json_set(document, '$.cause', 'aaaaaaaa', '$.cause_text', 'an old text', '$.cause_version', 0)"
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as db:
        db.execute(f"UPDATE builds SET cause = 'aaaaaaaa', cause_version = 0, document = {aged} WHERE cause <> ''")


def count_old(path: Path) -> int:
    with contextlib.closing(sqlite3.connect(path)) as db:
        return int(db.execute("SELECT count(*) FROM builds WHERE cause = 'aaaaaaaa'").fetchone()[0])


def test_old_causes_are_computed_until_they_are_stored_again(old_causes: Path) -> None:
    found = causes()
    assert (found["failed"], found["causes"][0]["message"]) == (7, "nobody provides python3dist(six)")
    cause = found["causes"][0]["cause"]
    assert json.loads(reimzul("show", build_id(1), "--json").stdout)["arches"][0]["failure"]["alike"] == 2
    assert "no cause begins" in reimzul("retry", "--cause", "aaaaaaaa").stderr
    assert [each["parent"] for each in json.loads(reimzul("retry", "--cause", cause, "--json").stdout)] == [
        build_id(8),
        build_id(1),
    ]
    assert count_old(old_causes) == 7
    for _ in range(2):
        done = reimzul("causes", "--relabel")
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert count_old(old_causes) == 0
    assert causes()["causes"] == found["causes"]


def test_failures_of_the_originals_worker_have_causes_too(folder: Path) -> None:
    about = {"build_id": "", "attempt": "", "target": "c7.i386", "arch": "i386"}
    history = open_history(f"sqlite:///{folder}/history.sqlite")
    history.record([make_failed(40, "old", "it does not build", **about)])
    history.close()
    (group,) = causes("--arch", "i386")["causes"]
    assert (group["message"], group["packages"]) == ("it does not build", ["old"])
    age(folder / "history.sqlite")
    assert causes("--arch", "i386")["causes"][0]["cause"] == group["cause"]
    assert reimzul("causes", "--relabel").returncode == 0
    assert count_old(folder / "history.sqlite") == 0
    assert causes("--arch", "i386")["causes"][0]["cause"] == group["cause"]


def test_relabelling_shows_on_a_terminal_how_far_it_is(old_causes: Path) -> None:
    code, shown = run_on_terminal([str(PROGRAM), "causes", "--relabel"], old_causes.parent, os.environ, timeout=30)
    assert code == 0
    assert "Relabelling" in shown
    assert "7 failures relabelled by version 1 of the rule" in shown


def test_a_relabelling_that_was_interrupted_goes_on(old_causes: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []

    def find(self: SqliteHistory, limit: int) -> dict[str, BuildRecord]:
        calls.append(limit)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return real(self, 2)

    real = SqliteHistory.find_old_causes
    monkeypatch.setattr(SqliteHistory, "find_old_causes", find)
    settings = load_file(old_causes.parent / "reimzul.ini")
    with pytest.raises(KeyboardInterrupt):
        relabel(settings)
    assert count_old(old_causes) == 3
    relabel(settings)
    assert count_old(old_causes) == 0


PLACE = "repo/c7.1708.u.x86_64/hello/20251122000001/1.0-30.el9.x86_64"
LINE = "hello.c:2:10: fatal error: nosuch.h: No such file or directory"
LOG = f"Executing(%build): /bin/sh -e /var/tmp/rpm-tmp.x\n+ make\n{LINE}\ncompilation terminated.\nmake: *** Error 1\n"


@pytest.fixture
def store(folder: Path) -> Iterator[Path]:
    """A store with the place of a failed build, whose history lacks the error of its logs."""
    store = folder / "bstore"
    (store / PLACE).mkdir(parents=True)
    server = webserver.serve(folder)
    ini = folder / "reimzul.ini"
    ini.write_text(ini.read_text().replace("127.0.0.1:9/", f"127.0.0.1:{server.server_address[1]}/"))
    history = open_history(f"sqlite:///{folder}/history.sqlite")
    history.record([make_failed(30, "hello", "%build failed", exit_code=1, place=PLACE)])
    history.record([make_failed(31, "slow", "no end (build_timeout)", exit_code=1, place=PLACE)])
    history.close()
    yield store
    webserver.close(server)


def read_error(folder: Path, number: int) -> tuple[str | None, str | None, bool]:
    (shown,) = json.loads(reimzul("show", build_id(number), "--json").stdout)["arches"]
    cause = find_cause(shown["reason"], shown["error_line"] or "", shown["pkgname"])
    return shown["error_line"], shown["error_log"], shown["cause"] == cause.id


@pytest.mark.parametrize("is_packed", [False, True])
def test_the_error_is_looked_for_in_the_stores_logs(folder: Path, store: Path, is_packed: bool) -> None:
    if is_packed:
        (store / PLACE / "build.log.gz").write_bytes(gzip.compress(LOG.encode()))
    else:
        (store / PLACE / "build.log").write_text(LOG)
    assert reimzul("causes", "--relabel").returncode == 0
    assert read_error(folder, 30) == (None, None, True), "its cause is by the present rule"
    age(folder / "history.sqlite")
    assert reimzul("causes", "--relabel").returncode == 0
    assert read_error(folder, 30) == (LINE, "build.log", True)
    assert read_error(folder, 31) == (None, None, True), "no line of its logs is the cause"
    assert read_error(folder, 4)[0] == "z.c:99:1: error: unknown type name 'bool'", "it is known"


def test_the_logs_of_all_failures_are_read_on_request(folder: Path, store: Path) -> None:
    (store / PLACE / "build.log").write_text(LOG)
    settings = load_file(folder / "reimzul.ini")
    relabel(settings, with_logs=True)
    assert read_error(folder, 30) == (LINE, "build.log", True)
    with contextlib.closing(open_history(settings.history.url)) as history:
        last = history.last_change()
    relabel(settings, with_logs=True)
    with contextlib.closing(open_history(settings.history.url)) as history:
        assert history.last_change() == last, "what is known is not written again"
    other = LINE.replace("nosuch.h", "other.h")
    (store / PLACE / "build.log").write_text(LOG.replace(LINE, other))
    assert reimzul("causes", "--relabel", "--logs").returncode == 0
    assert read_error(folder, 30)[0] == other


def test_a_store_that_is_away_leaves_what_the_history_has(folder: Path, store: Path) -> None:
    (store / PLACE / "build.log.status").write_text("503")
    age(folder / "history.sqlite")
    assert reimzul("causes", "--relabel").returncode == 0
    assert count_old(folder / "history.sqlite") == 0
    assert read_error(folder, 30) == (None, None, True)
    done = reimzul("causes", "--relabel", "--logs")
    assert (done.returncode != 0, "HTTP 503" in done.stderr) == (True, True), done.stderr
    done = reimzul("causes", "--logs")
    assert (done.returncode, "without --relabel" in done.stderr) == (2, True)


def test_relabelling_makes_no_history_and_takes_no_other_option(folder: Path) -> None:
    done = reimzul("causes", "--relabel", "--since", "1d", "--json")
    assert (done.returncode, "with --relabel" in done.stderr) == (2, True), done.stderr
    (folder / "history.sqlite").unlink()
    done = reimzul("causes", "--relabel")
    assert done.returncode != 0
    assert "no builds are known yet" in done.stderr
    assert not (folder / "history.sqlite").exists()


def test_a_history_of_an_earlier_version_is_read_before_the_notifier_has_upgraded_it(folder: Path) -> None:
    found = causes()["causes"]
    with contextlib.closing(sqlite3.connect(folder / "history.sqlite", isolation_level=None)) as db:
        db.execute("DROP INDEX builds_cause")
        for column in ("cause", "cause_version", "package"):
            db.execute(f"ALTER TABLE builds DROP COLUMN {column}")
    assert causes()["causes"] == found

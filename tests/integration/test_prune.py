# SPDX-License-Identifier: Apache-2.0
"""`reimzul prune` and `reimzul scratch` on a store with real packages: what is listed is there, at every moment."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import pty
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from reimzul.core import fs
from reimzul.core.errors import RetryLater
from reimzul.core.message import Status
from reimzul.core.retry import CancelToken
from reimzul.core.setting_parsers import Pruning
from reimzul.core.settings import RepogenSettings
from reimzul.core.store_paths import StorePaths, leg_key
from reimzul.repogen.publish import store_upload
from reimzul.store import cleanup
from reimzul.store.createrepo import CreaterepoRunner
from reimzul.store.listing import read_listing
from tests import commands, uploads
from tests.repogen import Rpms, index
from tests.schemas import check_line
from tests.uploads import TARGET

REIMZUL = Path(sys.executable).with_name("reimzul")
Place = Callable[..., str]


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> StorePaths:
    """A store, and the configuration that names it."""
    ini = tmp_path / "reimzul.ini"
    ini.write_text(f"[bstore]\nroot = {tmp_path}/bstore\n")
    monkeypatch.setenv("REIMZUL_CONFIG", str(ini))
    return uploads.make_store(tmp_path / "bstore")


@pytest.fixture
def place(store: StorePaths, rpms: Rpms) -> Place:
    """Brings a build of a day to its place; its build id."""

    def laid(day: int, status: str = Status.SUCCESS, *, staged: bool = True, **more: Any) -> str:
        packages = rpms if status == "Success" else {}
        asked = uploads.request(timestamp=f"202401{day:02}000000", **more)
        leg = store_upload(
            uploads.copier_of(store), uploads.upload(store, packages, of=asked, status=status), CancelToken()
        )
        assert leg
        if staged:
            (store.staged_marks / leg_key(asked.build_id, "x86_64")).write_text("")
        return asked.build_id

    return laid


def list_days(store: StorePaths) -> list[str]:
    """The days whose builds are listed."""
    return sorted(path.split("/")[1][6:8] for path in read_listing(store.target(TARGET) / "repodata"))


def lie(store: StorePaths) -> list[str]:
    """The days whose builds are there."""
    return sorted(path.name[6:8] for path in (store.repo / TARGET / "hello").iterdir())


def reimzul(*words: str, **more: Any) -> subprocess.CompletedProcess[str]:
    given: dict[str, Any] = {"capture_output": True, "text": True, "timeout": 60, "stdin": subprocess.DEVNULL}
    argv = [str(REIMZUL), *words]
    done = subprocess.run(argv, check=False, **{**given, **more}) if more else commands.run(argv)
    check_line(words, done.stdout)
    return done


def test_old_builds_go_from_the_repodata_and_then_from_the_disk(
    store: StorePaths, place: Place, runner: CreaterepoRunner
) -> None:
    ids = [place(day) for day in range(1, 6)]
    place(2, Status.FAILED)
    index(runner)
    assert list_days(store) == ["01", "02", "03", "04", "05"]
    done = reimzul("prune", "--keep", "2", "--yes", "--json")
    assert (done.returncode, done.stderr) == (0, "")
    (target,) = json.loads(done.stdout)
    assert target["target"] == TARGET
    assert target["held"] == []
    assert [each["build_id"] for each in target["dropped"] if each["status"] == "Success"] == ids[:3]
    assert list_days(store) == lie(store) == ["04", "05"]
    assert sorted(path.name for path in store.index.iterdir()) == sorted(leg_key(each, "x86_64") for each in ids[3:])
    assert reimzul("prune", "--keep", "2", "--yes").stderr == "0 builds dropped, 0 bytes\n"


def test_a_dry_run_changes_nothing(store: StorePaths, place: Place, runner: CreaterepoRunner) -> None:
    for day in (1, 2, 3):
        place(day)
    index(runner)
    before = uploads.tree(store.root)
    done = reimzul("prune", "--keep", "1", "--dry-run")
    assert [line.split("\t")[3][:10] for line in done.stdout.splitlines()] == ["2024-01-01", "2024-01-02"]
    assert "2 builds would be dropped" in done.stderr
    assert uploads.tree(store.root) == before


def test_what_is_not_signed_yet_stays_and_is_said(store: StorePaths, place: Place, runner: CreaterepoRunner) -> None:
    place(1)
    waits, unstaged = place(2), place(3, staged=False)
    place(4)
    (store.tosign / TARGET / f"hello-1-1.x86_64.{waits}").mkdir(parents=True)
    index(runner)
    done = reimzul("prune", "--keep", "1", "--yes")
    assert lie(store) == list_days(store) == ["02", "03", "04"]
    told = {line.split("\t")[0]: line.split("\t")[6] for line in done.stdout.splitlines()}
    assert told[waits[:8]] == "stays: it waits to be collected and signed"
    assert told[unstaged[:8]] == "stays: it was not laid out for the signer yet"
    reimzul("prune", "--keep", "1", "--unsigned", "--yes")
    assert lie(store) == list_days(store) == ["02", "04"]


def test_the_rules_of_the_settings_hold(store: StorePaths, place: Place, runner: CreaterepoRunner) -> None:
    for day in (1, 2, 3):
        place(day)
    index(runner)
    ini = Path(os.environ["REIMZUL_CONFIG"])
    ini.write_text(ini.read_text() + "[prune]\nc7.1708.u = keep 2\n")
    assert reimzul("prune", "--yes").returncode == 0
    assert lie(store) == ["02", "03"]
    assert reimzul("prune", "--older", "5000w", "--keep", "1", "--yes").returncode == 0
    assert lie(store) == ["02", "03"], "they are younger than a century"


def test_createrepo_is_run_once_and_what_failed_needs_it_not_at_all(
    store: StorePaths, place: Place, runner: CreaterepoRunner, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs: list[str] = []
    make = CreaterepoRunner.run

    def count_run(self: CreaterepoRunner, target: str, *words: Any, **more: Any) -> bool:
        runs.append(target)
        return make(self, target, *words, **more)

    monkeypatch.setattr(CreaterepoRunner, "run", count_run)
    for day in range(1, 5):
        place(day)
    place(1, Status.FAILED)
    index(runner)
    runs.clear()
    _prune(store, runner, keep=4)
    assert runs == []
    assert lie(store) == ["01", "01", "02", "03", "04"], "nothing is older than the oldest that stays"
    _prune(store, runner, keep=3)
    assert runs == [TARGET]
    place(1, Status.FAILED)
    _prune(store, runner, keep=3)
    assert runs == [TARGET]
    assert lie(store) == ["02", "03", "04"]


def _prune(store: StorePaths, runner: CreaterepoRunner, **rule: Any) -> None:
    cleanup.prune(store, runner, TARGET, Pruning(**rule), CancelToken(), dry_run=False)


def test_where_createrepo_fails_nothing_is_removed(store: StorePaths, place: Place, runner: CreaterepoRunner) -> None:
    for day in (1, 2):
        place(day)
    index(runner)
    broken = CreaterepoRunner(store=store, settings=RepogenSettings(createrepo_c="/bin/false"))
    with pytest.raises(RetryLater):
        _prune(store, broken, keep=1)
    assert lie(store) == list_days(store) == ["01", "02"]


def test_a_repodata_that_lacks_more_than_it_should_stops_it(
    store: StorePaths, place: Place, runner: CreaterepoRunner, monkeypatch: pytest.MonkeyPatch
) -> None:
    for day in (1, 2, 3):
        place(day)
    index(runner)
    make = CreaterepoRunner.run

    def too_much(self: CreaterepoRunner, *words: Any, packages: Any, **more: Any) -> bool:
        return make(self, *words, packages=[path for path in packages if "/20240103000000/" not in path], **more)

    monkeypatch.setattr(CreaterepoRunner, "run", too_much)
    with pytest.raises(cleanup.PruneFailed, match="lacks 1 that were to stay"):
        _prune(store, runner, keep=2)
    assert lie(store) == ["01", "02", "03"]


def test_killed_before_the_removal_the_next_one_drops_them(
    store: StorePaths, place: Place, runner: CreaterepoRunner, monkeypatch: pytest.MonkeyPatch
) -> None:
    for day in (1, 2):
        place(day)
    index(runner)

    def raise_died(*_: object) -> None:
        raise uploads.Died

    with monkeypatch.context() as patch:
        patch.setattr(cleanup, "drop_build", raise_died)
        with pytest.raises(uploads.Died):
            _prune(store, runner, keep=1)
    assert list_days(store) == ["02"]
    index(runner)
    assert list_days(store) == ["01", "02"], "what lies there is listed"
    _prune(store, runner, keep=1)
    assert lie(store) == list_days(store) == ["02"]


def test_killed_in_the_removal_no_half_of_a_leg_is_left(
    store: StorePaths, place: Place, runner: CreaterepoRunner, monkeypatch: pytest.MonkeyPatch
) -> None:
    place(1), place(2)
    index(runner)
    removed, calls = fs.remove, []

    def dies(path: Path) -> None:
        calls.append(path)
        if path.parent.name == "dropped" and path.exists():
            raise uploads.Died
        removed(path)

    with monkeypatch.context() as patch:
        patch.setattr(fs, "remove", dies)
        with pytest.raises(uploads.Died):
            _prune(store, runner, keep=1)
    assert lie(store) == list_days(store) == ["02"]
    assert len(list((store.state / "dropped").iterdir())) == 1, "it is out of the way"


def test_it_waits_for_whoever_indexes_the_target(store: StorePaths, place: Place, runner: CreaterepoRunner) -> None:
    place(1), place(2)
    index(runner)
    with store.lock(TARGET).open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with subprocess.Popen([REIMZUL, "prune", "--keep", "1", "--yes"], stderr=subprocess.PIPE) as process:
            assert process.stderr
            assert b"is being indexed: waiting until that is done" in process.stderr.readline()
            assert lie(store) == ["01", "02"]
            assert process.poll() is None
            fcntl.flock(lock, fcntl.LOCK_UN)
            assert process.wait(60) == 0
    assert lie(store) == ["02"]


def test_a_person_is_asked_and_may_say_no(store: StorePaths, place: Place, runner: CreaterepoRunner) -> None:
    place(1), place(2)
    index(runner)
    done = reimzul("prune", "--keep", "1")
    assert done.returncode == 2
    assert "there is no terminal to ask for confirmation on: give --yes" in done.stderr
    ours, its = pty.openpty()
    os.write(ours, b"n\n")
    done = reimzul("prune", "--keep", "1", stdin=its)
    os.close(ours)
    os.close(its)
    assert done.returncode == 1
    assert "Drop 1 build," in done.stderr
    assert done.stderr.endswith("reimzul: nothing was done\n")
    assert lie(store) == ["01", "02"]


@pytest.mark.parametrize("target", ["c7.1708.u", "c7.1708.u.x86_64", "c7*"])
def test_a_target_is_named_with_or_without_its_arch(store: StorePaths, place: Place, target: str) -> None:
    place(1)
    place(2)
    planned = json.loads(reimzul("prune", "--keep", "1", "--target", target, "--dry-run", "--json").stdout)
    assert [(each["target"], len(each["dropped"])) for each in planned] == [(TARGET, 1)]
    options = ("--keep", "1", "--target", target, "--dry-run", "--columns", "arch,id")
    old = planned[0]["dropped"][0]
    assert reimzul("prune", *options).stdout == f"{old['arch']}\t{old['build_id'][:8]}\n"


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        (["--keep", "0"], 2, "is not a whole number from 1 to "),
        (["--older", "3"], 2, "'3' is not a span of time, as 12h, 90d or 2w"),
        (["--keep", "1", "--target", "c8"], 4, "there is no target 'c8'; there are c7.1708.u"),
        ([], 4, "no rule says what to drop: give --keep or --older, or a line in [prune]"),
    ],
)
def test_wrong_words_are_one_clear_line(
    store: StorePaths, place: Place, words: list[str], code: int, says: str
) -> None:
    place(1)
    done = reimzul("prune", "--yes", *words)
    assert (done.returncode, done.stdout) == (code, "")
    assert says in done.stderr.splitlines()[-1]


def test_a_host_without_the_store_is_one_clear_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "ini").write_text(f"[bstore]\nroot = {tmp_path}/nowhere\n")
    monkeypatch.setenv("REIMZUL_CONFIG", str(tmp_path / "ini"))
    for words in (["prune", "--keep", "1"], ["scratch", "list"]):
        done = reimzul(*words)
        assert done.returncode == 4
        where = f"{tmp_path}/nowhere/repo"
        assert done.stderr == f"reimzul: {where}: no such file or directory: run this on bstore ([bstore] root)\n"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another")
def test_root_writes_as_the_stores_owner(store: StorePaths, place: Place, runner: CreaterepoRunner) -> None:
    place(1), place(2)
    index(runner)
    for path in [store.root, *store.root.rglob("*")]:
        os.chown(path, 65534, 65534, follow_symlinks=False)
    for parent in [store.root, *store.root.parents]:
        if "pytest-of-" in str(parent):
            parent.chmod(parent.stat().st_mode | 0o055)
    done = reimzul("prune", "--keep", "1", "--yes")
    assert (done.returncode, lie(store)) == (0, ["02"]), done.stderr
    repomd = store.target(TARGET) / "repodata" / "repomd.xml"
    assert repomd.stat().st_uid == 65534


# --- scratch builds


def test_scratch_builds_are_listed_and_taken_away(store: StorePaths, place: Place) -> None:
    first, second = place(1, scratch=True), place(2, scratch=True)
    place(3)
    lines = [line.split("\t") for line in reimzul("scratch", "list").stdout.splitlines()]
    assert [line[0] for line in lines] == [first[:8], second[:8]]
    assert lines[0][1:5] == [TARGET, "hello", "x86_64", "built"]
    assert lines[0][7] == "arrfab"
    done = reimzul("scratch", "rm", first[:10], "--yes")
    assert (done.returncode, done.stdout[:24]) == (0, "1 scratch build removed,")
    (left,) = json.loads(reimzul("scratch", "list", "--json").stdout)
    assert (left["build_id"], left["pkgname"], left["replaced_by"]) == (second, "hello", None)
    assert reimzul("scratch", "rm", "--older", "14d", "--yes").returncode == 0
    assert reimzul("scratch", "list").stderr == "no scratch build found\n"
    assert lie(store) == ["03"], "what is published is no business of this"
    assert not os.path.lexists(store.index / leg_key(first, "x86_64"))


def test_wrong_words_for_scratch_builds_are_said(store: StorePaths, place: Place) -> None:
    ids = [hashlib.md5(bytes([n]), usedforsecurity=False).hexdigest() for n in range(20)]
    same = [each for each in ids if sum(other[0] == each[0] for other in ids) > 1][:1]
    for day, each in enumerate([each for each in ids if each[0] == same[0][0]], 1):
        place(day, scratch=True, build_id=each)
    assert "say which" in reimzul("scratch", "rm").stderr
    assert "say which" in reimzul("scratch", "rm", "ab", "--all").stderr
    done = reimzul("scratch", "rm", same[0][0], "--yes")
    assert done.returncode == 4
    assert "more than one scratch build's id begins with" in done.stderr
    done = reimzul("scratch", "rm", "xyz", "--yes")
    assert done.returncode == 4
    assert "no scratch build's id begins with xyz" in done.stderr

# SPDX-License-Identifier: Apache-2.0
"""Source rpms in incoming/ that no build needs are removed, and no other."""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import subprocess
import sys
import threading
import time
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from reimzul.admin import actions
from reimzul.admin.lookup import BuildLegs
from reimzul.core.errors import InputError, ReimzulError
from reimzul.core.rpm_header import Header
from reimzul.history import BuildFilter, History, NoHistory, incoming, open_history
from reimzul.history.incoming import find_old_sources, remove_old_sources
from reimzul.notifier import cli, housekeeping
from reimzul.notifier.housekeeping import SourceCleanup
from reimzul.submit.sources import SourceFile, import_source
from tests import commands
from tests.events import build_id, event
from tests.ini import write_ini
from tests.schemas import check_output
from tests.terminal import run_on_terminal
from tests.waiting import until

REIMZUL = str(Path(sys.executable).with_name("reimzul"))
SRPM = "time-1.7-45.el7.src.rpm"
HEADER = Header(name="time", epoch=None, version="1.7", release="45.el7", arch="x86_64", is_source=True)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "incoming"
    folder.mkdir()
    return folder


@pytest.fixture
def history(tmp_path: Path) -> Iterator[History]:
    with contextlib.closing(open_history(f"sqlite:///{tmp_path}/history.sqlite")) as opened:
        yield opened


def upload(folder: Path, name: str = SRPM, content: bytes = b"content") -> Path:
    path = folder / name
    path.write_bytes(content)
    return path


def moment_after(path: Path) -> float:
    """A time after which a file was not changed, and before all that follows: ctime is of a coarser clock."""
    before = path.stat().st_ctime + 0.000_5
    probe = path.parent / ".probe"

    def has_passed() -> bool:
        probe.touch()
        os.utime(probe)
        return probe.stat().st_ctime > before

    until(has_passed, 10, "the clock of the file system goes on")
    probe.unlink()
    return before


def find(history: History, folder: Path, before: float) -> dict[str, str]:
    """The old source rpms, and why each stays."""
    return {each.srpm: each.message for each in find_old_sources(history, folder, before)}


# --- which are needed

NOW = time.time()
RECENT, LONG_AGO = NOW + 3600, NOW - 40 * 86400
#: Files are made now; they are old if they came before this.
BEFORE = NOW + 1800
HELD_BEHIND_IT = event("Queued", 2, at=LONG_AGO, srpm="b-1-1.src.rpm", batch="5f0c12ab", held=True, job=7)


@pytest.mark.parametrize(
    ("events", "why"),
    [
        ([event("Queued", at=LONG_AGO)], "queued"),
        ([event("Queued", at=LONG_AGO), event("Building", at=LONG_AGO)], "building"),
        ([event("Failed", at=LONG_AGO), event("Queued", 2, at=LONG_AGO, arch="aarch64")], "queued"),
        ([event("Queued", at=LONG_AGO), event("Failed", at=RECENT)], "failed"),
        ([event("Rejected", at=RECENT)], "rejected"),
        ([event("Cancelled", at=RECENT)], "cancelled"),
        ([event("Success", at=RECENT)], "built"),
        ([event("Success", at=RECENT), event("Published", at=RECENT)], ""),
        ([event("Success", at=RECENT, scratch=True)], ""),
        ([event("Success", at=LONG_AGO)], ""),
        ([event("Failed", at=LONG_AGO)], ""),
        ([event("Failed", at=LONG_AGO, batch="5f0c12ab"), HELD_BEHIND_IT], "not over"),
        (
            [
                event("Success", at=LONG_AGO, batch="5f0c12ab"),
                event("Published", at=LONG_AGO, batch="5f0c12ab"),
                HELD_BEHIND_IT,
            ],
            "not over",
        ),
        ([event("Failed", at=LONG_AGO, batch="5f0c12ac"), HELD_BEHIND_IT], ""),
        ([event("Queued", srpm="time-1.7-45.src.rpm", at=RECENT)], ""),
        ([], ""),
    ],
)
def test_what_a_build_needs_stays(history: History, folder: Path, events: list[Any], why: str) -> None:
    upload(folder)
    history.record(events)
    found = find(history, folder, BEFORE)
    assert list(found) == [SRPM]
    assert (f" is {why}" in found[SRPM]) if why else not found[SRPM]


def test_only_old_source_rpms_are_found(history: History, folder: Path) -> None:
    for name in ("b-1-1.src.rpm", "a-1-1.nosrc.rpm", "a-1-1.x86_64.rpm", ".incoming-x", "notes"):
        upload(folder, name)
    (folder / "folder.src.rpm").mkdir()
    (folder / "c-1-1.src.rpm").symlink_to("/nowhere")
    assert sorted(find(history, folder, BEFORE)) == ["a-1-1.nosrc.rpm", "b-1-1.src.rpm", "c-1-1.src.rpm"]
    assert not find(history, folder, NOW - 3600)


def test_an_upload_that_keeps_its_old_mtime_is_new(history: History, folder: Path) -> None:
    os.utime(upload(folder), (LONG_AGO, LONG_AGO))
    assert not find(history, folder, NOW - 3600)


# --- marks


def test_a_mark_makes_it_new_and_keeps_its_mtime(history: History, folder: Path) -> None:
    path = upload(folder)
    os.utime(path, (LONG_AGO, LONG_AGO))
    before = moment_after(path)
    assert find(history, folder, before)
    incoming.mark_source(path)
    assert not find(history, folder, before)
    assert abs(path.stat().st_mtime - LONG_AGO) < 1, "the web server's ETag is made of it"


def forbid_utime(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(1, "not the owner")

    monkeypatch.setattr(os, "utime", refuse)


def test_a_file_of_another_user_is_marked_beside_it(
    history: History, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = upload(folder)
    before = moment_after(path)
    with monkeypatch.context() as patch:
        forbid_utime(patch)
        incoming.mark_source(path)
    assert not find(history, folder, before)
    mark = folder / f".used-{SRPM}.{os.getuid()}"
    later = moment_after(mark)
    assert remove_old_sources(folder, find_old_sources(history, folder, later), later)
    assert not list(folder.iterdir()), "the mark goes with the file"


def test_a_mark_that_cannot_be_made_refuses_no_submission(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = upload(folder)
    forbid_utime(monkeypatch)

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "read-only")

    monkeypatch.setattr(Path, "touch", refuse)
    incoming.mark_source(path)


def test_submit_and_retry_mark_what_they_queue(history: History, folder: Path) -> None:
    path = upload(folder)
    history.record([event("Failed", at=LONG_AGO)])
    (leg,) = history.find_builds(BuildFilter(), 1)
    elsewhere = upload(folder.parent)
    for submit in (
        lambda: import_source(SourceFile(given=SRPM, path=path, header=HEADER), folder),
        lambda: import_source(SourceFile(given=SRPM, path=elsewhere, header=HEADER), folder),
        lambda: actions._check_source(folder, BuildLegs([leg]), None),
    ):
        before = moment_after(path)
        assert find(history, folder, before)
        submit()
        assert not find(history, folder, before)


# --- a submission and a removal at the same time


def test_what_is_submitted_after_the_look_stays(history: History, folder: Path) -> None:
    path = upload(folder)
    before = moment_after(path)
    found = find_old_sources(history, folder, before)
    import_source(SourceFile(given=SRPM, path=path, header=HEADER), folder)
    assert remove_old_sources(folder, found, before) == []
    assert path.exists()


def test_a_submission_waits_for_a_removal_under_way(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = upload(folder)
    waits, refused = threading.Event(), threading.Event()
    monkeypatch.setattr(time, "sleep", lambda _: waits.set())

    def submit() -> None:
        with contextlib.suppress(InputError):
            import_source(SourceFile(given=SRPM, path=path, header=HEADER), folder)
            return
        refused.set()

    descriptor = os.open(folder, os.O_RDONLY)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    thread = threading.Thread(target=submit)
    thread.start()
    assert waits.wait(20)
    path.unlink()
    os.close(descriptor)
    thread.join(20)
    assert refused.is_set()


def test_nobody_stops_submissions_by_the_lock(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = upload(folder)
    monkeypatch.setattr(incoming, "LOCK_PATIENCE_SECONDS", 0.1)
    descriptor = os.open(folder, os.O_RDONLY)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    assert not import_source(SourceFile(given=SRPM, path=path, header=HEADER), folder).copied
    os.close(descriptor)


@pytest.mark.parametrize("elsewhere", [False, True], ids=["by its name", "copied in"])
def test_what_was_submitted_is_there_whoever_comes_first(history: History, folder: Path, elsewhere: bool) -> None:
    """Of 200 submissions and removals at once, no submission succeeds whose file is gone then."""
    given = upload(folder.parent) if elsewhere else folder / SRPM
    outcomes = set()
    for _ in range(200):
        path = upload(folder)
        before = moment_after(path)
        found = find_old_sources(history, folder, before)
        start = threading.Barrier(2)
        submitted: list[bool] = []

        def submit(start: threading.Barrier = start, submitted: list[bool] = submitted) -> None:
            start.wait()
            with contextlib.suppress(InputError):
                submitted.append(import_source(SourceFile(given=SRPM, path=given, header=HEADER), folder).copied)

        thread = threading.Thread(target=submit)
        thread.start()
        start.wait()
        removed = remove_old_sources(folder, found, before)
        thread.join(20)
        assert path.exists() or not submitted
        assert elsewhere <= bool(submitted), "a file elsewhere is copied in again"
        outcomes.add(bool(removed))
        path.unlink(missing_ok=True)
    assert outcomes


def test_a_removal_that_is_killed_leaves_the_rest_to_the_next(
    history: History, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(3):
        upload(folder, f"a-1-{number}.src.rpm")
    found = find_old_sources(history, folder, BEFORE)
    unlink = Path.unlink

    def die(path: Path, missing_ok: bool = False) -> None:
        if path.name == found[1].srpm:
            raise KeyboardInterrupt
        unlink(path, missing_ok)

    with monkeypatch.context() as patch, contextlib.suppress(KeyboardInterrupt):
        patch.setattr(Path, "unlink", die)
        remove_old_sources(folder, found, BEFORE)
    assert sorted(find(history, folder, BEFORE)) == [each.srpm for each in found[1:]]
    assert len(remove_old_sources(folder, found, BEFORE)) == 2


def test_a_file_that_may_not_be_removed_is_one_line(
    history: History, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = upload(folder)
    found = find_old_sources(history, folder, BEFORE)

    def refuse(*_: object) -> None:
        raise PermissionError(1, "Operation not permitted", str(path))

    monkeypatch.setattr(Path, "unlink", refuse)
    with pytest.raises(ReimzulError, match=rf"{SRPM}: operation not permitted: run it as root, or as the owner of"):
        remove_old_sources(folder, found, BEFORE)


# --- reimzul prune --incoming


@pytest.fixture
def ini(tmp_path: Path, folder: Path, history: History) -> Path:
    """A controller with one source rpm that is needed, and one that is not."""
    upload(folder)
    upload(folder, "old-1-1.src.rpm", b"x" * 2048)
    history.record([event("Building", at=LONG_AGO)])
    settings: dict[str, dict[str, object]] = {
        "incoming": {"folder": folder},
        "history": {"url": f"sqlite:///{tmp_path}/history.sqlite"},
    }
    return write_ini(tmp_path / "reimzul.ini", settings)


def prune(ini: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return commands.run([REIMZUL, "prune", "--incoming", "--config", ini, *words])


def test_a_dry_run_removes_nothing(ini: Path, folder: Path) -> None:
    done = prune(ini, "--older", "0d", "--dry-run")
    rows = [line.split("\t") for line in done.stdout.splitlines()]
    assert (done.returncode, done.stderr) == (0, "1 source rpm would be removed, 2.0 KiB\n")
    assert [(row[0], row[3]) for row in rows] == [
        ("old-1-1.src.rpm", ""),
        (SRPM, f"stays: x86_64 of build {build_id(1)[:8]} is building"),
    ]
    assert len(list(folder.iterdir())) == 2


def test_it_asks_first(ini: Path, folder: Path) -> None:
    done = prune(ini, "--older", "0d")
    assert done.returncode == 2
    assert "give --yes (Remove 1 source rpm, 2.0 KiB?)" in done.stderr
    assert len(list(folder.iterdir())) == 2


@pytest.mark.parametrize("more", [["--yes"], ["--dry-run"]])
def test_json_tells_what_is_removed_and_what_stays(ini: Path, folder: Path, more: list[str]) -> None:
    done = prune(ini, "--older", "0d", "--json", *more)
    said = check_output("prune-incoming", done.stdout)
    (removed,), (kept,) = said["removed"], said["kept"]
    assert (done.returncode, done.stderr) == (0, "")
    assert (removed["srpm"], removed["bytes"], kept["srpm"]) == ("old-1-1.src.rpm", 2048, SRPM)
    assert removed["since"].endswith("Z")
    assert (folder / "old-1-1.src.rpm").exists() is (more == ["--dry-run"])
    assert (folder / SRPM).exists()


def test_a_terminal_gets_a_table(ini: Path, tmp_path: Path) -> None:
    argv = [REIMZUL, "prune", "--incoming", "--older", "0d", "--yes", "--config", str(ini)]
    code, said = run_on_terminal(argv, tmp_path, os.environ)
    lines = said.splitlines()
    assert code == 0
    assert lines[0].split()[0] == "SRPM"
    assert lines[1].startswith("old-1-1.src.rpm")
    assert "stays: x86_64 of build" in lines[2]
    assert lines[-1] == "1 source rpm removed, 2.0 KiB"
    assert all(len(line) <= 80 for line in lines)


@pytest.mark.parametrize(
    ("words", "code", "why"),
    [
        ([], 4, "no age says what to remove: give --older, or set [incoming] keep_days"),
        (["--older", "0d", "--target", "c9s"], 2, "--incoming goes by age alone"),
        (["--older", "0d", "--keep", "3"], 2, "--incoming goes by age alone"),
        (["--older", "0d", "--unsigned"], 2, "--incoming goes by age alone"),
    ],
)
def test_what_makes_no_sense_is_refused(ini: Path, folder: Path, words: list[str], code: int, why: str) -> None:
    done = prune(ini, "--yes", *words)
    assert (done.returncode, why in done.stderr) == (code, True)
    assert len(list(folder.iterdir())) == 2


def test_keep_days_is_the_age_unless_one_is_given(ini: Path) -> None:
    ini.write_text(ini.read_text().replace("[incoming]\n", "[incoming]\nkeep_days = 1\n"))
    assert prune(ini, "--yes").stderr == "0 source rpms removed, 0 bytes\n"
    assert prune(ini, "--yes", "--older", "0d").stderr == "1 source rpm removed, 2.0 KiB\n"


def test_without_a_history_nothing_is_removed(ini: Path, folder: Path, tmp_path: Path) -> None:
    ini.write_text(ini.read_text().replace("history.sqlite", "other.sqlite"))
    assert prune(ini, "--yes", "--older", "0d").returncode == 1
    assert len(list(folder.iterdir())) == 2


# --- the notifier


def make_cleanup(tmp_path: Path, folder: Path, days: int, name: str = "history") -> SourceCleanup:
    return SourceCleanup(folder=folder, url=f"sqlite:///{tmp_path}/{name}.sqlite", days=days)


def pass_days(monkeypatch: pytest.MonkeyPatch, days: float) -> None:
    """Let the notifier's clock show a later day than the files."""
    monkeypatch.setattr(housekeeping, "time", types.SimpleNamespace(time=lambda: time.time() + days * 86400))


def test_the_notifier_removes_what_is_older_than_keep_days(
    ini: Path, tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    pass_days(monkeypatch, 29)
    make_cleanup(tmp_path, folder, 30)._run()
    assert len(list(folder.iterdir())) == 2
    pass_days(monkeypatch, 31)
    make_cleanup(tmp_path, folder, 30).start()
    until(lambda: "removed 1 source rpm of more than 30 days ago" in caplog.text, 20, "it is said")
    assert [path.name for path in folder.iterdir()] == [SRPM]


def test_the_notifier_removes_nothing_by_default_or_without_a_history(
    ini: Path, tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    pass_days(monkeypatch, 4000)
    before = threading.active_count()
    make_cleanup(tmp_path, folder, 0).start()
    assert threading.active_count() == before
    make_cleanup(tmp_path, folder, 30, "other")._run()
    assert len(list(folder.iterdir())) == 2
    assert not caplog.text
    with pytest.raises(NoHistory):
        open_history(f"sqlite:///{tmp_path}/other.sqlite", reading=True)


def test_the_program_reads_the_setting(
    ini: Path, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[Any] = []

    class Recorder:
        def __init__(self, *arguments: Any) -> None:
            made.extend(arguments)

        def run(self) -> None:
            pass

        close = run

    monkeypatch.setattr(cli, "Notifier", Recorder)
    text = ini.read_text().replace("[incoming]\n", "[incoming]\nkeep_days = 30\n")
    ini.write_text(f"{text}\n[notifier]\nledger = {tmp_path}/ledger\npresence = {tmp_path}/presence\n")
    assert CliRunner().invoke(cli.command, ["--config", str(ini)]).exit_code == 0
    (cleanups,) = (each for each in made if isinstance(each, list) and any(isinstance(c, SourceCleanup) for c in each))
    assert make_cleanup(tmp_path, folder, 30) in cleanups

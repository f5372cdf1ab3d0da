# SPDX-License-Identifier: Apache-2.0
"""Logs that mock's compress_logs plugin packed, and a result folder that is watched for whether anything changes."""

from __future__ import annotations

import bz2
import gzip
import lzma
import shutil
import time
from pathlib import Path
from typing import Callable

import pytest

from reimzul.core.error_extractor import find_first_error
from reimzul.core.errors import ShutdownRequested
from reimzul.core.retry import CancelToken
from reimzul.worker.mock import BuildStalled, StallDetector, read_state_log, unpack_logs
from reimzul.worker.mock_result import classify
from tests.scripted import SAMPLES

PACKERS: dict[str, Callable[[bytes], bytes]] = {".gz": gzip.compress, ".xz": lzma.compress, ".bz2": bz2.compress}


def pack_logs(folder: Path, suffix: str = ".gz") -> Path:
    for log in list(folder.glob("*.log")):
        log.with_name(log.name + suffix).write_bytes(PACKERS[suffix](log.read_bytes()))
        log.unlink()
    return folder


@pytest.mark.parametrize("suffix", PACKERS)
@pytest.mark.parametrize("case", ["failbuild", "missingbr", "specerror", "skippedrepo", "nospace"])
def test_packed_logs_are_read_like_plain_ones(tmp_path: Path, case: str, suffix: str) -> None:
    folder = tmp_path / case
    shutil.copytree(SAMPLES / case, folder)
    code = int((folder / "exit-code").read_text())
    unpack_logs(pack_logs(folder, suffix))
    assert not list(folder.glob(f"*{suffix}"))
    for log in (SAMPLES / case).glob("*.log"):
        assert (folder / log.name).read_bytes() == log.read_bytes()
    assert classify(code, folder) == classify(code, SAMPLES / case)
    logs = (folder / "build.log", folder / "root.log")
    assert find_first_error(*logs) == find_first_error(SAMPLES / case / "build.log", SAMPLES / case / "root.log")
    assert read_state_log(folder / "state.log").phases() == read_state_log(SAMPLES / case / "state.log").phases()


def test_a_damaged_log_is_read_as_far_as_it_goes(tmp_path: Path) -> None:
    (tmp_path / "build.log.gz").write_bytes(gzip.compress(b"line\n" * 100_000)[:-20])
    (tmp_path / "root.log.gz").write_bytes(b"no gzip")
    unpack_logs(tmp_path)
    assert (tmp_path / "build.log").read_bytes().startswith(b"line\n")
    assert (tmp_path / "root.log").read_bytes() == b""
    assert sorted(path.name for path in tmp_path.iterdir()) == ["build.log", "root.log"]


def test_a_worker_that_is_ended_unpacks_no_further(tmp_path: Path) -> None:
    path = tmp_path / "build.log.gz"
    path.write_bytes(gzip.compress(bytes(1 << 22)))

    def check() -> None:
        assert (tmp_path / "build.log.unpacked").exists()
        raise ShutdownRequested("the daemon is stopping")

    with pytest.raises(ShutdownRequested):
        unpack_logs(tmp_path, CancelToken(check))
    assert [each.name for each in tmp_path.iterdir()] == ["build.log.gz"]


def test_a_log_that_was_being_packed_stays_whole(tmp_path: Path) -> None:
    text = b"".join(b"line %d\n" % number for number in range(10_000))
    (tmp_path / "build.log").write_bytes(text)
    (tmp_path / "build.log.gz").write_bytes(gzip.compress(text)[:200])
    unpack_logs(tmp_path)
    assert (tmp_path / "build.log").read_bytes() == text


def test_what_was_written_after_a_log_was_packed_comes_after_it(tmp_path: Path) -> None:
    (tmp_path / "root.log.gz").write_bytes(gzip.compress(b"first\n" * 50))
    (tmp_path / "root.log").write_bytes(b"second\n")
    unpack_logs(tmp_path)
    assert (tmp_path / "root.log").read_bytes() == b"first\n" * 50 + b"second\n"


def test_other_packed_files_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "data.tar.gz").write_bytes(b"x")
    (tmp_path / "dir.log.gz").mkdir()
    unpack_logs(tmp_path)
    unpack_logs(tmp_path / "none")
    assert (tmp_path / "data.tar.gz").read_bytes() == b"x"


@pytest.mark.parametrize("name", ["state.log", "root.log", "hw_info.log", "a-1-1.x86_64.rpm", "stderr", "new"])
def test_anything_that_changes_in_the_result_folder_is_growth(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    now = 1000.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    for each in ("state.log", "root.log", "build.log"):
        (tmp_path / each).write_text("x")
    watch = StallDetector(tmp_path, 60)
    watch.raise_if_stalled()
    for _ in range(3):
        now += 50
        with (tmp_path / name).open("a") as stream:
            stream.write("more")
        watch.raise_if_stalled()
    now += 50
    watch.raise_if_stalled()
    now += 50
    with pytest.raises(BuildStalled, match=r"for 60 s \(stall_timeout\)"):
        watch.raise_if_stalled()


def test_without_a_limit_nothing_stalls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock: Callable[[], float] = iter(range(0, 10**6, 10**5)).__next__
    monkeypatch.setattr(time, "monotonic", clock)
    watch = StallDetector(tmp_path, 0)
    watch.raise_if_stalled()
    watch.raise_if_stalled()

# SPDX-License-Identifier: Apache-2.0
"""Whose fault it was that mock did not build: every case that mock really left (tests/samples/mock-logs/README.md)."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from reimzul.worker.verdict import Fault, Verdict, began, judge
from tests.scripted import SAMPLES

UNREACHABLE = (
    "Failed to download metadata for repo 'mini': Cannot download repomd.xml: "
    "Cannot download repodata/repomd.xml: All mirrors were tried"
)
CASES: dict[str, tuple[Fault, str]] = {
    "hello": (Fault.NONE, ""),
    "libfoo": (Fault.NONE, ""),
    "noarchpkg": (Fault.NONE, ""),
    "failprep": (Fault.PACKAGE, "%prep failed"),
    "failbuild": (Fault.PACKAGE, "%build failed"),
    "failcheck": (Fault.PACKAGE, "%check failed"),
    "failfiles": (Fault.PACKAGE, "%files names what is not there"),
    "dynfail": (Fault.PACKAGE, "%generate_buildrequires failed"),
    "wrongarch": (Fault.PACKAGE, "the package excludes this arch"),
    "missingbr": (Fault.PACKAGE, "BuildRequires that nobody provides: no-such-devel >= 3"),
    "dynmissing": (Fault.PACKAGE, "BuildRequires that nobody provides: no-such-dyn-dep"),
    "tmo": (Fault.PACKAGE, "it took longer than a build may (build_timeout)"),
    "bitflip": (Fault.PACKAGE, "the source rpm cannot be installed: its payload is damaged"),
    "truncated": (Fault.PACKAGE, "mock cannot read the source rpm"),
    "garbage": (Fault.PACKAGE, "mock cannot read the source rpm"),
    "binrpm": (Fault.PACKAGE, "mock cannot read the source rpm"),
    "nosuch": (Fault.PACKAGE, "mock cannot read the source rpm"),
    "repogone": (Fault.BUILDER, UNREACHABLE),
    "repo404": (Fault.BUILDER, UNREACHABLE),
    "nospace": (Fault.BUILDER, "At least 159MB more space needed on the / filesystem"),
    "oom": (Fault.BUILDER, "rpmbuild was killed, mostly for a lack of memory"),
    "int": (Fault.BUILDER, "mock was interrupted"),
    "term": (Fault.BUILDER, "mock was ended"),
}


def results(folder: Path, case: str, *, rpm: bool = False) -> tuple[int, Path]:
    """A result folder as mock left it, and mock's exit code."""
    shutil.copytree(SAMPLES / case, folder / case)
    if rpm:
        (folder / case / "time-1-1.x86_64.rpm").touch()
    return int((folder / case / "exit-code").read_text()), folder / case


def test_every_sample_is_a_case() -> None:
    assert sorted(CASES) == sorted(path.name for path in SAMPLES.iterdir() if path.is_dir())


@pytest.mark.parametrize("case", CASES)
def test_a_real_run_is_judged(tmp_path: Path, case: str) -> None:
    code, folder = results(tmp_path, case, rpm=case in ("hello", "libfoo", "noarchpkg"))
    assert judge(code, folder) == Verdict(*CASES[case])


def test_built_without_a_package_is_not_built(tmp_path: Path) -> None:
    assert judge(*results(tmp_path, "hello")).fault is Fault.BUILDER


@pytest.mark.parametrize("case", ["failbuild", "wrongarch", "tmo", "oom"])
def test_rpmbuild_had_begun(case: str) -> None:
    assert began(SAMPLES / case)


@pytest.mark.parametrize("case", ["missingbr", "repogone", "nospace", "garbage"])
def test_rpmbuild_had_not_begun(case: str) -> None:
    assert not began(SAMPLES / case)


@pytest.mark.parametrize("code", [2, 3, 4, 5, 6, 20, 50, 60, 70, 80, 90, 99, 255, -9, -15])
def test_a_host_a_call_or_a_signal_is_the_builders_fault(tmp_path: Path, code: int) -> None:
    verdict = judge(code, tmp_path)
    assert verdict.fault is Fault.BUILDER and verdict.reason


@pytest.mark.parametrize(
    ("code", "fault"), [(0, Fault.BUILDER), (1, Fault.BUILDER), (10, Fault.PACKAGE), (11, Fault.PACKAGE)]
)
def test_no_logs_at_all_are_judged_too(tmp_path: Path, code: int, fault: Fault) -> None:
    verdict = judge(code, tmp_path / "none")
    assert verdict.fault is fault and verdict.reason


def test_one_alone_says_what_mock_said_last(tmp_path: Path) -> None:
    (tmp_path / "stderr").write_bytes(b"INFO: x\nERROR: no group mock \xff\n\n")
    verdict = judge(1, tmp_path)
    assert verdict == Verdict(Fault.BUILDER, "mock did not come to build it: ERROR: no group mock \ufffd")


def test_a_full_disk_outweighs_what_could_not_be_installed(tmp_path: Path) -> None:
    (tmp_path / "root.log").write_text(
        "DEBUG util.py:1:  No matching package to install: 'gcc'\nDEBUG util.py:1:  No space left on device\n"
    )
    assert judge(30, tmp_path) == Verdict(Fault.BUILDER, "No space left on device")


def test_all_that_nobody_provides_is_named_once(tmp_path: Path) -> None:
    (tmp_path / "root.log").write_text(
        "No matching package to install: 'b-devel'\nNo matching package to install: 'a-devel'\n"
        "nothing provides c-libs >= 2 needed by d-1-1.x86_64\nNo matching package to install: 'b-devel'\n"
    )
    assert judge(30, tmp_path).reason == "BuildRequires that nobody provides: a-devel, b-devel, c-libs >= 2"


@pytest.mark.parametrize("log", ["build.log", "root.log", "stderr"])
@pytest.mark.parametrize("case", ["failbuild", "failfiles"])
def test_a_full_disk_is_no_fault_of_the_package(tmp_path: Path, case: str, log: str) -> None:
    code, folder = results(tmp_path, case)
    with (folder / log).open("a") as stream:
        stream.write("cc: error: write error: No space left on device\n")
    assert judge(code, folder) == Verdict(Fault.BUILDER, "No space left on device")


def test_a_disk_that_has_no_room_for_a_word_is_the_builders_fault_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code, folder = results(tmp_path, "failbuild")
    full = os.statvfs(folder)
    monkeypatch.setattr(os, "statvfs", lambda _: type("Full", (), {"f_bavail": 3, "f_frsize": full.f_frsize}))
    assert judge(code, folder).fault is Fault.BUILDER

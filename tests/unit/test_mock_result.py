# SPDX-License-Identifier: Apache-2.0
"""Whose fault it was that mock did not build: every case that mock really left (tests/samples/mock-logs/README.md)."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from reimzul.core.failure_cause import is_timeout
from reimzul.worker.mock_result import Fault, MockResult, classify, rpmbuild_started
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
    "failfiles": (Fault.PACKAGE, "%files lists files that do not exist"),
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
    "specerror": (Fault.PACKAGE, "rpmbuild -bs failed: this target has no okhere macro package"),
    "skippedrepo": (Fault.PACKAGE, "BuildRequires that nobody provides: libfoo-devel >= 1.0"),
    "stale": (Fault.NONE, ""),
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
    code, folder = results(tmp_path, case, rpm=CASES[case][0] is Fault.NONE)
    assert classify(code, folder) == MockResult(*CASES[case])


def test_built_without_a_package_is_not_built(tmp_path: Path) -> None:
    assert classify(*results(tmp_path, "hello")).fault is Fault.BUILDER


@pytest.mark.parametrize("case", ["failbuild", "wrongarch", "tmo", "oom"])
def test_rpmbuild_had_begun(case: str) -> None:
    assert rpmbuild_started(SAMPLES / case)


@pytest.mark.parametrize("case", ["missingbr", "repogone", "nospace", "garbage"])
def test_rpmbuild_had_not_begun(case: str) -> None:
    assert not rpmbuild_started(SAMPLES / case)


@pytest.mark.parametrize("code", [2, 3, 4, 5, 6, 20, 50, 70, 80, 90, 99, 255, -9, -15])
def test_a_host_a_call_or_a_signal_is_the_builders_fault(tmp_path: Path, code: int) -> None:
    verdict = classify(code, tmp_path)
    assert verdict.fault is Fault.BUILDER
    assert verdict.reason


def test_a_root_that_another_mock_uses_is_nobodys_fault(tmp_path: Path) -> None:
    assert classify(60, tmp_path) == MockResult(Fault.NOBODY, "the root is in use by another mock")


@pytest.mark.parametrize(
    ("code", "fault"), [(0, Fault.BUILDER), (1, Fault.BUILDER), (10, Fault.BUILDER), (11, Fault.PACKAGE)]
)
def test_no_logs_at_all_are_judged_too(tmp_path: Path, code: int, fault: Fault) -> None:
    verdict = classify(code, tmp_path / "none")
    assert verdict.fault is fault
    assert verdict.reason


def test_one_alone_says_what_mock_said_last(tmp_path: Path) -> None:
    (tmp_path / "stderr").write_bytes(b"INFO: x\nERROR: no group mock \xff\n\n")
    verdict = classify(1, tmp_path)
    assert verdict == MockResult(Fault.BUILDER, "mock failed before the build: no group mock \ufffd")


SETUP = "2026-11-22 08:50:12,974 - Start: build setup for d-1-1.src.rpm\n"
#: What yum-builddep (EL7), dnf5 and dnf 4 say of BuildRequires, and of packages named on their command line.
YUM = "DEBUG util.py:439:  Error: No Package found for foo-devel >= 2\n"
DNF5 = (
    "DEBUG util.py:461:  Failed to resolve the transaction:\n"
    "DEBUG util.py:461:  No match for argument: foo-devel >= 2\n"
    "DEBUG util.py:461:  You can try to add to command line:\n"
    "DEBUG util.py:461:    --skip-unavailable to skip unavailable packages\n"
)
DNF5_DEEPER = (
    "DEBUG util.py:461:  Failed to resolve the transaction:\n"
    "DEBUG util.py:461:  Problem: conflicting requests\n"
    "DEBUG util.py:461:    - nothing provides foo-devel >= 2 needed by bar-devel-1-1.x86_64 from base\n"
)
DNF5_RICH = "DEBUG util.py:461:    - nothing provides requirement foo-devel >= 2  \n"
#: Their words, zypper's and libsolv's for packages that exist and cannot be installed together, or not here.
UNINSTALLABLE = {
    "dnf conflict": (
        "Error: \n Problem: problem with installed package a-1-1.x86_64\n"
        "  - package b-1-1.x86_64 from target conflicts with a provided by a-1-1.x86_64 from @System\n"
        "  - conflicting requests\n",
        "package b-1-1.x86_64 from target conflicts with a provided by a-1-1.x86_64 from @System",
    ),
    "dnf providers": (
        "Error: \n Problem: package b-1-1.x86_64 requires c >= 2, but none of the providers can be installed\n"
        "  - conflicting requests\n",
        "Problem: package b-1-1.x86_64 requires c >= 2, but none of the providers can be installed",
    ),
    "dnf modular": (
        "Error: \n Problem: conflicting requests\n"
        "  - package foo-devel-1-1.x86_64 is filtered out by modular filtering\n",
        "package foo-devel-1-1.x86_64 is filtered out by modular filtering",
    ),
    "dnf exclude": (
        "All matches were filtered out by exclude filtering for argument: foo-devel\n",
        "All matches were filtered out by exclude filtering for argument: foo-devel",
    ),
    "dnf excluded": (
        "Error: \n Problem: cannot install the best candidate for the job\n"
        "  - package CUnit-devel-2.1.3-13.el7.x86_64 is excluded\n",
        "package CUnit-devel-2.1.3-13.el7.x86_64 is excluded",
    ),
    "dnf files": (
        "Error: Transaction test error:\n"
        "  file /usr/bin/x from install of a-1-1.x86_64 conflicts with file from package b-1-1.x86_64\n",
        "file /usr/bin/x from install of a-1-1.x86_64 conflicts with file from package b-1-1.x86_64",
    ),
    "dnf arch": (
        "Error: \n Problem: conflicting requests\n  - a-1-1.i686 has inferior architecture\n",
        "a-1-1.i686 has inferior architecture",
    ),
    "dnf protected": (
        "Error: \n Problem: The operation would result in removing the following protected packages: dnf\n",
        "Problem: The operation would result in removing the following protected packages: dnf",
    ),
    "dnf5 both": (
        "Failed to resolve the transaction:\nProblem: conflicting requests\n"
        "  - cannot install both a-1-1.x86_64 from x and a-2-1.x86_64 from y\n",
        "cannot install both a-1-1.x86_64 from x and a-2-1.x86_64 from y",
    ),
    "dnf5 excluded": (
        "Failed to resolve the transaction:\nArgument 'foo-devel' matches only excluded packages.\n",
        "Argument 'foo-devel' matches only excluded packages.",
    ),
    "dnf5 unnamed": (
        "Failed to resolve the transaction:\nProblem: conflicting requests\n",
        "Failed to resolve the transaction:",
    ),
    "yum": (
        "Error: Package: a-1-1.x86_64 (base)\n           Requires: libx >= 2\n"
        "           Available: libx-1-1.x86_64 (base)\n You could try using --skip-broken to work around the problem\n",
        "Error: Package: a-1-1.x86_64 (base) Requires: libx >= 2",
    ),
    "yum conflict": ("Error: a conflicts with b-1-1.x86_64\n", "Error: a conflicts with b-1-1.x86_64"),
    "zypper": (
        "Problem: the to be installed a-1-1.x86_64 conflicts with 'b' provided by the to be installed b-1-1.x86_64\n"
        " Solution 1: do not install a-1-1.x86_64\n",
        "Problem: the to be installed a-1-1.x86_64 conflicts with 'b' provided by the to be installed b-1-1.x86_64",
    ),
    "microdnf": (
        "error: Could not depsolve transaction; 1 problem detected:\n Problem: conflicting requests\n",
        "error: Could not depsolve transaction; 1 problem detected:",
    ),
}
#: And more words for what nobody provides: who prints them, and in which line.
MISSING = {
    "libsolv": "Problem: nothing provides requested foo-devel >= 2\n",
    "zypper": "No provider of 'foo-devel >= 2' found.\n",
    "zypper problem": "Problem: nothing provides 'foo-devel >= 2' needed by the to be installed a-1-1.x86_64\n",
    "zypper broken": "Problem: a-1-1.x86_64 requires foo-devel >= 2, but this requirement cannot be provided\n",
    "zypper package": "Package 'foo-devel >= 2' not found.\n",
    "dnf": "Error: Unable to find a match: foo-devel >= 2\n",
    "yum": "No package foo-devel >= 2 available.\n",
    "dnf5": "No match for argument 'foo-devel >= 2' in repositories 'a'\n",
    "microdnf": "error: No package matches 'foo-devel >= 2'\n",
}
#: The same programs' words for a repository that does not answer.
YUM_GONE = (
    "DEBUG util.py:439:  failure: repodata/repomd.xml from base: [Errno 256] No more mirrors to try.\n",
    "DEBUG util.py:439:  Cannot find a valid baseurl for repo: base\n",
    "DEBUG util.py:439:  Error: Cannot retrieve repository metadata (repomd.xml) for repository: base.\n",
)
DNF5_GONE = 'DEBUG util.py:461:  Failed to download metadata (baseurl: "http://store/repo/") for repository "base"\n'


@pytest.mark.parametrize("said", [YUM, DNF5, DNF5_DEEPER, DNF5_RICH])
def test_a_missing_buildrequires_is_the_packages_fault_with_each_installer(tmp_path: Path, said: str) -> None:
    (tmp_path / "state.log").write_text(SETUP)
    (tmp_path / "root.log").write_text(said)
    reason = "BuildRequires that nobody provides: foo-devel >= 2"
    assert classify(30, tmp_path) == MockResult(Fault.PACKAGE, reason)


@pytest.mark.parametrize("said", MISSING.values(), ids=MISSING)
@pytest.mark.parametrize("prefix", ["", "DEBUG util.py:460:  "])
def test_every_word_for_what_nobody_provides_is_the_packages_fault(tmp_path: Path, said: str, prefix: str) -> None:
    (tmp_path / "state.log").write_text(SETUP)
    (tmp_path / "root.log").write_text("".join(prefix + line for line in said.splitlines(keepends=True)))
    assert classify(30, tmp_path) == MockResult(Fault.PACKAGE, "BuildRequires that nobody provides: foo-devel >= 2")


@pytest.mark.parametrize(("said", "line"), UNINSTALLABLE.values(), ids=UNINSTALLABLE)
@pytest.mark.parametrize("prefix", ["", "DEBUG util.py:460:  "])
def test_buildrequires_that_cannot_be_installed_are_the_packages_fault(
    tmp_path: Path, said: str, line: str, prefix: str
) -> None:
    (tmp_path / "root.log").write_text("".join(prefix + each for each in said.splitlines(keepends=True)))
    assert classify(30, tmp_path).fault is Fault.BUILDER, "what the configuration asks for"
    (tmp_path / "state.log").write_text(SETUP)
    assert classify(30, tmp_path) == MockResult(Fault.PACKAGE, f"BuildRequires that cannot be installed: {line}")


@pytest.mark.parametrize(
    "said",
    [
        "Error: GPG check FAILED\n",
        "Error: Transaction failed\nerror: unpacking of archive failed on file /usr: cpio: read failed\n",
        "Traceback (most recent call last):\nImportError: libsolv.so.1: cannot open shared object file\n",
    ],
)
def test_what_an_earlier_call_of_dnf_printed_blames_no_package(tmp_path: Path, said: str) -> None:
    (tmp_path / "state.log").write_text(SETUP)
    call = "DEBUG util.py:557:  Executing command: ['/usr/bin/dnf-3', '{}'] with env {{}} and shell False\n"
    earlier = " Problem: cannot install the best update candidate for package a-1-1.x86_64\nnothing provides x\n"
    (tmp_path / "root.log").write_text(call.format("update") + earlier + call.format("builddep") + said)
    assert classify(30, tmp_path).fault is Fault.BUILDER


@pytest.mark.parametrize("said", [YUM, DNF5, DNF5_DEEPER, "No matching package to install: 'foo-devel >= 2'\n"])
def test_what_the_configuration_asks_for_is_not_the_packages_fault(tmp_path: Path, said: str) -> None:
    (tmp_path / "state.log").write_text("2026-11-22 09:09:51,097 - Start: installing minimal buildroot with dnf5\n")
    (tmp_path / "root.log").write_text(said)
    reason = "the buildroot could not be installed: nobody provides foo-devel >= 2"
    assert classify(30, tmp_path) == MockResult(Fault.BUILDER, reason)


@pytest.mark.parametrize("gone", [*YUM_GONE, DNF5_GONE])
def test_a_repository_that_does_not_answer_outweighs_what_is_missing(tmp_path: Path, gone: str) -> None:
    (tmp_path / "state.log").write_text(SETUP)
    (tmp_path / "root.log").write_text(gone + YUM + DNF5)
    verdict = classify(30, tmp_path)
    assert verdict.fault is Fault.BUILDER
    assert verdict.reason in gone


def _in_setup(folder: Path, said: str, log: str = "build.log", code: int = 1) -> MockResult:
    """The verdict where `rpmbuild -bs` printed this."""
    (folder / "state.log").write_text(SETUP)
    call = "Executing command: ['bash', '--login', '-c', '/opt/rpmbuild6 -bs  --target x86_64 x.spec'] with env {}\n"
    prefix = "DEBUG util.py:460:  " if log == "root.log" else ""
    text = f"error: of an earlier call\n{call}Building target platforms: x86_64\n{said}\nChild return code was: 1\n"
    (folder / log).write_text("".join(prefix + line for line in text.splitlines(keepends=True)))
    return classify(code, folder)


@pytest.mark.parametrize("log", ["build.log", "root.log"])
@pytest.mark.parametrize(
    ("said", "words"),
    [
        ("error: line 8: Unknown tag: Fnord: x", "line 8: Unknown tag: Fnord: x"),
        ("error: line 9: Dependency tokens must begin with alpha-numeric, '_' or '/': !x", "line 9: Dep"),
        ("error: line 9: Unknown tag: rpmdb Input/output error", "line 9: Unk"),
        ("error: this needs OpenSSL and a plugin", "this needs OpenSSL"),
        ("error: %changelog entries must start with *", "%changelog"),
        ("error: line 3: Non-UTF-8 data in tag Summary", "line 3: Non-UTF-8"),
        ("error: Bad file: /builddir/build/SOURCES/x.tar.gz: No such file or directory", "Bad file: /builddir"),
        ("error: Bad source: /builddir/build/SOURCES/x.tar: Permission denied", "Bad source: /builddir"),
        ("    Bad file: /builddir/build/SOURCES/x.tar.gz: No such file or directory", "Bad file: /builddir"),
        ("error:\n    this target has no macro", "this target has no macro"),
        ("error: \nline 3: Unknown tag: x", "line 3: Unknown tag: x"),
        ("warning: x\nerror: Failed build dependencies: a", "Failed build dependencies: a"),
        ("error: Building target platforms: x86_64\nBuilding for target x86_64\nline 9: Unclosed %if", "line 9: Uncl"),
    ],
)
def test_rpms_own_error_in_build_setup_is_the_packages(tmp_path: Path, log: str, said: str, words: str) -> None:
    verdict = _in_setup(tmp_path, said, log)
    assert verdict.fault is Fault.PACKAGE
    assert verdict.reason.startswith(f"rpmbuild -bs failed: {words}")


@pytest.mark.parametrize(
    "said",
    [
        "bash: line 1: /usr/bin/rpmbuild: No such file or directory",
        "bash: line 1: rpmbuild: command not found",
        "rpmbuild: error while loading shared libraries: librpm.so.9: cannot open shared object file",
        "error: cannot open Packages database in /builddir/.rpmdb",
        "error: can't create transaction lock on /usr/lib/sysimage/rpm/.rpm.lock (Read-only file system)",
        "error: Unable to open /usr/lib/rpm/rpmrc for reading: No such file or directory.",
        "error: Bad file: /builddir/build/SOURCES/x: Input/output error",
        "error: Unable to open temp file: Permission denied",
        "error: Unable to create immutable header region.\nerror: cpio: write failed - No space left on device",
        "Segmentation fault",
        "",
    ],
)
def test_what_the_root_lacks_in_build_setup_is_the_builders(tmp_path: Path, said: str) -> None:
    verdict = _in_setup(tmp_path, said)
    assert verdict.fault is Fault.BUILDER
    assert said.rpartition("error: ")[2][:20] in verdict.reason


def test_a_full_disk_outweighs_what_could_not_be_installed(tmp_path: Path) -> None:
    (tmp_path / "root.log").write_text(
        "DEBUG util.py:1:  No matching package to install: 'gcc'\nDEBUG util.py:1:  No space left on device\n"
    )
    assert classify(30, tmp_path) == MockResult(Fault.BUILDER, "No space left on device")


def test_all_that_nobody_provides_is_named_once(tmp_path: Path) -> None:
    (tmp_path / "state.log").write_text(SETUP)
    (tmp_path / "root.log").write_text(
        "No matching package to install: 'b-devel'\nNo matching package to install: 'a-devel'\n"
        "nothing provides c-libs >= 2 needed by d-1-1.x86_64\nNo matching package to install: 'b-devel'\n"
    )
    assert classify(30, tmp_path).reason == "BuildRequires that nobody provides: a-devel, b-devel, c-libs >= 2"


@pytest.mark.parametrize("said", ["Error: Some packages could not be found.\n", "Not all dependencies satisfied\n"])
def test_buildrequires_that_are_missing_without_a_name_are_the_packages_fault(tmp_path: Path, said: str) -> None:
    (tmp_path / "state.log").write_text(SETUP)
    (tmp_path / "root.log").write_text(said)
    assert classify(30, tmp_path) == MockResult(Fault.PACKAGE, "BuildRequires that nobody provides")


def test_a_mock_without_builddep_is_the_builders_fault(tmp_path: Path) -> None:
    (tmp_path / "state.log").write_text(SETUP)
    (tmp_path / "stderr").write_text(
        "ERROR: Exception(/x/a-1-1.src.rpm) Config(c9s) 0 minutes 9 seconds\nINFO: Results and/or logs in: /x\n"
        "ERROR: builddep command missing.\nPlease install package dnf-plugins-core.\n"
    )
    reason = "mock failed before the build: builddep command missing."
    assert classify(10, tmp_path) == MockResult(Fault.BUILDER, reason)


@pytest.mark.parametrize(
    ("output", "why"),
    [
        ("", "Command failed: cp -a /usr/share/keys /var/lib/mock/a/root"),
        ("cp: cannot stat '/usr/share/keys'\n\n", "cp: cannot stat '/usr/share/keys'"),
    ],
)
def test_a_command_of_mocks_own_that_fails_is_named(tmp_path: Path, output: str, why: str) -> None:
    (tmp_path / "stderr").write_text(
        "ERROR: Exception(/x/a-1-1.src.rpm) Config(c9s) 0 minutes 0 seconds\n"
        "Start: clean chroot\nFinish: clean chroot\n"
        f"ERROR: Command failed: \n # cp -a /usr/share/keys /var/lib/mock/a/root\n{output}\n"
    )
    assert classify(1, tmp_path) == MockResult(Fault.BUILDER, f"mock failed before the build: {why}")


@pytest.mark.parametrize("log", ["build.log", "root.log", "stderr"])
@pytest.mark.parametrize("case", ["failbuild", "failfiles"])
def test_a_full_disk_is_no_fault_of_the_package(tmp_path: Path, case: str, log: str) -> None:
    code, folder = results(tmp_path, case)
    with (folder / log).open("a") as stream:
        stream.write("cc: error: write error: No space left on device\n")
    assert classify(code, folder) == MockResult(Fault.BUILDER, "No space left on device")


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        ("ERROR: No build results found", "rpmbuild made no package"),
        ("ERROR: No specfile found in srpm: a-1-1.src.rpm", "the source rpm has no spec file"),
        ("", "the source rpm cannot be installed: its payload is damaged"),
    ],
)
def test_each_meaning_of_40_has_its_words(tmp_path: Path, said: str, reason: str) -> None:
    (tmp_path / "stderr").write_text(said)
    assert classify(40, tmp_path) == MockResult(Fault.PACKAGE, reason)


@pytest.mark.parametrize("case", ["missingbr", "dynmissing", "skippedrepo", "repogone", "failbuild"])
def test_logs_in_a_format_that_nobody_knows_are_replaced_by_stderr(tmp_path: Path, case: str) -> None:
    code, folder = results(tmp_path, case)
    for log in folder.glob("*.log"):
        log.rename(f"{log}.zst")
    assert classify(code, folder).fault is CASES[case][0]


@pytest.mark.parametrize("step", ["failbuild", "failcheck"])
def test_a_test_that_writes_to_a_full_device_is_the_packages(tmp_path: Path, step: str) -> None:
    code, folder = results(tmp_path, step)
    log = (folder / "build.log").read_text()
    tests = "hello: write error: No space left on device\n" + "PASS: one\n" * 30
    (folder / "build.log").write_text(log.replace("RPM build errors:", f"{tests}RPM build errors:"))
    assert classify(code, folder) == MockResult(*CASES[step])


@pytest.mark.parametrize("case", ["failbuild", "failfiles"])
def test_a_full_disk_just_before_the_end_is_the_builders(tmp_path: Path, case: str) -> None:
    code, folder = results(tmp_path, case)
    log = (folder / "build.log").read_text()
    full = "as: write error: No space left on device\nmake: *** [a.o] Error 1\n"
    log = log.replace("RPM build errors:", f"{full}RPM build errors:")
    (folder / "build.log").write_text(log + "Traceback of mock\n" * 40)
    assert classify(code, folder) == MockResult(Fault.BUILDER, "No space left on device")


@pytest.mark.parametrize("name", ["%{oops}-1-1.x86_64.rpm", "hello-1%{?dist}-1.noarch.rpm", "x" * 201 + ".rpm"])
def test_a_package_whose_name_nobody_can_use_is_the_packages_fault(tmp_path: Path, name: str) -> None:
    code, folder = results(tmp_path, "hello", rpm=True)
    (folder / name).touch()
    verdict = classify(code, folder)
    assert verdict.fault is Fault.PACKAGE
    assert name[:40] in verdict.reason


def test_a_disk_that_has_no_room_for_a_word_is_the_builders_fault_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code, folder = results(tmp_path, "failbuild")
    full = os.statvfs(folder)
    monkeypatch.setattr(os, "statvfs", lambda _: type("Full", (), {"f_bavail": 3, "f_frsize": full.f_frsize}))
    assert classify(code, folder).fault is Fault.BUILDER


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        (
            "INFO: mock.py version 6.7 starting\nERROR: Config error: /x/mock.cfg: name 'y' is not defined\n",
            "mock's configuration is missing or wrong: Config error: /x/mock.cfg: name 'y' is not defined",
        ),
        (
            "ERROR: Could not find required config file: /x/mock.cfg\nERROR: Non-existing Mock config 'mock'\n",
            "mock's configuration is missing or wrong: Non-existing Mock config 'mock'",
        ),
        ("", "mock's configuration is missing or wrong"),
    ],
)
def test_a_configuration_that_is_wrong_is_told_in_mocks_words(tmp_path: Path, said: str, reason: str) -> None:
    (tmp_path / "stderr").write_text(said)
    assert classify(3, tmp_path) == MockResult(Fault.BUILDER, reason)


@pytest.mark.parametrize(
    ("reason", "timed_out"),
    [
        ("it took longer than a build may (build_timeout)", True),
        ("nothing changed for 4 h (stall_timeout)", True),
        ("%build failed", False),
    ],
)
def test_the_end_for_its_time_is_told_by_the_reason(reason: str, timed_out: bool) -> None:
    assert is_timeout(reason) is timed_out


@pytest.mark.parametrize(("code", "reason"), [(1, "rpmbuild failed"), (10, "the package does not build")])
def test_rpmbuilds_failure_without_a_log_is_told_by_the_exit_code(tmp_path: Path, code: int, reason: str) -> None:
    (tmp_path / "state.log").write_text("2026-11-29 04:09:34,449 - Start: rpmbuild d-1-1.src.rpm\n")
    assert classify(code, tmp_path) == MockResult(Fault.PACKAGE, reason)


@pytest.mark.parametrize(
    ("stderr", "why"),
    [
        ("", "no error message"),
        ("one\ntwo\nthree\n", "three"),
        ("ERROR: the first\nERROR: the second\nand more\n", "the second"),
        ("ERROR: Command failed: \n # /usr/bin/mount -n /proc\nthe only line\n", "the only line"),
        ("ERROR: Command failed: \n # /usr/bin/mount -n /proc\n", "Command failed: /usr/bin/mount -n /proc"),
    ],
)
def test_mocks_last_error_is_the_reason(tmp_path: Path, stderr: str, why: str) -> None:
    (tmp_path / "stderr").write_text(stderr)
    assert classify(1, tmp_path) == MockResult(Fault.BUILDER, f"mock failed before the build: {why}")


def test_yums_requirement_on_the_next_line_belongs_to_the_error(tmp_path: Path) -> None:
    (tmp_path / "state.log").write_text("2026-11-29 04:09:33,449 - Start: build setup for d-1-1.src.rpm\n")
    (tmp_path / "root.log").write_text("Error: Package: a-1.x86_64 (base)\n           Requires: libb.so.1\nmore\n")
    assert classify(30, tmp_path).reason == (
        "BuildRequires that cannot be installed: Error: Package: a-1.x86_64 (base) Requires: libb.so.1"
    )

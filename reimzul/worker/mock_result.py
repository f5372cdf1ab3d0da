# SPDX-License-Identifier: Apache-2.0
"""Whose fault it is that mock did not build: from its exit code together with its logs.

The table was made from real runs of mock 6.7, whose logs are in tests/samples. 1 alone says nothing (state.log tells
how far mock came, build.log what rpm objected to), and 30 is either side's (root.log tells them apart). Where a
repository was skipped or changed while it was read, nobody is at fault, and the build is retried.
"""

from __future__ import annotations

import contextlib
import enum
import os
import re
from collections.abc import Sequence
from pathlib import Path

import attr

from reimzul.core import validators
from reimzul.core.mock_exit_codes import HOST_FAULT_CODES
from reimzul.worker.error_patterns import CONFLICTING, TARGET_LINE, UNPROVIDED, UNRESOLVED_HEAD
from reimzul.worker.repofaults import LINE_LIMIT_CHARS, RepoFailure, last_package_manager_output, read_failures


class Fault(enum.Enum):
    """What a run of mock came to."""

    NONE = "built"
    PACKAGE = "the package does not build"
    BUILDER = "this builder could not build it"
    NOBODY = "nobody's fault: retried without a strike"


@attr.frozen
class MockResult:
    """Whose fault, and why in words for a person."""

    fault: Fault
    reason: str = ""


#: What rpmbuild's own steps ended with, as build.log says it.
_STEP = re.compile(r"Bad exit status from \S+ \((%\w+)\)")
_UNPROVIDED = re.compile(UNPROVIDED, re.MULTILINE)
_CONFLICTING = re.compile(CONFLICTING, re.MULTILINE)
_UNRESOLVED = re.compile(UNRESOLVED_HEAD, re.MULTILINE)
#: What the formats of root.log and build.log put before a line.
_PREFIX = re.compile(r"^(?:DEBUG|INFO|WARNING|ERROR) \w+\.py:\d+:  ?", re.MULTILINE)
#: rpm's own complaint, at a line's beginning; an `error:` may stand alone, with its words on the next line.
_RPM_ERROR = re.compile(r"^error:[ \t]*(?:\n[ \t]*){0,2}(\S[^\n]*)", re.MULTILINE)
_TARGET_LINES = re.compile(rf"{TARGET_LINE}\n")
#: mock's own errors on stderr; the first one only says which package and configuration it is about.
_ERROR = re.compile(r"^ERROR: (?!Exception\()", re.MULTILINE)
#: How the logs have the call of rpmbuild that makes the source rpm anew; the program is a setting of mock's.
_SOURCE_CALL = re.compile(r"Executing command: [^\n]*?[ ']-bs[ ']")
#: What mock, or an old rpm, says of a spec or a source without `error:`.
_BAD_SOURCE = re.compile(
    r"^[ \t]*((?:Bad (?:source|file)|[^\n]*No such file)[^\n]*(?:/SOURCES/|/SPECS/|\.spec\b)[^\n]*)", re.MULTILINE
)
#: rpm's complaints about the host or the root, whatever spec is read; `line 3: …` is always about the spec.
_ROOT_ERROR = re.compile(
    r"^(?!line \d+: ).*(?:/\.?rpmdb\b|transaction lock|Packages (?:index|database)|\bdb\d* error|/rpmrc\b"
    r"|^Failed to initialize |[Rr]ead-only file system|Input/output error|No space left"
    r"|Cannot allocate memory|Too many open files|Disk quota|[Cc]ould(?: not|n't) (?:exec|fork)|open temp file)"
)
_PERMISSION = re.compile(r"Permission denied|Operation not permitted")
_SOURCE_PATH = re.compile(r"/SOURCES/|/SPECS/|\.spec\b")
#: And for a disk that is full.
_NO_SPACE = re.compile(r"At least \S+ more space needed on the \S+ filesystem|No space left on device")
#: How many lines of build.log, before rpmbuild sums up, are those of the step that failed. Earlier ones may be those of
#: a test that writes to /dev/full.
_STEP_END_LINES = 20
#: Bytes free on the disk of the results below which the disk is full: what failed there has failed for that.
_FULL_DISK_BYTES = 1024 * 1024
#: What mock says with exit code 40, beside that the source rpm cannot be installed.
_EXIT_40_REASONS = {
    "No build results found": "rpmbuild made no package",
    "No specfile found": "the source rpm has no spec file",
    "Expected to find single rebuilt srpm": "rpmbuild -bs did not make one source rpm",
}
#: Exit codes for which it does not matter what repositories held: timeout, damaged source rpm.
_CODES_INDEPENDENT_OF_REPOS = (11, 40)


def classify(code: int, results: Path) -> MockResult:
    """The verdict on a run of mock that left its logs in `results`; a full disk is no fault of any package."""
    verdict = _classify_by_code(code, results)
    if verdict.fault in (Fault.NONE, Fault.PACKAGE) and code not in _CODES_INDEPENDENT_OF_REPOS:
        verdict = _find_skipped_repo(read_failures(_read_end(results / "root.log"))) or verdict
    return _find_full_disk(results) or verdict if verdict.fault in (Fault.PACKAGE, Fault.NOBODY) else verdict


def is_timeout(reason: str) -> bool:
    """Whether a verdict's reason is that the build was ended for its time: no line of a log is the cause of that."""
    return reason.endswith(("(build_timeout)", "(stall_timeout)"))


def _find_skipped_repo(failures: Sequence[RepoFailure]) -> MockResult | None:
    """The verdict where the package manager went on without a repository that may have packages."""
    hidden = next((each for each in failures if each.hides_packages), None)
    if hidden is None:
        return None
    return MockResult(Fault.NOBODY, f"a repository was skipped that may have newer packages: {hidden.detail[:300]}")


def _find_full_disk(results: Path) -> MockResult | None:
    """The fault of a disk that is full, or was: then the logs say so, as far as there was room for that."""
    for log in (
        _end_of_build_log(_read_end(results / "build.log")),
        _read_end(results / "root.log"),
        _read_end(results / "stderr"),
    ):
        found = _NO_SPACE.search(log)
        if found:
            return MockResult(Fault.BUILDER, found.group(0))
    with contextlib.suppress(FileNotFoundError):  # mock made no folder
        room = os.statvfs(results)
        if room.f_bavail * room.f_frsize < _FULL_DISK_BYTES:
            return MockResult(Fault.BUILDER, "the disk it was built on is full")
    return None


def _end_of_build_log(log: str) -> str:
    """What build.log has from shortly before rpmbuild sums up."""
    lines = log.splitlines()
    ends = [number for number, line in enumerate(lines) if line.startswith("RPM build errors:")] or [len(lines)]
    return "\n".join(lines[max(0, ends[-1] - _STEP_END_LINES) :])


def _classify_by_code(code: int, results: Path) -> MockResult:
    if code == 0:
        return _check_package_names(sorted(path.name for path in results.glob("*.rpm")))
    if code == 1:
        return _classify_exit_1(results)
    if code == 3:
        return MockResult(Fault.BUILDER, _explain_exit_3(results))
    if code == 10:
        return _classify_exit_10(results)
    if code == 11:
        return MockResult(Fault.PACKAGE, "it took longer than a build may (build_timeout)")
    if code == 30:
        return _classify_exit_30(results)
    if code == 40:
        return MockResult(Fault.PACKAGE, _explain_exit_40(_read_end(results / "stderr")))
    if code == 60:
        return MockResult(Fault.NOBODY, HOST_FAULT_CODES[60])
    if code < 0:
        return MockResult(Fault.BUILDER, f"mock was ended by signal {-code}")
    return MockResult(Fault.BUILDER, HOST_FAULT_CODES.get(code, f"mock exited with {code}"))


def _explain_exit_40(said: str) -> str:
    """What mock objects to in a package; other versions say it otherwise."""
    for sign, words in _EXIT_40_REASONS.items():
        if sign in said:
            return words
    return "the source rpm cannot be installed: its payload is damaged"


def _check_package_names(names: list[str]) -> MockResult:
    """Built, and all can be published: rpm itself allows names that are none for us, as with a macro left in them."""
    if not names:
        return MockResult(Fault.BUILDER, "mock says it built, and left no rpm")
    for name in names:
        try:
            validators.name(name)
        except ValueError as error:
            return MockResult(Fault.PACKAGE, f"it makes a package that cannot be published: {error}")
    return MockResult(Fault.NONE)


def rpmbuild_started(results: Path) -> bool:
    """Whether rpmbuild was started: what went wrong before that was not the package's doing."""
    return "Start: rpmbuild" in _log_or_stderr(results, "state.log")


def _classify_exit_1(results: Path) -> MockResult:
    """rpmbuild failed, or mock never got as far."""
    if rpmbuild_started(results):
        return MockResult(Fault.PACKAGE, _failed_step(results) or "rpmbuild failed")
    said = _read_end(results / "stderr")
    if "Cannot find/open srpm" in said or "File is not an srpm" in said:
        return MockResult(Fault.PACKAGE, "mock cannot read the source rpm")
    if _build_setup_started(results):
        return _classify_source_rebuild(results)
    return MockResult(Fault.BUILDER, f"mock did not come to build it: {_last_mock_error(said)}")


def _classify_exit_10(results: Path) -> MockResult:
    """%generate_buildrequires failed, or mock has no program that installs BuildRequires."""
    if rpmbuild_started(results):
        return MockResult(Fault.PACKAGE, _failed_step(results) or "the package does not build")
    return MockResult(
        Fault.BUILDER, f"mock did not come to build it: {_last_mock_error(_read_end(results / 'stderr'))}"
    )


def _build_setup_started(results: Path) -> bool:
    """Whether mock had begun to look at the package: the buildroot was there."""
    return "Start: build setup for" in _log_or_stderr(results, "state.log")


def _classify_source_rebuild(results: Path) -> MockResult:
    """`rpmbuild -bs` failed in build setup: the package's fault only where rpm itself objects to spec or source."""
    output = _source_rebuild_output(_read_end(results / "build.log")) or _source_rebuild_output(
        _read_end(results / "root.log")
    )
    errors = [found.group(1).strip() for found in _RPM_ERROR.finditer(output)]
    errors += [found.group(1).strip() for found in _BAD_SOURCE.finditer(output)]
    if errors and not any(map(_blames_root, errors)):
        return MockResult(Fault.PACKAGE, f"rpmbuild -bs failed: {errors[0][:300]}")
    why = (
        next(filter(_blames_root, errors), "") or _last_line(output) or _last_mock_error(_read_end(results / "stderr"))
    )
    return MockResult(Fault.BUILDER, f"mock did not come to build it: {why}")


def _blames_root(error: str) -> bool:
    """Whether a complaint of rpm is about the host or the root."""
    return bool(_ROOT_ERROR.search(error) or (_PERMISSION.search(error) and not _SOURCE_PATH.search(error)))


def _source_rebuild_output(log: str) -> str:
    """The output of the last `rpmbuild -bs` in a log, without what the log's format adds."""
    lines = _PREFIX.sub("", log).split("\n")
    calls = [number for number, line in enumerate(lines) if _SOURCE_CALL.match(line)]
    lines = lines[calls[-1] + 1 :] if calls else []
    ends = [number for number, line in enumerate(lines) if line.startswith("Child return code was")]
    return _TARGET_LINES.sub("", "".join(f"{line}\n" for line in (lines[: ends[0]] if ends else lines)))


def _last_mock_error(said: str) -> str:
    """What mock's last error says: of a command that failed its last line of output, or else the command."""
    errors = [found.end() for found in _ERROR.finditer(said)]
    lines = [line.strip() for line in said[errors[-1] if errors else 0 :].splitlines() if line.strip()]
    if not lines:
        return "it said nothing"
    if not errors or not lines[0].startswith("Command failed:"):
        return lines[0 if errors else -1][:300]
    command = next((line[2:] for line in lines if line.startswith("# ")), "")
    output = [line for line in lines[1:] if not line.startswith("# ")]
    return (output[-1] if output else f"Command failed: {command}")[:300]


def _last_line(text: str) -> str:
    """The last line that says something."""
    return next((line.strip() for line in reversed(text.splitlines()) if line.strip()), "")[:300]


def _explain_exit_3(results: Path) -> str:
    """What mock says of a configuration that it cannot use: its last line of that kind."""
    said = [line for line in _read_end(results / "stderr").splitlines() if line.startswith("ERROR: ")][-1:]
    return ": ".join([HOST_FAULT_CODES[3], *(line.partition(": ")[2].strip() for line in said)])


def _classify_exit_30(results: Path) -> MockResult:
    """Dependencies: nobody provides one, or the repository, the disk or the configuration is not what it should be."""
    log = _log_or_stderr(results, "root.log")
    if full := _NO_SPACE.search(log):
        return MockResult(Fault.BUILDER, full.group(0).strip())
    failures = read_failures(log)
    if skipped := _find_skipped_repo(failures):
        return skipped
    fatal = [each for each in failures if not each.skipped]
    if stale := next((each for each in fatal if each.is_stale), None):
        return MockResult(Fault.NOBODY, f"a repository changed while it was read: {stale.detail[:300]}")
    if fatal:
        return MockResult(Fault.BUILDER, fatal[0].line[:300])
    return _classify_unresolved(
        _PREFIX.sub("", last_package_manager_output(log)), in_setup=_build_setup_started(results)
    )


def _classify_unresolved(log: str, *, in_setup: bool) -> MockResult:
    """All repositories were read, and the packages could not be installed."""
    missing = sorted({"".join(names).strip(" '\"") for names in _UNPROVIDED.findall(log)})
    conflict = _CONFLICTING.search(log) or _UNRESOLVED.search(log)
    words = _whole_line(log, conflict) if conflict else ""
    if not in_setup:  # what cannot be installed, the configuration asks for
        why = f"nobody provides {', '.join(missing)}" if missing else words
        return MockResult(Fault.BUILDER, f"the buildroot could not be installed{why and ': '}{why}")
    if missing:
        return MockResult(Fault.PACKAGE, f"BuildRequires that nobody provides: {', '.join(missing)}")
    if words.startswith(("Error: Some packages could not be found", "Not all dependencies satisfied")):
        return MockResult(Fault.PACKAGE, "BuildRequires that nobody provides")
    if words:
        return MockResult(Fault.PACKAGE, f"BuildRequires that cannot be installed: {words}")
    return MockResult(Fault.BUILDER, "the buildroot could not be installed")


def _whole_line(log: str, found: re.Match[str]) -> str:
    """The whole line of a match, without list marks."""
    begin, end = log.rfind("\n", 0, found.start()) + 1, log.find("\n", found.end())
    line = log[begin : end if end >= 0 else len(log)].strip(" -\r\n")
    if line.startswith("Error: Package:") and end >= 0:  # yum: what it requires is on the next line
        line = f"{line} {log[end:].lstrip().partition(chr(10))[0]}"
    return line[:300]


def _failed_step(results: Path) -> str:
    """What rpmbuild failed at, in words."""
    log = _read_end(results / "build.log")
    found = _STEP.search(log)
    if found:
        return f"{found.group(1)} failed"
    for sign, words in (
        ("Architecture is not included", "the package excludes this arch"),
        ("Architecture is excluded", "the package excludes this arch"),
        ("File not found", "%files names what is not there"),
        ("Installed (but unpackaged) file(s) found", "files were installed that %files does not name"),
    ):
        if sign in log:
            return words
    return ""


def _log_or_stderr(results: Path, name: str) -> str:
    """A log; what mock said on stderr where it is not there, as when it was packed in a format we do not know."""
    return _read_end(results / name) or _read_end(results / "stderr")


def _read_end(path: Path, limit: int = 4_000_000) -> str:
    """The end of a log, whatever its encoding, its lines cut; nothing where it is not there."""
    try:
        with path.open("rb") as stream:
            stream.seek(max(0, path.stat().st_size - limit))
            text = stream.read().decode("utf-8", "replace")
    except OSError:
        return ""
    return "\n".join(line[:LINE_LIMIT_CHARS] for line in text.split("\n"))

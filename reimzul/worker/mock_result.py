# SPDX-License-Identifier: Apache-2.0
"""Classifies a run of mock by its exit code and its logs: built, the package's fault, this builder's, or nobody's.

The table was made from real runs of mock 6.7, whose logs are in tests/samples. Exit code 1 alone decides nothing
(state.log has how far mock came, build.log rpm's errors), and 30 may be either side's (root.log tells them apart). A
repository that was skipped (`skip_if_unavailable`) leaves no exit code behind; its cause decides: without repomd.xml
its target has published nothing yet, any other cause may hide packages that exist. Then the build is retried.
"""

from __future__ import annotations

import contextlib
import enum
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import attr

from reimzul.core import validators
from reimzul.core.error_patterns import CONFLICTING, LOG_PREFIX, TARGET_LINE, UNRESOLVED_HEAD, match_until
from reimzul.core.log_reader import cut_lines, read_end
from reimzul.core.mock_exit_codes import HOST_FAULT_CODES
from reimzul.worker.unmet import UnmetRequirements, find_unmet

#: Bytes of a state.log that are read: they have some 2 kB.
STATE_LOG_BYTES = 64 * 1024
TIMEOUT_REASON = "it took longer than a build may (build_timeout)"


class Fault(enum.Enum):
    NONE = "built"
    PACKAGE = "the package does not build"
    BUILDER = "this builder could not build it"
    NOBODY = "nobody's fault: retried without a strike"


@attr.frozen
class MockResult:
    fault: Fault
    reason: str = ""
    #: of a package's fault: why its BuildRequires could not be installed
    unmet: UnmetRequirements = attr.field(default=UnmetRequirements(), eq=False)


_CONFLICTING = re.compile(CONFLICTING, re.MULTILINE)
_UNRESOLVED = re.compile(UNRESOLVED_HEAD, re.MULTILINE)
_PREFIX = re.compile(LOG_PREFIX, re.MULTILINE)
#: rpm's error, at a line's beginning; an `error:` may stand alone, with its message on the next line.
_RPM_ERROR = re.compile(r"^error:[ \t]*(?:\n[ \t]*){0,2}(\S[^\n]*)", re.MULTILINE)
#: mock's own errors on stderr; the first one only names the package and the configuration.
_MOCK_ERROR = re.compile(r"^ERROR: (?!Exception\()", re.MULTILINE)
#: The call of rpmbuild that rebuilds the source rpm, as the logs have it; the program is a setting of mock's.
_SOURCE_CALL = re.compile(rf"Executing command: {match_until('Executing command: ')}[ ']-bs[ ']")
#: Errors of mock, or of an old rpm, about a spec or a source, which have no `error:`.
_BAD_SOURCE = re.compile(
    rf"^[ \t]*((?=[^ \t\n])(?:Bad (?:source|file)|{match_until('No such file')}No such file)[^\n]*"
    r"(?:/SOURCES/|/SPECS/|\.spec\b)[^\n]*)",
    re.MULTILINE,
)
#: rpm's errors about the host or the root, whatever spec is read; `line 3: …` is always about the spec.
_ROOT_ERROR = re.compile(
    r"^(?!line \d+: ).*(?:/\.?rpmdb\b|transaction lock|Packages (?:index|database)|\bdb\d* error|/rpmrc\b"
    r"|^Failed to initialize |[Rr]ead-only file system|Input/output error|No space left"
    r"|Cannot allocate memory|Too many open files|Disk quota|[Cc]ould(?: not|n't) (?:exec|fork)|open temp file)"
)
_DENIED = re.compile(r"Permission denied|Operation not permitted")
#: An error about a file of the package.
_OWN_FILE = re.compile(r"/SOURCES/|/SPECS/|\.spec\b")
_TARGET_OUTPUT = re.compile(rf"{TARGET_LINE}(?:\n|\Z)")
_FAILED_STEP = re.compile(r"Bad exit status from \S+ \((%\w+)\)")
_NO_SPACE = re.compile(r"At least \S+ more space needed on the \S+ filesystem|No space left on device")
#: Lines of build.log, before rpmbuild's summary, that belong to the step that failed. Earlier ones may be those of a
#: test that writes to /dev/full.
_STEP_END_LINES = 20
#: Bytes free on the disk of the results below which the disk is full: what failed there has failed for that.
_FULL_DISK_BYTES = 1024 * 1024
#: mock's messages with exit code 40, beside that the source rpm cannot be installed.
_EXIT_40_REASONS = {
    "No build results found": "rpmbuild made no package",
    "No specfile found": "the source rpm has no spec file",
    "Expected to find single rebuilt srpm": "rpmbuild -bs did not make one source rpm",
}
#: rpmbuild's messages in build.log where no section failed.
_RPMBUILD_REASONS = {
    "Architecture is not included": "the package excludes this arch",
    "Architecture is excluded": "the package excludes this arch",
    "File not found": "%files lists files that do not exist",
    "Installed (but unpackaged) file(s) found": "files were installed that %files does not list",
}


def classify(code: int, results: Path) -> MockResult:
    """Classify a run of mock that left its logs in `results`; a full disk is no fault of any package."""
    result = _classify_by_code(code, results)
    # after a timeout (11) or for a damaged source rpm (40) it does not matter what repositories held
    if result.fault in (Fault.NONE, Fault.PACKAGE) and code not in (11, 40):
        result = _find_skipped_repo(read_failures(_read_log(results / "root.log"))) or result
    return _find_full_disk(results) or result if result.fault in (Fault.PACKAGE, Fault.NOBODY) else result


def rpmbuild_started(results: Path) -> bool:
    """Whether rpmbuild was started: a failure before that is not the package's fault."""
    return "Start: rpmbuild" in _log_or_stderr(results, "state.log")


def _build_setup_started(results: Path) -> bool:
    """Whether mock had begun to look at the package: the buildroot was there."""
    return "Start: build setup for" in _log_or_stderr(results, "state.log")


def _find_skipped_repo(failures: Sequence[RepoFailure]) -> MockResult | None:
    """The result where the package manager went on without a repository that may have packages."""
    hidden = next((each for each in failures if each.skipped and any(cause in _HIDING for cause in each.causes)), None)
    if hidden is None:
        return None
    return MockResult(Fault.NOBODY, f"a repository was skipped that may have newer packages: {hidden.detail[:300]}")


def _find_full_disk(results: Path) -> MockResult | None:
    """The result where the disk is full, or was: then the logs show it, as far as there was space for that."""
    end = _end_of_build_log(_read_log(results / "build.log"))
    for log in (end, _read_log(results / "root.log"), _read_log(results / "stderr")):
        if found := _NO_SPACE.search(log):
            return MockResult(Fault.BUILDER, found.group(0))
    with contextlib.suppress(FileNotFoundError):  # mock made no folder
        disk = os.statvfs(results)
        if disk.f_bavail * disk.f_frsize < _FULL_DISK_BYTES:
            return MockResult(Fault.BUILDER, "the disk it was built on is full")
    return None


def _end_of_build_log(log: str) -> str:
    """The lines of build.log from shortly before rpmbuild's summary on."""
    lines = log.splitlines()
    ends = [number for number, line in enumerate(lines) if line.startswith("RPM build errors:")] or [len(lines)]
    return "\n".join(lines[max(0, ends[-1] - _STEP_END_LINES) :])


def _classify_by_code(code: int, results: Path) -> MockResult:
    stderr = _read_log(results / "stderr")
    if code == 0:
        return _check_package_names(results)
    if code in (1, 10) and rpmbuild_started(results):
        usual = "rpmbuild failed" if code == 1 else "the package does not build"
        return MockResult(Fault.PACKAGE, _failed_step(_read_log(results / "build.log")) or usual)
    if code == 1 and ("Cannot find/open srpm" in stderr or "File is not an srpm" in stderr):
        return MockResult(Fault.PACKAGE, "mock cannot read the source rpm")
    if code == 1 and _build_setup_started(results):
        return _classify_source_rebuild(results)
    if code in (1, 10):  # 10: mock has no program that installs BuildRequires
        return MockResult(Fault.BUILDER, f"mock failed before the build: {_last_mock_error(stderr)}")
    if code == 11:
        return MockResult(Fault.PACKAGE, TIMEOUT_REASON)
    if code == 30:
        return _classify_exit_30(results)
    if code == 40:
        damaged = "the source rpm cannot be installed: its payload is damaged"
        return MockResult(Fault.PACKAGE, _find_reason(_EXIT_40_REASONS, stderr) or damaged)
    if code == 60:
        return MockResult(Fault.NOBODY, HOST_FAULT_CODES[60])
    if code < 0:
        return MockResult(Fault.BUILDER, f"mock was ended by signal {-code}")
    reason = HOST_FAULT_CODES.get(code, f"mock exited with {code}")
    errors = [line.partition(": ")[2].strip() for line in stderr.splitlines() if line.startswith("ERROR: ")]
    return MockResult(Fault.BUILDER, ": ".join([reason, *errors[-1:]]) if code == 3 else reason)


def _check_package_names(results: Path) -> MockResult:
    """Check that all packages can be published: rpm itself allows names that cannot, as with a macro left in them."""
    names = sorted(path.name for path in results.glob("*.rpm"))
    if not names:
        return MockResult(Fault.BUILDER, "mock exited with 0, but left no rpm")
    for name in names:
        try:
            validators.name(name)
        except ValueError as error:
            return MockResult(Fault.PACKAGE, f"it makes a package that cannot be published: {error}")
    return MockResult(Fault.NONE)


def _classify_exit_30(results: Path) -> MockResult:
    """Dependencies: nothing provides one, or the repository, the disk or the configuration is at fault."""
    log = _log_or_stderr(results, "root.log")
    if full := _NO_SPACE.search(log):
        return MockResult(Fault.BUILDER, full.group(0).strip())
    failures = read_failures(log)
    if skipped := _find_skipped_repo(failures):
        return skipped
    fatal = [each for each in failures if not each.skipped]
    if stale := next((each for each in fatal if DownloadFault.STALE in each.causes), None):
        return MockResult(Fault.NOBODY, f"a repository changed while it was read: {stale.detail[:300]}")
    if fatal:
        return MockResult(Fault.BUILDER, fatal[0].line[:300])
    # earlier calls of the package manager succeeded, or were repeated
    last_call = max((call.end() for call in _COMMAND.finditer(log)), default=0)
    return _classify_unresolved(_PREFIX.sub("", log[last_call:]), in_setup=_build_setup_started(results))


def _classify_unresolved(log: str, *, in_setup: bool) -> MockResult:
    """All repositories were read, and the packages could not be installed."""
    unmet = find_unmet(log)
    missing = ", ".join(unmet.unprovided)
    conflict = _CONFLICTING.search(log) or _UNRESOLVED.search(log)
    message = _whole_line(log, conflict) if conflict else ""
    if not in_setup:  # the configuration requires these packages
        why = f"nobody provides {missing}" if missing else message
        return MockResult(Fault.BUILDER, f"the buildroot could not be installed{why and ': '}{why}")
    if missing:
        return MockResult(Fault.PACKAGE, f"BuildRequires that nobody provides: {missing}", unmet)
    if message.startswith(("Error: Some packages could not be found", "Not all dependencies satisfied")):
        return MockResult(Fault.PACKAGE, "BuildRequires that nobody provides")
    if message:
        return MockResult(Fault.PACKAGE, f"BuildRequires that cannot be installed: {message}", unmet)
    return MockResult(Fault.BUILDER, "the buildroot could not be installed")


def _classify_source_rebuild(results: Path) -> MockResult:
    """`rpmbuild -bs` failed in build setup: the package's fault only where rpm itself objects to spec or source."""
    logs = (_read_log(results / name) for name in ("build.log", "root.log"))
    output = next(filter(None, map(_source_rebuild_output, logs)), "")
    errors = [found.group(1).strip() for found in _RPM_ERROR.finditer(output)]
    errors += [found.group(1).strip() for found in _BAD_SOURCE.finditer(output)]
    if errors and not any(map(_blames_root, errors)):
        return MockResult(Fault.PACKAGE, f"rpmbuild -bs failed: {errors[0][:300]}")
    last_line = next((line.strip() for line in reversed(output.splitlines()) if line.strip()), "")[:300]
    why = next(filter(_blames_root, errors), "") or last_line or _last_mock_error(_read_log(results / "stderr"))
    return MockResult(Fault.BUILDER, f"mock failed before the build: {why}")


def _blames_root(error: str) -> bool:
    return bool(_ROOT_ERROR.search(error) or (_DENIED.search(error) and not _OWN_FILE.search(error)))


def _source_rebuild_output(log: str) -> str:
    """The output of the last `rpmbuild -bs` in a log, without the log's prefixes."""
    lines = _PREFIX.sub("", log).split("\n")
    calls = [number for number, line in enumerate(lines) if _SOURCE_CALL.match(line)]
    lines = lines[calls[-1] + 1 :] if calls else []
    ends = [number for number, line in enumerate(lines) if line.startswith("Child return code was")]
    output = "".join(f"{line}\n" for line in (lines[: ends[0]] if ends else lines))
    return _TARGET_OUTPUT.sub("", output)


def _last_mock_error(stderr: str) -> str:
    """mock's last error: of a command that failed its last line of output, or else the command."""
    errors = [found.end() for found in _MOCK_ERROR.finditer(stderr)]
    lines = [line.strip() for line in stderr[errors[-1] if errors else 0 :].splitlines() if line.strip()]
    if not lines:
        return "no error message"
    if not errors or not lines[0].startswith("Command failed:"):
        return lines[0 if errors else -1][:300]
    command = next((line[2:] for line in lines if line.startswith("# ")), "")
    output = [line for line in lines[1:] if not line.startswith("# ")]
    return (output[-1] if output else f"Command failed: {command}")[:300]


def _failed_step(build_log: str) -> str:
    """The section or check at which rpmbuild failed; empty where that is not known."""
    if found := _FAILED_STEP.search(build_log):
        return f"{found.group(1)} failed"
    return _find_reason(_RPMBUILD_REASONS, build_log)


def _find_reason(reasons: Mapping[str, str], log: str) -> str:
    """The reason of the first of some messages that a log has; empty where it has none."""
    return next((reason for message, reason in reasons.items() if message in log), "")


def _whole_line(log: str, found: re.Match[str]) -> str:
    """The whole line of a match, without list marks."""
    begin, end = log.rfind("\n", 0, found.start()) + 1, log.find("\n", found.end())
    line = log[begin : end if end >= 0 else len(log)].strip(" -\r\n")
    if line.startswith("Error: Package:") and end >= 0:  # yum: the requirement is on the next line
        line = f"{line} {log[end:].lstrip().partition(chr(10))[0]}"
    return line[:300]


def _log_or_stderr(results: Path, name: str) -> str:
    """A log; mock's stderr where it is missing, as when it was packed in a format we do not know."""
    return _read_log(results / name) or _read_log(results / "stderr")


def _read_log(path: Path) -> str:
    return read_end(path, 4_000_000)


# --- failed downloads from repositories, as dnf 4, dnf5, yum and zypper print them ------------------------------------


class DownloadFault(enum.Enum):
    UNKNOWN = "unknown"  #: old versions of dnf print no cause
    ABSENT = "absent"  #: the server has no repomd.xml
    STALE = "stale"  #: repomd.xml, or the metadata it names, lists a file that is gone from the server, or is another
    OTHER = "other"  #: refused, reset, timeout, any other status


#: Causes by which packages may exist that the package manager did not see.
_HIDING = (DownloadFault.STALE, DownloadFault.OTHER)


@attr.define
class RepoFailure:
    """A repository, or a file of one, that could not be downloaded."""

    name: str
    line: str  #: the package manager's message
    causes: Sequence[DownloadFault]
    skipped: bool  #: the package manager went on without it
    detail: str  #: the download that failed
    url: str


@attr.frozen
class _FailedFetch:
    cause: DownloadFault
    line: str
    url: str = ""


_COMMAND = re.compile(
    rf"Executing command: {match_until('Executing command: ')}bin/(?:dnf|yum|microdnf|tdnf|zypper)[\w.-]*'"
)
#: librepo's messages: an HTTP or FTP status with its URL, or a number of curl's, mostly with a URL.
_CODED_FETCH = re.compile(
    r"Status code: (\d{3}) for (\S+)"
    rf"|Curl error \((\d+)\): (?:{match_until('Curl error ')}? for ([a-z]+:/\S*))?"
)
#: Status codes of HTTP and FTP, and curl's error numbers, for a file that the server does not have.
_MISSING_CODES = ("404", "410", "550", "37", "78")
_YUM_FETCH = re.compile(r"^([a-z]+:/\S*): \[Errno -?\d+\] (.*)")
_ZYPPER_MISSING = re.compile(r"File '([^'\n]*)' not found on medium")
_WORDED_FETCHES = (
    (
        re.compile(r"Download \(curl\) error for '|Timeout exceeded when accessing '|Connection failed"),
        DownloadFault.OTHER,
    ),
    (
        re.compile(r"Downloading successful, but checksum doesn't|Server reports Content-Length: \d+ but expected"),
        DownloadFault.STALE,
    ),
    (re.compile(r"Valid metadata not found at specified URL"), DownloadFault.ABSENT),
)

_DNF4 = re.compile(r"Failed to (?:download metadata|synchronize cache) for repo '([^'\n]*)'(.*)")
_IGNORED = re.compile(r"Ignoring repositories: (.+)")
_DNF5 = re.compile(r"Failed to download metadata \(\w+: \"([^\"\n]*)\"")
_SKIPPED = re.compile(
    r"Error loading repo \"(?P<dnf5>[^\"\n]*)\" \(skipping|Skipping repository '(?P<zypper>[^'\n]*)' because of"
)
_DNF5_EXHAUSTED = re.compile(r"^\s*>>> No more mirrors to try")
_FATAL = re.compile(
    r"(?<!\S)\S+: Cannot download, .*|Cannot download .*|Could not resolve host.*|Cannot find a valid baseurl .*"
    r"|Cannot retrieve .*|"
    rf"failure: \S+ from {match_until('failure: ')}\[Errno 256\].*|Failed to retrieve new repository metadata.*"
)


def read_failures(log: str) -> list[RepoFailure]:
    """The failed downloads in a root.log, without those that a later call of the package manager repeated."""
    reader = _FailureReader()
    for line in cut_lines(log).splitlines():
        reader.read_line(_PREFIX.sub("", line))
    return reader.failures


@attr.define
class _FailureReader:
    """Reads a log: has the failures so far, and the failed downloads that belong to the next one."""

    failures: list[RepoFailure] = attr.field(factory=list, init=False)
    _fetches: list[_FailedFetch] = attr.field(factory=list, init=False)
    _skipping: bool = attr.field(default=False, init=False)  #: dnf5 skips a repository; indented lines have the cause

    def read_line(self, line: str) -> None:
        self._skipping = self._skipping and line.startswith(" ")
        if _COMMAND.search(line):
            self.failures = [each for each in self.failures if each.skipped]
            self._fetches = []
        elif found := _DNF4.search(line):
            self._end_dnf4(found.group(1), found.group(2), found.group(0))
        elif found := _IGNORED.search(line):
            names = {name.strip() for name in found.group(1).split(",")}
            for failure in self.failures:
                failure.skipped = failure.skipped or failure.name in names
        elif found := _SKIPPED.search(line):
            self._add(found["dnf5"] or found["zypper"] or "", line, skipped=True)
            self._skipping = True
        elif _DNF5_EXHAUSTED.search(line):
            self._add("", line, skipped=True)
        elif fetch := _parse_fetch(line):
            if self._skipping:
                self.failures[-1].causes, self.failures[-1].detail = [fetch.cause], fetch.line
            else:
                self._fetches.append(fetch)
        elif found := _DNF5.search(line) or _FATAL.search(line):
            self._end_fatal(found, line)

    def _end_dnf4(self, name: str, rest: str, line: str) -> None:
        """dnf 4 gives up on a repository; a later line may show that it is skipped."""
        if own := _parse_fetch(rest):
            self._fetches.append(own)
        if not self._fetches and "Downloading error" in rest:
            self._fetches.append(_FailedFetch(DownloadFault.STALE, line))
        elif not self._fetches and rest.startswith(": ") and "Cannot download repomd.xml" not in rest:
            self._fetches.append(_FailedFetch(DownloadFault.OTHER, line))
        self._add(name, line, skipped="ignoring" in rest or "disabling" in rest)

    def _end_fatal(self, found: re.Match[str], line: str) -> None:
        """The package manager ends here, unless the line repeats the cause of a repository that it skips."""
        if self._skipping:
            return
        url = found.group(1) if found.re is _DNF5 else ""
        pending = [each for each in self.failures if not each.name and each.skipped]
        matching = [each for each in pending if url and each.url.startswith(url)] or pending[-1:]
        for failure in matching:
            failure.skipped, failure.line = False, found.group(0) if found.re is not _DNF5 else line.strip()
        if not matching and not any(not each.skipped for each in self.failures):
            self._add("", line.strip() if found.re is _DNF5 else found.group(0), skipped=False)

    def _add(self, name: str, line: str, *, skipped: bool) -> None:
        fetches = self._fetches or [_FailedFetch(DownloadFault.UNKNOWN, line.strip())]
        decisive = next((each for each in fetches if each.cause in _HIDING), fetches[0])
        causes = [each.cause for each in fetches]
        self.failures.append(RepoFailure(name, line.strip(), causes, skipped, decisive.line, decisive.url))
        self._fetches = []


def _parse_fetch(line: str) -> _FailedFetch | None:
    shown = line.strip().lstrip("->: ").removeprefix("[MIRROR] ")
    if found := _CODED_FETCH.search(line):
        code, url = found[1] or found[3], found[2] or found[4] or ""
        return _FailedFetch(_classify_url(code in _MISSING_CODES, url), shown, url)
    if found := _YUM_FETCH.search(line):
        missing = " 404" in found.group(2) or "o such file" in found.group(2)
        return _FailedFetch(_classify_url(missing, found.group(1)), shown, found.group(1))
    if found := _ZYPPER_MISSING.search(line):
        return _FailedFetch(_classify_url(True, found.group(1)), shown)
    cause = next((cause for pattern, cause in _WORDED_FETCHES if pattern.search(line)), None)
    return _FailedFetch(cause, shown) if cause else None


def _classify_url(missing: bool, url: str) -> DownloadFault:
    """The cause, by the file: repomd.xml, a file that it names, or one that neither lists."""
    path = url.partition("?")[0]
    if missing and path.endswith("/repomd.xml"):
        return DownloadFault.ABSENT
    listed = "/repodata/" in path or path.endswith((".rpm", ".drpm"))
    return DownloadFault.STALE if missing and listed else DownloadFault.OTHER

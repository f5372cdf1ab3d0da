# SPDX-License-Identifier: Apache-2.0
"""Failed downloads from repositories, as dnf 4, dnf5, yum and zypper print them.

A repository that was skipped (`skip_if_unavailable`) leaves no exit code behind. Its cause decides: a repomd.xml that
is not there belongs to a target that has published nothing yet; everything else may have hidden packages that exist.
"""

from __future__ import annotations

import enum
import re
from collections.abc import Sequence
from typing import Optional

import attr

#: Characters of a line that are read: patterns stay fast whatever a line holds.
LINE_LIMIT_CHARS = 4_000


class Cause(enum.Enum):
    """Why a download failed."""

    UNKNOWN = "unknown"  #: old versions of dnf print no cause
    ABSENT = "absent"  #: the server has no repomd.xml
    STALE = "stale"  #: repomd.xml, or the metadata it names, lists a file that is gone from the server, or is another
    OTHER = "other"  #: refused, reset, timeout, any other status


@attr.define
class RepoFailure:
    """A repository, or a file of one, that could not be downloaded."""

    name: str
    line: str  #: as the package manager printed it
    causes: Sequence[Cause]
    skipped: bool = False  #: the package manager went on without it
    detail: str = ""  #: the download that failed
    url: str = ""

    @property
    def is_stale(self) -> bool:
        """Whether a file is missing that the metadata lists: the repository changed while it was read."""
        return Cause.STALE in self.causes

    @property
    def hides_packages(self) -> bool:
        """Whether packages may exist that the package manager did not see."""
        return self.skipped and any(cause in (Cause.STALE, Cause.OTHER) for cause in self.causes)


@attr.frozen
class _Fetch:
    """One failed download from one mirror."""

    cause: Cause
    line: str
    url: str = ""


LOG_PREFIX = re.compile(r"^(?:DEBUG|INFO|WARNING|ERROR) \w+\.py:\d+:  ?")
_COMMAND = re.compile(r"Executing command: .*bin/(?:dnf|yum|microdnf|tdnf|zypper)[\w.-]*'")
_STATUS = re.compile(r"Status code: (\d{3}) for (\S+)")
_CURL = re.compile(r"Curl error \((\d+)\): ")
_FOR_URL = re.compile(r" for ([a-z]+:/\S*)")
_YUM = re.compile(r"^([a-z]+:/\S*): \[Errno -?\d+\] (.*)")
_ZYPPER_MISSING = re.compile(r"File '([^'\n]*)' not found on medium")
_ZYPPER_LINK = re.compile(r"Download \(curl\) error for '|Timeout exceeded when accessing '|Connection failed")
_CHANGED = re.compile(r"Downloading successful, but checksum doesn't|Server reports Content-Length: \d+ but expected")
#: Status codes of HTTP and FTP, and curl's error numbers, for a file that the server does not have.
_MISSING_STATUS, _MISSING_CURL = ("404", "410", "550"), ("37", "78")

_DNF4 = re.compile(r"Failed to (?:download metadata|synchronize cache) for repo '([^'\n]*)'(.*)")
_IGNORED = re.compile(r"Ignoring repositories: (.+)")
_DNF5 = re.compile(r"Failed to download metadata \(\w+: \"([^\"\n]*)\"")
_DNF5_SKIPPED = re.compile(r"Error loading repo \"([^\"\n]*)\" \(skipping")
_DNF5_EXHAUSTED = re.compile(r"^\s*>>> No more mirrors to try")
_ZYPPER_SKIPPED = re.compile(r"Skipping repository '([^'\n]*)' because of")
_FATAL = re.compile(
    r"\S+: Cannot download, .*|Cannot download .*|Could not resolve host.*|Cannot find a valid baseurl .*"
    r"|Cannot retrieve .*|failure: \S+ from .*\[Errno 256\].*|Failed to retrieve new repository metadata.*"
)


def read_failures(log: str) -> list[RepoFailure]:
    """The failed downloads of a root.log; those that a later call of the package manager made up for are left out."""
    reader = _FailureReader()
    for line in log.splitlines():
        reader.read(LOG_PREFIX.sub("", line[:LINE_LIMIT_CHARS]))
    return reader.failures


def last_package_manager_output(log: str) -> str:
    """What the package manager printed when it was called last: earlier calls succeeded, or were repeated."""
    calls = list(_COMMAND.finditer(log))
    return log[calls[-1].end() :] if calls else log


class _FailureReader:
    """The failures so far, and the failed downloads that belong to the next one."""

    def __init__(self) -> None:
        self.failures: list[RepoFailure] = []
        self._fetches: list[_Fetch] = []
        self._skipping = False  #: dnf5 says that it skips a repository; the indented lines that follow say why

    def read(self, line: str) -> None:
        """Take one line in."""
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
        elif found := _DNF5_SKIPPED.search(line) or _ZYPPER_SKIPPED.search(line):
            self._add(found.group(1), line, skipped=True)
            self._skipping = True
        elif _DNF5_EXHAUSTED.search(line):
            self._add("", line, skipped=True)
        elif fetch := _fetch(line):
            if self._skipping:
                self.failures[-1].causes, self.failures[-1].detail = [fetch.cause], fetch.line
            else:
                self._fetches.append(fetch)
        elif found := _DNF5.search(line) or _FATAL.search(line):
            self._end_fatal(found, line)

    def _end_dnf4(self, name: str, rest: str, line: str) -> None:
        """dnf 4 gives a repository up; whether it skips it follows on a later line."""
        if own := _fetch(rest):
            self._fetches.append(own)
        if not self._fetches and "Downloading error" in rest:
            self._fetches.append(_Fetch(Cause.STALE, line))
        elif not self._fetches and rest.startswith(": ") and "Cannot download repomd.xml" not in rest:
            self._fetches.append(_Fetch(Cause.OTHER, line))
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
        decisive = next((each for each in self._fetches if each.cause in (Cause.STALE, Cause.OTHER)), None)
        fetch = decisive or (self._fetches[0] if self._fetches else None)
        causes = [each.cause for each in self._fetches] or [Cause.UNKNOWN]
        detail, url = (fetch.line, fetch.url) if fetch else (line.strip(), "")
        self.failures.append(RepoFailure(name, line.strip(), causes, skipped, detail, url))
        self._fetches = []


def _fetch(line: str) -> Optional[_Fetch]:
    """The failed download that a line tells of, if it does."""
    shown = line.strip().lstrip("->: ").removeprefix("[MIRROR] ")
    if found := _STATUS.search(line):
        return _Fetch(_cause(found.group(1) in _MISSING_STATUS, found.group(2)), shown, found.group(2))
    if found := _CURL.search(line):
        where = _FOR_URL.search(line)
        url = where.group(1) if where else ""
        return _Fetch(_cause(found.group(1) in _MISSING_CURL, url), shown, url)
    if found := _YUM.search(line):
        missing = " 404" in found.group(2) or "o such file" in found.group(2)
        return _Fetch(_cause(missing, found.group(1)), shown, found.group(1))
    if found := _ZYPPER_MISSING.search(line):
        return _Fetch(_cause(True, found.group(1)), shown)
    if _ZYPPER_LINK.search(line):
        return _Fetch(Cause.OTHER, shown)
    if _CHANGED.search(line):
        return _Fetch(Cause.STALE, shown)
    return _Fetch(Cause.ABSENT, shown) if "Valid metadata not found at specified URL" in line else None


def _cause(missing: bool, url: str) -> Cause:
    """Why a file could not be had: repomd.xml, a file that it names, or one that neither lists."""
    path = url.partition("?")[0]
    if missing and path.endswith("/repomd.xml"):
        return Cause.ABSENT
    listed = "/repodata/" in path or path.endswith((".rpm", ".drpm"))
    return Cause.STALE if missing and listed else Cause.OTHER

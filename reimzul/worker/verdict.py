# SPDX-License-Identifier: Apache-2.0
"""Whose fault it is that mock did not build: from its exit code together with its logs.

The table is mock.md's, seen with mock 6.7; its samples are the tests. 1 alone says nothing (`Start: rpmbuild` in
state.log tells the package's fault from the call's), and 30 is either side's (root.log tells them apart).
"""

from __future__ import annotations

import contextlib
import enum
import os
import re
from pathlib import Path

import attr

from reimzul.core import fields
from reimzul.core.mockcodes import HOST
from reimzul.worker.errorrules import UNPROVIDED


class Fault(enum.Enum):
    """What a run of mock came to."""

    NONE = "built"
    PACKAGE = "the package does not build"
    BUILDER = "this builder could not build it"


@attr.frozen
class Verdict:
    """Whose fault, and why in words for a person."""

    fault: Fault
    reason: str = ""


#: What rpmbuild's own steps ended with, as build.log says it.
_STEP = re.compile(r"Bad exit status from \S+ \((%\w+)\)")
_UNRESOLVED = re.compile(UNPROVIDED, re.MULTILINE)
#: Lines of root.log that are dnf's, dnf5's or yum's words for a repository that does not answer.
_UNREACHABLE = re.compile(
    r"Failed to download metadata (?:for repo '[^'\n]*'|\().*|Cannot download .*|Could not resolve host.*"
    r"|Cannot find a valid baseurl .*|Cannot retrieve .*|\S+ \[Errno 256\] No more mirrors to try.*"
)
#: And for a disk that is full.
_NO_SPACE = re.compile(r"At least \S+ more space needed on the \S+ filesystem|No space left on device")
#: How many lines of build.log, before rpmbuild sums up, are those of the step that failed. Earlier ones may be those of
#: a test that writes to /dev/full.
_NEAR = 20
#: Bytes free on the disk of the results below which the disk is full: what failed there has failed for that.
_FULL = 1024 * 1024


def judge(code: int, results: Path) -> Verdict:
    """The verdict on a run of mock that left its logs in `results`; a full disk is no fault of any package."""
    verdict = _judge(code, results)
    return _no_space(results) or verdict if verdict.fault is Fault.PACKAGE else verdict


def _no_space(results: Path) -> Verdict | None:
    """The fault of a disk that is full, or was: then the logs say so, as far as there was room for that."""
    for log in (_last_words(_text(results / "build.log")), _text(results / "root.log"), _text(results / "stderr")):
        found = _NO_SPACE.search(log)
        if found:
            return Verdict(Fault.BUILDER, found.group(0))
    with contextlib.suppress(FileNotFoundError):  # mock made no folder
        room = os.statvfs(results)
        if room.f_bavail * room.f_frsize < _FULL:
            return Verdict(Fault.BUILDER, "the disk it was built on is full")
    return None


def _last_words(log: str) -> str:
    """What build.log has from shortly before rpmbuild sums up."""
    lines = log.splitlines()
    ends = [number for number, line in enumerate(lines) if line.startswith("RPM build errors:")] or [len(lines)]
    return "\n".join(lines[max(0, ends[-1] - _NEAR) :])


def _judge(code: int, results: Path) -> Verdict:
    if code == 0:
        return _judge_packages(sorted(path.name for path in results.glob("*.rpm")))
    if code == 1:
        return _judge_one(results)
    if code == 3:
        return Verdict(Fault.BUILDER, _wrong_configuration(results))
    if code == 10:
        return Verdict(Fault.PACKAGE, _step(results) or "the package does not build")
    if code == 11:
        return Verdict(Fault.PACKAGE, "it took longer than a build may (build_timeout)")
    if code == 30:
        return _judge_thirty(results)
    if code == 40:
        return Verdict(Fault.PACKAGE, "the source rpm cannot be installed: its payload is damaged")
    if code < 0:
        return Verdict(Fault.BUILDER, f"mock was ended by signal {-code}")
    return Verdict(Fault.BUILDER, HOST.get(code, f"mock exited with {code}"))


def _judge_packages(names: list[str]) -> Verdict:
    """Built, and all can be published: rpm itself allows names that are none for us, as with a macro left in them."""
    if not names:
        return Verdict(Fault.BUILDER, "mock says it built, and left no rpm")
    for name in names:
        try:
            fields.name(name)
        except ValueError as error:
            return Verdict(Fault.PACKAGE, f"it makes a package that cannot be published: {error}")
    return Verdict(Fault.NONE)


def began(results: Path) -> bool:
    """Whether rpmbuild was started: what went wrong before that was not the package's doing."""
    return "Start: rpmbuild" in _text(results / "state.log")


def _judge_one(results: Path) -> Verdict:
    """rpmbuild failed, or mock never got as far."""
    if began(results):
        return Verdict(Fault.PACKAGE, _step(results) or "rpmbuild failed")
    said = _text(results / "stderr")
    if "Cannot find/open srpm" in said or "File is not an srpm" in said:
        return Verdict(Fault.PACKAGE, "mock cannot read the source rpm")
    last = [line for line in said.splitlines() if line.strip()][-1:]
    return Verdict(Fault.BUILDER, f"mock did not come to build it: {last[0].strip() if last else 'it said nothing'}")


def _wrong_configuration(results: Path) -> str:
    """What mock says of a configuration that it cannot use: its last line of that kind."""
    said = [line for line in _text(results / "stderr").splitlines() if line.startswith("ERROR: ")][-1:]
    return ": ".join([HOST[3], *(line.partition(": ")[2].strip() for line in said)])


def _judge_thirty(results: Path) -> Verdict:
    """Dependencies: nobody provides one, or the repository, the disk or the configuration is not what it should be."""
    log = _text(results / "root.log")
    for pattern in (_NO_SPACE, _UNREACHABLE):
        found = pattern.search(log)
        if found:
            return Verdict(Fault.BUILDER, found.group(0).strip())
    missing = sorted({"".join(names).strip() for names in _UNRESOLVED.findall(log)})
    if "Start: build setup for" not in _text(results / "state.log"):  # what is missing, the configuration asks for
        of_these = f": nobody provides {', '.join(missing)}" if missing else ""
        return Verdict(Fault.BUILDER, f"the buildroot could not be installed{of_these}")
    if missing:
        return Verdict(Fault.PACKAGE, f"BuildRequires that nobody provides: {', '.join(missing)}")
    if "Some packages could not be found" in log or "Not all dependencies satisfied" in log:
        return Verdict(Fault.PACKAGE, "BuildRequires that nobody provides")
    return Verdict(Fault.BUILDER, "the buildroot could not be installed")


def _step(results: Path) -> str:
    """What rpmbuild failed at, in words."""
    log = _text(results / "build.log")
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


def _text(path: Path, limit: int = 4_000_000) -> str:
    """The end of a log, whatever its encoding; nothing where it is not there."""
    try:
        with path.open("rb") as stream:
            stream.seek(max(0, path.stat().st_size - limit))
            return stream.read().decode("utf-8", "replace")
    except OSError:
        return ""

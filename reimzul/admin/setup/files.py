# SPDX-License-Identifier: Apache-2.0
"""Files a role needs: compared with those on the host, and written.

The checksum of each file that setup wrote is kept in setup.json: such a file is replaced without a question.
"""

from __future__ import annotations

import contextlib
import difflib
import grp
import hashlib
import json
import os
import pwd
from collections.abc import Iterable, Iterator
from pathlib import Path

import attr

from reimzul.admin.setup.host import System
from reimzul.core.errors import ReimzulError
from reimzul.core.fs import write_atomic

#: The first lines of each configuration of ours have it.
OUR_MARK = "SPDX-License-Identifier: Apache-2.0"
CHECKSUMS_FILE = "/etc/reimzul/setup.json"


@attr.frozen(kw_only=True)
class FileSpec:
    """A file as a role needs it."""

    path: str
    text: str
    mode: int = 0o644
    owner: str = "root"  #: a user
    group: str = ""  #: that user's own where it is empty
    secret: bool = False  #: the text is never shown
    patched: bool = False  #: single lines of a person's file change: nobody is asked, its owner stays
    restarts: tuple[str, ...] = ()  #: units to restart when it changed
    reloads: tuple[str, ...] = ()  #: units to reload when it changed
    backup: str = ""  #: where a foreign file in its place is kept, if not beside it
    then: tuple[str, ...] = ()  #: a command that has to run before the next file is written


@attr.frozen(kw_only=True)
class FileDiff:
    """A file that differs from its spec."""

    spec: FileSpec
    present: str | None  #: None: it does not exist
    mode: int | None  #: None: it does not exist
    ours: bool = False  #: the present text is what an earlier setup wrote

    @property
    def kind(self) -> str:
        """`new`, `changed`, or `mode` where only that differs."""
        if self.present is None:
            return "new"
        return "changed" if self.present != self.spec.text else "mode"

    @property
    def needs_consent(self) -> bool:
        """Whether a person's text would be lost. Some packages bring a file of comments alone: nobody wrote that."""
        if self.spec.secret or self.spec.patched or self.ours or self.kind != "changed":
            return False
        return any(row.strip() and row.strip()[0] not in "#;" for row in (self.present or "").splitlines())

    @property
    def backup_path(self) -> str:
        """Where the replaced file is kept; empty if it is ours or a secret."""
        foreign = self.kind == "changed" and not self.ours and OUR_MARK not in (self.present or "")[:200]
        if not foreign or self.spec.secret or (self.spec.patched and not self.spec.backup):
            return ""
        return self.spec.backup or f"{self.spec.path}.before-reimzul"

    def lines(self) -> Iterator[str]:
        """The change as a unified diff; for a secret, only the number of lines."""
        if self.kind == "mode":
            yield f"{self.spec.path}: mode {self.mode or 0:o} becomes {self.spec.mode:o}"
        elif self.spec.secret:
            yield from self._line_counts()
        else:
            yield from difflib.unified_diff(
                (self.present or "").splitlines(), self.spec.text.splitlines(),
                self.spec.path if self.present is not None else "/dev/null", self.spec.path, lineterm="",
            )  # fmt: skip

    def _line_counts(self) -> Iterator[str]:
        before, after = (set((text or "").splitlines()) for text in (self.present, self.spec.text))
        for number, verb in ((len(after - before), "added"), (len(before - after), "removed")):
            if number:
                yield f"{self.spec.path}: {number} secret line{'s' if number > 1 else ''} {verb}"


def compare(system: System, specs: Iterable[FileSpec]) -> list[FileDiff]:
    """The files that differ. Raises `RootNeeded`, and `ConfigError` for a file that is no text."""
    found, written = [], _read_checksums(system)
    for spec in specs:
        present = system.text(spec.path)
        mode = None if present is None else system.mode(spec.path)
        if present != spec.text or mode != spec.mode:
            ours = present is not None and written.get(spec.path) == _checksum(present)
            found.append(FileDiff(spec=spec, present=present, mode=mode, ours=ours))
    return found


def write(system: System, diff: FileDiff) -> str:
    """Write a file as its spec has it; returns the path of the backup, if one was made. Raises `ReimzulError`."""
    path, backup = system.resolve(diff.spec.path), diff.backup_path
    with _translating_errors(diff.spec.path):
        path.parent.mkdir(parents=True, exist_ok=True)
        if backup and not system.resolve(backup).exists():
            system.resolve(backup).parent.mkdir(parents=True, exist_ok=True)
            write_atomic(system.resolve(backup), diff.present or "", mode=diff.mode or 0o600)
        else:
            backup = ""
        keeps_owner = diff.spec.patched and diff.present is not None
        owner = (path.stat().st_uid, path.stat().st_gid) if keeps_owner else _owner_ids(system, diff.spec)
        write_atomic(path, diff.spec.text, mode=diff.spec.mode, owner=owner)
    return backup


def save_checksums(system: System, diffs: Iterable[FileDiff]) -> None:
    """Note which text was written to each file, for the next run. Raises `ReimzulError`."""
    specs = [diff.spec for diff in diffs if not (diff.spec.secret or diff.spec.patched)]
    if specs:
        sums = {**_read_checksums(system), **{spec.path: _checksum(spec.text) for spec in specs}}
        text = json.dumps({"sha256": sums}, indent=2, sort_keys=True) + "\n"
        with _translating_errors(CHECKSUMS_FILE):
            system.resolve(CHECKSUMS_FILE).parent.mkdir(parents=True, exist_ok=True)
            write_atomic(system.resolve(CHECKSUMS_FILE), text, mode=0o644)


def remove(system: System, path: str) -> None:
    with _translating_errors(path):
        system.resolve(path).unlink()


def _read_checksums(system: System) -> dict[str, str]:
    try:
        sums = json.loads(system.text(CHECKSUMS_FILE) or "{}")["sha256"]
        return {str(path): str(value) for path, value in sums.items()}
    except (ValueError, LookupError, TypeError, AttributeError):
        return {}


def _checksum(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _owner_ids(system: System, spec: FileSpec) -> tuple[int, int]:
    """A file's uid and gid; -1 in an image, where the file stays ours."""
    if system.root != Path("/") or os.geteuid():
        return -1, -1
    try:
        user = pwd.getpwnam(spec.owner)
        return user.pw_uid, grp.getgrnam(spec.group).gr_gid if spec.group else user.pw_gid
    except KeyError:
        missing = f"user {spec.owner} or group {spec.group or spec.owner}"
        raise ReimzulError(f"{spec.path}: there is no {missing}: install what makes it first") from None


@contextlib.contextmanager
def _translating_errors(path: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise ReimzulError(f"{path}: cannot be written: {(error.strerror or str(error)).lower()}") from error

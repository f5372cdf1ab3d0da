# SPDX-License-Identifier: Apache-2.0
"""The files of the host that is set up: as they are, as a role needs them, how these differ, and writing them.

Another root than / is an image in the making: files are written below it, and nothing is started. The checksum of each
file that setup wrote is kept in setup.json: such a file is replaced without a question.
"""

from __future__ import annotations

import contextlib
import difflib
import grp
import hashlib
import json
import os
import pwd
import stat
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import attr

from reimzul.core.errors import ConfigError, ReimzulError, describe_os_error, translate_errors
from reimzul.core.formatting import pluralize
from reimzul.core.fs import write_atomic

#: Where systemd looks for units (systemd.unit(5)); the first is the administrator's.
UNIT_FOLDERS = (
    "/etc/systemd/system", "/usr/local/lib/systemd/system", "/usr/lib/systemd/system", "/lib/systemd/system",
)  # fmt: skip
#: The first lines of each configuration of ours have it.
OUR_MARK = "SPDX-License-Identifier: Apache-2.0"
CHECKSUMS_FILE = "/etc/reimzul/setup.json"


class RootNeeded(ConfigError):
    """Only root may read and write the files of a setup."""

    def __init__(self, path: str = "") -> None:
        super().__init__(f"root is needed{f' for {path}' if path else ''}: run it with sudo")


@attr.frozen(kw_only=True)
class System:
    """A host's files and units."""

    root: Path = Path("/")
    running: bool = False  #: systemd runs, and the root is this host's own

    @classmethod
    def at_root(cls, root: Path) -> System:
        return cls(root=root, running=root == Path("/") and Path("/run/systemd/system").is_dir())

    def resolve(self, path: str) -> Path:
        return self.root / path.lstrip("/")

    def text(self, path: str) -> str | None:
        """A file's text; None if the file does not exist. Raises `RootNeeded`, and `ConfigError` if it is no text."""
        try:
            return self.resolve(path).read_bytes().decode()
        except FileNotFoundError:
            return None
        except PermissionError as error:
            raise RootNeeded(path) from error
        except UnicodeDecodeError as error:
            raise ConfigError(f"{path}: not UTF-8 at byte {error.start}: move it away") from error
        except OSError as error:
            raise ConfigError(f"{path}: {describe_os_error(error)}") from error

    def mode(self, path: str) -> int:
        return stat.S_IMODE(self.resolve(path).stat().st_mode)

    def has_unit(self, unit: str, folders: Sequence[str] = UNIT_FOLDERS) -> bool:
        """Whether a unit, or the template of an instance, is installed in one of the folders."""
        return any(self.resolve(f"{folder}/{unit_file(unit)}").exists() for folder in folders)

    def instances(self, template: str) -> list[int]:
        """The numbers N of the enabled instances `template@N`, in order."""
        links = self.resolve(UNIT_FOLDERS[0]).glob(f"*.wants/{template}@*.service")
        numbers = {link.stem.partition("@")[2] for link in links}
        return sorted(int(number) for number in numbers if number.isdigit())


def unit_file(unit: str) -> str:
    """The name of a unit's file: `stunnel@.service` for `stunnel@reimzul`."""
    name = unit.partition("@")[0] + "@" if "@" in unit else unit
    return name if "." in name else f"{name}.service"


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
    spec: FileSpec
    present: str | None  #: None: it does not exist
    mode: int  #: the present file's
    ours: bool = False  #: the present text is what an earlier setup wrote

    @property
    def kind(self) -> str:
        """`new`, `changed`, or `mode` where only that differs."""
        if self.present is None:
            return "new"
        return "changed" if self.present != self.spec.text else "mode"

    @property
    def action(self) -> str:
        """What writing it does, as a verb."""
        return {"new": "create", "changed": "change", "mode": "change the mode of"}[self.kind]

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
            yield f"mode {self.mode:o} -> {self.spec.mode:o}"
            return
        before, after = (self.present or "").splitlines(), self.spec.text.splitlines()
        if not self.spec.secret:
            name = "/dev/null" if self.present is None else self.spec.path
            yield from difflib.unified_diff(before, after, name, self.spec.path, lineterm="")
            return
        for rows, sign in ((set(after) - set(before), "+"), (set(before) - set(after), "-")):
            if rows:
                yield f"{sign}{pluralize(len(rows), 'secret line')}"


def compare(system: System, specs: Iterable[FileSpec]) -> list[FileDiff]:
    """The files that differ. Raises `RootNeeded`, and `ConfigError` for a file that is no text."""
    found, written = [], read_checksums(system)
    for spec in specs:
        present = system.text(spec.path)
        mode = 0 if present is None else system.mode(spec.path)
        if (present, mode) != (spec.text, spec.mode):
            ours = present is not None and written.get(spec.path) == checksum(present)
            found.append(FileDiff(spec=spec, present=present, mode=mode, ours=ours))
    return found


def write(system: System, diff: FileDiff) -> str:
    """Write a file as its spec has it; returns the path of the backup, if one was made. Raises `ReimzulError`."""
    spec, backup = diff.spec, diff.backup_path
    with translate_write_errors(spec.path):
        if backup and system.resolve(backup).exists():
            backup = ""
        if backup:
            _write_text(system, backup, diff.present or "", diff.mode)
        _write_text(system, spec.path, spec.text, spec.mode, _owner_ids(system, diff))
    return backup


def remove(system: System, path: str, keep: bool) -> str:
    """Remove a file; returns the path of its backup, which is made if `keep` and the file is no link.

    Raises `ReimzulError`.
    """
    present, backup = system.resolve(path), ""
    with translate_write_errors(path):
        if keep and not present.is_symlink():
            # nginx reads every file of sites-enabled
            folder = path.rpartition("/sites-enabled/")[0] or path.rpartition("/")[0]
            backup = f"{folder}/{present.name}.before-reimzul"
            present.replace(system.resolve(backup))
        else:
            present.unlink()
    return backup


def save_checksums(system: System, diffs: Iterable[FileDiff]) -> None:
    """Note which text was written to each file, for the next run. Raises `ReimzulError`."""
    specs = [diff.spec for diff in diffs if not (diff.spec.secret or diff.spec.patched)]
    if specs:
        sums = {**read_checksums(system), **{spec.path: checksum(spec.text) for spec in specs}}
        with translate_write_errors(CHECKSUMS_FILE):
            _write_text(system, CHECKSUMS_FILE, json.dumps({"sha256": sums}, indent=2, sort_keys=True) + "\n")


def is_ours(system: System, path: str) -> bool:
    """Whether a file is as an earlier setup wrote it."""
    text = system.text(path)
    return text is not None and read_checksums(system).get(path) == checksum(text)


def read_checksums(system: System) -> dict[str, str]:
    try:
        sums = json.loads(system.text(CHECKSUMS_FILE) or "{}")["sha256"]
        return {str(path): str(value) for path, value in sums.items()}
    except (ValueError, LookupError, TypeError, AttributeError):
        return {}


def checksum(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _write_text(system: System, path: str, text: str, mode: int = 0o644, owner: tuple[int, int] = (-1, -1)) -> None:
    file = system.resolve(path)
    file.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(file, text, mode=mode, owner=owner)


def _owner_ids(system: System, diff: FileDiff) -> tuple[int, int]:
    """The uid and gid a file gets; -1 in an image, where the file stays ours."""
    spec = diff.spec
    if spec.patched and diff.present is not None:
        found = system.resolve(spec.path).stat()
        return found.st_uid, found.st_gid
    if system.root != Path("/") or os.geteuid():
        return -1, -1
    try:
        user = pwd.getpwnam(spec.owner)
        return user.pw_uid, grp.getgrnam(spec.group).gr_gid if spec.group else user.pw_gid
    except KeyError:
        missing = f"user {spec.owner} or group {spec.group or spec.owner}"
        raise ReimzulError(f"{spec.path}: there is no {missing}: install what makes it first") from None


def translate_write_errors(path: str) -> contextlib.AbstractContextManager[None]:
    """Name the file in the error of a failed write."""
    return translate_errors(
        {OSError: lambda error: ReimzulError(f"{path}: cannot be written: {describe_os_error(error)}")}
    )

# SPDX-License-Identifier: Apache-2.0
"""A power-cut model: what a folder holds if the power fails after any effect, with what was not synced dropped."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import attr
import pytest

Names = dict[str, dict[str, "int | str"]]  #: per folder: names, with an inode or a link's goal


@attr.frozen
class Cut:
    """The state right after one effect."""

    effect: str
    announced: int
    current: Names
    synced: Names
    data: dict[int, bytes]  #: content as last synced, by inode

    def variants(self) -> Iterator[tuple[str, Names]]:
        """Yield which names survive: only the synced ones, all, and all but the unsynced ones of one folder."""
        yield "unsynced names lost", self.synced
        yield "all names kept", self.current
        for folder in self.current:
            yield f"unsynced names of {folder!r} lost", {**self.current, folder: self.synced.get(folder, {})}

    def replay(self, names: Names, goal: Path) -> None:
        """Write the surviving names and synced content into an empty folder."""
        for folder, entries in names.items():
            (goal / folder).mkdir(parents=True, exist_ok=True)
            for name, what in entries.items():
                if isinstance(what, str):
                    os.symlink(what, goal / folder / name)
                else:
                    (goal / folder / name).write_bytes(self.data.get(what, b""))


class Recorder:
    """Records effects below a folder while the real code runs; can leave out the fsync of one call site."""

    def __init__(self, top: Path, patch: pytest.MonkeyPatch, omitted: str | None = None) -> None:
        self.top, self.omitted = top, omitted
        self.cuts: list[Cut] = []
        self.sites: set[str] = set()
        self.announced = 0
        self._data = {each.stat().st_ino: each.read_bytes() for each in top.rglob("*") if each.is_file()}
        self._synced = self._scan()
        self._fsync = os.fsync
        patch.setattr(os, "fsync", self._sync)
        for name in ("link", "rename", "replace", "symlink", "unlink"):
            patch.setattr(os, name, self._watched(name, getattr(os, name)))

    def announce(self) -> None:
        """Record a put to beanstalkd."""
        self.announced += 1
        self._cut("put")

    def _scan(self) -> Names:
        found: Names = {}
        for folder, _dirs, _files in os.walk(self.top):
            with os.scandir(folder) as entries:
                found[os.path.relpath(folder, self.top)] = {
                    each.name: os.readlink(each.path) if each.is_symlink() else each.inode()
                    for each in entries
                    if not each.is_dir(follow_symlinks=False)
                }
        return found

    def _sync(self, descriptor: int) -> None:
        site = _call_site()
        self.sites.add(site)
        if site == self.omitted:
            return
        self._fsync(descriptor)
        path = Path(os.readlink(f"/proc/self/fd/{descriptor}"))
        if path.is_dir():
            folder = os.path.relpath(path, self.top)
            self._synced = {**self._synced, folder: self._scan()[folder]}
        else:
            self._data = {**self._data, os.fstat(descriptor).st_ino: path.read_bytes()}
        self._cut(f"fsync {path.name}")

    def _watched(self, name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **options: Any) -> Any:
            result = real(*args, **options)
            self._cut(name)
            return result

        return call

    def _cut(self, effect: str) -> None:
        self.cuts.append(Cut(effect, self.announced, self._scan(), self._synced, self._data))


def _call_site() -> str:
    """Name the product's function that asked for a sync; fs.sync itself is not one."""
    frame = sys._getframe(2)
    while frame.f_back and frame.f_code.co_name == "sync":
        frame = frame.f_back
    return f"{Path(frame.f_code.co_filename).name}:{frame.f_code.co_name}:{frame.f_lineno}"

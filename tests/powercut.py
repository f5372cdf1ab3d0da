# SPDX-License-Identifier: Apache-2.0
"""A power-cut model: what a folder may hold if the power fails after any effect, with what was not synced dropped.

A journaling file system keeps each change of names whole: a rename, also one from folder to folder, has happened or it
has not. An fsync of a folder makes the changes of its names durable, and those they follow from; an fsync of a file
makes its content durable. A file whose name survives without its content is empty.
"""

from __future__ import annotations

import linecache
import os
import pathlib
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Union

import attr
import pytest

import reimzul
from reimzul.store import repodata

#: What a name stands for: the number of a file or of a folder, or the goal of a link.
Entry = Union[int, str]
#: By folder: its names.
Folders = Mapping[int, Mapping[str, Entry]]
#: By path below the top: a file's content, a link's goal, None for a folder.
Tree = Mapping[str, Union[bytes, str, None]]

_PRODUCT = Path(reimzul.__file__).parent
_TOP = 0


@attr.frozen
class Change:
    """One change of names, which happens as a whole: each name's entry after it, None where it has none."""

    after: Mapping[tuple[int, str], Entry | None]
    moved: frozenset[int]  #: the files and folders that it names

    @property
    def folders(self) -> set[int]:
        return {folder for folder, _ in self.after}

    def follows_from(self, other: Change) -> bool:
        return bool(self.moved & other.moved) or not self.after.keys().isdisjoint(other.after)

    def apply(self, folders: dict[int, dict[str, Entry]]) -> None:
        for (folder, name), entry in self.after.items():
            if entry is None:
                folders.setdefault(folder, {}).pop(name, None)
            else:
                folders.setdefault(folder, {})[name] = entry


@attr.frozen
class Cut:
    """The state right after one effect."""

    effect: str
    announced: tuple[Any, ...]  #: what `Recorder.announce` was given by then
    durable: Folders
    pending: tuple[Change, ...]
    data: Mapping[int, bytes]  #: content as last synced
    kinds: frozenset[int]  #: which numbers are folders

    def states(self) -> Iterator[tuple[str, Tree]]:
        """Yield what may survive: the synced names, all, and all but or only the unsynced ones of one folder."""
        yield "unsynced names lost", self._tree(())
        yield "all names kept", self._tree(self.pending)
        for folder in sorted({folder for change in self.pending for folder in change.folders}):
            name = self._describe(folder)
            lost = [change for change in self.pending if folder not in change.folders]
            yield f"unsynced names of {name} lost", self._tree(self._possible(lost))
            kept = [change for change in self.pending if folder in change.folders]
            yield f"unsynced names of {name} alone kept", self._tree(self._possible(kept))

    def _possible(self, wanted: Iterable[Change]) -> list[Change]:
        """Leave out changes that follow from one that is lost."""
        chosen, lost, kept = {id(change) for change in wanted}, list[Change](), list[Change]()
        for change in self.pending:
            fits = id(change) in chosen and not any(change.follows_from(each) for each in lost)
            (kept if fits else lost).append(change)
        return kept

    def _tree(self, changes: Iterable[Change]) -> Tree:
        folders = {number: dict(names) for number, names in self.durable.items()}
        for change in changes:
            change.apply(folders)
        return dict(self._walk(folders, _TOP, ""))

    def _walk(self, folders: Folders, number: int, path: str) -> Iterator[tuple[str, bytes | str | None]]:
        for name, entry in folders.get(number, {}).items():
            below = f"{path}{name}"
            if isinstance(entry, str):
                yield below, entry
            elif entry in self.kinds:
                yield below, None
                yield from self._walk(folders, entry, f"{below}/")
            else:
                yield below, self.data.get(entry, b"")

    def _describe(self, folder: int) -> str:
        changes = [{key: entry for key, entry in change.after.items() if entry is not None} for change in self.pending]
        named = {entry: name for change in changes for (_, name), entry in change.items()}
        named.update({entry: name for names in self.durable.values() for name, entry in names.items()})
        return repr(named.get(folder, "the top"))


def write_tree(tree: Tree, goal: Path) -> None:
    """Write what survived into an empty folder."""
    for path, content in tree.items():
        if content is None:
            (goal / path).mkdir(parents=True, exist_ok=True)
        elif isinstance(content, str):
            os.symlink(content, goal / path)
        else:
            (goal / path).write_bytes(content)


class Recorder:
    """Records effects below a folder while the real code runs; can leave out the fsyncs of one call site.

    Whatever lies there at first is durable. What other programs write is noticed at the next effect of ours.
    """

    _WATCHED = (
        *((os, name) for name in ("link", "mkdir", "rename", "replace", "rmdir", "symlink", "unlink")),
        # Before Python 3.10 pathlib does not look these up in os.
        *((pathlib.Path, name) for name in ("mkdir", "rename", "replace", "symlink_to", "unlink")),
        (repodata, "exchange_names"),
    )  # fmt: skip

    def __init__(self, top: Path, patch: pytest.MonkeyPatch, omitted: str | None = None) -> None:
        self.top, self.omitted = top, omitted
        self.cuts: list[Cut] = []
        self.sites: list[str] = []
        self._announced: tuple[Any, ...] = ()
        self._numbers = {top.stat().st_ino: _TOP}  #: by inode
        self._kinds: frozenset[int] = frozenset((_TOP,))
        self._next = 1
        self._current = self._durable = self._scan()
        self._pending: tuple[Change, ...] = ()
        self._data = {self._numbers[path.stat().st_ino]: path.read_bytes() for path in top.rglob("*") if _is_file(path)}
        patch.setattr(os, "fsync", self._sync)
        for owner, name in self._WATCHED:
            patch.setattr(owner, name, self._wrap(name, getattr(owner, name)))
        self._record_cut("the beginning")

    def announce(self, what: Any = None) -> None:
        """Record a message to a party outside, which no power cut takes back."""
        self._announced = (*self._announced, what)
        self._record_cut(f"announcing {what!r}")

    def _scan(self) -> dict[int, dict[str, Entry]]:
        """Read all names. An inode is a new file's once it was seen without a name."""
        found: dict[int, dict[str, Entry]] = {}
        inodes = {self.top.stat().st_ino}
        waiting = [(_TOP, str(self.top))]
        for number, folder in waiting:
            names = found[number] = {}
            with os.scandir(folder) as entries:
                for each in sorted(entries, key=lambda entry: entry.name):
                    if each.is_symlink():
                        names[each.name] = os.readlink(each.path)
                        continue
                    inode = each.inode()
                    inodes.add(inode)
                    if inode not in self._numbers:
                        self._numbers[inode], self._next = self._next, self._next + 1
                    names[each.name] = entry = self._numbers[inode]
                    if each.is_dir():
                        self._kinds |= {entry}
                        waiting.append((entry, each.path))
        self._numbers = {inode: number for inode, number in self._numbers.items() if inode in inodes}
        return found

    def _notice(self) -> None:
        """Add what has changed since the last scan to what is pending."""
        before, self._current = self._current, self._scan()
        changed: dict[tuple[int, str], tuple[Entry | None, Entry | None]] = {}
        for folder, names in self._current.items():
            old = before.get(folder, {})
            for name in [*names, *(old.keys() - names.keys())]:
                if old.get(name) != names.get(name):
                    changed[folder, name] = old.get(name), names.get(name)
        self._pending += tuple(_join(changed))

    def _sync(self, descriptor: int) -> None:
        path = Path(os.readlink(f"/proc/self/fd/{descriptor}"))
        site = _call_site()
        if (path == self.top or self.top in path.parents) and site != "outside":
            site += f", {'folder' if path.is_dir() else 'file'} at depth {len(path.relative_to(self.top).parts)}"
            self.sites.append(site)
        if site == self.omitted:
            return
        self._notice()
        number = self._numbers.get(os.fstat(descriptor).st_ino)
        if number in self._kinds:
            self._flush(number)
        elif number is not None:
            self._data = {**self._data, number: Path(f"/proc/self/fd/{descriptor}").read_bytes()}
        self._record_cut(f"fsync of {path.name}")

    def _flush(self, folder: int) -> None:
        """Make the changes of a folder's names durable, and those that they follow from."""
        wanted, flushed = {folder}, list[Change]()
        for change in reversed(self._pending):
            if change.folders & wanted or any(each.follows_from(change) for each in flushed):
                flushed.append(change)
                wanted |= change.folders
        durable = {number: dict(names) for number, names in self._durable.items()}
        for change in reversed(flushed):
            change.apply(durable)
        self._durable = durable
        self._pending = tuple(change for change in self._pending if change not in flushed)

    def _wrap(self, name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **options: Any) -> Any:
            result = real(*args, **options)
            self._notice()
            self._record_cut(name)
            return result

        return call

    def _record_cut(self, effect: str) -> None:
        self._notice()
        cut = Cut(effect, self._announced, self._durable, self._pending, self._data, self._kinds)
        if not self.cuts or attr.astuple(cut, recurse=False)[1:] != attr.astuple(self.cuts[-1], recurse=False)[1:]:
            self.cuts.append(cut)


def _is_file(path: Path) -> bool:
    return path.is_file() and not path.is_symlink()


def _join(changed: Mapping[tuple[int, str], tuple[Entry | None, Entry | None]]) -> Iterator[Change]:
    """Make changes of names: what loses one name and gets another has moved, and both are one change."""
    lost = {old: key for key, (old, _) in changed.items() if isinstance(old, int)}
    gained = {new: key for key, (_, new) in changed.items() if isinstance(new, int)}
    joined: list[set[tuple[int, str]]] = [{lost[number], gained[number]} for number in lost.keys() & gained.keys()]
    groups: list[set[tuple[int, str]]] = []
    for group in [*joined, *({key} for key in changed)]:
        meeting = [each for each in groups if each & group]
        groups = [each for each in groups if not each & group] + [group.union(*meeting)]
    for group in groups:
        moved = {entry for key in group for entry in changed[key] if isinstance(entry, int)}
        yield Change({key: changed[key][1] for key in sorted(group)}, frozenset(moved))


def _call_site() -> str:
    """Name the product's lines that asked for a sync: in fs.py, and the one that called it."""
    frame, lines = sys._getframe(2), list[str]()
    while frame.f_back and Path(frame.f_code.co_filename).is_relative_to(_PRODUCT):
        name = Path(frame.f_code.co_filename).name
        if frame.f_code.co_name != "sync":
            line = linecache.getline(frame.f_code.co_filename, frame.f_lineno).strip()
            lines.insert(0, f"{name} {frame.f_code.co_name}: {line}")
        if name != "fs.py":
            break
        frame = frame.f_back
    return " > ".join(lines) or "outside"

# SPDX-License-Identifier: Apache-2.0
"""What bstore keeps only for a while: logs of attempts that decided nothing, uploads put aside, and marks about them.

Nothing here is in `repo/` or `scratch/`. What something else still stands on is left: the note beside an upload goes
after the upload, the mark of a request that was put again goes when no upload of its leg lies in `rejected/`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Callable

import attr

from reimzul.core import fs
from reimzul.core.store_paths import StorePaths

_NOTE = ".json"


@attr.frozen(kw_only=True)
class Retention:
    """For how many days; 0: for ever."""

    attempts: int = 0
    rejected: int = 0


@attr.frozen(kw_only=True)
class Removed:
    """How much is gone."""

    attempts: int = 0
    rejected: int = 0
    marks: int = 0

    def __bool__(self) -> bool:
        return bool(self.attempts or self.rejected or self.marks)

    def __str__(self) -> str:
        return (
            f"kept long enough and removed: the logs of {self.attempts} attempts, {self.rejected} uploads put aside, "
            f"{self.marks} marks"
        )


def sweep(store: StorePaths, retention: Retention, now: float, heed: Callable[[], None]) -> Removed:
    """Remove what is too old. `heed` is called often."""
    attempts = rejected = marks = 0
    if retention.attempts:
        attempts = _remove(_older(store.attempts, now - retention.attempts * 86400), heed)
    if retention.rejected:
        before = now - retention.rejected * 86400
        folders = [path for path in _older(store.rejected, before) if path.suffix != _NOTE]
        rejected = _remove(folders, heed)
        _remove([path for path in _older(store.rejected, before) if _is_alone(path)], heed)
        legs = {_leg(path.name) for path in store.rejected.iterdir()}
        marks = _remove([mark for mark in _older(store.put_again, before) if _leg(mark.name) not in legs], heed)
    return Removed(attempts=attempts, rejected=rejected, marks=marks)


def _older(folder: Path, before: float) -> Iterator[Path]:
    for path in sorted(folder.iterdir()):
        with contextlib.suppress(FileNotFoundError):  # another repogen looks too
            if fs.last_change(path) < before:
                yield path


def _remove(paths: list[Path] | Iterator[Path], heed: Callable[[], None]) -> int:
    count = 0
    for path in paths:
        heed()
        fs.remove(path)
        count += 1
    return count


def _is_alone(note: Path) -> bool:
    """Whether this is a note, and what it is about is gone."""
    return note.suffix == _NOTE and not note.with_name(note.name[: -len(_NOTE)]).exists()


def _leg(name: str) -> str:
    """`<build id>.<arch>`, with which the names of uploads and of marks begin."""
    return ".".join(name.split(".")[:2])

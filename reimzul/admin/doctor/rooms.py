# SPDX-License-Identifier: Apache-2.0
"""Folders and disks: whether the programs of this host can write where they have to, and how much room is left."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from reimzul.admin.doctor.access import writable
from reimzul.admin.doctor.check import Check, Result, fail, ok, warn
from reimzul.admin.doctor.host import BSTORE, BUILDER, CONTROLLER, Host
from reimzul.core.fs import FreeSpace

#: MiB and inodes below which a disk of the controller or of bstore is as good as full, and is nearly.
FULL, LOW = (200, 1_000), (2_048, 20_000)


def checks(host: Host) -> list[Check]:
    """A check for each folder that has to be written, and for each disk."""
    folders = [Check(name=f"folder.{name}", look=_Folder(host, path)) for name, path in _folders(host)]
    disks = [Check(name=f"disk.{name}", look=_Disk(host, name, path)) for name, path in _disks(host)]
    return folders + disks


def _folders(host: Host) -> Iterator[tuple[str, Path]]:
    settings = host.settings
    if host.has(CONTROLLER):
        yield "incoming", settings.incoming.folder
        yield "ledger", settings.notifier.ledger.parent
        yield "logfile", settings.logs.logfile.parent
    if host.has(BUILDER):
        yield "results", settings.worker.results


def _disks(host: Host) -> Iterator[tuple[str, Path]]:
    settings = host.settings
    if host.has(CONTROLLER):
        yield "incoming", settings.incoming.folder
        yield "ledger", settings.notifier.ledger.parent
    if host.has(BSTORE):
        yield "root", settings.bstore.root
    if host.has(BUILDER):
        yield "results", settings.worker.results
        yield "mock_roots", settings.worker.mock_roots


class _Folder:
    """Whether a folder can be written to."""

    def __init__(self, host: Host, folder: Path) -> None:
        self.host, self.folder = host, folder

    def __call__(self) -> Result:
        return writable(self.host, self.folder)


class _Disk:
    """How much is free under a folder; a builder's own settings say how much it needs."""

    def __init__(self, host: Host, name: str, folder: Path) -> None:
        self.limits = host.settings.worker if name in ("results", "mock_roots") else None
        self.folder = folder

    def __call__(self) -> Result:
        room = FreeSpace.measure(self.folder)
        said = f"{room.mib} MiB" + ("" if room.inodes is None else f" and {room.inodes} inodes") + " free"
        if self.limits is not None:
            lacking = list(room.shortfalls(self.limits.min_free_mib, self.limits.min_free_inodes))
            remedy = "make room, or mend [worker] min_free_mib and min_free_inodes"
            return fail(f"no job is taken: {'; '.join(lacking)}", remedy) if lacking else ok(said)
        if full := list(room.shortfalls(*FULL)):
            return fail("; ".join(full), "make room")
        low = list(room.shortfalls(*LOW))
        return warn("; ".join(low), "make room in time") if low else ok(said)

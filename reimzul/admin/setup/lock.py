# SPDX-License-Identifier: Apache-2.0
"""Lock against concurrent setups. Its file records the unit restarts and reloads that a failed run still has to do.

The file is in /run: after a boot all units run with their present files, and the record is gone with the file.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator

import attr

from reimzul.admin.setup.host import RootNeeded, System
from reimzul.core.errors import ReimzulError
from reimzul.core.fs import file_lock

FILE = "/run/reimzul-setup"


@attr.frozen(kw_only=True)
class PendingUnits:
    """Units that still run with the files of before."""

    restart: frozenset[str] = frozenset()
    reload: frozenset[str] = frozenset()

    def __bool__(self) -> bool:
        return bool(self.restart or self.reload)

    def without_unit(self, unit: str) -> PendingUnits:
        return PendingUnits(restart=self.restart - {unit}, reload=self.reload - {unit})


class SetupLock:
    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def read_pending(self) -> PendingUnits:
        try:
            record = json.loads(os.pread(self._descriptor, 65536, 0))
            return PendingUnits(restart=frozenset(record["restart"]), reload=frozenset(record["reload"]))
        except (ValueError, LookupError, TypeError):
            return PendingUnits()

    def write_pending(self, units: PendingUnits) -> None:
        record = json.dumps({"restart": sorted(units.restart), "reload": sorted(units.reload)}).encode()
        os.pwrite(self._descriptor, record, 0)
        os.ftruncate(self._descriptor, len(record))


@contextlib.contextmanager
def lock_setup(system: System) -> Iterator[SetupLock]:
    """Hold the host's lock. Raises `ReimzulError` if another setup holds it."""
    path = system.resolve(FILE)
    with contextlib.ExitStack() as stack:
        try:
            path.parent.mkdir(exist_ok=True)
            path.touch(mode=0o600)  # readable by others, it could be locked by them
            descriptor = stack.enter_context(file_lock(path))
        except PermissionError as error:
            raise RootNeeded(str(path)) from error
        if descriptor is None:
            raise ReimzulError(f"another reimzul setup runs here ({path} is locked)")
        yield SetupLock(descriptor)

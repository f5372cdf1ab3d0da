# SPDX-License-Identifier: Apache-2.0
"""What a set-up has begun: no other runs beside it, and what it was killed at, or what failed, the next one does.

A file in /run, locked for as long as we run: it is gone when the host is booted, and with it what was to be done.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
from collections.abc import Iterable, Iterator

import attr

from reimzul.admin.setup.system import RootNeeded, System
from reimzul.core.errors import ReimzulError

FILE = "/run/reimzul-setup"


@attr.frozen(kw_only=True)
class Pending:
    """Units whose files changed, and that do not run with them yet."""

    restart: frozenset[str] = frozenset()
    reload: frozenset[str] = frozenset()

    def __bool__(self) -> bool:
        return bool(self.restart or self.reload)


class Begun:
    """The file, held open and locked."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def pending(self) -> Pending:
        """What an earlier set-up left to be done."""
        try:
            left = json.loads(os.pread(self._descriptor, 65536, 0))
            return Pending(restart=frozenset(left["restart"]), reload=frozenset(left["reload"]))
        except (ValueError, LookupError, TypeError):
            return Pending()

    def keep(self, restart: Iterable[str], reload: Iterable[str]) -> None:
        """From now on this is to be done."""
        left = json.dumps({"restart": sorted(restart), "reload": sorted(reload)}).encode()
        os.pwrite(self._descriptor, left, 0)
        os.ftruncate(self._descriptor, len(left))

    def done(self) -> None:
        """Nothing is left."""
        os.ftruncate(self._descriptor, 0)


@contextlib.contextmanager
def begun(system: System) -> Iterator[Begun]:
    """A set-up of this host, alone. Raises `ReimzulError` where another runs."""
    path = system.at(FILE)
    try:
        path.parent.mkdir(exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except PermissionError as error:
        raise RootNeeded(str(path)) from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield Begun(descriptor)
    except BlockingIOError:
        raise ReimzulError(f"another reimzul setup runs here ({path} is locked)") from None
    finally:
        os.close(descriptor)

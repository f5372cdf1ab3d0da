# SPDX-License-Identifier: Apache-2.0
"""Lets pytest-xdist run test files side by side: each process has a network of its own, and each farm one process.

Tests choose free ports, and start programs that bind them a moment later. In one network two processes could choose the
same port, and a test that counts listeners would count those of another.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

_CLONE_NEWNET = 0x40000000  # sched.h
_NETWORK = "/proc/thread-self/ns/net"
#: A fixture of the folder `acceptance` that takes seconds to make, and lives as long as the session.
_SHARED = "farm"
#: The files of acceptance take longest and begin at once; the process that is ready first goes on with unit tests.
_ORDER = ("acceptance", "unit", "integration")

_libc = ctypes.CDLL(None, use_errno=True)


class Networks:
    """The network this process was started in, and its own."""

    def __init__(self) -> None:
        self._first = self._own = self._current = -1

    def enter_own(self) -> None:
        """Move into a network of loopback alone; without the right to make one, stay: ports then rarely clash."""
        first = os.open(_NETWORK, os.O_RDONLY)
        if _libc.unshare(_CLONE_NEWNET):
            os.close(first)
            return
        self._first, self._own = first, os.open(_NETWORK, os.O_RDONLY)
        self._current = self._own
        subprocess.run(["ip", "link", "set", "lo", "up"], check=True)

    def first(self) -> contextlib.AbstractContextManager[None]:
        """Within it, the network this process was started in, which may reach the internet."""
        return self._within(self._first)

    def own(self) -> contextlib.AbstractContextManager[None]:
        return self._within(self._own)

    @contextlib.contextmanager
    def _within(self, network: int) -> Iterator[None]:
        before = self._current
        self._switch_to(network)
        try:
            yield
        finally:
            self._switch_to(before)

    def _switch_to(self, network: int) -> None:
        if network != self._current and _libc.setns(network, _CLONE_NEWNET):
            raise OSError(ctypes.get_errno(), "setns")
        self._current = network


def group_by_file(items: list[pytest.Item]) -> None:
    """Mark tests that must share a process, for `--dist loadgroup`, and order them: see `_ORDER`."""
    items.sort(key=lambda item: _ORDER.index(Path(item.path).parent.name))
    sharing = {item.path for item in items if _shares_farm(item)}
    for item in items:
        item.add_marker(pytest.mark.xdist_group(_SHARED if item.path in sharing else Path(item.path).stem))


def _shares_farm(item: pytest.Item) -> bool:
    return Path(item.path).parent.name == "acceptance" and _SHARED in getattr(item, "fixturenames", ())

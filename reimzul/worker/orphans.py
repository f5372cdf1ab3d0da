# SPDX-License-Identifier: Apache-2.0
"""The mock that a killed worker left in a root: known by its process number and start time, and ended."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from pathlib import Path
from typing import Callable

from reimzul.core.errors import ReimzulError

#: Seconds an orphaned mock has to end: while it runs dnf it is root, and takes no signal of ours.
ORPHAN_TIMEOUT_SECONDS = 30.0
_GRACE_SECONDS, _POLL_SECONDS = 3.0, 0.2


class RootInUse(ReimzulError):
    """Another mock is in the root and does not end."""


def start_time(pid: int) -> str:
    """When a process was started, as no other process of this number was; empty where it is gone or hidden."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        return ""
    return "" if fields[0] == b"Z" else f"{boot} {int(fields[19])}"


def is_running(pid: int, birth: str) -> bool:
    """Whether the process still runs. One that has become root may be hidden from us, and is known by its refusal."""
    if not pid or not birth:
        return False
    now = start_time(pid)
    if now:
        return now == birth
    try:
        os.kill(pid, 0)
    except PermissionError:
        return True
    except ProcessLookupError:
        return False
    return False  # a zombie


def end_orphan(pid: int, birth: str, heed: Callable[[], None]) -> None:
    """End the mock that is recorded to be in a root, and all of its group. Raises `InUse` where it does not end."""
    began = time.monotonic()
    while is_running(pid, birth):
        rested = time.monotonic() - began
        if rested > ORPHAN_TIMEOUT_SECONDS:
            raise RootInUse(f"process {pid}, a mock of a worker that was killed, does not end")
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(pid, signal.SIGTERM if rested < _GRACE_SECONDS else signal.SIGKILL)
        heed()
        time.sleep(_POLL_SECONDS)

# SPDX-License-Identifier: Apache-2.0
"""Runs the parts of a farm as systemd would: it keeps a log of each and restarts what ends.

Every part runs under a subreaper of its own, so that what a part leaves behind ends with it, and all parts end with the
process that started them.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from devfarm import subreaper
from devfarm.plan import Layout
from devfarm.processes import Part
from reimzul.core.errors import ReimzulError
from reimzul.core.process import Process, spawn

#: Seconds a part has to end after SIGTERM, before its subreaper kills it; a worker ends a build in that time.
GRACE = 15
#: Seconds that the subreaper has in addition.
_MARGIN = 5
#: Seconds for all parts: our daemons end first, then what they need.
GRACE_OF_ALL = 2 * (GRACE + _MARGIN)
_POLL_SECONDS = 0.05


class PartFailed(ReimzulError):
    """A part of the farm does not work: its log shows why."""


class Supervisor:
    """Runs these parts from `start` to `stop`."""

    def __init__(self, layout: Layout, parts: Sequence[Part]) -> None:
        self.parts = parts
        self._layout = layout
        self._lock = threading.Lock()
        self._keepers: dict[str, Process] = {}  #: part -> its subreaper
        self._stacks: dict[str, contextlib.ExitStack] = {}  #: part -> what ends it
        self._held: set[str] = set()
        self._stopping = threading.Event()
        # The kernel ends a part with the thread that started it, so one thread starts them all, and outlives them.
        self._thread = threading.Thread(target=self._run, name="supervisor", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stopping.set()
        self._thread.join()

    def is_running(self, wait: float = 0) -> bool:
        """Whether it still runs, after so many seconds; return at once when it does not."""
        self._thread.join(wait)
        return self._thread.is_alive()

    def pid(self, part: str) -> int:
        """The process of a part itself, below its subreaper. Raises `PartFailed` where it does not run."""
        keeper = self._keepers.get(part)
        below = subreaper.children(keeper.pid) if keeper and keeper.poll() is None else []
        if not below:
            raise PartFailed(f"{part} does not run: {last_lines(self._layout.part_log(part))}")
        return below[0]

    def hold(self, part: str, number: int | None = None) -> None:
        """End a part until `release`, by SIGTERM or by sending another signal to its process."""
        with self._lock:
            self._held.add(part)
            if number is not None:
                os.kill(self.pid(part), number)
                self._keepers[part].wait()
            stack = self._stacks.pop(part, None)
        if stack:
            stack.close()

    def release(self, part: str) -> None:
        """Start a part that was held."""
        with self._lock:
            self._held.discard(part)

    def _run(self) -> None:
        try:
            while not self._stopping.wait(_POLL_SECONDS):
                for part in self.parts:
                    with self._lock:
                        if part.name not in self._held and not self._is_alive(part):
                            self._start(part)
        finally:
            for daemons in (True, False):
                stacks = [self._stacks[part.name] for part in self.parts
                          if part.is_daemon is daemons and part.name in self._stacks]  # fmt: skip
                with ThreadPoolExecutor(max_workers=len(self.parts)) as pool:
                    list(pool.map(contextlib.ExitStack.close, stacks))

    def _is_alive(self, part: Part) -> bool:
        return part.name in self._stacks and self._keepers[part.name].poll() is None

    def _start(self, part: Part) -> None:
        if former := self._stacks.pop(part.name, None):
            former.close()
        stack = self._stacks[part.name] = contextlib.ExitStack()
        log = stack.enter_context(self._layout.part_log(part.name).open("ab"))
        command = subreaper.wrap_command(part.argv, grace=GRACE, parent=os.getpid())
        env = {"TMPDIR": str(self._layout.tmp), **part.env}
        process = spawn(command, output=log, cwd=self._layout.state, env=env, grace=GRACE + _MARGIN)
        self._keepers[part.name] = stack.enter_context(process)


def last_lines(path: Path, lines: int = 5) -> str:
    """The end of a log, on one line."""
    try:
        text = path.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    except OSError:
        text = []
    return f"{' / '.join(text[-lines:]) or 'it printed nothing'} ({path})"

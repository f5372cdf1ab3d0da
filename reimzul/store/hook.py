# SPDX-License-Identifier: Apache-2.0
"""HK"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import attr

from reimzul.core import fs
from reimzul.core.config import RepogenSettings as Settings
from reimzul.core.errors import ReimzulError, describe_exit
from reimzul.core.process import Process, end_group, spawn, wait_until_exit
from reimzul.core.store_paths import StorePaths

log = logging.getLogger(__name__)

#: The pauses, in seconds, after one failure of the hook on a target, after two, and so on.
PAUSES_SECONDS = (5, 10, 30, 60, 120, 300)
#: Seconds between SIGTERM and SIGKILL for a hook that hangs; other targets wait that long at most.
_GRACE_SECONDS = 1.0
#: Seconds between two looks whether it has ended, where nothing else is to be done.
LOOK_SECONDS = 0.05
#: In an argument of the hook, what stands for the folder and for the target.
_FOLDER, _TARGET = "{repodata}", "{target}"
_TAIL_BYTES = 4096


class HookFailed(ReimzulError):
    """The hook failed or hung, or left repodata that nobody could use: the old repodata stays."""


@attr.frozen(kw_only=True)
class HookFailure:
    """The failures of a target's hook since it last succeeded."""

    count: int
    at: float  #: of the last one, seconds since 1970
    reason: str

    @property
    def pause(self) -> int:
        """Seconds from the last failure to the next try."""
        return PAUSES_SECONDS[min(self.count, len(PAUSES_SECONDS)) - 1]

    def seconds_to_retry(self, now: float) -> float:
        """Seconds to the next try; 0 where the clock was put back."""
        return self.at + self.pause - now if now >= self.at else 0.0


def read_failure(path: Path) -> HookFailure | None:
    """What a `state/<target>.hook` tells; None where there is none, or it is damaged."""
    try:
        raw = json.loads(path.read_bytes())
        return HookFailure(count=max(1, int(raw["count"])), at=float(raw["at"]), reason=str(raw["reason"]))
    except (OSError, ValueError, TypeError, KeyError, OverflowError):
        return None


def record_failure(path: Path, reason: str) -> HookFailure:
    """Record one more failure."""
    before = read_failure(path)
    failure = HookFailure(count=before.count + 1 if before else 1, at=time.time(), reason=reason)
    fs.write_atomic(path, json.dumps(attr.asdict(failure), indent=1) + "\n")
    return failure


class RunningHook:
    """The hook at work."""

    def __init__(self, process: Process, program: str, seconds: float, output: Path) -> None:
        self._process, self._program, self._seconds, self._output = process, program, seconds, output
        self._deadline = time.monotonic() + seconds

    def has_ended(self, wait: float = 0.0) -> bool:
        """Whether it has succeeded; waits that long for it. Raises `HookFailed`."""
        if not wait_until_exit(self._process, wait):
            if time.monotonic() > self._deadline:
                raise HookFailed(f"{self._program} was ended after {self._seconds:g} s{self._output_suffix()}")
            return False
        end_group(
            self._process, 0.0
        )  # with all that it left in its group: nothing of it writes into what becomes visible
        code = self._process.returncode
        if code:
            raise HookFailed(f"{self._program} {describe_exit(code)}{self._output_suffix()}")
        return True

    def wait(self, seconds: float) -> None:
        """Wait for its end, at most that long."""
        wait_until_exit(self._process, seconds)

    def _output_suffix(self) -> str:
        try:
            said = self._output.read_bytes()[-_TAIL_BYTES:].decode("utf-8", "replace")
        except OSError:
            return ""
        last = " / ".join(said.strip().splitlines()[-3:])
        return f": {last}" if last else ""


def hook_argv(settings: Settings, folder: Path, target: str) -> list[str]:
    """The hook's command line; the folder is its last word where no other word names it."""
    words = [word.replace(_FOLDER, str(folder)).replace(_TARGET, target) for word in settings.after_createrepo]
    return words if any(_FOLDER in word for word in settings.after_createrepo) else [*words, str(folder)]


@contextlib.contextmanager
def run_hook(settings: Settings, store: StorePaths, target: str, folder: Path) -> Iterator[RunningHook]:
    """The hook at work on a folder; leaving the block ends it. Raises `HookFailed` where it cannot be started."""
    argv, output = hook_argv(settings, folder, target), store.hook_log(target)
    env = {"REIMZUL_TARGET": target, "REIMZUL_REPODATA": str(folder)}
    with contextlib.ExitStack() as stack:
        try:
            said = stack.enter_context(output.open("wb"))
            # it does not inherit the lock: what it leaves behind (an agent of gpg's) would hold it for ever
            process = stack.enter_context(spawn(argv, output=said, cwd=folder, env=env, grace=_GRACE_SECONDS))
        except (OSError, ReimzulError) as error:
            raise HookFailed(str(error)) from error
        yield RunningHook(process, os.path.basename(argv[0]), settings.after_createrepo_timeout, output)


def await_hook(running: RunningHook, heed: Callable[[], None]) -> None:
    """Wait for the hook to succeed. Raises `HookFailed`, and what `heed` raises."""
    while not running.has_ended(LOOK_SECONDS):
        heed()

# SPDX-License-Identifier: Apache-2.0
"""`[repogen] after_createrepo`: the farm's own program, run on new repodata before it becomes visible.

If it fails or hangs, the old repodata stays, and `state/<target>.hook` records the reason and the time of the failure.
All repogen workers of a store obey that file.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Iterator
from pathlib import Path

import attr

from reimzul.core import fs
from reimzul.core.errors import ReimzulError, describe_exit
from reimzul.core.process import Process, end_group, spawn, wait_until_exit
from reimzul.core.retry import Backoff
from reimzul.core.settings import RepogenSettings
from reimzul.core.store_paths import StorePaths

_BACKOFF = Backoff(first=5, cap=300)
#: Seconds between SIGTERM and SIGKILL for a hook that hangs; other targets wait that long at most.
_GRACE_SECONDS = 1.0
#: Placeholders in the hook's arguments.
_FOLDER, _TARGET = "{repodata}", "{target}"
_TAIL_BYTES = 4096


class HookFailed(ReimzulError):
    """The hook failed or hung, or left unusable repodata: the old repodata stays."""


@attr.frozen(kw_only=True)
class HookFailure:
    """The failures of a target's hook since it last succeeded."""

    count: int
    at: float  #: of the last one, seconds since 1970
    reason: str

    @property
    def pause(self) -> int:
        """Seconds from the last failure to the next try."""
        return int(_BACKOFF.pause_after(self.count))

    def seconds_to_retry(self, now: float) -> float:
        """Seconds to the next try; 0 if the clock was set back."""
        return self.at + self.pause - now if now >= self.at else 0.0


def read_failure(path: Path) -> HookFailure | None:
    """Read a `state/<target>.hook`; None if it is missing or damaged."""
    try:
        raw = json.loads(path.read_bytes())
        return HookFailure(count=max(1, int(raw["count"])), at=float(raw["at"]), reason=str(raw["reason"]))
    except (OSError, ValueError, TypeError, KeyError, OverflowError):
        return None


def record_failure(path: Path, reason: str) -> HookFailure:
    before = read_failure(path)
    failure = HookFailure(count=before.count + 1 if before else 1, at=time.time(), reason=reason)
    fs.write_atomic(path, json.dumps(attr.asdict(failure), indent=1) + "\n")
    return failure


@attr.frozen(kw_only=True)
class RunningHook:
    """The process of a hook, which ends at a deadline."""

    process: Process
    program: str
    timeout: float  #: seconds
    output: Path
    deadline: float  #: by time.monotonic

    def has_succeeded(self, wait: float = 0.0) -> bool:
        """Wait so many seconds for the hook; return whether it has ended well. Raises `HookFailed`."""
        if not wait_until_exit(self.process, wait):
            if time.monotonic() > self.deadline:
                raise HookFailed(f"{self.program} was ended after {self.timeout:g} s{self._output_suffix()}")
            return False
        # What it left in its process group ends too, so that nothing writes into repodata that is visible.
        end_group(self.process, 0.0)
        if self.process.returncode:
            raise HookFailed(f"{self.program} {describe_exit(self.process.returncode)}{self._output_suffix()}")
        return True

    def wait(self, seconds: float) -> None:
        wait_until_exit(self.process, seconds)

    def _output_suffix(self) -> str:
        lines = last_lines(self.output)
        return f": {lines}" if lines else ""


def last_lines(output: Path, lines: int = 3) -> str:
    """The last lines of a program's output, joined to one."""
    try:
        with output.open("rb") as stream:
            stream.seek(-min(_TAIL_BYTES, output.stat().st_size), os.SEEK_END)
            tail = stream.read().decode("utf-8", "replace")
    except OSError:
        return ""
    return " / ".join(tail.strip().splitlines()[-lines:])


def hook_argv(settings: RepogenSettings, folder: Path, target: str) -> list[str]:
    """The hook's command line; the folder is its last argument unless another one names it."""
    argv = [word.replace(_FOLDER, str(folder)).replace(_TARGET, target) for word in settings.after_createrepo]
    return argv if any(_FOLDER in word for word in settings.after_createrepo) else [*argv, str(folder)]


@contextlib.contextmanager
def run_hook(settings: RepogenSettings, store: StorePaths, target: str, folder: Path) -> Iterator[RunningHook | None]:
    """Run the hook, if there is one, on a folder; leaving the block ends it. Raises `HookFailed` if it cannot start."""
    if not settings.after_createrepo:
        yield None
        return
    argv, output = hook_argv(settings, folder, target), store.hook_log(target)
    env = {"REIMZUL_TARGET": target, "REIMZUL_REPODATA": str(folder)}
    with contextlib.ExitStack() as stack:
        try:
            log = stack.enter_context(output.open("wb"))
            # The hook does not inherit the lock: what it leaves behind, as gpg's agent, would hold it for ever.
            process = stack.enter_context(spawn(argv, output=log, cwd=folder, env=env, grace=_GRACE_SECONDS))
        except (OSError, ReimzulError) as error:
            raise HookFailed(str(error)) from error
        yield RunningHook(
            process=process,
            program=os.path.basename(argv[0]),
            timeout=settings.after_createrepo_timeout,
            output=output,
            deadline=time.monotonic() + settings.after_createrepo_timeout,
        )

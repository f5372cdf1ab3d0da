# SPDX-License-Identifier: Apache-2.0
"""A small init for one program: what the program leaves behind ends with it, and it ends with whoever started us.

systemd ends a service's whole cgroup. Without systemd, the orphans of a killed worker (mock, rpmbuild, a compiler, each
in a session of its own) become children of the nearest subreaper, which is this program, and it kills them. All parts
of a farm run under one, and the farm as a whole under another, so a `kill -9` of anything leaves nothing behind.

    python -IS subreaper.py GRACE PARENT PROGRAM [ARGUMENT…]

GRACE is how many seconds the program has after SIGTERM or SIGINT, PARENT the pid that must still be our parent
(0: not known). Signals are forwarded; the exit status is the program's, 128 + n for a signal.

It is run by its path, with nothing but the standard library, so that it starts in a few milliseconds and stays
small. It needs Linux (prctl(2): PR_SET_CHILD_SUBREAPER, PR_SET_PDEATHSIG).
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import sys
import time
from collections.abc import Iterator, Sequence

_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36
_FORWARDED = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2)
_BLOCKED = frozenset({signal.SIGCHLD, *_FORWARDED})
#: Seconds in which SIGKILL has to work; only a process that waits for a dead disk takes longer.
_KILL_SECONDS = 30.0
_EXIT_NOT_STARTED = 127


def wrap_command(argv: Sequence[str], *, grace: float, parent: int = 0) -> list[str]:
    return [sys.executable, "-IS", os.path.abspath(__file__), f"{grace:g}", str(parent), *argv]


def main(grace: str, parent: str, *argv: str) -> None:
    _prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    if int(parent) and os.getppid() != int(parent):
        sys.exit(_EXIT_NOT_STARTED)  # it died before we could ask for a signal at its death
    fork_under_subreaper(float(grace), death_signal=signal.SIGKILL)
    try:
        os.execvp(argv[0], argv)
    except OSError as error:
        os.write(2, f"subreaper: cannot run {argv[0]}: {error.strerror}\n".encode())
    os._exit(_EXIT_NOT_STARTED)


def fork_under_subreaper(grace: float, death_signal: int = signal.SIGTERM) -> None:
    """Return in a child process; the calling process becomes the child's subreaper and never returns.

    The child is sent `death_signal` if the subreaper dies first.
    """
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _BLOCKED)
    parent = os.getpid()
    child = os.fork()
    if child:
        code = os.waitstatus_to_exitcode(_wait(child, grace))
        _kill_descendants()
        os._exit(code if code >= 0 else 128 - code)
    _prctl(_PR_SET_PDEATHSIG, death_signal)
    if os.getppid() != parent:
        os._exit(_EXIT_NOT_STARTED)
    signal.pthread_sigmask(signal.SIG_SETMASK, before)


def descendants(ancestor: int) -> list[int]:
    """Every process below `ancestor`, whatever its session, the nearest first."""
    below: dict[int, list[int]] = {}
    for pid, parent in _all_processes():
        below.setdefault(parent, []).append(pid)
    found = list(below.get(ancestor, ()))
    for pid in found:  # grows during the loop
        found += below.get(pid, ())
    return found


def children(pid: int) -> list[int]:
    """The children of a process, the oldest first."""
    return sorted(child for child, parent in _all_processes() if parent == pid)


def _prctl(option: int, value: int) -> None:
    ctypes.CDLL(None, use_errno=True).prctl(option, value, 0, 0, 0)


def _wait(child: int, grace: float) -> int:
    """Forward signals until the program ends; kill it if it outlives its grace. Returns its wait status."""
    deadline = float("inf")
    while True:
        remaining = min(3600.0, max(0.0, deadline - time.monotonic()))
        received = signal.sigtimedwait(_BLOCKED, remaining)
        if received is None:
            if time.monotonic() >= deadline:
                _send(child, signal.SIGKILL)
                deadline = time.monotonic() + 1
        elif received.si_signo == signal.SIGCHLD:
            for pid, status in _reap():
                if pid == child:
                    return status
        else:
            _send(child, received.si_signo)
            if received.si_signo in (signal.SIGTERM, signal.SIGINT):
                deadline = min(deadline, time.monotonic() + grace)


def _kill_descendants() -> None:
    """Kill until nothing is left: the children of a killed process become ours."""
    deadline = time.monotonic() + _KILL_SECONDS
    while time.monotonic() < deadline:
        for pid in descendants(os.getpid()):
            _send(pid, signal.SIGKILL)
        for _ in _reap():
            continue
        try:
            os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        except ChildProcessError:
            return
        signal.sigtimedwait({signal.SIGCHLD}, 0.02)


def _reap() -> Iterator[tuple[int, int]]:
    """Reap every child that has ended: its pid and wait status."""
    with contextlib.suppress(ChildProcessError):
        while (ended := os.waitpid(-1, os.WNOHANG))[0]:
            yield ended


def _send(pid: int, number: int) -> None:
    # it may have ended, or belong to another user: mock while it runs dnf
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.kill(pid, number)


def _all_processes() -> Iterator[tuple[int, int]]:  # each with its parent
    for name in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError), open(f"/proc/{name}/stat", "rb") as stat:
            # `pid (name) state ppid …`, where the name may hold spaces and brackets
            yield int(name), int(stat.read().rpartition(b")")[2].split()[1])


if __name__ == "__main__":
    main(*sys.argv[1:])

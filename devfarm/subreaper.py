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
_FORWARDED = (
    signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2,
)  # fmt: skip
_BLOCKED = frozenset({signal.SIGCHLD, *_FORWARDED})
#: Seconds in which SIGKILL has to work; only a process that waits for a dead disk takes longer.
_KILL_SECONDS = 30.0
_EXIT_NOT_STARTED = 127


def wrap_command(argv: Sequence[str], *, grace: float, parent: int = 0) -> list[str]:
    """The command line that runs `argv` under a subreaper."""
    return [sys.executable, "-IS", os.path.abspath(__file__), f"{grace:g}", str(parent), *argv]


def run(argv: Sequence[str], *, grace: float, parent: int) -> int:
    """Run a program as its subreaper, in this process; return its exit status."""
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)
    _prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    if parent and os.getppid() != parent:
        sys.exit(_EXIT_NOT_STARTED)  # it died before we could ask for a signal at its death
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _BLOCKED)
    child = _fork(signal.SIGKILL)
    if child == 0:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        try:
            os.execvp(argv[0], list(argv))
        except OSError as error:
            os.write(2, f"subreaper: cannot run {argv[0]}: {error.strerror}\n".encode())
        os._exit(_EXIT_NOT_STARTED)
    return _wait_and_clean_up(child, grace)


def fork_under_subreaper(grace: float) -> None:
    """Return in a child process; the calling process becomes the child's subreaper and never returns."""
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _BLOCKED)
    child = _fork(signal.SIGTERM)
    if child:
        os._exit(_wait_and_clean_up(child, grace))
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


def _fork(death_signal: int) -> int:
    """Fork; the child is sent `death_signal` if this process dies first."""
    parent = os.getpid()
    child = os.fork()
    if child == 0:
        _prctl(_PR_SET_PDEATHSIG, death_signal)
        if os.getppid() != parent:
            os._exit(_EXIT_NOT_STARTED)
    return child


def _wait_and_clean_up(child: int, grace: float) -> int:
    """Wait for the program, then kill what it left behind; return its exit status."""
    code = os.waitstatus_to_exitcode(_wait(child, grace))
    _kill_descendants()
    return code if code >= 0 else 128 - code


def _wait(child: int, grace: float) -> int:
    """Forward signals until the program ends; kill it if it outlives its grace. Returns its wait status."""
    deadline = None
    while True:
        remaining = 3600.0 if deadline is None else max(0.0, deadline - time.monotonic())
        received = signal.sigtimedwait(_BLOCKED, remaining)
        if received is None and deadline is not None:
            _send(child, signal.SIGKILL)
            deadline = time.monotonic() + 1
        elif received is not None and received.si_signo == signal.SIGCHLD:
            for pid, status in _reap():
                if pid == child:
                    return status
        elif received is not None:
            _send(child, received.si_signo)
            if received.si_signo in (signal.SIGTERM, signal.SIGINT) and deadline is None:
                deadline = time.monotonic() + grace


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


def _all_processes() -> Iterator[tuple[int, int]]:
    """Every process and its parent."""
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                with open(f"/proc/{name}/stat", "rb") as stat:
                    # `pid (name) state ppid …`, where the name may hold spaces and brackets
                    yield int(name), int(stat.read().rpartition(b")")[2].split()[1])
            except (FileNotFoundError, ProcessLookupError):
                continue


if __name__ == "__main__":
    sys.exit(run(sys.argv[3:], grace=float(sys.argv[1]), parent=int(sys.argv[2])))

# SPDX-License-Identifier: Apache-2.0
"""A small init for one program: what the program leaves behind ends with it, and it ends with whoever started us.

systemd ends a service's whole cgroup. Where there is no systemd, orphans of a killed worker (mock, rpmbuild,
a compiler, each in a session of its own) are handed to the nearest subreaper, which is this program, and it kills
them. All parts of a farm run under one, and the farm as a whole under another: that is why a `kill -9` of anything
leaves nothing behind.

    python -IS reaper.py GRACE PARENT PROGRAM [ARGUMENT…]

GRACE is how many seconds the program has after SIGTERM or SIGINT, PARENT the pid that must still be our parent
(0: not known). Signals are handed on; the exit status is the program's, 128 + n for a signal.

It is run by its path, with nothing but the standard library, so that it starts in a few milliseconds and stays
small. Linux alone has what it needs (prctl(2): PR_SET_CHILD_SUBREAPER, PR_SET_PDEATHSIG).
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import time
from collections.abc import Iterator, Sequence

_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36

#: Handed on to the program.
_HANDED_ON = (
    signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2,
)  # fmt: skip
_WATCHED = frozenset({signal.SIGCHLD, *_HANDED_ON})
#: Seconds in which SIGKILL has to work; only a process that waits for a dead disk takes longer.
_KILLED = 30.0
_NOT_STARTED = 127


def command(argv: Sequence[str], *, grace: float, parent: int = 0, python: str = sys.executable) -> list[str]:
    """The command line that runs `argv` under a reaper."""
    return [python, "-IS", os.path.abspath(__file__), f"{grace:g}", str(parent), *argv]


def run(argv: Sequence[str], *, grace: float, parent: int = 0) -> int:
    """Run a program as its reaper, in this process; its exit status."""
    prctl = ctypes.CDLL(None, use_errno=True).prctl
    _become_reaper(prctl)
    _die_with_our_parent(prctl, parent)
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _WATCHED)
    child = _fork_off(prctl, signal.SIGKILL)
    if child == 0:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        _become(argv)
    return _outlive(child, grace)


def stay_behind(grace: float) -> None:
    """Go on in a child; the process itself stays behind as the child's reaper and never returns from here."""
    prctl = ctypes.CDLL(None, use_errno=True).prctl
    _become_reaper(prctl)
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _WATCHED)
    child = _fork_off(prctl, signal.SIGTERM)
    if child:
        os._exit(_outlive(child, grace))
    signal.pthread_sigmask(signal.SIG_SETMASK, before)


def descendants(ancestor: int) -> list[int]:
    """Every process below `ancestor`, whatever its session, those nearest to it first."""
    below: dict[int, list[int]] = {}
    for pid, parent in _all_processes():
        below.setdefault(parent, []).append(pid)
    found = list(below.get(ancestor, ()))
    for pid in found:  # grows while we walk it
        found += below.get(pid, ())
    return found


def children(pid: int) -> list[int]:
    """The children of a process, the oldest first."""
    return sorted(child for child, parent in _all_processes() if parent == pid)


def _become_reaper(prctl: ctypes._NamedFuncPointer) -> None:
    prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def _die_with_our_parent(prctl: ctypes._NamedFuncPointer, parent: int) -> None:
    prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
    if parent and os.getppid() != parent:
        sys.exit(_NOT_STARTED)  # it died before we could ask to be told


def _fork_off(prctl: ctypes._NamedFuncPointer, at_our_death: int) -> int:
    """Fork; the child is sent `at_our_death` should we die first."""
    ourselves = os.getpid()
    child = os.fork()
    if child == 0:
        prctl(_PR_SET_PDEATHSIG, at_our_death, 0, 0, 0)
        if os.getppid() != ourselves:
            os._exit(_NOT_STARTED)
    return child


def _become(argv: Sequence[str]) -> None:
    try:
        os.execvp(argv[0], list(argv))
    except OSError as error:
        os.write(2, f"reaper: cannot run {argv[0]}: {error.strerror}\n".encode())
    os._exit(_NOT_STARTED)


def _outlive(child: int, grace: float) -> int:
    """Tend the program until it has ended, then end what it left behind."""
    status = _tend(child, grace)
    end_descendants()
    code = os.waitstatus_to_exitcode(status)
    return code if code >= 0 else 128 - code


def _tend(child: int, grace: float) -> int:
    deadline = None
    while True:
        left = 3600.0 if deadline is None else max(0.0, deadline - time.monotonic())
        told = signal.sigtimedwait(_WATCHED, left)
        if told is None and deadline is not None:
            _send(child, signal.SIGKILL)
            deadline = time.monotonic() + 1
        elif told is not None and told.si_signo == signal.SIGCHLD:
            for pid, status in _ended():
                if pid == child:
                    return status
        elif told is not None:
            _send(child, told.si_signo)
            if told.si_signo in (signal.SIGTERM, signal.SIGINT) and deadline is None:
                deadline = time.monotonic() + grace


def end_descendants() -> None:
    """Kill what is below us until nothing is: the children of the killed become ours."""
    deadline = time.monotonic() + _KILLED
    while time.monotonic() < deadline:
        for pid in descendants(os.getpid()):
            _send(pid, signal.SIGKILL)
        for _ in _ended():
            continue
        if not _have_children():
            return
        signal.sigtimedwait({signal.SIGCHLD}, 0.02)


def _have_children() -> bool:
    try:
        os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return False
    return True


def _ended() -> Iterator[tuple[int, int]]:
    """Take leave of every child that has ended: its pid and wait status."""
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return
        if pid == 0:
            return
        yield pid, status


def _send(pid: int, number: int) -> None:
    try:
        os.kill(pid, number)
    except (ProcessLookupError, PermissionError):
        pass  # it was quicker, or has become another user's: mock while it runs dnf


def _all_processes() -> Iterator[tuple[int, int]]:
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

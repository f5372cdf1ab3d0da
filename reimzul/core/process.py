# SPDX-License-Identifier: Apache-2.0
"""Running another program: an argument list, a process group of its own, a made environment, a time limit.

The one place that imports `subprocess`. There is never a shell. A program's end is noticed at once (a pidfd wakes
us, not a poll), and whatever way we leave `run`, the program's whole process group has ended before.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Callable, NoReturn, Union

from reimzul.core.errors import ProcessStalled, ProgramFailed, ProgramNotFound, TimedOut
from reimzul.core.retry import CancelToken

Argv = Sequence[Union[str, "os.PathLike[str]"]]
Process = subprocess.Popen[bytes]
#: For `output`: what the program prints is read from the process's `stdout`.
PIPE = subprocess.PIPE

#: Seconds between SIGTERM and SIGKILL when a program has to end.
GRACE_SECONDS = 5.0
#: What a program may know of our environment, beside REIMZUL_*; the rest stays with us.
PASSED_VARIABLES = (
    "PATH", "HOME", "USER", "LOGNAME", "TMPDIR", "TZ", "SSH_AUTH_SOCK",
    "http_proxy", "https_proxy", "no_proxy", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY",
)  # fmt: skip


def environment(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """The environment a program gets: a few of our variables, a fixed locale, and `extra`."""
    passed = {
        name: text for name, text in os.environ.items() if name in PASSED_VARIABLES or name.startswith("REIMZUL_")
    }
    return {"PATH": os.defpath, **passed, "LANG": "C.UTF-8", "LC_ALL": "C.UTF-8", **(extra or {})}


@contextlib.contextmanager
def spawn(
    argv: Argv,
    *,
    output: int | IO[bytes] = subprocess.DEVNULL,
    errors: int | IO[bytes] = subprocess.STDOUT,
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
    grace: float = GRACE_SECONDS,
    inherit: Sequence[int] = (),
) -> Iterator[subprocess.Popen[bytes]]:
    """A running program in a session and process group of its own; leaving the block ends all of the group.

    It gets the descriptors in `inherit`: a lock among them lasts as long as the program does, also when we are
    killed. Raises `ProgramNotFound` where it cannot be started.
    """
    try:
        process = subprocess.Popen(
            [os.fspath(word) for word in argv],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=errors,
            cwd=cwd,
            env=environment(env),
            start_new_session=True,
            pass_fds=inherit,
        )
    except OSError as error:
        raise ProgramNotFound(f"cannot run {os.fspath(argv[0])}: {error.strerror}") from error
    try:
        yield process
    finally:
        end_group(process, grace)


def end_group(process: subprocess.Popen[bytes], grace: float = GRACE_SECONDS) -> None:
    """End a program's whole group: kindly, and after `grace` seconds not; then have its status.

    What it left in its group is ended too, while the program itself still is a zombie: until then nobody else can
    have its number. A program that became root meanwhile (mock while it runs dnf, mock.md) refuses our signals: we
    wait for it, and signal again, for as long as it is there.
    """
    if process.returncode is not None:
        return
    if not wait_until_exit(process, 0):
        _signal(process.pid, signal.SIGTERM)
        wait_until_exit(process, grace)
    while not wait_until_exit(process, 0):
        _signal(process.pid, signal.SIGKILL)
        wait_until_exit(process, 1.0)
    _signal(process.pid, signal.SIGKILL)
    process.wait()


def _signal(group: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(group, number)


def wait_until_exit(process: subprocess.Popen[bytes], seconds: float) -> bool:
    """Wait at most `seconds` for the program; true when it has ended. Returns the moment it does.

    It is not reaped: `end` does that.
    """
    if _has_exited(process):
        return True
    try:
        descriptor = os.pidfd_open(process.pid)
    except (AttributeError, OSError):  # Linux before 5.3, or a Python built on one
        return _poll_until_exit(process, seconds)
    try:
        poll = select.poll()
        poll.register(descriptor, select.POLLIN)
        poll.poll(max(0.0, seconds) * 1000)  # milliseconds
    finally:
        os.close(descriptor)
    return _has_exited(process)


def _has_exited(process: subprocess.Popen[bytes]) -> bool:
    if process.returncode is not None:
        return True
    try:
        return os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None
    except ChildProcessError:  # somebody reaped it: its Popen knows, or never will
        process.poll()
        return True


def _poll_until_exit(process: subprocess.Popen[bytes], seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while not _has_exited(process) and time.monotonic() < deadline:
        time.sleep(0.01)
    return _has_exited(process)


def run(
    argv: Argv,
    *,
    output: Path | None = None,
    errors: Path | None = None,
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
    timeout: float | None = None,
    cancel: CancelToken | None = None,
    begun: Callable[[int], None] | None = None,
    every: float = 0.25,
    grace: float = GRACE_SECONDS,
    inherit: Sequence[int] = (),
    idle: float | None = None,
) -> int:
    """Run a program to its end and return its exit status as `subprocess` gives it (negative: a signal).

    Its stdout is appended to `output`, its stderr to `errors` (both to `output` where only that is given).
    `begun` is called with the program's process number. `cancel` is asked every `every` seconds; if it raises, the
    program is ended. Raises `TimedOut`
    after `timeout` seconds, `ProcessStalled` when it used no processor for `idle` seconds, and `ProgramNotFound`.
    """
    started = time.monotonic()
    with contextlib.ExitStack() as stack:
        out = stack.enter_context(output.open("ab")) if output else subprocess.DEVNULL
        err = stack.enter_context(errors.open("ab")) if errors else subprocess.STDOUT
        process = stack.enter_context(
            spawn(argv, output=out, errors=err, cwd=cwd, env=env, grace=grace, inherit=inherit)
        )
        if begun is not None:
            begun(process.pid)
        work = CpuIdleTimer(process.pid)
        while not wait_until_exit(process, every):
            if idle is not None and work.idle_seconds() > idle:
                raise ProcessStalled(Path(argv[0]).name, idle)
            if timeout is not None and time.monotonic() - started > timeout:
                raise TimedOut(Path(argv[0]).name, timeout)
            if cancel is not None:
                cancel.raise_if_cancelled()
        end_group(process, grace)
        return int(process.returncode)


def exec_program(argv: Argv) -> NoReturn:
    """End as another program: it has our terminal, our environment and our exit code. Raises `ProgramNotFound`."""
    sys.stdout.flush()
    sys.stderr.flush()
    words = [os.fspath(word) for word in argv]
    try:
        os.execv(words[0], words)
    except OSError as error:
        raise ProgramNotFound(f"cannot run {words[0]}: {error.strerror}") from error


class CpuIdleTimer:
    """What a program does, by the processor time it used; not that of programs it runs."""

    def __init__(self, pid: int) -> None:
        self._stat = Path(f"/proc/{pid}/stat")
        self._used = -1
        self._since = time.monotonic()

    def idle_seconds(self) -> float:
        """Seconds since it was first seen to have used as much as it has now."""
        with contextlib.suppress(OSError):  # it has just ended
            # utime and stime, behind the name, which may hold spaces and brackets
            used = sum(map(int, self._stat.read_bytes().rpartition(b")")[2].split()[11:13]))
            if used != self._used:
                self._used, self._since = used, time.monotonic()
        return time.monotonic() - self._since


def output_of(
    argv: Argv,
    *,
    timeout: float = 60,
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
) -> str:
    """What a program that must succeed prints on stdout, as text. When it has ended, so has all of its group.

    Raises `ProgramFailed` with the last lines of its stderr, `TimedOut`, `ProgramNotFound`.
    """
    with _open_memory_file() as said, _open_memory_file() as complaint:
        with spawn(argv, output=said, errors=complaint, cwd=cwd, env=env) as process:
            if not wait_until_exit(process, timeout):
                raise TimedOut(Path(argv[0]).name, timeout)
        if process.returncode:
            last = " / ".join(_read_all(complaint).strip().splitlines()[-3:])
            raise ProgramFailed(Path(argv[0]).name, process.returncode, last)
        return _read_all(said)


def _open_memory_file() -> IO[bytes]:
    """A file that is nowhere. Of a pipe the end would be seen when the last process of the group has closed it."""
    return open(os.memfd_create("said"), "w+b")


def _read_all(stream: IO[bytes]) -> str:
    stream.seek(0)
    return stream.read().decode(errors="replace")

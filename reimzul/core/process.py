# SPDX-License-Identifier: Apache-2.0
"""Running other programs: never by a shell, each in its own process group, with a prepared environment and a timeout.

Only this module imports `subprocess`. The end of a program is noticed at once, through a pidfd. When `run` returns or
raises, the program's whole process group has ended.
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
from typing import IO, Callable, Union

from reimzul.core.errors import ProcessStalled, ProgramFailed, ProgramNotFound, TimedOut
from reimzul.core.retry import CancelToken

Argv = Sequence[Union[str, "os.PathLike[str]"]]
Process = subprocess.Popen[bytes]
#: For `output` of `spawn`: the caller reads the process's `stdout`.
PIPE = subprocess.PIPE

#: Seconds between SIGTERM and SIGKILL.
GRACE_SECONDS = 5.0
#: The environment variables that programs get, besides REIMZUL_*.
PASSED_VARIABLES = (
    "PATH", "HOME", "USER", "LOGNAME", "TMPDIR", "TZ", "SSH_AUTH_SOCK",
    "http_proxy", "https_proxy", "no_proxy", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY",
)  # fmt: skip


def environment(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """The environment for a program: a few of our variables, a fixed locale, and `extra`."""
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
    """Start a program in its own session and process group; end the group when the block is left.

    The program gets the descriptors in `inherit`; a lock among them is held until it ends, even if we are killed.
    Raises `ProgramNotFound`.
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
    """End a program's process group by SIGTERM, after `grace` seconds by SIGKILL, and reap the program.

    Its children are killed while the program is still a zombie: until then its number cannot be reused. mock becomes
    root while it runs dnf, and then we may not signal it; we wait and signal again until it has ended.
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
    """Wait until a program exits, at most `seconds`; return whether it has. `end_group` reaps it."""
    if _has_exited(process):
        return True
    try:
        descriptor = os.pidfd_open(process.pid)
    except (AttributeError, OSError):  # Linux before 5.3, or a Python built there
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
    except ChildProcessError:  # already reaped
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
    """Run a program until it exits; return its exit code (negative: a signal's number).

    stdout is appended to `output`, stderr to `errors`, or to `output` too if that is not given. `begun` is called with
    the process number. `cancel` is asked every `every` seconds; if it raises, the program is ended. Raises `TimedOut`
    after `timeout` seconds, `ProcessStalled` after `idle` seconds without processor time, and `ProgramNotFound`.
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


def run_in_foreground(argv: Argv) -> int:
    """Run a program on our terminal and wait for it, Ctrl-C included; return its exit code.

    Raises `ProgramNotFound`.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    try:
        with subprocess.Popen([os.fspath(word) for word in argv]) as process:
            while True:
                with contextlib.suppress(KeyboardInterrupt):  # the program gets it too, and ends by itself
                    return process.wait()
    except OSError as error:
        raise ProgramNotFound(f"cannot run {os.fspath(argv[0])}: {error.strerror}") from error


class CpuIdleTimer:
    """Measures how long a program has used no processor time; its children do not count."""

    def __init__(self, pid: int) -> None:
        self._stat = Path(f"/proc/{pid}/stat")
        self._used = -1
        self._since = time.monotonic()

    def idle_seconds(self) -> float:
        with contextlib.suppress(OSError):  # the program has just exited
            # utime and stime follow the name, which may contain spaces and brackets
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
    """Run a program that must succeed and return its stdout.

    Raises `ProgramFailed` with the last lines of its stderr, `TimedOut`, `ProgramNotFound`.
    """
    with _open_memory_file() as stdout, _open_memory_file() as stderr:
        with spawn(argv, output=stdout, errors=stderr, cwd=cwd, env=env) as process:
            if not wait_until_exit(process, timeout):
                raise TimedOut(Path(argv[0]).name, timeout)
        if process.returncode:
            last = " / ".join(_read_all(stderr).strip().splitlines()[-3:])
            raise ProgramFailed(Path(argv[0]).name, process.returncode, last)
        return _read_all(stdout)


def _open_memory_file() -> IO[bytes]:
    """Open a file in memory. A pipe would only end when the last process of the group has closed it."""
    return open(os.memfd_create("output"), "w+b")


def _read_all(stream: IO[bytes]) -> str:
    stream.seek(0)
    return stream.read().decode(errors="replace")

# SPDX-License-Identifier: Apache-2.0
"""Runs the project's programs as processes that do not have to start Python and import the product first.

That takes most of the time of a command, and tests run thousands of them. A process that has imported everything is
started once; for each command it forks a process, which gets the command's arguments, environment, folder, files and
network. That the installed programs start by themselves is shown by the tests of `acceptance`.

    commands.run([program, "builds", "--json"], env=…)      as subprocess.run with text and captured output
    commands.start([program, "--config", ini], files=…)     as subprocess.Popen, for daemons and terminals
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import functools
import gc
import importlib
import json
import logging
import os
import pkgutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any, NoReturn, Optional

#: The module of each program, whose `main` is its entry point.
_MODULES = {
    "reimzul": "reimzul.admin.main",
    **{f"reimzul-{name}": f"reimzul.{name}.cli" for name in ("submit", "worker", "notifier", "batch")},
}
_IMPORTED = ("core", "history", "plan", "store", "submit", "admin", "worker", "notifier", "batch")
#: Python reads these before anything else: a program with others than ours is started in the usual way.
_READ_AT_START = (
    "LANG", "LC_ALL", "LC_CTYPE", "LD_PRELOAD", "PYTHONHASHSEED", "PYTHONIOENCODING", "PYTHONPATH", "PYTHONUTF8",
    "PYTHONWARNINGS",
)  # fmt: skip
#: Before any test changes it.
_ENVIRONMENT = dict(os.environ)
_NETWORK = "/proc/thread-self/ns/net"
_CLONE_NEWNET = 0x40000000  # sched.h


class Command:
    """A program that runs, with the methods of `subprocess.Popen`."""

    returncode: Optional[int] = None  #: a signal's number as a negative one

    def __init__(self, argv: Sequence[str], env: Mapping[str, str], cwd: str, files: Sequence[int]) -> None:
        self._argv = argv
        self._connection, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with its, open(_NETWORK, "rb") as network:
            request = json.dumps({"argv": argv, "env": dict(env), "cwd": cwd})
            socket.send_fds(_start_server(), [request.encode()], [its.fileno(), network.fileno(), *files])
        self.pid = int(self._connection.recv(100))

    def wait(self, timeout: Optional[float] = None) -> int:
        """Wait for its end. Raises `subprocess.TimeoutExpired`."""
        if self.returncode is None:
            self._connection.settimeout(timeout)
            try:
                self.returncode = os.waitstatus_to_exitcode(int(self._connection.recv(100)))
            except (TimeoutError, BlockingIOError):
                raise subprocess.TimeoutExpired(self._argv, timeout or 0) from None
            self._connection.close()
        return self.returncode

    def poll(self) -> Optional[int]:
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.wait(0)
        return self.returncode

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


def start(
    argv: Sequence[str | Path],
    *,
    files: Sequence[int],
    env: Optional[Mapping[str, str]] = None,
    cwd: str | Path | None = None,
) -> Command | subprocess.Popen[bytes]:
    """Start a program with three open files."""
    words, env = [str(word) for word in argv], os.environ if env is None else env
    if Path(words[0]).name in _MODULES and all(
        env[name] == _ENVIRONMENT.get(name) for name in _READ_AT_START if name in env
    ):
        return Command(words, env, str(cwd or os.getcwd()), files)
    return subprocess.Popen(words, env=env, cwd=cwd, stdin=files[0], stdout=files[1], stderr=files[2])


def run(
    argv: Sequence[str | Path],
    *,
    env: Optional[Mapping[str, str]] = None,
    cwd: str | Path | None = None,
    input: str = "",
    timeout: float = 60,
) -> subprocess.CompletedProcess[str]:
    """Run a program as subprocess.run does with text and captured output; they are files here, not pipes."""
    with contextlib.ExitStack() as stack:
        files = [stack.enter_context(tempfile.TemporaryFile()) for _ in range(3)]
        files[0].write(input.encode())
        files[0].seek(0)
        started = start(argv, env=env, cwd=cwd, files=[each.fileno() for each in files])
        try:
            code = started.wait(timeout)
        finally:
            started.kill()
        return subprocess.CompletedProcess(list(argv), code, *map(read_again, files[1:]))


def read_again(file: IO[bytes]) -> str:
    """Return what was written into a file."""
    file.seek(0)
    return file.read().decode().replace("\r\n", "\n")


@functools.cache
def _start_server() -> socket.socket:
    """Start the process that forks; it ends when this end of its socket is closed."""
    ours, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    argv = [sys.executable, "-m", "tests.commands", str(its.fileno())]
    given = {"cwd": Path(__file__).parents[1], "env": _ENVIRONMENT, "stdin": subprocess.DEVNULL}
    process = subprocess.Popen(argv, pass_fds=[its.fileno()], **given)  # type: ignore[call-overload]
    its.close()
    atexit.register(process.wait)
    atexit.register(ours.close)
    return ours


# --- the process that forks


def serve(control: socket.socket) -> None:
    """Fork a process for each request that comes, until there is nobody who could send one."""
    for part in _IMPORTED:
        package = importlib.import_module(f"reimzul.{part}")
        for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            importlib.import_module(module.name)
    gc.freeze()
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for those that only wait for a command
    while True:
        message, descriptors, _, _ = socket.recv_fds(control, 1_000_000, 5)
        if not message:
            return
        if os.fork() == 0:
            control.close()
            _wait_for_command(json.loads(message), descriptors)
        for descriptor in descriptors:
            os.close(descriptor)


def _wait_for_command(request: Mapping[str, Any], descriptors: Sequence[int]) -> NoReturn:
    """Run a command in a process of its own, and send its number, then its status."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    first, network, *files = descriptors
    with socket.socket(fileno=first) as connection:
        pid = os.fork()
        if pid == 0:
            connection.close()
            _run_command(request, network, files)
        for file in files:  # a terminal is closed where nobody has it
            os.close(file)
        connection.send(str(pid).encode())
        _, status = os.waitpid(pid, 0)
        with contextlib.suppress(OSError):  # who asked waits no more
            connection.send(str(status).encode())
    os._exit(0)


def _run_command(request: Mapping[str, Any], network: int, files: Sequence[int]) -> NoReturn:
    """Be the command, as if it had just been started."""
    code = 1
    try:
        _enter(network)
        for number, descriptor in enumerate(files):
            os.dup2(descriptor, number)
        os.closerange(3, 100)
        streams = os.fdopen(0), os.fdopen(1, "w"), os.fdopen(2, "w", 1, errors="backslashreplace")
        for name, stream in zip(("stdin", "stdout", "stderr"), streams):
            setattr(sys, name, stream)
            setattr(sys, f"__{name}__", stream)
        os.environ.clear()
        os.environ.update(request["env"])
        time.tzset()
        os.chdir(request["cwd"])
        sys.argv = request["argv"]
        sys.modules["__main__"].__package__ = None  # click would call it `python -m tests.commands`
        importlib.import_module(_MODULES[Path(sys.argv[0]).name]).main()
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:  # noqa: BLE001  as Python does
        traceback.print_exc()
    finally:
        atexit._run_exitfuncs()
        logging.shutdown()
        sys.stdout.flush()
        os._exit(code)


def _enter(network: int) -> None:
    """Enter the network of whoever asks; without the right to, all are in the same."""
    if os.fstat(network).st_ino != os.stat(_NETWORK).st_ino:
        ctypes.CDLL(None).setns(network, _CLONE_NEWNET)


if __name__ == "__main__":
    serve(socket.socket(fileno=int(sys.argv[1])))

# SPDX-License-Identifier: Apache-2.0
"""Runs `reimzul` and `reimzul-submit` as processes that do not have to start Python and import the product first.

That takes most of the time of a command, and tests run thousands. A process that has imported everything is started
once; for each command it forks a process, which gets the command's arguments, environment, folder, files and network.
That the installed programs start by themselves is shown by the tests of `acceptance`.

    commands.run([program, "builds", "--json"], env=…)      as subprocess.run with text and captured output
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
_MODULES = {"reimzul": "reimzul.admin.main", "reimzul-submit": "reimzul.submit.cli"}
_IMPORTED = ("core", "history", "plan", "store", "submit", "admin")
#: Python reads these before anything else: a program with others than ours is started in the usual way.
_READ_AT_START = ("LANG", "LC_ALL", "LC_CTYPE", "PYTHONIOENCODING", "PYTHONUTF8", "PYTHONWARNINGS", "PYTHONHASHSEED")
_NETWORK = "/proc/thread-self/ns/net"
_CLONE_NEWNET = 0x40000000  # sched.h


def run(
    argv: Sequence[str | Path],
    *,
    env: Optional[Mapping[str, str]] = None,
    cwd: str | Path | None = None,
    input: str = "",
    timeout: float = 60,
) -> subprocess.CompletedProcess[str]:
    """Run a program as subprocess.run does with text and captured output; they are files here, not pipes."""
    words, environment = [str(word) for word in argv], dict(os.environ if env is None else env)
    if Path(words[0]).name not in _MODULES or any(
        environment[name] != os.environ.get(name) for name in _READ_AT_START if name in environment
    ):
        return subprocess.run(
            words, env=environment, cwd=cwd, input=input, timeout=timeout, capture_output=True, text=True, check=False
        )
    with contextlib.ExitStack() as stack:
        given, out, errors = (stack.enter_context(tempfile.TemporaryFile()) for _ in range(3))
        given.write(input.encode())
        given.seek(0)
        request = {"argv": words, "env": environment, "cwd": str(cwd or os.getcwd())}
        code = _request(request, [given, out, errors], timeout)
        printed = [_read(file) for file in (out, errors)]
    return subprocess.CompletedProcess(words, code, *printed)


def _read(file: IO[bytes]) -> str:
    file.seek(0)
    return file.read().decode().replace("\r\n", "\n")


def _request(request: Mapping[str, Any], files: Sequence[IO[bytes]], timeout: float) -> int:
    """Have a command run; return its exit code, or a signal's number as a negative one."""
    connection, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with connection, its, open(_NETWORK, "rb") as network:
        numbers = [its.fileno(), network.fileno(), *(each.fileno() for each in files)]
        socket.send_fds(_start_server(), [json.dumps(request).encode()], numbers)
        its.close()
        connection.settimeout(timeout)
        pid = int(connection.recv(100))
        try:
            return os.waitstatus_to_exitcode(int(connection.recv(100)))
        except TimeoutError:
            os.kill(pid, signal.SIGKILL)
            raise subprocess.TimeoutExpired(request["argv"], timeout) from None


@functools.cache
def _start_server() -> socket.socket:
    """Start the process that forks; it ends when this end of its socket is closed."""
    ours, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    argv = [sys.executable, "-m", "tests.commands", str(its.fileno())]
    process = subprocess.Popen(argv, pass_fds=[its.fileno()], cwd=Path(__file__).parents[1], stdin=subprocess.DEVNULL)
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
        sys.stdin, sys.stdout, sys.stderr = map(os.fdopen, range(3), "rww")
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

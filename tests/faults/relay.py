# SPDX-License-Identifier: Apache-2.0
"""A stand-in for MongoDB, and a relay before it, which dies in its place: the stand-in keeps its data in memory."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import sys
import threading
from pathlib import Path

from reimzul.core.process import Process, spawn
from tests.conftest import free_port
from tests.mongo import HOME, PYTHON
from tests.waiting import until


class Relayed:
    """mongoeco behind a relay that can be killed, held and stopped."""

    def __init__(self, home: Path) -> None:
        self._home = home
        self._behind, self._port = free_port(), free_port()
        self._open = contextlib.ExitStack()
        self._relay = contextlib.ExitStack()
        self._process: Process | None = None
        self.url = f"mongodb://127.0.0.1:{self._port}/"

    def __enter__(self) -> Relayed:
        self._open.callback(self._relay.close)
        self._open.enter_context(spawn([PYTHON, HOME / "tests" / "mongoeco_server.py", "127.0.0.1", str(self._behind)]))
        until(lambda: _answers(self._behind), 30, "mongoeco answers")
        self.release()
        return self

    def __exit__(self, *_: object) -> None:
        self._open.close()

    def kill(self) -> None:
        """End it without a word: every connection is gone, and no new one is taken."""
        assert self._process
        self._process.kill()
        self._relay.close()

    def release(self) -> None:
        """Have it back."""
        argv = [sys.executable, "-m", "tests.faults.relay", str(self._port), str(self._behind)]
        self._process = self._relay.enter_context(spawn(argv, cwd=HOME, grace=0.1))
        until(lambda: _answers(self._port), 10, "the relay answers")

    def signal(self, number: int) -> None:
        """SIGSTOP has it hang, SIGCONT go on."""
        assert self._process
        os.kill(self._process.pid, number)


def _answers(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def serve(port: int, behind: int) -> None:
    """Hand every connection on."""
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    with socket.create_server(("127.0.0.1", port), backlog=50) as server:
        while True:
            near, _ = server.accept()
            far = socket.create_connection(("127.0.0.1", behind))
            for source, goal in ((near, far), (far, near)):
                threading.Thread(target=_pump, args=(source, goal), daemon=True).start()


def _pump(source: socket.socket, goal: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while chunk := source.recv(65536):
            goal.sendall(chunk)
        goal.shutdown(socket.SHUT_WR)


if __name__ == "__main__":
    serve(int(sys.argv[1]), int(sys.argv[2]))

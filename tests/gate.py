# SPDX-License-Identifier: Apache-2.0
"""A way to beanstalkd that stops at chosen commands and answers: what happens exactly between two of them."""

from __future__ import annotations

import contextlib
import socket
import threading
from typing import Callable

#: What is done at a command or an answer; if it returns True, that is lost and the connection is closed.
Action = Callable[[], bool]

#: Bytes in a chunk that is passed on; a command or an answer is smaller, and sent at once.
_CHUNK = 1 << 17


class Gate:
    """Listens on `port`, and passes everything on to beanstalkd.

    `before` has, by the bytes that a command contains, what is done before it is passed on; `after` the same of
    answers. Each is done once.
    """

    def __init__(self, port: int) -> None:
        self._goal = port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self.before: dict[bytes, Action] = {}
        self.after: dict[bytes, Action] = {}
        self._sockets = [self._listener]
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        for each in self._sockets:
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
            each.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                near, _ = self._listener.accept()
                far = socket.create_connection(("127.0.0.1", self._goal))
                self._sockets += [near, far]
                for source, sink, actions in ((near, far, self.before), (far, near, self.after)):
                    threading.Thread(target=self._pass_on, args=(source, sink, actions), daemon=True).start()

    @staticmethod
    def _pass_on(source: socket.socket, sink: socket.socket, actions: dict[bytes, Action]) -> None:
        with contextlib.suppress(OSError):
            while chunk := source.recv(_CHUNK):
                if any([actions.pop(word)() for word in list(actions) if word in chunk]):
                    break
                sink.sendall(chunk)
        for each in (source, sink):  # a killed process closes its connection
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)

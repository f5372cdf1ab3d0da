# SPDX-License-Identifier: Apache-2.0
"""A folder served by http, without a log. A file `x.status` holds the status that is sent instead of `x`."""

from __future__ import annotations

import functools
import http.server
import socketserver
import threading
from pathlib import Path
from typing import Any


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def do_GET(self) -> None:
        status = Path(self.translate_path(self.path) + ".status")
        if status.exists():
            self.send_error(int(status.read_text()))
        else:
            super().do_GET()

    def log_message(self, format: str, *args: Any) -> None:
        pass


def serve(folder: Path, port: int = 0) -> http.server.ThreadingHTTPServer:
    """Serve a folder on the loopback, on a free port where none is given; who calls this closes it by `close`."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", port), functools.partial(_Quiet, directory=str(folder)))
    start_serving(server)
    return server


def start_serving(server: socketserver.BaseServer) -> None:
    """Serve in a thread that looks often whether it is to end: half a second is what `shutdown` waits for otherwise."""
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()


def close(server: http.server.ThreadingHTTPServer) -> None:
    """Serve no more."""
    server.shutdown()
    server.server_close()

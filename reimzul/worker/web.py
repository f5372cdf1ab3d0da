# SPDX-License-Identifier: Apache-2.0
"""HTTP GET, as much of it as a builder needs, on a socket.

The standard library's client would bring a parser of mail and a second TLS: 3 MiB of each idle worker, which speaks
plain HTTP to its own end of stunnel. All URLs are of that: no proxy stands between, and none is asked.
"""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator
from typing import IO
from urllib.parse import SplitResult, urljoin, urlsplit

import attr

#: A server may send us elsewhere so often.
_REDIRECTS = 5
_REDIRECTED = (301, 302, 303, 307, 308)
#: Of an answer's head: bytes in a line, and lines.
_LINE, _LINES = 65536, 100
_PORTS = {"http": 80, "https": 443}


class Garbled(OSError):
    """What came is no answer of a web server."""


@attr.frozen
class Answer:
    """The beginning of an answer, and the stream that has the rest."""

    status: int
    length: int | None  #: bytes of the body, where the server says so
    elsewhere: str  #: where it sends us
    body: IO[bytes]


@contextlib.contextmanager
def get(url: str, timeout: float) -> Iterator[Answer]:
    """Ask for a URL; `timeout` is the longest silence in seconds. Raises `OSError`."""
    for _ in range(_REDIRECTS + 1):
        with contextlib.ExitStack() as stack:
            answer = _ask(urlsplit(url), timeout, stack)
            if answer.status not in _REDIRECTED or not answer.elsewhere:
                yield answer
                return
        url = urljoin(url, answer.elsewhere)
    raise Garbled(f"sent elsewhere again and again, last to {url}")


def _ask(parts: SplitResult, timeout: float, stack: contextlib.ExitStack) -> Answer:
    connection = _connected(parts, timeout, stack)
    path = parts.path or "/"
    query = f"?{parts.query}" if parts.query else ""
    # 1.0: the body ends where the connection does, and comes in one piece
    head = f"GET {path}{query} HTTP/1.0\r\nHost: {parts.netloc.rpartition('@')[2]}\r\nUser-Agent: reimzul\r\n\r\n"
    connection.sendall(head.encode())
    return _head(stack.enter_context(connection.makefile("rb")))


def _connected(parts: SplitResult, timeout: float, stack: contextlib.ExitStack) -> socket.socket:
    try:
        host, port = parts.hostname or "", parts.port or _PORTS[parts.scheme]
    except (ValueError, KeyError) as error:
        raise Garbled(f"{parts.geturl()} is no URL of http") from error
    connection = stack.enter_context(socket.create_connection((host, port), timeout))
    if parts.scheme != "https":
        return connection
    import ssl

    return stack.enter_context(ssl.create_default_context().wrap_socket(connection, server_hostname=host))


def _head(stream: IO[bytes]) -> Answer:
    version, _, rest = _line(stream).partition(" ")
    if not version.startswith("HTTP/") or not rest[:3].isdigit():
        raise Garbled("the answer is not HTTP")
    length, elsewhere = None, ""
    for _ in range(_LINES):
        name, _, value = _line(stream).partition(":")
        if not name:
            return Answer(int(rest[:3]), length, elsewhere, stream)
        if name.lower() == "content-length" and value.strip().isdigit():
            length = int(value)
        elif name.lower() == "location":
            elsewhere = value.strip()
    raise Garbled(f"more than {_LINES} headers")


def _line(stream: IO[bytes]) -> str:
    line = stream.readline(_LINE)
    if not line.endswith(b"\n"):
        raise Garbled("the answer broke off in its head")
    return line.decode("latin-1").rstrip("\r\n")

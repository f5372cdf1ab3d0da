# SPDX-License-Identifier: Apache-2.0
"""HTTP GET, as much of it as a builder needs, on a socket.

The standard library's client would bring a parser of mail and a second TLS: 3 MiB of each idle worker, which speaks
plain HTTP to its own end of stunnel. All URLs are of that: no proxy stands between, and none is asked.
"""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator
from io import BufferedReader
from urllib.parse import SplitResult, quote, urljoin, urlsplit

import attr

#: A server may send us elsewhere so often.
_REDIRECTS = 5
_REDIRECTED = (301, 302, 303, 307, 308)
#: Of an answer's head: bytes in a line, and lines.
_LINE, _LINES = 65536, 100
_PORTS = {"http": 80, "https": 443}
#: What stays as it is in the path and query of a request.
_SAFE = "/%:@!$&'()*+,;=?~"


class Garbled(OSError):
    """What came is no answer of a web server."""


@attr.frozen
class Answer:
    """The beginning of an answer, and the stream that has the rest."""

    status: int
    length: int | None  #: bytes of the body, where the server says so
    elsewhere: str  #: where it sends us
    kind: str  #: its Content-Type
    retry_after: int  #: seconds after which the server wants to be asked again; 0 where it does not say
    body: BufferedReader

    @property
    def is_page(self) -> bool:
        """Whether the body is a page for people, as proxies and sites under maintenance send them."""
        return self.kind.lower().startswith(("text/html", "application/xhtml"))


@contextlib.contextmanager
def get(url: str, timeout: float) -> Iterator[Answer]:
    """Ask for a URL; `timeout` is the longest silence in seconds. Raises `OSError`."""
    for _ in range(_REDIRECTS + 1):
        with contextlib.ExitStack() as stack:
            answer = _ask(_split(url), timeout, stack)
            if answer.status not in _REDIRECTED or not answer.elsewhere:
                yield answer
                return
        url = _join(url, answer.elsewhere)
    raise Garbled(f"sent elsewhere again and again, last to {url}")


def _split(url: str) -> SplitResult:
    try:
        return urlsplit(url)
    except ValueError as error:
        raise Garbled(f"{ascii(url)} is no URL of http") from error


def _join(url: str, elsewhere: str) -> str:
    try:
        return urljoin(url, elsewhere)
    except ValueError as error:
        raise Garbled(f"sent to {ascii(elsewhere)}, which is no URL") from error


def _ask(parts: SplitResult, timeout: float, stack: contextlib.ExitStack) -> Answer:
    connection = _connected(parts, timeout, stack)
    path = quote(parts.path or "/", safe=_SAFE)
    query = f"?{quote(parts.query, safe=_SAFE)}" if parts.query else ""
    # 1.0: the body ends where the connection does, and comes in one piece
    head = f"GET {path}{query} HTTP/1.0\r\nHost: {parts.netloc.rpartition('@')[2]}\r\nUser-Agent: reimzul\r\n\r\n"
    connection.sendall(head.encode())
    return _head(stack.enter_context(connection.makefile("rb")))


def _connected(parts: SplitResult, timeout: float, stack: contextlib.ExitStack) -> socket.socket:
    try:
        host, port = parts.hostname or "", parts.port or _PORTS[parts.scheme]
        connection = stack.enter_context(socket.create_connection((host, port), timeout))
    except (ValueError, KeyError) as error:  # a host's name may be no name either
        raise Garbled(f"{ascii(parts.geturl())} is no URL of http") from error
    if parts.scheme != "https":
        return connection
    import ssl

    return stack.enter_context(ssl.create_default_context().wrap_socket(connection, server_hostname=host))


def _head(stream: BufferedReader) -> Answer:
    version, _, rest = _line(stream).partition(" ")
    if not version.startswith("HTTP/") or not rest[:3].isdigit():
        raise Garbled("the answer is not HTTP")
    fields: dict[str, str] = {}
    for _ in range(_LINES):
        name, _, value = _line(stream).partition(":")
        if not name:
            return Answer(
                status=int(rest[:3]),
                length=_number(fields.get("content-length", "")),
                elsewhere=fields.get("location", ""),
                kind=fields.get("content-type", ""),
                retry_after=_number(fields.get("retry-after", "")) or 0,
                body=stream,
            )
        fields[name.lower()] = value.strip()
    raise Garbled(f"more than {_LINES} headers")


def _number(value: str) -> int | None:
    return int(value) if value.isascii() and value.isdigit() and len(value) < 20 else None


def _line(stream: BufferedReader) -> str:
    line = stream.readline(_LINE)
    if not line.endswith(b"\n"):
        raise Garbled("the answer broke off in its head")
    return line.decode("latin-1").rstrip("\r\n")

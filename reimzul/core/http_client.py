# SPDX-License-Identifier: Apache-2.0
"""Reading documents and growing files from bstore and the controller by HTTP.

All URLs lead to this host's own stunnel, so proxies are not used.
"""

from __future__ import annotations

import contextlib
import http.client
import sys
from collections.abc import Iterator, Mapping
from email.utils import mktime_tz, parsedate_tz
from typing import Optional
from urllib.parse import SplitResult, urlsplit

import attr

from reimzul.core.errors import ReimzulError

#: Seconds without a byte after which a request fails.
TIMEOUT_SECONDS = 30.0
#: How much of a file is read at a time.
_PIECE_BYTES = 1 << 18
_OK, _PARTIAL, _UNCHANGED, _BEYOND, _GONE = 200, 206, 304, 416, (404, 410)
#: What a server identifies a state of a document by, and how it is asked whether that changed.
_VALIDATORS = {"ETag": "If-None-Match", "Last-Modified": "If-Modified-Since"}


class HttpUnavailable(ReimzulError):
    """The server does not answer, or answers wrongly."""


class NotFound(ReimzulError):
    """The server has no such file."""


@attr.frozen
class RangeResponse:
    body: bytes
    size: int  #: current size of the whole file


@attr.frozen
class Document:
    body: bytes
    validators: Mapping[str, str] = attr.field(factory=dict)  #: what the server identifies this state of it by


def _read_validators(headers: http.client.HTTPMessage) -> dict[str, str]:
    """Read what identifies this state of a document; nothing if it may change again within the same second.

    `Last-Modified` cannot tell such states apart (RFC 9110, section 8.8.2.2), nor can nginx's ETag, which is made of
    that second and the size.
    """
    modified, sent = (parsedate_tz(headers.get(name, "")) for name in ("Last-Modified", "Date"))
    if modified and sent and mktime_tz(sent) - mktime_tz(modified) < 1:
        return {}
    return {name: value for name in _VALIDATORS if (value := headers.get(name))}


class HttpSession:
    """Keeps the connection to a server open between requests. Belongs to one thread."""

    def __init__(self, timeout: float = TIMEOUT_SECONDS) -> None:
        self._timeout = timeout
        self._server = ("", "")
        self._connection: Optional[http.client.HTTPConnection] = None

    def __enter__(self) -> HttpSession:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def get(self, url: str, limit: int) -> bytes:
        """Read a document of at most `limit` bytes. Raises `NotFound`, `HttpUnavailable`."""
        return self.get_newer(url, limit, Document(b"")).body

    def get_newer(self, url: str, limit: int, known: Document) -> Document:
        """Read a document again unless it is still the `known` one. Raises `NotFound`, `HttpUnavailable`."""
        headers = {_VALIDATORS[name]: value for name, value in known.validators.items()}
        with self._responding(url, headers) as answer:
            if answer.status == _UNCHANGED and headers:
                answer.read()
                return known
            if answer.status != _OK:
                raise HttpUnavailable(f"{url}: HTTP {answer.status}")
            body = answer.read(limit + 1)
            validators = _read_validators(answer.headers)
        if len(body) > limit:
            self.close()  # the rest is still to come
            raise HttpUnavailable(f"{url} is longer than {limit} bytes")
        return Document(body, validators)

    def read(self, url: str, offset: int, limit: int) -> RangeResponse:
        """Read at most `limit` bytes of a file from `offset`. Raises `NotFound`, `HttpUnavailable`."""
        with self._responding(url, {"Range": f"bytes={offset}-{offset + limit - 1}"}) as answer:
            if answer.status == _PARTIAL:
                return RangeResponse(answer.read(limit), int(answer.headers["Content-Range"].rpartition("/")[2]))
            if answer.status == _BEYOND:
                answer.read()
                return RangeResponse(b"", int(answer.headers.get("Content-Range", f"/{offset}").rpartition("/")[2]))
            if answer.status == _OK:  # a server without ranges, or an empty file
                body = answer.read()
                return RangeResponse(body[offset : offset + limit], len(body))
            raise HttpUnavailable(f"{url}: HTTP {answer.status}")

    def stream(self, url: str, offset: int = 0) -> Iterator[bytes]:
        """Yield a file's bytes from `offset`. Raises `NotFound`, `HttpUnavailable`.

        A server that ends the connection early ends the bytes early: check their number.
        """
        with self._responding(url, {"Range": f"bytes={offset}-"} if offset else {}) as answer:
            if answer.status not in (_OK, _PARTIAL, _BEYOND):
                raise HttpUnavailable(f"{url}: HTTP {answer.status}")
            skipped = {_PARTIAL: 0, _OK: offset}.get(answer.status, sys.maxsize)  # _OK: a server without ranges
            try:
                while piece := answer.read(_PIECE_BYTES):
                    yield piece[skipped:]
                    skipped = max(0, skipped - len(piece))
            finally:
                if not answer.isclosed():
                    self.close()  # the rest is still to come

    @contextlib.contextmanager
    def _responding(self, url: str, headers: dict[str, str]) -> Iterator[http.client.HTTPResponse]:
        parts = urlsplit(url)
        try:
            answer = self._fetch_answer(parts, headers)
            if answer.status in _GONE:
                answer.read()
                raise NotFound(f"{url} does not exist (HTTP {answer.status})")
            yield answer
        except (OSError, http.client.HTTPException, ValueError, KeyError, TypeError) as error:
            self.close()
            raise HttpUnavailable(f"{url}: {getattr(error, 'strerror', None) or repr(error)}") from error

    def _fetch_answer(self, parts: SplitResult, headers: dict[str, str]) -> http.client.HTTPResponse:
        if self._connection is not None and self._server == (parts.scheme, parts.netloc):
            with contextlib.suppress(OSError, http.client.HTTPException):  # the server may have closed it
                return self._request(self._connection, parts, headers)
        self.close()
        kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
        self._server = (parts.scheme, parts.netloc)
        self._connection = kind(parts.hostname or "", parts.port, timeout=self._timeout)
        return self._request(self._connection, parts, headers)

    @staticmethod
    def _request(
        connection: http.client.HTTPConnection, parts: SplitResult, headers: dict[str, str]
    ) -> http.client.HTTPResponse:
        path = f"{parts.path or '/'}?{parts.query}" if parts.query else parts.path or "/"
        connection.request("GET", path, headers=headers)
        return connection.getresponse()

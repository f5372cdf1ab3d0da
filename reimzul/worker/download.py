# SPDX-License-Identifier: Apache-2.0
"""Downloads the source rpm of a build through stunnel, and checks that it is the file that was submitted.

A build holds its builder for one short round of tries. If none succeeds, the job goes back with a pause that grows from
round to round, and the builder takes other jobs. All URLs are of this host's own end of stunnel: no proxy is used.
"""

from __future__ import annotations

import contextlib
import http.client
import logging
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from hashlib import sha256
from io import FileIO
from pathlib import Path
from typing import Any
from urllib.parse import quote

import attr

from reimzul.core.errors import InputError, ReimzulError, RetryLater, translate_errors
from reimzul.core.retry import Backoff, CancelToken
from reimzul.worker.model import BuilderFault

log = logging.getLogger(__name__)

#: Seconds without a byte after which a download is given up.
SILENCE_SECONDS = 30.0
#: Bytes a second that a download has to reach on average, once it has taken that many seconds.
MIN_BYTES_PER_SECOND, RATE_GRACE_SECONDS = 1024, 30.0
#: Pauses between the tries of one round; and the time after which no further try of a round begins.
TRY_PAUSES_SECONDS, ROUND_SECONDS = (1, 2, 5), 30.0
#: Pauses before the next round: the first, and the longest.
FIRST_ROUND_PAUSE_SECONDS, MAX_ROUND_PAUSE_SECONDS = 10, 600
#: Rounds after which a file that fails while others are served is given up: some 30 minutes.
MAX_ROUNDS_SERVER_WELL = 8
#: Rounds after which any file is given up: some 7 days.
MAX_ROUNDS = 1000
#: How many downloaded files are remembered: one of them may have been removed since.
_REMEMBERED_FILES = 4
_CHUNK_BYTES = 1024 * 1024
_OK, _GONE = 200, (404, 410)
#: Statuses of 4xx that mean "not now" instead of "not you".
_BUSY = (408, 425, 429)
#: What a server may do to a request that is to be tried again; a redirect to a bad URL raises ValueError.
_Failure = (OSError, http.client.HTTPException, ValueError)


class SourceUnavailable(InputError):
    """The source rpm is missing, or is not the submitted file: no builder can change that."""


class SourceDelayed(RetryLater):
    """The source rpm cannot be downloaded now: the attempt does not count."""


class DownloadNotWritable(BuilderFault):
    """This host's disk does not take the download."""


class _Denied(OSError):
    """The server answers, but does not give us the file: another try of this round would change nothing."""


class _Busy(OSError):
    def __init__(self, message: str, seconds: int) -> None:
        super().__init__(message)
        self.seconds = seconds


@attr.define
class Downloader:
    """`incoming/` as this builder sees it. Belongs to one build at a time."""

    _url: str
    _served: list[str] = attr.field(factory=list, init=False)  #: the last files that were downloaded

    def fetch(self, name: str, checksum: str, folder: Path, cancel: CancelToken, failed_rounds: int = 0) -> Path:
        """Download a file into `folder` and check its sha256, unless `checksum` is empty.

        Raises `SourceUnavailable` where it is missing, is another file than was submitted, or is denied while others
        are served; `SourceDelayed` where a later round may succeed; `DownloadNotWritable`.
        """
        path = folder / name
        round_end = time.monotonic() + ROUND_SECONDS
        for pause in (*TRY_PAUSES_SECONDS, None):
            try:
                _download(self._url + quote(name), checksum, path, cancel)
            except _Failure as error:
                fault = error
            else:
                self._served = [name, *(each for each in self._served if each != name)][:_REMEMBERED_FILES]
                return path
            log.warning("%s%s: %s", self._url, name, fault)
            if pause is None or isinstance(fault, (_Denied, _Busy)) or time.monotonic() + pause > round_end:
                break
            cancel.wait(pause)
        raise self._classify_fault(name, fault, failed_rounds)

    def _classify_fault(self, name: str, fault: Exception, failed_rounds: int) -> ReimzulError:
        message = f"{name} cannot be downloaded: {fault}"
        is_denied = isinstance(fault, _Denied)
        if (is_denied or failed_rounds >= MAX_ROUNDS_SERVER_WELL) and self._serves_another(name):
            hint = ": has it mode 0644 in incoming/?" if is_denied else ""
            return SourceUnavailable(f"{message}, while other files can{hint}")
        if failed_rounds >= MAX_ROUNDS:
            return SourceUnavailable(f"{message}, {failed_rounds + 1} times")
        backoff = Backoff(FIRST_ROUND_PAUSE_SECONDS, MAX_ROUND_PAUSE_SECONDS)
        requested = min(fault.seconds, MAX_ROUND_PAUSE_SECONDS) if isinstance(fault, _Busy) else 0
        return SourceDelayed(message, pause=max(int(backoff.pause_after(failed_rounds + 1)), requested))

    def _serves_another(self, name: str) -> bool:
        """Whether an earlier download would still succeed: then the server and its folder are well."""
        return any(_is_served(self._url + quote(each)) for each in self._served if each != name)


def _is_served(url: str) -> bool:
    try:
        with _open_url(url) as response:
            return not _is_page(response)
    except (*_Failure, SourceUnavailable):
        return False


def _is_page(response: http.client.HTTPResponse) -> bool:
    """Whether the body is a page for people, as proxies and sites under maintenance send them."""
    return response.headers.get("Content-Type", "").lower().startswith(("text/html", "application/xhtml"))


class _RedirectHandler(urllib.request.HTTPRedirectHandler):
    """Closes the response also where it redirects to a bad URL."""

    def http_error_302(self, req: Any, fp: Any, code: int, msg: str, headers: Any) -> Any:
        with contextlib.closing(fp):
            return super().http_error_302(req, fp, code, msg, headers)

    http_error_301 = http_error_303 = http_error_307 = http_error_308 = http_error_302


def _make_opener() -> urllib.request.OpenerDirector:
    """A client that follows redirects, to http and https only, and uses no proxy."""
    opener = urllib.request.OpenerDirector()
    opener.addheaders = [("User-Agent", "reimzul")]
    for handler in (
        urllib.request.HTTPHandler(),
        urllib.request.HTTPSHandler(),
        urllib.request.HTTPErrorProcessor(),
        _RedirectHandler(),
        urllib.request.HTTPDefaultErrorHandler(),
        urllib.request.UnknownHandler(),
    ):
        opener.add_handler(handler)
    return opener


_opener = _make_opener()


@contextlib.contextmanager
def _open_url(url: str) -> Iterator[http.client.HTTPResponse]:
    """Open a URL that is served with status 200. Raises `SourceUnavailable` where it is gone, else a `_Failure`."""
    try:
        response = _opener.open(url, timeout=SILENCE_SECONDS)
    except urllib.error.HTTPError as error:
        error.close()
        raise _status_error(url, error.code, error.headers.get("Retry-After", "")) from None
    except urllib.error.URLError as error:
        raise OSError(error.reason) from error
    with response:
        if response.status != _OK:
            raise OSError(f"HTTP {response.status}")
        yield response


def _status_error(url: str, status: int, retry_after: str) -> Exception:
    if status in _GONE:
        return SourceUnavailable(f"{url.rpartition('/')[2]} is not in incoming/ (HTTP {status})")
    if 400 <= status < 500 and status not in _BUSY:
        return _Denied(f"HTTP {status}")
    if retry_after.isascii() and retry_after.isdigit():
        return _Busy(f"HTTP {status}", int(retry_after[:9]))
    return OSError(f"HTTP {status}")


def _download(url: str, checksum: str, path: Path, cancel: CancelToken) -> None:
    """Download a URL into a file. Raises a `_Failure` where another try may succeed."""
    digest = sha256()
    size, began = 0, time.monotonic()
    with _writing(path):
        sink = FileIO(path, "w")
    with sink, _open_url(url) as response:
        expected_size, is_page = response.length, _is_page(response)
        response.length = None  # read to the end of the connection: a server may announce a wrong length
        while chunk := response.read1(_CHUNK_BYTES):
            digest.update(chunk)
            with _writing(path):
                rest = memoryview(chunk)
                while rest:
                    rest = rest[sink.write(rest) :]
            size += len(chunk)
            cancel.raise_if_cancelled()
            if size < (time.monotonic() - began - RATE_GRACE_SECONDS) * MIN_BYTES_PER_SECOND:
                raise OSError(f"slower than {MIN_BYTES_PER_SECOND} bytes a second")
    if expected_size not in (None, size):
        raise OSError(f"the answer ended after {size} of {expected_size} bytes")
    found = digest.hexdigest()
    if checksum == found:
        return
    if is_page:
        raise _Denied("the server answers with a web page instead")
    if checksum and expected_size is None:
        raise OSError(f"what came is not the file that was submitted (sha256 {found}), and may be a part of it")
    if checksum:
        raise SourceUnavailable(f"{path.name} in incoming/ is not the file that was submitted (sha256 {found})")


def _writing(path: Path) -> contextlib.AbstractContextManager[None]:
    """Tell errors of this host's disk from those of the download."""
    return translate_errors({OSError: lambda error: DownloadNotWritable(f"{path}: {error.strerror or error}")})

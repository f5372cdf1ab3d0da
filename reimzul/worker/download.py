# SPDX-License-Identifier: Apache-2.0
"""The source rpm of a build: downloading it through stunnel, and checking that it is what was submitted.

A build holds its builder for one short round of tries. If none succeeds, the job goes back with a pause that grows from
round to round, and the builder takes other jobs.
"""

from __future__ import annotations

import logging
import time
from hashlib import sha256
from io import FileIO
from pathlib import Path
from typing import Callable
from urllib.parse import quote

from reimzul.core.errors import InputError, ReimzulError, RetryLater
from reimzul.core.rpm_header import Header, read_source_header
from reimzul.worker import web

log = logging.getLogger(__name__)

#: Seconds without a byte after which a download is given up.
SILENCE_SECONDS = 30.0
#: Bytes a second that a download has to reach on average, once it has taken longer than `SILENCE`.
MIN_BYTES_PER_SECOND = 1024
#: Pauses between the tries of one round, in seconds; and seconds after which no further try of a round begins.
TRY_PAUSES_SECONDS, ROUND_SECONDS = (1, 2, 5), 30.0
#: Seconds until the next round: the first pause, and the longest.
FIRST_ROUND_PAUSE_SECONDS, MAX_ROUND_PAUSE_SECONDS = 10, 600
#: Rounds after which a file that fails while others are served is given up: some 30 minutes.
MAX_ROUNDS_SERVER_WELL = 8
#: Rounds after which any file is given up: some 7 days.
MAX_ROUNDS = 1000
#: How many files that could be downloaded are remembered: one of them may have been removed since.
_REMEMBERED = 4
_CHUNK = 1024 * 1024
_OK, _GONE = 200, (404, 410)
#: Statuses of 4xx that say "not now" instead of "not you".
_BUSY = (408, 425, 429)


class SourceUnavailable(InputError):
    """The source rpm is not there, or is not what was submitted: no builder can help that."""


class SourceDelayed(RetryLater):
    """The source rpm cannot be downloaded now: nobody's fault, and no strike."""


class DownloadNotWritable(ReimzulError):
    """This host's disk does not take the download."""


class _Denied(OSError):
    """The server answers, and does not give us the file: another try of this round would change nothing."""


class _Busy(OSError):
    """The server says when to come again."""

    def __init__(self, words: str, seconds: int) -> None:
        super().__init__(words)
        self.seconds = seconds


class Downloader:
    """`incoming/` as this builder sees it. Belongs to one build at a time."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._served: list[str] = []  #: the last files that could be downloaded

    def fetch(self, name: str, wanted: str, folder: Path, wait: Callable[[float], None], rounds: int = 0) -> Path:
        """Download a file into `folder` and check its sha256 where one is `wanted`; so many `rounds` failed before.

        Raises `NoSource` where it is not there, is another file than was submitted, or is denied while others are
        served; `SourceAway` where a later round may succeed; `CannotStore`. `wait` sleeps between tries and raises
        where the worker has to stop.
        """
        place = folder / name
        ends = time.monotonic() + ROUND_SECONDS
        for pause in (*TRY_PAUSES_SECONDS, None):
            try:
                _download(self._url + quote(name), wanted, place, wait)
            except OSError as error:
                fault = error
            else:
                self._served = [name, *(each for each in self._served if each != name)][:_REMEMBERED]
                return place
            log.warning("%s%s: %s", self._url, name, fault)
            if pause is None or isinstance(fault, (_Denied, _Busy)) or time.monotonic() + pause > ends:
                break
            wait(pause)
        raise self._judge(name, fault, rounds)

    def _judge(self, name: str, fault: OSError, rounds: int) -> ReimzulError:
        """What a failed round means: `NoSource` where no later one can succeed."""
        words = f"{name} cannot be downloaded: {fault}"
        denied = isinstance(fault, _Denied)
        if (denied or rounds >= MAX_ROUNDS_SERVER_WELL) and self._serves_another(name):
            return SourceUnavailable(
                f"{words}, while other files can" + (": has it mode 0644 in incoming/?" if denied else "")
            )
        if rounds >= MAX_ROUNDS:
            return SourceUnavailable(f"{words}, {rounds + 1} times")
        pause = min(MAX_ROUND_PAUSE_SECONDS, FIRST_ROUND_PAUSE_SECONDS * 2 ** min(rounds, 10))
        asked = fault.seconds if isinstance(fault, _Busy) else 0
        return SourceDelayed(words, pause=max(pause, min(asked, MAX_ROUND_PAUSE_SECONDS)))

    def _serves_another(self, name: str) -> bool:
        """Whether a file that could be downloaded before still can: then the server is well, and its folder."""
        return any(_is_served(self._url + quote(each)) for each in self._served if each != name)


def _is_served(url: str) -> bool:
    try:
        with web.get(url, SILENCE_SECONDS) as answer:
            return answer.status == _OK and not answer.is_page
    except OSError:
        return False


def _download(url: str, wanted: str, place: Path, wait: Callable[[float], None]) -> None:
    """Fetch a URL into a file. Raises `OSError` where that may succeed later; what `wait` raises ends it."""
    digest = sha256()
    size, began = 0, time.monotonic()
    with web.get(url, SILENCE_SECONDS) as answer, _open(place) as sink:
        _check_status(answer, place.name)
        while chunk := answer.body.read1(_CHUNK):
            digest.update(chunk)
            _write(sink, chunk, place)
            size += len(chunk)
            wait(0)
            if size < (time.monotonic() - began - SILENCE_SECONDS) * MIN_BYTES_PER_SECOND:
                raise OSError(f"slower than {MIN_BYTES_PER_SECOND} bytes a second")
    if answer.length not in (None, size):
        raise OSError(f"the answer ended after {size} of {answer.length} bytes")
    found = digest.hexdigest()
    if wanted == found:
        return
    if answer.is_page:
        raise _Denied("the server answers with a web page instead")
    if wanted and answer.length is None:
        raise OSError(f"what came is not the file that was submitted (sha256 {found}), and may be a part of it")
    if wanted:
        raise SourceUnavailable(f"{place.name} in incoming/ is not the file that was submitted (sha256 {found})")


def _check_status(answer: web.Answer, name: str) -> None:
    """Raise `NoSource` where the server has no such file, `OSError` where it does not give it."""
    status = answer.status
    if status in _GONE:
        raise SourceUnavailable(f"{name} is not in incoming/ (HTTP {status})")
    if 400 <= status < 500 and status not in _BUSY:
        raise _Denied(f"HTTP {status}")
    if status != _OK and answer.retry_after:
        raise _Busy(f"HTTP {status}", answer.retry_after)
    if status != _OK:
        raise OSError(f"HTTP {status}")


def _open(place: Path) -> FileIO:
    try:
        return FileIO(place, "w")
    except OSError as error:
        raise DownloadNotWritable(f"{place}: {error.strerror or error}") from error


def _write(sink: FileIO, chunk: bytes, place: Path) -> None:
    left = memoryview(chunk)
    try:
        while left:
            left = left[sink.write(left) :]
    except OSError as error:
        raise DownloadNotWritable(f"{place}: {error.strerror or error}") from error


def read_source(path: Path) -> Header:
    """The header of a downloaded source rpm. Raises `NoSource` that names the file, not our folder."""
    try:
        header = read_source_header(path)
    except InputError as error:
        raise SourceUnavailable(str(error).replace(str(path), path.name)) from error
    return header


def fetch_document(url: str, limit: int, timeout: float = SILENCE_SECONDS) -> bytes | None:
    """A small document of bstore; None where it is not there or nobody answers."""
    try:
        with web.get(url, timeout) as answer:
            body = answer.body.read(limit + 1) if answer.status == _OK else b""
    except OSError:
        return None
    return body if 0 < len(body) <= limit else None

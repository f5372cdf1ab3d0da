# SPDX-License-Identifier: Apache-2.0
"""The source rpm of a build: downloading it through stunnel, and checking that it is what was submitted."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Callable
from urllib.parse import quote

from reimzul.core.digest import sha256
from reimzul.core.errors import Again, InputError
from reimzul.core.header import Header, read_source
from reimzul.worker import web

log = logging.getLogger(__name__)

#: Seconds without a byte after which a download is given up.
SILENCE = 30.0
#: Pauses between tries, seconds; when they are used up the job goes back for another builder to try.
PAUSES = (1, 2, 5, 10, 20, 40)
#: Seconds until a request whose source could not be fetched is tried again, by whoever.
LATER = 30
_CHUNK = 1024 * 1024
_OK, _GONE = 200, (404, 410)


class NoSource(InputError):
    """The source rpm is not there, or is not what was submitted: no builder can help that."""


class _Status(OSError):
    """The server has it not, or not now."""

    def __init__(self, status: int) -> None:
        super().__init__(f"HTTP {status}")
        self.status = status


def fetch(url: str, name: str, wanted: str, folder: Path, wait: Callable[[float], None]) -> Path:
    """Download `name` of `incoming/` into `folder` and check its sha256 where one is `wanted`.

    Raises `NoSource` where it is not there or is another file than was submitted, `Again` where the link stays
    dead; `wait` sleeps between tries and raises where the worker has to stop.
    """
    place = folder / name
    fault = ""
    for pause in (*PAUSES, None):
        try:
            found = _download(url + quote(name), place, wait)
        except OSError as error:
            if isinstance(error, _Status) and error.status in _GONE:
                raise NoSource(f"{name} is not in incoming/ ({error})") from error
            fault = str(error)
        else:
            if wanted and found != wanted:
                raise NoSource(f"{name} in incoming/ is not the file that was submitted (sha256 {found})")
            return place
        log.warning("%s%s: %s%s", url, name, fault, "" if pause is None else f"; again in {pause} s")
        if pause is not None:
            wait(pause)
    raise Again(f"{name} cannot be downloaded: {fault}", pause=LATER)


def _download(url: str, place: Path, wait: Callable[[float], None]) -> str:
    """Fetch a URL into a file; its sha256. A body that ends early is an `OSError`; what `wait` raises ends it."""
    digest = sha256()
    size = 0
    with web.get(url, SILENCE) as answer, place.open("wb") as sink:
        if answer.status != _OK:
            raise _Status(answer.status)
        while chunk := answer.body.read(_CHUNK):
            digest.update(chunk)
            sink.write(chunk)
            size += len(chunk)
            wait(0)
    if answer.length not in (None, size):
        raise OSError(f"the answer ended after {size} of {answer.length} bytes")
    return digest.hexdigest()


def read_checked(path: Path) -> Header:
    """The header of a downloaded source rpm. Raises `NoSource` that names the file, not our folder."""
    try:
        header = read_source(path)
    except InputError as error:
        raise NoSource(str(error).replace(str(path), path.name)) from error
    return header


def get(url: str, limit: int, timeout: float = SILENCE) -> bytes | None:
    """A small document of bstore; None where it is not there or nobody answers."""
    try:
        with web.get(url, timeout) as answer:
            body = answer.body.read(limit + 1) if answer.status == _OK else b""
    except OSError:
        return None
    return body if 0 < len(body) <= limit else None

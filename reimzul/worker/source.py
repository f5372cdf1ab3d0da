# SPDX-License-Identifier: Apache-2.0
"""The source rpm of a build: downloading it through stunnel, and checking that it is what was submitted."""

from __future__ import annotations

import hashlib
import http.client
import logging
import urllib.error
import urllib.request
from pathlib import Path
from typing import Callable
from urllib.parse import quote

from reimzul.core.errors import Again, InputError
from reimzul.core.header import Header, read_source

log = logging.getLogger(__name__)

#: Seconds without a byte after which a download is given up.
SILENCE = 30.0
#: Pauses between tries, seconds; when they are used up the job goes back for another builder to try.
PAUSES = (1, 2, 5, 10, 20, 40)
#: Seconds until a request whose source could not be fetched is tried again, by whoever.
LATER = 30
_CHUNK = 1024 * 1024
#: All URLs are of this host's own end of stunnel: no proxy stands between.
_OPENER = urllib.request.build_opener(urllib.request.ProxyHandler({}))


class NoSource(InputError):
    """The source rpm is not there, or is not what was submitted: no builder can help that."""


def fetch(url: str, name: str, sha256: str, folder: Path, wait: Callable[[float], None]) -> Path:
    """Download `name` of `incoming/` into `folder` and check its sha256 where one is given.

    Raises `NoSource` where it is not there or is another file than was submitted, `Again` where the link stays
    dead; `wait` sleeps between tries and raises where the worker has to stop.
    """
    place = folder / name
    fault = ""
    for pause in (*PAUSES, None):
        try:
            digest = _download(url + quote(name), place)
        except urllib.error.HTTPError as error:
            error.close()
            if error.code in (404, 410):
                raise NoSource(f"{name} is not in incoming/ (HTTP {error.code})") from error
            fault = f"HTTP {error.code}"
        except (OSError, http.client.HTTPException) as error:
            fault = str(getattr(error, "reason", error))
        else:
            if sha256 and digest != sha256:
                raise NoSource(f"{name} in incoming/ is not the file that was submitted (sha256 {digest})")
            return place
        log.warning("%s%s: %s%s", url, name, fault, "" if pause is None else f"; again in {pause} s")
        if pause is not None:
            wait(pause)
    raise Again(f"{name} cannot be downloaded: {fault}", pause=LATER)


def _download(url: str, place: Path) -> str:
    """Fetch a URL into a file; its sha256. A body that ends early is an `OSError`."""
    digest = hashlib.sha256()
    size = 0
    with _OPENER.open(url, timeout=SILENCE) as answer, place.open("wb") as sink:
        said = answer.headers.get("Content-Length")
        while chunk := answer.read(_CHUNK):
            digest.update(chunk)
            sink.write(chunk)
            size += len(chunk)
    if said is not None and said.isdigit() and size != int(said):
        raise OSError(f"the answer ended after {size} of {said} bytes")
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
        with _OPENER.open(url, timeout=timeout) as answer:
            body: bytes = answer.read(limit + 1)
    except (OSError, http.client.HTTPException):
        return None
    return body if len(body) <= limit else None

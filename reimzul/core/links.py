# SPDX-License-Identifier: Apache-2.0
"""Where people find a build's files: links by `[bstore] public_url`, else paths on bstore and commands.

A link is made from the folder in the store when it is shown. The farm's own programs never use one: they reach the
store by `[bstore] base_url` (core/store_paths.py), which leads to their host's stunnel.
"""

from __future__ import annotations

import copy
import re
import time
from typing import Any, Protocol, TypeVar
from urllib.parse import quote, unquote

from reimzul.core import validators
from reimzul.core.errors import ReimzulError
from reimzul.core.message import BuildEvent, Event
from reimzul.core.setting_parsers import parse_optional_url
from reimzul.core.settings import StoreSettings
from reimzul.core.store_paths import StoreUrls

T = TypeVar("T")


class LinkedRecord(Protocol):
    """An event, or a record of the history: a build on an arch, or an attempt."""

    @property
    def url(self) -> str: ...

    @property
    def logs_folder(self) -> str: ...


#: The file by which bstore's web server tells other hosts its public URL, beside repo/ (conf/nginx-bstore.conf).
PUBLIC_URL_FILE = "public-url"
_MAX_URL_BYTES = 1000
#: Seconds that bstore has to answer, and seconds until it is asked again after an answer, and without one.
_ANSWER_TIMEOUT_SECONDS, _REFRESH_SECONDS, _RETRY_SECONDS = 2.0, 600.0, 60.0
#: Seconds until the next question where bstore has not answered yet: it may boot later than the controller.
_FIRST_RETRY_SECONDS = 10.0
#: The folder of the store at the end of a URL of the farm's own programs.
_FOLDER_OF_URL = re.compile(r"/((?:repo|scratch)/[^/]+/[^/]+/[0-9]{14}/[^/]+|attempts/[^/]+)/?\Z")
_ATTEMPT_FOLDER = re.compile(r"attempts/([0-9a-f]{8})[0-9a-f]{24}\.([a-z0-9_]+)\.([0-9]+-[0-9a-f]{8})\Z")


def make_link(public_url: str, folder: str) -> str:
    """Return the URL of a folder of the store for people; empty where the public port does not serve it."""
    return f"{public_url}{quote(folder)}/" if public_url and folder.startswith("repo/") else ""


def find_folder(url: str) -> str:
    """Return the folder that a URL of the farm's own programs leads to; empty if it leads elsewhere."""
    found = _FOLDER_OF_URL.search(url)
    try:
        return validators.logs_folder(unquote(found[1])) if found else ""
    except ValueError:
        return ""


def describe_folder(url: str, folder: str) -> str:
    """Say where people find the files of a folder: its URL, a command, or its path; empty if there is no folder."""
    if url or not folder:
        return url
    attempt = _ATTEMPT_FOLDER.match(folder)
    return f"{log_command(attempt[1], attempt[2])} --attempt {attempt[3]}" if attempt else f"on bstore: {folder}"


def describe_files(linked: LinkedRecord) -> str:
    """Say where people find the files of a relinked record."""
    return describe_folder(linked.url, linked.logs_folder)


def name_store(text: str, urls: StoreUrls) -> str:
    """Return an error about the farm's own URLs with `bstore: ` in the place of their root: nobody can open them."""
    return text.replace(urls.base, "bstore: ")


def log_command(build_id: str, arch: str) -> str:
    """Return the command that prints a log which has no link."""
    return f"reimzul log {build_id[:8]} --arch {arch}"


def relink(linked: T, public_url: str) -> T:
    """Return an event, or a record of the history, with the folder of its files in `logs_folder`, its link in `url`.

    The `url` of an event as it is announced, and of a record of version 0.1, is for the farm's own programs.
    """
    about: Any = linked
    folder = getattr(about, "place", "") or about.logs_folder or find_folder(about.url)
    url = make_link(public_url, folder)
    if (folder, url) == (about.logs_folder, about.url):
        return linked
    changed = copy.copy(linked)  # `attr.evolve` would check all fields of an event again, which takes long
    object.__setattr__(changed, "logs_folder", folder)
    object.__setattr__(changed, "url", url)
    return changed


def relink_event(event: Event, public_url: str) -> Event:
    """Return an event with its link for people; one that is not about a build has none."""
    return relink(event, public_url) if isinstance(event, BuildEvent) else event


def ask_public_url(base_url: str) -> str:
    """Ask bstore for its public URL; empty if it has none. Raises `HttpUnavailable`."""
    from reimzul.core.http_client import HttpSession, NotFound  # most commands start faster without

    try:
        with HttpSession(_ANSWER_TIMEOUT_SECONDS) as session:
            answer = session.get(base_url[: -len("repo/")] + PUBLIC_URL_FILE, _MAX_URL_BYTES)
        return parse_optional_url(answer.decode("ascii", "replace").strip())
    except (NotFound, ValueError):
        return ""


class PublicUrl:
    """`[bstore] public_url`, or else what bstore answers, which is remembered for some minutes. For one thread."""

    def __init__(self, settings: StoreSettings) -> None:
        self._base_url, self._url = settings.base_url, settings.public_url
        self._ask_at = float("inf") if settings.public_url else float("-inf")
        self._was_answered = False

    def get(self) -> str:
        """Return the root of all links; empty if people cannot reach the store, or that is unknown."""
        if time.monotonic() >= self._ask_at:
            pause = _REFRESH_SECONDS
            try:
                self._url = ask_public_url(self._base_url)
                self._was_answered = True
            except ReimzulError:
                pause = _RETRY_SECONDS if self._was_answered else _FIRST_RETRY_SECONDS
            self._ask_at = time.monotonic() + pause
        return self._url

# SPDX-License-Identifier: Apache-2.0
"""Where people find a build and its files: its page and links to the store, else paths on bstore and commands.

Pages are below `[pages] url`, where the farm has pages. Links to the store begin with `[bstore] public_url`; what that
does not serve, and everything without it, is read through the pages' web server, below `bstore/` there.

A link is made from a build's id or a folder in the store when it is shown. The farm's own programs never use one: they
reach the store by `[bstore] base_url` (core/store_paths.py), which leads to their host's stunnel.
"""

from __future__ import annotations

import copy
import re
import time
from typing import Any, Protocol, TypeVar
from urllib.parse import quote, unquote

import attr

from reimzul.core import validators
from reimzul.core.errors import ReimzulError
from reimzul.core.message import BuildEvent, Event
from reimzul.core.setting_parsers import parse_optional_url
from reimzul.core.settings import Settings, StoreSettings
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


@attr.frozen
class LinkRoots:
    """What links begin with; each ends with a slash, or is empty where there are no such links."""

    store: str = ""  #: the URL of the folder above repo/
    pages: str = ""

    def make_link(self, folder: str) -> str:
        """Return the URL of a folder of the store for people; empty where they cannot reach it."""
        root = self.store if self.store and folder.startswith("repo/") else self.pages and f"{self.pages}bstore/"
        return f"{root}{quote(folder)}/" if root and folder else ""

    def make_page_link(self, build_id: str) -> str:
        """Return the URL of a build's page; empty without pages, and for a build of the original."""
        return f"{self.pages}builds/{build_id[:2]}/{build_id}.html" if self.pages and build_id else ""


#: The roots where people can reach nothing.
NO_LINKS = LinkRoots()


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
    """Say where people find the files of a relinked record: on its build's page where there is one."""
    return getattr(linked, "page", "") or describe_folder(linked.url, linked.logs_folder)


def name_store(text: str, urls: StoreUrls) -> str:
    """Return an error about the farm's own URLs with `bstore: ` in the place of their root: nobody can open them."""
    return text.replace(urls.base, "bstore: ")


def log_command(build_id: str, arch: str) -> str:
    """Return the command that prints a log which has no link."""
    return f"reimzul log {build_id[:8]} --arch {arch}"


def relink(linked: T, roots: LinkRoots) -> T:
    """Return an event, or a record of the history, with the folder of its files in `logs_folder`, its link in `url`.

    An event, and a record of a build, also gets the link to the build's page in `page`; an attempt has none. The `url`
    of an event as it is announced, and of a record of version 0.1, is for the farm's own programs.
    """
    about: Any = linked
    folder = getattr(about, "place", "") or about.logs_folder or find_folder(about.url)
    values = {"logs_folder": folder, "url": roots.make_link(folder)}
    if hasattr(about, "page"):
        values["page"] = roots.make_page_link(about.build_id)
    if all(getattr(about, name) == value for name, value in values.items()):
        return linked
    changed = copy.copy(linked)  # `attr.evolve` would check all fields of an event again, which takes long
    for name, value in values.items():
        object.__setattr__(changed, name, value)
    return changed


def relink_event(event: Event, roots: LinkRoots) -> Event:
    """Return an event with its links for people; one that is not about a build has none."""
    return relink(event, roots) if isinstance(event, BuildEvent) else event


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


class LinkSource:
    """What links begin with now. For one thread."""

    def __init__(self, settings: Settings) -> None:
        self._store, self._pages = PublicUrl(settings.bstore), settings.pages.url

    def get(self) -> LinkRoots:
        return LinkRoots(self._store.get(), self._pages)

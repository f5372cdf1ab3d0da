# SPDX-License-Identifier: Apache-2.0
"""Checks what links lead people to: the store by its public URL, and the pages, as a browser would."""

from __future__ import annotations

import email.utils
import http.client
import json
import socket
import time
from collections.abc import Iterator
from pathlib import Path

from reimzul.admin.doctor import CheckGroup, Result, describe_error, fail, ok, require, warn
from reimzul.admin.doctor.host import Host
from reimzul.admin.doctor.services import PRIVATE, fetch, restart_hint
from reimzul.admin.setup.files import System
from reimzul.admin.setup.roles import PAGES, PAGES_UNIT, current_port
from reimzul.core.formatting import format_duration
from reimzul.core.links import ask_public_url
from reimzul.core.listed_packages import parse_store_listing

public_checks = CheckGroup("link.store")

#: Targets whose repodata are compared, until one has some.
_MAX_TARGETS = 5
_ANOTHER_URL = "reimzul setup controller --public-url URL"
_HINT = (
    "on bstore: reimzul setup bstore --public-port 80, and open that port in its packet filter; if people reach the "
    f"store by another URL, on the controller: {_ANOTHER_URL}"
)


@public_checks.add("store.public")
def _check_public_url(host: Host) -> Result:
    """Fetch repo/ as a person would. Whether it is our store shows by the repodata of a target."""
    settings = host.settings.bstore
    url = settings.public_url or ask_public_url(settings.base_url)
    if not url and host.settings.pages.url:
        return ok("bstore has no public port: links lead to the pages, and to the store through their web server")
    if not url:
        return ok("people get paths and commands instead of links: bstore has no public port")
    try:
        response, _ = fetch(f"{url}repo/")
    except socket.gaierror as error:
        hint = f"have hosts look up the name of {url}, as by DNS, or name another: {_ANOTHER_URL}"
        return fail(f"all links begin with {url}, whose name this host cannot look up: {describe_error(error)}", hint)
    except OSError as error:
        return fail(f"all links begin with {url}, where nothing answers: {describe_error(error)}", _HINT)
    location = response.headers.get("Location", "").removesuffix("repo/")
    require(
        response.status not in (301, 302, 307, 308),
        f"all links begin with {url}, which leads to {location}",
        f"reimzul setup controller --public-url {location}",
    )
    require(
        response.status in (200, 403),  # a server may refuse to list the folder
        f"all links begin with {url}, and the web server answers {response.status} for {url}repo/",
        _HINT,
    )
    differing = next(find_difference(settings.base_url, f"{url}repo/"), "")
    require(not differing, f"all links begin with {url}, which is not our store: {differing} differs", _HINT)
    return ok(f"{url} serves the store, and links begin with it")


def find_difference(base: str, public: str) -> Iterator[str]:
    """Yield the file by which the public store differs from ours. Raises `OSError`."""
    for target in parse_store_listing(fetch(base)[1])[:_MAX_TARGETS]:
        path = f"{target}/repodata/repomd.xml"
        # if the two differ, a build may just have been published
        pairs = [(fetch(base + path), fetch(public + path)) for _ in range(2)]
        if pairs[0][0][0].status != 200:
            continue
        if all(ours[1] != theirs[1] for ours, theirs in pairs):
            yield path
        return


# --- the pages

#: The file that reimzul-pages writes every few seconds.
_STATUS_FILE = "status.json"
#: Pages that are older do not show the farm any more; between two writes there may be half a minute of rest.
MAX_PAGES_AGE_SECONDS = 120.0
_SETUP = "reimzul setup controller --pages-port PORT, which writes nginx's configuration"
_ANOTHER_PAGES_URL = "reimzul setup controller --set pages.url=URL"


def find_pages_root(host: Host) -> str:
    """Return the URL of the pages as this host reaches them; empty where the farm has none."""
    port = current_port(System.at_root(Path("/")), PAGES) if host.is_installed else 0
    return f"http://127.0.0.1:{port}/" if port else host.settings.pages.url


pages_checks = CheckGroup()


@pages_checks.add("pages", applies=find_pages_root)
def _check_pages(host: Host) -> Iterator[Result]:
    root, url = find_pages_root(host), host.settings.pages.url
    try:
        response, body = fetch(f"{root}{_STATUS_FILE}")
    except OSError as error:
        yield fail(f"the pages' web server at {root} does not answer: {describe_error(error)}", restart_hint("nginx"))
        return
    require(
        response.status == 200,
        f"the web server at {root} answers {response.status} for {_STATUS_FILE}",
        f"{restart_hint(PAGES_UNIT)}; {_SETUP}",
    )
    age = _find_age(response)
    if age > MAX_PAGES_AGE_SECONDS:
        yield fail(f"the pages are {format_duration(age)} old: {PAGES_UNIT} does not run", restart_hint(PAGES_UNIT))
    elif problem := _find_problem(body):
        yield warn(f"the pages do not show the farm as it is now: {problem}", f"journalctl -u {PAGES_UNIT}")
    if not url:
        yield warn("links do not lead to the pages: [pages] url is not set", _ANOTHER_PAGES_URL)
    elif url != root:
        yield from _check_links(url)
    yield ok(f"{url or root} serves the pages, and they are fresh")


def _find_age(response: http.client.HTTPResponse) -> float:
    """Seconds since a file was written, by the web server's clock; 0 if the server does not say."""
    dates = [email.utils.parsedate_tz(response.headers.get(name, "")) for name in ("Date", "Last-Modified")]
    now, written = (email.utils.mktime_tz(date) if date else 0 for date in dates)
    return float(max(0, (now or time.time()) - written)) if written else 0.0


def _find_problem(body: bytes) -> str:
    try:
        return str(json.loads(body).get("problem") or "")
    except (ValueError, AttributeError):
        return "status.json is not one of reimzul-pages"


def _check_links(url: str) -> Iterator[Result]:
    """Fetch a file by the URL that links begin with."""
    try:
        status = fetch(f"{url}{_STATUS_FILE}")[0].status
    except socket.gaierror as error:
        message = f"all links begin with {url}, whose name this host cannot look up: {describe_error(error)}"
        yield fail(message, f"have hosts look up that name, as by DNS, or name another URL: {_ANOTHER_PAGES_URL}")
    except OSError as error:
        message = f"all links begin with {url}, where nothing answers: {describe_error(error)}"
        yield fail(message, f"open that port in the packet filter; if people use another URL: {_ANOTHER_PAGES_URL}")
    else:
        # a proxy may ask for a password
        if status not in (200, 401, 403):
            message = f"all links begin with {url}, and the web server answers {status} for a page"
            yield fail(message, _ANOTHER_PAGES_URL)


@pages_checks.add("pages.store", "pages", "link.store", applies=find_pages_root)
def _check_store(host: Host) -> Result:
    """Read the store through the pages' web server; whether it is our store shows by the repodata of a target."""
    root, base = f"{find_pages_root(host)}bstore/", host.settings.bstore.base_url
    answers = {folder: fetch(f"{root}{folder}/")[0].status for folder in ("repo", PRIVATE)}
    require(
        answers["repo"] in (200, 403),
        f"the pages' web server answers {answers['repo']} for repo/ of the store: logs cannot be read",
        "reimzul setup controller, which has nginx ask for the store where [bstore] base_url says",
    )
    require(answers[PRIVATE] == 404, f"everybody can read {PRIVATE}/ through the pages' web server", _SETUP)
    differing = next(find_difference(base, f"{root}repo/"), "")
    require(not differing, f"the pages' web server reads another store: {differing} differs", _SETUP)
    return ok(f"files of the store can be read at {root}")

# SPDX-License-Identifier: Apache-2.0
"""Checks the farm's pages as a browser would: they are served, fresh, and lead to the store."""

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
from reimzul.admin.doctor.public_url import find_difference
from reimzul.admin.doctor.services import PRIVATE, fetch, restart_hint
from reimzul.admin.setup.files import System
from reimzul.admin.setup.roles import PAGES, PAGES_UNIT, current_port
from reimzul.core.formatting import format_duration

#: The file that reimzul-pages writes every few seconds.
_STATUS_FILE = "status.json"
#: Pages that are older do not show the farm any more; between two writes there may be half a minute of rest.
MAX_AGE_SECONDS = 120.0
_SETUP = "reimzul setup controller --pages-port PORT, which writes nginx's configuration"
_ANOTHER_URL = "reimzul setup controller --set pages.url=URL"


def find_root(host: Host) -> str:
    """Return the URL of the pages as this host reaches them; empty where the farm has none."""
    port = current_port(System.at_root(Path("/")), PAGES) if host.is_installed else 0
    return f"http://127.0.0.1:{port}/" if port else host.settings.pages.url


checks = CheckGroup()


@checks.add("pages", applies=find_root)
def _check_pages(host: Host) -> Iterator[Result]:
    root, url = find_root(host), host.settings.pages.url
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
    if age > MAX_AGE_SECONDS:
        yield fail(f"the pages are {format_duration(age)} old: {PAGES_UNIT} does not run", restart_hint(PAGES_UNIT))
    elif problem := _find_problem(body):
        yield warn(f"the pages do not show the farm as it is now: {problem}", f"journalctl -u {PAGES_UNIT}")
    if not url:
        yield warn("links do not lead to the pages: [pages] url is not set", _ANOTHER_URL)
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
        yield fail(message, f"have hosts look up that name, as by DNS, or name another URL: {_ANOTHER_URL}")
    except OSError as error:
        message = f"all links begin with {url}, where nothing answers: {describe_error(error)}"
        yield fail(message, f"open that port in the packet filter; if people use another URL: {_ANOTHER_URL}")
    else:
        # a proxy may ask for a password
        if status not in (200, 401, 403):
            yield fail(f"all links begin with {url}, and the web server answers {status} for a page", _ANOTHER_URL)


@checks.add("pages.store", "pages", "link.store", applies=find_root)
def _check_store(host: Host) -> Result:
    """Read the store through the pages' web server; whether it is our store shows by the repodata of a target."""
    root, base = f"{find_root(host)}bstore/", host.settings.bstore.base_url
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

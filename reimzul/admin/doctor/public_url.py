# SPDX-License-Identifier: Apache-2.0
"""Checks that the links which people get lead to the store."""

from __future__ import annotations

import socket
from collections.abc import Iterator

from reimzul.admin.doctor import CheckGroup, Result, describe_error, fail, ok, require
from reimzul.admin.doctor.host import Host
from reimzul.admin.doctor.services import fetch
from reimzul.core.links import ask_public_url
from reimzul.core.listed_packages import parse_store_listing

checks = CheckGroup("link.store")

#: Targets whose repodata are compared, until one has some.
_MAX_TARGETS = 5
_ANOTHER_URL = "reimzul setup controller --public-url URL"
_HINT = (
    "on bstore: reimzul setup bstore --public-port 80, and open that port in its packet filter; if people reach the "
    f"store by another URL, on the controller: {_ANOTHER_URL}"
)


@checks.add("store.public")
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

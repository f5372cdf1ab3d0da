# SPDX-License-Identifier: Apache-2.0
"""The farm's pages, asked for by one option on a real controller, and read by somebody who has only their address."""

from __future__ import annotations

from urllib.parse import quote

from tests.hosts.farm import Farm, Tell
from tests.waiting import until

#: Where `reimzul setup controller --pages-port` serves them.
_PORT = 8080


def _fetch(farm: Farm, path: str, *headers: str) -> str:
    """What the customer, a bare Debian, gets for a path: head, an empty line and body. All lines end with \\n."""
    asked = "".join(f"{line}\\r\\n" for line in (f"GET {path} HTTP/1.0", *headers, ""))
    line = f"exec 3<>/dev/tcp/controller.example.org/{_PORT}; printf '{asked.replace('%', '%%')}' >&3; cat <&3"
    return farm["customer"].run(f'bash -c "{line}"', check=False).out


def test_pages(farm: Farm, tell: Tell) -> None:
    """One option: a customer reads the page of a build and its log, nothing else, and doctor is content."""
    leg = farm.published(farm.legs_of("some-1.0-1")[-1]["build_id"])[0]
    assert leg["page"] is None
    farm.controller.run(
        f"reimzul setup controller --pages-port {_PORT} --controller controller.example.org", timeout=300
    )
    (leg,) = [each for each in farm.legs(leg["build_id"]) if each["arch"] == leg["arch"]]
    page = leg["page"].removeprefix(f"http://controller.example.org:{_PORT}")
    until(lambda: "published" in _fetch(farm, page), 60, f"{leg['page']} shows the build")
    tell(f"  {leg['page']}")
    log = f"/bstore/{quote(leg['place'])}/build.log"
    head, _, whole = _fetch(farm, log).partition("\n\n")
    assert "Content-Type: text/plain; charset=utf-8\n" in head, head
    assert "Content-Security-Policy: sandbox;" in head
    part = _fetch(farm, log, "Range: bytes=-20").partition("\n\n")
    assert (part[0].partition("\n")[0], part[2]) == ("HTTP/1.1 206 Partial Content", whole[-20:])
    for path in ("/bstore/spool/", "/bstore/index/", "/reimzul-incoming/", f"/bstore/{leg['place']}/mock.cfg"):
        assert _fetch(farm, path).startswith("HTTP/1.1 404 "), path
    until(lambda: farm.doctor("controller").failed == [], 60, f"doctor is content: {farm.doctor('controller').text}")
    assert {farm.doctor("controller").level(name) for name in ("pages", "pages.store", "listen")} == {"ok"}
    assert farm.controller.run("systemctl is-enabled reimzul-pages").out.strip() == "enabled"


def test_no_pages_any_more(farm: Farm) -> None:
    """The same option takes it back: nothing listens, nothing is made, and links lead where they did."""
    farm.controller.run("reimzul setup controller --pages-port 0", timeout=300)
    assert f":{_PORT}" not in farm.controller.run("ss -Hltn").out
    assert farm.controller.run("systemctl is-active reimzul-pages", check=False).out.strip() == "inactive"
    assert {leg["page"] for leg in farm.legs_of("some-1.0-1")} == {None}

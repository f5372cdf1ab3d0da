# SPDX-License-Identifier: Apache-2.0
"""The configurations in conf/: finding them where this program is installed, and filling in host names."""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping
from pathlib import Path

from reimzul.core.errors import ProgramNotFound

#: Where tools/install and the packages put them, below their prefix.
_BELOW = "share/reimzul/conf"


def folders() -> tuple[Path, ...]:
    """Where templates are looked for, in this order."""
    own = Path(sys.argv[0]).absolute().parent.parent  # the prefix of the program that runs
    checkout = Path(__file__).parents[3] / "conf"
    return tuple(dict.fromkeys((checkout, own / _BELOW, Path("/usr/local") / _BELOW, Path("/usr") / _BELOW)))


def template(name: str) -> str:
    """A file of conf/. Raises `ProgramNotFound` where it is not installed."""
    for folder in folders():
        if (folder / name).is_file():
            return (folder / name).read_text(encoding="utf-8")
    raise ProgramNotFound(f"{name} is not installed: neither in {' nor in '.join(map(str, folders()))}")


def tunnels(role: str, hosts: Mapping[str, str]) -> str:
    """A role's configuration of stunnel; `hosts` says what CONTROLLER and BSTORE stand for.

    A controller that does not know bstore has no way to it.
    """
    text = template(f"stunnel-{role}.conf")
    if role == "controller" and "BSTORE" not in hosts:
        text = "\n\n".join(part for part in text.split("\n\n") if "\nconnect = BSTORE:" not in part) + "\n"

    def filled(found: re.Match[str]) -> str:
        return f"connect = {hosts[found[1]]}:"

    return re.sub(r"^connect = ([A-Z]+):", filled, text, flags=re.MULTILINE)


def hosts_in(text: str) -> dict[str, str]:
    """The hosts that a configuration of stunnel names: CONTROLLER by the port of beanstalkd, BSTORE by the store's."""
    ports = {"13100": "CONTROLLER", "11081": "BSTORE"}
    found = re.findall(r"^connect = ([^\s:]+):(\d+)$", text, re.MULTILINE)
    return {ports[port]: host for host, port in found if port in ports and host not in ("127.0.0.1", *ports.values())}


def role_of(text: str) -> str:
    """Whose a configuration of stunnel is; empty where it is none of ours."""
    for role, section in (("controller", "beanstalkd-server"), ("bstore", "rsyncd-server"), ("builder", "rsyncd")):
        if f"\n[{section}]\n" in text:
            return role
    return ""


def listening(text: str, address: str) -> str:
    """A configuration of mosquitto that listens at another address than loopback."""
    return re.sub(r"^listener 8883 127\.0\.0\.1$", f"listener 8883 {address}", text, flags=re.MULTILINE)


def listening_publicly(text: str, port: int) -> str:
    """A configuration of nginx that listens at another port than 80."""
    return re.sub(r"^    listen 80;$", f"    listen {port};", text, flags=re.MULTILINE)


def listener_in(text: str) -> str:
    """The address a configuration of mosquitto listens at; empty where it has none."""
    found = re.search(r"^listener 8883 (\S+)$", text, re.MULTILINE)
    return found[1] if found else ""


def without_stock_server(text: str) -> str:
    """nginx.conf as Fedora and EL ship it, without its server on all addresses of port 80."""
    return re.sub(r"^    server \{\n(?:.*\n)*?    \}\n", _unless_kept, text, flags=re.MULTILINE)


def _unless_kept(block: re.Match[str]) -> str:
    stock = re.search(r"^ +listen +80;", block[0], re.MULTILINE) and "/usr/share/nginx/html;" in block[0]
    return "" if stock else block[0]

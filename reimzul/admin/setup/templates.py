# SPDX-License-Identifier: Apache-2.0
"""The configurations and units that come with Reimzul, and filling in host names, addresses and ports."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from importlib import resources

#: What stands for a host in conf/stunnel-*.conf, by the port that is connected to there.
_PEERS_BY_PORT = {"13100": "CONTROLLER", "11081": "BSTORE"}
#: A section that only this role's configuration of stunnel has.
_SECTIONS = {"controller": "beanstalkd-server", "bstore": "rsyncd-server", "builder": "rsyncd"}


def read_template(name: str, folder: str = "conf") -> str:
    """A file of conf/ or systemd/."""
    return (resources.files("reimzul") / "data" / folder / name).read_text(encoding="utf-8")


def list_units() -> Iterator[str]:
    names = sorted(entry.name for entry in (resources.files("reimzul") / "data" / "systemd").iterdir())
    return (name for name in names if name.endswith((".service", ".target", ".timer")))


def fill_tunnels(role: str, hosts: Mapping[str, str]) -> str:
    """A role's configuration of stunnel. `hosts` has the names of CONTROLLER and BSTORE.

    A controller that does not know bstore does not connect to it.
    """
    text = read_template(f"stunnel-{role}.conf")
    if role == "controller" and "BSTORE" not in hosts:
        text = "\n\n".join(part for part in text.split("\n\n") if "\nconnect = BSTORE:" not in part) + "\n"
    return re.sub(r"^connect = ([A-Z]+):", lambda peer: f"connect = {hosts[peer[1]]}:", text, flags=re.MULTILINE)


def find_hosts(tunnels: str) -> dict[str, str]:
    """The names of CONTROLLER and BSTORE in a configuration of stunnel."""
    found = re.findall(r"^connect = ([^\s:]+):(\d+)$", tunnels, re.MULTILINE)
    unknown = ("127.0.0.1", *_PEERS_BY_PORT.values())
    return {_PEERS_BY_PORT[port]: host for host, port in found if port in _PEERS_BY_PORT and host not in unknown}


def find_role(tunnels: str) -> str:
    """The role that a configuration of stunnel belongs to; empty if it is none of ours."""
    return next((role for role, section in _SECTIONS.items() if f"\n[{section}]\n" in tunnels), "")


def set_mosquitto_address(text: str, address: str) -> str:
    return re.sub(r"^listener 8883 127\.0\.0\.1$", f"listener 8883 {address}", text, flags=re.MULTILINE)


def find_mosquitto_address(text: str) -> str:
    """The address that a configuration of mosquitto listens at; empty if it has none."""
    found = re.search(r"^listener 8883 (\S+)$", text, re.MULTILINE)
    return found[1] if found else ""


def set_nginx_port(text: str, port: int) -> str:
    return re.sub(r"^    listen 80;$", f"    listen {port};", text, flags=re.MULTILINE)


def set_program_folder(unit: str, folder: str) -> str:
    """A unit that starts programs in a folder; its documentation is where `make install` puts it, so not there."""
    unit = re.sub(r"^Documentation=.*\n", "", unit, flags=re.MULTILINE)
    return re.sub(r"^ExecStart=/usr/local/bin/", f"ExecStart={folder}/", unit, flags=re.MULTILINE)


def remove_stock_server(text: str) -> str:
    """nginx.conf as Fedora and EL ship it, without its server on all addresses of port 80."""

    def keep_others(block: re.Match[str]) -> str:
        stock = re.search(r"^ +listen +80;", block[0], re.MULTILINE) and "/usr/share/nginx/html;" in block[0]
        return "" if stock else block[0]

    return re.sub(r"^    server \{\n(?:.*\n)*?    \}\n", keep_others, text, flags=re.MULTILINE)

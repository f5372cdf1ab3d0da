# SPDX-License-Identifier: Apache-2.0
"""The kernel's word on this host's network: who listens where others reach it, how soon a lost peer is noticed."""

from __future__ import annotations

import contextlib
import ipaddress
import os
import sys
from collections.abc import Iterator
from pathlib import Path

from reimzul.admin.doctor.check import Check, Result, ok, warn
from reimzul.admin.doctor.host import CONTROLLER, Host, is_root

#: Who may listen on a public address: conf/ has all others on loopback.
ALLOWED = ("stunnel", "stunnel4", "sshd")
_SSH = 22
#: The most that still has a vanished peer noticed within 30 s: conf/sysctl-reimzul.conf.
RETRIES = 6
_RETRIES = Path("/proc/sys/net/ipv4/tcp_retries2")
_LISTENS = "0A"  # state TCP_LISTEN in /proc/net/tcp


def checks(host: Host) -> list[Check]:
    """Every host's."""
    return [Check(name="tcp_retries2", look=_retries), Check(name="listen", look=lambda: _listen(host))]


def _retries() -> Result:
    value = int(_RETRIES.read_text())
    if value > RETRIES:
        words = f"{value}: a host that vanishes while data is under way is noticed after minutes, not within 30 s"
        return warn(words, "reimzul setup writes /etc/sysctl.d/90-reimzul.conf; then sysctl --system")
    return ok(str(value))


def _listen(host: Host) -> Result:
    sockets = dict(public())
    owners = who_has(set(sockets))
    ours = {section.accept[1] for section in host.tunnels.sections if not section.is_client} | {_SSH}
    strangers = []
    for inode, (address, port) in sorted(sockets.items(), key=lambda item: item[1][1]):
        name = owners.get(inode, "")
        if name in ALLOWED or (port in ours and name in ("", "systemd")) or _is_broker(host, name, port):
            continue
        strangers.append(f"{name or 'somebody'} on {address}:{port}")
    if strangers:
        known = "" if is_root() else "run it as root to see who; "
        words = f"not stunnel and not sshd: {', '.join(dict.fromkeys(strangers))}"
        return warn(words, f"{known}have it listen on 127.0.0.1, or close the port in the firewall")
    return ok("nobody but stunnel and sshd can be reached from outside")


def _is_broker(host: Host, name: str, port: int) -> bool:
    """The MQTT broker may be offered to subscribers elsewhere: it knows them by their certificates."""
    return host.has(CONTROLLER) and name == "mosquitto" and port == host.settings.mqtt.port


def public() -> Iterator[tuple[str, tuple[str, int]]]:
    """Who listens on more than loopback: the inode of each socket, its address and port."""
    for table in ("tcp", "tcp6"):
        with contextlib.suppress(OSError):
            for line in Path("/proc/net", table).read_text(encoding="ascii").splitlines()[1:]:
                fields = line.split()
                address, port = local(fields[1])
                if fields[3] == _LISTENS and not _is_loopback(address):
                    yield fields[9], (str(address), port)


def local(text: str, order: str = sys.byteorder) -> tuple[ipaddress.IPv4Address | ipaddress.IPv6Address, int]:
    """An address and port as /proc/net/tcp has them: words of four bytes as this machine writes numbers."""
    raw, _, port = text.partition(":")
    packed = bytes.fromhex(raw)
    if order == "little":
        packed = b"".join(packed[start : start + 4][::-1] for start in range(0, len(packed), 4))
    return ipaddress.ip_address(packed), int(port, 16)


def _is_loopback(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> bool:
    mapped = getattr(address, "ipv4_mapped", None)
    return (mapped or address).is_loopback


def who_has(inodes: set[str]) -> dict[str, str]:
    """The name of a program that has each of these sockets open, as far as we may see."""
    wanted = {f"socket:[{inode}]": inode for inode in inodes}
    found: dict[str, str] = {}
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            for number in os.listdir(folder / "fd"):
                with contextlib.suppress(OSError):
                    inode = wanted.get(os.readlink(folder / "fd" / number))
                    if inode:
                        found[inode] = _name(folder, found.get(inode, ""))
    return found


def _name(process: Path, before: str) -> str:
    """The program's name; systemd may hold a socket for the one whose it is."""
    name = (process / "comm").read_text(encoding="utf-8", errors="replace").strip()
    return before if before and name == "systemd" else name

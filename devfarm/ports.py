# SPDX-License-Identifier: Apache-2.0
"""Loopback ports for a farm, such as no other farm takes, and who listens on one.

The kernel hands out ports from its ephemeral range to every outgoing connection, so ours are from below it. Farms
keep out of each other's way by an abstract unix socket a block of ports: it holds for all users of the machine (more
exactly: of the network namespace, as ports do), and goes with the process. A stranger may still be quicker between
our look and our part's bind; `listener` and `owns` tell that, and the farm then takes another block.
"""

from __future__ import annotations

import contextlib
import os
import random
import socket
from collections.abc import Iterator
from pathlib import Path

import attr

from reimzul.core.errors import ReimzulError

ADDRESS = "127.0.0.1"
#: Ports of a block; a farm of sixteen builders needs some 80.
_BLOCK = 128
_LOWEST = 10240
_TRIES = 200
_LISTENS = "0A"  # state TCP_LISTEN in /proc/net/tcp


@attr.define
class Ports:
    """A block of ports that is ours until we close it; each gets a name when it is first asked for."""

    free: Iterator[int]
    claim: socket.socket
    named: dict[str, int] = attr.field(factory=dict)

    def __getitem__(self, name: str) -> int:
        if name not in self.named:
            self.named[name] = next(self.free)
        return self.named[name]

    def close(self) -> None:
        """Let others have them."""
        self.claim.close()


def claim_ports() -> Ports:
    """Claim a block nobody else has."""
    starts = range(_LOWEST, _ephemeral() - _BLOCK, _BLOCK)
    for start in random.sample(starts, min(_TRIES, len(starts))):
        claim = _claim(start)
        if claim is not None:
            return Ports(free=_unused(start), claim=claim)
    raise ReimzulError(f"no free block of {_BLOCK} ports from {_LOWEST} up: how many farms run here?")


def _ephemeral() -> int:
    """Where the kernel's own range begins; the top where it leaves no room below."""
    with contextlib.suppress(OSError):
        lowest = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
        if lowest > _LOWEST + 10 * _BLOCK:
            return lowest
    return 65536


def _claim(start: int) -> socket.socket | None:
    claim = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        claim.bind(f"\0reimzul-devfarm-{start}")
    except OSError:
        claim.close()
        return None
    return claim


def _unused(start: int) -> Iterator[int]:
    for port in range(start, start + _BLOCK):
        with contextlib.closing(socket.socket()) as probe:
            # no SO_REUSEADDR: one that others have just used is none for us
            try:
                probe.bind((ADDRESS, port))
            except OSError:
                continue
        yield port
    raise ReimzulError(f"the ports from {start} to {start + _BLOCK - 1} are used up")


def listener(port: int) -> str | None:
    """The inode of the socket that listens on a port of loopback or of all addresses, None where none does."""
    for table in ("tcp", "tcp6"):
        with contextlib.suppress(OSError):
            for line in Path("/proc/net", table).read_text().splitlines()[1:]:
                _, local, _, state, *rest = line.split()
                if state == _LISTENS and int(local.rpartition(":")[2], 16) == port:
                    return rest[5]
    return None


def owns(pid: int, inode: str) -> bool:
    """Whether a process has that socket open."""
    folder = f"/proc/{pid}/fd"
    with contextlib.suppress(OSError):
        for number in os.listdir(folder):
            with contextlib.suppress(OSError):
                if os.readlink(f"{folder}/{number}") == f"socket:[{inode}]":
                    return True
    return False

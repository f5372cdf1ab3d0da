# SPDX-License-Identifier: Apache-2.0
"""Loopback ports for a farm that no other farm takes, and who listens on one.

The kernel gives ports from its ephemeral range to every outgoing connection, so a farm's ports lie below it. Each farm
claims a block of ports by an abstract unix socket: the claim holds for all users of a network namespace and ends with
the process. Another program may still take a port between our check and the start of the part that is to listen there;
`listening_inode` and `owns_socket` show that, and the farm then takes another block.
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
_BLOCK_SIZE = 128
_LOWEST_PORT = 10240
_TRIES = 200
_TCP_LISTEN = "0A"  # a state in /proc/net/tcp


@attr.define
class Ports:
    """A block of ports, claimed until it is closed; a port gets its name when it is first used."""

    free: Iterator[int]
    claim: socket.socket
    named: dict[str, int] = attr.field(factory=dict)

    def __getitem__(self, name: str) -> int:
        if name not in self.named:
            self.named[name] = next(self.free)
        return self.named[name]

    def close(self) -> None:
        self.claim.close()


def claim_ports() -> Ports:
    starts = range(_LOWEST_PORT, _first_ephemeral_port() - _BLOCK_SIZE, _BLOCK_SIZE)
    for start in random.sample(starts, min(_TRIES, len(starts))):
        claim = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        try:
            claim.bind(f"\0reimzul-devfarm-{start}")
        except OSError:
            claim.close()
            continue
        return Ports(free=_unused_ports(start), claim=claim)
    raise ReimzulError(f"no free block of {_BLOCK_SIZE} ports from {_LOWEST_PORT} up: how many farms run here?")


def _first_ephemeral_port() -> int:
    with contextlib.suppress(OSError):
        lowest = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
        if lowest > _LOWEST_PORT + 10 * _BLOCK_SIZE:
            return lowest
    return 65536


def _unused_ports(start: int) -> Iterator[int]:
    for port in range(start, start + _BLOCK_SIZE):
        with contextlib.closing(socket.socket()) as probe:
            # without SO_REUSEADDR: a port that another program has just used is skipped
            try:
                probe.bind((ADDRESS, port))
            except OSError:
                continue
        yield port
    raise ReimzulError(f"the ports from {start} to {start + _BLOCK_SIZE - 1} are used up")


def listening_inode(port: int) -> str | None:
    """The inode of the socket that listens on a port, None where none does."""
    for table in ("tcp", "tcp6"):
        with contextlib.suppress(OSError):
            for line in Path("/proc/net", table).read_text().splitlines()[1:]:
                _, local, _, state, *rest = line.split()
                if state == _TCP_LISTEN and int(local.rpartition(":")[2], 16) == port:
                    return rest[5]
    return None


def owns_socket(pid: int, inode: str) -> bool:
    """Whether a process has that socket open."""
    with contextlib.suppress(OSError):
        for number in os.listdir(f"/proc/{pid}/fd"):
            with contextlib.suppress(OSError):
                if os.readlink(f"/proc/{pid}/fd/{number}") == f"socket:[{inode}]":
                    return True
    return False

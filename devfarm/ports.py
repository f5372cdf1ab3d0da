# SPDX-License-Identifier: Apache-2.0
"""Loopback ports for a farm that no other farm takes, and who listens on one.

The kernel gives ports from its ephemeral range to every outgoing connection, so a farm's ports lie below it. Each farm
claims a block of ports by an abstract unix socket: the claim holds for all users of a network namespace and ends with
the process. Another program may still take a port between our check and the start of the part that is to listen there;
`listeners` shows that, and the farm then takes another block.
"""

from __future__ import annotations

import contextlib
import random
import re
import socket
from collections.abc import Iterator
from pathlib import Path

from reimzul.core.errors import ReimzulError
from reimzul.core.process import output_of

ADDRESS = "127.0.0.1"
#: Ports of a block; a farm of sixteen builders needs some 80.
_BLOCK_SIZE = 128
_LOWEST_PORT = 10240
_TRIES = 200


class Ports(dict[str, int]):
    """A block of ports, claimed until it is closed; a port gets its name when it is first used."""

    def __init__(self, start: int, claim: socket.socket) -> None:
        super().__init__()
        self._free = _unused_ports(start)
        self.close = claim.close

    def __missing__(self, name: str) -> int:
        self[name] = next(self._free)
        return self[name]


def claim_ports() -> Ports:
    starts = range(_LOWEST_PORT, _first_ephemeral_port() - _BLOCK_SIZE, _BLOCK_SIZE)
    for start in random.sample(starts, min(_TRIES, len(starts))):
        claim = socket.socket(socket.AF_UNIX)
        try:
            claim.bind(f"\0reimzul-devfarm-{start}")
        except OSError:
            claim.close()
        else:
            return Ports(start, claim)
    raise ReimzulError(f"no free block of {_BLOCK_SIZE} ports from {_LOWEST_PORT} up: how many farms run here?")


def _first_ephemeral_port() -> int:
    with contextlib.suppress(OSError):
        lowest = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
        if lowest > _LOWEST_PORT + 10 * _BLOCK_SIZE:
            return lowest
    return 65536


def _unused_ports(start: int) -> Iterator[int]:
    for port in range(start, start + _BLOCK_SIZE):
        # without SO_REUSEADDR: a port that another program has just used is skipped
        with contextlib.suppress(OSError), contextlib.closing(socket.socket()) as probe:
            probe.bind((ADDRESS, port))
            probe.close()
            yield port
    raise ReimzulError(f"the ports from {start} to {start + _BLOCK_SIZE - 1} are used up")


def listeners() -> dict[int, set[int]]:
    """The TCP ports on which somebody listens, each with the processes; other users' processes are not seen."""
    found: dict[int, set[int]] = {}
    for line in output_of(["ss", "--no-header", "--listening", "--tcp", "--numeric", "--processes"]).splitlines():
        port = int(line.split()[3].rpartition(":")[2])
        found.setdefault(port, set()).update(map(int, re.findall(r"pid=(\d+)", line)))
    return found

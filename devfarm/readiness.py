# SPDX-License-Identifier: Apache-2.0
"""Whether the parts of a farm do their work: they listen, answer through TLS, and wait for jobs."""

from __future__ import annotations

import contextlib
import socket
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from typing import Callable

import attr

from devfarm.parts import Part
from devfarm.plan import CONTROLLER, Plan
from devfarm.ports import ADDRESS, listener, owns
from reimzul.core.beanstalk import Broker
from reimzul.core.errors import BrokerUnavailable, ReimzulError

#: Seconds one answer may take.
_ANSWER = 5.0


class PortTaken(ReimzulError):
    """Somebody else's program was quicker to listen on a port of ours."""


@attr.frozen
class Condition:
    """Something that has to be before a farm is ready."""

    words: str
    late: Callable[[], Sequence[Part]]  #: whose logs tell why it is not so yet; nobody's when it is


def conditions(
    plan: Plan, parts: Sequence[Part], pids: Callable[[Part], Sequence[int]], watchers: Mapping[str, int]
) -> Iterator[Condition]:
    """All of them, in the order in which they come true.

    `pids` says which processes a part has, `watchers` how many daemons a tube must have.
    """
    here = [part for part in parts if not plan.host(part.host).prefix]  # the others are in networks of their own
    below = [part for part in here if part.listens]
    plain = [part for part in below if not part.name.startswith("stunnel")]
    tunnels = [part for part in below if part not in plain]
    yield Condition(listed(plain), lambda: silent(plain, pids))
    yield Condition(listed(tunnels), lambda: silent(tunnels, pids))
    yield Condition("TLS from every host to every service it uses", lambda: [] if answering(plan) else tunnels)
    ours = [part for part in parts if part.is_daemon]
    if ours:
        yield Condition(listed(ours), lambda: [] if watched(plan, watchers) else ours)


def silent(parts: Sequence[Part], pids: Callable[[Part], Sequence[int]]) -> Sequence[Part]:
    """Those that do not listen yet. Raises `PortTaken`."""
    return [part for part in parts if not listening(part, pids)]


def listed(parts: Sequence[Part]) -> str:
    """Their names."""
    return ", ".join(part.name for part in parts)


def listening(part: Part, pids: Callable[[Part], Sequence[int]]) -> bool:
    """Whether a part listens on its ports. Raises `PortTaken` where another program does."""
    for port in part.listens:
        inode = listener(port)
        if inode is None:
            return False
        found = pids(part)
        if not found:
            return False
        if not any(owns(pid, inode) for pid in found) and listener(port) == inode:
            raise PortTaken(f"port {port} of {part.name} is another program's")
    return True


def answering(plan: Plan) -> bool:
    """Whether every service answers at the near end of every tunnel."""
    return all(
        _ANSWERS[service](plan.local(host.name, service))
        for host in plan.hosts
        if not host.prefix
        for service in host.uses
    )


def watched(plan: Plan, watchers: Mapping[str, int]) -> bool:
    """Whether as many wait for the jobs of these tubes."""
    with contextlib.suppress(BrokerUnavailable), Broker(ADDRESS, plan.local(CONTROLLER, "beanstalkd")) as broker:
        return all(broker.tube_stats(tube).watchers >= number for tube, number in watchers.items())
    return False


def _beanstalkd(port: int) -> bool:
    with contextlib.suppress(BrokerUnavailable), Broker(ADDRESS, port):
        return True
    return False


def _http(port: int) -> bool:
    # through no proxy, whatever the environment says
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(f"http://{ADDRESS}:{port}/", timeout=_ANSWER):
            return True
    except urllib.error.HTTPError:
        return True  # there is nothing at the top of our servers, and they say so
    except OSError:
        return False


def _rsyncd(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection((ADDRESS, port), _ANSWER) as connection:
        return connection.recv(8) == b"@RSYNCD:"
    return False


_ANSWERS: Mapping[str, Callable[[int], bool]] = {
    "beanstalkd": _beanstalkd,
    "incoming": _http,
    "store": _http,
    "rsyncd": _rsyncd,
}

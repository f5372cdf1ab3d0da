# SPDX-License-Identifier: Apache-2.0
"""Checks whether the parts of a farm work: they listen, answer through TLS, and wait for jobs."""

from __future__ import annotations

import contextlib
import socket
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from typing import Callable

import attr

from devfarm.plan import CONTROLLER, Plan
from devfarm.ports import ADDRESS, listening_inode, owns_socket
from devfarm.processes import Part
from reimzul.core.beanstalk import Broker
from reimzul.core.errors import BrokerUnavailable, ReimzulError

_ANSWER_SECONDS = 5.0
#: Returns the processes of a part, none where it does not run.
FindPids = Callable[[Part], Sequence[int]]


class PortTaken(ReimzulError):
    """Another program listens on a port of ours."""


@attr.frozen
class Condition:
    """Something that must hold before a farm is ready."""

    label: str
    find_pending: Callable[[], Sequence[Part]]  #: the parts whose logs show why it does not hold yet


def conditions(
    plan: Plan, parts: Sequence[Part], find_pids: FindPids, watchers: Mapping[str, int]
) -> Iterator[Condition]:
    """All conditions, in the order in which they become true. `watchers`: how many daemons must watch each tube."""
    # hosts with a prefix are in networks of their own, which cannot be checked from here
    services = [part for part in parts if part.listens and not plan.host(part.host).prefix]
    tunnels = [part for part in services if part.name.startswith("stunnel")]
    plain = [part for part in services if part not in tunnels]
    daemons = [part for part in parts if part.is_daemon]
    yield Condition(_join_names(plain), lambda: _not_listening(plain, find_pids))
    yield Condition(_join_names(tunnels), lambda: _not_listening(tunnels, find_pids))
    yield Condition(
        "TLS from every host to every service it uses", lambda: [] if _all_services_answer(plan) else tunnels
    )
    if daemons:
        yield Condition(_join_names(daemons), lambda: [] if _has_watchers(plan, watchers) else daemons)


def _join_names(parts: Sequence[Part]) -> str:
    return ", ".join(part.name for part in parts)


def _not_listening(parts: Sequence[Part], find_pids: FindPids) -> Sequence[Part]:
    return [part for part in parts if not is_listening(part, find_pids)]


def is_listening(part: Part, find_pids: FindPids) -> bool:
    """Whether a part listens on all its ports. Raises `PortTaken` where another program does."""
    for port in part.listens:
        inode = listening_inode(port)
        pids = find_pids(part) if inode else []
        if inode is None or not pids:
            return False
        if not any(owns_socket(pid, inode) for pid in pids) and listening_inode(port) == inode:
            raise PortTaken(f"port {port} of {part.name} is another program's")
    return True


def _all_services_answer(plan: Plan) -> bool:
    """Whether every service answers at the near end of every tunnel."""
    return all(
        _CHECKS[service](plan.local(host.name, service))
        for host in plan.hosts
        if not host.prefix
        for service in host.uses
    )


def _has_watchers(plan: Plan, watchers: Mapping[str, int]) -> bool:
    with contextlib.suppress(BrokerUnavailable), Broker(ADDRESS, plan.local(CONTROLLER, "beanstalkd")) as broker:
        return all(broker.tube_stats(tube).watchers >= number for tube, number in watchers.items())
    return False


def _beanstalkd_answers(port: int) -> bool:
    with contextlib.suppress(BrokerUnavailable), Broker(ADDRESS, port):
        return True
    return False


def _http_answers(port: int) -> bool:
    # through no proxy, whatever the environment says
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(f"http://{ADDRESS}:{port}/", timeout=_ANSWER_SECONDS):
            return True
    except urllib.error.HTTPError:
        return True  # the servers have nothing at the top, and answer 404
    except OSError:
        return False


def _rsyncd_answers(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection((ADDRESS, port), _ANSWER_SECONDS) as connection:
        return connection.recv(8) == b"@RSYNCD:"
    return False


_CHECKS: Mapping[str, Callable[[int], bool]] = {
    "beanstalkd": _beanstalkd_answers,
    "incoming": _http_answers,
    "store": _http_answers,
    "rsyncd": _rsyncd_answers,
}

# SPDX-License-Identifier: Apache-2.0
"""`reimzul builders --forget`: forget the processes of a host that vanished and does not come back.

The notifier owns the file of heartbeats, so it is asked to: each process gets the last heartbeat that it did not send.
"""

from __future__ import annotations

import time

import attr

from reimzul.admin import lookup, output
from reimzul.admin.health import Processes
from reimzul.core import validators
from reimzul.core.beanstalk import Broker
from reimzul.core.errors import EXIT_FAILED, InputError
from reimzul.core.settings import Settings
from reimzul.history.workers import WorkerRecord

#: Seconds that the notifier may take, and between two looks whether it has done it.
_TIMEOUT_SECONDS, _POLL_SECONDS = 5.0, 0.2


def forget_host(settings: Settings, name: str, as_json: bool) -> int:
    """Forget a host's vanished processes; return the exit code. Raises `InputError`."""
    output.check_input(validators.host, name)
    known = lookup.load_processes(settings)
    with Broker.from_settings(settings.beanstalkd) as broker:
        host, gone = _find_vanished(Processes.find(broker, known), name)
        for each in gone:
            broker.announce(attr.evolve(each.heartbeat, leaving=True))
    is_done = _wait_until_forgotten(settings, gone)
    instances = [each.heartbeat.instance for each in gone]
    done = "forgotten" if is_done else "to be forgotten as soon as the notifier runs"
    message = f"{host}: {len(gone)} {'process' if len(gone) == 1 else 'processes'} {done} ({', '.join(instances)})"
    result = {"builder": host, "forgotten": instances, "done": is_done, "message": message}
    output.print_result(result, [message], as_json)
    return 0 if is_done else EXIT_FAILED


def _find_vanished(processes: Processes, name: str) -> tuple[str, list[WorkerRecord]]:
    hosts = {each.heartbeat.host for each in (*processes.connected, *processes.vanished)}
    gone = {each.heartbeat.host for each in processes.vanished}
    matching = lookup.match_hosts(hosts, name)
    if len(matching) > 1:
        raise InputError(f"more than one host is called {name}: {', '.join(matching)}")
    if not matching:
        raise InputError(f"no host {name} has been heard of{lookup.suggest_host(gone, name)}")
    if matching[0] not in gone:
        raise InputError(
            f"{matching[0]} is connected, and would be listed again at once: only a host that is gone is forgotten"
        )
    return matching[0], [each for each in processes.vanished if each.heartbeat.host == matching[0]]


def _wait_until_forgotten(settings: Settings, gone: list[WorkerRecord]) -> bool:
    sessions, deadline = {each.heartbeat.session for each in gone}, time.monotonic() + _TIMEOUT_SECONDS
    while True:
        if sessions.isdisjoint(each.heartbeat.session for each in lookup.load_processes(settings)):
            return True
        if time.monotonic() > deadline:
            return False
        time.sleep(_POLL_SECONDS)

# SPDX-License-Identifier: Apache-2.0
"""Builders as the controller hears them: each by a name of its own, and with a clock that agrees with this host's."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from reimzul.admin import lookup
from reimzul.admin.doctor.check import Check, Result, warn, worst
from reimzul.admin.doctor.host import CONTROLLER, Host, is_root
from reimzul.admin.doctor.queue import connect
from reimzul.admin.words import counted, skewed
from reimzul.history.workers import WorkerRecord, WorkersUnavailable, drop_disconnected, shared_names


def checks(host: Host) -> list[Check]:
    """On the controller alone: only there workers are heard."""
    if not host.has(CONTROLLER):
        return []
    return [Check(name="builders", look=lambda: _builders(host), needs=("link.beanstalkd",))]


def _builders(host: Host) -> Result:
    try:
        seen = lookup.load_workers(host.settings)
    except WorkersUnavailable as error:
        return warn(str(error), "" if is_root() else "run it as root")
    with connect(host.settings) as broker:
        return judge(drop_disconnected(broker, seen))


def judge(seen: Sequence[WorkerRecord]) -> Result:
    """What is wrong with the workers that are connected."""
    return worst(list(_faults(seen)), f"{counted(len(seen), 'worker')}, no two of one name, their clocks agree")


def _faults(seen: Sequence[WorkerRecord]) -> Iterator[Result]:
    for words in shared_names(seen).values():
        yield warn(words, "give each host a [worker] fqdn of its own, and its units other instances; restart them")
    clocks = {each.heartbeat.host: each.skew for each in seen if each.skew}
    for name, skew in clocks.items():
        yield warn(f"the clock of {name} is {skewed(skew)}", "on that host: timedatectl set-ntp true")

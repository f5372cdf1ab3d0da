# SPDX-License-Identifier: Apache-2.0
"""All checks of a host, in the order in which they are shown: what others stand on comes first."""

from __future__ import annotations

from reimzul.admin.doctor import (
    builder,
    certificates,
    keys,
    links,
    network,
    programs,
    queue,
    rooms,
    store,
    telling,
    units,
    upload,
    web,
    workers,
)
from reimzul.admin.doctor.check import Check
from reimzul.admin.doctor.host import Host

_GROUPS = (
    programs, keys, links, network, units, rooms, queue, workers, web, telling, certificates, upload, builder, store,
)  # fmt: skip


def checks(host: Host) -> list[Check]:
    """Each of them once."""
    found: dict[str, Check] = {}
    for group in _GROUPS:
        for check in group.checks(host):
            found.setdefault(check.name, check)
    return list(found.values())

# SPDX-License-Identifier: Apache-2.0
"""Checks around a setup: host names before anything is written, and this host's doctor at the end."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Callable

from reimzul.admin.doctor import FAIL, Finding, run_checks
from reimzul.admin.setup.apply import ApplyOptions
from reimzul.admin.setup.files import System
from reimzul.core.cli import load_settings
from reimzul.core.config import find_file
from reimzul.core.errors import InputError
from reimzul.core.formatting import pluralize

#: Seconds before doctor is asked again while it finds failures: daemons that were just started may not listen yet.
RETRY_PAUSES_SECONDS = (1, 2, 4, 8)


def require_known_hosts(names: Iterable[str]) -> None:
    """Raises `InputError` for a host name that this host cannot look up."""
    for name in names:
        try:
            socket.getaddrinfo(name, None)
        except OSError as error:
            why = (error.strerror or "unknown").lower()
            raise InputError(
                f"this host cannot look up {name} ({why}): correct the name, or add it to DNS or /etc/hosts. "
                "Nothing was changed"
            ) from None


def examine_host(system: System, role: str) -> list[Finding]:
    """What doctor finds to fail on this host; nothing for an image, or where systemd does not run."""
    if not system.running or system.root != Path("/"):
        return []
    # all checks, which take as long to import as the rest of setup: a list of keys or a dry run starts without
    from reimzul.admin.doctor.cli import collect_checks
    from reimzul.admin.doctor.host import find_host

    examined = find_host(load_settings(None, verbose=False), find_file(None), (role,), None)
    return [finding for finding in run_checks(collect_checks(examined)) if finding.level == FAIL]


def report_failures(
    examine: Callable[[], list[Finding]],
    options: ApplyOptions,
    ignored: Sequence[str] = (),
    pauses: Sequence[float] = RETRY_PAUSES_SECONDS,
) -> bool:
    """Print what doctor finds to fail on this host, apart from checks that are `ignored`; return whether it does."""
    for pause in (*pauses, None):
        failures = [finding for finding in examine() if finding.name not in ignored]
        if not failures or pause is None:
            break
        time.sleep(pause)
    if failures:
        options.print(f"reimzul doctor finds {pluralize(len(failures), 'failure')} on this host:")
    for finding in failures:
        options.print(f"  {finding.level}  {finding.name}: {finding.message}")
        if finding.hint:
            options.print(f"        -> {finding.hint}")
    return bool(failures)

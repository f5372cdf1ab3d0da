# SPDX-License-Identifier: Apache-2.0
"""firewalld, where it runs: the ports of a role are opened, now and for good."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence

from reimzul.admin.setup.system import System
from reimzul.admin.setup.units import PATIENCE, Step
from reimzul.core.process import run

_PROGRAM = "firewall-cmd"


def steps(system: System, ports: Sequence[int]) -> Iterator[Step]:
    """What has to be opened; nothing where there is no firewalld, or where it is another host that is set up."""
    if not ports or not system.running or not shutil.which(_PROGRAM) or not _says("--state"):
        return
    for port in ports:
        for lasting, when in (((), "now"), (("--permanent",), "for good")):
            if not _says(*lasting, f"--query-port={port}/tcp"):
                yield Step(
                    argv=(_PROGRAM, *lasting, f"--add-port={port}/tcp"), words=f"port {port} opened {when} in firewalld"
                )


def _says(*words: str) -> bool:
    return run([_PROGRAM, *words], timeout=PATIENCE) == 0

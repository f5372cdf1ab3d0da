# SPDX-License-Identifier: Apache-2.0
"""Whether the web server, which runs as another user, can read a file of incoming/."""

from __future__ import annotations

import shlex
import stat
from pathlib import Path

from reimzul.core.errors import describe_os_error


def find_unreadable(path: Path, incoming: Path) -> str:
    """Describe what prevents other users from reading a file of `incoming/`, and the fix; empty if nothing does.

    Symbolic links are followed. Folders above `incoming/` are not checked: the web server's user may have access there
    through its groups, which `reimzul doctor` tries.
    """
    try:
        real, folder = path.resolve(), incoming.resolve()
        if not real.stat().st_mode & stat.S_IROTH:
            return _describe_bar(real, "read", "o+r")
        for parent in real.parents:
            if parent in folder.parents:
                break
            if not parent.stat().st_mode & stat.S_IXOTH:
                return _describe_bar(parent, "enter", "o+x")
    except (OSError, RuntimeError) as error:  # a loop of links
        return f"{path}: {describe_os_error(error)}"
    return ""


def _describe_bar(path: Path, verb: str, wanted: str) -> str:
    mode = stat.S_IMODE(path.stat().st_mode)
    return f"{path} has mode {mode:04o}, and other users cannot {verb} it: chmod {wanted} {shlex.quote(str(path))}"

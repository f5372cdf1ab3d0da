# SPDX-License-Identifier: Apache-2.0
"""Running a program on a terminal of so many columns."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pty
import re
import struct
import subprocess
import termios
from collections.abc import Mapping, Sequence
from pathlib import Path


def run_on_terminal(
    argv: Sequence[str], folder: Path, env: Mapping[str, str], *, columns: int = 80, timeout: float = 180
) -> tuple[int, str]:
    """Return the exit code, and what the program wrote to stdout and stderr, without colours."""
    ours, its = pty.openpty()
    fcntl.ioctl(its, termios.TIOCSWINSZ, struct.pack("HHHH", 50, columns, 0, 0))
    with subprocess.Popen(argv, cwd=folder, env=env, stdin=its, stdout=its, stderr=its) as process:
        os.close(its)
        said = b""
        with contextlib.suppress(OSError):  # Linux says so when the other end is closed and all is read
            while part := os.read(ours, 65536):
                said += part
        code = process.wait(timeout)
    os.close(ours)
    return code, re.sub(r"\x1b\[[0-9;]*[A-Za-z]", "", said.decode()).replace("\r\n", "\n")

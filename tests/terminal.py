# SPDX-License-Identifier: Apache-2.0
"""A real terminal of a given size, for programs whose output depends on it."""

from __future__ import annotations

import fcntl
import os
import pty
import struct
import subprocess
import termios
from collections.abc import Mapping, Sequence

import attr


@attr.frozen
class Shown:
    code: int
    text: str  #: as the terminal got it, with its control sequences
    errors: str

    @property
    def lines(self) -> list[str]:
        return self.text.replace("\r\n", "\n").splitlines()


def run_on_terminal(argv: Sequence[str], columns: int = 80, **environment: str) -> Shown:
    """Run a program whose stdout is a terminal so wide; what it prints on stderr is read from a pipe."""
    ours, its = pty.openpty()
    fcntl.ioctl(its, termios.TIOCSWINSZ, struct.pack("HHHH", 40, columns, 0, 0))
    inherited: Mapping[str, str] = {name: value for name, value in os.environ.items() if name != "COLUMNS"}
    with subprocess.Popen(
        argv, stdout=its, stderr=subprocess.PIPE, env={**inherited, "TERM": "xterm", **environment}
    ) as process:
        os.close(its)
        shown = b""
        try:
            while part := os.read(ours, 65536):
                shown += part
        except OSError:  # Linux says so when the other end is closed and all is read
            os.close(ours)
        errors = process.stderr.read().decode() if process.stderr else ""
        return Shown(process.wait(30), shown.decode(), errors)

# SPDX-License-Identifier: Apache-2.0
"""A real terminal of a given width, for programs whose output depends on it."""

from __future__ import annotations

import codecs
import contextlib
import fcntl
import os
import pty
import re
import select
import struct
import subprocess
import tempfile
import termios
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import attr

from tests import commands


@attr.frozen
class Shown:
    code: int
    text: str  #: as the terminal got it, with its control sequences
    errors: str

    @property
    def lines(self) -> list[str]:
        return self.text.replace("\r\n", "\n").splitlines()


def show_on_terminal(argv: Sequence[str], columns: int = 80, **environment: str) -> Shown:
    """Run a program whose stdout is a terminal so wide; what it prints on stderr goes into a file."""
    ours, its = _open_terminal(columns)
    inherited: Mapping[str, str] = {name: value for name, value in os.environ.items() if name != "COLUMNS"}
    with open(os.devnull) as nothing, tempfile.TemporaryFile() as errors:
        files, env = (nothing.fileno(), its, errors.fileno()), {**inherited, "TERM": "xterm", **environment}
        process = commands.start(argv, env=env, files=files)
        shown = _read_until_closed(ours, its)
        return Shown(process.wait(30), shown, commands.read_again(errors))


def run_on_terminal(
    argv: Sequence[str], folder: Path, env: Mapping[str, str], *, columns: int = 80, timeout: float = 180
) -> tuple[int, str]:
    """Return the exit code, and what the program wrote to stdout and stderr, without colours."""
    ours, its = _open_terminal(columns)
    process = commands.start(argv, env=env, cwd=folder, files=(its, its, its))
    said = _read_until_closed(ours, its)
    code = process.wait(timeout)
    return code, re.sub(r"\x1b\[[0-9;]*[A-Za-z]", "", said).replace("\r\n", "\n")


def converse(
    argv: Sequence[str], answers: Sequence[tuple[str, str]] = (), *, columns: int = 100, timeout: float = 180
) -> tuple[int, str]:
    """Run a program whose terminal is this one alone, and type each answer once the words before it are shown.

    Return the exit code, and what the terminal shows in the end.
    """
    ours, its = _open_terminal(columns)
    said, waiting, end = "", list(answers), time.monotonic() + timeout
    with subprocess.Popen(["setsid", "--ctty", *argv], stdin=its, stdout=its, stderr=its) as process:
        os.close(its)
        decoder = codecs.getincrementaldecoder("utf-8")("replace")
        with contextlib.suppress(OSError):
            while select.select([ours], [], [], max(0, end - time.monotonic()))[0] and (part := os.read(ours, 65536)):
                said += decoder.decode(part)
                if waiting and said.rstrip().endswith(waiting[0][0]):
                    os.write(ours, waiting.pop(0)[1].encode())
        os.close(ours)  # what still runs after the timeout loses its terminal
        code = process.wait(30)
    assert not waiting, f"{argv[-1]} did not ask {waiting[0][0]!r}:\n{said}"
    plain = re.sub(r"\x1b(\[[0-9;?]*[A-Za-z]|[()].)", "", said).replace("\r\n", "\n")
    return code, "\n".join(line.rpartition("\r")[2] for line in plain.split("\n"))


def _open_terminal(columns: int) -> tuple[int, int]:
    """Open a terminal; return the descriptors of our side and of the program's."""
    ours, its = pty.openpty()
    fcntl.ioctl(its, termios.TIOCSWINSZ, struct.pack("HHHH", 40, columns, 0, 0))
    return ours, its


def _read_until_closed(ours: int, its: int) -> str:
    """Read all that is written on the terminal; the program has its side, and ours of that is closed here."""
    os.close(its)
    said = b""
    with contextlib.suppress(OSError):  # Linux says so when the other end is closed and all is read
        while part := os.read(ours, 65536):
            said += part
    os.close(ours)
    return said.decode()

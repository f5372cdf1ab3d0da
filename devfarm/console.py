# SPDX-License-Identifier: Apache-2.0
"""Prints lines that stay and, below them on a terminal, a few lines that change."""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Sequence

_UP_AND_CLEAR = "\x1b[{}F\x1b[J"
_BOLD, _PLAIN = "\x1b[1m", "\x1b[0m"


class Console:
    """Standard output."""

    def __init__(self) -> None:
        self.is_terminal = sys.stdout.isatty()
        self._live: list[str] = []
        self._started = time.monotonic()

    def print_title(self, text: str) -> None:
        self._print(f"\n{_BOLD}{text}{_PLAIN}" if self.is_terminal else f"\n{text}")

    def print_line(self, text: str) -> None:
        """Print a line, with the seconds since the start."""
        self._print(f"  {time.monotonic() - self._started:6.1f} s  {text}")

    def print_block(self, text: str) -> None:
        """Print another program's output, indented."""
        self._print("\n".join(f"  {line}" for line in text.rstrip().splitlines()))

    def show_live(self, lines: Sequence[str]) -> None:
        """Replace the lines that change; without a terminal there are none."""
        width = shutil.get_terminal_size().columns
        lines = [line[: width - 1] for line in lines]
        if self.is_terminal and lines != self._live:
            text = self._erase_live() + "".join(f"{line}\n" for line in lines)
            self._live = lines
            print(text, end="", flush=True)

    def _print(self, text: str) -> None:
        live = "".join(f"{line}\n" for line in self._live)
        print(f"{self._erase_live()}{text}\n{live}", end="", flush=True)

    def _erase_live(self) -> str:
        return _UP_AND_CLEAR.format(len(self._live)) if self._live else ""

# SPDX-License-Identifier: Apache-2.0
"""What the demo prints: lines that stay, and below them, on a terminal, a few that change. In a pipe only the first."""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Sequence
from typing import TextIO

_UP_AND_CLEAR = "\x1b[{}F\x1b[J"
_BOLD, _PLAIN = "\x1b[1m", "\x1b[0m"


class Screen:
    """A terminal, or what takes its place."""

    def __init__(self, out: TextIO | None = None) -> None:
        self._out = out or sys.stdout
        self.live = self._out.isatty()  #: whether `show` shows anything
        self._shown: list[str] = []
        self._began = time.monotonic()

    def title(self, words: str) -> None:
        """Begin a chapter."""
        self._print(f"\n{_BOLD}{words}{_PLAIN}" if self.live else f"\n{words}")

    def say(self, words: str) -> None:
        """A line that stays, with the seconds since we began."""
        self._print(f"  {time.monotonic() - self._began:6.1f} s  {words}")

    def text(self, words: str) -> None:
        """What another program printed, moved in."""
        self._print("\n".join(f"  {line}" for line in words.rstrip().splitlines()))

    def show(self, lines: Sequence[str]) -> None:
        """The lines that change, in the place of those before."""
        width = shutil.get_terminal_size().columns
        lines = [line[: width - 1] for line in lines]
        if self.live and lines != self._shown:
            self._out.write(self._erasing() + "".join(f"{line}\n" for line in lines))
            self._out.flush()
            self._shown = list(lines)

    def _print(self, text: str) -> None:
        below = "".join(f"{line}\n" for line in self._shown)
        self._out.write(f"{self._erasing()}{text}\n{below}")
        self._out.flush()

    def _erasing(self) -> str:
        return _UP_AND_CLEAR.format(len(self._shown)) if self._shown else ""

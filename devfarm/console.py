# SPDX-License-Identifier: Apache-2.0
"""Prints a farm's progress on standard output."""

from __future__ import annotations

import sys
import time

_BOLD, _PLAIN = "\x1b[1m", "\x1b[0m"
_STARTED = time.monotonic()


def print_title(text: str) -> None:
    print(f"\n{_BOLD}{text}{_PLAIN}" if sys.stdout.isatty() else f"\n{text}", flush=True)


def print_line(text: str) -> None:
    """Print a line, with the seconds since the start."""
    print(f"  {time.monotonic() - _STARTED:6.1f} s  {text}", flush=True)


def print_block(text: str) -> None:
    """Print another program's output, indented."""
    print("\n".join(f"  {line}" for line in text.rstrip().splitlines()), flush=True)

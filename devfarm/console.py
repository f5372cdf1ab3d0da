# SPDX-License-Identifier: Apache-2.0
"""Prints what a farm says to a person: titles, lines with the seconds since the start, another program's output."""

from __future__ import annotations

import sys
import time

_STARTED = time.monotonic()


def print_title(text: str) -> None:
    print(f"\n\x1b[1m{text}\x1b[0m" if sys.stdout.isatty() else f"\n{text}", flush=True)


def print_line(text: str) -> None:
    print(f"  {time.monotonic() - _STARTED:6.1f} s  {text}", flush=True)


def print_block(text: str) -> None:
    print("\n".join(f"  {line}" for line in text.rstrip().splitlines()), flush=True)

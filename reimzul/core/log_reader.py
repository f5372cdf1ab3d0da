# SPDX-License-Identifier: Apache-2.0
"""Reads logs that a build has written: a log may have 500 MB, in no particular encoding, and lines without an end.

Each line is cut here before any pattern sees it. `re` holds the interpreter's lock during a search, so a pattern that
is slow on a long line would stop every thread of the worker, and the one that handles SIGTERM too.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from pathlib import Path

#: Bytes of a line that are read: no message of a compiler or a package manager is longer.
LINE_LIMIT = 8_192
#: Bytes of a log that are read at once.
BLOCK_BYTES = 1 << 20
_LONG_LINE = re.compile(rf"^([^\n]{{{LINE_LIMIT}}})[^\n]+", re.MULTILINE)


def cut_lines(text: str) -> str:
    """Cut each line of a text to its first `LINE_LIMIT` characters."""
    return _LONG_LINE.sub(r"\1", text)


def decode_line(block: bytes, begin: int, end: int) -> str:
    """Decode a line of a block, cut to `LINE_LIMIT` bytes."""
    return block[begin : min(end, begin + LINE_LIMIT)].decode("utf-8", "replace")


def read_end(path: Path, limit: int) -> str:
    """The last `limit` bytes of a log, its lines cut, whatever its encoding; empty where it is missing."""
    try:
        with path.open("rb") as stream:
            stream.seek(max(0, path.stat().st_size - limit))
            return cut_lines(stream.read(limit).decode("utf-8", "replace"))
    except OSError:
        return ""


def read_blocks(path: Path) -> Iterator[tuple[int, bytes]]:
    """A log in blocks of whole lines, unless a line is longer than a block; each with its offset."""
    start, rest = 0, b""
    with contextlib.suppress(OSError), path.open("rb") as stream:
        while True:
            more = stream.read(BLOCK_BYTES)
            block = rest + more
            cut = block.rfind(b"\n") + 1 if more and len(rest) < BLOCK_BYTES else len(block)
            yield start, block[:cut]
            start, rest = start + cut, block[cut:]
            if not more:
                return

# SPDX-License-Identifier: Apache-2.0
"""The logs in a result folder: unpacked where mock's compress_logs plugin packed them, and watched while they grow."""

from __future__ import annotations

import bz2
import contextlib
import logging
import lzma
import os
import shutil
import time
import zlib
from pathlib import Path
from typing import Any, Callable

from reimzul.core.errors import ReimzulError

log = logging.getLogger(__name__)

#: The plugin's command is a setting: gzip by default, and what else people use.
_UNPACKERS: dict[str, Callable[[], Any]] = {
    ".gz": lambda: zlib.decompressobj(wbits=31),
    ".xz": lzma.LZMADecompressor,
    ".bz2": bz2.BZ2Decompressor,
}
#: Bytes of a packed log that are read at once.
_PIECE = 1 << 16
#: Bytes by which a log is known to be the same.
_HEAD = 64


def unpack_logs(results: Path) -> None:
    """Unpack the logs that mock's compress_logs plugin packed, so that everything after reads plain text.

    A damaged one is unpacked as far as possible. Raises `OSError` where the disk is full.
    """
    if not results.is_dir():
        return
    for packed in sorted(results.iterdir()):
        unpacker = _UNPACKERS.get(packed.suffix)
        if unpacker is None or not packed.stem.endswith(".log") or not packed.is_file():
            continue
        unpacked = packed.with_suffix(".unpacked")
        _unpack(unpacker, packed, unpacked)
        _merge(unpacked, packed.with_suffix(""))


def _merge(unpacked: Path, plain: Path) -> None:
    """Give a log its name; beside it may lie what mock wrote after it was packed, or the log that was being packed."""
    if plain.exists():
        with plain.open("rb") as written:
            head = written.read(_HEAD)
            if _begins_with(unpacked, head):
                unpacked.unlink()
                return
            with unpacked.open("ab") as stream:
                stream.write(head)
                shutil.copyfileobj(written, stream, 1 << 20)
    unpacked.replace(plain)


def _begins_with(path: Path, head: bytes) -> bool:
    with path.open("rb") as stream:
        return stream.read(len(head)) == head


def _unpack(unpacker: Callable[[], Any], packed: Path, unpacked: Path) -> None:
    """Unpack as much as can be; a packer may have been ended in the middle."""
    with packed.open("rb") as source, unpacked.open("wb") as stream:
        current = unpacker()
        try:
            while body := source.read(_PIECE):
                stream.write(current.decompress(body))
                while current.eof and current.unused_data:  # one packed file after the other
                    rest, current = current.unused_data, unpacker()
                    stream.write(current.decompress(rest))
        except (zlib.error, lzma.LZMAError, EOFError, ValueError) as error:
            log.warning("%s is damaged: %s", packed.name, error)
        except OSError as error:
            if error.errno is not None:
                raise
            log.warning("%s is damaged: %s", packed.name, error)  # bz2 says it so
    packed.unlink()


class BuildStalled(ReimzulError):
    """Nothing was written to a build's logs or its result folder for longer than it may take."""


class StallDetector:
    """The result folder of a build, watched for whether anything in it changes."""

    def __init__(self, results: Path, limit: int) -> None:
        self.results = results
        self.limit = limit  #: seconds, 0 for any time
        self._seen: dict[str, tuple[int, int]] = {}
        self._since = time.monotonic()

    def raise_if_stalled(self) -> None:
        """Raise `Stalled` where nothing changed for too long."""
        if not self.limit:
            return
        seen, now = _contents(self.results), time.monotonic()
        if seen != self._seen:
            self._seen, self._since = seen, now
        elif now - self._since > self.limit:
            raise BuildStalled(f"nothing was written to its logs for {self.limit} s (stall_timeout)")


def _contents(folder: Path) -> dict[str, tuple[int, int]]:
    """Each file of a folder, with its size and when it was written to last."""
    found: dict[str, tuple[int, int]] = {}
    with contextlib.suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            with contextlib.suppress(OSError):  # gone meanwhile
                stat = entry.stat(follow_symlinks=False)
                found[entry.name] = (stat.st_size, stat.st_mtime_ns)
    return found

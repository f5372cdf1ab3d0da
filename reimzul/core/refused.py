# SPDX-License-Identifier: Apache-2.0
"""Where refused messages go when beanstalkd holds enough of them: a file for each tube, on the host that refused.

A flood of bad messages would else fill beanstalkd's memory and binlog, and a buried job is there for a person to look
at, which nobody does with the thousandth. A line is a JSON object: tube, job, at, reason, host, and the whole body in
base64. Any number of processes append; what is said to be kept is on the disk.
"""

from __future__ import annotations

import base64
import fcntl
import json
import logging
import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import attr

from reimzul.core.fs import sync
from reimzul.core.message import Refusal

log = logging.getLogger(__name__)

#: Buried jobs a tube may have before the bodies of further ones go to its file.
ENOUGH = 1000
#: How many are kept until that is said again.
SAY_EVERY = 1000
_ENDING = ".jsonl"


class Overflow:
    """The folder with the files."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._kept: Counter[str] = Counter()

    def path(self, tube: str) -> Path:
        """A tube's file; beanstalkd allows a slash in a tube's name."""
        return self.folder / f"{quote(tube, safe='')}{_ENDING}"

    def keep(self, event: Refusal, body: bytes) -> None:
        """Have the disk keep a refused job; once a thousand it is said. Raises `OSError`."""
        path = self.path(event.tube)
        _append(path, _line(event, body))
        if self._kept[event.tube] % SAY_EVERY == 0:
            log.warning("%d jobs of %s are buried: what is refused of it now goes to %s", ENOUGH, event.tube, path)
        self._kept[event.tube] += 1

    def files(self) -> Iterator[Path]:
        """The files of this host that this user may read."""
        for path in sorted(self.folder.glob(f"*{_ENDING}")):
            if os.access(path, os.R_OK):
                yield path


def _line(event: Refusal, body: bytes) -> bytes:
    said = attr.asdict(event, filter=lambda a, _: a.name in ("tube", "job", "at", "reason", "host"))
    return json.dumps({**said, "body": base64.b64encode(body).decode()}).encode() + b"\n"


def _append(path: Path, line: bytes) -> None:
    """Add one whole line for good, or nothing; a full disk may take a part of it, which is taken out again."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        size = os.fstat(descriptor).st_size
        if size and os.pread(descriptor, 1, size - 1) != b"\n":  # somebody was killed in mid-write
            line = b"\n" + line
        try:
            _write(descriptor, line)
        except OSError:
            os.ftruncate(descriptor, size)
            raise
        if not size:
            sync(path.parent)
    finally:
        os.close(descriptor)


def _write(descriptor: int, line: bytes) -> None:
    while line:
        line = line[os.write(descriptor, line) :]
    os.fsync(descriptor)
